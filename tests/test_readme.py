"""What a person can paste from the README works, and is what CI runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genai_ray import VideoReader
from tests.enhance.moving import write_frames

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
ASSETS = ROOT / "genai_ray" / "assets"


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.S)[1]


def test_the_two_commands_are_one_line_each_and_ci_runs_them():
    ci = (ROOT / ".ci" / "run").read_text()
    for marker in ("enhance-command", "test-command"):
        assert "\n" not in block(marker)
        assert marker in ci
    assert block("test-command").endswith("pytest")


def put_samples(folder, samples):
    """Put small clips of the samples' names into a folder, and a model without a spec."""
    (folder / "samples").mkdir()
    for name in ("bigbuckbunny-360p.mp4", "bigbuckbunny-720p.mp4"):
        with VideoReader(samples / name) as video:
            write_frames(folder / "samples" / name, video[:10].frames[:, ::4, ::4], codec="libx264")
    (folder / "my-model.onnx").write_bytes((ASSETS / "websr-anime4k-cnn-x2-s-rl.onnx").read_bytes())


@pytest.mark.slow
def test_the_python_blocks_run(in_shared_ray, samples, tmp_path):
    put_samples(tmp_path, samples)
    environment = in_shared_ray | {"PYTHONPATH": str(ROOT)}
    told = []
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    batch, notebook, own = told
    assert batch.startswith("16 ")  # eight frames of each clip
    assert notebook.startswith("(2, 180, 320, 3) Figure(")
    assert own.splitlines() == ["2 upscaling", "(2, 180, 320, 3)"]
    assert len(list((tmp_path / "enhanced").glob("*.mp4"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_every_packaged_model_is_in_the_table():
    from genai_ray import ModelCatalog

    table = README.partition("## Models")[2]
    for model_id in ModelCatalog.default().ids():
        stem, _, end = model_id.rpartition("-")
        assert f"`{model_id}`" in table or (f"`-{end}`" in table and f"`{stem}" in table), model_id
