"""Jobs of every kind: chains, many videos, what is copied along, truncated inputs, options."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pytest

from genai_ray import EnhanceOptions, InferenceSession, ModelCache, QualityValidator, enhance_videos, errors
from genai_ray.cluster import cache_names
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.video import Encoding
from tests.video.clips import NUM_FRAMES, write, write_cut
from tests.video.matrix import add_extras

FAST = Encoding(preset="ultrafast", crf=1)


def pictures(path):
    with av.open(str(path)) as box:
        return [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]


@pytest.mark.slow
def test_a_chain_passes_every_frame_through_every_model(ray_session, tmp_path):
    source = write(tmp_path / "a.mkv")
    options = EnhanceOptions(encoding=FAST, segment_frames=16, params={"sigma": 0.1}, batch_size=4)
    report = enhance_videos(source, tmp_path / "b.mkv", models=["ffdnet", "websr-x2-s"], options=options)
    assert (report.frames, report.frames_inferred, report.segments) == (NUM_FRAMES, 2 * NUM_FRAMES, 3)
    assert [use.model_id for use in report.models] == ["ffdnet", "websr-x2-s"]
    result, frames = pictures(tmp_path / "b.mkv"), np.stack(pictures(source))
    with InferenceSession("ffdnet") as first, InferenceSession("websr-x2-s") as second:
        wanted = second.infer(first.infer(frames, {"sigma": 0.1}))
    assert result[0].shape == (128, 192, 3)
    own_db, next_db = (
        [QualityValidator(a).validate(b).psnr for a, b in zip(wanted, frames, strict=False)]
        for frames in (result, result[1:])
    )
    assert min(own_db) > 30
    assert all(own > other for own, other in zip(own_db, next_db, strict=False))


def test_several_videos_go_into_a_folder_under_their_names(ray_session, tmp_path):
    sources = [
        write(tmp_path / name, pts=list(range(number))) for name, number in (("a.mp4", 5), ("b.mkv", 9), ("c.avi", 7))
    ]
    with pytest.raises(errors.ConfigError, match="several inputs need a folder"):
        enhance_videos(sources, tmp_path / "results.mp4", models="websr-x2-s")
    folder = tmp_path / "results"
    report = enhance_videos(sources, folder, models="websr-x2-s", options=EnhanceOptions(encoding=FAST))
    assert [Path(path).name for path in report.outputs] == ["a.mp4", "b.mkv", "c.mp4"]
    assert [video.frames for video in report.videos] == [5, 9, 7]
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.mkv", "c.mp4", "results.parquet"]
    assert [len(pictures(path)) for path in report.outputs] == [5, 9, 7]
    with pytest.raises(errors.ConfigError, match="two inputs"):
        enhance_videos(
            [sources[0], write(tmp_path / "a.mkv").rename(tmp_path / "results" / "a.avi")], folder, models="websr-x2-s"
        )


def subtitles_of(path):
    with av.open(str(path)) as box:
        return [
            (bytes(packet), float(packet.pts * packet.time_base))
            for packet in box.demux(box.streams.subtitles[0])
            if packet.size
        ]


def test_subtitles_chapters_attachments_and_titles_come_along(ray_session, tmp_path):
    source = add_extras(write(tmp_path / "plain.mkv"), tmp_path / "a.mkv")
    report = enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=EnhanceOptions(encoding=FAST))
    assert subtitles_of(tmp_path / "b.mkv") == subtitles_of(source)
    with av.open(str(tmp_path / "b.mkv")) as box:
        assert box.streams.subtitles[0].metadata["language"] == "fra"
        assert box.metadata["title"] == "A clip"
        assert [chapter["metadata"]["title"] for chapter in box.chapters()] == ["One"]
        assert [(stream.name, bytes(stream.data)) for stream in box.streams.attachments] == [("note.txt", b"kept")]
    assert [note for note in report.videos[0].notes if "left out" in note] == []
    report = enhance_videos(source, tmp_path / "b.mp4", models="websr-x2-s", options=EnhanceOptions(encoding=FAST))
    assert "subtitle stream 2 (subrip) is converted to mov_text: .mp4 cannot hold it" in report.videos[0].notes
    assert [data for data, *_ in subtitles_of(tmp_path / "b.mp4") if len(data) > 2] == [
        b"\0\2un",
        b"\0\4deux",
        b"\0\5trois",
    ]
    (left_out,) = [note for note in report.videos[0].notes if "left out" in note]
    assert "attachment" in left_out


def test_a_truncated_video_is_refused_and_enhanced_when_allowed(ray_session, tmp_path):
    cut = write_cut(tmp_path / "whole.mp4")
    with pytest.raises(errors.VideoError, match=r"whole\.mp4.* of 40 frames.*--allow-truncated \(allow_truncated=True"):
        enhance_videos(cut, tmp_path / "b.mp4", models="websr-x2-s")
    assert list(tmp_path.iterdir()) == [cut]
    report = enhance_videos(
        cut,
        tmp_path / "b.mp4",
        models="websr-x2-s",
        options=EnhanceOptions(encoding=FAST, allow_truncated=True, segment_frames=8),
    )
    (video,) = report.videos
    assert 10 < video.frames < video.frames_expected == NUM_FRAMES
    assert f"truncated input: {video.frames} of {NUM_FRAMES} frames" in video.notes
    assert len(pictures(tmp_path / "b.mp4")) == video.frames


def test_what_was_assumed_is_said(ray_session, tmp_path):
    source = write(tmp_path / "a.mp4", tracks=0, pts=[0, 1], colour=None)
    report = enhance_videos(source, tmp_path / "b.mp4", models="websr-x2-s", options=EnhanceOptions(encoding=FAST))
    assert report.videos[0].notes == ("untagged colour: read and tagged as BT.601, by its height of 64",)


def test_a_folder_that_cannot_be_written_is_refused():
    with tempfile.TemporaryDirectory() as place:
        locked, source = Path(place, "locked"), Path(place, "a.mp4")
        source.write_bytes(b"x")
        locked.mkdir(mode=0o555)
        Path(place).chmod(0o755)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            for output, options in (
                (locked / "b.mp4", EnhanceOptions()),
                (Path("/tmp/b.mp4"), EnhanceOptions(work_dir=locked)),
            ):
                with pytest.raises(errors.ConfigError, match="locked is not writable"):
                    resolve_targets([source], output, options)
        finally:
            if is_root:
                os.seteuid(0)


@pytest.fixture(scope="module")
def bad_models(tmp_path_factory):
    from genai_ray import ModelCatalog
    from genai_ray.catalog import dump_spec

    folder = tmp_path_factory.mktemp("models")
    (folder / "corrupt.onnx").write_bytes(ModelCatalog.default().path("websr-x2-s").read_bytes()[:2000])
    spec = (
        ModelCatalog.default()
        .get("websr-x2-s")
        .model_copy(update={"model_id": "changed", "aliases": (), "file": "changed.onnx"})
    )
    (folder / "changed.yaml").write_text(dump_spec(spec))
    (folder / "changed.onnx").write_bytes(ModelCatalog.default().path("websr-x2-m").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "{models}/corrupt.onnx"], "corrupt.onnx is not a usable ONNX file"),
        (["--model", "changed"], "sha256"),
        pytest.param(
            ["--model", "websr-x2-s", "--max-memory", "1000000", "--cache", "small"],
            "1000000 bytes, the most that one session of this cache can have",
            marks=pytest.mark.slow,  # these two ask the cache
        ),
        pytest.param(["--model", "websr-x2-s", "--device", "cuda"], "NVIDIA", marks=pytest.mark.slow),
    ],
)
def test_models_that_cannot_be_had(ray_session, command, bad_models, tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("GENAI_RAY_MODELS", str(bad_models))
    source = write(tmp_path / "a.mp4", tracks=0)
    options = [option.format(models=bad_models) for option in options]
    done = command("enhance", source, "-o", tmp_path / "b.mp4", *options, "--json")
    if "small" in cache_names():
        ModelCache(name="small").shutdown()
    assert done.returncode == 1, done.stderr
    assert words in " ".join(done.stderr.split()), done.stderr
    assert words in json.loads(done.stdout)["error"]["message"]
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.slow
def test_seconds_do_not_count_what_a_shell_did_before(tmp_path):
    """The last command of ``bash -c`` takes the place of its shell."""
    source, began = write(tmp_path / "a.mp4", tracks=0), time.monotonic()
    line = 'sleep 3 && exec "$0" -m genai_ray.cli enhance "$1" -o "$2" --model websr-x2-s --json'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, source, tmp_path / "b.mp4"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["elapsed_s"] < time.monotonic() - began - 2.5


@pytest.mark.slow
def test_a_profile_is_read_and_its_options_overridden(ray_session, command, tmp_path):
    source = write(tmp_path / "a.mp4", pts=list(range(20)), options={"g": "5"})
    profile = tmp_path / "mine.yaml"
    profile.write_text("name: mine\nsegment_frames: 5\nmax_memory_bytes: 1000000000\nthreads: 2\n")
    cache = ModelCache(1_000_000_000, name="mine")
    options = [
        "--model",
        "websr-x2-s",
        "--encoder-preset",
        "ultrafast",
        "--profile",
        profile,
        "--work-dir",
        tmp_path,
        "--cache",
        cache.name,
        "--json",
    ]
    report = json.loads(command("enhance", source, "-o", tmp_path / "b.mp4", *options).stdout)
    assert (report["frames"], report["segments"]) == (20, 4)
    report = json.loads(
        command("enhance", source, "-o", tmp_path / "b.mp4", *options, "--segment-frames", 10, "--overwrite").stdout
    )
    assert (report["frames"], report["segments"]) == (20, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "mine.yaml"]
    profile.write_text("name: mine\nmax_memory_bytes: 1000000001\n")
    refused = command("enhance", source, "-o", tmp_path / "c.mp4", *options)
    assert (refused.returncode, "budget" in refused.stderr) == (2, True), refused.stderr
    cache.shutdown()
