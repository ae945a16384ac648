"""``--dry-run``: what would be done, with nothing written."""

import json
import sys
from dataclasses import fields, replace

import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance import forecast_videos
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.job.trial import (
    MOST_FRAMES,
    ClipLoad,
    Trial,
    _measure_import,
    _most_frames,
    load_of,
    predict_seconds,
    try_chain,
)
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.video import Encoding
from tests.video.clips import NUM_FRAMES, write

OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "clips" / "a.mp4", tracks=0, options={"g": "8"})
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no video" * 100)
    return tmp_path


def test_a_job_is_foreseen_and_nothing_is_written(folder):
    before = sorted(folder.rglob("*"))
    forecast = forecast_videos(folder / "clips", folder / "out", models="websr-x2-s", options=OPTIONS)
    assert [(clip.status, clip.frames, clip.segments, clip.size_out) for clip in forecast.clips] == [
        ("todo", NUM_FRAMES, 3, (192, 128)),
        ("failed", 0, 0, (0, 0)),
    ]
    assert "not a video" in forecast.clips[1].error
    assert (forecast.frames, forecast.segments) == (NUM_FRAMES, 3)
    assert forecast.input_bytes == (folder / "clips" / "a.mp4").stat().st_size
    assert 10_000_000 < forecast.models["websr-x2-s"] < 500_000_000
    assert forecast.expected_s > 0
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(errors.VideoError, match="not a video"):
        forecast_videos(folder / "clips" / "bad.mp4", folder / "b.mp4", models="websr-x2-s")


@pytest.mark.slow
def test_chains_that_add_frames_and_masks_are_foreseen(folder):
    chain = ["rife", "websr-x2-s", "selfie-segmentation"]
    options = replace(OPTIONS, size="200x200", fit="pad", input_height=32)
    forecast = forecast_videos(folder / "clips" / "a.mp4", folder / "b.mp4", models=chain, options=options)
    assert forecast.frames == 2 * NUM_FRAMES
    (clip,) = forecast.clips
    assert (clip.size_made, clip.size_out) == ((96, 64), (200, 200))
    assert clip.notes == (
        "input: 96x64 is reduced to 48x32 before the first model",
        "size: the chain makes 96x64; it is resampled to 200x134, with black bars up to 200x200",
        "cuts: where neighbours are less similar than 0.3, without TransNetV2: it would take longer than adding frames",
    )
    assert list(forecast.models) == chain
    assert forecast.expected_s > 0


def test_time_is_that_of_all_work_or_of_the_longest_segment(monkeypatch):
    monkeypatch.setattr("genai_ray.enhance.job.trial.count_cores", lambda: 4)
    trial = Trial(startup_s=5.0, infer_source_s=0.01, infer_result_s=0.02, decode_s=0.01, encode_s=0.07, pixels=1000)
    alone = ClipLoad(pixels=1000, sources=100, results=100, longest=1.0)
    assert predict_seconds(trial, [alone]) == pytest.approx(5 + 8)  # one core encodes, while others compute
    spread = ClipLoad(pixels=1000, sources=100, results=100, longest=0.1)
    assert predict_seconds(trial, [spread]) == pytest.approx(5 + 3 + 2)
    assert predict_seconds(trial, [spread] * 10) == pytest.approx(5 + 50)
    larger = ClipLoad(pixels=4000, sources=100, results=100, longest=0.1)
    assert predict_seconds(trial, [larger]) == pytest.approx(5 + 20)
    assert predict_seconds(trial, []) == 5


def test_a_trial_takes_bounded_memory(folder, monkeypatch):
    (target,) = resolve_targets(folder / "clips" / "a.mp4", folder / "b.mp4", OPTIONS)
    specs = check_models("websr-x2-s", OPTIONS)
    plan = examine_clip(target, specs, OPTIONS)
    frame_bytes = 96 * 64 * 3
    assert _most_frames(plan) == MOST_FRAMES
    monkeypatch.setattr("genai_ray.enhance.job.trial.MAX_BYTES", 3 * 5 * frame_bytes + 1)  # with results of x2
    assert _most_frames(plan) == 3
    monkeypatch.setattr("genai_ray.enhance.job.trial.MAX_BYTES", 1)
    assert _most_frames(plan) == 1
    assert try_chain(plan, specs).infer_source_s > 0


def test_an_import_that_fails_is_no_measurement(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(errors.BackendUnavailableError, match=r"/bin/false ended with code 1 .*genai-ray doctor"):
        _measure_import()


@pytest.mark.slow
def test_the_trial_measures_each_part(folder):
    (target,) = resolve_targets(folder / "clips" / "a.mp4", folder / "b.mp4", OPTIONS)
    chain = ["ffdnet", "rife", "websr-x2-s"]
    specs = check_models(chain, OPTIONS)
    plan = examine_clip(target, specs, OPTIONS)
    assert load_of(plan) == ClipLoad(96 * 64, NUM_FRAMES, 2 * NUM_FRAMES, load_of(plan).longest)
    assert 1 / 3 <= load_of(plan).longest < 1 / 2  # three segments of about 16 of 40 frames, cut at key frames
    trial = try_chain(plan, specs)
    assert all(getattr(trial, field.name) > 0 for field in fields(trial))
    alone = try_chain(examine_clip(target, specs[:1], OPTIONS), specs[:1])
    assert alone.infer_result_s == 0 < alone.infer_source_s


def test_what_is_done_is_left_out(ray_session, folder):
    enhance_videos(
        [folder / "clips" / "a.mp4", folder / "clips" / "bad.mp4"], folder / "out", models="websr-x2-s", options=OPTIONS
    )
    forecast = forecast_videos(folder / "clips", folder / "out", models="websr-x2-s", options=OPTIONS)
    assert [clip.status for clip in forecast.clips] == ["done", "failed"]
    assert (forecast.frames, forecast.expected_s) == (0, None)


@pytest.mark.slow
def test_the_command(folder, command):
    words = ["enhance", folder / "clips" / "a.mp4", "-o", folder / "b.mp4", "--model", "websr-x2-s", "--dry-run"]
    told = command(*words)
    assert told.returncode == 0, told.stderr
    assert f"96x64 -> 192x128, {NUM_FRAMES} frames out" in told.stdout
    assert json.loads(command(*words, "--json").stdout)["segments"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "out"]
