"""The command line as a person and a script use it."""

import json
import os
import subprocess
import sys

import pytest

import genai_ray
from genai_ray import ModelCatalog
from genai_ray.backends.gpu import count_gpus
from genai_ray.catalog import load_spec
from genai_ray.errors import VideoError
from genai_ray.files import open_folder
from tests.nodes import Nodes
from tests.processes import ROOT, run
from tests.video.clips import write

CLIP = str(ROOT / "samples" / "bigbuckbunny-360p.mp4")


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"genai-ray {genai_ray.__version__}\n")


def test_the_installed_command_is_the_same():
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="genai-ray")
    assert command.load() is genai_ray.cli.main


def test_models_are_listed_and_shown(command, tmp_path):
    listed = json.loads(command("models", "list", "--json").stdout)
    assert [spec["model_id"] for spec in listed] == ModelCatalog.default().ids()
    table = command("models", "list").stdout
    assert "waifu2x-x2" in table
    assert "not the 64 MB RRDB" in " ".join(command("models", "show", "esrgan").stdout.split())
    (tmp_path / "shown.yaml").write_text(command("models", "show", "esrgan-4x").stdout)
    assert load_spec(tmp_path / "shown.yaml") == ModelCatalog.default().get("esrgan-4x")
    assert json.loads(command("models", "show", "ffdnet", "--json").stdout)["params"]["sigma"]["default"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "show", "waifu"], "Did you mean waifu2x"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "ffdnet", "--param", "sigma=1/0"], "NAME=VALUE"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "ffdnet", "--param", "sigma=1e400"], "NAME=VALUE"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "ffdnet", "--devices", "²"], "a number of 1 or more"),
        (
            ["enhance", CLIP, "-o", "b.mp4", "--model", "ffdnet", "--param", "sigma=0.5"],
            "0 to 0.294, or 1 to 75 of 255",
        ),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "ffdnet", "--param", "sigma=76"], "0 to 0.294, or 1 to 75 of 255"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "esrgan", "--max-memory", "2 apples"], "2GB or 512MiB"),
        (["serve", "--max-memory", "0"], "--max-memory=0; allowed: more than 0"),
        (["serve", "--address", "ray://head:10001"], "the endpoint over ray://; allowed: ModelCache, its sessions and"),
        (["models", "inspect", "none.onnx"], "none.onnx"),
        (["enhance", "nothere.mp4", "-o", "x.mp4"], "error: nothere.mp4: no such file"),
        (["enhance", "none/*.mp4", "-o", "x/"], "error: none/*.mp4: no such file"),
        (["enhance", "a.mp4"], "Missing option '--output'"),
        (["enhance", CLIP, "-o", "b.mp4"], "background-removal: selfie-segmentation"),
        (["enhance", CLIP, "-o", "b.mp4"], "denoising: ffdnet; interpolation: rife; low-light: zero-dce"),
        (["enhance", CLIP, CLIP, "-o", "b.mp4", "-m", "esrgan"], "several inputs need a folder"),
        (["enhance", CLIP, "-o", f"{CLIP}/b/", "-m", "esrgan"], "is a file"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "esrgan", "--param", "sigma"], "NAME=VALUE"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "esrgan", "--precision", "FP32"], "fp32"),
        (["enhance", CLIP, "-o", "b.mp4", "--model", "esrgan", "--dance"], "genai-ray enhance --help"),
        (["dance"], "dance"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_to_do(command, arguments, words):
    is_refused_with(command, arguments, words)


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_ray_starts(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(tmp_path)}
    done = run("enhance", CLIP, "-o", tmp_path / "b.mp4", "-m", "websr-x2-s", "--device", "cuda", env=env)
    assert done.returncode == 1
    assert "asked for device 'cuda'; allowed: cpu, since this machine has no NVIDIA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there_is_wrong_use():
    is_refused_with(run, ["cache", "status", "--address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9")


def is_refused_with(run, arguments, words):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    told = run(*arguments, "--json")
    if "--json" not in told.stderr:  # the command has this option
        assert told.returncode == 2
        (line,) = told.stdout.splitlines()
        error = json.loads(line)["error"]
        assert words.removeprefix("error: ") in " ".join(error["message"].split())
        assert issubclass(getattr(genai_ray.errors, error["class"]), genai_ray.errors.GenAIRayError)


def test_a_job_that_fails_leaves_no_new_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video " * 100)
    done = command("enhance", "text.mp4", "-o", "new/deep/x.mp4", "-m", "websr-x2-s")
    assert (done.returncode, "not a video" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


def test_a_folder_that_cannot_be_created_leaves_no_parents(tmp_path):
    with pytest.raises(VideoError), open_folder(str(tmp_path / "new" / ("x" * 300))):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_folders_of_results_are_created(ray_session, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips" / "a.mp4", tracks=0, pts=[0, 1, 2])
    for output, result in (("new/enhanced/", "new/enhanced/a.mp4"), ("other/b.mkv", "other/b.mkv")):
        source = "clips" if output.endswith("/") else "clips/a.mp4"
        done = command("enhance", source, "-o", output, "-m", "websr-x2-s", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outputs"] == [str(tmp_path / result)]
        assert (tmp_path / result).is_file()


@pytest.mark.parametrize("words", [("enhance",), ("cache", "load")])
def test_help_and_errors_offer_what_works(command, words):
    told = command(*words, "-h").stdout
    assert "onnx" in told
    assert "openvino" in told
    assert "fp16" in told
    assert "bf16" in told
    assert told == command(*words, "--help").stdout
    refused = [command(*words, "a", *option) for option in (("--backend", "auto"), ("--precision", "int8"))]
    assert [done.returncode for done in refused] == [2, 2]
    offered = "".join([told, *(done.stderr.replace("'auto'", "").replace("'int8'", "") for done in refused)])
    assert not any(word in offered for word in ("int8", "|auto"))


@pytest.mark.cluster
def test_the_cache_of_a_running_cluster(command, monkeypatch):
    """From processes that join the cluster for it, and from one that has joined it before."""
    with Nodes() as nodes:
        address = ["--address", nodes.cluster.address]

        def cache(*arguments, run=command):
            done = run("cache", *arguments, *address, "--json")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        done = run("cache", "status", *address)
        assert done.returncode == 2
        assert "no cache 'default' in this cluster" in done.stderr  # and none is made by looking
        loaded = cache("load", "esrgan", "--precision", "fp16", "--memory", "300MB", "--max-memory", "2GiB", run=run)
        (model,) = loaded["models"]
        assert (model["model_id"], model["precision"], model["state"]) == ("esrgan-4x", "fp16", "ready")
        assert model["bytes"] >= 300_000_000
        assert loaded["budget_bytes"] <= 2 * 1024**3
        cache("load", "websr-x2-s")
        assert [model["model_id"] for model in cache("status")["models"]] == ["esrgan-4x", "websr-x2-s"]
        table = command("cache", "status", *address).stdout
        assert "esrgan-4x" in table
        assert "websr-x2-s" in table
        assert f"{float(model['session']['precision_db']):.1f}" in table  # of fp16 from fp32
        assert os.uname().nodename in table
        assert set(cache("status")["nodes"].values()) == {os.uname().nodename}
        watched = command("cache", "watch", "--times", 2, "--every", 0.2, *address)
        assert watched.returncode == 0, watched.stderr
        assert "websr-x2-s" in watched.stdout
        assert "budget" in watched.stdout
        assert [model["model_id"] for model in cache("evict", "esrgan")["models"]] == ["websr-x2-s"]
        assert [model["pinned"] for model in cache("pin", "websr-x2-s")["models"]] == [True]
        assert [model["pinned"] for model in cache("unpin", "websr-x2-s")["models"]] == [False]
        done = command("cache", "evict", "rife", *address)
        assert done.returncode == 2
        assert "rife is not loaded" in done.stderr
        with open(os.devnull) as nothing:
            monkeypatch.setattr(sys, "stdin", nothing)
            done = command("cache", "shutdown", *address)
        assert (done.returncode, "Pass --yes" in done.stderr) == (2, True)
        assert command("cache", "shutdown", "-y", *address).returncode == 0
        assert "no cache 'default'" in command("cache", "status", *address).stderr


def test_a_full_disk_is_named_and_a_closed_pipe_is_not():
    command = [sys.executable, "-m", "genai_ray.cli", "models", "show", "rife"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        job.stdout.close()  # long before the first line is written
        assert (job.stderr.read(), job.wait()) == ("", 1)


def test_importing_the_command_line_starts_nothing():
    code = "import genai_ray.cli, sys; print([m for m in ('ray', 'onnxruntime', 'av') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
