"""What a cache says of itself, held against what Ray and the operating system say."""

import time
from pathlib import Path

import pytest
import ray

from genai_ray.cluster.devices import CPU
from tests.nodes import GPU_BYTES
from tests.processes import crowding, wait_until

TRUE_WITHIN_S = 5.0
"""From Ray's report of a death until the ledger equals what is there."""


def report(name):
    """Return Ray's own record of an actor."""
    return max(
        (actor for actor in ray._private.state.actors().values() if actor["Name"] == name),
        key=lambda actor: actor["StartTime"],
    )


def is_reported(name, restarts):
    """Tell whether Ray knows of a death: of a session, or of a cache that it starts again."""
    found = report(name)
    return found["State"] == "DEAD" or found["NumRestarts"] > restarts


def held_by_ray():
    """Return the bytes of nodes' memory, and those of logical GPUs, that Ray holds for somebody."""
    all_of, free = ray.cluster_resources(), ray.available_resources()
    return tuple((all_of.get(name, 0) - free.get(name, 0)) * unit for name, unit in (("memory", 1), ("GPU", GPU_BYTES)))


def is_true(cache):
    """Tell whether devices, sessions and their bytes are those that are there: by Ray's actors, nodes and resources,
    and by processes."""
    status = cache.status()
    kinds = {device.device: device.kind for device in status.devices}
    actors = {
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("session:")
    }
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    pids = [entry.session.get("pid") for entry in status.models if entry.state == "ready"]
    held = [
        sum(entry.predicted_bytes for entry in status.models if (kinds[entry.placed_on] == CPU) == is_cpu)
        for is_cpu in (True, False)
    ]
    return (
        {entry.actor for entry in status.models} == actors
        and {device.node for device in status.devices} == alive
        and all(pid is not None and Path(f"/proc/{pid}").exists() for pid in pids)
        and sum(entry.bytes for entry in status.models)
        == sum(device.used_bytes for device in status.devices)
        == status.used_bytes
        and list(held_by_ray()) == pytest.approx(held, abs=1e5)
    )


def wait_until_true(cache, is_dead):
    """Wait until Ray reports a death, then for the truth; fails where that takes longer than the cache promises."""
    wait_until(is_dead)
    reported_s = time.monotonic()
    wait_until(lambda: is_true(cache))
    took_s = time.monotonic() - reported_s
    assert took_s < TRUE_WITHIN_S * (1.0 if took_s < TRUE_WITHIN_S else crowding())
