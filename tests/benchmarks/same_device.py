"""One session on a device against two on the same device: whether a second one would be a replica worth its bytes.

One session runs as many frames side by side as it has threads. Two share the cores in one of two ways: each has all of
them, as every session of a cache has, or each has its share, which no cache can give to a session that is there
already.
"""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import numpy as np
from common import keep

from genai_ray import InferenceSession

MODELS = ("websr-x2-s", "waifu2x-x2", "esrgan-2x")
SIZE = (144, 176)


def work(model: str, threads: int, frames: int, gate: Barrier, seconds: Queue) -> None:
    with InferenceSession(model, threads=threads) as session:
        session.warmup()
        batch = np.random.default_rng(0).integers(0, 256, (frames, *SIZE, 3), np.uint8)
        gate.wait()
        began_at = time.perf_counter()
        session.infer(batch)
        seconds.put(time.perf_counter() - began_at)


def frames_per_second(model: str, sessions: int, threads: int, frames: int) -> float:
    """Compute ``frames`` in all, in so many processes."""
    context = multiprocessing.get_context("spawn")
    gate, seconds = context.Barrier(sessions), context.Queue()
    processes = [
        context.Process(target=work, args=(model, threads, frames // sessions, gate, seconds)) for _ in range(sessions)
    ]
    for process in processes:
        process.start()
    slowest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return frames / slowest


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=96)
    args = parser.parse_args()
    ratios = {}
    for model in MODELS:
        runs = [
            [frames_per_second(model, sessions, threads, args.frames) for sessions, threads in ((1, 2), (2, 2), (2, 1))]
            for _ in range(args.runs)
        ]
        ratios[model] = {
            "all_cores_each": statistics.median(two / one for one, two, _ in runs),
            "a_share_each": statistics.median(two / one for one, _, two in runs),
        }
    figures = [(f"{model}, {how}", ratio) for model, found in ratios.items() for how, ratio in found.items()]
    keep("same_device", {"runs": args.runs, "two_sessions_over_one": ratios}, figures)


if __name__ == "__main__":
    main()
