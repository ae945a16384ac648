"""Session actors as a cache sees them: their names, what is known of each, how one starts, how they are found again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.devices import CPU, GPU_UNITS
from genai_ray.cluster.messages import Description, Key
from genai_ray.cluster.placement import Device, Slot, SlotState
from genai_ray.cluster.session_actor import CONCURRENCY_GROUPS, SessionActor
from genai_ray.errors import DeadlineExceededError, GenAIRayError, ResourceExhaustedError

__all__ = [
    "NAMESPACE",
    "MisplacedError",
    "end_session",
    "end_sessions",
    "is_there",
    "kill_and_wait",
    "session_names",
    "start_session",
    "steer",
    "to_load_error",
]

NAMESPACE = "genai_ray"
"""Ray namespace of every actor of ours."""

ANSWER_WITHIN_S = 3.0
"""A session that does not say what it is within this is taken for lost: on two busy cores an answer may take over 1 s."""

GONE_WITHIN_S = 10.0
"""A killed process is given up for gone after this: a stopped one takes Ray 5 s."""

_LOOK_EVERY_S = 0.02


class MisplacedError(Exception):
    """Ray put something on another device than was meant, which says nothing of the model."""


def session_names() -> list[str]:
    """Return the names of the sessions of all caches.

    Returns:
        Names for ``ray.get_actor``.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [
        actor["name"] for actor in actors if actor["namespace"] == NAMESPACE and actor["name"].startswith("session:")
    ]


def end_sessions(cache: str) -> None:
    """End every session of a cache that cannot do so itself.

    Args:
        cache: Its name.
    """
    for name in session_names():
        with contextlib.suppress(RayError, ValueError):  # gone meanwhile, or silent and not known to be of this cache
            handle = ray.get_actor(name, namespace=NAMESPACE)
            found: Any = ray.get(handle.describe.remote(), timeout=ANSWER_WITHIN_S)
            if found.cache == cache:
                ray.kill(handle)


async def is_there(entry: Entry) -> bool:
    """Tell whether a session that somebody saw dead, silent or retired is there after all.

    Args:
        entry: The session.

    Returns:
        Whether it answers and is not retired; true for one that has not started yet, since nobody can have lost it.
    """
    if not isinstance(entry.handle, ActorHandle):
        return True
    try:
        found: Description = await asyncio.wait_for(entry.handle.describe.remote(), ANSWER_WITHIN_S)
    except (RayError, TimeoutError):
        return False
    return not found.retired


async def kill_and_wait(entry: Entry) -> None:
    """Kill the process of a session, and return when it is gone: its bytes are not free before.

    Args:
        entry: The session.
    """
    ray.kill(entry.handle)
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline:
        try:
            await asyncio.wait_for(entry.handle.recency.remote(), max(deadline - time.monotonic(), 0.1))
        except ActorUnavailableError:
            pass
        except (RayError, TimeoutError):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    is_here = entry.started is not None and entry.started.node == ray.get_runtime_context().get_node_id()
    while is_here and entry.started is not None and _is_running(entry.started.pid) and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_EVERY_S)  # callers are told up to 26 ms before the process is gone


async def end_session(book: SessionTable, entry: Entry) -> None:
    """End the process of a session that failed, wait until it is gone, and strike out its bytes; the entry may try again.

    Args:
        book: Sessions and bytes.
        entry: The session.
    """
    if entry.name in book.ledger.slots:
        book.ledger.mark(entry.name, state=SlotState.RETIRING)  # from here on nobody else strikes it out
    if isinstance(entry.handle, ActorHandle):
        await kill_and_wait(entry)
    book.ledger.release(entry.name)
    book.notify()


def start_session(entry: Entry, cache: str, device: Device, slot: Slot[Key]) -> None:
    """Start the process of a session on a device; it loads nothing by itself.

    Args:
        entry: The session, whose handle this sets.
        cache: Name of its cache.
        device: Where.
        slot: What is reserved for it; with Ray, of the node's memory or as a share of a GPU.
    """
    remote: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(SessionActor)  # type: ignore[call-overload]
    # without events: what Ray notes of each call, for its list of tasks, takes 6 MB of a session in 8,000 calls
    actor = remote.options(
        name=entry.name,
        namespace=NAMESPACE,
        lifetime="detached",
        enable_task_events=False,
        **_on(device, slot.held_bytes),
    )
    keeper = ray.get_runtime_context().current_actor
    entry.handle = actor.remote(
        cache, entry.want.request, entry.want.digest, slot.reserved_bytes, slot.held_bytes, keeper
    )


@contextlib.asynccontextmanager
async def steer(device: Device, held_bytes: int, free: Mapping[Device, int], within_s: float) -> AsyncIterator[None]:
    """Make Ray choose one GPU among those of a node: it takes the fullest that has room, so fuller ones are filled meanwhile.

    Args:
        device: The GPU that is meant.
        held_bytes: What will be reserved of it.
        free: Bytes that Ray has left of every GPU of its node: what is meant to go there and has no process yet is not taken.
        within_s: Most seconds to wait until they are filled.

    Yields:
        While what is started on the node goes there.

    Raises:
        MisplacedError: If a GPU has less left than is thought: somebody else holds some of it, or what has ended does still.
    """
    # Of two that are equally full Ray takes the one that it counts first.
    mine = (free[device], device.device_id)
    fuller = [
        other
        for other, left in free.items()
        if other is not device and held_bytes <= left and (left, other.device_id) < mine
    ]
    ordered = sorted(fuller, key=lambda other: free[other])
    remote: Any = ray.remote(_Filler)
    # One unit is left over: a share is a float on its way to Ray, and one that comes out larger than what is free goes elsewhere.
    fillers = [remote.options(**_on(other, free[other] - other.unit_bytes)).remote() for other in ordered]
    try:
        await _check([other.device_id for other in ordered], fillers, within_s)
        yield
    finally:
        await asyncio.gather(*(_leave(filler) for filler in fillers))


async def _check(meant: list[str], fillers: list[Any], within_s: float) -> None:
    try:
        given: list[str] = await asyncio.wait_for(
            asyncio.gather(*(filler.device_id.remote() for filler in fillers)), within_s
        )
    except TimeoutError:
        raise MisplacedError(f"Ray gave nothing of {meant} within {within_s:.0f} s") from None
    if given != meant:
        raise MisplacedError(f"Ray gave {given} where {meant} were free")


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
        """End: Ray has back what it held before anybody is told, which is not so where it is killed."""
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
    """Return the error of ours for whatever ended a load.

    Args:
        exc: What was raised.
        model: Id of the model.

    Returns:
        The error itself where it is ours, also when it came through Ray.
    """
    if isinstance(exc, MisplacedError):
        return ResourceExhaustedError(
            f"{model}: {exc}",
            "the device where it was placed",
            "See whether another program holds shares of that node's GPUs.",
        )
    cause = getattr(exc, "cause", None)
    for error in (cause, exc):  # Ray raises a class that is both, and has not the constructor of ours
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
