"""A real cluster of several raylets on this machine, with GPUs that only Ray counts."""

import contextlib
import os
import subprocess
import sys

import pytest
import ray
from ray.cluster_utils import Cluster

from genai_ray.cluster import CacheOptions, disconnect
from genai_ray.cluster.runtime.node import few_processes
from tests.crashes import trace_crashes
from tests.processes import descendants, kill, wait_until
from tests.rays import connect_tests

GPU_BYTES = 1_000_000_000
NODE_BYTES = 3_000_000_000
LOGICAL_GPUS = CacheOptions(logical_gpu_bytes=GPU_BYTES)
"""How a cache behaves whose nodes have GPUs that only Ray counts."""
ENVIRONMENT = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "15000",  # a dead raylet refuses at once; one on a busy machine is only late
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """Takes the place of the embedded Ray of the other tests while it is open.

    Its nodes have as few processes as the embedded Ray's, unless one is to serve metrics.
    """

    def __init__(self, head_cpus=2, *, serves_metrics=False):
        self._head_cpus = head_cpus
        self._processes = contextlib.nullcontext if serves_metrics else few_processes

    def __enter__(self):
        self._was_connected = ray.is_initialized()
        disconnect()
        ray.shutdown()
        self._environment = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)
        head = {
            "num_cpus": self._head_cpus,
            "num_gpus": 0,
            "memory": NODE_BYTES,
            "object_store_memory": 200_000_000,
            "include_dashboard": False,
        }
        with self._processes():
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False)
        trace_crashes()
        return self

    def add(self, num_gpus=0, memory=NODE_BYTES):
        """Add a raylet."""
        with self._processes():
            return self.cluster.add_node(num_cpus=1, num_gpus=num_gpus, memory=memory, object_store_memory=100_000_000)

    @contextlib.contextmanager
    def apart(self, folder):
        """Add a raylet that has a folder of its own, empty, in the place of this one; skips where that may not be
        done."""
        start = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--address={self.cluster.address}",
            "--num-cpus=2",
            "--num-gpus=0",
        ]
        start += [f"--memory={NODE_BYTES}", "--object-store-memory=100000000", "--disable-usage-stats"]
        script = 'mount -t tmpfs tmpfs "$0" || exit 77; exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(folder), *start]
        before = {node["NodeID"] for node in ray.nodes()}
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until(
                lambda: process.poll() is not None or {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before
            )
            if process.poll() is not None:
                pytest.skip("no right to give a process mounts of its own")
            yield process
        finally:
            for pid in [*descendants(process.pid, with_agents=True), process.pid]:
                kill(pid)
            process.wait()

    def remove(self, node):
        """Kill a raylet, and wait until its process is gone."""
        self.cluster.remove_node(node, allow_graceful=False)

    def clear(self):
        """Let every raylet but the head's say goodbye, and wait until Ray counts none of them, nor any that was killed:
        the next test would."""
        for node in list(self.cluster.worker_nodes):
            self.cluster.remove_node(node)
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)

    def __exit__(self, *_):
        ray.shutdown()
        trace_crashes()
        with contextlib.suppress(ConnectionError):
            self.cluster.shutdown()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._was_connected:
            connect_tests()
