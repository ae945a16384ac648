"""``check``: segments with wrong frames are computed again in FP32, and fail with a text that says what is wrong.

The faults are in real ONNX models: each enlarges by two, and does something wrong to bright frames alone.
"""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from genai_ray import EnhanceOptions, ModelCache, ModelCatalog, VideoReader, enhance_videos, errors
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.job.clip_plan import examine_clip, name_segments, open_clip
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.steps import run_segment
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment import segment
from genai_ray.enhance.segment.cancellation import JobCancelledError, cancel_job, clear_cancellation
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.types import CheckLevel, ModelBackend, ModelPrecision
from genai_ray.video import Encoding, plan_video
from tests.caches import ending
from tests.enhance.moving import frames_of, pan, write_frames
from tests.processes import kill, start, wait_until

LOSSLESS = Encoding(codec="ffv1")
BRIGHT = 5
"""The frame that the models spoil, in the second of three segments of four frames."""


def save_model(path, fault):
    """Write a model that repeats each pixel twice, and spoils frames whose mean is above 0.6."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Greater", ["mean", "limit"], ["is_bright"]),
        *fault,
        helper.make_node("Where", ["is_bright", "wrong", "input"], ["chosen"]),
        helper.make_node("Resize", ["chosen", "", "scales"], ["output"], mode="nearest"),
    ]
    constants = {
        "limit": np.float32(0.6),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "nan": np.float32(np.nan),
        "zero": np.float32(0),
        "exchanged": np.array([2, 1, 0], np.int64),
        "large": np.float32(1e6),
        "small": np.float32(1e-6),
        "grey": np.float32(0.07),
    }
    used = {name for node in nodes for name in node.input}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, f"h{name}", f"w{name}"])
        for name in ("input", "output")
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [tensor for tensor in tensors if tensor.name in used])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


FAULTS = {
    "nan": [helper.make_node("Add", ["input", "nan"], ["wrong"])],
    "black": [helper.make_node("Mul", ["input", "zero"], ["wrong"])],
    "exchanged": [helper.make_node("Gather", ["input", "exchanged"], ["wrong"], axis=1)],
    # FP16 has no 1e6: the converter makes 65504 of it, and these frames get a fifteenth of their brightness
    "fp16": [
        helper.make_node("Mul", ["large", "small"], ["one"]),
        helper.make_node("Mul", ["input", "one"], ["wrong"]),
    ],
    "darker": [helper.make_node("Sub", ["input", "grey"], ["wrong"])],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, fault in FAULTS.items():
        save_model(folder / f"{name}.onnx", fault)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve frames, the sixth of them bright and of strong colours."""
    frames = pan(12, size=(96, 64))
    frames[BRIGHT] = frames[BRIGHT] // 4 + np.array([190, 175, 120], np.uint8)
    return write_frames(tmp_path_factory.mktemp("clip") / "a.mkv", frames, pix_fmt="yuv444p")


def options(**others):
    return EnhanceOptions(encoding=LOSSLESS, segment_frames=4, **others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "measured"), [("nan", "colour_shift"), ("black", "colour_shift"), ("exchanged", "block_shift")]
)
def test_a_frame_that_is_wrong_twice_fails_its_video(ray_session, models, source, tmp_path, fault, measured):
    with pytest.raises(errors.QualityError) as caught:
        enhance_videos(source, tmp_path / "b.mkv", models=models / f"{fault}.onnx", options=options())
    text = str(caught.value)
    assert f"{source}: segment 1 has wrong frames: frame 5 (0.200 s): " in text
    assert text.count(f"{measured} is ") == 2
    assert "allowed: at " in text
    assert ". In fp32 by onnx too: frame 5 (0.200 s): " in text
    assert "--check off (check='off')" in text
    assert not (tmp_path / "b.mkv").exists()


@pytest.mark.slow
def test_a_frame_that_is_wrong_in_fp16_alone_is_computed_again(ray_session, models, source, tmp_path):
    report = enhance_videos(
        source, tmp_path / "b.mkv", models=models / "fp16.onnx", options=options(precision=ModelPrecision.FP16)
    )
    assert (report.frames, report.frames_checked, report.segments, report.segments_recomputed) == (12, 12, 3, 1)
    (video,) = report.videos
    (note,) = [note for note in video.notes if "computed again" in note]
    assert note.startswith(
        "1 segment computed again in fp32 by onnx because of wrong frames, such as segment 1: frame 5 (0.200 s): "
    )
    frames = frames_of(source)[1]
    twice = frames.repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(frames_of(tmp_path / "b.mkv")[1].astype(int) - twice).max() <= 8  # the colours lose a little in YUV
    report = enhance_videos(
        source,
        tmp_path / "off.mkv",
        models=models / "fp16.onnx",
        options=options(precision=ModelPrecision.FP16, check=CheckLevel.OFF),
    )
    assert (report.frames_checked, report.segments_recomputed, report.videos[0].notes) == (0, 0, ())
    off = frames_of(tmp_path / "off.mkv")[1]
    assert off[BRIGHT].mean() < 0.2 * frames[BRIGHT].mean()
    assert np.array_equal(np.delete(off, BRIGHT, axis=0)[:4], frames_of(tmp_path / "b.mkv")[1][:4])


def test_several_videos_go_on_or_stop_as_asked(ray_session, models, source, tmp_path):
    (tmp_path / "a.csv").write_text(f"uri,output,check\n{source},off.mkv,off\n{source},on.mkv,\n")
    report = enhance_videos(tmp_path / "a.csv", tmp_path / "out", models=models / "black.onnx", options=options())
    assert [video.status for video in report.videos] == ["done", "failed"]
    assert (report.clips_failed, report.frames_checked, report.segments_recomputed) == (1, 8, 0)
    assert report.segments_failed == 1
    rows = {row["output"].rpartition("/")[2]: row for row in pq.read_table(report.results).to_pylist()}
    wanted = {"status": "failed", "error_class": "QualityError", "segments_failed": 1, "segments_recomputed": 0}
    assert {name: rows["on.mkv"][name] for name in wanted} == wanted
    wanted = {"status": "done", "segments_failed": 0, "segments_recomputed": 0, "frames_checked": 0}
    assert {name: rows["off.mkv"][name] for name in wanted} == wanted
    with pytest.raises(errors.QualityError, match="frame 5"):
        enhance_videos(
            [source, source],
            tmp_path / "fast",
            models=models / "black.onnx",
            options=options(fail_fast=True, name="{index}.mkv"),
        )


def test_strict_finds_what_default_lets_pass(ray_session, models, source, tmp_path):
    report = enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=options(check="strict"))
    assert (report.frames_checked, report.segments_recomputed) == (12, 0)
    usual = enhance_videos(source, tmp_path / "c.mkv", models=models / "darker.onnx", options=options())
    assert (usual.frames_checked, usual.segments_recomputed) == (12, 0)
    with pytest.raises(errors.QualityError, match=r"frame 5 .*colour_shift is .*allowed: at most 0\.04\)"):
        enhance_videos(
            source, tmp_path / "d.mkv", models=models / "darker.onnx", options=options(check=CheckLevel.STRICT)
        )


@pytest.mark.parametrize(
    ("chain", "others", "checked"),
    [
        (["zero-dce"], {}, 12),
        (["ffdnet", "websr-x2-s"], {}, 12),
        (["selfie-segmentation"], {}, 0),
        pytest.param(["rife"], {}, 0, marks=pytest.mark.slow),
        # the last frame is held until the end, and so shown twice
        pytest.param(["rife", "websr-x2-s"], {"factor": 2}, 12 + 1, marks=pytest.mark.slow),
    ],
    ids=["low light", "chain", "mask", "added frames", "added and enlarged frames"],
)
@pytest.mark.parametrize("level", ["default", pytest.param("strict", marks=pytest.mark.slow)])
def test_packaged_models_pass_as_far_as_they_keep_the_picture(ray_session, tmp_path, chain, others, checked, level):
    clip = write_frames(tmp_path / "a.mkv", pan(12, size=(98, 66)))  # without the bright frame: a flash
    report = enhance_videos(clip, tmp_path / "b.mkv", models=chain, options=options(check=level, **others))
    assert (report.frames_checked, report.segments_recomputed, report.segments_failed) == (checked, 0, 0)


def test_a_still_frame_counts_as_often_as_it_is_shown(ray_session, tmp_path):
    clip = write_frames(tmp_path / "a.mkv", pan(3)[[0, 0, 0, 1, 2, 2]])
    report = enhance_videos(clip, tmp_path / "b.mkv", models="websr-x2-s", options=options())
    assert (report.frames, report.frames_checked) == (6, 6)


@pytest.mark.parametrize("bits", ["gray10le", "yuv420p10le"])
def test_ten_bits_are_checked(ray_session, models, tmp_path, bits):
    frames = pan(4)
    clip = write_frames(tmp_path / "a.mkv", frames, pix_fmt=bits)
    report = enhance_videos(clip, tmp_path / "b.mkv", models="websr-x2-s", options=options())
    assert report.frames_checked == 4
    frames[2] = frames[2] // 4 + 190
    clip = write_frames(tmp_path / "c.mkv", frames, pix_fmt=bits)
    with pytest.raises(errors.QualityError, match="frame 2"):
        enhance_videos(clip, tmp_path / "d.mkv", models=models / "black.onnx", options=options())


@pytest.mark.parametrize("level", ["on", "", 3])
def test_another_level_is_refused(tmp_path, level, source):
    with pytest.raises(errors.ConfigError, match="allowed: off, default, strict"):
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=options(check=level))
    (tmp_path / "a.csv").write_text(f"uri,check\n{source},{level or 'none'}\n")
    with pytest.raises(errors.ConfigError, match="allowed: off, default, strict"):
        enhance_videos(tmp_path / "a.csv", tmp_path / "out", models="websr-x2-s")


def test_a_segment_computed_again_is_kept_for_the_next_job(ray_session, models, source, tmp_path):
    chosen = options(precision=ModelPrecision.FP16)
    model = models / "fp16.onnx"
    enhance_videos(source, tmp_path / "undisturbed.mkv", models=model, options=chosen)
    specs = check_models(model, chosen)
    (target,) = resolve_targets([source], tmp_path / "b.mkv", chosen)
    kind = node_kind(is_gpu=False)
    planned = open_clip(examine_clip(target, specs, chosen), specs, kind)
    with ending(ModelCache(2_000_000_000, name="checks")) as cache:
        result, _ = run_segment(planned, 1, JobContext(specs, (), chosen, cache, "checks", kind))
    assert (result.frames, result.frames_checked) == (4, 4)
    assert "frame 5" in result.recomputed
    report = enhance_videos(source, tmp_path / "b.mkv", models=model, options=chosen)
    assert (report.segments_reused, report.segments_recomputed, report.frames_checked) == (1, 0, 8)
    assert (tmp_path / "b.mkv").read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()


@pytest.mark.slow
def test_what_passed_stricter_checks_is_kept_for_laxer_ones(ray_session, models, source, tmp_path):
    """Segment 1 is wrong in FP16 alone: it was computed again, so it is not what a job without checks makes."""
    strict = options(precision=ModelPrecision.FP16, check="strict")
    (target,) = resolve_targets([source], tmp_path / "b.mkv", strict)
    specs, kind = check_models(models / "fp16.onnx", strict), node_kind(is_gpu=False)
    planned = open_clip(examine_clip(target, specs, strict), specs, kind)
    with ending(ModelCache(2_000_000_000, name="checks")) as cache:
        made = [run_segment(planned, index, JobContext(specs, (), strict, cache, "lax", kind))[0] for index in (0, 1)]
    assert [bool(result.recomputed) for result in made] == [False, True]
    reused = {}
    for level in ("off", "default", "strict"):
        asked = replace(strict, check=level)
        reused[level] = name_segments(examine_clip(target, specs, asked), specs, kind).reused
    assert {level: sorted(found) for level, found in reused.items()} == {"off": [0], "default": [0], "strict": [0, 1]}
    report = enhance_videos(
        source, tmp_path / "b.mkv", models=models / "fp16.onnx", options=replace(strict, check="off")
    )
    assert (report.segments_reused, report.frames_checked) == (1, 0)
    undisturbed = options(precision=ModelPrecision.FP16, check="off")
    enhance_videos(source, tmp_path / "c.mkv", models=models / "fp16.onnx", options=undisturbed)
    assert (tmp_path / "b.mkv").read_bytes() == (tmp_path / "c.mkv").read_bytes()


@pytest.mark.slow
def test_a_second_try_without_room_says_so(ray_session, models, source, tmp_path, monkeypatch):
    """The cache is full of a session that is leased, as by the job itself."""
    monkeypatch.setattr(segment, "RELOAD_WITHIN_S", 2.0)
    chosen = options(precision=ModelPrecision.FP16)
    specs = check_models(models / "fp16.onnx", chosen)
    (target,) = resolve_targets([source], tmp_path / "b.mkv", chosen)
    kind = node_kind(is_gpu=False)
    planned = open_clip(examine_clip(target, specs, chosen), specs, kind)
    with ending(ModelCache(2_000_000_000, name="measured")) as cache, cache.lease(planned.requests):
        taken, _ = cache.memory_usage()
    with (
        ending(ModelCache(int(1.5 * taken), name="full")) as cache,
        cache.lease(planned.requests),
        pytest.raises(
            (errors.DeadlineExceededError, errors.ResourceExhaustedError),
            match=r"frame 5 .* In fp32 by onnx it cannot be computed: ",
        ) as caught,
    ):
        run_segment(planned, 1, JobContext(specs, (), chosen, cache, "full", kind))
    assert "--check off" in caught.value.do
    assert not any((tmp_path / "b.mkv.genai-ray").iterdir())


def test_a_text_names_some_frames_and_counts_the_others(samples):
    plan = plan_video(samples / "bigbuckbunny-360p.mp4")
    checks = SegmentChecks(plan, [ModelCatalog.default().get("websr-x2-s")], CheckLevel.DEFAULT)
    with VideoReader(samples / "bigbuckbunny-360p.mp4") as video:
        frames = video[60:68].frames
    for index, frame in enumerate(frames, 60):
        wrong = frame if index == 61 else frame * 0
        checks.add(index, frame, wrong.repeat(2, axis=0).repeat(2, axis=1), 1)
    assert (checks.has_failed, checks.num_checked) == (True, 8)
    text = checks.describe()
    assert [word in text for word in ("frame 60 (2.400 s)", "frame 61", "frame 62", "frame 63", "frame 64")] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert text.endswith("; 4 more frames up to 67")


@pytest.mark.cluster
@pytest.mark.slow
def test_the_command_names_wrong_frames_and_a_killed_job_goes_on(ray_session, command, models, tmp_path):
    frames = pan(120, size=(320, 180), step=(3, 1))
    frames[41] = frames[41] // 4 + 190
    clip = write_frames(tmp_path / "a.mkv", frames)
    words = ["enhance", clip, "--encoder-preset", "ultrafast", "--segment-frames", 6, "--json"]
    failed = command(*words, "-o", tmp_path / "failed.mkv", "-m", models / "black.onnx")
    assert failed.returncode == 1
    assert "segment 6 has wrong frames: frame 41" in failed.stderr
    assert json.loads(failed.stdout.splitlines()[-1])["error"]["class"] == "QualityError"
    words += ["-m", models / "fp16.onnx", "--precision", "fp16"]
    whole = command(*words, "-o", tmp_path / "whole.mkv")
    assert whole.returncode == 0, whole.stderr
    report = json.loads(whole.stdout.splitlines()[-1])
    assert (report["frames_checked"], report["segments_recomputed"], report["segments_failed"]) == (120, 1, 0)
    output = tmp_path / "b.mkv"
    job = start(*words, "-o", output)
    work = output.with_name(output.name + ".genai-ray")
    wait_until(lambda: len(list(work.glob("*.nut"))) >= 8, job)
    kill(job.pid)
    job.communicate()
    assert not output.exists()
    again = command(*words, "-o", output)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["segments_reused"] >= 8
    assert output.read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    assert all(a < b for a, b in pairwise(frames_of(output)[0]))


def test_the_second_try_keeps_to_the_kind_of_device():
    chosen = options(backend=ModelBackend.OPENVINO, precision=ModelPrecision.BF16)
    request = SessionRequest("websr-x2-s", chosen.backend, chosen.precision, "auto")
    again = segment._to_reference(request)
    assert (again.backend, again.precision, again.device) == (ModelBackend.ONNX, ModelPrecision.FP32, "cpu")
    assert segment._to_reference(replace(request, backend=ModelBackend.ONNX)).device == "auto"


def test_a_wait_for_room_ends_with_the_job(ray_session, models, source, tmp_path):
    chosen = options(precision=ModelPrecision.FP16)
    specs = check_models(models / "fp16.onnx", chosen)
    (target,) = resolve_targets([source], tmp_path / "b.mkv", chosen)
    kind = node_kind(is_gpu=False)
    requests = open_clip(examine_clip(target, specs, chosen), specs, kind).requests
    with ending(ModelCache(2_000_000_000, name="over")) as cache:
        cancel_job("over")
        try:
            with pytest.raises(JobCancelledError):
                segment._lease_reference(JobContext(specs, requests, chosen, cache, "over", kind), requests)
        finally:
            clear_cancellation("over")
        assert cache.loaded_models() == []
