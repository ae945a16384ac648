"""The ``CacheActor``: loads, evicts and keeps the ledger; decisions are ``placement``'s."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Coroutine
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from genai_ray.cluster.actor import Description, Recency, SessionRequest
from genai_ray.cluster.placement import Ledger, Slot, SlotState
from genai_ray.cluster.sessions import NAMESPACE, Entry, Key, check_device, is_there, key_of, session_names, start_session, to_load_error
from genai_ray.errors import ConfigError, GenAIRayError, ModelNotFoundError, ResourceExhaustedError

__all__ = ["CacheActor"]

_GONE_WITHIN_S = 10.0
_RETRY_S = 0.05
_ROOM_WITHIN_S = 60.0
_LOAD_WITHIN_S = 300.0


class CacheActor:
    """One cache of the cluster; async, so that everything here runs on one thread.

    Where its process dies Ray starts it again with the same arguments, and it adopts the sessions that are there.

    Args:
        name: Name of the cache.
        budget_bytes: Most bytes of all sessions together.
    """

    def __init__(self, name: str, budget_bytes: int) -> None:
        self._name = name
        self._ledger: Ledger[Key] = Ledger(budget_bytes)
        self._adopting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._entries: dict[Key, Entry] = {}
        self._making_room = asyncio.Lock()
        self._counts = {"loads": 0, "adoptions": 0, "evictions": 0, "failures": 0}

    async def open(self, budget_bytes: int | None) -> int:
        """Join the cache.

        Args:
            budget_bytes: The budget that the caller means it to have; None for any.

        Returns:
            The budget in force.

        Raises:
            ConfigError: If the cache has another budget.
        """
        await self._adopt()
        if budget_bytes is not None and budget_bytes != self._ledger.budget_bytes:
            raise ConfigError(
                f"cache {self._name!r} with a budget of {budget_bytes} bytes",
                f"{self._ledger.budget_bytes} bytes, which it has",
                "Use another name.",
            )
        return self._ledger.budget_bytes

    async def acquire(self, request: SessionRequest, needed_bytes: int, lost: str | None = None) -> tuple[str, Any]:
        """Return a ready session, loaded where it is not there; concurrent calls for one entry load it once.

        Args:
            request: Which session.
            needed_bytes: Bytes to reserve for a new one.
            lost: Name of a session that the caller saw dead or retired.

        Returns:
            Name and handle of its actor.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """
        await self._adopt()
        key = key_of(request)
        while True:
            entry = self._entries.get(key)
            if entry is not None and entry.name == lost and not await is_there(entry):
                if self._is_retiring(key):
                    await entry.gone.wait()  # its bytes are not free before its process is gone
                elif self._entries.get(key) is entry:
                    self._drop(key)
                continue
            if entry is None:
                entry = Entry(request, f"session:{request.model}:{uuid.uuid4().hex[:12]}", None)
                self._entries[key] = entry
                self._spawn(self._load(key, entry, needed_bytes))
            await entry.ready.wait()
            if entry.error is not None:
                raise entry.error
            if self._entries.get(key) is entry:
                return entry.name, entry.handle

    async def find(self, model: str) -> SessionRequest | None:
        """Return the entry of a model that was used last.

        Args:
            model: Canonical id.

        Returns:
            Its request, or None where no entry of it is loaded.
        """
        await self._adopt()
        await self._refresh()
        slots = [slot for slot in self._ledger.by_recency() if slot.key[0] == model]
        loading = [entry.request for key, entry in self._entries.items() if key[0] == model]
        return self._entries[slots[-1].key].request if slots else loading[-1] if loading else None

    async def memory(self) -> tuple[int, int]:
        """Return bytes used and the budget.

        Returns:
            Both in bytes.
        """
        await self._adopt()
        return self._ledger.used_bytes, self._ledger.budget_bytes

    async def loaded(self) -> list[str]:
        """Return the ids of ready entries, least recently used first.

        Returns:
            The ids; a model with several entries once, at its latest.
        """
        await self._adopt()
        await self._refresh()
        ids = [slot.key[0] for slot in self._ledger.by_recency()]
        return [model for index, model in enumerate(ids) if model not in ids[index + 1 :]]

    async def evict(self, model: str) -> int:
        """Evict every entry of a model.

        Args:
            model: Canonical id.

        Returns:
            The number of entries that went.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If one is pinned, loading, or at work until the deadline.
        """
        await self._adopt()
        keys = [key for key in self._entries if key[0] == model]
        if not keys:
            raise ModelNotFoundError(f"{model} is not loaded", f"{', '.join(await self.loaded()) or 'nothing is'}")
        for key in keys:
            await self._entries[key].ready.wait()
            slot = self._ledger.slots.get(key)
            if slot is None:
                continue
            if slot.pinned:
                raise ResourceExhaustedError(f"{model} is pinned", do="Unpin it first.")
            deadline = time.monotonic() + _ROOM_WITHIN_S
            while not await self._retire(slot):
                if time.monotonic() > deadline:
                    raise ResourceExhaustedError(f"{model} is at work", do="Try again when it is idle.")
                await asyncio.sleep(_RETRY_S)
        return len(keys)

    async def evict_lru(self) -> str | None:
        """Evict the entry that was not used for the longest time.

        Returns:
            Its model's id, or None where none may go.
        """
        await self._adopt()
        async with self._making_room:
            victim = await self._stalest(frozenset())
            return victim.key[0] if victim is not None and await self._retire(victim) else None

    async def pin(self, model: str, pinned: bool) -> None:
        """Keep every entry of a model, or let it go again.

        Args:
            model: Canonical id.
            pinned: Which.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        await self._adopt()
        slots = [slot for key, slot in self._ledger.slots.items() if key[0] == model]
        if not slots:
            raise ModelNotFoundError(f"{model} is not loaded", f"{', '.join(await self.loaded()) or 'nothing is'}")
        for slot in slots:
            slot.pinned = pinned
            entry = self._entries[slot.key]
            if isinstance(entry.handle, ActorHandle):
                with contextlib.suppress(RayError):  # one that is dead is struck out, and its pin with it
                    await entry.handle.pin.remote(pinned)

    async def status(self) -> dict[str, Any]:
        """Return the whole state, fit for JSON.

        Returns:
            Budget, bytes, counts, and one entry a session, least recently used first.
        """
        await self._adopt()
        await self._refresh()
        ledger = self._ledger
        models = []
        for slot in sorted(ledger.slots.values(), key=lambda slot: slot.last_used_s):
            session: dict[str, Any] = {}
            if slot.state is SlotState.READY:
                try:
                    session = await self._entries[slot.key].handle.status.remote()
                except RayActorError:
                    session = {"dead": True}
            model, backend, precision, device = slot.key
            models.append(
                {"model_id": model, "backend": backend, "precision": precision, "device": device, "state": slot.state.value}
                | {"bytes": slot.reserved_bytes, "floor_bytes": slot.floor_bytes, "pinned": slot.pinned, "session": session}
            )
        return {"name": self._name, "pid": os.getpid(), "used_bytes": ledger.used_bytes, "budget_bytes": ledger.budget_bytes, **self._counts, "models": models}

    async def shutdown(self) -> None:
        """End every session."""
        for key in list(self._entries):
            self._drop(key)

    async def _adopt(self) -> None:
        """Enter the sessions that an earlier life of this cache has left; every caller waits until that is done, once."""
        if self._adopting is None:
            self._adopting = asyncio.create_task(self._adopt_all())
        await self._adopting

    async def _adopt_all(self) -> None:
        await asyncio.gather(*(self._adopt_one(name) for name in session_names()))

    async def _adopt_one(self, name: str) -> None:
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
            found: Description = await asyncio.wait_for(handle.describe.remote(), _GONE_WITHIN_S)
        except (RayError, TimeoutError, ValueError):
            return  # gone or silent: not known to be ours, so not ours to end
        if found.cache != self._name:
            return
        key = key_of(found.request)
        if found.retired or key in self._entries or not self._ledger.has_room(found.reserved_bytes):
            ray.kill(handle)
            return
        entry = Entry(found.request, name, handle, adopted=True)
        self._entries[key] = entry
        self._ledger.reserve(key, found.reserved_bytes, found.request.floor_bytes or 0, time.monotonic()).pinned = found.pinned
        self._spawn(self._finish(key, entry))

    async def _load(self, key: Key, entry: Entry, needed_bytes: int) -> None:
        """Make room, start the process and load; what fails is the entry's error."""
        try:
            check_device(entry.request.device)
            await self._make_room(key, entry.request.model, needed_bytes)
        except GenAIRayError as exc:
            self._fail(key, entry, exc)
            return
        start_session(entry, self._name, needed_bytes)
        await self._finish(key, entry)

    async def _finish(self, key: Key, entry: Entry) -> None:
        """Wait until a session has loaded, enter what it takes, and watch it from then on."""
        ledger = self._ledger
        try:
            measured = await asyncio.wait_for(entry.handle.load.remote(), _LOAD_WITHIN_S)
            if self._entries.get(key) is not entry:
                raise ResourceExhaustedError(f"{entry.request.model} was dropped while it loaded")
            if not ledger.settle(key, measured):
                await self._shrink(key)
            self._counts["adoptions" if entry.adopted else "loads"] += 1
        except (GenAIRayError, RayError, TimeoutError) as exc:
            self._fail(key, entry, to_load_error(exc, entry.request.model, _LOAD_WITHIN_S))
            return
        entry.ready.set()
        self._spawn(self._watch(key, entry))

    def _fail(self, key: Key, entry: Entry, error: GenAIRayError) -> None:
        self._counts["failures"] += 1
        entry.error = error
        if self._entries.get(key) is entry:
            self._drop(key)
        entry.ready.set()

    async def _watch(self, key: Key, entry: Entry) -> None:
        """Strike a session out as soon as its process dies, whether anybody uses it or not."""
        while self._entries.get(key) is entry:
            try:
                await entry.handle.watch.remote()
            except ActorUnavailableError:
                await asyncio.sleep(_RETRY_S)
            except RayError:
                break
        if self._entries.get(key) is entry and not self._is_retiring(key):
            self._drop(key)

    def _is_retiring(self, key: Key) -> bool:
        return key in self._ledger.slots and self._ledger.slots[key].state is SlotState.RETIRING

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no more than a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _make_room(self, key: Key, model: str, needed_bytes: int) -> None:
        """Evict in LRU order until the bytes are free, and reserve them."""
        ledger = self._ledger
        ledger.check_fits(needed_bytes, model)
        deadline = time.monotonic() + _ROOM_WITHIN_S
        async with self._making_room:
            while not ledger.has_room(needed_bytes):
                victim = await self._stalest(frozenset([key]))
                if victim is None or not await self._retire(victim):
                    if time.monotonic() > deadline:
                        raise ResourceExhaustedError(
                            f"{model} needs {needed_bytes} bytes",
                            f"{ledger.budget_bytes - ledger.used_bytes} are free and the rest is in use or pinned",
                        )
                    await asyncio.sleep(_RETRY_S)
            ledger.reserve(key, needed_bytes, self._entries[key].request.floor_bytes or 0, time.monotonic())

    async def _shrink(self, key: Key) -> None:
        """Make room for a session that took more than was reserved."""
        ledger, taken = self._ledger, self._ledger.slots[key].reserved_bytes
        ledger.check_fits(taken, key[0])
        async with self._making_room:
            while ledger.used_bytes > ledger.budget_bytes:
                victim = await self._stalest(frozenset([key]))
                if victim is None or not await self._retire(victim):
                    raise ResourceExhaustedError(f"{key[0]} took {taken} bytes", f"{ledger.budget_bytes} bytes for everything")

    async def _stalest(self, but: frozenset[Key]) -> Slot[Key] | None:
        """Ask the stalest candidate for its true recency, again until the answer still makes it the stalest."""
        ledger = self._ledger
        while (slot := ledger.stalest(but)) is not None:
            before = slot.last_used_s
            await self._ask(slot)
            if slot.key not in ledger.slots:
                continue
            if slot.last_used_s <= before or ledger.stalest(but) is slot:
                return slot
        return None

    async def _ask(self, slot: Slot[Key]) -> Recency | None:
        try:
            recency: Recency = await self._entries[slot.key].handle.recency.remote()
        except RayActorError:
            if slot.state is not SlotState.RETIRING:
                self._drop(slot.key)
            return None
        slot.last_used_s = max(slot.last_used_s, time.monotonic() - recency.idle_s)
        return recency

    async def _refresh(self) -> None:
        ready = [slot for slot in self._ledger.slots.values() if slot.state is SlotState.READY]
        await asyncio.gather(*(self._ask(slot) for slot in ready))

    async def _retire(self, slot: Slot[Key]) -> bool:
        """Take a session out of use and end its process; False where it is at work."""
        recency = await self._ask(slot)
        if recency is None:
            return True
        entry = self._entries[slot.key]
        slot.state = SlotState.RETIRING  # from here on nobody else strikes it out
        try:
            if not await entry.handle.try_retire.remote(recency.use_count):
                slot.state = SlotState.READY
                return False
        except RayActorError:
            self._drop(slot.key)
            return True
        with contextlib.suppress(RayError):
            await entry.handle.drain.remote()
        ray.kill(entry.handle)
        deadline = time.monotonic() + _GONE_WITHIN_S
        while time.monotonic() < deadline:
            try:
                await entry.handle.recency.remote()
            except RayActorError:
                break
            await asyncio.sleep(_RETRY_S)
        self._counts["evictions"] += 1
        if self._entries.get(slot.key) is entry:
            self._drop(slot.key)
        return True

    def _drop(self, key: Key) -> None:
        """Forget a session that is dead or failed, and make sure that its process ends."""
        entry = self._entries.pop(key, None)
        self._ledger.release(key)
        if entry is not None:
            entry.gone.set()
            if isinstance(entry.handle, ActorHandle):
                ray.kill(entry.handle)
