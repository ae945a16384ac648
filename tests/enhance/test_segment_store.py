"""What a finished segment's name depends on, and finished segments of a file that ends too early."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import ray

from genai_ray import EnhanceOptions, ModelCache, enhance_videos, errors
from genai_ray.catalog import ModelCatalog
from genai_ray.enhance import Background
from genai_ray.enhance.job.clip_outcome import MARKER
from genai_ray.enhance.job.clip_plan import ClipPlan, Packed, examine_clip, open_clip
from genai_ray.enhance.job.segment_store import SegmentStore, hash_segment, key_segments, node_kind
from genai_ray.enhance.job.steps import finish_clip, run_segment
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.enhance.segment.segment import JobContext, SegmentResult
from genai_ray.types import ModelBackend, ModelPrecision
from genai_ray.video import Encoding, SegmentWriter, decode_segment, plan_video
from tests.caches import ending
from tests.nodes import LOGICAL_GPUS, Nodes
from tests.processes import wait_until
from tests.video.clips import NUM_FRAMES, write, write_cut

KIND = node_kind(is_gpu=False)
BASE = EnhanceOptions(encoding=Encoding(codec="libx264", options={"tune": "film", "bf": "2", "g": "10"}))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_video(write(tmp_path_factory.mktemp("clip") / "a.mkv", tracks=0), segment_frames=10)


def keys(plan, options=BASE, models=("websr-x2-s",)):
    catalog = ModelCatalog.default()
    return key_segments(plan, [catalog.get(model) for model in models], options, KIND)


def test_the_order_of_encoder_options_does_not_count(plan):
    turned = replace(BASE, encoding=replace(BASE.encoding, options={"g": "10", "tune": "film", "bf": "2"}))
    assert keys(plan, turned) == keys(plan)
    assert len(set(keys(plan))) == len(plan.segments) == 3


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, encoding=replace(BASE.encoding, options={"tune": "film", "bf": "2", "g": "11"})),
        replace(BASE, encoding=replace(BASE.encoding, options={"tune": "film", "bf": "2"})),
        replace(BASE, encoding=replace(BASE.encoding, codec="libx265")),
        replace(BASE, encoding=replace(BASE.encoding, preset="slow")),
        replace(BASE, encoding=replace(BASE.encoding, crf=19)),
        replace(BASE, encoding=replace(BASE.encoding, threads=2)),
        replace(BASE, encoding=replace(BASE.encoding, bit_depth=10)),
        replace(BASE, backend=ModelBackend.OPENVINO),
        replace(BASE, backend=ModelBackend.AUTO),
        replace(BASE, precision=ModelPrecision.FP16),
        replace(BASE, device="cpu"),
        replace(BASE, device_kinds=("L4",)),
        replace(BASE, params={"sigma": 0.1}),
        replace(BASE, tile_size_px=64),
        replace(BASE, size="200x200"),
        replace(BASE, size="200x200", fit="pad"),
        replace(BASE, width=200),
        replace(BASE, height=200),
        replace(BASE, scale=1.5),
        replace(BASE, input_height=32),
        replace(BASE, deinterlace="off"),
        replace(BASE, deinterlace="field"),
        replace(BASE, deinterlace="ivtc"),
        replace(BASE, field_order="bottom"),
        replace(BASE, factor=3),
        replace(BASE, fps=Fraction(60)),
        replace(BASE, scene_threshold=0.2),
        replace(BASE, scene_detector="transnetv2"),
        replace(BASE, check="off"),
        replace(BASE, background=Background(kind="blur")),
        replace(BASE, background=Background(kind="blur", radius_px=3)),
        replace(BASE, background=Background(colour=(1, 2, 3))),
    ],
)
def test_whatever_changes_bytes_changes_the_key(plan, other):
    assert not set(keys(plan, other)) & set(keys(plan))


def test_another_least_quality_changes_the_key(plan):
    auto = replace(BASE, backend=ModelBackend.AUTO)
    assert not set(keys(plan, replace(auto, min_quality_db=50.0))) & set(keys(plan, auto))


def test_whatever_changes_no_byte_keeps_the_key(plan):
    assert keys(
        plan, replace(BASE, replicas=4, overwrite=True, batch_size=2, max_memory_bytes=10**9, background=Background())
    ) == keys(plan)
    assert keys(plan, replace(BASE, scale="3/2")) == keys(plan, replace(BASE, scale=1.5))
    assert keys(plan, replace(BASE, size="200x200", fit="inside")) == keys(plan, replace(BASE, size="200x200"))


def test_models_and_input_are_part_of_the_key(plan, tmp_path):
    assert not set(keys(plan, models=("websr-x2-m",))) & set(keys(plan))
    assert not set(keys(plan, models=("websr-x2-s", "websr-x2-s"))) & set(keys(plan))
    other = plan_video(write(tmp_path / "b.mkv", tracks=0, pts=list(range(1, 41))), segment_frames=10)
    assert not set(keys(other)) & set(keys(plan))


def test_a_resumed_truncated_job_counts_its_segments(tmp_path):
    """All segments were finished by a job that died before the join; the last one ends with the file."""
    source, output = write_cut(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=8, allow_truncated=True)
    (target,) = resolve_targets([source], output, options)
    specs = [ModelCatalog.default().get("websr-x2-s")]
    planned = open_clip(examine_clip(target, specs, options), specs, KIND)
    assert (planned.segments, len(planned.todo)) == (len(planned.timeline.plan.segments), planned.segments)
    written = []
    for segment in planned.timeline.plan.segments:
        frames = list(decode_segment(planned.timeline.plan, segment, allow_truncated=True))
        written.append(len(frames))
        if frames:
            partial = planned.store.partial(segment.index)
            with SegmentWriter(
                partial, info=planned.timeline.plan.info, size=(96, 64), encoding=planned.options.encoding
            ) as writer:
                for frame in frames:
                    writer.write(frame.frame, frame.pts)
            partial.rename(
                planned.store.place(segment.index, planned.store.name(segment.index, hash_segment(str(partial))))
            )
    planned = open_clip(examine_clip(target, specs, options), specs, KIND)
    assert planned.todo == [index for index, count in enumerate(written) if not count]
    planned.store.partial(0).touch()  # as of a worker that was killed
    outcome = finish_clip(planned, dict.fromkeys(planned.todo, SegmentResult(0, 0, 0.0)), 0.0)
    assert outcome.frames == len(plan_video(output).pts) == sum(written) < NUM_FRAMES
    assert list(plan_video(output).pts) == list(planned.timeline.plan.pts[: sum(written)])
    assert [path.name for path in Path(planned.store.folder).iterdir()] == [MARKER]
    assert finish_clip(planned, {}, 0.0) == outcome  # as after the death of a worker that had published


def test_two_tasks_at_one_segment_do_not_harm_each_other(ray_session, tmp_path):
    """As where a job is run again while a task of the last one is still at work."""
    source, options = write(tmp_path / "a.mkv", tracks=0), EnhanceOptions(encoding=Encoding(preset="ultrafast"))
    (target,) = resolve_targets([source], tmp_path / "b.mkv", options)
    specs = (ModelCatalog.default().get("websr-x2-s"),)
    planned = open_clip(examine_clip(target, specs, options), specs, KIND)
    with ending(ModelCache(2_000_000_000, name="twice")) as cache:
        task, job = ray.remote(max_retries=0)(run_segment), JobContext(specs, (), options, cache, "twice", KIND)
        results = ray.get([task.remote(planned, 0, job) for _ in range(2)])
    assert [result.frames for result, _ in results] == [NUM_FRAMES] * 2
    assert [path.suffix for path in Path(planned.store.folder).iterdir()] == [".nut"]
    assert finish_clip(planned, {0: results[0][0]}, 0.0).frames == NUM_FRAMES


def test_a_source_that_changes_is_not_mixed_with_itself(ray_session, tmp_path):
    source, options = write(tmp_path / "a.mkv", tracks=0), EnhanceOptions(encoding=Encoding(preset="ultrafast"))
    (target,) = resolve_targets([source], tmp_path / "b.mkv", options)
    specs = (ModelCatalog.default().get("websr-x2-s"),)
    planned = open_clip(examine_clip(target, specs, options), specs, KIND)
    source.write_bytes(source.read_bytes() + b"more")
    with (
        ending(ModelCache(2_000_000_000, name="changed")) as cache,
        pytest.raises(errors.VideoError, match="changed while it was enhanced"),
    ):
        run_segment(planned, 0, JobContext(specs, (), options, cache, "changed", KIND))
    assert list(Path(planned.store.folder).iterdir()) == []
    with pytest.raises(errors.VideoError, match="changed while it was enhanced"):
        finish_clip(planned, {}, 0.0)
    assert not (tmp_path / "b.mkv").exists()


def test_the_jobs_node_counts_and_a_gpu_is_another_kind(plan):
    specs = [ModelCatalog.default().get("websr-x2-s")]
    assert key_segments(plan, specs, BASE, node_kind(is_gpu=False)) == keys(plan)
    assert not set(key_segments(plan, specs, BASE, node_kind(is_gpu=True))) & set(keys(plan))


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_with_gpus_makes_no_segment_for_one_without(tmp_path):
    source, options = write(tmp_path / "a.mkv", tracks=0), replace(BASE, segment_frames=4)
    plan = plan_video(source, segment_frames=4)
    with Nodes() as nodes, ending(ModelCache(options=LOGICAL_GPUS)), ThreadPoolExecutor(1) as thread:
        nodes.add(num_gpus=1)
        job = thread.submit(enhance_videos, source, tmp_path / "b.mkv", models="websr-x2-s", options=options)
        found = set()

        def look():
            found.update(path.name.split("-")[1].removesuffix(".nut") for path in tmp_path.glob("*/*.nut"))
            return job.done()

        wait_until(look)
        assert job.result().frames == NUM_FRAMES
    specs = [ModelCatalog.default().get("websr-x2-s")]
    fitted = replace(options, encoding=options.encoding.fit(".mkv"))
    assert found
    assert found <= set(key_segments(plan, specs, fitted, node_kind(is_gpu=True)))


def test_the_plan_of_a_long_video_outlives_its_node(plan, tmp_path):
    frames = 10 * 3600 * 25
    long = replace(plan, pts=tuple(range(0, 40 * frames, 40)), keys=tuple(range(0, frames, 250)))
    store = SegmentStore(str(tmp_path), [f"{index:032x}" for index in range(len(long.segments))])
    planned = ClipPlan(None, BASE, (), "", FrameSizes(*[(96, 64)] * 4), None, Packed((Timeline(long, long), store)))
    packed = pickle.dumps(planned)
    assert len(packed) < 100_000
    again = pickle.loads(packed)
    assert again.timeline == planned.timeline
    assert again.timeline.result.pts is again.timeline.plan.pts
