"""Making room: sessions are asked for their true recency before one goes, and refuse while they are at work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ray.exceptions import ActorUnavailableError, RayError

from genai_ray.cluster.cache.session_actors import ANSWER_WITHIN_S, kill_and_wait
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.messages import Key, Recency
from genai_ray.cluster.placement import Ledger, Need, Plan, Slot, SlotState, check_fits, plan, plan_all
from genai_ray.errors import BackendUnavailableError, DeadlineExceededError, ResourceExhaustedError

__all__ = ["Evictor"]

_log = logging.getLogger(__name__)

_RETRY_S = 0.1


async def _recency_of(entry: Entry) -> Recency:
    """Ask a session, again while the network hides it: that says nothing of its process."""
    while True:
        try:
            recency: Recency = await entry.handle.recency.remote()
        except ActorUnavailableError:
            await asyncio.sleep(_RETRY_S)
        else:
            return recency


class Evictor:
    """Places sessions that are to come, and retires those that go for them.

    Args:
        book: Sessions and bytes.
        need_of: What an entry asks for, as things are now.
        min_stay_s: A load by itself leaves alone what came in less than this ago.
        on_evicted: Told of every session that went, before it is struck out.
    """

    def __init__(
        self,
        book: SessionTable,
        need_of: Callable[[Entry], Need[Key]],
        min_stay_s: float,
        on_evicted: Callable[[Slot[Key]], None],
    ) -> None:
        self._shrinking = asyncio.Lock()
        self._rooms: dict[str, tuple[Need[Key], Plan]] = {}
        self._book, self._need_of, self._min_stay_s, self._on_evicted = book, need_of, min_stay_s, on_evicted

    async def place(self, entry: Entry) -> None:
        """Reserve bytes on a device for a session, evicting what goes for it; waits while nothing may go.

        Args:
            entry: The session.

        Raises:
            ResourceExhaustedError: If it can never fit on a cluster that does not grow.
            BackendUnavailableError: If such a cluster has no device for it.
            DeadlineExceededError: If nobody waits for it any more.
        """
        book = self._book
        while True:
            try:
                if await self.try_place([entry]):
                    return
                check_fits(book.ledger, self._need_of(entry))
            except (ResourceExhaustedError, BackendUnavailableError) as exc:
                if not book.can_grow:
                    raise
                entry.blocked = exc
            if entry.waiters == 0:
                raise entry.blocked or DeadlineExceededError(f"nobody waits for {entry.key.model} any more")
            await book.wait_for_change(_RETRY_S)

    async def try_place(self, group: Sequence[Entry]) -> bool:
        """Reserve bytes for all sessions of a group or for none; others may make room for theirs meanwhile, and none takes what another one makes.

        Args:
            group: The sessions; for a chain several.

        Returns:
            Whether they are in the ledger now; where not, ``blocked`` of each says why.
        """
        ledger = self._book.ledger
        asked: set[str] = set()
        while True:
            waiting = self._waiting(group)
            if any(entry.name in self._rooms for entry in waiting):
                return self._block(group, "room is made for it already")
            needs = [self._need_of(entry) for entry in waiting]
            plans = self.plan(needs)
            if plans is None:
                return self._block(group, "what is there is in use, pinned or leased")
            victims = dict.fromkeys(name for found in plans for name in found.victims)
            unknown = [name for name in victims if name not in asked]
            if not unknown:
                break
            asked.update(unknown)
            await asyncio.gather(*(self.ask(name) for name in unknown))
        youngest = max((ledger.slots[name].arrived_s for name in victims), default=0.0)
        if time.monotonic() - youngest < self._min_stay_s and not any(entry.want.is_explicit for entry in group):
            return self._block(
                group,
                f"it would push out a model loaded less than {self._min_stay_s:g} s ago: more models are used in turn than there is room for",
                "Give the cache a larger budget, or lower min_stay_s.",
            )
        rooms = {entry.name: room for entry, room in zip(waiting, zip(needs, plans, strict=True), strict=True)}
        self._rooms.update(rooms)
        try:
            for name in victims:
                model = ledger.slots[name].key.model if name in ledger.slots else ""
                if model and not await self.retire(name):
                    return self._block(group, f"{model}, the next to go, is at work")
        finally:
            for name in rooms:
                del self._rooms[name]
        return self._reserve(group, waiting, rooms)

    def _waiting(self, group: Sequence[Entry]) -> list[Entry]:
        """Return those of a group that have no place yet; a lease and a load may both look for one."""
        return [entry for entry in group if entry.name not in self._book.ledger.slots]

    def _reserve(
        self, group: Sequence[Entry], waiting: Sequence[Entry], rooms: Mapping[str, tuple[Need[Key], Plan]]
    ) -> bool:
        """Enter a group where room was made for it; nothing else happens meanwhile."""
        ledger, done = self._book.ledger, list[Entry]()
        if any(entry.ready.is_set() or entry.gone.is_set() for entry in waiting):  # given up meanwhile
            return self._block(group, "nobody waits for it any more")
        for entry in self._waiting(waiting):
            need, found = rooms[entry.name]
            try:
                ledger.reserve(entry.name, need, found.device_id, entry.want.request.floor_bytes or 0, time.monotonic())
            except (ResourceExhaustedError, KeyError):  # something grew, or the device left, while victims went
                for placed in done:
                    ledger.release(placed.name)
                return self._block(group, "the room that was made was taken meanwhile")
            done.append(entry)
        for entry in group:
            entry.blocked = None
        return True

    def plan(self, needs: Sequence[Need[Key]]) -> list[Plan] | None:
        """Choose devices and what goes, beside the room that others make at the moment.

        Args:
            needs: What is to come, all of it or nothing.

        Returns:
            One plan each; None while they do not all fit.
        """
        found = self._plan_on(self._book.ledger, needs)
        return found if found is None or not self._rooms else self._plan_on(self._beside_rooms(), needs)

    def _beside_rooms(self) -> Ledger[Key]:
        """Return the ledger without what others count on: sessions that go for them, and what is free and needed beside those."""
        trial = self._book.ledger.copy()
        for number, (need, found) in enumerate(self._rooms.values()):
            going = [trial.slots[name] for name in found.victims if name in trial.slots]
            for slot in going:
                trial.mark(slot.name, state=SlotState.RETIRING)
            device = trial.devices.get(found.device_id)
            if device is None:  # it left
                continue
            claim = min(
                need.num_bytes - sum(slot.reserved_bytes for slot in going), -trial.excess_bytes(found.device_id)
            )
            held = min(-(-claim // device.unit_bytes) * device.unit_bytes, device.capacity_bytes - device.held_bytes)
            if claim > 0 and held >= 0:
                trial.reserve(f"room {number}", replace(need, num_bytes=claim), found.device_id, 0, 0.0, held)
        return trial

    def _going(self, device_id: str | None = None) -> frozenset[str]:
        """Return the sessions that go for what others make room for, and are still there; of one device, or None for any."""
        slots = self._book.ledger.slots
        going = (slots[name] for _, found in self._rooms.values() for name in found.victims if name in slots)
        return frozenset(slot.name for slot in going if device_id in (None, slot.device_id))

    async def shrink(self, name: str) -> bool:
        """Make room for a session that takes more than was reserved.

        Args:
            name: The session.

        Returns:
            Whether its device and the whole cluster are within their budgets now; where nothing may go, that is logged.
        """
        ledger, refused = self._book.ledger, frozenset([name])
        async with self._shrinking:
            while (slot := ledger.slots.get(name)) is not None and (excess := ledger.excess_bytes(slot.device_id)) > 0:
                device = ledger.devices[slot.device_id]
                is_local = device.used_bytes > device.budget_bytes
                place = slot.device_id if is_local else None
                victim = await self.stalest(place, but=refused | self._going())
                if victim is not None:
                    refused |= frozenset() if await self.retire(victim.name) else {victim.name}
                elif self._going(
                    place
                ):  # when they are gone, the one that they go for finds less than it needs, and looks again
                    await self._book.wait_for_change(_RETRY_S)
                else:
                    _log.warning(
                        "%s is over its budget of %d bytes by %d since %s takes %d, and nothing there may go",
                        slot.device_id if is_local else "the cache",
                        device.budget_bytes if is_local else ledger.budget_bytes,
                        excess,
                        slot.key.model,
                        slot.reserved_bytes,
                    )
                    return False
        return True

    async def grow(self, name: str, num_bytes: int) -> bool:
        """Reserve more bytes for a session that is ready, before it takes them; idle ones go for it.

        Args:
            name: The session.
            num_bytes: What it will take in all.

        Returns:
            Whether that is reserved now.
        """
        ledger = self._book.ledger
        try:
            while (slot := ledger.slots.get(name)) is not None:
                self._rooms.pop(name, None)
                more, beside = num_bytes - slot.reserved_bytes, self._beside_rooms()
                if more <= 0 or beside.excess_bytes(slot.device_id) + more <= 0:
                    ledger.grow(name, num_bytes)
                    return True
                device = beside.devices[slot.device_id]
                self._rooms[name] = (Need(slot.key, more), Plan(slot.device_id))
                is_local = device.used_bytes + more > device.budget_bytes
                victim = await self.stalest(slot.device_id if is_local else None, but=self._going() | {name})
                if victim is None:
                    return False
                self._rooms[name] = (
                    Need(slot.key, more),
                    Plan(slot.device_id, (victim.name,)),
                )  # it goes for nobody else
                if not await self.retire(victim.name):
                    return False
        finally:
            self._rooms.pop(name, None)
        return False

    async def stalest(self, device_id: str | None = None, but: frozenset[str] = frozenset()) -> Slot[Key] | None:
        """Ask the stalest session for its true recency, again until the answer still makes it the stalest.

        Args:
            device_id: On this device; None for any.
            but: Names of sessions that must not go.

        Returns:
            The session that goes next; None where none may.
        """
        asked: set[str] = set()
        while True:
            slot = next(
                (s for s in self._book.ledger.leaving() if s.name not in but and device_id in (None, s.device_id)), None
            )
            if slot is None or slot.name in asked:
                return slot
            asked.add(slot.name)
            await self.ask(slot.name)

    async def evict_stalest(self) -> str | None:
        """Evict the session that goes next, or if it is used meanwhile the one after it.

        Returns:
            Its model's id; None where none may go.
        """
        refused: frozenset[str] = frozenset()
        while (victim := await self.stalest(but=refused)) is not None:
            if await self.retire(victim.name):
                return victim.key.model
            refused |= {victim.name}
        return None

    async def ask(self, name: str) -> Recency | None:
        """Ask a session for its recency and its bytes, and enter both; one that is dead is struck out.

        Args:
            name: The session.

        Returns:
            What it says; None where it is dead or silent.
        """
        book = self._book
        entry = book.entries.get(name)
        if entry is None:
            return None
        try:
            recency = await asyncio.wait_for(_recency_of(entry), ANSWER_WITHIN_S)
        except TimeoutError:
            return None
        except RayError:
            if not book.is_retiring(entry):
                book.drop(entry)
            return None
        if name in book.ledger.slots:
            book.ledger.use(name, time.monotonic() - recency.idle_s, recency.use_count, recency.is_online)
            book.ledger.grow(name, recency.num_bytes)
        return recency

    async def refresh(self) -> None:
        """Ask every ready session."""
        await asyncio.gather(*(self.ask(slot.name) for slot in self._book.ledger.by_recency()))

    async def evict(self, entry: Entry, deadline: float) -> None:
        """Evict a session that somebody named: when it has loaded and what it computes is done, or when it is gone that goes already.

        Args:
            entry: The session.
            deadline: Until when, by ``time.monotonic``.

        Raises:
            ResourceExhaustedError: If it is pinned, leased, or at work until the deadline.
        """
        book, model = self._book, entry.key.model
        await book.wait_for(entry.ready, entry, deadline)
        while (slot := book.ledger.slots.get(entry.name)) is not None:
            if slot.state is SlotState.RETIRING:
                await book.wait_for(entry.gone, entry, deadline)
            elif slot.is_pinned:
                raise ResourceExhaustedError(f"{model} is pinned", do="Unpin it first.")
            elif book.ledger.is_leased(slot.key):
                raise ResourceExhaustedError(f"{model} is leased by a job", do="Wait for its end.")
            elif (
                not await self.retire(entry.name, max(deadline - time.monotonic(), 0.0))
                and time.monotonic() >= deadline
            ):
                raise ResourceExhaustedError(f"{model} is at work", do="Try again when it is idle.")

    async def retire(self, name: str, finish_within_s: float | None = None) -> bool:
        """Take a session out of use and end its process.

        Args:
            name: The session.
            finish_within_s: Most seconds to wait for what it computes, while nothing more is sent there; None to leave a session alone
                that is at work.

        Returns:
            Whether it is gone; false where it is at work.
        """
        book, ledger = self._book, self._book.ledger
        entry = book.entries[name]
        recency = await self.ask(name) or await self.ask(name)
        slot = ledger.slots.get(name)
        if slot is None:
            return True
        if slot.state is not SlotState.READY or slot.is_pinned or ledger.is_leased(slot.key):
            return False
        if recency is None:  # silent twice: stuck, and of no use to anybody
            await self.end(entry)
            return True
        ledger.mark(name, state=SlotState.RETIRING)  # from here on nobody else strikes it out
        try:
            asked = entry.handle.try_retire.remote(recency.use_count if finish_within_s is None else None)
            if not await asyncio.wait_for(asked, ANSWER_WITHIN_S):
                book.keep(entry)
                return False
            if not await self._drain(entry, ANSWER_WITHIN_S if finish_within_s is None else finish_within_s):
                book.keep(entry)
                return False
        except (RayError, TimeoutError):
            await self.end(entry)
            return True
        await kill_and_wait(entry)
        book.counts["evictions"] += 1
        self._on_evicted(slot)
        book.drop(entry)
        return True

    async def end(self, entry: Entry) -> None:
        """End the process of a session that is lost, and strike it out when its bytes are free; a stopped process takes Ray 5 s.

        Args:
            entry: The session.
        """
        if entry.name in self._book.ledger.slots:
            self._book.ledger.mark(entry.name, state=SlotState.RETIRING)  # from here on nobody else strikes it out
        await kill_and_wait(entry)
        self._book.drop(entry)

    async def _drain(self, entry: Entry, within_s: float) -> bool:
        """Wait until a retired session has computed what it had; one that takes too long is taken into use again."""
        try:
            await asyncio.wait_for(entry.handle.drain.remote(), within_s)
        except TimeoutError:
            await asyncio.wait_for(entry.handle.revive.remote(), ANSWER_WITHIN_S)
            return False
        return True

    def _plan_on(self, ledger: Ledger[Key], needs: Sequence[Need[Key]]) -> list[Plan] | None:
        if len(needs) == 1:
            found = plan(ledger, needs[0])
            return None if found is None else [found]
        return plan_all(ledger, needs)

    def _block(self, group: Sequence[Entry], reason: str, do: str = "") -> bool:
        ledger = self._book.ledger
        for entry in group:
            entry.blocked = ResourceExhaustedError(
                f"{entry.key.model} needs {self._need_of(entry).num_bytes} bytes: {reason}",
                f"{ledger.budget_bytes - ledger.used_bytes} bytes are free",
                do,
            )
        return False
