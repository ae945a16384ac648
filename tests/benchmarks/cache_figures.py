"""The cache's own figures on this machine: a hit, single flight, evict-and-load, recovery after SIGKILL, models
resident at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import ray
from common import ROOT, keep, median
from onnx import helper, numpy_helper

from genai_ray import InferenceSession, ModelCache
from genai_ray.cluster import CachedSession, CacheOptions, SessionRequest, connect, disconnect, open_session, router_of
from genai_ray.errors import GenAIRayError
from genai_ray.types import ModelBackend, ModelPrecision

sys.path.insert(0, str(ROOT))
from tests.caches import ending
from tests.nodes import LOGICAL_GPUS, Nodes

A, B = "websr-x2-s", "websr-x2-m"
SHARE = 300_000_000
GOAL_RESIDENT = 150


def of(model: str | Path, num_bytes: int | None = None) -> SessionRequest:
    return SessionRequest(str(model), ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=num_bytes)


class OwnPart(CachedSession):
    """Everything a request costs its client but the actor call, which gives the same answer at once."""

    answer: Any = None

    def _infer(self, handle: Any, frames: Any, params: Any) -> Any:
        return self.answer


def hit_us() -> float:
    with ending(ModelCache(2_000_000_000, name="hit")) as cache:
        session = OwnPart(router_of(cache), of(A), open_session(cache, of(A)).spec)
        session.touch()
        frames, times = np.zeros((4, 144, 176, 3), np.uint8), []
        for _ in range(20_000):
            began_s = time.perf_counter()
            session.submit(frames)
            times.append(time.perf_counter() - began_s)
        return 1e6 * median(times)


def loads_of_fifty() -> int:
    with ending(ModelCache(2_000_000_000, name="fifty")) as cache:
        frames = np.zeros((1, 32, 32, 3), np.uint8)
        clients = [ModelCache(name="fifty") for _ in range(50)]
        start = threading.Barrier(50)

        def ask(client: ModelCache) -> None:
            start.wait()
            client.get_session(A).infer(frames)

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(ask, clients))
        return int(cache.status().loads)


class Bare:
    """What a load cannot do without: a process and a session in it."""

    def load(self, model: str) -> None:
        self.session = InferenceSession(model)
        self.session.warmup()


def evict_and_load(runs: int) -> tuple[float, float]:
    ours, bare = [], []
    with ending(ModelCache(SHARE, name="swap", options=CacheOptions(min_stay_s=0))) as cache:
        cache.load_model(A, memory_bytes=SHARE)
        for number in range(runs):
            model = (B, A)[number % 2]
            began_s = time.perf_counter()
            cache.load_model(model, memory_bytes=SHARE)
            ours.append(time.perf_counter() - began_s)
            began_s = time.perf_counter()
            actor: Any = ray.remote(num_cpus=0)(Bare).remote()
            ray.get(actor.load.remote(model))
            bare.append(time.perf_counter() - began_s)
            ray.kill(actor)
        assert cache.status().evictions == runs
    return median(ours), median(bare)


@contextlib.contextmanager
def under_load(cache: ModelCache, expected: Any, frames: Any) -> Iterator[tuple[list[float], list[Exception]]]:
    """Four clients that ask all the time and check every answer; gives the seconds of each request, and what was
    lost."""
    over, times, lost = threading.Event(), [], []

    def ask() -> None:
        session = open_session(cache, of(A))
        while not over.is_set():
            began_s = time.perf_counter()
            try:
                answer = session.infer(frames)
            except GenAIRayError as exc:
                lost.append(exc)
            else:
                assert np.array_equal(answer, expected)
                times.append(time.perf_counter() - began_s)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            yield times, lost
        finally:
            over.set()
        for one in asking:
            one.result()  # no answer was wrong


def until(condition: Callable[[], bool]) -> float:
    began_s = time.perf_counter()
    while not condition():
        assert time.perf_counter() - began_s < 120
        time.sleep(0.02)
    return time.perf_counter() - began_s


def recovery(runs: int) -> dict[str, float]:
    """Seconds from SIGKILL (of a node: from Ray's report) until the ledger holds the truth again and a request was
    answered."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 144, 176, 3), np.uint8)
    with InferenceSession(A) as local:
        expected = local.infer(frames)
    took: dict[str, list[float]] = {"session": [], "cache actor": [], "node": []}
    with (
        Nodes() as nodes,
        ending(ModelCache(name="recovery", options=LOGICAL_GPUS)) as cache,
        under_load(cache, expected, frames) as (times, lost),
    ):
        until(lambda: len(times) > 20)
        for _ in range(runs):
            for what in ("session", "cache actor"):
                until(lambda: is_whole(cache, 0))
                status = cache.status()
                pid = status.pid if what == "cache actor" else status.models[0].session["pid"]
                os.kill(pid, signal.SIGKILL)
                took[what].append(until(lambda pid=pid: is_whole(cache, pid)))
            node = nodes.add(num_gpus=1)
            until(lambda node=node: node.node_id in {device.node for device in cache.status().devices})
            cache.evict(A)
            until(
                lambda node=node: (
                    [entry.placed_on[:12] for entry in cache.status().models if entry.state == "ready"]
                    == [node.node_id[:12]]
                )
            )
            nodes.remove(node)
            until(lambda node=node: node.node_id not in {found["NodeID"] for found in ray.nodes() if found["Alive"]})
            took["node"].append(until(lambda: is_whole(cache, 0)))
        slowest = max(times)
        answered = len(times)
    return {what: median(found) for what, found in took.items()} | {
        "slowest request": slowest,
        "answered": answered,
        "lost": len(lost),
    }


def is_whole(cache: ModelCache, killed_pid: int) -> bool:
    status = cache.status()
    ready = [entry for entry in status.models if entry.state == "ready"]
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    pids = [status.pid, *(entry.session.get("pid") for entry in ready)]
    return (
        len(ready) == len(status.models) == 1
        and None not in pids
        and killed_pid not in pids
        and {device.node for device in status.devices} == alive
    )


def write_models(folder: Path, count: int, weight_mb: int = 2) -> list[Path]:
    """Write distinct models with so many MB of weights each."""
    chance, paths, width = np.random.default_rng(0), [], 512 * weight_mb
    for number in range(count):
        weights = numpy_helper.from_array(chance.random((512, width), np.float32), "w")
        values = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
            for name, size in (("x", 512), ("y", width))
        ]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], f"model {number}", values[:1], values[1:], [weights]
        )
        paths.append(folder / f"model{weight_mb}_{number:03}.onnx")
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), paths[-1])
    return paths


def resident(count: int) -> dict[str, float]:
    """Load models until ``count`` of them are there at once; each is used, none has left."""
    budget = int(0.9 * ray.cluster_resources()["memory"])
    with (
        tempfile.TemporaryDirectory() as folder,
        ending(ModelCache(budget, name="many", options=CacheOptions(min_stay_s=0))) as cache,
    ):
        feeds = {"x": np.ones((1, 512), np.float32)}
        for path in write_models(Path(folder), count):
            assert open_session(cache, of(path)).run(feeds)["y"].shape == (1, 1024)
        status = cache.status()
        sizes = [entry.bytes for entry in status.models]
        return {
            "resident": len(sizes),
            "mb_a_model": median(sizes) / 1e6,
            "process_mb": status.process_bytes["cpu"] / 1e6,
            "evictions": status.evictions,
        }


def fits() -> dict[str, dict[str, float]]:
    """Measure a session of 2, 50 and 500 MB of weights, and say how many of each the share of a node's memory holds."""
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ending(ModelCache(8_000_000_000, name="fits", options=CacheOptions(min_stay_s=0))) as cache,
    ):
        for weight_mb in (2, 50, 500):
            (path,) = write_models(Path(folder), 1, weight_mb)
            open_session(cache, of(path)).run({"x": np.ones((1, 512), np.float32)})
            taken = next(entry.bytes for entry in cache.status().models if entry.model_id == str(path))
            counts = {f"on {gb} GB": int(0.9 * gb * 1e9 / taken) for gb in (16, 24, 80)}
            found[f"{weight_mb} MB"] = {"session_mb": taken / 1e6, **counts}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--resident", type=int, default=GOAL_RESIDENT)
    options = parser.parse_args()
    connect()
    hit, loads = median([hit_us() for _ in range(3)]), loads_of_fifty()
    ours, bare = evict_and_load(options.runs)
    room = fits()
    many = resident(options.resident)
    disconnect()
    seconds = recovery(3)
    figures = {
        "hit_us": hit,
        "loads_of_50": loads,
        "evict_and_load_s": ours,
        "bare_load_s": bare,
        "ratio": ours / bare,
        "recovery_s": seconds,
        "fits": room,
        **many,
    }
    rows = [
        ("a hit: the client's own time, us at the median (goal 20)", hit),
        ("50 concurrent first requests: loads (goal 1)", loads),
        ("evict one, load another, s", ours),
        ("process start and session alone, s", bare),
        ("  ratio (goal 1.3)", ours / bare),
        *(
            (f"recovery after SIGKILL: {what}, s (goal 5)", seconds[what])
            for what in ("session", "cache actor", "node")
        ),
        ("  slowest request meanwhile, s", seconds["slowest request"]),
        ("  requests answered, lost", f"{seconds['answered']:.0f}, {seconds['lost']:.0f}"),
        (f"models of 2 MB resident (goal {GOAL_RESIDENT})", many["resident"]),
        ("  MB a model", many["mb_a_model"]),
        ("  of which the process, MB (goal 80)", many["process_mb"]),
        *(
            (f"a model of {size}", ", ".join(f"{name} {value:.0f}" for name, value in counts.items()))
            for size, counts in room.items()
        ),
    ]
    keep("cache_figures", figures, rows)


if __name__ == "__main__":
    main()
