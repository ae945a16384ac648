"""What a person can paste from the README works, and is what CI runs."""

import re
from pathlib import Path

import pytest

from genai_ray import ModelCache, VideoReader
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


def put_samples(folder, samples, count=None):
    """Put small clips of the samples' names into a folder, of so many frames, and a model without a spec."""
    (folder / "samples").mkdir()
    for name in ("bigbuckbunny-360p.mp4", "bigbuckbunny-720p.mp4"):
        with VideoReader(samples / name) as video:
            write_frames(folder / "samples" / name, video[:count].frames[:, ::4, ::4], codec="libx264")
    (folder / "my-model.onnx").write_bytes((ASSETS / "websr-anime4k-cnn-x2-s-rl.onnx").read_bytes())


@pytest.fixture
def own_cache(ray_session):
    """The default cache of the Ray of tests is a new one, and ends afterwards: blocks ask for a budget and options."""
    ModelCache().shutdown()
    yield
    ModelCache().shutdown()


def run_blocks(text, capsys):
    """Run the blocks of Python, each by itself; return what each printed."""
    told = []
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        told.append(capsys.readouterr().out)
    return told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what is pasted has no filters
def test_the_python_blocks_run(own_cache, samples, tmp_path, monkeypatch, capsys):
    put_samples(tmp_path, samples, count=10)
    monkeypatch.chdir(tmp_path)
    batch, notebook, own = run_blocks(README, capsys)
    assert batch.startswith("16 ")  # eight frames of each clip
    assert notebook.startswith("(2, 180, 320, 3) Figure(")
    assert own.splitlines() == ["2 upscaling", "(2, 180, 320, 3)"]
    assert len(list((tmp_path / "enhanced").glob("*.mp4"))) == 2


ENHANCES = "video.md"
"""The page whose block enhances a whole clip: here a small one."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text()],
    ids=lambda page: page.name,
)
def test_the_python_blocks_of_a_page_run(own_cache, samples, tmp_path, monkeypatch, capsys, page):
    if page.name == ENHANCES:
        put_samples(tmp_path, samples)
    monkeypatch.chdir(tmp_path if page.name == ENHANCES else ROOT)
    assert all(run_blocks(page.read_text(), capsys))


def test_every_packaged_model_is_in_the_table():
    from genai_ray import ModelCatalog

    table = README.partition("## Models")[2]
    for model_id in ModelCatalog.default().ids():
        stem, _, end = model_id.rpartition("-")
        assert f"`{model_id}`" in table or (f"`-{end}`" in table and f"`{stem}" in table), model_id
