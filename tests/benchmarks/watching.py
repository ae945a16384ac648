"""Runs a command and tells what ``watch/sitecustomize.py`` notes in its processes, and what CPU time they take."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import descendants, title

Watched = dict[str, list[list[str]]]
"""By module: [function, kind of note, name of the note]."""

LOOK_EVERY_S = 0.1


@dataclass
class Run:
    """What was seen of one run."""

    pid: int
    began_at: float
    ended_at: float = 0.0
    notes: list[dict[str, Any]] = field(default_factory=list)
    cpu_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """By process; the last tenth of a second of a process may be missing."""
    titles: dict[int, str] = field(default_factory=dict)
    cpu_s_then: float = 0.0
    """CPU seconds of all processes when the last note that was asked for was first seen."""

    def first(self, name: str) -> float | None:
        """Return when a note was first made, in ms after the command; of ``interpreter``, by the command itself."""
        found = [one["at"] for one in self.notes if one["name"] == name]
        return 1000 * (min(found) - self.began_at) if found else None


def run_watched(command: list[str], watched: Watched, until: str = "") -> Run:
    """Run a command to its end.

    Args:
        command: The command.
        watched: Functions.
        until: Name of a note, for ``cpu_s_then``.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "notes")
        watching = {
            "PYTHONPATH": str(Path(__file__).parent / "watch"),
            "WATCH": json.dumps(watched),
            "WATCH_FILE": str(place),
        }
        began_at = time.time()
        with subprocess.Popen(command, cwd=folder, env=os.environ | watching, stdout=subprocess.DEVNULL) as process:
            run = Run(process.pid, began_at)
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY_S)
                    break
                for pid in {process.pid, *descendants(process.pid, with_agents=True)}:
                    run.cpu_s[pid] = max(run.cpu_s[pid], _cpu_seconds(pid))
                    run.titles[pid] = title(pid) or run.titles.get(pid, "")
                if until and not run.cpu_s_then and place.exists() and f'"{until}"' in place.read_text():
                    run.cpu_s_then = sum(run.cpu_s.values())
            run.ended_at = time.time()
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
        run.notes = [json.loads(line) for line in place.read_text().splitlines()]
    return run


def _cpu_seconds(pid: int) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
