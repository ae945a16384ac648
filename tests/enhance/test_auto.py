"""``backend auto``: measured once, part of the plan, the same for a resumed job, told in report and forecast."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from genai_ray import (
    EnhanceOptions,
    ModelBackend,
    ModelCache,
    ModelPrecision,
    VideoReader,
    enhance_videos,
    errors,
    forecast_videos,
    psnr,
)
from genai_ray.enhance.job.clip_plan import examine_clip, find_begun, open_clip
from genai_ray.enhance.job.segment_store import key_segments, node_kind
from genai_ray.enhance.job.steps import run_segment
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.tune import REFERENCE, Way, choose_way, tune_model
from genai_ray.video import Encoding
from tests.caches import ending
from tests.nodes import LOGICAL_GPUS, Nodes
from tests.video.clips import NUM_FRAMES, write

MODEL = "websr-x2-s"
EXACT = Way(ModelBackend.OPENVINO, ModelPrecision.FP32)
KIND = node_kind(is_gpu=False)
AUTO = EnhanceOptions(backend=ModelBackend.AUTO, device="cpu", encoding=Encoding(preset="ultrafast"), segment_frames=16)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """An own cache folder of this process and of those that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "genai_ray" / "tuned"


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "a.mp4", tracks=0, options={"g": "8"})


def prefer(records, way):
    """Change what was measured, so that one way is the fastest."""
    tune_model(MODEL, (64, 96), precision=ModelPrecision.FP32, device="cpu")
    (path,) = records.iterdir()
    found = json.loads(path.read_text())
    for one in found["measured"]:
        one["pixels_per_s"] = 2e6 if (one["backend"], one["precision"]) == way else 1e6
    path.write_text(json.dumps(found))


def explicit(way):
    return replace(AUTO, backend=way.backend, precision=way.precision)


@pytest.mark.slow
@pytest.mark.parametrize("way", [REFERENCE, EXACT], ids=str)
def test_a_job_computes_as_the_record_says(ray_session, records, tmp_path, clip, way):
    prefer(records, way)
    report = enhance_videos(clip, tmp_path / "auto.mkv", models=MODEL, options=AUTO)
    told = report.to_dict()["choice"]
    assert (told["backend"], told["precision"], told["origin"]) == (*way, "recorded")
    assert [(use.backend, use.precision) for use in report.models] == [way]
    by_name = enhance_videos(clip, tmp_path / "named.mkv", models=MODEL, options=explicit(way))
    assert by_name.to_dict()["choice"] is None
    assert (tmp_path / "auto.mkv").read_bytes() == (tmp_path / "named.mkv").read_bytes()
    json.dumps(report.to_dict())


@pytest.mark.slow
def test_it_is_measured_once_in_a_process_of_its_own(ray_session, records, tmp_path, clip):
    stages = []
    options = replace(AUTO, overwrite=True)

    def job():
        stages.clear()
        return enhance_videos(
            clip, tmp_path / "b.mkv", models=MODEL, options=options, on_progress=lambda told: stages.append(told.stage)
        )

    # The processes of a running Ray have the cache folder of its start: only this one's is new.
    first = job().choice
    assert first.origin in ("measured", "recorded")
    assert "measuring" in stages
    assert {one.way for one in first.tunings[0].measured} == {REFERENCE, EXACT}
    assert all(one.pixels_per_s > 0 for one in first.tunings[0].measured)
    prefer(records, REFERENCE)
    (tmp_path / "b.mkv").unlink()
    assert job().choice.origin == "recorded"


@pytest.mark.slow
@pytest.mark.parametrize("began", [REFERENCE, EXACT], ids=str)
def test_a_resumed_job_goes_on_as_it_began(ray_session, records, tmp_path, clip, began):
    other = EXACT if began == REFERENCE else REFERENCE
    (target,) = resolve_targets(clip, tmp_path / "b.mkv", AUTO)
    specs = check_models(MODEL, AUTO)
    with ending(ModelCache(name="began")) as cache:
        job = JobContext(specs, (), AUTO, cache, "began", KIND, began)
        planned = open_clip(examine_clip(target, specs, AUTO), specs, KIND, began)
        assert {(one.backend, one.precision) for one in planned.requests} == {began}
        assert find_begun(planned, specs, KIND) is None
        run_segment(planned, 1, job)
    assert find_begun(planned, specs, KIND) == began
    prefer(records, other)
    forecast = forecast_videos(clip, tmp_path / "b.mkv", models=MODEL, options=AUTO)
    assert (forecast.choice.way, forecast.choice.origin, forecast.clips[0].segments_done) == (began, "begun", 1)
    stricter = replace(AUTO, min_quality_db=60)
    assert find_begun(examine_clip(target, specs, stricter), specs, KIND) is None
    report = enhance_videos(clip, tmp_path / "b.mkv", models=MODEL, options=AUTO)
    assert (report.choice.way, report.choice.origin, report.segments_reused) == (began, "begun", 1)
    assert [(use.backend, use.precision) for use in report.models] == [began]
    enhance_videos(clip, tmp_path / "named.mkv", models=MODEL, options=explicit(began))
    assert (tmp_path / "b.mkv").read_bytes() == (tmp_path / "named.mkv").read_bytes()


@pytest.mark.slow
def test_a_lower_precision_is_near_enough(ray_session, tmp_path, clip):
    """A larger model in what was measured as the fastest: its frames are those of FP32 within the least quality."""
    lossless = replace(AUTO, encoding=Encoding(codec="ffv1"), precision=ModelPrecision.AUTO, min_quality_db=45)
    report = enhance_videos(clip, tmp_path / "auto.mkv", models="esrgan-2x", options=lossless)
    (tuning,) = report.choice.tunings
    assert report.choice.way == choose_way([tuning.measured], ModelPrecision.AUTO, 45)
    assert [(use.backend, use.precision) for use in report.models] == [report.choice.way]
    named = replace(explicit(REFERENCE), encoding=Encoding(codec="ffv1"))
    enhance_videos(clip, tmp_path / "named.mkv", models="esrgan-2x", options=named)
    with VideoReader(tmp_path / "auto.mkv") as ours, VideoReader(tmp_path / "named.mkv") as plain:
        assert min(psnr(plain.frame_at(at).frame, ours.frame_at(at).frame) for at in (0.1, 0.8)) > 40


def test_without_memory_nothing_is_measured_and_that_is_said(ray_session, records, tmp_path, clip, monkeypatch, caplog):
    monkeypatch.setattr("genai_ray.enhance.job.choice.predict_tuning_bytes", lambda *_, **__: 10**15)
    monkeypatch.setattr("genai_ray.enhance.job.choice.START_WITHIN_S", 0.5)
    report = enhance_videos(clip, tmp_path / "b.mkv", models=MODEL, options=AUTO)
    assert (report.choice.way, report.choice.origin, report.choice.tunings) == (REFERENCE, "not measured", ())
    assert "memory is short" in str(report.choice)
    assert "memory is short" in caplog.text


@pytest.mark.cluster
@pytest.mark.slow
def test_one_node_of_each_kind_is_measured(records, tmp_path, clip):
    with Nodes() as several, ending(ModelCache(options=LOGICAL_GPUS)):
        several.add(num_gpus=1)
        for device, ways in (("cpu", {REFERENCE, EXACT}), ("cuda", {REFERENCE})):
            options = replace(AUTO, device=device, overwrite=True)
            report = enhance_videos(clip, tmp_path / f"{device}.mkv", models=MODEL, options=options)
            assert report.choice.origin in ("measured", "recorded")
            assert len(report.choice.tunings) == 1  # all nodes are this machine
            assert report.choice.way in ways


@pytest.mark.slow
def test_a_folder_has_one_choice_and_what_is_done_stays(ray_session, records, tmp_path, clip):
    (tmp_path / "in").mkdir()
    clip.rename(tmp_path / "in" / "a.mp4")
    write(tmp_path / "in" / "b.mp4", tracks=0, pts=range(8))
    prefer(records, EXACT)
    first = enhance_videos(tmp_path / "in", tmp_path / "out", models=MODEL, options=AUTO)
    assert (first.choice.way, first.choice.origin, first.clips_failed) == (EXACT, "recorded", 0)
    assert pq.read_table(tmp_path / "out" / "results.parquet")["backend"].to_pylist() == ["openvino"] * 2
    prefer(records, REFERENCE)
    again = enhance_videos(tmp_path / "in", tmp_path / "out", models=MODEL, options=AUTO)
    assert (again.clips_skipped, again.choice) == (2, None)
    assert forecast_videos(tmp_path / "in", tmp_path / "out", models=MODEL, options=AUTO).choice is None


@pytest.mark.slow
def test_a_video_of_a_folder_goes_on_as_it_began(ray_session, records, tmp_path, clip):
    (tmp_path / "in").mkdir()
    clip.rename(tmp_path / "in" / "a.mp4")
    write(tmp_path / "in" / "b.mp4", tracks=0, pts=range(8))
    specs = check_models(MODEL, AUTO)
    target = next(iter(resolve_targets(tmp_path / "in", tmp_path / "out", AUTO)))
    with ending(ModelCache(name="began")) as cache:
        planned = open_clip(examine_clip(target, specs, AUTO), specs, KIND, EXACT)
        run_segment(planned, 0, JobContext(specs, (), AUTO, cache, "began", KIND, EXACT))
    prefer(records, REFERENCE)
    report = enhance_videos(tmp_path / "in", tmp_path / "out", models=MODEL, options=AUTO)
    assert (report.clips_failed, report.segments_reused) == (0, 1)
    notes = {video.source.rpartition("/")[2]: " ".join(video.notes) for video in report.videos}
    assert "begun in openvino fp32" in notes["a.mp4"]
    assert "begun" not in notes["b.mp4"]
    rows = {row["uri"].rpartition("/")[2]: row for row in pq.read_table(report.results).to_pylist()}
    assert [(rows[name]["backend"], rows[name]["precision"]) for name in ("a.mp4", "b.mp4")] == [
        ("openvino", "fp32"),
        ("onnx", "fp32"),
    ]
    assert [use.backend for use in report.models] == ["onnx"]


@pytest.mark.slow
def test_the_forecast_says_what_would_be_chosen(records, tmp_path, clip, command):
    prefer(records, EXACT)
    before = sorted(tmp_path.iterdir())
    forecast = forecast_videos(clip, tmp_path / "b.mkv", models=MODEL, options=AUTO)
    told = forecast.to_dict()
    assert (told["choice"]["backend"], told["choice"]["origin"]) == ("openvino", "recorded")
    assert told["frames"] == NUM_FRAMES
    words = ["enhance", clip, "-o", tmp_path / "b.mkv", "-m", MODEL, "--dry-run", "--backend", "auto"]
    done = command(*words, "--device", "cpu")
    assert "openvino fp32, recorded: websr-x2-s" in done.stdout, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_keys_depend_on_the_way_and_the_least_quality(tmp_path, clip):
    (target,) = resolve_targets(clip, tmp_path / "b.mkv", AUTO)
    specs = check_models(MODEL, AUTO)
    plan = examine_clip(target, specs, AUTO)
    stricter = replace(AUTO, min_quality_db=60)
    keys = [
        key_segments(plan.timeline.plan, specs, options, KIND, way)
        for options in (AUTO, stricter)
        for way in (REFERENCE, EXACT)
    ]
    assert len({key for each in keys for key in each}) == 4 * plan.segments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": ModelPrecision.AUTO}, "Pass --backend auto"),
        ({"min_quality_db": 50.0}, "backend 'auto'"),
        ({"backend": ModelBackend.AUTO, "precision": ModelPrecision.BF16}, "fp32 or auto"),
        ({"backend": ModelBackend.AUTO, "min_quality_db": 39.9}, "from 40"),
        ({"backend": ModelBackend.AUTO, "min_quality_db": 121.0}, "to 120"),
        ({"backend": ModelBackend.AUTO, "min_quality_db": float("nan")}, "from 40"),
        ({"backend": ModelBackend.AUTO, "device": "tpu"}, "auto, cpu, cuda"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, clip, options, words):
    with pytest.raises(errors.ConfigError, match=words):
        enhance_videos(clip, tmp_path / "b.mkv", models=MODEL, options=EnhanceOptions(**options))


def test_the_command_refuses_auto_precision_alone(tmp_path, clip, command):
    done = command("enhance", clip, "-o", tmp_path / "b.mkv", "-m", MODEL, "--precision", "auto")
    assert (done.returncode, "Pass --backend auto" in done.stderr) == (2, True), done.stderr
