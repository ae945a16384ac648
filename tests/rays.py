"""The Ray that tests share, and others in its place."""

import logging
from contextlib import contextmanager

import pytest
import ray

from genai_ray.cluster import connect, disconnect
from genai_ray.cluster.runtime.node import few_processes
from tests.crashes import trace_crashes

IDLE_WORKERS = ("RAY_num_workers_soft_limit", "8")
"""Processes that Ray keeps. It counts those of actors, and ends an idle one above its CPUs after a second, so that each
test would start its own."""


def connect_tests():
    """Start the embedded Ray of the tests of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*IDLE_WORKERS)
        connect()
    trace_crashes()


@contextmanager
def without_ray():
    """Leave the tests' own Ray, so that others can be started; the tests have one again afterwards."""
    was_connected = ray.is_initialized()
    disconnect()
    ray.shutdown()
    try:
        yield
    finally:
        if was_connected:
            connect_tests()


@contextmanager
def ray_of(num_cpus):
    """Another Ray in the place of the tests' own: so many tasks at once."""
    with without_ray():
        with pytest.MonkeyPatch.context() as patch, few_processes():
            patch.setenv(*IDLE_WORKERS)
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        try:
            yield
        finally:
            ray.shutdown()
