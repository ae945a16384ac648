"""What the cluster's nodes have for sessions: memory for those on a CPU, GPUs and their bytes as NVML tells them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.backends import resolve_device
from genai_ray.backends.gpu import count_gpus, read_gpu, visible_gpus
from genai_ray.cluster.placement import Device
from genai_ray.errors import BackendUnavailableError, ConfigError, ResourceExhaustedError
from genai_ray.session import processor_kind
from genai_ray.types import ModelBackend

__all__ = [
    "CPU",
    "GPU_UNITS",
    "LOGICAL_GPU",
    "SPARE_BYTES",
    "Started",
    "allowed_kinds",
    "device_of",
    "find_gpus",
    "hold_memory",
    "memory_of",
    "name_nodes",
    "nodes_alive",
    "uses_gpu",
    "wants_gpu",
]

_log = logging.getLogger(__name__)

CPU = "cpu"
"""Kind of the device that a node's memory is."""

LOGICAL_GPU = "logical-gpu"
"""Kind of a GPU that Ray only counts: its sessions compute on the CPU (``CacheOptions.logical_gpu_bytes``)."""

CPU_SHARE = 0.9
"""Most that sessions may take of a node's ``memory``, the resource of Ray."""

CPU_DEFAULT_SHARE = 0.6
"""The same for a cache that was given no budget: the rest is for the tasks that decode and encode."""

GPU_SHARE = 0.95
"""Of a GPU's bytes, the most that sessions may take."""

MEMORY_UNIT_BYTES = 10_000_000
"""Ray holds a multiple of this for a session on a CPU, so that sessions of about one size can use the same process:
what is measured of one model differs by some MB from load to load. A session takes at least 80 MB, so that the rounding
takes no more than what ``CPU_SHARE`` leaves of a node's memory."""

SPARE_BYTES = 100_000_000
"""What counts for a process that is kept ready: with the imports of a session it takes about 80 MB. Always the same, so
that a cache that starts again has the budgets that it had."""

GPU_UNITS = 10_000
"""Parts of a GPU: the smallest share that Ray can reserve is one of them."""

_PROBE_WITHIN_S = 60.0

HOLD_WITHIN_S = 10
"""Seconds in which memory must become free that ``hold_memory`` reserves."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the process of a session says of itself before it loads anything."""

    node: str
    """Node that it runs on."""
    gpu: str | None
    """The GPU that Ray gave it."""
    pid: int
    """Its process."""
    process_bytes: int
    """Bytes that it takes without a model: interpreter, libraries, Ray."""
    actor: str = ""
    """Name of its actor, which is that of its first session."""
    processor: str = ""
    """Kind of what it computes on, from ``name_processor``."""


def nodes_alive() -> dict[str, dict[str, float]]:
    """Return the nodes of the cluster.

    Returns:
        Ray's resources by node id.
    """
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def name_nodes() -> dict[str, str]:
    """Return the names of the cluster's machines.

    Returns:
        The host name by node id, also of nodes that have died.
    """
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}  # type: ignore[no-untyped-call]


def memory_of(node: str, resources: dict[str, float], has_budget: bool, spare_bytes: int = 0) -> list[Device]:
    """Return the device that a node's memory is.

    Args:
        node: Its id.
        resources: What Ray has of it.
        has_budget: Whether the cache was given a budget for the whole cluster.
        spare_bytes: Bytes of a process that is kept ready there.

    Returns:
        The device; none if Ray has no memory there.
    """
    memory = int(resources.get("memory", 0))
    share = CPU_SHARE if has_budget else CPU_DEFAULT_SHARE
    unit = MEMORY_UNIT_BYTES
    capacity = memory // unit * unit
    if not capacity:
        return []
    budget = max(int(memory * share) - spare_bytes, 0)
    return [Device(f"{node[:12]}/{CPU}", node, CPU, budget, capacity, unit, spare_bytes=spare_bytes)]


@contextlib.contextmanager
def hold_memory(num_bytes: int) -> Iterator[None]:
    """Reserve memory of this node in Ray for a block, so that no session or task is placed there meanwhile.

    Args:
        num_bytes: Bytes.

    Yields:
        None.

    Raises:
        ResourceExhaustedError: If the node has less, or sessions and tasks hold the rest.
    """
    node = str(ray.get_runtime_context().get_node_id())
    most = int(nodes_alive().get(node, {}).get("memory", 0))
    what = f"{num_bytes} bytes of memory on node {node[:12]} for inspecting a model"
    if num_bytes > most:
        do = "Save a spec beside the model."
        raise ResourceExhaustedError(what, f"at most {most}, Ray's memory of this node", do)
    group = placement_group([{"memory": num_bytes}], bundle_label_selector=[{"ray.io/node-id": node}])
    try:
        if not group.wait(HOLD_WITHIN_S):
            raise ResourceExhaustedError(
                what, f"what sessions and tasks leave of {most}", "Evict models, or save a spec beside the model."
            )
        yield
    finally:
        remove_placement_group(group)


def find_gpus(node: str, resources: dict[str, float], logical_gpu_bytes: int | None = None) -> list[Device]:
    """Return the GPUs that Ray counts on a node; ask the node what they are.

    Args:
        node: Its id.
        resources: What Ray has of it.
        logical_gpu_bytes: Every GPU is a logical one of so many bytes; None for real ones.

    Returns:
        Every GPU whose bytes are known; the node logs what is wrong with others.

    Raises:
        RayError: If the node does not answer.
    """
    count = int(resources.get("GPU", 0))
    if logical_gpu_bytes is not None:
        found = [(str(index), LOGICAL_GPU, logical_gpu_bytes) for index in range(count)]
    elif count:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        probe: Any = ray.remote(_probe_gpus).options(num_cpus=0, scheduling_strategy=strategy, max_retries=2)
        found = ray.get(probe.remote(count), timeout=_PROBE_WITHIN_S)
    else:
        found = []
    devices = []
    for gpu, kind, num_bytes in found:
        unit = num_bytes // GPU_UNITS
        devices.append(Device(f"{node[:12]}/gpu{gpu}", node, kind, int(num_bytes * GPU_SHARE), unit * GPU_UNITS, unit))
    return devices


def wants_gpu(device: str, backend: ModelBackend, *, has_gpus: bool) -> bool:
    """Tell whether a request means a GPU.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; ``auto`` means a GPU if there is one that the backend can use.
        backend: The runtime.
        has_gpus: Whether there is one.

    Returns:
        Whether it does; for ``cuda`` also if there is none.

    Raises:
        ConfigError: If the device is none of these words.
    """
    if device == "auto":
        return has_gpus and backend in (ModelBackend.ONNX, ModelBackend.TENSORRT)
    return resolve_device(device, backend) != CPU


def uses_gpu(device: str, backend: ModelBackend) -> bool:
    """Tell whether a request means a GPU on the cluster as it is.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        backend: The runtime.

    Returns:
        Whether it does; for ``cuda`` also if there is none.

    Raises:
        ConfigError: If the device is none of these words.
    """
    return wants_gpu(device, backend, has_gpus=any(resources.get("GPU", 0) for resources in nodes_alive().values()))


def allowed_kinds(
    devices: Iterable[Device], device: str, backend: ModelBackend, names: tuple[str, ...] = ()
) -> frozenset[str]:
    """Return the kinds of devices that a request may go to.

    Args:
        devices: What the cluster has.
        device: ``auto``, ``cpu`` or ``cuda``; ``auto`` means GPUs if the cluster has one that the backend can use.
        backend: The runtime.
        names: Words of which the kind must have one (``L4``, ``A10``); none for any.

    Returns:
        The kinds; empty if the cluster has none.

    Raises:
        BackendUnavailableError: If a GPU is asked for and no node has one.
        ConfigError: If the device is none of these words.
    """
    kinds = {found.kind for found in devices}
    gpus = kinds - {CPU}
    is_gpu = wants_gpu(device, backend, has_gpus=bool(gpus))
    if is_gpu and not gpus:
        raise BackendUnavailableError(
            f"asked for device {device!r}", "cpu, since no node of this cluster has an NVIDIA GPU", "Use device='cpu'."
        )
    wanted = gpus if is_gpu else kinds & {CPU}
    if not names:
        return frozenset(wanted)
    if unknown := [name for name in names if not name.strip()]:
        raise ConfigError(f"device kind {unknown[0]!r}", f"a part of one of {sorted(kinds)}")
    return frozenset(kind for kind in kinds if any(name.lower() in kind.lower() for name in names))


def device_of(started: Started, devices: Iterable[Device]) -> str | None:
    """Return the device that a session really got.

    Args:
        started: What it says of itself.
        devices: What the cluster has.

    Returns:
        Its id; None if the cluster has no such device any more.
    """
    wanted = f"{started.node[:12]}/{CPU if started.gpu is None else f'gpu{started.gpu}'}"
    return wanted if any(device.device_id == wanted for device in devices) else None


def name_processor(gpu: str | None) -> str:
    """Name the kind of what this process computes on.

    Args:
        gpu: Index or UUID of its GPU; None for a CPU.

    Returns:
        ``processor_kind`` of the CPU, or of the GPU's name; ``gpu`` counts as the name if NVML does not tell it.
    """
    if gpu is None:
        return processor_kind("cpu")
    try:
        return processor_kind(read_gpu(gpu).name)
    except BackendUnavailableError:
        return processor_kind("gpu")


def _probe_gpus(count: int) -> list[tuple[str, str, int]]:
    """Return (id, kind, bytes) of every GPU that Ray counts on this node; runs there."""
    names = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES") or None, count_gpus())[:count]
    found = []
    for name in names:
        try:
            state = read_gpu(name)
        except BackendUnavailableError as exc:
            _log.warning("GPU %s of this node does not answer: no session is placed there: %s", name, exc)
        else:
            found.append((name, state.name, state.total_bytes))
    if len(names) < count:
        _log.warning(
            "Ray counts %d GPUs on this node and NVML finds %d: no session is placed on others", count, len(names)
        )
    return found
