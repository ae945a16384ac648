"""What a cache does unasked: nodes that come and go, replicas of hot models, idle sessions, figures."""

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
from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.leases import Leases
from genai_ray.cluster.cache.loading import Loader
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.devices import find_gpus, memory_of, nodes_alive
from genai_ray.cluster.messages import Key, LoadRequest, Recency, key_of
from genai_ray.cluster.placement import Device, Slot, SlotState
from genai_ray.errors import BackendUnavailableError, ConfigError, GenAIRayError

__all__ = ["Maintenance"]

_log = logging.getLogger(__name__)

IDLE_RELEASE_S = 300.0
"""On a cluster that grows by itself, sessions idle for this long are retired, so that nodes can go."""

LOOK_EVERY_S = 1.0
"""Between two looks at the nodes of the cluster."""

PROBE_AGAIN_S = 60.0
"""After this a node that did not tell what its GPUs are is asked again."""

ASK_EVERY_S = 10.0
"""Between two rounds of questions to the sessions."""

SURPLUS_IDLE_S = 10.0
"""A replica beside another that was not used for this long goes first, and by itself."""

_RETRY_S = 0.05

_TROUBLES = (RayError, GenAIRayError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)
"""What is logged and tried again in a second, defects of ours as well: without upkeep nodes and leases would never be looked at again."""

ALONE_IDLE_S = 10.0
"""A session of a single request whose client was not heard of goes after this."""


class Maintenance:
    """Looks after one cache, once a second.

    Args:
        book: Sessions and bytes.
        evictor: Makes room.
        loader: Loads.
        leases: What stays.
        begin: Starts to load an entry that has been placed.
        replicas_per_device: Most sessions of a hot model on one device.
    """

    def __init__(
        self,
        book: SessionTable,
        evictor: Evictor,
        loader: Loader,
        leases: Leases,
        begin: Callable[[Entry], None],
        replicas_per_device: int,
    ) -> None:
        self._book, self._evictor, self._loader, self._leases, self._begin = book, evictor, loader, leases, begin
        self._replicas_per_device = replicas_per_device
        self._asked_s = 0.0
        self._spreading = asyncio.Lock()
        self._nodes: set[str] = set()
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._growth = Autoscaling(book, loader.bytes_on)

    async def look_at_nodes(self) -> None:
        """Enter the devices of nodes that came, and strike out those of nodes that went, with their sessions."""
        book = self._book
        alive = await asyncio.to_thread(nodes_alive)
        for node in self._nodes - set(alive):
            gone = [device.device_id for device in book.ledger.devices.values() if device.node == node]
            _log.warning("node %s left the cluster, and its sessions with it", node)
            for entry in [
                e
                for e in book.entries.values()
                if e.name in book.ledger.slots and book.ledger.slots[e.name].device_id in gone
            ]:
                if entry.ready.is_set():
                    book.drop(entry)  # one that loads is told by its own call, and tries elsewhere
            for device_id in gone:
                book.ledger.remove_device(device_id)
            self._nodes.discard(node)
            book.unprobed.discard(node)
            book.notify()
        new = set(alive) - self._nodes
        book.unprobed |= new
        await asyncio.gather(*(self._enter(node, alive[node]) for node in new))
        for node in book.unprobed - set(
            self._probes
        ):  # beside everything else: a node that is silent takes a minute each time
            self._probes[node] = asyncio.create_task(self._probe_again(node, alive[node]))
        await self._growth.show()

    async def _enter(self, node: str, resources: dict[str, float]) -> None:
        """Enter the memory of a new node, and its GPUs at the same time: what may go to either goes to those."""
        gpus = await self._probe(node, resources)
        for device in (*memory_of(node, resources, self._book.ledger.total_bytes is not None), *gpus):
            self._book.ledger.add_device(device)
        self._nodes.add(node)
        self._book.notify()

    async def _probe(self, node: str, resources: dict[str, float]) -> list[Device]:
        """Ask a node for its GPUs; one that does not tell stays among those that are not known."""
        try:
            gpus = await asyncio.to_thread(find_gpus, node, resources)
        except RayError as exc:
            _log.warning(
                "node %s does not tell what its GPUs are, so no session goes there until it does: %s", node, exc
            )
            return []
        self._book.unprobed.discard(node)
        return gpus

    async def _probe_again(self, node: str, resources: dict[str, float]) -> None:
        try:
            await asyncio.sleep(PROBE_AGAIN_S)
            for device in await self._probe(node, resources):
                if node in self._nodes:
                    self._book.ledger.add_device(device)
            self._book.notify()
        finally:
            del self._probes[node]

    async def stop(self) -> None:
        """Ask Ray's autoscaler for nothing any more."""
        with contextlib.suppress(*_TROUBLES):
            await self._growth.stop()

    async def run(self, idle_release_s: float | None, metrics: CacheMetrics) -> None:
        """Look after everything until the cache ends.

        Args:
            idle_release_s: Sessions idle for this long are retired; None for never.
            metrics: Told what was seen.
        """

        async def ask() -> None:
            is_due = time.monotonic() - self._asked_s >= ASK_EVERY_S
            await self._ask(None if is_due else self._replicated(), idle_release_s, metrics if is_due else None)

        # each by itself: a session that does not answer must not delay the news of a node that died
        await asyncio.gather(
            *(self._repeat(step) for step in (self.look_at_nodes, self._leases.expire, self.spread, ask))
        )

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await step()
            except _TROUBLES:
                _log.exception("the upkeep of the cache met an error and goes on")

    async def watch(self, entry: Entry) -> None:
        """Strike a session out as soon as its process dies, whether anybody uses it or not; give a hot one a replica.

        Args:
            entry: The session, which is ready.
        """
        while self._book.entries.get(entry.name) is entry:
            try:
                if await entry.handle.watch.remote():
                    with contextlib.suppress(
                        BackendUnavailableError, ConfigError
                    ):  # no device will do at the moment; it is watched all the same
                        await self.replicate(entry)
            except ActorUnavailableError:
                await asyncio.sleep(_RETRY_S)
            except RayError:
                break
        if self._book.is_retiring(entry):
            await entry.gone.wait()  # whoever ends it strikes it out, and passes its pin on
        else:
            self._book.drop(entry)
        for heir in self._book.of_key(entry.key):
            await self._leases.tell(heir)

    async def replicate(self, entry: Entry) -> None:
        """Place another replica of a hot model into free memory, where there is any and it may have one more.

        Args:
            entry: The session whose queue is long.
        """
        key = entry.key
        if not self._may_replicate(key):
            return
        resting = self._loader.resting(key)
        most = min(self._replicas_per_device, len(self._book.ledger.of_key(key)) + 1)
        for here in range(1, most + 1):  # devices with fewer of its sessions come first
            twin = Entry(
                replace(entry.want, is_explicit=False, node=None),
                avoid=self._devices_of(key, here) | resting,
                is_replica=True,
            )
            found = self._evictor.plan([self._loader.need_of(twin)])
            if found is None or found[0].victims:
                continue
            if await self._evictor.try_place([twin]):  # at once, since nothing goes for it
                _log.info("%s is hot: a replica is loaded on %s", key.model, found[0].device_id)
                self._begin(twin)
            return

    def _may_replicate(self, key: Key) -> bool:
        """Tell whether a model may have another session: not beside one that loads, nor before all that is there is known."""
        is_loading = any(not other.ready.is_set() for other in self._book.of_key(key))
        is_settled = not is_loading and not self._spreading.locked()
        return not key.alone and is_settled and self._book.is_surveyed and self._book.may_grow(key)

    async def spread(self) -> None:
        """Bring the models of batch jobs to every device that they may use."""
        for want, replicas in self._leases.replicas():
            with contextlib.suppress(
                BackendUnavailableError, ConfigError
            ):  # no device will do at the moment, which is nothing to other models
                while await self._spread_once(want, replicas):
                    pass

    async def _spread_once(self, want: LoadRequest, replicas: int | None) -> bool:
        """Begin one more session of a model; false where it is on as many devices as it may be, or can be at the moment."""
        key = key_of(want.request)
        async with self._spreading:
            if key in self._loader.failing() or (replicas is not None and self._num_places(key) >= replicas):
                return False
            avoid = self._devices_of(key) | self._loader.resting(key)
            twin = Entry(
                replace(want, is_explicit=True, node=None), avoid=avoid, is_replica=bool(self._book.of_key(key))
            )
            placed = await self._evictor.try_place([twin])
            if placed:
                self._begin(twin)
            return placed

    async def _ask(self, names: list[str] | None, idle_release_s: float | None, metrics: CacheMetrics | None) -> None:
        """Ask sessions how they are; retire idle ones, make room where some have grown, tell the metrics."""
        book, ledger = self._book, self._book.ledger
        slots = [slot for slot in ledger.by_recency() if names is None or slot.name in names]
        answers: list[Recency | None] = await asyncio.gather(*(self._evictor.ask(slot.name) for slot in slots))
        seen = {
            slot.name: answer
            for slot, answer in zip(slots, answers, strict=True)
            if answer is not None and slot.name in ledger.slots
        }
        for slot in slots:
            if slot.name in seen and slot.name in ledger.slots and self._is_over(slot, seen[slot.name], idle_release_s):
                await self._evictor.retire(slot.name)
        if metrics is None:
            return
        self._asked_s = time.monotonic()
        for slot in [slot for slot in slots if slot.name in ledger.slots and ledger.excess_bytes(slot.device_id) > 0]:
            await self._evictor.shrink(slot.name)
        queues: Counter[str] = Counter()
        for name, answer in seen.items():
            if name in ledger.slots:
                queues[ledger.slots[name].key.model] += answer.in_flight
        metrics.looked(list(ledger.devices.values()), list(ledger.slots.values()), queues)
        book.notify()

    def _is_over(self, slot: Slot[Key], answer: Recency, idle_release_s: float | None) -> bool:
        """Tell whether an idle session goes by itself."""
        if slot.is_pinned or answer.in_flight:
            return False
        if slot.key.alone and answer.idle_s > ALONE_IDLE_S:
            return True
        limit_s = idle_release_s or (IDLE_RELEASE_S if self._book.can_grow else None)
        if limit_s is not None and answer.idle_s > limit_s:
            return True
        replicas = [
            other
            for other in self._book.ledger.of_key(slot.key)
            if other is not slot and other.state is SlotState.READY
        ]
        is_surplus = answer.idle_s > SURPLUS_IDLE_S and any(other.last_used_s > slot.last_used_s for other in replicas)
        if is_surplus != slot.is_surplus:
            self._book.ledger.mark(slot.name, is_surplus=is_surplus)
        return is_surplus

    def _replicated(self) -> list[str]:
        """Return the sessions that have a twin, or serve a single request."""
        names: defaultdict[Key, list[str]] = defaultdict(list)
        for slot in self._book.ledger.slots.values():
            names[slot.key].append(slot.name)
        return [name for key, found in names.items() if len(found) > 1 or key.alone for name in found]

    def _num_places(self, key: Key) -> int:
        """Count the devices that have a model, and its sessions that have no device yet."""
        slots = self._book.ledger.slots
        return len(
            {slots[entry.name].device_id if entry.name in slots else entry.name for entry in self._book.of_key(key)}
        )

    def _devices_of(self, key: Key, at_least: int = 1) -> frozenset[str]:
        """Return the devices that have so many sessions of a model, in any state."""
        found = Counter(slot.device_id for slot in self._book.ledger.of_key(key))
        return frozenset(device_id for device_id, count in found.items() if count >= at_least)
