"""What travels between clients, the cache and its sessions: requests, keys, answers; plain values, all picklable."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from genai_ray.cluster.devices import Started
from genai_ray.display import describe_fields
from genai_ray.fields import refuse_unknown
from genai_ray.session import SessionLimits, Shapes
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = [
    "LEASE_TTL_S",
    "Acquired",
    "Caller",
    "Description",
    "Key",
    "LeaseRequest",
    "LoadRequest",
    "Recency",
    "Replica",
    "RetentionInfo",
    "Retired",
    "SessionRequest",
    "isolate",
    "key_of",
]

LEASE_TTL_S = 15.0
"""A lease whose holder has not been heard of for this long is over."""


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Which session a client asks for."""

    model: str
    """Canonical id, or an absolute path."""
    backend: ModelBackend
    """The runtime."""
    precision: ModelPrecision
    """The number format."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    floor_bytes: int | None = None
    """Bytes to reserve at the least; the session keeps to them if it can."""
    max_frame: tuple[int, int] | None = None
    """(height, width) of the largest frame."""
    max_batch: int | None = None
    """Most frames in one runtime call."""
    tile_size_px: int | None = None
    """Longest side of a tile; 0 for never."""
    device_kinds: tuple[str, ...] = ()
    """Words of which the kind of the device must have one; empty for any."""
    warmup_shapes: tuple[Shapes, ...] = ()
    """Shapes of the model's own tensors that it is warmed with."""
    max_replicas: int | None = None
    """Most replicas that the cache makes by itself; None for as many as free memory allows."""
    _alone: str = ""
    """Not empty if the session is for one call only, which is suspected of ending its process; see ``isolate``."""

    def limits(self, max_bytes: int | None = None) -> SessionLimits:
        """Return what the session may take.

        Args:
            max_bytes: Bytes that it may add to its process; None for automatic.

        Returns:
            The limits.
        """
        return SessionLimits(
            max_bytes=max_bytes,
            max_frame=self.max_frame,
            max_batch=self.max_batch,
            tile_size_px=self.tile_size_px,
            warmup_shapes=self.warmup_shapes,
        )


class Key(NamedTuple):
    """Which model a session runs, and how; the replicas of a model share it.

    Args:
        model: Canonical id, or an absolute path.
        backend: The runtime.
        precision: The number format.
        device: ``auto``, ``cpu`` or ``cuda``, and the kinds of devices, if any were named.
        alone: Not empty for a session of a single request.
    """

    model: str
    """Canonical id, or an absolute path."""
    backend: str
    """The runtime."""
    precision: str
    """The number format."""
    device: str
    """``auto``, ``cpu`` or ``cuda``, and the kinds of devices, if any were named."""
    alone: str = ""
    """Not empty for a session of a single request."""

    def __str__(self) -> str:
        return self.model


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a client asks of the cache."""

    request: SessionRequest
    """Which session."""
    digest: str = ""
    """Hash of the model's file, under which its measured bytes are remembered."""
    predicted_bytes: int = 0
    """What the model adds to a process, by its graph."""
    node: str | None = None
    """Node of the client: preferred if it has room."""
    is_explicit: bool = False
    """Whether the client asked to load this model, rather than for a result."""
    is_online: bool = False
    """Whether somebody waits for it."""
    within_s: float = 3600.0
    """When the client gives up."""


def key_of(request: SessionRequest) -> Key:
    """Return the key that a request means.

    Args:
        request: Any request.

    Returns:
        Its key.
    """
    device = f"{request.device} {','.join(request.device_kinds)}".strip() if request.device_kinds else request.device
    return Key(request.model, request.backend.value, request.precision.value, device, request._alone)


def isolate(request: SessionRequest) -> SessionRequest:
    """Return the same request, for a session that no other call uses.

    Args:
        request: Any request.

    Returns:
        A request with an entry of its own.
    """
    return replace(request, _alone=uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What the holder of a lease asks for; it repeats it to renew the lease, since the cache may have restarted."""

    lease_id: str
    """Unique."""
    load_requests: tuple[LoadRequest, ...]
    """The models of the chain."""
    replicas: int | None = 1
    """Number of devices that each model is loaded on; None for every device."""
    follows_file: bool = False
    """Whether it ends when a model's file is replaced; its holder then takes a new lease, of the new file."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One session, as a client sees it."""

    name: str
    """Its name."""
    handle: Any
    """Its actor."""
    node: str
    """Node that it is on."""
    queue: int = 0
    """Requests in it when it was asked."""


@dataclass(frozen=True, slots=True)
class Acquired:
    """What a client gets."""

    replicas: tuple[Replica, ...]
    """The sessions of the key, one or more."""
    num_bytes: int
    """Bytes that the largest of them takes."""
    floor_bytes: int | None
    """Bytes that were given when it was loaded."""


class Caller(NamedTuple):
    """Which session a call means, and for whom it computes.

    Args:
        session: Name of the session; its process may serve another one by then.
        is_online: Whether somebody waits for the result.
        tag: Whose progress the frames count as; None if nobody asks.
    """

    session: str
    """Name of the session; its process may serve another one by then."""
    is_online: bool = False
    """Whether somebody waits for the result."""
    tag: str | None = None
    """Whose progress the frames count as; None if nobody asks."""


@dataclass(frozen=True, slots=True)
class Retired:
    """What a session answers when it has been retired: acquire another one."""


@dataclass(frozen=True, slots=True)
class Recency:
    """How long a session has been idle."""

    idle_s: float
    """Seconds since the end of the last use; 0 while one is in flight."""
    use_count: int
    """Uses so far."""
    in_flight: int
    """Uses at the moment."""
    is_online: bool
    """Whether somebody waited for the last one."""
    num_bytes: int
    """Bytes that the session takes by now."""


@dataclass(frozen=True, slots=True)
class RetentionInfo:
    """Why a session is not evicted."""

    is_pinned: bool = False
    """Whether somebody pinned it."""
    leases: tuple[str, ...] = ()
    """Ids of the leases that it is in."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a session tells a cache that has restarted and finds it."""

    cache: str
    """Name of the cache that started it."""
    name: str
    """Its own name, which is not that of its actor if the process served others before."""
    request: SessionRequest
    """What it is a session of."""
    digest: str
    """Hash of the model's file."""
    started: Started
    """Where it is."""
    reserved_bytes: int
    """Bytes that counted against the budgets when it started."""
    held_bytes: int
    """Bytes that Ray holds for its process."""
    measured_bytes: int | None
    """Bytes measured when it had loaded, or when it was closed; None while it loads."""
    load_s: float
    """Seconds that it took to load and warm."""
    retention: RetentionInfo
    """Why it is not evicted."""
    retired: bool
    """Whether it takes no new requests, and ends when those in flight are done."""
    predecessor: str | None = None
    """Name of the session whose process it has taken over; None if its process is its own."""
    inherited_bytes: int = 0
    """Bytes that its process kept of earlier sessions, beyond those of a new one."""
