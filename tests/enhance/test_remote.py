"""Inputs and outputs that are URIs: read by blocks, published whole, and errors that say where."""

from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from genai_ray import EnhanceOptions, ModelCache, enhance_videos, errors, read_videos
from genai_ray.enhance.job.clip_outcome import ClipOutcome, forget
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.steps import begin_clip
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.files import expand, find_facts, open_to_read
from genai_ray.video import Encoding, decode_segment, plan_video
from tests.caches import ending
from tests.servers import serving
from tests.video.clips import NUM_FRAMES, write

OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=16)
MODEL = "websr-x2-s"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "a.mp4")
    write(folder / "b.mkv", tracks=0, options={"g": "8"})
    write(folder / "long.mkv", tracks=0, size=(640, 360), codec="ffv1", pix_fmt="yuv444p", pts=list(range(120)))
    return folder


@pytest.fixture
def store():
    """fsspec's memory file system, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def whole(place):
    plan = plan_video(place, segment_frames=16)
    return plan, np.stack([frame.frame for segment in plan.segments for frame in decode_segment(plan, segment)])


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_a_video_of_a_server_is_the_same_video(clips, name, ranges):
    with serving(clips, ranges=ranges) as (address, _):
        plan, frames = whole(f"{address}/{name}")
    own, expected = whole(clips / name)
    assert (plan.pts, plan.content_hash, plan.segments) == (own.pts, own.content_hash, own.segments)
    assert np.array_equal(frames, expected)


def test_only_blocks_that_are_needed_are_fetched(clips):
    size = (clips / "long.mkv").stat().st_size
    assert size > 8 * 1024**2
    with serving(clips) as (address, sent):
        plan = plan_video(f"{address}/long.mkv", segment_frames=6)
        sent.clear()
        list(decode_segment(plan, plan.segments[-1]))
        assert sum(sent) < size / 2


def test_a_lost_server_is_an_error_with_file_and_position(clips):
    with (
        serving(clips, breaks_at=3 * 1024**2) as (address, _),
        pytest.raises(errors.VideoError, match=r"long\.mkv: reading at byte \d+ of \d+ failed"),
    ):
        plan_video(f"{address}/long.mkv")
    with serving(clips) as (address, _), pytest.raises(errors.VideoError, match=r"none\.mkv: no such file"):
        plan_video(f"{address}/none.mkv")
    with pytest.raises(errors.VideoError, match=r"long\.mkv"):
        plan_video(f"{address}/long.mkv")  # nobody is there any more


@pytest.mark.slow
def test_a_job_from_a_server_to_a_store(ray_session, clips, tmp_path):
    """``local://`` is a store to fsspec, and one that every process sees."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    with serving(clips) as (address, _):
        manifest = tmp_path / "list.csv"
        pyarrow.csv.write_csv(
            pa.table(
                {
                    "uri": [f"{address}/a.mp4", f"{address}/b.mkv", f"{address}/none.mp4"],
                    "output": ["one.mp4", "sub/two.mkv", None],
                }
            ),
            manifest,
        )
        report = enhance_videos(manifest, f"local://{folder}", models=MODEL, options=OPTIONS)
        assert [video.status for video in report.videos] == ["done", "done", "failed"]
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
            "one.mp4",
            "results.parquet",
            "sub/two.mkv",
        ]
        again = enhance_videos(manifest, f"local://{folder}", models=MODEL, options=OPTIONS)
        assert (again.clips_skipped, again.clips_failed) == (2, 1)
    enhance_videos([clips / "a.mp4", clips / "b.mkv"], tmp_path, models=MODEL, options=OPTIONS)
    assert (folder / "one.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    assert (folder / "sub" / "two.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"done", "failed"}
    listed = expand(f"local://{folder}", (".mp4", ".mkv"))
    assert listed == [(f"local://{folder}/one.mp4", ""), (f"local://{folder}/sub/two.mkv", "sub/")]


def test_a_single_video_goes_into_memory_whole_or_not_at_all(ray_session, clips, store):
    with fsspec.open("memory://in/a.mp4", "wb") as sink:
        sink.write((clips / "a.mp4").read_bytes())
    specs = check_models([MODEL], OPTIONS)
    (target,) = resolve_targets(["memory://in/a.mp4"], "memory://out/b.mp4", OPTIONS)
    with ending(ModelCache(2_000_000_000, name="remote")) as cache:
        whole_job = EnhanceOptions(encoding=OPTIONS.encoding)
        job = JobContext(specs, (), whole_job, cache, "remote", node_kind(is_gpu=False))
        outcome = begin_clip(target, job, at_once=True)
        assert isinstance(outcome, ClipOutcome)
        assert outcome.frames == NUM_FRAMES
        assert find_facts("memory://out/b.mp4").size == outcome.size_bytes
        assert begin_clip(target, job, at_once=True).status == "skipped"  # the marker says so
        forget([target])
    assert sorted(store.find("/")) == ["/in/a.mp4", "/out/b.mp4"]
    with open_to_read("memory://out/b.mp4") as file:
        assert len(file.read()) == outcome.size_bytes


@pytest.mark.slow
def test_models_of_a_manifest_load_while_its_first_video_is_read(ray_session, clips, tmp_path):
    """The server holds the middle of the file back until the model is there: whoever planned first would wait for
    ever."""
    size = (clips / "long.mkv").stat().st_size
    assert size > 11_000_000
    with ending(ModelCache(2_000_000_000, name="ahead")) as cache:

        def is_loaded():
            return any(entry.model_id == MODEL and entry.state == "ready" for entry in cache.status().models)

        with serving(clips, waits_within=(5_000_000, size - 3_000_000, is_loaded)) as (address, _):
            options = replace(OPTIONS, cache_name="ahead", max_memory_bytes=2_000_000_000)
            pyarrow.csv.write_csv(pa.table({"uri": [f"{address}/long.mkv"]}), tmp_path / "list.csv")
            report = enhance_videos(tmp_path / "list.csv", tmp_path, models=MODEL, options=options)
    assert (report.frames, report.clips_failed) == (120, 0)


def test_frames_of_a_server_as_a_dataset(ray_session, clips):
    with serving(clips) as (address, _):
        dataset = read_videos([f"{address}/a.mp4", f"{address}/b.mkv"], columns=["video", "frame_index", "frame"])
        assert dataset.count() == 2 * NUM_FRAMES
        videos = {row["video"] for row in dataset.select_columns(["video"]).take_all()}
    assert videos == {f"{address}/a.mp4", f"{address}/b.mkv"}


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("a.mp4", "http://127.0.0.1/b.mp4", "s3:// or gs://"),
        ("a.mp4", "memory://out/%06d.png", "frames as files"),
        ("teleport://x/a.mp4", "b.mp4", "teleport"),
        ("a.mp4", "abfs://bucket/b.mp4", "adlfs"),
    ],
)
def test_places_that_cannot_be(clips, tmp_path, source, output, words):
    if source == "a.mp4":
        source = clips / source
    with pytest.raises(errors.ConfigError, match=words):
        resolve_targets([source], output if "://" in output else tmp_path / output, OPTIONS)
