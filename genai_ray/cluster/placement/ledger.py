"""Devices, sessions and budgets: plain Python, without Ray and without a clock of its own; ``planner`` decides by it.

At every instant, on every device and in the cluster as a whole, the bytes of all sessions, loading and retiring ones
included, are at most the budget, and Ray holds for them at most what it has. A session that loads, retires, is pinned
or leased is never a victim. Only the session knows whether it is at work: the cache asks it before it evicts it.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic

from genai_ray.cluster.placement.slots import (
    Device,
    EvictionPolicy,
    Need,
    Order,
    Record,
    Slot,
    SlotState,
    gdsf_worth,
)
from genai_ray.errors import ResourceExhaustedError

__all__ = ["Ledger"]

REUSE_SHARE = 1.5
"""Of what Ray would hold for a new process, the most that it may hold for a used one."""


@dataclass(slots=True)
class Ledger(Generic[Record]):
    """Every device and every session of a cache, and the budgets."""

    total_bytes: int | None = None
    """Most bytes of all sessions and spare processes of the cluster; None for the sum of the devices' budgets."""
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
    _order: list[tuple[Order, str]] = field(default_factory=list)
    _places: dict[str, Order] = field(default_factory=dict)
    _inflation: float = 0.0

    @property
    def budget_bytes(self) -> int:
        """Most bytes of all sessions together; spare processes take the rest of ``total_bytes``."""
        if self.total_bytes is None:
            return self._device_bytes
        return max(self.total_bytes - sum(device.spare_bytes for device in self.devices.values()), 0)

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
        held = device.held_for(need.num_bytes) if held_bytes is None else held_bytes
        room = min(device.budget_bytes - device.used_bytes, self.budget_bytes - self.used_bytes)
        if need.num_bytes > room or held > device.capacity_bytes - device.held_bytes:
            free = min(device.free_bytes, room)
            raise ResourceExhaustedError(
                f"{need.key} needs {need.num_bytes} bytes", f"{free} bytes are free on {device_id}"
            )
        self._enter(slot, need.num_bytes, held, device_id, now_s)

    def can_take_over(self, need: Need, name: str, without: Collection[str] = ()) -> bool:
        """Tell whether the process of a session fits a new session, so that Ray's reservation need not change.

        Args:
            need: What the new session takes.
            name: The session, on the device where the new one is placed.
            without: Names of sessions that are evicted as well: they count as gone.

        Returns:
            Whether the bytes are free then; Ray holds for it what it would hold for a new process, or up to
            ``REUSE_SHARE`` of that; and holds so little of the device that all free bytes of the budget can be used.
        """
        slot = self.slots[name]
        device = self.devices[slot.device_id]
        gone = [self.slots[other] for other in set(without) - {name} if other in self.slots]
        more = need.num_bytes - slot.reserved_bytes
        total = self.used_bytes + more - sum(other.reserved_bytes for other in gone)
        gone = [other for other in gone if other.device_id == slot.device_id]
        used = device.used_bytes + more - sum(other.reserved_bytes for other in gone)
        if used > device.budget_bytes or total > self.budget_bytes:
            return False
        unheld = device.capacity_bytes - device.held_bytes + sum(other.held_bytes for other in gone)
        held = device.held_for(need.num_bytes)
        return held <= slot.held_bytes <= REUSE_SHARE * held and unheld >= device.budget_bytes - used

    def take_over(self, slot: Record, need: Need, name: str, now_s: float) -> None:
        """Enter a session in place of another one, in whose process it starts to load.

        Args:
            slot: The session.
            need: What it takes.
            name: The other one; what Ray holds for it stays.
            now_s: The owner's clock.

        Raises:
            ResourceExhaustedError: If the bytes are not free, or ``can_take_over`` says no; nothing has changed then.
        """
        before = self.slots[name]
        device = self.devices[before.device_id]
        if not self.can_take_over(need, name):
            room = min(device.budget_bytes - device.used_bytes, self.budget_bytes - self.used_bytes)
            raise ResourceExhaustedError(
                f"{need.key} needs {need.num_bytes} bytes in the process of {name}",
                f"{before.reserved_bytes + room} bytes are free, and Ray holds {before.held_bytes} for that process",
            )
        held_bytes = before.held_bytes
        self.release(name)
        self._enter(slot, need.num_bytes, held_bytes, device.device_id, now_s)

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
        slot.came_in_s = max(now_s - slot.arrived_s, load_s)
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

    def _enter(self, slot: Record, num_bytes: int, held_bytes: int, device_id: str, now_s: float) -> None:
        """Enter a session that starts to load; its bytes are known to be free."""
        slot.state = SlotState.LOADING
        slot.device_id = device_id
        slot.arrived_s = now_s
        slot.last_used_s = now_s
        slot.is_pinned = slot.is_surplus = slot.is_online = False
        slot.uses = 0
        slot.load_s = slot.came_in_s = slot.worth = 0.0
        self.slots[slot.name] = slot
        self._by_key.setdefault(slot.key, {})[slot.name] = slot
        self._count(slot, num_bytes, held_bytes)

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
