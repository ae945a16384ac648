"""A real cluster of several raylets on this machine, with GPUs that only Ray's books know."""

import contextlib
import os

import ray
from ray.cluster_utils import Cluster

from genai_ray.cluster import connect, disconnect
from genai_ray.cluster.devices import LOGICAL_GPU_BYTES

GPU_BYTES = 1_000_000_000
NODE_BYTES = 3_000_000_000
ENVIRONMENT = {
    LOGICAL_GPU_BYTES: str(GPU_BYTES),
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """Takes the place of the embedded Ray of the other tests while it is open."""

    def __enter__(self):
        self._was_connected = ray.is_initialized()
        disconnect()
        ray.shutdown()
        self._environment = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)
        head = {"num_cpus": 2, "num_gpus": 0, "memory": NODE_BYTES, "object_store_memory": 200_000_000, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False)
        return self

    def add(self, num_gpus=0, memory=NODE_BYTES):
        """Add a raylet."""
        return self.cluster.add_node(num_cpus=1, num_gpus=num_gpus, memory=memory, object_store_memory=100_000_000)

    def remove(self, node):
        """Kill a raylet, and wait until its process is gone."""
        self.cluster.remove_node(node, allow_graceful=False)

    def clear(self):
        """Remove every raylet but the head's."""
        for node in list(self.cluster.worker_nodes):
            self.remove(node)

    def __exit__(self, *_):
        ray.shutdown()
        with contextlib.suppress(ConnectionError):
            self.cluster.shutdown()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._was_connected:
            connect()
