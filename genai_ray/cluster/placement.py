"""What may be loaded, and what goes for it: plain Python, without Ray and without a clock of its own.

The ledger keeps these at every instant: the bytes of all sessions, those that load and those that retire included, are at
most the budget; a session that loads, is pinned, or retires is never a victim. Whether a session is at work, only the session
knows: it is asked before it goes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from genai_ray.errors import ResourceExhaustedError

__all__ = ["Ledger", "Slot", "SlotState"]

Key = TypeVar("Key", bound=Hashable)


class SlotState(StrEnum):
    """Where a session is in its life."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


@dataclass(slots=True)
class Slot(Generic[Key]):
    """One session in the ledger."""

    key: Key
    """What it is a session of."""
    reserved_bytes: int
    """Bytes that count against the budget."""
    floor_bytes: int
    """Bytes that the caller gave; the reservation is never less."""
    state: SlotState = SlotState.LOADING
    """Where it is in its life."""
    pinned: bool = False
    """Whether it must stay."""
    last_used_s: float = 0.0
    """Last known use on the owner's clock: a lower bound of the truth."""


@dataclass(slots=True)
class Ledger(Generic[Key]):
    """Every session of a cache, and its budget."""

    budget_bytes: int
    """Most bytes of all sessions together."""
    slots: dict[Key, Slot[Key]] = field(default_factory=dict)
    """The sessions by key."""

    @property
    def used_bytes(self) -> int:
        """Bytes of all sessions, loading and retiring ones included."""
        return sum(slot.reserved_bytes for slot in self.slots.values())

    def check_fits(self, needed_bytes: int, what: str) -> None:
        """Refuse what can never fit.

        Args:
            needed_bytes: Bytes of the session to load.
            what: Its name for the error.

        Raises:
            ResourceExhaustedError: If it is larger than the whole budget.
        """
        if needed_bytes > self.budget_bytes:
            raise ResourceExhaustedError(
                f"{what} needs {needed_bytes} bytes",
                f"{self.budget_bytes} bytes, the budget of this cache",
                "Give the cache a larger budget.",
            )

    def has_room(self, needed_bytes: int) -> bool:
        """Tell whether bytes are free.

        Args:
            needed_bytes: Bytes to add.

        Returns:
            Whether they fit beside everything that is there.
        """
        return self.used_bytes + needed_bytes <= self.budget_bytes

    def reserve(self, key: Key, needed_bytes: int, floor_bytes: int, now_s: float) -> Slot[Key]:
        """Enter a session that starts to load.

        Args:
            key: What it is a session of; not there yet.
            needed_bytes: Bytes to reserve.
            floor_bytes: Bytes that the caller gave.
            now_s: The owner's clock.

        Returns:
            The new slot.

        Raises:
            ResourceExhaustedError: If they are not free.
        """
        if not self.has_room(needed_bytes):
            raise ResourceExhaustedError(f"{key} needs {needed_bytes} bytes", f"{self.budget_bytes - self.used_bytes} bytes are free")
        slot = Slot(key, needed_bytes, floor_bytes, last_used_s=now_s)
        self.slots[key] = slot
        return slot

    def settle(self, key: Key, measured_bytes: int) -> bool:
        """Replace a reservation by what was measured, never less than the floor.

        Args:
            key: A session that has loaded.
            measured_bytes: What it really takes.

        Returns:
            Whether everything still fits; where not, the caller makes room or gives the session up.
        """
        slot = self.slots[key]
        slot.reserved_bytes = max(measured_bytes, slot.floor_bytes)
        slot.state = SlotState.READY
        return self.used_bytes <= self.budget_bytes

    def stalest(self, but: frozenset[Key] = frozenset()) -> Slot[Key] | None:
        """Return the session that would go next by what is known.

        Args:
            but: Keys that must not go.

        Returns:
            The ready, unpinned session with the oldest known use; None where there is none.
        """
        candidates = [slot for slot in self.slots.values() if slot.state is SlotState.READY and not slot.pinned and slot.key not in but]
        return min(candidates, key=lambda slot: slot.last_used_s, default=None)

    def by_recency(self) -> list[Slot[Key]]:
        """Return the sessions that are ready, least recently used first.

        Returns:
            The slots.
        """
        return sorted((slot for slot in self.slots.values() if slot.state is SlotState.READY), key=lambda slot: slot.last_used_s)

    def release(self, key: Key) -> None:
        """Strike out a session whose process is gone.

        Args:
            key: Its key; unknown ones are ignored.
        """
        self.slots.pop(key, None)
