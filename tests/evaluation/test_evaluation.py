"""``evaluate_models``: what models get is what is said, what is measured is real, and what is kept holds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from genai_ray import InferenceSession, VideoReader, errors, psnr, ssim, vmaf
from genai_ray.backends import resolve_device
from genai_ray.confine import call_apart
from genai_ray.evaluation import Baseline, EvaluationReport, ModelEvaluation, evaluate_models, find_evaluations
from genai_ray.evaluation import evaluate as evaluate_module
from genai_ray.evaluation import measure as measure_module
from genai_ray.evaluation.degrade import add_noise, darken, enlarge, shrink
from genai_ray.evaluation.measure import measure_model, measure_without_model
from genai_ray.evaluation.record import evaluations_folder, keep_evaluation
from genai_ray.evaluation.truth import Truth, methods_without_model, samples_folder
from genai_ray.inspection import find_model, hash_model
from genai_ray.tune import describe_device
from genai_ray.types import ModelBackend, ModelTask
from tests.session.test_any_model import save_upscaler
from tests.video.clips import write

UPSCALING, DENOISING, LOW_LIGHT = ModelTask.UPSCALING, ModelTask.DENOISING, ModelTask.LOW_LIGHT
POSITIONS = [10, 20, 30]
"""Of three frames in a clip of 40."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("clip") / "true.mp4", tracks=0))


@pytest.fixture(scope="module")
def true_frames(clip):
    with VideoReader(clip) as video:
        return video[:].frames


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "genai_ray" / "evaluated"


@pytest.fixture
def here(monkeypatch):
    """Measure in this process, once: the process of a model is for its memory, and takes seconds."""
    monkeypatch.setattr(measure_module, "call_apart", lambda function, *args, within_s: function(*args))
    monkeypatch.setattr(measure_module, "REPEAT_WITHIN_S", 0.0)


def read(reference, task, scale=1, frames=3):
    return list(Truth(reference, frames).batches(task, scale))


@pytest.mark.parametrize(
    ("task", "scale", "worsen"),
    [
        (UPSCALING, 2, lambda frame: shrink(frame, 2)),
        (UPSCALING, 4, lambda frame: shrink(frame, 4)),
        (DENOISING, 1, add_noise),
        (LOW_LIGHT, 1, darken),
    ],
)
def test_models_get_worse_frames(clip, true_frames, task, scale, worsen):
    (batch,) = read(clip, task, scale)
    assert np.array_equal(batch.truths, true_frames[POSITIONS])
    assert np.array_equal(batch.inputs, np.stack([worsen(frame) for frame in true_frames[POSITIONS]]))
    assert batch.inputs.dtype == np.uint8


def test_noise_and_darkness_are_those_of_the_page():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = add_noise(grey).astype(float) - 128
    assert noise.std() == pytest.approx(15, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert np.array_equal(add_noise(grey), add_noise(grey))
    assert np.array_equal(darken(grey), np.full_like(grey, 19))  # 0.15 * 128
    deep = np.full((8, 8, 3), 60000, np.uint16)
    assert (add_noise(deep).dtype, darken(deep)[0, 0, 0]) == (np.uint16, 9000)


def test_a_missing_frame_lies_between_its_neighbours(clip, true_frames):
    batches = read(clip, ModelTask.INTERPOLATION)
    for batch, index in zip(batches, POSITIONS, strict=True):
        assert np.array_equal(batch.inputs, true_frames[[index - 1, index + 1]])
        assert np.array_equal(batch.truths, true_frames[[index]])
    (blend,) = methods_without_model(ModelTask.INTERPOLATION, 1).values()
    before, after = true_frames[[9, 11]].astype(int)
    assert np.array_equal(blend(batches[0].inputs)[0], np.rint((before + after) / 2))


def test_masks_have_no_true_result(clip, true_frames):
    (batch,) = read(clip, ModelTask.BACKGROUND_REMOVAL)
    assert batch.truths is None
    assert np.array_equal(batch.inputs, true_frames[POSITIONS])
    assert methods_without_model(ModelTask.BACKGROUND_REMOVAL, 1) == {}


def test_the_packaged_clips_are_small_and_original(samples):
    assert samples_folder() == samples
    (batch,) = read(None, UPSCALING, 2, frames=1)
    with VideoReader(samples / "bigbuckbunny-360p.mp4") as small, VideoReader(samples / "bigbuckbunny-720p.mp4") as big:
        assert np.array_equal(batch.inputs[0], small[66].frame)
        assert np.array_equal(batch.truths[0], big[66].frame)
    (by_four,) = read(None, UPSCALING, 4, frames=1)
    assert np.array_equal(by_four.inputs[0], shrink(batch.truths[0], 4))
    (noisy,) = read(None, DENOISING, frames=1)
    assert np.array_equal(noisy.truths[0], batch.inputs[0])


def test_of_large_frames_the_middle_is_taken(tmp_path):
    path = str(
        write(tmp_path / "large.mp4", size=(1302, 726), pts=[0, 1, 2], options={"preset": "ultrafast"}, tracks=0)
    )
    with VideoReader(path) as video:
        frame = video[1].frame
    (batch,) = read(path, UPSCALING, 4, frames=1)
    assert np.array_equal(batch.truths[0], frame[3:723, 11:1291])
    (small,) = read(path, DENOISING, frames=1)
    assert np.array_equal(small.truths[0], frame[183:543, 331:971])


@pytest.mark.parametrize("frames", [1, 2, 3, 9, 38])
def test_frames_are_spread_and_come_in_batches(clip, frames):
    batches = read(clip, DENOISING, frames=frames)
    assert [len(batch.inputs) for batch in batches] == [8] * (frames // 8) + [frames % 8] * (frames % 8 > 0)
    everything = np.concatenate([batch.inputs for batch in batches])
    assert len(np.unique(everything.reshape(frames, -1), axis=0)) == frames


@pytest.mark.slow
@pytest.mark.parametrize("model_id", ["websr-x2-s", "ffdnet", "rife"])
def test_measurements_are_those_of_the_models(clip, model_id, here):
    spec, _ = find_model(model_id)
    measured = measure_model(model_id, clip, 2, True)
    with InferenceSession(model_id) as session:
        results = [(batch.truths, session.infer(batch.inputs)) for batch in read(clip, spec.task, spec.scale, 2)]
    truths, made = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    assert measured["psnr"] == pytest.approx(psnr(truths, made))  # of all frames together
    assert measured["ssim"] == pytest.approx(ssim(truths, made))
    assert measured["vmaf"] == pytest.approx(
        np.mean([vmaf(*pair, model="vmaf_v0.6.1neg") for pair in zip(truths, made, strict=True)])
    )
    assert measured["size"] == ((48, 32) if model_id == "websr-x2-s" else (96, 64))
    assert measured["frames_per_s"] > 0
    assert measured["memory_bytes"] >= 0  # this process may have had them before


def test_speed_is_that_of_the_fastest_call(clip, monkeypatch):
    seconds = iter([0.9, 0.5, 0.25, 0.4, 9.0])
    monkeypatch.setattr(measure_module, "time_infer", lambda session, inputs: (session.infer(inputs), next(seconds)))
    monkeypatch.setattr(measure_module, "REPEAT_WITHIN_S", 2.0)
    assert measure_model("websr-x2-s", clip, 2, False)["frames_per_s"] == 2 / 0.25
    assert next(seconds) == 9.0  # the time was over


def test_what_can_be_had_without_a_model(clip, true_frames):
    found = measure_without_model(UPSCALING, 2, Truth(clip, 3), False)
    assert list(found) == ["bicubic", "Lanczos"]
    truths = true_frames[POSITIONS]
    for kernel, one in zip(("bicubic", "lanczos"), found.values(), strict=True):
        larger = np.stack([enlarge(shrink(frame, 2), 2, kernel) for frame in truths])
        assert one["psnr"] == pytest.approx(psnr(truths, larger))
        assert one["vmaf"] is None
    assert found["bicubic"]["psnr"] != found["Lanczos"]["psnr"]
    dark = measure_without_model(LOW_LIGHT, 1, Truth(clip, 3), False)
    assert dark["the dark frame"]["psnr"] == pytest.approx(psnr(truths, np.stack([darken(frame) for frame in truths])))


def test_a_reference_of_ones_own(clip, cache, here):
    told = []
    report = evaluate_models(
        ["websr-x2-s", "ffdnet", "websr-x2-s"], frames=2, reference=clip, on_model=lambda *step: told.append(step)
    )
    assert told == [("websr-x2-s", 0, 2), ("ffdnet", 1, 2)]
    assert [one.model_id for one in report.models] == ["websr-x2-s", "ffdnet"]
    assert [one.name for one in report.baselines] == ["bicubic", "Lanczos", "the noisy frame"]
    larger, cleaner = report.models
    assert larger.gain_db == larger.psnr - report.baselines[0].psnr
    assert cleaner.gain_db == cleaner.psnr - report.baselines[2].psnr
    assert (report.reference, report.failed, report.without_vmaf) == (clip, {}, "")
    assert not cache.exists()  # only measurements on the packaged clips can be compared
    assert "websr-x2-s" in report._repr_html_()
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [ModelEvaluation.from_dict(one) for one in told["models"]] == list(report.models)


def test_without_the_extra_there_is_no_vmaf(clip, here, monkeypatch):
    def find():
        raise errors.BackendUnavailableError("VMAF is not installed")

    monkeypatch.setattr(evaluate_module, "find_ffmpeg", find)
    report = evaluate_models(["websr-x2-s"], frames=1, reference=clip)
    assert report.without_vmaf == "VMAF is not installed"
    assert [one.vmaf for one in (*report.models, *report.baselines)] == [None] * 3


def test_a_model_that_does_not_run_does_not_stop_the_others(clip, tmp_path, here):
    path = save_upscaler(tmp_path / "wrong.onnx", scale=3)
    path.with_suffix(".yaml").write_text(
        f"model_id: wrong\ntask: upscaling\nfile: {path}\nscale: 2\ninputs: [{{name: x}}]\noutputs: [{{name: y}}]\n"
    )
    report = evaluate_models([path, "websr-x2-s"], frames=1, reference=clip)
    assert list(report.failed) == [str(path)]
    assert report.failed[str(path)]
    assert [one.model_id for one in report.models] == ["websr-x2-s"]


def test_a_model_has_a_process_of_its_own():
    import os

    assert call_apart(os.getpid, within_s=60) != os.getpid()
    with pytest.raises(errors.ModelNotFoundError, match="no-such-model"):
        call_apart(measure_model, "no-such-model", None, 1, False, within_s=60)
    with pytest.raises(errors.ResourceExhaustedError, match=r"its process ended \(exit code 3\)$"):
        call_apart(os._exit, 3, within_s=60)


@pytest.mark.parametrize(
    ("models", "options", "kind", "words"),
    [
        (["no-such-model"], {}, errors.ModelNotFoundError, "no-such-model"),
        ([], {}, errors.ConfigError, "one or more"),
        (["websr-x2-s"], {"frames": 0}, errors.ConfigError, "0 frames; allowed: 1 or more"),
        (["websr-x2-s"], {"frames": 39}, errors.ConfigError, "39 frames of a video of 40; allowed: 1 to 38"),
        (["websr-x2-s"], {"reference": "none.mp4"}, errors.VideoError, "none.mp4"),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(clip, monkeypatch, models, options, kind, words):
    monkeypatch.setattr(evaluate_module, "measure_without_model", lambda *_: pytest.fail("it measures"))
    with pytest.raises(kind) as refused:
        evaluate_models(models, **({"reference": clip} | options))
    assert words in str(refused.value)


def test_too_small_frames_are_refused(tmp_path):
    path = write(tmp_path / "small.mp4", size=(8, 8), tracks=0)
    with pytest.raises(errors.QualityError, match="8x8"):
        evaluate_models(["ffdnet"], reference=path)


def test_missing_clips_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("genai_ray.evaluation.truth.samples_folder", lambda: tmp_path)
    with pytest.raises(errors.ConfigError, match=r"no packaged clip .*720p.mp4. Pass a video of your own"):
        evaluate_models(["ffdnet"])


ONE = ModelEvaluation(
    "websr-x2-s", UPSCALING, 2, (640, 360), 3, 36.4, 0.95, None, 36.34, frames_per_s=12.345, memory_bytes=123_456_789
)


def report_of(*models, baselines=()):
    return EvaluationReport("clip", 3, "2026-11-30", "cpu", ("a=1",), models, baselines, {}, {}, "", 1.0)


def test_rows_are_grouped_by_task_the_best_first():
    bicubic = Baseline("bicubic", UPSCALING, 2, 36.34, 0.94, 80.0)
    worse = replace(ONE, model_id="worse", psnr=31.59)
    mask = replace(ONE, model_id="mask", task=ModelTask.BACKGROUND_REMOVAL, scale=1, psnr=None, ssim=None)
    by_four = replace(ONE, model_id="four", scale=4)
    rows = report_of(mask, worse, by_four, ONE, baselines=(bicubic,)).rows()
    assert [row[:2] for row in rows] == [
        ("upscaling x2", "websr-x2-s"),
        ("upscaling x2", "bicubic"),
        ("upscaling x2", "worse"),
        ("upscaling x4", "four"),
        ("background-removal", "mask"),
    ]
    assert rows[0][2:] == ("36.40", "+0.06", "0.9500", "", "12.3", "123")
    assert rows[1][2:] == ("36.34", "", "0.9400", "80.0", "", "")
    assert rows[2][3] == "-4.75"
    assert rows[4][2:] == ("", "", "", "", "12.3", "123")


def test_equal_frames_have_an_infinite_psnr():
    equal = replace(ONE, psnr=math.inf)
    assert (equal.gain_db, replace(equal, baseline_psnr=math.inf).gain_db) == (math.inf, None)
    told = json.loads(json.dumps(report_of(equal).to_dict(), allow_nan=False))
    assert told["models"][0]["psnr"] == "inf"
    assert ModelEvaluation.from_dict(told["models"][0]) == equal


def keep(model="websr-x2-s", evaluation=ONE):
    spec, path = find_model(model)
    device = describe_device(resolve_device("auto", ModelBackend.ONNX))[1]
    keep_evaluation(hash_model(spec, path), device, evaluation, "2026-11-30")


def test_what_was_measured_is_found_again(cache, caplog):
    assert find_evaluations(["websr-x2-s"]) == {}
    keep()
    assert evaluations_folder() == cache
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert find_evaluations(["websr-x2-m", "websr-x2-s", "u2net"]) == {"websr-x2-s": ONE}
    keep(evaluation=replace(ONE, psnr=40.0))
    assert find_evaluations(["websr-x2-s"])["websr-x2-s"].psnr == 40.0
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"frames_per_s": ', '"frames_per_s": -'), "damaged"),
        (lambda text: text.replace("36.4", "NaN"), "damaged"),
        (lambda text: text.replace('"size"', '"sise"'), "damaged"),
        (lambda text: text.replace('"upscaling"', '"upscaled"'), "damaged"),
        (lambda text: text.replace('"format": 1', '"format": 0'), ""),
        (lambda text: text.replace('"numpy=', '"numpy=0.'), ""),
    ],
)
def test_a_damaged_or_old_measurement_is_left_out(cache, caplog, damage, words):
    keep()
    (path,) = cache.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    assert find_evaluations(["websr-x2-s"]) == {}
    assert (words in caplog.text, bool(caplog.text)) == (True, bool(words))


def test_another_file_or_processor_was_not_measured(cache, tmp_path, monkeypatch):
    path = save_upscaler(tmp_path / "own.onnx", scale=2)
    keep(path)
    assert list(find_evaluations([str(path)])) == [str(path)]
    with monkeypatch.context() as patch:
        patch.setattr("genai_ray.evaluation.record.describe_device", lambda device: ("", "another"))
        assert find_evaluations([str(path)]) == {}
    save_upscaler(path, scale=3)
    assert find_evaluations([str(path)]) == {}


def test_a_measurement_that_cannot_be_kept_is_told(cache, caplog):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    keep()
    assert "cannot be written" in caplog.text
