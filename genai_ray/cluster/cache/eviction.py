"""Making room: the cache asks sessions for their true recency before it evicts one; a session at work refuses.

If Ray's reservation for an evicted session fits the newcomer, the newcomer takes over its process. The evicted session
closes, and its bytes count until it was measured that they are given back; what the process keeps is reserved for the
newcomer in addition. In any other case, its process is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ray.exceptions import RayError

from genai_ray.cluster.cache.reuse import find_donor, with_excess
from genai_ray.cluster.cache.session_actors import ANSWER_WITHIN_S, CLOSE_WITHIN_S, recency_of
from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.messages import Recency
from genai_ray.cluster.placement import Ledger, Need, Plan, Record, Slot, SlotState, check_fits, plan, plan_all
from genai_ray.errors import BackendUnavailableError, DeadlineExceededError, ResourceExhaustedError

__all__ = ["LOADS_AT_ONCE", "STAY_LOADS", "Evictor"]

_log = logging.getLogger(__name__)

LOADS_AT_ONCE = 2
"""Most loads at the same time on the CPU of one node. A load that nobody asked for by name evicts nothing before its
turn: what it evicts can serve requests until then."""

STAY_LOADS = 2.0
"""A session stays this many times as long as it took to come, at most ``min_stay_s``: loads that nobody asked for by
name take at most a third of the time of its place."""

_RETRY_S = 0.1


class Evictor:
    """Makes room: places new sessions, and retires idle ones for them.

    Args:
        table: Sessions and bytes.
        need_of: What a session needs, as things are now.
        min_stay_s: Most seconds that a session is safe from loads that were not asked for by name; see ``STAY_LOADS``.
        on_evicted: Told of every evicted session, before it is removed.
        on_revived: Told of every session that refused to go: a pin may have passed to it meanwhile.
    """

    def __init__(
        self,
        table: SessionTable,
        need_of: Callable[[SessionRecord], Need],
        min_stay_s: float,
        on_evicted: Callable[[SessionRecord], None],
        on_revived: Callable[[SessionRecord], None],
    ) -> None:
        self._table = table
        self._need_of = need_of
        self._min_stay_s = min_stay_s
        self._on_evicted = on_evicted
        self._on_revived = on_revived
        self._shrinking = asyncio.Lock()
        self._rooms: dict[str, tuple[Need, Plan]] = {}

    async def place(self, record: SessionRecord) -> None:
        """Reserve bytes on a device for a session, evicting others for it; wait while nothing may be evicted.

        Args:
            record: The session.

        Raises:
            ResourceExhaustedError: If it can never fit on a cluster that does not grow.
            BackendUnavailableError: If such a cluster has no device for it.
            DeadlineExceededError: If nobody waits for it any more.
        """
        table = self._table
        while True:
            try:
                if await self.try_place([record]):
                    return
                check_fits(table.ledger, self._need_of(record))
            except (ResourceExhaustedError, BackendUnavailableError) as exc:
                if not table.can_grow:
                    raise
                record.blocked = exc
            if record.waiters == 0:
                raise record.blocked or DeadlineExceededError(f"nobody waits for {record.key.model} any more")
            await table.wait_for_change(_RETRY_S)

    async def try_place(self, group: Sequence[SessionRecord]) -> bool:
        """Reserve bytes for all sessions of a group or for none; several groups may make room at once, each its own.

        Args:
            group: The sessions; of a chain several.

        Returns:
            Whether they have a place now; if not, ``blocked`` of each says why.
        """
        ledger = self._table.ledger
        asked: set[str] = set()
        while True:
            waiting = self._waiting(group)
            if any(record.name in self._rooms for record in waiting):
                return self._block(group, "room is made for it already")
            needs = [self._need_of(record) for record in waiting]
            plans = self.plan(needs)
            if plans is None:
                return self._block(group, "all sessions are in use, pinned or leased")
            if self._waits_for_turn(group, plans):
                return self._block(group, f"{LOADS_AT_ONCE} others are loaded first")
            victims = dict.fromkeys(name for found in plans for name in found.victims)
            unknown = [name for name in victims if name not in asked]
            if not unknown:
                break
            asked.update(unknown)
            await asyncio.gather(*(self.ask(name) for name in unknown))
        too_young = self._too_young(group, victims)
        if too_young is not None:
            return self._block(group, *too_young)
        rooms = {record.name: room for record, room in zip(waiting, zip(needs, plans, strict=True), strict=True)}
        self._rooms.update(rooms)
        donor = find_donor(ledger, waiting[0], needs[0], plans[0]) if len(waiting) == 1 else None
        try:
            return await self._evict(group, victims, donor, needs) and self._reserve(group, waiting, rooms, donor)
        finally:
            for name in rooms:
                del self._rooms[name]
            closed = self._closed(donor)
            if closed is not None:  # nobody has taken its process over
                await self.end(closed)

    def _waits_for_turn(self, group: Sequence[SessionRecord], plans: Sequence[Plan]) -> bool:
        """Tell whether others are loaded first; a lease takes all its models at once, even if others load."""
        if any(record.load_request.is_explicit or not record.is_begun for record in group):
            return False
        return any(found.victims and self._num_loading(found.device_id) >= LOADS_AT_ONCE for found in plans)

    def _too_young(self, group: Sequence[SessionRecord], victims: Iterable[str]) -> tuple[str, str] | None:
        """Return why loads that nobody asked for by name evict nothing yet, and what to do; None if they may."""
        if any(record.load_request.is_explicit for record in group):
            return None
        for victim in map(self._table.ledger.slots.__getitem__, victims):
            stay_s = min(STAY_LOADS * victim.came_in_s, self._min_stay_s)
            if time.monotonic() - victim.arrived_s < stay_s:
                words = f"it would evict {victim.key.model}, which was loaded less than {stay_s:.3g} s ago: "
                do = "Give the cache a larger budget, or lower min_stay_s."
                return words + "more models are used in turn than there is room for", do
        return None

    def _num_loading(self, device_id: str) -> int:
        """Count the sessions that load on a device, and those for which others are evicted there."""
        slots = self._table.ledger.slots
        loading = sum(slot.state is SlotState.LOADING and slot.device_id == device_id for slot in slots.values())
        return loading + sum(
            name not in slots and found.device_id == device_id for name, (_, found) in self._rooms.items()
        )

    async def _evict(
        self, group: Sequence[SessionRecord], victims: Iterable[str], donor: str | None, needs: Sequence[Need]
    ) -> bool:
        """Retire sessions in turn; one closes, if its process fits with what it keeps, the others end."""
        ledger = self._table.ledger
        for name in victims:
            victim = ledger.slots.get(name)
            if victim is not None and not await self.retire(name, is_closed=name == donor):
                return self._block(group, f"{victim.key.model}, the next to be evicted, is at work")
        closed = self._closed(donor)
        if closed is not None and not ledger.can_take_over(with_excess(needs[0], closed), closed.name):
            await self.end(closed)
        return True

    def _closed(self, donor: str | None) -> SessionRecord | None:
        """Return the session whose process waits for another one; None if it has not closed, or is gone."""
        record = self._table.records.get(donor or "")
        return None if record is None or record.kept_bytes is None else record

    def _waiting(self, group: Sequence[SessionRecord]) -> list[SessionRecord]:
        """Return those of a group that have no place yet; a lease and a load may both look for one."""
        return [record for record in group if not record.is_placed]

    def _reserve(
        self,
        group: Sequence[SessionRecord],
        waiting: Sequence[SessionRecord],
        rooms: Mapping[str, tuple[Need, Plan]],
        donor: str | None,
    ) -> bool:
        """Reserve the bytes that were freed for a group; no other task runs meanwhile."""
        ledger = self._table.ledger
        closed = self._closed(donor)
        done: list[SessionRecord] = []
        if any(record.ready.is_set() or record.gone.is_set() for record in waiting):  # given up meanwhile
            return self._block(group, "nobody waits for it any more")
        for record in self._waiting(waiting):
            need, found = rooms[record.name]
            try:
                if closed is not None:
                    self._table.take_over(record, closed, with_excess(need, closed))
                else:
                    ledger.reserve(record, need, found.device_id, time.monotonic())
            except (ResourceExhaustedError, KeyError):  # a session grew, or the device left, during the evictions
                for placed in done:
                    ledger.release(placed.name)
                return self._block(group, "the bytes that were freed for it are taken by now")
            done.append(record)
        for record in group:
            record.blocked = None
        return True

    def plan(self, needs: Sequence[Need]) -> list[Plan] | None:
        """Choose devices and victims, and leave alone the room that others make at the moment.

        Args:
            needs: What is needed, all of it or nothing.

        Returns:
            One plan each; None while they do not all fit.
        """
        found = _plan_on(self._table.ledger, needs)
        return found if found is None or not self._rooms else _plan_on(self._beside_rooms(), needs)

    def _beside_rooms(self) -> Ledger[Slot]:
        """Return the ledger without what other loads count on: the bytes of their victims, and free bytes."""
        trial = self._table.ledger.copy()
        for number, (need, found) in enumerate(self._rooms.values()):
            victims = [trial.slots[name] for name in found.victims if name in trial.slots]
            for slot in victims:
                trial.mark(slot.name, state=SlotState.RETIRING)
            device = trial.devices.get(found.device_id)
            if device is None:  # it left
                continue
            claim = min(
                need.num_bytes - sum(slot.reserved_bytes for slot in victims), -trial.excess_bytes(found.device_id)
            )
            held = min(-(-claim // device.unit_bytes) * device.unit_bytes, device.capacity_bytes - device.held_bytes)
            if claim > 0 and held >= 0:
                room = Slot(name=f"room {number}", key=need.key)
                trial.reserve(room, replace(need, num_bytes=claim), found.device_id, 0.0, held)
        return trial

    def _victims(self, device_id: str | None = None) -> frozenset[str]:
        """Return the sessions that are evicted for others and still there; of one device, or None for any."""
        slots = self._table.ledger.slots
        victims = (slots[name] for _, found in self._rooms.values() for name in found.victims if name in slots)
        return frozenset(slot.name for slot in victims if device_id in (None, slot.device_id))

    async def shrink(self, name: str) -> bool:
        """Free bytes for a session that takes more than was reserved.

        Args:
            name: The session.

        Returns:
            Whether its device and the whole cluster are within their budgets now; if not, the reason is logged.
        """
        ledger = self._table.ledger
        refused = frozenset([name])
        async with self._shrinking:
            while (slot := ledger.slots.get(name)) is not None and (excess := ledger.excess_bytes(slot.device_id)) > 0:
                device = ledger.devices[slot.device_id]
                is_local = device.used_bytes > device.budget_bytes
                place = slot.device_id if is_local else None
                victim = await self.stalest(place, but=refused | self._victims())
                if victim is not None:
                    refused |= frozenset() if await self.retire(victim.name) else {victim.name}
                elif self._victims(place):  # their bytes serve this session; the load that evicts them looks again
                    await self._table.wait_for_change(_RETRY_S)
                else:
                    _log.warning(
                        "%s is over its budget of %d bytes by %d since %s takes %d, and nothing there may be evicted",
                        slot.device_id if is_local else "the cache",
                        device.budget_bytes if is_local else ledger.budget_bytes,
                        excess,
                        slot.key.model,
                        slot.reserved_bytes,
                    )
                    return False
        return True

    async def grow(self, name: str, num_bytes: int) -> bool:
        """Reserve more bytes for a session that is ready, before it takes them; idle sessions are evicted for it.

        Args:
            name: The session.
            num_bytes: What it will take in all.

        Returns:
            Whether that is reserved now.
        """
        ledger = self._table.ledger
        try:
            while (slot := ledger.slots.get(name)) is not None:
                self._rooms.pop(name, None)
                more = num_bytes - slot.reserved_bytes
                beside = self._beside_rooms()
                if more <= 0 or beside.excess_bytes(slot.device_id) + more <= 0:
                    ledger.grow(name, num_bytes)
                    return True
                device = beside.devices[slot.device_id]
                self._rooms[name] = (Need(slot.key, more), Plan(slot.device_id))
                is_local = device.used_bytes + more > device.budget_bytes
                victim = await self.stalest(slot.device_id if is_local else None, but=self._victims() | {name})
                if victim is None:
                    return False
                # nobody else counts on the bytes of this victim
                self._rooms[name] = (Need(slot.key, more), Plan(slot.device_id, (victim.name,)))
                if not await self.retire(victim.name):
                    return False
        finally:
            self._rooms.pop(name, None)
        return False

    async def stalest(self, device_id: str | None = None, but: frozenset[str] = frozenset()) -> SessionRecord | None:
        """Ask the stalest session for its true recency, again until the answer still makes it the stalest.

        Args:
            device_id: On this device; None for any.
            but: Names of sessions that are not meant.

        Returns:
            The session to evict next; None if none may be evicted.
        """
        asked: set[str] = set()
        while True:
            slot = next(
                (s for s in self._table.ledger.evictable() if s.name not in but and device_id in (None, s.device_id)),
                None,
            )
            if slot is None or slot.name in asked:
                return slot
            asked.add(slot.name)
            await self.ask(slot.name)

    async def evict_stalest(self) -> str | None:
        """Evict the stalest session, or the one after it if that is in use by now.

        Returns:
            Its model's id; None if none may be evicted.
        """
        refused: frozenset[str] = frozenset()
        while (victim := await self.stalest(but=refused)) is not None:
            if await self.retire(victim.name):
                return victim.key.model
            refused |= {victim.name}
        return None

    async def ask(self, name: str) -> Recency | None:
        """Ask a session for its recency and its bytes, and note both; remove it if it is dead.

        Args:
            name: The session.

        Returns:
            What it says; None if it is dead or silent.
        """
        table = self._table
        record = table.records.get(name)
        if record is None:
            return None
        try:
            recency = await asyncio.wait_for(recency_of(record), ANSWER_WITHIN_S)
        except TimeoutError:
            return None
        except RayError:
            if not record.is_retiring:
                table.drop(record)
            return None
        if name in table.ledger.slots:
            table.ledger.use(name, time.monotonic() - recency.idle_s, recency.use_count, recency.is_online)
            table.ledger.grow(name, recency.num_bytes)
        return recency

    async def refresh(self) -> None:
        """Ask every ready session."""
        await asyncio.gather(*(self.ask(slot.name) for slot in self._table.ledger.by_recency()))

    async def evict(self, record: SessionRecord, deadline: float) -> None:
        """Evict a session by request: wait until it has loaded and has computed what it has, or until it is gone.

        Args:
            record: The session.
            deadline: Until when, by ``time.monotonic``.

        Raises:
            ResourceExhaustedError: If it is pinned, leased, or at work until the deadline.
        """
        table = self._table
        model = record.key.model
        await table.wait_for(record.ready, record, deadline)
        while record.is_placed:
            if record.is_retiring:
                await table.wait_for(record.gone, record, deadline)
            elif record.is_pinned:
                raise ResourceExhaustedError(f"{model} is pinned", do="Unpin it first.")
            elif table.ledger.is_leased(record.key):
                raise ResourceExhaustedError(f"{model} is leased by a job", do="Wait until the job has ended.")
            elif (
                not await self.retire(record.name, max(deadline - time.monotonic(), 0.0))
                and time.monotonic() >= deadline
            ):
                raise ResourceExhaustedError(f"{model} is at work", do="Try again when it is idle.")

    async def retire(self, name: str, finish_within_s: float | None = None, *, is_closed: bool = False) -> bool:
        """Take a session out of use and end its process, or close it for another session, if the process is fit.

        Args:
            name: The session.
            finish_within_s: Most seconds to wait for what it computes, while nothing more is sent there; None to leave
                a session at work alone.
            is_closed: Whether to close it, if possible: it then stays in the table, retiring, until its process is
                taken over.

        Returns:
            Whether it is gone, or closed; false if it is at work.
        """
        table = self._table
        record = table.records[name]
        recency = await self.ask(name) or await self.ask(name)
        if table.ledger.slots.get(name) is None:
            return True
        if record.state is not SlotState.READY or record.is_pinned or table.ledger.is_leased(record.key):
            return False
        if recency is None:  # silent twice: it is stuck
            await self.end(record)
            return True
        table.ledger.mark(name, state=SlotState.RETIRING)  # from here on nobody else removes it
        try:
            asked = record.handle.try_retire.remote(name, recency.use_count if finish_within_s is None else None)
            is_retired = await asyncio.wait_for(asked, ANSWER_WITHIN_S)
            drain_within_s = ANSWER_WITHIN_S if finish_within_s is None else finish_within_s
            is_idle = is_closed or (is_retired and await self._drain(record, drain_within_s))
            if not is_retired or not is_idle:
                table.revive(record)
                self._on_revived(record)
                return False
        except (RayError, TimeoutError):
            await self.end(record)
            return True
        table.counts["evictions"] += 1
        self._on_evicted(record)
        if is_closed:
            await self._close(record)
        if record.kept_bytes is None:
            await self.end(record)
        return True

    async def end(self, record: SessionRecord) -> None:
        """End the process of a session that is lost, and remove it when its bytes are free; that may take 5 s.

        Args:
            record: The session.
        """
        await self._table.end(record)
        self._table.drop(record)

    async def _close(self, record: SessionRecord) -> None:
        """Close a session that is retired and idle; if its process is not fit, let it answer calls on their way."""
        with contextlib.suppress(RayError, TimeoutError):  # then it is ended
            record.kept_bytes = await asyncio.wait_for(record.handle.close.remote(record.name), CLOSE_WITHIN_S)
            if record.kept_bytes is None:
                await asyncio.wait_for(record.handle.drain.remote(record.name), ANSWER_WITHIN_S)

    async def _drain(self, record: SessionRecord, within_s: float) -> bool:
        """Wait until a retired session has computed what it had; take it back into use if that takes too long."""
        try:
            await asyncio.wait_for(record.handle.drain.remote(record.name), within_s)
        except TimeoutError:
            await asyncio.wait_for(record.handle.revive.remote(record.name), ANSWER_WITHIN_S)
            return False
        return True

    def _block(self, group: Sequence[SessionRecord], reason: str, do: str = "") -> bool:
        ledger = self._table.ledger
        for record in group:
            record.blocked = ResourceExhaustedError(
                f"{record.key.model} needs {self._need_of(record).num_bytes} bytes: {reason}",
                f"{ledger.budget_bytes - ledger.used_bytes} bytes are free",
                do,
            )
        return False


def _plan_on(ledger: Ledger[Record], needs: Sequence[Need]) -> list[Plan] | None:
    if len(needs) == 1:
        found = plan(ledger, needs[0])
        return None if found is None else [found]
    return plan_all(ledger, needs)
