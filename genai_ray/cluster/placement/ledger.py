"""The book of devices and sessions: plain Python, without Ray and without a clock of its own; ``placement`` decides by it.

The ledger keeps these at every instant: on every device, and in the cluster as a whole, the bytes of all sessions, those that load
and those that retire included, are at most the budget; what Ray holds for them is at most what Ray has; a session that loads, is
pinned, leased, or retires is never a victim. Whether a session is at work, only the session knows: it is asked before it goes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from genai_ray.cluster.placement.policy import EvictionPolicy, Order, gdsf_worth, order_of
from genai_ray.cluster.placement.slots import Device, Need, Slot, SlotState
from genai_ray.errors import ResourceExhaustedError

__all__ = ["Ledger"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Ledger(Generic[Key]):
    """Every device and every session of a cache, and the budgets."""

    total_bytes: int | None = None
    """Most bytes of all sessions of the cluster together; None for the sum of the devices' budgets."""
    policy: EvictionPolicy = EvictionPolicy.LRU
    """What goes first."""
    devices: dict[str, Device] = field(default_factory=dict)
    """The devices by id."""
    slots: dict[str, Slot[Key]] = field(default_factory=dict)
    """The sessions by name."""
    used_bytes: int = 0
    """Bytes of all sessions, loading and retiring ones included."""
    _device_bytes: int = 0
    _leases: Counter[Key] = field(default_factory=Counter)
    _by_key: dict[Key, dict[str, Slot[Key]]] = field(default_factory=dict)
    _free: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _order: list[tuple[Order, str]] = field(default_factory=list)
    _place: dict[str, Order] = field(default_factory=dict)
    _inflation: float = 0.0

    @property
    def budget_bytes(self) -> int:
        """Most bytes of all sessions together."""
        return self._device_bytes if self.total_bytes is None else self.total_bytes

    def add_device(self, device: Device) -> None:
        """Enter a device without sessions.

        Args:
            device: Its id is not there yet.
        """
        self.devices[device.device_id] = device
        self._device_bytes += device.budget_bytes
        insort(self._free.setdefault(device.kind, []), (device.free_bytes, device.device_id))

    def remove_device(self, device_id: str) -> list[str]:
        """Strike out a device that is gone, and the sessions that went with it.

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

    def of_key(self, key: Key) -> list[Slot[Key]]:
        """Return the sessions of one key.

        Args:
            key: Which.

        Returns:
            Its replicas in any state, oldest first.
        """
        return list(self._by_key.get(key, {}).values())

    def reserve(
        self, name: str, need: Need[Key], device_id: str, floor_bytes: int, now_s: float, held_bytes: int | None = None
    ) -> Slot[Key]:
        """Enter a session that starts to load.

        Args:
            name: Its name.
            need: What it takes.
            device_id: Where it goes.
            floor_bytes: Bytes that the caller gave.
            now_s: The owner's clock.
            held_bytes: Bytes that Ray holds for it already; None for what it takes, in the device's units.

        Returns:
            The new slot.

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
        slot = Slot(name, need.key, device_id, 0, 0, floor_bytes, arrived_s=now_s, last_used_s=now_s)
        self.slots[name] = slot
        self._by_key.setdefault(need.key, {})[name] = slot
        self._count(slot, need.num_bytes, held)
        return slot

    def settle(self, name: str, measured_bytes: int, load_s: float, now_s: float) -> None:
        """Replace a reservation by what was measured, never less than the floor; the session is ready from here on.

        Args:
            name: A session that has loaded.
            measured_bytes: What it really takes; where that is too much, ``excess_bytes`` tells.
            load_s: Seconds that it took to load and warm.
            now_s: The owner's clock.
        """
        slot = self.slots[name]
        self._count(slot, max(measured_bytes, slot.floor_bytes) - slot.reserved_bytes, 0)
        slot.state, slot.load_s, slot.arrived_s = SlotState.READY, load_s, now_s
        slot.worth = gdsf_worth(self._inflation, slot.uses, load_s, slot.reserved_bytes)
        self._arrange(slot)

    def grow(self, name: str, measured_bytes: int) -> None:
        """Enter that a ready session takes more than it did; ``excess_bytes`` tells whether something must go for it.

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
            Bytes that must go; 0 or less where all is well.
        """
        device = self.devices[device_id]
        return max(device.used_bytes - device.budget_bytes, self.used_bytes - self.budget_bytes)

    def leaving(self) -> Iterator[Slot[Key]]:
        """Go through the sessions that may leave.

        Yields:
            Ready sessions that are neither pinned nor leased, first to go first.
        """
        return (self.slots[name] for _, name in self._order)

    def use(self, name: str, last_used_s: float, uses: int, is_online: bool = False) -> None:
        """Enter what a session said of its use.

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
        slot.last_used_s, slot.uses, slot.is_online = (
            max(slot.last_used_s, last_used_s),
            max(slot.uses, uses),
            is_online,
        )
        self._arrange(slot)

    def mark(
        self,
        name: str,
        *,
        is_pinned: bool | None = None,
        is_surplus: bool | None = None,
        state: SlotState | None = None,
    ) -> None:
        """Change what keeps a session or lets it go.

        Args:
            name: The session.
            is_pinned: Whether it must stay; None for as it is.
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

    def lease(self, keys: Iterable[Key]) -> None:
        """Keep the sessions of some keys, those to come as well; leases of one key add up.

        Args:
            keys: Which.
        """
        for key in keys:
            self._leases[key] += 1
            self._arrange_key(key)

    def unlease(self, keys: Iterable[Key]) -> None:
        """Give back a lease.

        Args:
            keys: Which.
        """
        for key in keys:
            self._leases[key] -= 1
            if self._leases[key] <= 0:
                del self._leases[key]
            self._arrange_key(key)

    def is_leased(self, key: Key) -> bool:
        """Tell whether somebody holds a lease.

        Args:
            key: Of this.

        Returns:
            Whether its sessions stay.
        """
        return key in self._leases

    def by_recency(self) -> list[Slot[Key]]:
        """Return the sessions that are ready, least recently used first.

        Returns:
            The slots.
        """
        return sorted(
            (slot for slot in self.slots.values() if slot.state is SlotState.READY), key=lambda slot: slot.last_used_s
        )

    def release(self, name: str) -> None:
        """Strike out a session whose process is gone.

        Args:
            name: Its name; unknown ones are ignored.
        """
        slot = self.slots.get(name)
        if slot is None:
            return
        slot.state = SlotState.RETIRING
        self._arrange(slot)
        self._count(slot, -slot.reserved_bytes, -slot.held_bytes)
        del self.slots[name], self._by_key[slot.key][name]
        if not self._by_key[slot.key]:
            del self._by_key[slot.key]

    def move(self, name: str, device_id: str) -> None:
        """Correct where a session is: Ray chooses the GPU within a node.

        Args:
            name: The session.
            device_id: Where it says that it is; ``excess_bytes`` tells whether it may stay there.
        """
        slot = self.slots[name]
        used, held = slot.reserved_bytes, slot.held_bytes
        self._count(slot, -used, -held)
        slot.device_id = device_id
        self._count(slot, used, held)

    def is_allowed(self, device: Device, need: Need[Key]) -> bool:
        """Tell whether a session may go to a device at all.

        Args:
            device: The device.
            need: What the session asks for.

        Returns:
            Whether its kind will do and it is not to be avoided.
        """
        return (need.kinds is None or device.kind in need.kinds) and device.device_id not in need.avoid

    def best_fit(self, need: Need[Key]) -> str | None:
        """Return where a session would go without anything leaving.

        Args:
            need: What it asks for.

        Returns:
            A device of the preferred node where one has room, else the one that is left with the least; None where none has room.
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

    def _count(self, slot: Slot[Key], num_bytes: int, held_bytes: int) -> None:
        device = self.devices[slot.device_id]
        free = self._free[device.kind]
        del free[bisect_left(free, (device.free_bytes, device.device_id))]
        slot.reserved_bytes += num_bytes
        slot.held_bytes += held_bytes
        device.used_bytes += num_bytes
        device.held_bytes += held_bytes
        self.used_bytes += num_bytes
        insort(free, (device.free_bytes, device.device_id))

    def _arrange(self, slot: Slot[Key]) -> None:
        """Put a session where it belongs in the order of leaving, or out of it."""
        old = self._place.pop(slot.name, None)
        if old is not None:
            del self._order[bisect_left(self._order, (old, slot.name))]
        if slot.state is SlotState.READY and not slot.is_pinned and slot.key not in self._leases:
            order = order_of(
                self.policy,
                is_surplus=slot.is_surplus,
                is_online=slot.is_online,
                last_used_s=slot.last_used_s,
                worth=slot.worth,
            )
            self._place[slot.name] = order
            insort(self._order, (order, slot.name))

    def _arrange_key(self, key: Key) -> None:
        for slot in self._by_key.get(key, {}).values():
            self._arrange(slot)

    def copy(self) -> Ledger[Key]:
        """Return a ledger that may be changed to see what would be.

        Returns:
            The same devices, sessions and leases.
        """
        copy: Ledger[Key] = Ledger(
            self.total_bytes, self.policy, _inflation=self._inflation, _leases=self._leases.copy()
        )
        for device in self.devices.values():
            copy.add_device(replace(device, used_bytes=0, held_bytes=0))
        for slot in self.slots.values():
            twin = replace(slot, reserved_bytes=0, held_bytes=0)
            copy.slots[slot.name] = twin
            copy._by_key.setdefault(slot.key, {})[slot.name] = twin
            copy._count(twin, slot.reserved_bytes, slot.held_bytes)
            copy._arrange(twin)
        return copy
