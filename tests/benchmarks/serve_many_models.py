"""Generated models of 1 to 50 MB asked for over HTTP by Zipf 1.1, on several raylets with room for a fifth of them,
churn guard off.

Goals: no device ever over its budget, no error, cold starts at most 1.1 x those of the simulator (the same placement
over the same requests, without processes). A cold start is a process and takes seconds of a core, so that 200 models
and 5,000 requests (1,700 cold starts) take an hour of two cores: the default is the same with fewer models and
requests; ``--models 200 --requests 5000 --nodes 6`` is the published form."""

import argparse
import os
import random
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray
from cache_policies import Model, Trace, by_placement, zipf
from common import keep
from ray import serve
from ray.cluster_utils import Cluster
from serve_common import Target, drive, free_port, infer_request, write_matmul

from genai_ray import ModelCache
from genai_ray.catalog import ServeProfile
from genai_ray.cluster import CacheOptions, EvictionPolicy
from genai_ray.serve.deployment.endpoint import _environment
from genai_ray.serve.deployment.ingress import build_application

PROCESS_BYTES, BYTES_PER_BYTE = 100_000_000, 2.0
"""About what a session takes: its process, and its model as the runtime packs it."""
REQUEST_S = 300.0
SHARE = 0.6
"""Of a node's memory that Ray knows, what a cache takes by itself."""


@contextmanager
def raylets(count: int, budget_bytes: int, folder: Path):
    """Several raylets on this machine, each with so many bytes for sessions; Ray Serve's ingress on the first one
    only."""
    os.environ |= _environment(folder, REQUEST_S)
    memory = int(budget_bytes / SHARE)
    head = {
        "num_cpus": 2,
        "num_gpus": 0,
        "memory": memory,
        "object_store_memory": 200_000_000,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1, num_gpus=0, memory=memory, object_store_memory=100_000_000)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


class Watch:
    """Looks at the cache all the time: the fullest device, and what each model takes."""

    def __init__(self, cache: ModelCache) -> None:
        self.fullest, self.bytes_of, self.looks = 0.0, {}, 0
        self._cache, self._over = cache, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            status = self._cache.status()
            self.looks += 1
            self.fullest = max(self.fullest, *(device.used_bytes / device.budget_bytes for device in status.devices))
            for entry in status.models:
                if entry.state == "ready":
                    self.bytes_of[int(Path(entry.model_id).stem[1:])] = entry.bytes


def simulated(sizes: list[int], order: list[int], seen: dict[int, int], nodes: int, budget_bytes: int) -> int:
    """Cold starts of the same placement over the same requests, with the bytes that models were seen to take."""
    known = [(sizes[index], taken) for index, taken in seen.items()]
    slope, base = np.polyfit(*zip(*known, strict=True), 1)
    models = [Model(int(seen.get(index, base + slope * size)), 1.0) for index, size in enumerate(sizes)]
    return by_placement(Trace("", models, order, nodes, budget_bytes), EvictionPolicy.LRU).loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--output", default="serve_many_models")
    options = parser.parse_args()
    chance = random.Random(0)
    sizes = [round(chance.uniform(1e6, 50e6)) for _ in range(options.models)]
    order = zipf(options.models, options.requests, 1.1, chance)
    taken = PROCESS_BYTES + BYTES_PER_BYTE * sum(sizes) / len(sizes)
    budget_bytes = int(options.models / 5 * taken / options.nodes)
    with tempfile.TemporaryDirectory() as models, tempfile.TemporaryDirectory(prefix="genai-ray-", dir="/tmp") as state:
        for index, size in enumerate(sizes):
            write_matmul(Path(models, f"m{index:03}.onnx"), size, seed=index)
        with raylets(options.nodes, budget_bytes, Path(state)) as address:
            profile = ServeProfile.load("default").override(
                cache="many",
                port=free_port(),
                grpc_port=None,
                models=("websr-x2-s",),
                model_repository=models,
                num_replicas=1,
                request_timeout_s=REQUEST_S,
            )
            figures = measure(profile, address, order, sizes, options, budget_bytes)
    rows = [(name.replace("_", " "), value) for name, value in figures.items()]
    keep(options.output, {"models": options.models, "nodes": options.nodes, **figures}, rows)


def measure(profile, address, order, sizes, options, budget_bytes) -> dict[str, float]:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    cache = ModelCache(name="many", options=CacheOptions(min_stay_s=0))
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": profile.host, "port": profile.port},
        logging_config={"enable_access_log": False},
    )
    bodies = []
    serve.run(build_application(profile), route_prefix="/", logging_config={"enable_access_log": False})
    with Watch(cache) as watch:
        for size in sizes:
            side = round((size / 4) ** 0.5)
            bodies.append(infer_request("x", np.ones((1, side), np.float32), frames=False))
        kinds = [(f"/v2/models/m{index:03}/infer", headers) for index, (_, headers) in enumerate(bodies)]
        began = time.monotonic()
        target, each = Target(profile.port, [body for body, _ in bodies], kinds, order), len(order) // options.clients
        done = drive(target, clients=options.clients, requests=each, within_s=3600 + len(order))
        seconds = time.monotonic() - began
        status = cache.status()
    expected = simulated(sizes, order[: len(done.latencies_s)], watch.bytes_of, options.nodes, budget_bytes)
    return {
        "requests": len(done.latencies_s),
        "seconds": seconds,
        "refused": done.refused,
        "failures": status.failures,
        "cold_starts": status.loads,
        "cold_starts_simulated": expected,
        "over_simulated_goal_1.1": status.loads / expected,
        "fullest_device_goal_1.0": watch.fullest,
        "looks": watch.looks,
    }


if __name__ == "__main__":
    main()
