"""The nouns of a ledger: devices, the sessions on them, what a session to come needs, and where it goes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

__all__ = ["Device", "Need", "Plan", "Slot", "SlotState"]

Key = TypeVar("Key", bound=Hashable)


class SlotState(StrEnum):
    """Where a session is in its life."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


@dataclass(slots=True, eq=False)
class Device:
    """One GPU, or the memory of one node."""

    device_id: str
    """Unique in the cluster."""
    node: str
    """The node that it belongs to."""
    kind: str
    """``cpu``, or the name of the GPU."""
    budget_bytes: int
    """Most bytes of all sessions on it together."""
    capacity_bytes: int
    """Bytes that Ray has of it: reservations add up to no more."""
    unit_bytes: int = 1
    """What Ray holds is a multiple of this: of a GPU a ten-thousandth."""
    used_bytes: int = 0
    """Bytes of its sessions."""
    held_bytes: int = 0
    """Bytes that Ray holds for its sessions."""

    @property
    def free_bytes(self) -> int:
        """Bytes that a new session may take; negative where sessions took more than was reserved."""
        return min(self.budget_bytes - self.used_bytes, self.capacity_bytes - self.held_bytes)


@dataclass(slots=True)
class Slot(Generic[Key]):
    """One session in the ledger; changed by the ledger alone."""

    name: str
    """Name of the session, never used twice."""
    key: Key
    """What it is a session of; replicas share it."""
    device_id: str
    """Where it is."""
    reserved_bytes: int
    """Bytes that count against the budgets."""
    held_bytes: int
    """Bytes that Ray holds for it: fixed when it started."""
    floor_bytes: int
    """Bytes that the caller gave; the reservation is never less."""
    arrived_s: float
    """When it started to load, and once it is ready, since when."""
    last_used_s: float
    """Last known use on the owner's clock: a lower bound of the truth."""
    state: SlotState = SlotState.LOADING
    """Where it is in its life."""
    is_pinned: bool = False
    """Whether it must stay."""
    is_surplus: bool = False
    """Whether it is an idle replica beside another."""
    is_online: bool = False
    """Whether a request that somebody waits for used it last."""
    uses: int = 0
    """Known uses."""
    load_s: float = 0.0
    """Seconds that it took to load and warm."""
    worth: float = 0.0
    """What it is worth to the policy ``gdsf``."""


@dataclass(frozen=True, slots=True)
class Need(Generic[Key]):
    """What a session to come asks for."""

    key: Key
    """What it is a session of."""
    num_bytes: int
    """Bytes that it takes."""
    kinds: frozenset[str] | None = None
    """Kinds of devices that will do; None for any."""
    node: str | None = None
    """Node that is preferred where there is free room on it."""
    avoid: frozenset[str] = frozenset()
    """Devices that will not do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a session goes."""

    device_id: str
    """The device."""
    victims: tuple[str, ...] = ()
    """Names of the sessions that go for it, first to go first."""
