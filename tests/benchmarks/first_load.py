"""Seconds of the first load of a 50 MB model in a new process, its first run included, on a node with room.

Without and with a spare process; each in turn with a plain process that does the same without Ray: it starts, imports
what a session's process imports, opens the model in ONNX Runtime and runs it once. Goals: at most 1.3 x that process;
with a spare process at most half of it.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import keep, median
from serve_common import write_matmul

from genai_ray import CacheOptions, ModelCache
from genai_ray.cluster import connect, disconnect

MODEL_BYTES = 50_000_000
RUNS = 10
READY_S = 3.0
"""A spare process has imported everything after this."""
SIDE = round((MODEL_BYTES / 4) ** 0.5)
FEEDS = {"x": np.zeros((1, SIDE), np.float32)}
PLAIN = f"""
import sys
import numpy as np
import onnxruntime as ort
import genai_ray.cluster.session_actor
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {{"x": np.zeros((1, {SIDE}), np.float32)}})
print("done", flush=True)
"""


def seconds(work) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def plain(path: Path) -> float:
    """Return the seconds until a plain process has its first answer; its end is not among them."""
    started_s = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", PLAIN, str(path)], stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stdout.readline() != b"done\n":
            raise SystemExit("the plain process failed")
        return time.perf_counter() - started_s


def take_turns(path: Path, spare_processes: int) -> dict[str, Any]:
    """Return the seconds of first loads, of plain processes beside them, and how many loads took the spare process."""
    options = CacheOptions(spare_processes=spare_processes)
    ours_s, plain_s, taken = [], [], 0
    with ModelCache(2_000_000_000, name="first load", options=options) as cache:
        session = cache.get_session(path)
        session.run(FEEDS)  # prepares the model
        for number in range(RUNS + 3):
            cache.evict(path)
            plain_took_s = plain(path)
            spare = None
            while spare_processes and spare is None:
                (device,) = cache.status().devices
                spare = device.spare_pid
            time.sleep(READY_S)
            took_s = seconds(partial(session.run, FEEDS))
            if number >= 3:  # Ray has some idle processes at first
                ours_s.append(took_s)
                plain_s.append(plain_took_s)
                taken += cache.status().models[0].session["pid"] == spare
        cache.shutdown()
    kind = "spare" if spare_processes else "new"
    return {f"{kind}_process_s": ours_s, f"plain_beside_{kind}_s": plain_s, f"{kind}_taken": taken}


def main() -> None:
    os.chdir(Path(__file__).parent)  # else the package would be imported from the working folder, and never ahead
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_matmul(path, MODEL_BYTES)
        connect()
        figures |= take_turns(path, 0)
        disconnect()
        figures |= take_turns(path, 1)
        disconnect()
    new_s, spare_s = median(figures["new_process_s"]), median(figures["spare_process_s"])
    plain_s = median(figures["plain_beside_new_s"]), median(figures["plain_beside_spare_s"])
    keep(
        "first_load",
        figures,
        [
            ("first load in a new process, s", new_s),
            ("plain process beside it, s", plain_s[0]),
            ("new process / plain process (goal 1.3)", new_s / plain_s[0]),
            ("first load in a spare process, s", spare_s),
            ("plain process beside it, s", plain_s[1]),
            ("spare process / plain process (goal 0.5)", spare_s / plain_s[1]),
            ("spare processes taken, of loads", f"{figures['spare_taken']} of {RUNS}"),
        ],
    )


if __name__ == "__main__":
    main()
