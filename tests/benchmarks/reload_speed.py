"""Seconds from a request for a model of 50 MB that was evicted to its answer, while another is evicted for it.

In the process of the session that is evicted for it, and in a new process, if that one does not fit; in a new process
if there is room; beside the creation of a bare ONNX Runtime session and its first run, in a process that has done so
before. Goal: with a used process at most 2.0 x the bare session.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import keep, median
from serve_common import write_matmul

from genai_ray import CacheOptions, ModelCache
from genai_ray.cluster import SessionRequest, connect, disconnect, open_session
from genai_ray.types import ModelBackend, ModelPrecision

MODEL_BYTES = 50_000_000
RUNS = 12
WARM = 4
"""First loads of each kind, which do not count."""
VECTOR = np.random.default_rng(0).random((1, round((MODEL_BYTES / 4) ** 0.5)), np.float32)


def seconds(work) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def bare(path: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": VECTOR})


def take_turns(name: str, paths: list[Path], budget: int, floors: tuple[int | None, int | None]) -> tuple[Any, ...]:
    """Ask for two models in turn, of which one has room; return the seconds of ours, of bare sessions, and reuses."""
    requests = [
        SessionRequest(str(path), ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=floor)
        for path, floor in zip(paths, floors, strict=True)
    ]
    ours_s, bare_s = [], []
    with ModelCache(budget, name=name, options=CacheOptions(min_stay_s=0.0)) as cache:
        sessions = [open_session(cache, request) for request in requests]
        for number in range(2 * RUNS + WARM):
            took_s = seconds(partial(sessions[number % 2].run, {"x": VECTOR}))
            if number >= WARM:
                ours_s.append(took_s)
                bare_s.append(seconds(partial(bare, paths[number % 2])))
        status = cache.status()
        cache.shutdown()
    return ours_s, bare_s, status.reuses, status.loads


def main() -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"m{number}.onnx") for number in range(2)]
        for number, path in enumerate(paths):
            write_matmul(path, MODEL_BYTES, seed=number)
            bare(path)
        connect()
        with ModelCache(2_000_000_000, name="measure") as cache:
            session = cache.get_session(paths[0])
            session.run({"x": VECTOR})
            figures["session_bytes"] = cache.memory_usage()[0]
            figures["new_process_with_room_s"] = []
            for _ in range(RUNS):
                cache.evict(paths[0])
                figures["new_process_with_room_s"].append(seconds(partial(session.run, {"x": VECTOR})))
            cache.shutdown()
        budget = int(1.5 * figures["session_bytes"])
        for label, floors in (("used_process", (None, None)), ("new_process", (2 * budget, budget))):
            ours_s, bare_s, reuses, loads = take_turns(
                label, paths, budget if floors[0] is None else 5 * budget // 2, floors
            )
            figures |= {f"{label}_s": ours_s, f"bare_beside_{label}_s": bare_s, f"{label}_reuses": [reuses, loads]}
        disconnect()
    if figures["new_process_reuses"][0]:
        raise SystemExit("processes were used again that do not fit")
    bare_s = median(figures["bare_beside_used_process_s"])
    used_s, new_s = median(figures["used_process_s"]), median(figures["new_process_s"])
    keep(
        "reload_speed",
        figures,
        [
            ("bare session and first run, s", bare_s),
            ("for an evicted model, in its process, s", used_s),
            ("used process / bare (goal 2.0)", used_s / bare_s),
            ("loads in a used process, of all", "{} of {}".format(*figures["used_process_reuses"])),
            ("for an evicted model, in a new process, s", new_s),
            ("new process / used process", new_s / used_s),
            ("in a new process, with room, s", median(figures["new_process_with_room_s"])),
        ],
    )


if __name__ == "__main__":
    main()
