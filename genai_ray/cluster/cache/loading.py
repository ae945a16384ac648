"""Loading: requests for one session share its load, which has three tries; failures are remembered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray.exceptions import RayError

from genai_ray.backends.gpu import WORKSPACE_BYTES
from genai_ray.cluster.cache.eviction import LOADS_AT_ONCE, Evictor
from genai_ray.cluster.cache.measured_sizes import SizeMemory
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_actors import REOPEN_WITHIN_S, MisplacedError, to_load_error
from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.devices import CPU, LOGICAL_GPU, allowed_kinds, device_of
from genai_ray.cluster.messages import Key, LoadRequest, key_of
from genai_ray.cluster.placement import Device, Need
from genai_ray.cluster.served import GROWTH_BYTES, excess_of
from genai_ray.errors import (
    BackendUnavailableError,
    CacheClosedError,
    ConfigError,
    DeadlineExceededError,
    GenAIRayError,
    ResourceExhaustedError,
)

__all__ = ["Loader"]

_log = logging.getLogger(__name__)

MAX_TRIES = 3
"""A load that fails this often is remembered as failing."""

BACKOFF_S = 1.5
"""Wait before the second try, if the process that loads has died, and after the last one; twice as long before the
third."""

FAILING_FOR_S = 60.0
"""After a final failure, requests for the model are refused this long, except ``load_model``; after that of a replica,
no other replica is tried on its device."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A load that failed."""

    error: GenAIRayError
    """Why."""
    until_s: float
    """How long that is remembered, on the clock of the cache."""


class Loader:
    """Loads sessions.

    Args:
        table: Sessions and bytes.
        load_within_s: Most seconds that a load may take.
        sizes: What sessions were measured to take.
        metrics: Told of loads and failures.
    """

    def __init__(self, table: SessionTable, load_within_s: float, sizes: SizeMemory, metrics: CacheMetrics) -> None:
        self.failures: dict[Key, Failure] = {}
        self._rests: dict[tuple[Key, str], float] = {}
        self._table = table
        self._load_within_s = load_within_s
        self._sizes = sizes
        self._metrics = metrics
        self._loads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(LOADS_AT_ONCE))
        self._gpu_loads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))
        self._starts: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def join(
        self, load_request: LoadRequest, deadline: float, begin: Callable[[SessionRecord], None]
    ) -> list[SessionRecord]:
        """Wait for the sessions of a key; the first request has one loaded, all others wait for the same one.

        Args:
            load_request: Which session.
            deadline: Until when, by ``time.monotonic``.
            begin: Starts to load a session.

        Returns:
            Sessions that can be used at this moment, one or more.

        Raises:
            GenAIRayError: Why there is none by the deadline.
        """
        table = self._table
        key = key_of(load_request.request)
        while True:
            records = table.of_key(key)
            usable = [record for record in records if record.is_usable]
            if usable:
                return usable
            pending = next((record for record in records if not record.ready.is_set()), None)
            if pending is None and records:  # they retire: their bytes are not free before their processes are gone
                await table.wait_for(records[0].gone, records[0], deadline)
                continue
            if pending is None:
                self.check_failing(key)
                if time.monotonic() >= deadline:  # nobody would be there to use it
                    raise DeadlineExceededError(f"{key.model} was not ready in time", do="Give the client more time.")
                pending = SessionRecord(load_request)
                begin(pending)
            elif load_request.is_explicit and not pending.load_request.is_explicit:
                pending.load_request = replace(pending.load_request, is_explicit=True)
            await table.wait_for(pending.ready, pending, deadline)
            if pending.error is not None and not pending.is_replica:
                raise pending.error

    def need_of(self, record: SessionRecord) -> Need:
        """Return what a session needs, by what is known now.

        Args:
            record: The session.

        Returns:
            Its bytes on the kind of device on which it takes most, and the kinds that will do.

        Raises:
            BackendUnavailableError: If the cluster has no such device.
        """
        request = record.load_request.request
        kinds = allowed_kinds(
            self._table.ledger.devices.values(), request.device, request.backend, request.device_kinds
        )
        expected = max((self._expected_on(record, kind) for kind in kinds), default=record.load_request.predicted_bytes)
        spare = max(record.floor_bytes - expected, 0)
        return Need(record.key, expected + spare, kinds, record.load_request.node, record.avoid, spare)

    def bytes_on(self, record: SessionRecord, kind: str) -> int:
        """Return what a session takes of a kind of device, by what is known now.

        Args:
            record: The session.
            kind: The kind.

        Returns:
            Bytes, its process included; at least what the caller gave.
        """
        return max(self._expected_on(record, kind), record.floor_bytes)

    def _expected_on(self, record: SessionRecord, kind: str) -> int:
        asked = record.load_request
        return self._sizes.expected(asked.digest, asked.request, kind, asked.predicted_bytes)

    def check_failing(self, key: Key) -> None:
        """Raise the error of a load of this key that failed a short while ago.

        Args:
            key: What is to be loaded.

        Raises:
            GenAIRayError: The error with which it failed.
        """
        failure = self.failures.get(key)
        if failure is None:
            return
        left_s = failure.until_s - time.monotonic()
        if left_s <= 0:
            del self.failures[key]
            return
        error = failure.error
        raise type(error)(
            error.got,
            error.allowed,
            f"{error.do} It failed before, and is tried again in {left_s:.0f} s, or now by load_model.".strip(),
        )

    def failing(self) -> dict[Key, Failure]:
        """Return what failed a short while ago, and forget what failed before.

        Returns:
            The failures by record.
        """
        self.failures = {key: failure for key, failure in self.failures.items() if failure.until_s > time.monotonic()}
        return self.failures

    def resting(self, key: Key) -> frozenset[str]:
        """Return the devices on which a replica failed a short while ago.

        Args:
            key: What it is a session of.

        Returns:
            Ids of the devices; the next replica goes elsewhere.
        """
        self._rests = {place: until_s for place, until_s in self._rests.items() if until_s > time.monotonic()}
        return frozenset(device_id for other, device_id in self._rests if other == key)

    async def load(self, record: SessionRecord, evictor: Evictor) -> None:
        """Find a place for a session, start its process and load it; the third failure is final, a replica's first.

        Args:
            record: The session.
            evictor: Makes room.
        """
        error: GenAIRayError | None = None
        tries = 0
        until_s = time.monotonic() + self._load_within_s
        while tries < MAX_TRIES:
            try:
                await evictor.place(record)
            except GenAIRayError as exc:
                if error is None:
                    self.fail(record, exc)
                    return
                break  # the only place is the one where it failed
            device_id = record.device_id
            try:
                await self._start(record)
                await self.finish(record, evictor)
            except (GenAIRayError, MisplacedError, RayError, TimeoutError) as exc:
                if await self._renews_process(record, exc):
                    continue
                before = error
                error = to_load_error(exc, record.key.model)
                tries += 1
                is_chance = isinstance(exc, MisplacedError) and time.monotonic() < until_s
                # the wait after the last try is for the news that its node has died
                wait_s = BACKOFF_S * (tries if is_chance or tries < MAX_TRIES else 1)
                if not await self._prepare_next_try(record, device_id, exc, wait_s):
                    break
                if is_chance:
                    error = before
                    tries -= 1  # what Ray chose says nothing of the model
                elif device_id not in self._table.ledger.devices:
                    tries -= 1  # nor does the death of its node
            else:
                self.failures.pop(record.key, None)
                return
        error = error or ResourceExhaustedError(f"{record.key.model} did not load")
        if record.is_replica:
            self._rests[record.key, device_id] = time.monotonic() + FAILING_FOR_S
        elif not record.key.alone:  # a session of a single request is never asked for again
            self.failing()[record.key] = Failure(error, time.monotonic() + FAILING_FOR_S)
        self.fail(record, error)

    async def finish(self, record: SessionRecord, evictor: Evictor) -> None:
        """Wait until a session has loaded, and note what it takes.

        Args:
            record: The session, whose process has started.
            evictor: Makes room if it took more than was reserved.

        Raises:
            GenAIRayError: Why it cannot be loaded.
            RayError: If its process ended.
            TimeoutError: If it took too long.
        """
        table = self._table
        ledger = table.ledger
        device = self._device_of(record)
        turns = self._loads if device.kind == CPU else self._gpu_loads
        # an adopted session loads already, or has loaded
        async with contextlib.nullcontext() if record.is_adopted else turns[device.device_id]:
            warm_bytes, load_s = await asyncio.wait_for(record.handle.load.remote(), self._load_within_s)
        if device.kind in (CPU, LOGICAL_GPU):
            measured = warm_bytes + max(GROWTH_BYTES - record.inherited_bytes, 0)  # a used process has grown already
        else:  # the arena may take what is reserved but for this; the next load must find the same room
            measured = warm_bytes + WORKSPACE_BYTES
        if not record.is_placed:
            raise ResourceExhaustedError(f"{record.key.model} was dropped while it loaded")
        remembered = measured - excess_of(record.inherited_bytes)  # in a new process it takes that
        self._sizes.remember(record.load_request.digest, record.load_request.request, device.kind, remembered)
        ledger.settle(record.name, measured, load_s, time.monotonic())
        if table.lacks_pin(record):
            ledger.mark(record.name, is_pinned=True)
        if ledger.excess_bytes(device.device_id) > 0 and not await evictor.shrink(record.name):
            raise ResourceExhaustedError(
                f"{record.key.model} took {measured} bytes",
                f"{device.budget_bytes} on its device, {ledger.budget_bytes} in all",
            )
        if not record.is_adopted:
            table.counts["loads"] += 1
            table.counts["reuses"] += record.predecessor is not None
            table.history[record.key.model]["loads"] += 1
            self._metrics.loaded(record.key.model, load_s)
        record.ready.set()
        table.notify()

    def fail(self, record: SessionRecord, error: GenAIRayError) -> None:
        """Give up a session.

        Args:
            record: The session.
            error: What its waiters are told.
        """
        self._table.counts["failures"] += 1
        record.error = error
        self._table.drop(record)
        record.ready.set()

    async def _start(self, record: SessionRecord) -> None:
        """Start the process where it was placed, and correct the ledger by where Ray really put it."""
        ledger = self._table.ledger
        device = self._device_of(record)
        if record.predecessor is not None:
            reopened = record.handle.reopen.remote(
                record.name, record.load_request, record.reserved_bytes, record.inherited_bytes
            )
            await asyncio.wait_for(reopened, REOPEN_WITHIN_S)
            return
        is_gpu = device.kind != CPU
        twins = [
            other
            for other in ledger.devices.values()
            if (is_gpu and other.kind != CPU and other.node == device.node) or other is device
        ]
        if self._table.is_closed:
            raise CacheClosedError(f"the cache was shut down before {record.key.model} was loaded")
        async with self._starts[device.node]:
            free = {twin: self._left_by_ray(twin) for twin in twins}
            started = await self._table.processes.start(record, device, free)
            record.started = started
        self._sizes.remember_process(CPU, started.process_bytes)
        real = device_of(started, ledger.devices.values())
        if not record.is_placed or real is None:
            raise DeadlineExceededError(f"{record.key.model}: its device left the cluster while its session started")
        if real != record.device_id:
            ledger.move(record.name, real)
            if ledger.excess_bytes(real) > 0 or real in record.avoid:
                raise MisplacedError(f"started on {real} instead of {device.device_id}")

    def _device_of(self, record: SessionRecord) -> Device:
        """Return where a session was placed."""
        if not record.is_placed:
            raise DeadlineExceededError(f"{record.key.model}: its device left the cluster before it had loaded")
        return self._table.ledger.devices[record.device_id]

    def _left_by_ray(self, device: Device) -> int:
        """Return the bytes of a device that no process holds; the ledger counts sessions without a process as well."""
        slots = self._table.ledger.slots.values()
        started = (slot for slot in slots if slot.started is not None and slot.device_id == device.device_id)
        return device.capacity_bytes - sum(slot.held_bytes for slot in started)

    async def _renews_process(self, record: SessionRecord, exc: Exception) -> bool:
        """End a used process in which a load failed: that says nothing of the model, which is tried in a new one."""
        if record.predecessor is None or self._table.records.get(record.name) is not record:
            return False
        _log.warning("%s did not load in the process of %s: %s", record.key.model, record.predecessor, exc)
        await self._table.end(record)
        if self._table.records.get(record.name) is not record:
            return False
        record.needs_new_process = True
        self._table.rename(record)
        return True

    async def _prepare_next_try(self, record: SessionRecord, device_id: str, exc: Exception, wait_s: float) -> bool:
        """End what failed, and prepare another try, on another device first; false if it would fail in the same way."""
        _log.warning("%s did not load on %s: %s", record.key.model, device_id, exc)
        self._metrics.failed(record.key.model)
        if self._table.records.get(record.name) is not record:
            return False
        await self._table.end(record)
        if not record.is_replica and len(self._table.of_key(record.key)) > 1:
            record.is_replica = True  # others were made meanwhile: requests that wait for this one go to them
            return False
        is_misplaced = isinstance(exc, MisplacedError)
        if self._table.records.get(record.name) is not record or (record.is_replica and not is_misplaced):
            return False
        is_ours = isinstance(exc, GenAIRayError) or isinstance(getattr(exc, "cause", None), GenAIRayError)
        # the death of a node says nothing of the model
        is_deterministic = is_ours and device_id in self._table.ledger.devices
        if not is_misplaced:
            record.avoid |= {device_id}
            if not self._has_other_device(record):
                record.avoid = frozenset()
                if is_deterministic:
                    return False
        self._table.rename(record)
        if not is_deterministic:
            await asyncio.sleep(wait_s)  # a node that has died is reported within this
        return True

    def _has_other_device(self, record: SessionRecord) -> bool:
        try:
            kinds = self.need_of(record).kinds
        except (BackendUnavailableError, ConfigError):
            return False
        return any(
            device.device_id not in record.avoid and (kinds is None or device.kind in kinds)
            for device in self._table.ledger.devices.values()
        )
