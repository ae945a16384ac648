"""The help of every command, at the widths that terminals have, and its examples."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from PIL import Image

from genai_ray.cli import app
from genai_ray.cli.choices import Group
from genai_ray.cli.enhance import EXAMPLES
from genai_ray.enhance import EnhanceOptions
from genai_ray.video import Encoding
from genai_ray.video.codecs import CODEC_ALIASES
from tests.processes import ROOT
from tests.video.clips import write

WIDTHS = (80, 120)


@pytest.fixture
def told(command, monkeypatch):
    """Run a command in a terminal of a width; its words, which fit."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")

    def call(*words, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        done = command(*words)
        assert done.returncode == 0, done.stderr
        assert all(len(line) <= width for line in done.stdout.splitlines())
        return done.stdout

    return call


@pytest.mark.parametrize("width", WIDTHS)
def test_options_stand_in_groups_with_examples_at_the_end(told, width):
    text = told("enhance", "--help", width=width)
    titles = re.findall(r"^╭─ ([\w ]+) ─", text, re.M)
    assert titles == ["Arguments", *Group]
    common = text.partition("Common")[2].partition("Time and size")[0]
    for words in (
        "--output",
        "-o",
        "--model",
        "-m",
        "--quiet",
        "-q",
        "--verbose",
        "-v",
        "-y",
        "--dry-run",
        "--help",
        "-h",
    ):
        assert words in common
    assert "Runtime." not in text
    lines = text.rstrip().splitlines()
    examples = [line for line in EXAMPLES.splitlines() if line.startswith("genai-ray")]
    assert [line.strip() for line in lines[-len(examples) :]] == examples  # none is broken


def test_aliases_of_codecs_are_in_the_help(told):
    text = told("enhance", "--help", width=120)
    assert [alias for alias in CODEC_ALIASES if alias not in text] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_help_of_every_command_fits(told, width):
    def walk(known, words=()):
        yield words, known
        for name, child in getattr(known, "commands", {}).items():
            yield from walk(child, (*words, name))

    commands = dict(walk(typer.main.get_command(app)))
    assert ("models", "list") in commands
    for words, known in commands.items():
        text = told(*words, "-h", width=width)
        assert "Usage: " in text
        assert "…" not in text
        options = {word for param in known.params for word in param.opts if word.startswith("--")}
        assert [word for word in options if not re.search(rf"{word}[\s,]", text)] == []
        assert re.findall(r"<[\w\[\]]+>|TEXT|BOOLEAN|INTEGER|FLOAT|PATH", text) == []  # names of Python's types


def test_names_on_the_page_are_those_of_the_code():
    """Each option stands beside its field, and no field is missing."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = re.findall(r"^\| ((?:`--[\w-]+`(?:, )?)+) \| ((?:`[\w.]+`(?:, )?)+) \|", page, re.M)
    pairs = [pair for left, right in rows for pair in zip(left.split(", "), right.split(", "), strict=True)]
    command = typer.main.get_command(app).commands["enhance"]
    options = {word for param in command.params for word in param.opts}
    assert {option.strip("`") for option, _ in pairs} <= options
    listed = [name.strip("`") for _, name in pairs]
    encoding = {f"encoding.{field.name}" for field in fields(Encoding) if field.init}
    assert sorted(listed) == sorted({field.name for field in fields(EnhanceOptions)} - {"encoding"} | encoding)


def test_completion_can_be_installed(told):
    assert "--install-completion" in told("--help")
    command = Path(sys.executable).with_name("genai-ray")
    asked = {"_GENAI_RAY_COMPLETE": "complete_bash", "COMP_WORDS": "genai-ray enh", "COMP_CWORD": "1"}
    done = subprocess.run([command], capture_output=True, text=True, check=False, env=os.environ | asked)
    assert done.stdout.split() == ["enhance"], done.stderr


@pytest.mark.slow
def test_the_examples_run_as_they_stand(ray_session, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips" / "a.mp4", tracks=0, pts=[0, 1, 2])
    write(tmp_path / "in.mp4", tracks=0, pts=[0, 1, 2])
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "photo.jpg")
    for line in EXAMPLES.splitlines():
        if line.startswith("genai-ray "):
            done = command(*shlex.split(line)[1:], "-y", "-q")
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "out.mp4").exists()
    assert (tmp_path / "enhanced" / "a.mp4").exists()
    assert (tmp_path / "photo.png").exists()
