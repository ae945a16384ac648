"""What a cache does by itself: nodes that come and go, replicas of hot models, idle sessions, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from ray.exceptions import ActorUnavailableError, RayError

from genai_ray.cluster.cache.autoscaling import Autoscaling
from genai_ray.cluster.cache.calls import CacheOptions
from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.leases import Leases
from genai_ray.cluster.cache.loading import Loader
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.cache.spares import Spares
from genai_ray.cluster.devices import SPARE_BYTES, find_gpus, memory_of, nodes_alive
from genai_ray.cluster.messages import Key, LoadRequest, Recency, key_of
from genai_ray.cluster.placement import Device, SlotState
from genai_ray.errors import BackendUnavailableError, ConfigError, GenAIRayError

__all__ = ["Maintenance"]

_log = logging.getLogger(__name__)

IDLE_RELEASE_S = 300.0
"""On a cluster that grows by itself, sessions idle for this long are retired, so that nodes can go."""

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the nodes of the cluster."""

PROBE_AGAIN_S = 60.0
"""A node that did not say what its GPUs are is asked again after this."""

ASK_EVERY_S = 10.0
"""Seconds between two rounds of questions to the sessions."""

SURPLUS_IDLE_S = 10.0
"""If a model has several sessions, one that was idle for this long is evicted first, and retires by itself."""

_RETRY_S = 0.05

_TROUBLES = (RayError, GenAIRayError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)
"""Errors that are logged and tried again, bugs of ours included: else one error would end all maintenance."""

ALONE_IDLE_S = 10.0
"""A session of a single request that was not used for this long retires."""


class Maintenance:
    """Looks after one cache, once a second.

    Args:
        table: Sessions and bytes.
        evictor: Makes room.
        loader: Loads sessions.
        leases: Leases in force.
        begin: Starts to load a session that has been placed.
        options: How the cache behaves.
    """

    def __init__(
        self,
        table: SessionTable,
        evictor: Evictor,
        loader: Loader,
        leases: Leases,
        begin: Callable[[SessionRecord], None],
        options: CacheOptions,
    ) -> None:
        self._table = table
        self._evictor = evictor
        self._loader = loader
        self._leases = leases
        self._begin = begin
        self._options = options
        self.spares = Spares(table)
        self._asked_s = 0.0
        self._spreading = asyncio.Lock()
        self._nodes: set[str] = set()
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._autoscaling = Autoscaling(table, loader.bytes_on)

    async def look_at_nodes(self) -> None:
        """Add the devices of new nodes, and remove those of nodes that left, with their sessions."""
        table = self._table
        alive = await asyncio.to_thread(nodes_alive)
        for node in self._nodes - set(alive):
            _log.warning("node %s left the cluster, and its sessions with it", node)
            self._remove(node)
        new = set(alive) - self._nodes
        table.unprobed |= new
        await asyncio.gather(*(self._enter(node, alive[node]) for node in new))
        for node in table.unprobed - set(self._probes):
            # beside everything else: a silent node takes a minute each time
            self._probes[node] = asyncio.create_task(self._probe_again(node, alive[node]))
        await self._autoscaling.show()

    def _remove(self, node: str) -> None:
        table = self._table
        gone = [device.device_id for device in table.ledger.devices.values() if device.node == node]
        for record in list(table.records.values()):
            if record.device_id in gone and record.ready.is_set():
                table.drop(record)  # the call of one that loads fails, and it tries elsewhere
        for device_id in gone:
            table.ledger.remove_device(device_id)
        self._nodes.discard(node)
        table.unprobed.discard(node)
        table.notify()

    async def _enter(self, node: str, resources: dict[str, float]) -> None:
        """Add the memory of a new node and its GPUs at the same time: a session that may use either gets a GPU."""
        gpus = await self._probe(node, resources)
        has_budget = self._table.ledger.total_bytes is not None
        spare_bytes = self._options.spare_processes * SPARE_BYTES
        for device in (*memory_of(node, resources, has_budget, spare_bytes), *gpus):
            self._table.ledger.add_device(device)
        self._nodes.add(node)
        self._table.notify()

    async def _probe(self, node: str, resources: dict[str, float]) -> list[Device]:
        """Ask a node for its GPUs; one that does not answer stays unprobed."""
        try:
            gpus = await asyncio.to_thread(find_gpus, node, resources, self._options.logical_gpu_bytes)
        except RayError as exc:
            _log.warning("node %s does not say what its GPUs are; they get no session until it does: %s", node, exc)
            return []
        self._table.unprobed.discard(node)
        return gpus

    async def _probe_again(self, node: str, resources: dict[str, float]) -> None:
        try:
            await asyncio.sleep(PROBE_AGAIN_S)
            for device in await self._probe(node, resources):
                if node in self._nodes:
                    self._table.ledger.add_device(device)
            self._table.notify()
        finally:
            del self._probes[node]

    async def stop(self) -> None:
        """Ask Ray's autoscaler for nothing any more."""
        with contextlib.suppress(*_TROUBLES):
            await self._autoscaling.stop()

    async def run(self, metrics: CacheMetrics) -> None:
        """Look after everything until the cache ends.

        Args:
            metrics: Told of every round of questions.
        """

        async def ask() -> None:
            is_due = time.monotonic() - self._asked_s >= ASK_EVERY_S
            await self._ask(None if is_due else self._replicated(), metrics if is_due else None)

        steps = [self.look_at_nodes, self._leases.expire, self.spread, ask, self.spares.look]
        # each by itself: a session that does not answer must not delay the news of a node that died
        await asyncio.gather(*(self._repeat(step) for step in steps))

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await step()
            except _TROUBLES:
                _log.exception("the maintenance of the cache met an error and goes on")

    async def watch(self, record: SessionRecord) -> None:
        """Remove a session as soon as its process dies, whether it is in use or not; give a hot one a replica.

        Args:
            record: The session, which is ready.
        """
        while self._table.records.get(record.name) is record:
            try:
                if await record.handle.watch.remote(record.name):
                    # no device may fit at the moment; the session is watched all the same
                    with contextlib.suppress(BackendUnavailableError, ConfigError):
                        await self.replicate(record)
            except ActorUnavailableError:
                await asyncio.sleep(_RETRY_S)
            except RayError:
                break
        if record.is_retiring:
            await record.gone.wait()  # the task that ends it removes it, and passes its pin on
        else:
            self._table.drop(record)
        for heir in self._table.of_key(record.key):
            await self._leases.tell(heir)

    async def replicate(self, record: SessionRecord) -> None:
        """Place another replica of a hot model into free memory, if there is some and the model may have one more.

        Args:
            record: The session whose queue is long.
        """
        key = record.key
        if not self._may_replicate(key):
            return
        resting = self._loader.resting(key)
        most = min(self._options.replicas_per_device, len(self._table.ledger.of_key(key)) + 1)
        for here in range(1, most + 1):  # devices with fewer of its sessions come first
            twin = SessionRecord(
                replace(record.load_request, is_explicit=False, node=None),
                avoid=self._devices_of(key, here) | resting,
                is_replica=True,
            )
            found = self._evictor.plan([self._loader.need_of(twin)])
            if found is None or found[0].victims:
                continue
            if await self._evictor.try_place([twin]):  # at once, since nothing is evicted for it
                _log.info("%s is hot: a replica is loaded on %s", key.model, found[0].device_id)
                self._begin(twin)
            return

    def _may_replicate(self, key: Key) -> bool:
        """Tell whether a model may have another session: not while one loads, nor before all sessions are known."""
        is_loading = any(not other.ready.is_set() for other in self._table.of_key(key))
        is_settled = not is_loading and not self._spreading.locked()
        return not key.alone and is_settled and self._table.is_surveyed and self._table.may_replicate(key)

    async def spread(self) -> None:
        """Load the models of leases on as many devices as the leases ask for."""
        for load_request, replicas in self._leases.replicas():
            # no device may fit this model at the moment; other models are spread all the same
            with contextlib.suppress(BackendUnavailableError, ConfigError):
                while await self._spread_once(load_request, replicas):
                    pass

    async def _spread_once(self, load_request: LoadRequest, replicas: int | None) -> bool:
        """Begin one more session of a model; false if it has as many as it may have, or can have at the moment."""
        key = key_of(load_request.request)
        async with self._spreading:
            if key in self._loader.failing() or self._seeks_place(key):
                return False
            if replicas is not None and self._num_places(key) >= replicas:
                return False
            twin = SessionRecord(
                replace(load_request, is_explicit=True, node=None),
                avoid=self._devices_of(key) | self._loader.resting(key),
                is_replica=bool(self._table.of_key(key)),
            )
            if not await self._evictor.try_place([twin]):
                return False
            others = {other.device_id for other in self._table.of_key(key)}
            if twin.device_id in others or self._seeks_place(key):  # another one failed or was placed meanwhile
                await self._table.end(twin)  # it may have taken over a process
                return False
            self._begin(twin)
            return True

    async def _ask(self, names: list[str] | None, metrics: CacheMetrics | None) -> None:
        """Ask sessions how they are; retire idle ones, make room if some have grown, tell the metrics."""
        ledger = self._table.ledger
        asked = {record.name: record for record in ledger.by_recency() if names is None or record.name in names}
        answers = await asyncio.gather(*(self._evictor.ask(name) for name in asked))
        told = {name: answer for name, answer in zip(asked, answers, strict=True) if answer is not None}
        for name, answer in told.items():
            if name in ledger.slots and self._is_over(asked[name], answer):
                await self._evictor.retire(name)
        if metrics is None:
            return
        self._asked_s = time.monotonic()
        for name, record in asked.items():
            if name in ledger.slots and ledger.excess_bytes(record.device_id) > 0:
                await self._evictor.shrink(name)
        queues: Counter[str] = Counter()
        for name, answer in told.items():
            if name in ledger.slots:
                queues[asked[name].key.model] += answer.in_flight
        metrics.looked(list(ledger.devices.values()), list(ledger.slots.values()), queues)
        self._table.notify()

    def _is_over(self, record: SessionRecord, answer: Recency) -> bool:
        """Tell whether an idle session retires by itself."""
        if record.is_pinned or answer.in_flight:
            return False
        if record.key.alone and answer.idle_s > ALONE_IDLE_S:
            return True
        limit_s = self._options.idle_release_s or (IDLE_RELEASE_S if self._table.can_grow else None)
        if limit_s is not None and answer.idle_s > limit_s:
            return True
        replicas = [
            other
            for other in self._table.ledger.of_key(record.key)
            if other is not record and other.state is SlotState.READY
        ]
        is_surplus = answer.idle_s > SURPLUS_IDLE_S and any(
            other.last_used_s > record.last_used_s for other in replicas
        )
        if is_surplus != record.is_surplus:
            self._table.ledger.mark(record.name, is_surplus=is_surplus)
        return is_surplus

    def _replicated(self) -> list[str]:
        """Return the sessions that have a twin, or serve a single request."""
        names: defaultdict[Key, list[str]] = defaultdict(list)
        for record in self._table.ledger.slots.values():
            names[record.key].append(record.name)
        return [name for key, found in names.items() if len(found) > 1 or key.alone for name in found]

    def _seeks_place(self, key: Key) -> bool:
        """Tell whether a session of a model has no device yet: it may take any that none of its replicas has."""
        return any(not record.is_placed for record in self._table.of_key(key))

    def _num_places(self, key: Key) -> int:
        """Count the devices that have a model."""
        return len({record.device_id for record in self._table.of_key(key)})

    def _devices_of(self, key: Key, at_least: int = 1) -> frozenset[str]:
        """Return the devices that have at least so many sessions of a model, in any state."""
        found = Counter(record.device_id for record in self._table.ledger.of_key(key))
        return frozenset(device_id for device_id, count in found.items() if count >= at_least)
