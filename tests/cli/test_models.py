"""``genai-ray models``, and models by preset."""

import json
import os
import signal
from pathlib import Path

import pytest

from genai_ray import ModelBackend, ModelCatalog, errors, files
from genai_ray.backends import resolve_device
from genai_ray.catalog import ModelSpec
from genai_ray.catalog.spec import ParamSpec
from genai_ray.cli.targets import write_pair
from genai_ray.enhance import EnhanceOptions
from genai_ray.enhance.plan.options import check_models, convert_params
from genai_ray.evaluation import ModelEvaluation
from genai_ray.evaluation.record import keep_evaluation
from genai_ray.inspection import find_model, hash_model
from genai_ray.tune import describe_device
from genai_ray.types import ModelPreset, ModelTask
from tests.cli.terminal import run_in_terminal
from tests.processes import descendants, is_alive, run, start, wait_until
from tests.video.clips import write


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_cuts_no_id_in_a_terminal(columns):
    told = run_in_terminal("models", "list", columns=columns)
    assert told.returncode == 0
    head, *lines = told.text.splitlines()
    assert head.split() == ["id", "task", "scale", "licence", "size"]
    assert all(len(line) <= columns for line in (head, *lines))
    assert [line.split()[0] for line in lines if line[1:2].strip()] == ModelCatalog.default().ids()


def test_the_list_has_a_line_for_each_model_in_a_pipe(command):
    _, *lines = command("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ModelCatalog.default().ids()
    assert next(line for line in lines if "waifu2x-x2" in line).split() == [
        *("waifu2x-x2", "upscaling", "x2", "BSD-3-Clause", "AND", "MIT", "2.21", "MB"),
    ]
    assert next(line for line in lines if "websr-x2-s" in line).endswith(" kB ")


def test_a_packaged_model_needs_no_download(command):
    done = command("models", "pull", "rife")
    assert (done.returncode, "needs no download" in done.stderr) == (0, True)
    assert Path(done.stdout.strip()) == ModelCatalog.default().path("rife")


@pytest.mark.parametrize("task", [task for task in ModelTask if task is not ModelTask.OTHER])
@pytest.mark.parametrize("preset", ModelPreset)
def test_each_preset_of_each_task_is_one_packaged_model(task, preset):
    catalog = ModelCatalog.default()
    meant = [spec.model_id for spec in map(catalog.get, catalog.ids()) if spec.task is task and preset in spec.presets]
    assert meant == [catalog.preset(task, preset)]
    assert catalog.path(meant[0]).is_file()


def test_params_may_be_given_on_the_scale_that_users_know():
    sigma = ModelCatalog.default().get("ffdnet").params["sigma"]
    assert sigma.in_own_unit(15) == 15 / 255
    assert sigma.in_own_unit(0.06) == 0.06
    assert sigma.describe_limits() == "from 0 to 0.294, or 1 to 75 of 255"
    assert ParamSpec(default=0, minimum=0, maximum=1 / 3).describe_limits() == "from 0 to 0.333"
    assert ParamSpec(default=0, minimum=0, maximum=30).in_own_unit(15) == 15
    assert "presets" in ModelSpec.model_fields


def test_params_are_converted_once():
    specs = check_models("ffdnet", EnhanceOptions(params={"sigma": 15}))
    options = convert_params(specs, EnhanceOptions(params={"sigma": 15}))
    assert options.params == {"sigma": 15 / 255}
    assert convert_params(specs, options) == options
    assert specs[0].params["sigma"].read("sigma", 15 / 255) == 15 / 255


def test_a_scale_needs_a_maximum_below_1():
    with pytest.raises(ValueError, match="maximum below 1"):
        ParamSpec(default=0, minimum=0, maximum=2, full_scale=255)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """An own cache folder, in which two models are evaluated."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for model_id, gain_db in (("waifu2x-x2", 0.344), ("realesr-animevideov3-x2", -4.75), ("selfie-segmentation", None)):
        spec, path = find_model(model_id)
        psnr = None if gain_db is None else 36.34 + gain_db
        baseline = None if gain_db is None else 36.34
        values = (model_id, spec.task, spec.scale, (640, 360), 3, psnr, None, None, baseline, 0.37129, 9)
        device = describe_device(resolve_device("auto", ModelBackend.ONNX))[1]
        keep_evaluation(hash_model(spec, path), device, ModelEvaluation(*values), "2026-11-30")


def test_the_list_has_what_was_measured(measured, command):
    told = run_in_terminal("models", "list", columns=80)
    head, *lines = told.text.splitlines()
    assert head.split() == ["id", "task", "scale", "licence", "size", "dB", "frames/s"]
    assert all(len(line) <= 80 for line in (head, *lines))
    assert [line.split()[0] for line in lines if line[1:2].strip()] == ModelCatalog.default().ids()
    ends = {line.split()[0]: line.split()[-2:] for line in lines}
    assert ends["waifu2x-x2"] == ["+0.34", "0.371"]
    assert ends["realesr-animevideov3-x2"] == ["-4.75", "0.371"]
    assert ends["selfie-segmentation"] == ["kB", "0.371"]
    assert ends["websr-x2-s"][-1] == "kB"
    found = {spec["model_id"]: spec["evaluated"] for spec in json.loads(command("models", "list", "--json").stdout)}
    assert found["websr-x2-s"] is None
    assert found["waifu2x-x2"]["gain_db"] == pytest.approx(0.344)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-model"], "no model 'no-such-model'"),
        (["--frames", "0"], "0 frames; allowed: 1 or more"),
        (["websr-x2-s", "--frames", "131"], "131 frames of a video of 132; allowed: 1 to 130"),
        (["--reference", "none.mp4"], "none.mp4: no such file"),
    ],
)
def test_what_cannot_be_evaluated(command, words, told):
    done = command("models", "evaluate", *words)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_models_are_evaluated(tmp_path):
    """On the packaged clips: real gains, in real processes."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    models = ("websr-x2-l", "rife", "selfie-segmentation")
    done = run("models", "evaluate", *models, "--frames", "1", env=env)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stderr.splitlines()] == list(models)
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["task", "model", "PSNR", "gain", "SSIM", "VMAF", "frames/s", "MB"]
    assert "1 frame of bigbuckbunny-360p.mp4 and its original" in lines[-1]
    evaluated = json.loads(run("models", "list", "--json", env=env).stdout)
    found = {spec["model_id"]: spec["evaluated"] for spec in evaluated if spec["evaluated"]}
    assert sorted(found) == sorted(models)
    assert all(one["frames_per_s"] > 0 and one["memory_bytes"] > 1_000_000 for one in found.values())
    assert found["websr-x2-l"]["baseline_psnr"] == pytest.approx(36.95, abs=0.01)
    assert 0.1 < found["websr-x2-l"]["gain_db"] < 1
    assert found["rife"]["gain_db"] > 1
    assert found["selfie-segmentation"]["gain_db"] is None
    assert 80 < found["websr-x2-l"]["vmaf"] < 100


@pytest.mark.slow
def test_an_interrupted_evaluation_leaves_no_process():
    process = start("models", "evaluate", "realesr-animevideov3-x4")
    assert process.stderr.readline() == "measuring realesr-animevideov3-x4 (1 of 1)\n"
    wait_until(lambda: descendants(process.pid), process)
    (child,) = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, "Traceback" in said) == (130, False), said
    assert not is_alive(child)


def test_a_model_and_its_spec_are_written_both_or_not_at_all(tmp_path, monkeypatch):
    model, spec = tmp_path / "a.onnx", tmp_path / "a.yaml"
    publish = files.publish

    def write(number):
        write_pair(model, b"model %d" % number, spec, b"spec %d" % number)

    def fail_at(name):
        def publish_some(source, place):
            if place.endswith(name):
                raise errors.VideoError(f"writing {place}: no space left")
            publish(source, place)

        monkeypatch.setattr(files, "publish", publish_some)

    for name in ("onnx", "yaml"):
        fail_at(name)
        with pytest.raises(errors.VideoError, match="no space"):
            write(1)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files, "publish", publish)
    write(1)
    for name in ("onnx", "yaml"):
        fail_at(name)
        with pytest.raises(errors.VideoError, match="no space"):
            write(2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.yaml"]
        assert (model.read_bytes(), spec.read_bytes()) == (b"model 1", b"spec 1")
    monkeypatch.setattr(files, "publish", publish)
    for name in ("onnx", "yaml"):
        blocking = tmp_path / f".a.{name}.{os.getpid()}.old"
        blocking.mkdir()
        with pytest.raises(errors.VideoError, match="replacing"):
            write(2)
        assert (model.read_bytes(), spec.read_bytes()) == (b"model 1", b"spec 1")
        blocking.rmdir()
    write(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.yaml"]
    assert (model.read_bytes(), spec.read_bytes()) == (b"model 2", b"spec 2")


@pytest.mark.slow
def test_quantize_writes_the_model_and_its_spec(command, tmp_path):
    clip = write(tmp_path / "clip.mkv", tracks=0)
    place = tmp_path / "new folder" / "my model.onnx"
    done = command("models", "quantize", "websr-x2-s", "--clip", clip, "-o", place, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bytes"] == place.stat().st_size
    assert find_model(place)[0].scale == 2
    again = command("models", "quantize", "websr-x2-s", "--clip", clip, "-o", place)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    shown = command("models", "quantize", "websr-x2-s", "--clip", clip, "-o", place, "--overwrite")
    assert ("in OpenVINO" in shown.stdout) == (told["openvino_ms"] is not None), shown.stdout
    wrong = command("models", "quantize", "websr-x2-s", "--clip", tmp_path / "no.mp4", "-o", tmp_path / "x.onnx")
    assert wrong.returncode == 2
    assert not (tmp_path / "x.onnx").exists()
