"""Where a new session is placed, and what is evicted for it: decisions over a ``Ledger``, without Ray or a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from genai_ray.cluster.placement.ledger import Ledger
from genai_ray.cluster.placement.slots import Device, Need, Plan, Record, Slot
from genai_ray.errors import ResourceExhaustedError

__all__ = ["check_all_fit", "check_fits", "plan", "plan_all"]

MOST_TRIES = 1000
"""Most ways to place several sessions together that are tried: there may be devices to the power of sessions."""


def check_fits(ledger: Ledger[Record], need: Need) -> None:
    """Refuse what can never fit, whatever is evicted for it.

    Args:
        ledger: What is there.
        need: What is to be loaded.

    Raises:
        ResourceExhaustedError: If it is larger than the whole budget or every device, or pinned sessions leave no room.
    """
    allowed = [device for device in ledger.devices.values() if _is_allowed(device, need)]
    most = min(
        ledger.budget_bytes, max((min(device.budget_bytes, device.capacity_bytes) for device in allowed), default=0)
    )
    if need.num_bytes > most:
        kinds = sorted({device.kind for device in ledger.devices.values()})
        raise ResourceExhaustedError(
            f"{need.key} needs {need.num_bytes} bytes",
            f"{most} bytes, the most that one session of this cache can have"
            + ("" if allowed else f": no device is there that will do, only of kind {kinds}"),
            "Give the cache a larger budget or the cluster a larger device.",
        )
    pinned: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for slot in ledger.slots.values():
        if slot.is_pinned:
            pinned[slot.device_id] += slot.reserved_bytes
            held[slot.device_id] += slot.held_bytes
    rooms = [
        min(device.budget_bytes - pinned[device.device_id], device.capacity_bytes - held[device.device_id])
        for device in allowed
    ]
    room = min(max(rooms), ledger.budget_bytes - pinned.total())
    if need.num_bytes > room:
        raise ResourceExhaustedError(
            f"{need.key} needs {need.num_bytes} bytes",
            f"{room} bytes beside what is pinned",
            "Unpin a model, or give the cache a larger budget.",
        )


def check_all_fit(ledger: Ledger[Record], needs: Sequence[Need]) -> None:
    """Refuse what can never be there together, whatever is evicted for it.

    Args:
        ledger: What is there.
        needs: What is to be loaded.

    Raises:
        ResourceExhaustedError: If none of ``MOST_TRIES`` ways to place them fits beside what is pinned.
    """
    for need in needs:
        check_fits(ledger, need)
    keys = {need.key for need in needs}
    empty = ledger.copy()
    for slot in ledger.slots.values():
        if not slot.is_pinned or slot.key in keys:
            empty.release(slot.name)
    if plan_all(empty, needs) is None:
        raise ResourceExhaustedError(
            f"{', '.join(str(need.key) for need in needs)} need {sum(need.num_bytes for need in needs)} bytes together",
            f"{ledger.budget_bytes} bytes, the budget, beside what is pinned",
            "Give the cache a larger budget.",
        )


def plan(ledger: Ledger[Record], need: Need) -> Plan | None:
    """Choose a device: free room first (the preferred node, then best fit), else the one whose newest victim is oldest.

    Args:
        ledger: What is there.
        need: What is to be loaded.

    Returns:
        Where it is placed and what is evicted for it; None while no eviction makes enough room.
    """
    missing = need.num_bytes - (ledger.budget_bytes - ledger.used_bytes)
    roomy = ledger.best_fit(need)
    if roomy is not None and missing <= 0:
        return Plan(roomy)
    freed: dict[str, list[int]] = {}
    walked: list[Slot] = []
    chosen = roomy
    total = 0
    for slot in ledger.evictable():
        if slot.key == need.key:
            continue
        total += slot.reserved_bytes
        walked.append(slot)
        if chosen is None:
            sums = freed.setdefault(slot.device_id, [0, 0])
            sums[0] += slot.reserved_bytes
            sums[1] += slot.held_bytes
            device = ledger.devices[slot.device_id]
            if (
                device.budget_bytes - device.used_bytes + sums[0] >= need.num_bytes
                and device.capacity_bytes - device.held_bytes + sums[1] >= need.num_bytes
                and _is_allowed(device, need)
            ):
                chosen = slot.device_id
        if chosen is not None and total >= missing:
            return Plan(chosen, _needed(need, ledger.devices[chosen], walked, missing))
    return None


def plan_all(ledger: Ledger[Record], needs: Sequence[Need]) -> list[Plan] | None:
    """Plan several sessions together: all of them or none.

    Args:
        ledger: What is there.
        needs: What is to be loaded; sessions of these keys are no victims.

    Returns:
        One plan each, to be carried out in this order; None if they do not all fit in any of ``MOST_TRIES`` ways.
    """
    plans = _plan_in_turn(ledger, needs)
    if plans is not None:
        return plans
    places = _Places(ledger, needs).find()
    if places is None:
        return None
    return _plan_in_turn(
        ledger,
        [replace(need, avoid=frozenset(ledger.devices) - {place}) for need, place in zip(needs, places, strict=True)],
    )


def _plan_in_turn(ledger: Ledger[Record], needs: Sequence[Need]) -> list[Plan] | None:
    """Place each as if it came alone, which may take the only room of a later one."""
    trial = ledger.copy()
    plans = []
    trial.lease(need.key for need in needs)
    for index, need in enumerate(needs):
        found = plan(trial, need)
        if found is None:
            return None
        for victim in found.victims:
            trial.release(victim)
        trial.reserve(Slot(name=f"trial {index}", key=need.key), need, found.device_id, 0.0)
        plans.append(found)
    return plans


class _Places:
    """The search for devices that hold several sessions together, whatever is evicted for them."""

    def __init__(self, ledger: Ledger[Any], needs: Sequence[Need]) -> None:
        self._ledger = ledger
        self._needs = needs
        self._tries = 0
        keys = {need.key for need in needs}
        self._rooms = {
            name: [device.budget_bytes - device.used_bytes, device.capacity_bytes - device.held_bytes]
            for name, device in ledger.devices.items()
        }
        self._total = ledger.budget_bytes - ledger.used_bytes
        for slot in ledger.evictable():
            if slot.key not in keys:
                self._total += slot.reserved_bytes
                self._rooms[slot.device_id][0] += slot.reserved_bytes
                self._rooms[slot.device_id][1] += slot.held_bytes

    def find(self) -> list[str] | None:
        """Return a device for each, in the order of the needs; None if there is no way."""
        if sum(need.num_bytes for need in self._needs) > self._total:
            return None
        hardest_first = sorted(
            range(len(self._needs)), key=lambda at: (len(self._fitting(self._needs[at])), -self._needs[at].num_bytes)
        )
        places: dict[int, str] = {}
        return [places[at] for at in range(len(self._needs))] if self._place(hardest_first, places) else None

    def _place(self, rest: list[int], places: dict[int, str]) -> bool:
        if not rest:
            return True
        need = self._needs[rest[0]]
        alike = set()
        for name in self._fitting(need):
            device = self._ledger.devices[name]
            room = self._rooms[name]
            twin = (device.kind, *room, *(name in other.avoid for other in self._needs))
            if twin in alike or self._tries >= MOST_TRIES:
                continue
            alike.add(twin)
            self._tries += 1
            taken = need.num_bytes, -(-need.num_bytes // device.unit_bytes) * device.unit_bytes
            places[rest[0]] = name
            self._rooms[name] = [room[0] - taken[0], room[1] - taken[1]]
            if self._place(rest[1:], places):
                return True
            self._rooms[name] = room
        return False

    def _fitting(self, need: Need) -> list[str]:
        """Return the devices with room, the one that is left with the least first."""
        fitting = [(min(room), name) for name, room in self._rooms.items() if min(room) >= need.num_bytes]
        return [name for _, name in sorted(fitting) if _is_allowed(self._ledger.devices[name], need)]


def _needed(need: Need, device: Device, walked: list[Slot], missing: int) -> tuple[str, ...]:
    """Leave out, newest first, what need not be evicted after all."""
    local = [slot for slot in walked if slot.device_id == device.device_id]
    spare = [
        device.budget_bytes - device.used_bytes + sum(slot.reserved_bytes for slot in local) - need.num_bytes,
        device.capacity_bytes - device.held_bytes + sum(slot.held_bytes for slot in local) - need.num_bytes,
    ]
    spare_total = sum(slot.reserved_bytes for slot in walked) - missing
    victims = []
    for slot in reversed(walked):
        is_local = slot.device_id == device.device_id
        may_stay = spare_total >= slot.reserved_bytes and not (
            is_local and (spare[0] < slot.reserved_bytes or spare[1] < slot.held_bytes)
        )
        if not may_stay:
            victims.append(slot.name)
            continue
        spare_total -= slot.reserved_bytes
        if is_local:
            spare = [spare[0] - slot.reserved_bytes, spare[1] - slot.held_bytes]
    return tuple(reversed(victims))


def _is_allowed(device: Device, need: Need) -> bool:
    """Tell whether a session may be placed on a device at all."""
    return (need.kinds is None or device.kind in need.kinds) and device.device_id not in need.avoid
