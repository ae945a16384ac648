"""The ``CacheActor``: the one that all clients ask; decisions are ``placement``'s, work is done by the parts that it puts together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ray.exceptions import RayError
from typing_extensions import override

from genai_ray.cluster.cache.adoption import adopt
from genai_ray.cluster.cache.calls import CacheCalls, CacheOptions
from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.flight import join_flight
from genai_ray.cluster.cache.leases import Leases
from genai_ray.cluster.cache.loading import Loader
from genai_ray.cluster.cache.maintenance import Maintenance
from genai_ray.cluster.cache.measured_sizes import SizeMemory, sizes_file
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_actors import end_session, is_there, session_names, to_load_error
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.cache.status import CacheStatus, PendingStatus, describe_devices, describe_sessions
from genai_ray.cluster.messages import Acquired, Key, LeaseRequest, LoadRequest, Replica, SessionRequest, key_of
from genai_ray.cluster.placement import Ledger, Slot
from genai_ray.errors import CacheClosedError, ConfigError, GenAIRayError, ModelNotFoundError, ResourceExhaustedError

__all__ = ["CacheActor"]

_RETRY_S = 0.05

_LOOK_EVERY_S = 1.0


class CacheActor(CacheCalls):
    """One cache of the cluster; async, so that everything here runs on one thread.

    Where its process dies Ray starts it again with the same arguments, and it adopts the sessions that are there.

    Args:
        name: Name of the cache.
        budget_bytes: Most bytes of all sessions together; None for what the devices have.
        options: How it behaves.
    """

    def __init__(self, name: str, budget_bytes: int | None, options: CacheOptions) -> None:
        self._name, self._options = name, options
        self._book = SessionTable(Ledger(budget_bytes, options.policy))
        self._book.can_grow = options.can_grow
        self._metrics = CacheMetrics(name)
        self._sizes = SizeMemory(sizes_file())
        self._loader = Loader(self._book, name, options.load_within_s, self._sizes, self._metrics)
        self._evictor = Evictor(self._book, self._loader.need_of, options.min_stay_s, self._note_eviction)
        self._leases = Leases(self._book, self._evictor, self._loader.need_of, self._begin)
        self._upkeep = Maintenance(
            self._book, self._evictor, self._loader, self._leases, self._begin, options.replicas_per_device
        )
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone: dict[Key, asyncio.Lock] = {}

    @override
    async def open(self, budget_bytes: int | None, options: CacheOptions | None) -> None:
        self._opened()  # whoever needs all that is there waits for it
        if budget_bytes not in (None, self._book.ledger.total_bytes):
            await self._open()
        if budget_bytes is not None and budget_bytes != self._book.ledger.budget_bytes:
            raise ConfigError(
                f"cache {self._name!r} with a budget of {budget_bytes} bytes",
                f"{self._book.ledger.budget_bytes} bytes, which it has",
                "Use another name.",
            )
        if options is not None and options != self._options:
            raise ConfigError(
                f"cache {self._name!r} with {options}", f"{self._options}, which it has", "Use another name."
            )

    @override
    async def acquire(self, load_request: LoadRequest, lost: str | None = None) -> Acquired:
        deadline = time.monotonic() + load_request.within_s
        await self._open_for(key_of(load_request.request))
        if lost is not None:
            await self._settle_lost(lost, deadline)
            await self._open_for(key_of(load_request.request))  # to load is for when all that is there is known
        if load_request.is_explicit:
            self._loader.failures.pop(key_of(load_request.request), None)
        entries = await join_flight(load_request, deadline, self._book, self._loader.check_failing, self._begin)
        self._book.bound(load_request.request)
        return self._acquired(entries)

    @override
    async def replicas(self, key: Key) -> Acquired | None:
        await self._open()
        usable, queues = [entry for entry in self._book.of_key(key) if self._book.is_usable(entry)], dict[str, int]()
        if len(usable) > 1:
            answers = await asyncio.gather(*(self._evictor.ask(entry.name) for entry in usable))
            queues = {
                entry.name: answer.in_flight
                for entry, answer in zip(usable, answers, strict=True)
                if answer is not None
            }
            usable = [entry for entry in usable if self._book.is_usable(entry)]
        return self._acquired(usable, queues) if usable else None

    @override
    async def lease(self, request: LeaseRequest, within_s: float) -> None:
        await self._open()
        await self._leases.take(request, within_s)
        self._spawn(self._upkeep.spread())

    @override
    async def renew(self, request: LeaseRequest) -> bool:
        await self._open()
        return self._leases.renew(request)

    @override
    async def release(self, lease_id: str) -> None:
        await self._open()
        await self._leases.release(lease_id)

    @override
    async def grow(self, name: str, num_bytes: int) -> bool:
        await self._open()
        return await self._evictor.grow(name, num_bytes)

    @override
    async def dismiss(self, name: str) -> None:
        entry = self._book.entries.get(name)
        if entry is not None and entry.key.alone:
            await end_session(self._book, entry)
            self._book.drop(entry)

    @override
    async def find(self, model: str) -> SessionRequest | None:
        await self._open()
        entries = [entry for entry in self._book.of_model(model) if not entry.key.alone]
        await asyncio.gather(*(self._evictor.ask(entry.name) for entry in entries if self._book.is_usable(entry)))
        slots = {slot.name: slot for slot in self._book.ledger.by_recency()}
        ready = [entry for name in slots if (entry := self._book.entries.get(name)) in entries and entry is not None]
        return ready[-1].want.request if ready else entries[-1].want.request if entries else None

    @override
    async def memory(self) -> tuple[int, int]:
        await self._open()
        return self._book.ledger.used_bytes, self._book.ledger.budget_bytes

    @override
    async def loaded(self) -> list[str]:
        await self._open()
        await self._evictor.refresh()
        ids = [slot.key.model for slot in self._book.ledger.by_recency()]
        return list(dict.fromkeys(reversed(ids)))[::-1]

    @override
    async def evict(self, model: str, within_s: float, is_replaced: bool = False) -> int:
        await self._open()
        entries, deadline = (
            [entry for entry in self._book.of_model(model) if entry.is_begun],
            time.monotonic() + within_s,
        )
        if not entries:
            raise await self._not_loaded(model)
        for entry in entries:
            if is_replaced:  # their holders may have taken them again since the session before this one went
                await self._leases.give_way(model)
            await self._evictor.evict(entry, deadline)
        return len(entries)

    @override
    async def evict_lru(self) -> str | None:
        await self._open()
        return await self._evictor.evict_stalest()

    @override
    async def pin(self, model: str, pinned: bool) -> None:
        await self._open()
        entries = [
            entry
            for entry in self._book.of_model(model)
            if entry.name in self._book.ledger.slots and not self._book.is_retiring(entry)
        ]
        known = {key for key in self._book.pinned if key.model == model}
        if not entries and (pinned or not known):
            raise await self._not_loaded(model)
        self._book.pinned = (
            self._book.pinned | {entry.key for entry in entries} if pinned else self._book.pinned - known
        )
        for entry in entries:
            self._book.ledger.mark(entry.name, is_pinned=pinned)
        for entry in entries:
            await self._leases.tell(entry)

    @override
    async def status(self) -> CacheStatus:
        await self._open()
        await self._evictor.refresh()
        table, ledger = self._book, self._book.ledger
        kinds = sorted({device.kind for device in ledger.devices.values()})
        waiting = [entry for entry in table.entries.values() if entry.name not in ledger.slots]
        return CacheStatus(
            name=self._name,
            pid=os.getpid(),
            policy=ledger.policy.value,
            used_bytes=ledger.used_bytes,
            budget_bytes=ledger.budget_bytes,
            **table.counts,
            process_bytes={kind: self._sizes.process_bytes(kind) for kind in kinds},
            devices=describe_devices(table),
            models=await describe_sessions(table),
            history={model: dict(counts) for model, counts in table.history.items()},
            leases=len(self._leases),
            waiting=tuple(
                PendingStatus(*entry.key[:4], reason=str(entry.blocked or "about to load")) for entry in waiting
            ),
            failing=tuple(
                PendingStatus(*key[:4], reason=str(failure.error)) for key, failure in self._loader.failing().items()
            ),
        )

    @override
    async def shutdown(self) -> None:
        with contextlib.suppress(RayError, GenAIRayError, TimeoutError):
            await self._open()
        self._book.is_closed = True
        for task in self._tasks:
            task.cancel()
        for entry in list(self._book.entries.values()):
            self._book.drop(entry)
        await self._upkeep.stop()

    async def _open(self) -> None:
        """Look at the cluster and enter the sessions of an earlier life; every caller waits until that is done, once."""
        await asyncio.shield(self._opened())

    async def _open_for(self, key: Key) -> None:
        """Wait for ``_open``, or for a session of one entry, which was there in an earlier life: others may be silent, and keep nobody from it."""
        opening = self._opened()
        while not opening.done() and not any(self._book.is_usable(entry) for entry in self._book.of_key(key)):
            change = asyncio.create_task(self._book.wait_for_change(_LOOK_EVERY_S))
            await asyncio.wait([opening, change], return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        if opening.done():
            await opening

    def _opened(self) -> asyncio.Task[None]:
        """Return the first look at the cluster; one that failed is begun again."""
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._opening = asyncio.create_task(self._open_once())
        return opening

    async def _open_once(self) -> None:
        await self._upkeep.look_at_nodes()
        await asyncio.gather(*(self._adopt(name) for name in session_names()))
        self._book.is_surveyed = True
        self._spawn(self._upkeep.run(self._options.idle_release_s, self._metrics))

    async def _adopt(self, name: str) -> None:
        try:
            entry = await adopt(name, self._name, self._book, self._leases)
        except TimeoutError:
            self._spawn(self._adopt_later(name))
            return
        if entry is not None:
            self._spawn(self._evictor.end(entry) if self._book.is_retiring(entry) else self._keep(entry))

    async def _adopt_later(self, name: str) -> None:
        await asyncio.sleep(_RETRY_S)
        await self._adopt(name)

    def _begin(self, entry: Entry) -> None:
        """Load an entry, unless it is being loaded already."""
        if self._book.is_closed:
            raise CacheClosedError(f"cache {self._name!r} was shut down", do="Make a new ModelCache.")
        if not entry.is_begun:
            entry.is_begun = True
            self._book.add(entry)
            self._spawn(self._load_alone(entry) if entry.key.alone else self._load(entry))

    async def _load(self, entry: Entry) -> None:
        with self._ready_or_failed(entry):
            await self._loader.load(entry, self._evictor)
        await self._leases.tell(entry)
        await self._upkeep.watch(entry)

    @contextlib.contextmanager
    def _ready_or_failed(self, entry: Entry) -> Iterator[None]:
        """Whatever goes wrong in a load, a defect of ours as well, must leave nobody waiting, and say what it was."""
        try:
            yield
        except BaseException as exc:
            if not entry.ready.is_set():
                self._loader.fail(
                    entry,
                    ResourceExhaustedError(f"{entry.key.model} was not loaded: the cache was interrupted by {exc!r}"),
                )
            raise

    async def _load_alone(self, entry: Entry) -> None:
        """Load a session of a single request when the one before it, of the same model, is gone: one suspect at a time."""
        async with self._alone.setdefault(entry.key._replace(alone=""), asyncio.Lock()):
            self._spawn(self._load(entry))
            await entry.gone.wait()

    async def _keep(self, entry: Entry) -> None:
        """Wait for an adopted session that may still load, then watch it."""
        with self._ready_or_failed(entry):
            try:
                await self._loader.finish(entry, self._evictor)
                self._book.counts["adoptions"] += 1
            except (GenAIRayError, RayError, TimeoutError) as exc:
                self._loader.fail(entry, to_load_error(exc, entry.key.model))
                return
        await self._upkeep.watch(entry)

    async def _settle_lost(self, name: str, deadline: float) -> None:
        entry = self._book.entries.get(name)
        if entry is None or await is_there(entry):
            return
        if self._book.is_retiring(entry):
            await self._book.wait_for(entry.gone, entry, deadline)
        else:
            await self._evictor.end(entry)

    def _acquired(self, entries: list[Entry], queues: Mapping[str, int] = MappingProxyType({})) -> Acquired:
        slots = [self._book.ledger.slots[entry.name] for entry in entries]
        replicas = tuple(
            Replica(entry.name, entry.handle, entry.started.node if entry.started else "", queues.get(entry.name, 0))
            for entry in entries
        )
        return Acquired(replicas, max(slot.reserved_bytes for slot in slots), entries[0].want.request.floor_bytes)

    async def _not_loaded(self, model: str) -> ModelNotFoundError:
        return ModelNotFoundError(f"{model} is not loaded", f"{', '.join(await self.loaded()) or 'nothing is'}")

    def _note_eviction(self, slot: Slot[Key]) -> None:
        age_s = time.monotonic() - slot.arrived_s
        self._metrics.evicted(slot, age_s)
        self._book.history[slot.key.model]["evictions"] += 1
        self._book.history[slot.key.model]["hits"] += slot.uses
        self._book.history[slot.key.model]["age_at_eviction_s"] = round(age_s, 3)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no more than a weak reference
        task.add_done_callback(self._tasks.discard)
