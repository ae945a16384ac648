"""What moves frames between two processes of a node, in processor time: a call of a Ray actor with arrays, as the
endpoint's replica calls a session; the same with bytes; one compiled graph; and a call in the same process.

The actor does nothing but return a result of the right size, so that the call itself is measured. Medians of several
turns; processor time of both processes by frame.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import ray
from common import keep
from ray.dag import InputNode

from genai_ray.cluster import connect, disconnect

HEIGHT, WIDTH, SCALE = 144, 176, 2
CALLS = 300
REPETITIONS = 5
FRAMES = (1, 4)


class Doubler:
    """Returns frames of twice the size."""

    def arrays(self, frames: Any) -> Any:
        return np.zeros((len(frames), SCALE * HEIGHT, SCALE * WIDTH, 3), np.uint8)

    def bytes(self, frames: bytes) -> bytes:
        return bytes(len(frames) * SCALE * SCALE)

    def pid(self) -> int:
        return os.getpid()


def cpu_s(pids: list[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


@contextmanager
def compiled(actor: Any) -> Iterator[Callable[[Any], Any]]:
    with InputNode() as given:
        graph = actor.arrays.bind(given)
    made = graph.experimental_compile()
    try:
        yield lambda frames: ray.get(made.execute(frames))
    finally:
        made.teardown()


def measure(call: Callable[[Any], Any], frames: Any, pids: list[int]) -> tuple[float, float]:
    """Return the processor time and the time of a call, in ms."""
    for _ in range(20):
        call(frames)
    used_s, began_s = cpu_s(pids), time.perf_counter()
    for _ in range(CALLS):
        call(frames)
    return 1000 * (cpu_s(pids) - used_s) / CALLS, 1000 * (time.perf_counter() - began_s) / CALLS


def main() -> None:
    connect()
    kind = ray.remote(Doubler)
    actor, other = kind.remote(), kind.remote()
    local = Doubler()
    mine = psutil.Process().pid
    pids = {"plain": [mine, ray.get(actor.pid.remote())], "compiled": [mine, ray.get(other.pid.remote())]}
    results: dict[str, dict[str, Any]] = {}
    with compiled(other) as through_graph:
        ways: dict[str, tuple[Callable[[Any], Any], list[int]]] = {
            "actor call, arrays": (lambda frames: ray.get(actor.arrays.remote(frames)), pids["plain"]),
            "actor call, bytes": (lambda frames: ray.get(actor.bytes.remote(frames.tobytes())), pids["plain"]),
            "compiled graph": (through_graph, pids["compiled"]),
            "same process": (local.arrays, [mine]),
        }
        for num in FRAMES:
            frames = np.zeros((num, HEIGHT, WIDTH, 3), np.uint8)
            turns = [
                {name: measure(call, frames, own) for name, (call, own) in ways.items()} for _ in range(REPETITIONS)
            ]
            for name in ways:
                cpu, wall = (statistics.median(turn[name][index] for turn in turns) for index in (0, 1))
                results.setdefault(name, {})[f"{num} frames"] = {"cpu_ms_per_frame": cpu / num, "call_ms": wall}
    disconnect()
    keep(
        "actor_call",
        {"frame": [HEIGHT, WIDTH], "scale": SCALE, "ways": results},
        [
            (f"{name}, {count}: cpu ms per frame", figures["cpu_ms_per_frame"])
            for name, counts in results.items()
            for count, figures in counts.items()
        ],
    )


if __name__ == "__main__":
    main()
