"""The processes of sessions, as actors of Ray: how one starts on the chosen device, ends, and is found again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from genai_ray.cluster.cache.session_table import SessionProcesses, SessionRecord
from genai_ray.cluster.devices import CPU, GPU_UNITS, LOGICAL_GPU, Started
from genai_ray.cluster.messages import Description, Recency
from genai_ray.cluster.placement import Device
from genai_ray.cluster.runtime.workers import process_ids, start_process
from genai_ray.cluster.session_actor import CONCURRENCY_GROUPS, SessionActor
from genai_ray.errors import DeadlineExceededError, GenAIRayError, ResourceExhaustedError

__all__ = [
    "ANSWER_WITHIN_S",
    "CLOSE_WITHIN_S",
    "NAMESPACE",
    "REOPEN_WITHIN_S",
    "MisplacedError",
    "RaySessions",
    "end_sessions",
    "fuller_gpus",
    "is_there",
    "recency_of",
    "session_names",
    "start_session",
    "steer",
    "to_load_error",
]

NAMESPACE = "genai_ray"
"""Ray namespace of every actor of ours."""

ANSWER_WITHIN_S = 3.0
"""A session that does not answer within this is taken for lost: on two busy cores an answer may take over 1 s."""

CLOSE_WITHIN_S = 10.0
"""A session that does not close within this is ended: it gives its memory back, which takes a model of 1 GB 0.2 s."""

REOPEN_WITHIN_S = 10.0
"""A process that does not become that of another session within this is ended."""

START_WITHIN_S = 60.0
"""A process that does not report within this is killed and placed again."""

GONE_WITHIN_S = 10.0
"""A killed process is taken for gone after this: a stopped one takes Ray 5 s."""

KEEP_SPARE_S = 600
"""Ray keeps a spare process at least this long; it is how long one stays after its cache has ended."""

_LOOK_EVERY_S = 0.02
_RETRY_S = 0.1


class MisplacedError(Exception):
    """Ray started something on another device than was meant, which says nothing of the model."""


def session_names() -> list[str]:
    """Return the names of the actors of all caches' sessions.

    Returns:
        Names for ``ray.get_actor``: each is that of the first session of its process.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [
        actor["name"] for actor in actors if actor["namespace"] == NAMESPACE and actor["name"].startswith("session:")
    ]


def end_sessions(cache: str) -> None:
    """End every session of a cache that cannot do so itself.

    Args:
        cache: Name of the cache.
    """
    for name in session_names():
        with contextlib.suppress(RayError, ValueError):  # gone meanwhile, or silent and not known to be of this cache
            handle = ray.get_actor(name, namespace=NAMESPACE)
            found: Any = ray.get(handle.describe.remote(), timeout=ANSWER_WITHIN_S)
            if found.cache == cache:
                ray.kill(handle)


async def is_there(record: SessionRecord) -> bool:
    """Tell whether a session that a client saw dead, silent or retired is there after all.

    Args:
        record: The session.

    Returns:
        Whether it answers and is not retired; true for one that has not started yet, since nobody can have lost it.
    """
    if record.handle is None:
        return True
    try:
        found: Description = await asyncio.wait_for(record.handle.describe.remote(), ANSWER_WITHIN_S)
    except (RayError, TimeoutError):
        return False
    return found.name == record.name and not found.retired


async def recency_of(record: SessionRecord) -> Recency:
    """Ask a session for its recency; ask again while Ray cannot reach it, since its process may be alive.

    Args:
        record: The session; it has started.

    Returns:
        What it says.

    Raises:
        RayError: If it is dead.
    """
    while True:
        try:
            recency: Recency = await record.handle.recency.remote()
        except ActorUnavailableError:
            await asyncio.sleep(_RETRY_S)
        else:
            return recency


class RaySessions(SessionProcesses):
    """The processes of the sessions of one cache: actors of Ray.

    Args:
        cache: Name of the cache.
    """

    def __init__(self, cache: str) -> None:
        self._cache = cache

    @override
    async def start(self, record: SessionRecord, device: Device, free: Mapping[Device, int]) -> Started:
        async with steer(device, record.held_bytes, free, START_WITHIN_S):
            start_session(record, self._cache, device)
            started: Started = await asyncio.wait_for(record.handle.start.remote(), START_WITHIN_S)
            return started

    @override
    def kill(self, record: SessionRecord) -> None:
        if record.handle is not None:
            ray.kill(record.handle)

    @override
    async def kill_and_wait(self, record: SessionRecord) -> None:
        if record.handle is None:
            return
        ray.kill(record.handle)
        deadline = time.monotonic() + GONE_WITHIN_S
        while time.monotonic() < deadline:
            try:
                await asyncio.wait_for(record.handle.recency.remote(), max(deadline - time.monotonic(), 0.1))
            except ActorUnavailableError:
                pass
            except (RayError, TimeoutError):
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        started = record.started
        if started is None or started.node != ray.get_runtime_context().get_node_id():
            return
        while _is_running(started.pid) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_EVERY_S)  # callers are told up to 26 ms before the process is gone

    @override
    async def process_ids(self, node: str) -> frozenset[int]:
        return await asyncio.to_thread(process_ids, node)

    @override
    async def start_spare(self, node: str) -> None:
        await asyncio.to_thread(start_process, node, KEEP_SPARE_S)


def start_session(record: SessionRecord, cache: str, device: Device) -> None:
    """Start a new process for a session on a device; it loads nothing by itself.

    Args:
        record: The session, with the bytes that are reserved for it; its handle is set.
        cache: Name of its cache.
        device: Where; Ray reserves the node's memory, or a share of a GPU.
    """
    remote: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(SessionActor)  # type: ignore[call-overload]
    # without events: what Ray notes of each call, for its list of tasks, takes 6 MB of a session in 8,000 calls
    actor = remote.options(
        name=record.name,
        namespace=NAMESPACE,
        lifetime="detached",
        enable_task_events=False,
        **_on(device, record.held_bytes),
    )
    keeper = ray.get_runtime_context().current_actor
    record.handle = actor.remote(
        cache, record.load_request, record.reserved_bytes, record.held_bytes, keeper, device.kind == LOGICAL_GPU
    )


@contextlib.asynccontextmanager
async def steer(device: Device, held_bytes: int, free: Mapping[Device, int], within_s: float) -> AsyncIterator[None]:
    """Make Ray choose one GPU of a node: Ray takes the fullest that has room, so fuller ones are filled meanwhile.

    Args:
        device: The GPU that is meant.
        held_bytes: What will be reserved of it.
        free: Bytes that Ray has left of every GPU of its node; a session without a process yet takes none.
        within_s: Most seconds to wait until they are filled.

    Yields:
        Nothing; inside the block, Ray puts new actors of the node on that GPU.

    Raises:
        MisplacedError: If a GPU has less left than ``free`` says: another program holds some of it, or a session that
            has just ended does.
    """
    ordered = fuller_gpus(device, held_bytes, free)
    remote: Any = ray.remote(_Filler)
    # One unit is left over: a share is a float on its way to Ray; if it is rounded up, Ray takes another GPU.
    fillers = [remote.options(**_on(other, free[other] - other.unit_bytes)).remote() for other in ordered]
    try:
        await _check([other.device_id for other in ordered], fillers, within_s)
        yield
    finally:
        await asyncio.gather(*(_leave(filler) for filler in fillers))


def fuller_gpus(device: Device, held_bytes: int, free: Mapping[Device, int]) -> list[Device]:
    """Tell which GPUs Ray would take before one of the same node.

    Args:
        device: The GPU that is meant.
        held_bytes: What will be reserved of it.
        free: Bytes that Ray has left of every GPU of its node.

    Returns:
        Those that have room and are fuller, the fullest first; none on a node with one GPU, or for a node's memory.
    """
    # Of two that are equally full Ray takes the one that it counts first.
    mine = (free[device], device.device_id)
    fuller = [
        other
        for other, left in free.items()
        if other is not device and held_bytes <= left and (left, other.device_id) < mine
    ]
    return sorted(fuller, key=lambda other: free[other])


async def _check(meant: list[str], fillers: list[Any], within_s: float) -> None:
    try:
        given: list[str] = await asyncio.wait_for(
            asyncio.gather(*(filler.device_id.remote() for filler in fillers)), within_s
        )
    except TimeoutError:
        raise MisplacedError(f"Ray gave nothing of {meant} within {within_s:.0f} s") from None
    if given != meant:
        raise MisplacedError(f"Ray gave {given} although {meant} were free")


async def _leave(filler: Any) -> None:
    try:
        await asyncio.wait_for(filler.leave.remote(), ANSWER_WITHIN_S)
    except RayError:
        pass
    except TimeoutError:
        ray.kill(filler)


class _Filler:
    """Holds what is free of a GPU for a moment."""

    def device_id(self) -> str:
        """Return which one."""
        return f"{ray.get_runtime_context().get_node_id()[:12]}/gpu{ray.get_gpu_ids()[0]}"

    def leave(self) -> None:
        """End; unlike after a kill, Ray has its share back before the caller is told."""
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


def _on(device: Device, held_bytes: int) -> dict[str, Any]:
    """Return the options of an actor that reserves bytes of a device and no CPU."""
    options: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(device.node, soft=False),
    }
    if device.kind == CPU:
        return options | {"memory": held_bytes}
    return options | {"num_gpus": held_bytes // device.unit_bytes / GPU_UNITS}


def to_load_error(exc: Exception, model: str) -> GenAIRayError:
    """Return our error for what ended a load.

    Args:
        exc: What was raised.
        model: Id of the model.

    Returns:
        The error itself if it is ours, also when it came through Ray.
    """
    if isinstance(exc, MisplacedError):
        return ResourceExhaustedError(
            f"{model}: {exc}",
            "the device where it was placed",
            "See whether another program holds shares of that node's GPUs.",
        )
    cause = getattr(exc, "cause", None)
    for error in (cause, exc):  # Ray raises a class that is both, without our constructor
        if isinstance(error, GenAIRayError):
            return error
    if isinstance(exc, TimeoutError):
        return DeadlineExceededError(f"{model} did not load in time", do="See whether its node is overloaded.")
    return ResourceExhaustedError(f"the session of {model} ended while it loaded: {str(exc).splitlines()[0]}")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
