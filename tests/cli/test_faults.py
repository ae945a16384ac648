"""What a command says when it fails or is stopped: one sentence, and with ``--json`` one line of JSON."""

import json
import os
import signal

import pytest
import typer

from genai_ray import ModelCatalog
from genai_ray.cli import _terminated, app
from tests.processes import ROOT

CLIP = str(ROOT / "samples" / "bigbuckbunny-360p.mp4")


def stop():
    raise KeyboardInterrupt


def fill_disk():
    raise OSError(28, "No space left on device", "/there")


ENDS = {
    "fault": (lambda: 1 / 0, 1, "ZeroDivisionError", "a fault of genai-ray: ZeroDivisionError: division by zero"),
    "system": (fill_disk, 1, "OSError", "/there: No space left on device"),
    "ctrl-C": (stop, 130, "KeyboardInterrupt", "interrupted"),
    "SIGTERM": (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "SystemExit", "ended by SIGTERM"),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_is_a_line_of_json_for_who_asks(command, monkeypatch, name):
    happen, code, kind, words = ENDS[name]
    monkeypatch.setattr(ModelCatalog, "default", lambda: happen() or ModelCatalog())
    done = command("models", "list", "--json")
    _terminated.clear()
    (line,) = done.stdout.splitlines()
    error = json.loads(line)["error"]
    assert (done.returncode, error["class"], error["got"]) == (code, kind, words)
    assert set(error) == {"message", "class", "got", "allowed", "do"}
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    quiet = command("models", "list")
    _terminated.clear()
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (code, "", done.stderr)


def test_a_fault_says_what_to_do(command, monkeypatch):
    monkeypatch.setattr(ModelCatalog, "default", lambda: 1 / 0)
    done = command("models", "list")
    assert done.stderr.endswith("Run the command with --debug and report it.\n")
    traced = command("models", "list", "--debug")
    assert (traced.returncode, "Traceback" in traced.stderr, "--debug" in traced.stderr) == (1, True, False)


def test_debug_stands_before_or_after_a_command(command):
    plain, *traced = (
        command(*words)
        for words in (
            ("models", "show", "waifu"),
            ("--debug", "models", "show", "waifu"),
            ("models", "--debug", "show", "waifu"),
            ("models", "show", "waifu", "--debug"),
        )
    )
    assert "Traceback" not in plain.stderr
    for done in traced:
        assert (done.returncode, "Traceback" in done.stderr) == (2, True)
        assert done.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
    named = command("models", "show", "--", "--debug")
    assert (named.returncode, "no model '--debug'" in named.stderr, "Traceback" in named.stderr) == (2, True, False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-q", "enhance", CLIP, "-o", "b.mp4"], "stand after it: `genai-ray COMMAND -q`"),
        (["-v", "enhance", CLIP, "-o", "b.mp4"], "stand after it: `genai-ray COMMAND -v`"),
        (["--json", "models", "list"], "stand after it: `genai-ray COMMAND --json`"),
        (["cache", "--json", "status"], "stand after it: `genai-ray cache COMMAND --json`"),
        (["models", "list", "--version"], "It has no command: `genai-ray --version`"),
        (["compare", CLIP, "--task", "dance"], "Invalid value for '--task': 'dance' is not one of 'upscaling'"),
        (["models", "list", "--dance"], "`genai-ray models list --help` lists what is allowed"),
    ],
)
def test_an_option_at_the_wrong_place_is_shown_the_right_one(command, words, told):
    done = command(*words)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def commands_with(option):
    def walk(known, words=()):
        for name, child in getattr(known, "commands", {}).items():
            yield from walk(child, (*words, name))
        if option in {word for param in known.params for word in param.opts}:
            yield words

    return list(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("words", commands_with("--json"), ids=" ".join)
def test_wrong_words_of_every_command_are_a_line_of_json(command, words):
    done = command(*words, "--dance", "--json")
    (line,) = done.stdout.splitlines()
    error = json.loads(line)["error"]
    assert (done.returncode, error["class"]) == (2, "ConfigError")
    assert "--dance" in error["got"]
    assert error["do"] == f"`genai-ray {' '.join(words)} --help` lists what is allowed."
    assert done.stderr == f"error: {error['message']}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["enhance", "none.mp4", "-o", "b.mp4", "-m", "esrgan"],
        ["enhance", "none.csv", "-o", "b/", "-m", "esrgan"],
        ["enhance", CLIP, "-o", "b.mp4", "-m", "none.onnx"],
        ["enhance", CLIP, "-o", "b.mp4", "-m", "esrgan", "--profile", "none.yaml"],
        ["compare", "none.mp4"],
        ["compare", CLIP, "--models", "none.onnx"],
        ["validate", "none.mp4", CLIP],
        ["validate", CLIP, "none.png"],
        ["validate", CLIP, CLIP, "none.mp4"],
        ["models", "inspect", "none.onnx"],
        ["serve", "--profile", "none.yaml"],
        ["serve", "--token-file", "none"],
        ["serve", "--model-repository", "none/"],
    ],
    ids=" ".join,
)
def test_a_missing_input_is_wrong_use(command, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert "none" in done.stderr
    assert list(tmp_path.iterdir()) == []
