"""What a ledger holds: devices, sessions with their place in the order of eviction, and what new sessions need."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

__all__ = ["Device", "EvictionPolicy", "Need", "Order", "Plan", "Record", "Slot", "SlotState", "gdsf_worth"]

Order = tuple[bool, float, bool, float]
"""A sort key of sessions: the smallest is evicted first."""


class EvictionPolicy(StrEnum):
    """Which idle session the cache evicts first."""

    LRU = "lru"
    """The one that was not used for the longest time."""
    GDSF = "gdsf"
    """The one whose return costs least for what it takes: GreedyDual-Size with frequency."""


class SlotState(StrEnum):
    """Where a session is in its life."""

    WAITING = "waiting"
    """It has no place."""
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
    """Bytes that Ray has of it: what it holds for sessions is never more."""
    unit_bytes: int = 1
    """What Ray holds is a multiple of this: of a GPU a ten-thousandth."""
    used_bytes: int = 0
    """Bytes of its sessions."""
    held_bytes: int = 0
    """Bytes that Ray holds for its sessions."""
    spare_bytes: int = 0
    """Bytes of its spare process, which the budget leaves free."""

    @property
    def free_bytes(self) -> int:
        """Bytes that a new session may take; negative if sessions took more than was reserved."""
        return min(self.budget_bytes - self.used_bytes, self.capacity_bytes - self.held_bytes)

    def held_for(self, num_bytes: int) -> int:
        """Return what Ray holds for a new process.

        Args:
            num_bytes: What its session takes.

        Returns:
            The bytes in whole units.
        """
        return -(-num_bytes // self.unit_bytes) * self.unit_bytes


@dataclass(slots=True, eq=False, kw_only=True)
class Slot:
    """One session, as far as placement needs to know it; only the ledger changes it."""

    name: str
    """Name of the session, never used twice."""
    key: Hashable
    """Its model, runtime, precision and device; the replicas of a model share it."""
    state: SlotState = SlotState.WAITING
    """Where it is in its life."""
    device_id: str = ""
    """Where it is; empty while it has no place."""
    reserved_bytes: int = 0
    """Bytes that count against the budgets."""
    held_bytes: int = 0
    """Bytes that Ray holds for it: fixed when it started."""
    floor_bytes: int = 0
    """Bytes that the caller gave; the reservation is never less."""
    arrived_s: float = 0.0
    """When it started to load, and once it is ready, since when."""
    last_used_s: float = 0.0
    """Last known use on the owner's clock: a lower bound of the truth."""
    is_pinned: bool = False
    """Whether it is never evicted."""
    is_surplus: bool = False
    """Whether it is an idle replica beside another."""
    is_online: bool = False
    """Whether a request that somebody waits for used it last."""
    uses: int = 0
    """Known uses."""
    load_s: float = 0.0
    """Seconds that it took to load and warm."""
    came_in_s: float = 0.0
    """Seconds from its reservation until it was ready: the start of its process, if it has a new one, and its load."""
    worth: float = 0.0
    """What it is worth to the policy ``gdsf``."""

    @property
    def is_placed(self) -> bool:
        """Whether it is in the ledger, and its bytes count."""
        return self.state is not SlotState.WAITING

    @property
    def is_retiring(self) -> bool:
        """Whether its process is being ended."""
        return self.state is SlotState.RETIRING

    def order(self, policy: EvictionPolicy) -> Order:
        """Return its place in the order of eviction.

        Args:
            policy: By what.

        Returns:
            A sort key, smallest first: idle replicas; of two used in the same second the one that nobody waited for.
        """
        coarse = math.floor(self.last_used_s) if policy is EvictionPolicy.LRU else self.worth
        return not self.is_surplus, coarse, self.is_online, self.last_used_s


Record = TypeVar("Record", bound=Slot)


@dataclass(frozen=True, slots=True)
class Need:
    """What a new session asks for."""

    key: Hashable
    """What it is a session of."""
    num_bytes: int
    """Bytes that it takes."""
    kinds: frozenset[str] | None = None
    """Kinds of devices that will do; None for any."""
    node: str | None = None
    """Node that is preferred if it has free room."""
    avoid: frozenset[str] = frozenset()
    """Devices that will not do."""
    spare_bytes: int = 0
    """Of its bytes, those beyond what it is expected to take, since its caller gave more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a new session is placed."""

    device_id: str
    """The device."""
    victims: tuple[str, ...] = ()
    """Names of the sessions that are evicted for it, in this order."""


def gdsf_worth(inflation: float, uses: int, load_s: float, num_bytes: int) -> float:
    """Return the worth of a session: GreedyDual-Size with frequency (Cherkasova, HPL-98-69R1, 1998), L + F * C / S.

    Args:
        inflation: L, the worth of the session that was evicted last: what is not used loses against it as time goes.
        uses: F, uses since it was loaded; at least one counts.
        load_s: C, seconds that loading and warming it took.
        num_bytes: S, bytes that it takes; seconds a gigabyte is the unit of worth.

    Returns:
        Its worth, on the scale of ``inflation``.
    """
    return inflation + max(uses, 1) * load_s / (max(num_bytes, 1) / 1e9)
