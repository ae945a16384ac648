"""Processor milliseconds a frame of ``InferenceSession.infer``, websr-x2-s on 8 frames of 176x144, in windows of a
second: with the settings of our sessions, without ONNX Runtime's arena of memory, and with its memory patterns. The
windows of one session differ by up to 2 x; see docs/benchmarks.md. Each way runs in a process of its own, in turns."""

import json
import os
import subprocess
import sys
import time

import numpy as np
from common import keep, median

import genai_ray.backends.onnx_runtime as backend
from genai_ray import InferenceSession

WINDOWS, WINDOW_S, TURNS = 20, 1.0, 3
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 144, 176, 3), np.uint8)
SLOW = 1.4
"""A window is slow from so many times the fastest."""
WAYS = {
    "as it is": {},
    "no arena": {"enable_cpu_mem_arena": False},
    "memory patterns": {"enable_mem_pattern": True},
}
HEAP = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "134217728"}
"""For ``no arena``: else every tensor of a MiB would be mapped anew."""


def measure(way: str) -> list[float]:
    build = backend._build_settings

    def changed(*args: object, **options: object) -> object:
        settings = build(*args, **options)
        for name, value in WAYS[way].items():
            setattr(settings, name, value)
        return settings

    backend._build_settings = changed
    found = []
    with InferenceSession("websr-x2-s") as session:
        session.infer(FRAMES)
        for _ in range(WINDOWS):
            used_s, ends_s, count = time.process_time(), time.perf_counter() + WINDOW_S, 0
            while time.perf_counter() < ends_s:
                session.infer(FRAMES)
                count += len(FRAMES)
            found.append(1000 * (time.process_time() - used_s) / count)
    return found


def main() -> None:
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way in WAYS:
            environment = os.environ | (HEAP if way == "no arena" else {})
            done = subprocess.run([sys.executable, __file__, way], stdout=subprocess.PIPE, check=True, env=environment)
            found[way] += json.loads(done.stdout)
    fastest = min(map(min, found.values()))
    figures = {
        way: {
            "cpu_ms_per_frame": several,
            "median_ms": median(several),
            "highest_ms": max(several),
            "slow_share": sum(one > SLOW * fastest for one in several) / len(several),
        }
        for way, several in found.items()
    }
    rows = [(f"{way}, {name}", one[name]) for way, one in figures.items() for name in one if name != "cpu_ms_per_frame"]
    keep("infer_windows", {"ways": figures, "load": os.getloadavg()[0]}, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
