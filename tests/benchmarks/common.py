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
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import av

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT.parent / "shared" / "clips"
MODELS = ROOT / "genai_ray" / "assets"
PLAIN_SCRIPT = ROOT / "genai_ray" / "bench" / "plain_script.py"
RESULTS = Path(__file__).parent / "results"

sys.path.insert(0, str(ROOT))
from tests.processes import descendants, rss_anon, title  # noqa: E402

os.environ.setdefault("RAY_ADDRESS", "local")  # a cluster that happens to run on this machine is not what is measured


def genai_ray(*args: str | Path, python: str = sys.executable) -> list[str]:
    return [python, "-m", "genai_ray.cli", *map(str, args)]


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.processor())
    return {"cpu": name, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def keep(name: str, figures: dict[str, Any], rows: list[tuple[str, Any]]) -> None:
    """Print a table and write the figures, with the day and the machine, to results/NAME.json. Then ``figures.py``
    writes them into the documents."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value:.3f}" if isinstance(value, float) else f"{label:<{width}}  {value}")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, "date": f"{date.today()}", "machine": machine(), **figures}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def write_small(
    source: Path, target: Path, seconds: float, size: tuple[int, int], every: int = 1, **options: str
) -> int:
    """Write the first seconds of a clip in a smaller size, or one of ``every`` so many frames of them, with options of
    x264; return how many frames these are."""
    with av.open(str(source)) as box, av.open(str(target), "w") as sink:
        stream = sink.add_stream(
            "libx264",
            rate=box.streams.video[0].average_rate / every,
            options={"crf": "18", "g": "120", "bf": "0"} | options,
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        count = 0
        for index, frame in enumerate(box.decode(video=0)):
            if frame.time >= seconds:
                break
            if index % every:
                continue
            sink.mux(stream.encode(frame.reformat(*size)))
            count += 1
        sink.mux(stream.encode(None))
    return count


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
            total = 0
            for pid in {root, *descendants(root, with_agents=True)}:
                with suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # it has ended
                    size = rss_anon(pid)
                    total += size
                    name = title(pid).split(" ")[0]
                    self.peak_of_name[name] = max(self.peak_of_name[name], size)
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.1)
