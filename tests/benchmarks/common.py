"""What every benchmark shares: where clips and models are, medians, the machine, and the JSON that is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT.parent / "shared" / "clips"
MODELS = ROOT / "genai_ray" / "assets"
RESULTS = Path(__file__).parent / "results"


def genai_ray(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "genai_ray.cli", *map(str, args)]


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.processor())
    return {"cpu": name, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def keep(name: str, figures: dict[str, Any], rows: list[tuple[str, Any]]) -> None:
    """Print a table and write the figures, with the machine they were taken on, to results/NAME.json."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value:.3f}" if isinstance(value, float) else f"{label:<{width}}  {value}")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": machine(), **figures}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def median(values: list[float]) -> float:
    return float(statistics.median(values))


class PeakMemory:
    """The largest sum of anonymous bytes over a process and all its descendants, sampled every 0.1 s while it runs."""

    def __init__(self, command: list[str]) -> None:
        self.peak_bytes = 0
        self.peak_of_name: dict[str, int] = defaultdict(int)
        self._over = threading.Event()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            watcher = threading.Thread(target=self._watch, args=(process.pid,))
            watcher.start()
            self.stdout, self.stderr = process.communicate()
            self._over.set()
            watcher.join()
        self.returncode = process.returncode

    def _watch(self, root: int) -> None:
        while not self._over.is_set():
            sizes = _descendants(root)
            self.peak_bytes = max(self.peak_bytes, sum(size for _, size in sizes))
            for name, size in sizes:
                self.peak_of_name[name] = max(self.peak_of_name[name], size)
            time.sleep(0.1)


def _descendants(root: int) -> list[tuple[str, int]]:
    parents, facts = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
                command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields["PPid"])
            facts[int(entry.name)] = (command or fields["Name"].strip(), int(fields.get("RssAnon", "0 kB").split()[0]) * 1024)
    mine = {root}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return [facts[pid] for pid in mine if pid in facts]
