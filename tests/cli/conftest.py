"""The command line in this process, for what needs no process of its own."""

import signal
import sys
from dataclasses import dataclass

import pytest

from genai_ray.cli import main


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line with these words; its result."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["genai-ray", *map(str, words)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return Ended(stopped.value.code, said.out, said.err)

    return call
