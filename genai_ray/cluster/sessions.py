"""Session actors as a cache sees them: their names, what is known of each, how one starts, how they are found again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from genai_ray.cluster.actor import CONCURRENCY_GROUPS, Description, SessionActor, SessionRequest
from genai_ray.errors import BackendUnavailableError, DeadlineExceededError, GenAIRayError, ResourceExhaustedError

__all__ = ["NAMESPACE", "Entry", "Key", "check_device", "end_sessions", "is_there", "key_of", "session_names", "start_session", "to_load_error"]

NAMESPACE = "genai_ray"
"""Ray namespace of every actor of ours."""

ANSWER_WITHIN_S = 3.0
"""A session that does not say what it is within this is taken for lost: on two busy cores an answer may take over 1 s."""

Key = tuple[str, str, str, str]
"""Model id, backend, precision, device: one entry of the cache."""


@dataclass(slots=True)
class Entry:
    """One session of the cache."""

    request: SessionRequest
    """What was asked for."""
    name: str
    """Name of its actor, never used twice."""
    handle: Any
    """Its actor."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has loaded or failed."""
    error: GenAIRayError | None = None
    """Why it failed."""
    adopted: bool = False
    """Whether an earlier life of this cache started it."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer in the ledger."""


def key_of(request: SessionRequest) -> Key:
    """Return the entry that a request means.

    Args:
        request: Any request.

    Returns:
        Its key.
    """
    return (request.model, request.backend.value, request.precision.value, request.device)


def check_device(device: str) -> None:
    """Refuse a GPU that no node has: Ray would wait for one for ever.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        BackendUnavailableError: If no node has one.
    """
    if device.startswith("cuda") and ray.cluster_resources().get("GPU", 0) < 1:  # type: ignore[no-untyped-call]
        raise BackendUnavailableError(f"asked for device {device!r}", "cpu, since no node of this cluster has an NVIDIA GPU", "Use device='cpu'.")


def session_names() -> list[str]:
    """Return the names of the sessions of all caches.

    Returns:
        Names for ``ray.get_actor``.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE and actor["name"].startswith("session:")]


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


def start_session(entry: Entry, cache: str, reserved_bytes: int) -> None:
    """Start the process of a session; it loads nothing by itself.

    Args:
        entry: The session, whose handle this sets.
        cache: Name of its cache.
        reserved_bytes: Bytes reserved for it.
    """
    options = {"num_gpus": 1} if entry.request.device.startswith("cuda") else {}
    remote: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(SessionActor)  # type: ignore[call-overload]
    actor = remote.options(name=entry.name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, **options)
    entry.handle = actor.remote(cache, entry.request, reserved_bytes)


def to_load_error(exc: Exception, model: str, within_s: float) -> GenAIRayError:
    """Return the error of ours for whatever ended a load.

    Args:
        exc: What was raised.
        model: Id of the model.
        within_s: Seconds that the load had.

    Returns:
        The error itself where it is ours, also when it came through Ray.
    """
    cause = getattr(exc, "cause", None)
    for error in (exc, cause):
        if isinstance(error, GenAIRayError):
            return error
    if isinstance(exc, TimeoutError):
        return DeadlineExceededError(f"{model} did not load within {within_s:.0f} s", do="See whether its node is overloaded.")
    return ResourceExhaustedError(f"the session of {model} ended while it loaded: {str(exc).splitlines()[0]}")
