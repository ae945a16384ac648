"""Where the processor time of a request goes, at 16 clients, websr-x2-s on 176x144 uint8 frames: milliseconds by kind
of process for the endpoint and for two plain replicas of Ray Serve, which are up at the same time and asked in turn; of
the model alone, and of a call between two processes as the endpoint's replica makes it (``actor_call.py``). Processor
time, unlike requests a second, hardly depends on what else the machine does.
"""

import json
import os
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import descendants, keep, median, title
from serve_common import Target, drive
from serve_throughput import CLIENTS, FRAME, MODEL, ours, plain, write_fused

SECONDS = 8.0
REPETITIONS = 3
MODEL_RUNS = 200
TICKS = os.sysconf("SC_CLK_TCK")
KINDS = {
    "SessionActor": "session",
    "ServeReplica": "replica",
    "haproxy": "proxy",
    "ProxyActor": "proxy",
    "ServeController": "controller",
    "CacheActor": "cache",
    "raylet/raylet": "raylet and GCS",
    "gcs_server": "raylet and GCS",
}
"""Kinds of processes by a part of their title; any other is ``other``."""


def cpu_s_by_kind(target: Target) -> dict[str, float]:
    """Return the processor seconds that the server's processes took so far."""
    found: defaultdict[str, float] = defaultdict(float)
    for pid in {target.pid, *descendants(target.pid, with_agents=True)}:
        words = title(pid)
        kind = next((name for part, name in KINDS.items() if part in words), "other")
        with suppress(FileNotFoundError, ProcessLookupError):
            found[kind] += (
                sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS
            )
    return dict(found)


def counts_of(port: int) -> tuple[int, int]:
    """Return the frames and the calls of the session that one replica of the endpoint has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}/stats") as answer:
        (stats,) = json.load(answer)["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def model_ms(path: str) -> float:
    """Return the processor milliseconds of one frame in ONNX Runtime alone, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: FRAME}

    def run(times: int) -> None:
        for _ in range(times):
            session.run(None, feeds)

    run(20)
    began_s = time.process_time()
    run(MODEL_RUNS)
    return 1000 * (time.process_time() - began_s) / MODEL_RUNS


def main() -> None:
    parts: dict[str, defaultdict[str, list[float]]] = {}
    alone: list[float] = []
    together: list[float] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        fused = write_fused(Path(folder))
        servers: dict[str, Callable[..., Any]] = {"genai-ray": ours, "two plain replicas": plain}
        targets = {name: stack.enter_context(server(sys.executable, fused)) for name, server in servers.items()}
        for target in targets.values():
            drive(target, clients=CLIENTS, seconds=3)
        for _ in range(REPETITIONS):
            alone.append(model_ms(fused))
            for name, target in targets.items():
                frames, calls = counts_of(target.port) if name == "genai-ray" else (0, 0)
                before = cpu_s_by_kind(target)
                done = drive(target, clients=CLIENTS, seconds=SECONDS)
                found = parts.setdefault(name, defaultdict(list))
                used_s = {kind: after_s - before.get(kind, 0) for kind, after_s in cpu_s_by_kind(target).items()}
                for kind, seconds in (used_s | {"all": sum(used_s.values())}).items():
                    found[kind].append(1000 * seconds / len(done.latencies_s))
                if name == "genai-ray":
                    more_frames, more_calls = np.subtract(counts_of(target.port), (frames, calls))
                    if more_calls > 0:  # the same replica answered
                        together.append(float(more_frames / more_calls))
    figures = {
        "clients": CLIENTS,
        "load": os.getloadavg()[0],
        "model_ms": median(alone),
        "frames_per_call": median(together) if together else None,
        "cpu_ms_per_request": {
            name: {kind: median(several) for kind, several in found.items()} for name, found in parts.items()
        },
    }
    rows: list[tuple[str, Any]] = [("the model alone, cpu ms", figures["model_ms"])]
    rows += [
        (f"{name}, {kind}", value)
        for name, kinds in figures["cpu_ms_per_request"].items()
        for kind, value in kinds.items()
    ]
    keep("serve_profile", figures, [*rows, ("frames in a call of the session", figures["frames_per_call"])])


if __name__ == "__main__":
    main()
