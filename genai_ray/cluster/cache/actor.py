"""``CacheActor`` answers all clients: it puts the parts of the cache together, and adopts sessions when it restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError
from typing_extensions import override

from genai_ray.cluster.cache.calls import CacheCalls, CacheOptions
from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.leases import Leases
from genai_ray.cluster.cache.loading import Loader
from genai_ray.cluster.cache.maintenance import Maintenance
from genai_ray.cluster.cache.measured_sizes import SizeMemory, sizes_file
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_actors import (
    NAMESPACE,
    RaySessions,
    is_there,
    session_names,
    to_load_error,
)
from genai_ray.cluster.cache.session_table import SessionProcesses, SessionRecord, SessionTable
from genai_ray.cluster.cache.status import CacheStatus, PendingStatus, describe_devices, describe_sessions
from genai_ray.cluster.devices import device_of
from genai_ray.cluster.messages import (
    Acquired,
    Description,
    Key,
    LeaseRequest,
    LoadRequest,
    Replica,
    SessionRequest,
    key_of,
)
from genai_ray.cluster.placement import Ledger, Need, SlotState
from genai_ray.errors import CacheClosedError, ConfigError, GenAIRayError, ModelNotFoundError, ResourceExhaustedError

__all__ = ["CacheActor", "enter"]

_RETRY_S = 0.05

_LOOK_EVERY_S = 1.0

_DESCRIBE_WITHIN_S = 10.0


class CacheActor(CacheCalls):
    """One cache of the cluster; async, so that everything here runs on one thread.

    If its process dies, Ray starts it again with the same arguments, and it adopts the sessions that are there.

    Args:
        name: Name of the cache.
        budget_bytes: Most bytes of all sessions together; None for what the devices have.
        options: How it behaves.
        processes: Starts and kills the processes of sessions; None for actors of Ray.
    """

    def __init__(
        self,
        name: str,
        budget_bytes: int | None,
        options: CacheOptions,
        processes: SessionProcesses | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._table = SessionTable(Ledger(budget_bytes, options.policy), processes or RaySessions(name))
        self._table.can_grow = options.can_grow
        self._metrics = CacheMetrics(name)
        self._sizes = SizeMemory(sizes_file())
        self._loader = Loader(self._table, options.load_within_s, self._sizes, self._metrics)
        self._evictor = Evictor(
            self._table, self._loader.need_of, options.min_stay_s, self._note_eviction, self._tell_later
        )
        self._leases = Leases(self._table, self._evictor, self._loader.need_of, self._begin)
        self._maintenance = Maintenance(self._table, self._evictor, self._loader, self._leases, self._begin, options)
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone: dict[Key, asyncio.Lock] = {}

    @override
    async def open(self, budget_bytes: int | None, options: CacheOptions | None) -> None:
        self._opened()  # calls that need to know all sessions wait for it
        if budget_bytes not in (None, self._table.ledger.total_bytes):
            await self._open()
        ledger = self._table.ledger
        known = ledger.budget_bytes if ledger.total_bytes is None else ledger.total_bytes
        if budget_bytes not in (None, known):
            raise ConfigError(
                f"cache {self._name!r} with a budget of {budget_bytes} bytes",
                f"{known} bytes, which it has",
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
            await self._open_for(
                key_of(load_request.request)
            )  # nothing is loaded before all existing sessions are known
        if load_request.is_explicit:
            self._loader.failures.pop(key_of(load_request.request), None)
        records = await self._loader.join(load_request, deadline, self._begin)
        self._table.limit_replicas(load_request.request)
        return _acquired(records)

    @override
    async def replicas(self, key: Key) -> Acquired | None:
        await self._open()
        usable = [record for record in self._table.of_key(key) if record.is_usable]
        queues: dict[str, int] = {}
        if len(usable) > 1:
            names = [record.name for record in usable]
            answers = await asyncio.gather(*(self._evictor.ask(name) for name in names))
            queues = {name: answer.in_flight for name, answer in zip(names, answers, strict=True) if answer is not None}
            usable = [record for record in usable if record.is_usable]
        return _acquired(usable, queues) if usable else None

    @override
    async def lease(self, request: LeaseRequest, within_s: float) -> None:
        await self._open()
        await self._leases.take(request, within_s)
        self._spawn(self._maintenance.spread())

    @override
    async def renew(self, request: LeaseRequest) -> bool:
        await self._open()
        return await self._leases.renew(request)

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
        record = self._table.records.get(name)
        if record is not None and record.key.alone:
            await self._evictor.end(record)

    @override
    async def find(self, model: str) -> SessionRequest | None:
        await self._open()
        records = [record for record in self._table.of_model(model) if not record.key.alone]
        await asyncio.gather(*(self._evictor.ask(record.name) for record in records if record.is_usable))
        ready = [record for record in self._table.ledger.by_recency() if record in records]
        latest = ready[-1:] or records[-1:]
        return latest[0].load_request.request if latest else None

    @override
    async def memory(self) -> tuple[int, int]:
        await self._open()
        return self._table.ledger.used_bytes, self._table.ledger.budget_bytes

    @override
    async def loaded(self) -> list[str]:
        await self._open()
        await self._evictor.refresh()
        ids = [slot.key.model for slot in self._table.ledger.by_recency()]
        return list(dict.fromkeys(reversed(ids)))[::-1]

    @override
    async def evict(self, model: str, within_s: float, is_replaced: bool = False) -> int:
        await self._open()
        records = [record for record in self._table.of_model(model) if record.is_begun]
        deadline = time.monotonic() + within_s
        if not records:
            raise await self._not_loaded(model)
        for record in records:
            if is_replaced:  # holders may have taken their leases again since the eviction before this one
                await self._leases.give_way(model)
            await self._evictor.evict(record, deadline)
        return len(records)

    @override
    async def evict_lru(self) -> str | None:
        await self._open()
        return await self._evictor.evict_stalest()

    @override
    async def pin(self, model: str, pinned: bool) -> None:
        await self._open()
        records = [record for record in self._table.of_model(model) if record.is_placed and not record.is_retiring]
        known = {key for key in self._table.pinned if key.model == model}
        if not records and (pinned or not known):
            raise await self._not_loaded(model)
        if pinned:
            self._table.pinned |= {record.key for record in records}
        else:
            self._table.pinned -= known
        for record in records:
            self._table.ledger.mark(record.name, is_pinned=pinned)
        for record in records:
            await self._leases.tell(record)

    @override
    async def status(self) -> CacheStatus:
        await self._open()
        await self._evictor.refresh()
        table = self._table
        ledger = table.ledger
        kinds = sorted({device.kind for device in ledger.devices.values()})
        waiting = [record for record in table.records.values() if not record.is_placed]
        return CacheStatus(
            name=self._name,
            pid=os.getpid(),
            policy=ledger.policy.value,
            used_bytes=ledger.used_bytes,
            budget_bytes=ledger.budget_bytes,
            **table.counts,
            process_bytes={kind: self._sizes.process_bytes(kind) for kind in kinds},
            devices=describe_devices(table, self._maintenance.spares.pids),
            models=await describe_sessions(table),
            history={model: dict(counts) for model, counts in table.history.items()},
            leases=len(self._leases),
            waiting=tuple(
                PendingStatus(*record.key[:4], reason=str(record.blocked or "about to load")) for record in waiting
            ),
            failing=tuple(
                PendingStatus(*key[:4], reason=str(failure.error)) for key, failure in self._loader.failing().items()
            ),
        )

    @override
    async def shutdown(self) -> None:
        with contextlib.suppress(RayError, GenAIRayError, TimeoutError):
            await self._open()
        self._table.is_closed = True
        for task in self._tasks:
            task.cancel()
        for record in list(self._table.records.values()):
            self._table.drop(record)
        await self._maintenance.stop()

    async def _open(self) -> None:
        """Look at the cluster and adopt the sessions that are there; every caller waits until that is done, once."""
        await asyncio.shield(self._opened())

    async def _open_for(self, key: Key) -> None:
        """Wait for ``_open``, or only until a session of this key is usable: silent ones of others delay no call."""
        opening = self._opened()
        while not opening.done() and not any(record.is_usable for record in self._table.of_key(key)):
            change = asyncio.create_task(self._table.wait_for_change(_LOOK_EVERY_S))
            await asyncio.wait([opening, change], return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        if opening.done():
            await opening

    def _opened(self) -> asyncio.Task[None]:
        """Return the first look at the cluster; start it again if it failed."""
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._opening = asyncio.create_task(self._open_once())
        return opening

    async def _open_once(self) -> None:
        await self._maintenance.look_at_nodes()
        await asyncio.gather(*(self._adopt(name) for name in session_names()))
        self._table.is_surveyed = True
        self._spawn(self._maintenance.run(self._metrics))

    async def _adopt(self, actor: str) -> None:
        """Enter a session that runs already; end it if it has no place, leave it alone if another cache owns it."""
        try:
            handle = ray.get_actor(actor, namespace=NAMESPACE)
            found: Description = await asyncio.wait_for(handle.describe.remote(), _DESCRIBE_WITHIN_S)
            if found.cache == self._name and not self.take_over(handle, found):
                ray.kill(handle)
        except (RayError, ValueError):
            return
        except TimeoutError:  # it does not answer, so nobody knows whose it is; or its device is not known yet
            self._spawn(self._adopt_later(actor))

    def take_over(self, handle: Any, found: Description) -> bool:
        """Enter a session of this cache that runs already, and wait until it has loaded, or has retired.

        Args:
            handle: Its actor.
            found: What it says of itself.

        Returns:
            Whether it has a place here.

        Raises:
            TimeoutError: If its device is not known yet.
        """
        record = enter(found, self._table, self._leases)
        if record is None:
            return False
        record.handle = handle
        for heir in self._table.of_key(record.key):
            if heir.is_usable:  # what is kept because of this one, which retires
                self._tell_later(heir)
        self._spawn(self._evictor.end(record) if record.is_retiring else self._keep(record))
        return True

    async def _adopt_later(self, actor: str) -> None:
        await asyncio.sleep(_RETRY_S)
        await self._adopt(actor)

    def _begin(self, record: SessionRecord) -> None:
        """Load a session, unless it is being loaded already."""
        if self._table.is_closed:
            raise CacheClosedError(f"cache {self._name!r} was shut down", do="Make a new ModelCache.")
        if not record.is_begun:
            record.is_begun = True
            self._table.add(record)
            self._spawn(self._load_alone(record) if record.key.alone else self._load(record))

    async def _load(self, record: SessionRecord) -> None:
        with self._ready_or_failed(record):
            await self._loader.load(record, self._evictor)
        await self._leases.tell(record)
        await self._maintenance.watch(record)

    @contextlib.contextmanager
    def _ready_or_failed(self, record: SessionRecord) -> Iterator[None]:
        """Tell everybody who waits for a load that it failed, whatever the reason, including a bug of ours."""
        try:
            yield
        except BaseException as exc:
            if not record.ready.is_set():
                self._loader.fail(
                    record,
                    ResourceExhaustedError(f"{record.key.model} was not loaded: the cache was interrupted by {exc!r}"),
                )
            raise

    async def _load_alone(self, record: SessionRecord) -> None:
        """Load a session of a single request when the one before it, of the same model, is gone: one at a time."""
        async with self._alone.setdefault(record.key._replace(alone=""), asyncio.Lock()):
            self._spawn(self._load(record))
            await record.gone.wait()

    async def _keep(self, record: SessionRecord) -> None:
        """Wait for an adopted session that may still load, then watch it."""
        with self._ready_or_failed(record):
            try:
                await self._loader.finish(record, self._evictor)
                self._table.counts["adoptions"] += 1
            except (GenAIRayError, RayError, TimeoutError) as exc:
                # in a used process that says nothing of the model: who waits has it loaded in another one
                record.is_replica = record.predecessor is not None
                if record.is_replica:  # who waits takes its bytes at once: they are free when it is gone
                    await self._table.end(record)
                self._loader.fail(record, to_load_error(exc, record.key.model))
                return
        await self._leases.tell(record)
        await self._maintenance.watch(record)

    async def _settle_lost(self, name: str, deadline: float) -> None:
        record = self._table.records.get(name)
        if record is None or await is_there(record):
            return
        if record.is_retiring:
            await self._table.wait_for(record.gone, record, deadline)
        else:
            await self._evictor.end(record)

    async def _not_loaded(self, model: str) -> ModelNotFoundError:
        return ModelNotFoundError(f"{model} is not loaded", f"{', '.join(await self.loaded()) or 'nothing is'}")

    def _tell_later(self, record: SessionRecord) -> None:
        self._spawn(self._leases.tell(record))

    def _note_eviction(self, record: SessionRecord) -> None:
        age_s = time.monotonic() - record.arrived_s
        self._metrics.evicted(record, age_s)
        history = self._table.history[record.key.model]
        history["evictions"] += 1
        history["hits"] += record.uses
        history["age_at_eviction_s"] = round(age_s, 3)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no more than a weak reference
        task.add_done_callback(self._tasks.discard)


def _acquired(records: list[SessionRecord], queues: Mapping[str, int] = MappingProxyType({})) -> Acquired:
    replicas = tuple(
        Replica(record.name, record.handle, record.started.node if record.started else "", queues.get(record.name, 0))
        for record in records
    )
    floor_bytes = records[0].load_request.request.floor_bytes
    return Acquired(replicas, max(record.reserved_bytes for record in records), floor_bytes)


def enter(found: Description, table: SessionTable, leases: Leases) -> SessionRecord | None:
    """Enter a session as it describes itself, after a restart of the cache; one that is retired or doubled retires.

    Args:
        found: What it says.
        table: Sessions and bytes.
        leases: Leases in force.

    Returns:
        The session, which may still load, or retire: its bytes are not free before its process is gone.
        None if it has no place.

    Raises:
        TimeoutError: If its device is not known yet.
    """
    ledger = table.ledger
    name = found.name
    device_id = device_of(found.started, ledger.devices.values())
    if device_id is None and found.started.node in table.unprobed:
        raise TimeoutError(f"{name} is on a node whose GPUs are not known yet")
    if device_id is None:
        return None
    load_request = LoadRequest(found.request, found.digest)
    record = SessionRecord(load_request, name=name, started=found.started, is_adopted=True, is_begun=True)
    record.predecessor, record.inherited_bytes = found.predecessor, found.inherited_bytes
    for lease_id in found.retention.leases:
        leases.adopt(lease_id, load_request)
    if found.retention.is_pinned:
        table.pinned.add(record.key)
    is_doubled = any(other.device_id == device_id and not other.is_retiring for other in ledger.of_key(record.key))
    taken = found.reserved_bytes if found.measured_bytes is None else found.measured_bytes
    if not found.retired:
        taken = max(taken, record.floor_bytes)
    try:
        ledger.reserve(record, Need(record.key, taken), device_id, time.monotonic(), found.held_bytes)
    except ResourceExhaustedError:
        return None
    table.add(record)
    if found.retired or is_doubled:
        ledger.mark(name, state=SlotState.RETIRING)
        record.ready.set()
        table.pass_pin_on(record.key)
    else:
        ledger.mark(name, is_pinned=found.retention.is_pinned)
    return record
