"""The wheel carries everything, and does the main job in an empty environment from another folder."""

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SAMPLES = {path.name for path in (ROOT / "samples").iterdir()}
PAGE = {path.name for path in (ROOT / "genai_ray" / "serve" / "web" / "page").iterdir()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


def test_an_index_would_take_both_files(dist):
    files = sorted(map(str, dist.iterdir()))
    assert len(files) == 2
    told = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout
    assert told.stdout.count("PASSED") == 2


def test_contents_of_the_source(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "genai_ray/py.typed", "tests/conftest.py"} <= names
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= names
    assert {path.rpartition("/")[2] for path in names if path.endswith(".onnx")} == {
        path.name for path in (ROOT / "genai_ray" / "assets").glob("*.onnx")
    }
    assert {f"samples/{name}" for name in SAMPLES} <= names
    assert not any(name.startswith(".venv") for name in names)


def test_contents(wheel):
    assert wheel.stat().st_size < 100_000_000
    names = zipfile.ZipFile(wheel).namelist()
    weights = {path.name for path in (ROOT / "genai_ray" / "assets").glob("*.onnx")}
    assert {Path(name).name for name in names if name.endswith(".onnx")} == weights
    for folder in ("models", "engine", "serve"):
        wanted = {f"genai_ray/configs/{folder}/{path.name}" for path in (ROOT / "configs" / folder).glob("*.yaml")}
        assert wanted <= set(names)
    assert {f"genai_ray/serve/web/page/{name}" for name in PAGE} <= set(names)
    assert {"genai_ray/py.typed", "genai_ray/serve/oip/inference.binpb"} <= set(names)
    assert {f"genai_ray/samples/{name}" for name in SAMPLES} <= set(names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert any(name.endswith(".data/scripts/genai-ray-haproxy") for name in names)
    assert not any(name.startswith(("tests", "samples", "deployments")) for name in names)


def test_the_main_job_in_an_empty_environment(wheel, samples, tmp_path):
    """The libraries are those of this environment; that the wheel names all it needs is what .ci/run shows by its first
    step."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(
        sysconfig.get_path("purelib")
    )  # after its own; files .pth there do not count
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [
        python.with_name("genai-ray"),
        "enhance",
        samples / "bigbuckbunny-360p.mp4",
        "-o",
        "enhanced.mp4",
        "--model",
        "websr-x2-s",
        "--encoder-preset",
        "ultrafast",
        "--json",
    ]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 132
    assert [path.name for path in elsewhere.iterdir()] == ["enhanced.mp4"]
