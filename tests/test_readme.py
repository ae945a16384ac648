"""What a person can paste from the README works, and is what CI runs."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.enhance.moving import frames_of, write_frames
from tests.processes import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.S)[1]


def test_the_two_commands_are_one_line_each_and_ci_runs_them():
    ci = (ROOT / ".ci" / "run").read_text()
    for marker in ("enhance-command", "test-command"):
        assert "\n" not in block(marker)
        assert marker in ci
    assert block("test-command").endswith("pytest")


@pytest.mark.slow
def test_the_python_block_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "(4, 144, 176, 3)"
    assert "['websr-x2-s']" in done.stdout
    assert "passed=True" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


PAGES = (README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))))
LINES = [line for page in PAGES for text in re.findall(r"```sh\n(.*?)```", page, re.S) for line in text.splitlines()]
COMMANDS = sorted({line.partition("#")[0].strip() for line in LINES if "genai-ray " in line})


@functools.cache
def help_of(*verb):
    told = run(*verb, "--help", env={"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_every_command_exist(command):
    words = command.rpartition("genai-ray ")[2].split()
    told = help_of(*(words[:2] if words[0] in ("models", "cache") else words[:1]))
    assert all(word in told for word in words if word.startswith("--"))


@pytest.mark.slow
def test_the_commands_of_the_page_of_tasks_run_as_they_stand(in_shared_ray, tmp_path, samples):
    """On a small clip of the sample's name."""
    (tmp_path / "samples").mkdir()
    frames = frames_of(samples / "bigbuckbunny-360p.mp4")[1][:10, ::4, ::4]
    write_frames(tmp_path / "samples" / "bigbuckbunny-360p.mp4", frames, codec="libx264")
    lines = re.findall(r"^genai-ray (enhance .*)$", (ROOT / "docs" / "tasks.md").read_text(), re.M)
    assert len(lines) == 6
    for line in lines:
        words = line.split()
        done = run(*words, cwd=tmp_path, env=in_shared_ray)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / words[words.index("-o") + 1]).exists()


def test_every_packaged_model_is_in_the_table():
    from genai_ray import ModelCatalog

    table = README.partition("## Models")[2]
    for model_id in ModelCatalog.default().ids():
        stem, _, end = model_id.rpartition("-")
        assert f"`{model_id}`" in table or (f"`-{end}`" in table and f"`{stem}" in table), model_id
