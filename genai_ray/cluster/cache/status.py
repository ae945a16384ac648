"""What ``ModelCache.status`` returns: ``CacheStatus``, with the state of every device and every session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.exceptions import RayError

from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.messages import Retired
from genai_ray.cluster.placement import SlotState
from genai_ray.display import describe_fields, format_bytes, format_count, to_html

__all__ = ["CacheStatus", "DeviceStatus", "PendingStatus", "SessionStatus", "describe_devices", "describe_sessions"]

_ANSWER_WITHIN_S = 10.0


@describe_fields
@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One GPU, or the memory of one node."""

    device: str
    """Its id, unique in the cluster."""
    kind: str
    """``cpu``, or the name of the GPU."""
    node: str
    """The node that it belongs to."""
    used_bytes: int
    """Bytes of the sessions on it."""
    held_bytes: int
    """Bytes that Ray holds for them."""
    free_bytes: int
    """Bytes that a new session may take."""
    budget_bytes: int
    """Most bytes of all sessions on it together."""
    spare_bytes: int = 0
    """Bytes that are kept for its spare process, beside the budget; 0 for none."""
    spare_pid: int | None = None
    """Its spare process, which the next session takes, unless Ray gives it to a task; None if there is none now."""


@dataclass(frozen=True, slots=True)
class _OfKey:
    model_id: str
    """Canonical id, or an absolute path."""
    backend: str
    """The runtime."""
    precision: str
    """The number format."""
    device: str
    """``auto``, ``cpu`` or ``cuda``, as it was asked for."""

    @property
    def key(self) -> tuple[str, ...]:
        """(model, backend, precision, device): sessions of one key are replicas of each other."""
        return self.model_id, self.backend, self.precision, self.device


@dataclass(frozen=True, slots=True)
class PendingStatus(_OfKey):
    """A model that waits for room, or whose load failed a short while ago."""

    reason: str
    """Why it is not loaded."""


@describe_fields
@dataclass(frozen=True, slots=True)
class SessionStatus(_OfKey):
    """One session."""

    placed_on: str
    """Id of its device."""
    name: str
    """Its name."""
    actor: str
    """Name of its actor: that of the first session of its process; empty until it has started."""
    digest: str
    """Hash of the model's file."""
    state: str
    """``loading``, ``ready`` or ``retiring``."""
    bytes: int
    """Bytes that count against the budgets."""
    predicted_bytes: int
    """Bytes that Ray holds for its process: what the first session of it was expected to take."""
    floor_bytes: int
    """Bytes that the caller reserved at the least; 0 for none."""
    pinned: bool
    """Whether it is never evicted."""
    leased: bool
    """Whether a lease keeps it."""
    replicas: int
    """Sessions of its key."""
    hits: int
    """Its uses."""
    queue: int
    """Requests in it."""
    idle_s: float
    """Seconds since its last use."""
    age_s: float
    """Seconds since it became ready, or since it started to load."""
    load_s: float
    """Seconds that loading and warming took."""
    session: Mapping[str, Any]
    """What the session says of itself; empty while it loads or retires, ``{"dead": True}`` if it does not answer."""


@describe_fields
@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The state of a cache at one moment."""

    name: str
    """Name of the cache."""
    pid: int
    """Process of its actor."""
    policy: str
    """Which idle session it evicts first: ``lru`` or ``gdsf``."""
    used_bytes: int
    """Bytes of all sessions."""
    budget_bytes: int
    """Most bytes of all sessions together."""
    loads: int
    """Sessions that were loaded."""
    reuses: int
    """Of these, the sessions that were loaded in the process of an evicted one."""
    adoptions: int
    """Sessions that the cache found when its process started again."""
    evictions: int
    """Sessions that were evicted."""
    failures: int
    """Sessions that did not load."""
    process_bytes: Mapping[str, int]
    """Bytes of a process without a model, by kind of device."""
    devices: tuple[DeviceStatus, ...]
    """Every device."""
    models: tuple[SessionStatus, ...]
    """Every session, least recently used first."""
    history: Mapping[str, Mapping[str, float]]
    """Loads, evictions, hits and age at the last eviction, by model."""
    leases: int
    """Leases in force."""
    waiting: tuple[PendingStatus, ...]
    """Models that wait for room."""
    failing: tuple[PendingStatus, ...]
    """Models whose load failed a short while ago."""

    def __repr__(self) -> str:
        room = f"{format_bytes(self.used_bytes)} of {format_bytes(self.budget_bytes)}"
        counts = ((len(self.models), "session"), (self.loads, "load"), (self.evictions, "eviction"))
        sessions, *others = (format_count(*count) for count in (*counts, (self.failures, "failure")))
        return f"CacheStatus({self.name}: {sessions}, {room}, {', '.join(others)})"

    def _repr_html_(self) -> str:
        rows = [
            (one.model_id, one.backend, one.precision, one.placed_on, one.state, format_bytes(one.bytes), one.hits)
            for one in self.models
        ]
        return to_html(repr(self), rows, ("model", "backend", "precision", "device", "state", "bytes", "hits"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON.

        Returns:
            A dict with the names of the fields, at every level.
        """
        return asdict(self)


def describe_devices(table: SessionTable, spares: Mapping[str, int]) -> tuple[DeviceStatus, ...]:
    """Return the state of the devices.

    Args:
        table: Sessions and bytes.
        spares: Spare processes by node.

    Returns:
        One entry a device.
    """
    return tuple(
        DeviceStatus(
            device=device.device_id,
            kind=device.kind,
            node=device.node,
            used_bytes=device.used_bytes,
            held_bytes=device.held_bytes,
            free_bytes=device.free_bytes,
            budget_bytes=device.budget_bytes,
            spare_bytes=device.spare_bytes,
            spare_pid=spares.get(device.node) if device.spare_bytes else None,
        )
        for device in table.ledger.devices.values()
    )


async def describe_sessions(table: SessionTable) -> tuple[SessionStatus, ...]:
    """Return the state of the sessions, as they say themselves.

    Args:
        table: Sessions and bytes.

    Returns:
        One entry a session, least recently used first.
    """
    records = sorted(table.ledger.slots.values(), key=lambda record: record.last_used_s)
    now_s = time.monotonic()
    return tuple(await asyncio.gather(*(_describe_session(table, record, now_s) for record in records)))


async def _describe_session(table: SessionTable, record: SessionRecord, now_s: float) -> SessionStatus:
    told: dict[str, Any] = {}
    state = record.state
    placed_on = record.device_id
    if state is SlotState.READY:
        try:
            told = await asyncio.wait_for(record.handle.status.remote(record.name), _ANSWER_WITHIN_S)
            told = {} if isinstance(told, Retired) else told  # its process serves another session by now
        except (RayError, TimeoutError):
            told = {"dead": True}
    return SessionStatus(
        *record.key[:4],
        placed_on=placed_on,
        name=record.name,
        actor="" if record.started is None else record.started.actor,
        digest=record.load_request.digest,
        state=state.value,
        bytes=record.reserved_bytes,
        predicted_bytes=record.held_bytes,
        floor_bytes=record.floor_bytes,
        pinned=record.is_pinned,
        leased=table.ledger.is_leased(record.key),
        replicas=len(table.ledger.of_key(record.key)),
        hits=record.uses,
        queue=told.get("in_flight", 0),
        idle_s=round(max(now_s - record.last_used_s, 0.0), 3),
        age_s=round(max(now_s - record.arrived_s, 0.0), 3),
        load_s=round(record.load_s, 3),
        session=told,
    )
