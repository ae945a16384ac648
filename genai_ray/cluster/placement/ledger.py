"""Devices, sessions and budgets: plain Python, without Ray and without a clock of its own; ``planner`` decides by it.

At every instant, on every device and in the cluster as a whole, the bytes of all sessions, loading and retiring ones
included, are at most the budget, and Ray holds for them at most what it has. A session that loads, retires, is pinned
or leased is never a victim. Only the session knows whether it is at work: the cache asks it before it evicts it.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, TypeVar

from genai_ray.errors import ResourceExhaustedError

__all__ = ["Device", "EvictionPolicy", "Ledger", "Need", "Plan", "Record", "Slot", "SlotState", "gdsf_worth"]

_Order = tuple[bool, float, bool, float]


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

    @property
    def free_bytes(self) -> int:
        """Bytes that a new session may take; negative if sessions took more than was reserved."""
        return min(self.budget_bytes - self.used_bytes, self.capacity_bytes - self.held_bytes)


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

    def order(self, policy: EvictionPolicy) -> _Order:
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


@dataclass(slots=True)
class Ledger(Generic[Record]):
    """Every device and every session of a cache, and the budgets."""

    total_bytes: int | None = None
    """Most bytes of all sessions of the cluster together; None for the sum of the devices' budgets."""
    policy: EvictionPolicy = EvictionPolicy.LRU
    """Which idle session is evicted first."""
    devices: dict[str, Device] = field(default_factory=dict)
    """The devices by id."""
    slots: dict[str, Record] = field(default_factory=dict)
    """The sessions by name."""
    used_bytes: int = 0
    """Bytes of all sessions, loading and retiring ones included."""
    _device_bytes: int = 0
    _leases: Counter[Hashable] = field(default_factory=Counter)
    _by_key: dict[Hashable, dict[str, Record]] = field(default_factory=dict)
    _free: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _order: list[tuple[_Order, str]] = field(default_factory=list)
    _places: dict[str, _Order] = field(default_factory=dict)
    _inflation: float = 0.0

    @property
    def budget_bytes(self) -> int:
        """Most bytes of all sessions together."""
        return self._device_bytes if self.total_bytes is None else self.total_bytes

    def add_device(self, device: Device) -> None:
        """Add a device without sessions.

        Args:
            device: Its id is not there yet.
        """
        self.devices[device.device_id] = device
        self._device_bytes += device.budget_bytes
        insort(self._free.setdefault(device.kind, []), (device.free_bytes, device.device_id))

    def remove_device(self, device_id: str) -> list[str]:
        """Remove a device that is gone, and its sessions.

        Args:
            device_id: Which; unknown ones are ignored.

        Returns:
            The names of those sessions.
        """
        names = [slot.name for slot in self.slots.values() if slot.device_id == device_id]
        for name in names:
            self.release(name)
        device = self.devices.pop(device_id, None)
        if device is not None:
            self._device_bytes -= device.budget_bytes
            self._free[device.kind].remove((device.free_bytes, device_id))
        return names

    def of_key(self, key: Hashable) -> list[Record]:
        """Return the sessions of one key.

        Args:
            key: Which.

        Returns:
            Its replicas in any state, oldest first.
        """
        return list(self._by_key.get(key, {}).values())

    def reserve(self, slot: Record, need: Need, device_id: str, now_s: float, held_bytes: int | None = None) -> None:
        """Enter a session that starts to load.

        Args:
            slot: The session; what is known of an earlier process of it is forgotten.
            need: What it takes.
            device_id: Where it is placed.
            now_s: The owner's clock.
            held_bytes: Bytes that Ray holds for it already; None for what it takes, in the device's units.

        Raises:
            ResourceExhaustedError: If the bytes are not free.
        """
        device = self.devices[device_id]
        held = -(-need.num_bytes // device.unit_bytes) * device.unit_bytes if held_bytes is None else held_bytes
        room = min(device.budget_bytes - device.used_bytes, self.budget_bytes - self.used_bytes)
        if need.num_bytes > room or held > device.capacity_bytes - device.held_bytes:
            free = min(device.free_bytes, room)
            raise ResourceExhaustedError(
                f"{need.key} needs {need.num_bytes} bytes", f"{free} bytes are free on {device_id}"
            )
        slot.state = SlotState.LOADING
        slot.device_id = device_id
        slot.arrived_s = now_s
        slot.last_used_s = now_s
        slot.is_pinned = slot.is_surplus = slot.is_online = False
        slot.uses = 0
        slot.load_s = slot.worth = 0.0
        self.slots[slot.name] = slot
        self._by_key.setdefault(slot.key, {})[slot.name] = slot
        self._count(slot, need.num_bytes, held)

    def settle(self, name: str, measured_bytes: int, load_s: float, now_s: float) -> None:
        """Replace a reservation by what was measured, never less than the floor; the session is ready from here on.

        Args:
            name: A session that has loaded.
            measured_bytes: What it really takes; ``excess_bytes`` tells whether that is too much.
            load_s: Seconds that it took to load and warm.
            now_s: The owner's clock.
        """
        slot = self.slots[name]
        self._count(slot, max(measured_bytes, slot.floor_bytes) - slot.reserved_bytes, 0)
        slot.state = SlotState.READY
        slot.load_s = load_s
        slot.arrived_s = now_s
        slot.worth = gdsf_worth(self._inflation, slot.uses, load_s, slot.reserved_bytes)
        self._arrange(slot)

    def grow(self, name: str, measured_bytes: int) -> None:
        """Note that a ready session takes more than it did; ``excess_bytes`` tells whether something must be evicted.

        Args:
            name: The session.
            measured_bytes: What it takes by now; less than before is ignored.
        """
        slot = self.slots[name]
        if measured_bytes > slot.reserved_bytes:
            self._count(slot, measured_bytes - slot.reserved_bytes, 0)

    def excess_bytes(self, device_id: str) -> int:
        """Return by how much a device, or the whole cache, is over its budget.

        Args:
            device_id: The device.

        Returns:
            Bytes that must be freed; 0 or less if all is well.
        """
        device = self.devices[device_id]
        return max(device.used_bytes - device.budget_bytes, self.used_bytes - self.budget_bytes)

    def evictable(self) -> Iterator[Record]:
        """Go through the sessions that may be evicted.

        Yields:
            Ready sessions that are neither pinned nor leased, in the order of eviction.
        """
        return (self.slots[name] for _, name in self._order)

    def use(self, name: str, last_used_s: float, uses: int, is_online: bool = False) -> None:
        """Note what a session said of its use.

        Args:
            name: The session.
            last_used_s: Its last use; an older one than is known is ignored.
            uses: Its uses so far.
            is_online: Whether somebody waited for the last one.
        """
        slot = self.slots[name]
        if uses > slot.uses:
            slot.worth = gdsf_worth(self._inflation, uses, slot.load_s, slot.reserved_bytes)
            slot.is_surplus = False
        slot.last_used_s = max(slot.last_used_s, last_used_s)
        slot.uses = max(slot.uses, uses)
        slot.is_online = is_online
        self._arrange(slot)

    def mark(
        self,
        name: str,
        *,
        is_pinned: bool | None = None,
        is_surplus: bool | None = None,
        state: SlotState | None = None,
    ) -> None:
        """Change what decides whether a session may be evicted.

        Args:
            name: The session.
            is_pinned: Whether it is never evicted; None for as it is.
            is_surplus: Whether it is an idle replica; None for as it is.
            state: Where it is in its life; None for as it is.
        """
        slot = self.slots[name]
        slot.is_pinned = slot.is_pinned if is_pinned is None else is_pinned
        slot.is_surplus = slot.is_surplus if is_surplus is None else is_surplus
        if state is SlotState.RETIRING:
            self._inflation = max(self._inflation, slot.worth)
        slot.state = state or slot.state
        self._arrange(slot)

    def lease(self, keys: Iterable[Hashable]) -> None:
        """Lease some keys: their sessions, future ones as well, are not evicted; leases of one key add up.

        Args:
            keys: Which.
        """
        for key in keys:
            self._leases[key] += 1
            self._arrange_key(key)

    def unlease(self, keys: Iterable[Hashable]) -> None:
        """Give back a lease.

        Args:
            keys: Which.
        """
        for key in keys:
            self._leases[key] -= 1
            if self._leases[key] <= 0:
                del self._leases[key]
            self._arrange_key(key)

    def is_leased(self, key: Hashable) -> bool:
        """Tell whether a key is leased.

        Args:
            key: Which.

        Returns:
            Whether it is.
        """
        return key in self._leases

    def by_recency(self) -> list[Record]:
        """Return the sessions that are ready, least recently used first.

        Returns:
            The slots.
        """
        ready = [slot for slot in self.slots.values() if slot.state is SlotState.READY]
        return sorted(ready, key=lambda slot: slot.last_used_s)

    def release(self, name: str) -> None:
        """Remove a session whose process is gone.

        Args:
            name: Its name; unknown ones are ignored.
        """
        slot = self.slots.get(name)
        if slot is None:
            return
        slot.state = SlotState.WAITING
        self._arrange(slot)
        self._count(slot, -slot.reserved_bytes, -slot.held_bytes)
        slot.device_id = ""
        del self.slots[name], self._by_key[slot.key][name]
        if not self._by_key[slot.key]:
            del self._by_key[slot.key]

    def move(self, name: str, device_id: str) -> None:
        """Correct where a session is: Ray chooses the GPU within a node.

        Args:
            name: The session.
            device_id: Where it says that it is; ``excess_bytes`` tells whether that is too much there.
        """
        slot = self.slots[name]
        used = slot.reserved_bytes
        held = slot.held_bytes
        self._count(slot, -used, -held)
        slot.device_id = device_id
        self._count(slot, used, held)

    def best_fit(self, need: Need) -> str | None:
        """Return where a session fits without an eviction.

        Args:
            need: What it asks for.

        Returns:
            The device with the least free bytes that has room, one of the preferred node first; None if none has room.
        """
        best: tuple[bool, int, str] | None = None
        for kind in self._free if need.kinds is None else need.kinds:
            free = self._free.get(kind, [])
            for at in range(bisect_left(free, (need.num_bytes, "")), len(free)):
                free_bytes, device_id = free[at]
                if device_id in need.avoid:
                    continue
                candidate = (self.devices[device_id].node != need.node, free_bytes, device_id)
                best = candidate if best is None else min(best, candidate)
                if need.node is None or not candidate[0]:
                    break
        return None if best is None else best[2]

    def _count(self, slot: Record, num_bytes: int, held_bytes: int) -> None:
        device = self.devices[slot.device_id]
        free = self._free[device.kind]
        del free[bisect_left(free, (device.free_bytes, device.device_id))]
        slot.reserved_bytes += num_bytes
        slot.held_bytes += held_bytes
        device.used_bytes += num_bytes
        device.held_bytes += held_bytes
        self.used_bytes += num_bytes
        insort(free, (device.free_bytes, device.device_id))

    def _arrange(self, slot: Record) -> None:
        """Put a session in its place in the order of eviction, or take it out of it."""
        old = self._places.pop(slot.name, None)
        if old is not None:
            del self._order[bisect_left(self._order, (old, slot.name))]
        if slot.state is SlotState.READY and not slot.is_pinned and slot.key not in self._leases:
            order = slot.order(self.policy)
            self._places[slot.name] = order
            insort(self._order, (order, slot.name))

    def _arrange_key(self, key: Hashable) -> None:
        for slot in self._by_key.get(key, {}).values():
            self._arrange(slot)

    def copy(self) -> Ledger[Slot]:
        """Return a ledger that may be changed to see what would be.

        Returns:
            The same devices, sessions and leases.
        """
        trial: Ledger[Slot] = Ledger(
            self.total_bytes, self.policy, _inflation=self._inflation, _leases=self._leases.copy()
        )
        for device in self.devices.values():
            trial.add_device(replace(device, used_bytes=0, held_bytes=0))
        for slot in self.slots.values():
            twin: Slot = copy.copy(slot)
            twin.reserved_bytes = twin.held_bytes = 0
            trial.slots[slot.name] = twin
            trial._by_key.setdefault(slot.key, {})[slot.name] = twin
            trial._count(twin, slot.reserved_bytes, slot.held_bytes)
            trial._arrange(twin)
        return trial
