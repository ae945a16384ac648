"""Loading: a place, a process, three tries, and the memory of what failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass

from ray.exceptions import RayError

from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.measured_sizes import GROWTH_BYTES, SizeMemory
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.cache.session_actors import MisplacedError, end_session, start_session, steer, to_load_error
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.devices import CPU, LOGICAL_GPU, Started, allowed_kinds, device_of
from genai_ray.cluster.messages import Key
from genai_ray.cluster.placement import Device, Need
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
"""After the first death of a process that loads; after the second twice that."""

FAILING_FOR_S = 60.0
"""For so long requests for it are refused at once; ``load_model`` tries again all the same. A replica is not tried on a device where one failed."""

START_WITHIN_S = 60.0
"""A process that does not report within this is killed and placed again."""

LOADS_AT_ONCE = 2
"""Loads at the same time on the CPU of one node; on a GPU one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A load that failed."""

    error: GenAIRayError
    """Why."""
    until_s: float
    """How long that is remembered, on the clock of the cache."""


class Loader:
    """Brings sessions to life.

    Args:
        book: Sessions and bytes.
        cache: Name of the cache.
        load_within_s: Most seconds that a load may take.
        sizes: What sessions were measured to take.
        metrics: Told of loads and failures.
    """

    def __init__(
        self, book: SessionTable, cache: str, load_within_s: float, sizes: SizeMemory, metrics: CacheMetrics
    ) -> None:
        self.failures: dict[Key, Failure] = {}
        self._rests: dict[tuple[Key, str], float] = {}
        self._book, self._cache, self._load_within_s, self._sizes, self._metrics = (
            book,
            cache,
            load_within_s,
            sizes,
            metrics,
        )
        self._loads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(LOADS_AT_ONCE))
        self._gpu_loads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))
        self._starts: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def need_of(self, entry: Entry) -> Need[Key]:
        """Return what a session asks for, by what is known now.

        Args:
            entry: The session.

        Returns:
            Its bytes on the kind of device that it takes most on, and the kinds that will do.

        Raises:
            BackendUnavailableError: If the cluster has no such device.
        """
        request = entry.want.request
        kinds = allowed_kinds(self._book.ledger.devices.values(), request.device, request.backend, request.device_kinds)
        num_bytes = max(
            (self.bytes_on(entry, kind) for kind in kinds),
            default=max(entry.want.predicted_bytes, request.floor_bytes or 0),
        )
        return Need(entry.key, num_bytes, kinds, entry.want.node, entry.avoid)

    def bytes_on(self, entry: Entry, kind: str) -> int:
        """Return what a session takes of a kind of device, by what is known now.

        Args:
            entry: The session.
            kind: The kind.

        Returns:
            Bytes, its process included, and at the least what was given.
        """
        want = entry.want
        return max(
            self._sizes.expected(want.digest, want.request, kind, want.predicted_bytes), want.request.floor_bytes or 0
        )

    def check_failing(self, key: Key) -> None:
        """Refuse what failed a short while ago.

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
            The failures by entry.
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

    async def load(self, entry: Entry, evictor: Evictor) -> None:
        """Find a place for a session, start its process and load it; what fails three times, of a replica once, is the entry's error, and remembered.

        Args:
            entry: The session.
            evictor: Makes room.
        """
        error: GenAIRayError | None = None
        tries, until_s = 0, time.monotonic() + self._load_within_s
        while tries < MAX_TRIES:
            try:
                await evictor.place(entry)
            except GenAIRayError as exc:
                if error is None:
                    self.fail(entry, exc)
                    return
                break  # no place but where it failed
            device_id = self._book.ledger.slots[entry.name].device_id
            try:
                await self._start(entry)
                await self.finish(entry, evictor)
            except (GenAIRayError, MisplacedError, RayError, TimeoutError) as exc:
                before, error, tries = error, to_load_error(exc, entry.key.model), tries + 1
                if not await self._prepare_next_try(entry, device_id, exc, tries):
                    break
                if isinstance(exc, MisplacedError) and time.monotonic() < until_s:
                    error, tries = before, tries - 1  # what Ray chose says nothing of the model
                elif device_id not in self._book.ledger.devices:
                    tries -= 1  # nor does the death of its node
            else:
                self.failures.pop(entry.key, None)
                return
        error = error or ResourceExhaustedError(f"{entry.key.model} did not load")
        if entry.is_replica:
            self._rests[entry.key, device_id] = time.monotonic() + FAILING_FOR_S
        elif not entry.key.alone:  # nobody asks for that one again
            self.failing()[entry.key] = Failure(error, time.monotonic() + FAILING_FOR_S)
        self.fail(entry, error)

    async def finish(self, entry: Entry, evictor: Evictor) -> None:
        """Wait until a session has loaded, and enter what it takes.

        Args:
            entry: The session, whose process has started.
            evictor: Makes room where it took more than was reserved.

        Raises:
            GenAIRayError: Why it cannot be loaded.
            RayError: If its process ended.
            TimeoutError: If it took too long.
        """
        book, ledger = self._book, self._book.ledger
        slot = ledger.slots[entry.name]
        kind = ledger.devices[slot.device_id].kind
        turn = (
            contextlib.nullcontext()
            if entry.is_adopted
            else (self._loads if kind == CPU else self._gpu_loads)[slot.device_id]
        )
        async with turn:  # one of an earlier life loads already, or has long since
            warm_bytes, load_s = await asyncio.wait_for(entry.handle.load.remote(), self._load_within_s)
        measured = (
            warm_bytes + GROWTH_BYTES if kind in (CPU, LOGICAL_GPU) else warm_bytes
        )  # of a GPU it may be what was reserved, if NVML is silent
        if entry.name not in ledger.slots:
            raise ResourceExhaustedError(f"{entry.key.model} was dropped while it loaded")
        self._sizes.remember(entry.want.digest, entry.want.request, kind, measured)
        ledger.settle(entry.name, measured, load_s, time.monotonic())
        if book.is_unpinned(entry):
            ledger.mark(entry.name, is_pinned=True)
        if ledger.excess_bytes(slot.device_id) > 0 and not await evictor.shrink(entry.name):
            raise ResourceExhaustedError(
                f"{entry.key.model} took {measured} bytes",
                f"{ledger.devices[slot.device_id].budget_bytes} on its device, {ledger.budget_bytes} in all",
            )
        if not entry.is_adopted:
            book.counts["loads"] += 1
            book.history[entry.key.model]["loads"] += 1
            self._metrics.loaded(entry.key.model, load_s)
        entry.ready.set()
        book.notify()

    def fail(self, entry: Entry, error: GenAIRayError) -> None:
        """Give a session up.

        Args:
            entry: The session.
            error: What its waiters are told.
        """
        self._book.counts["failures"] += 1
        entry.error = error
        self._book.drop(entry)
        entry.ready.set()

    async def _start(self, entry: Entry) -> None:
        """Start the process where it was placed, and correct the ledger by where Ray really put it."""
        ledger = self._book.ledger
        slot = ledger.slots[entry.name]
        device = ledger.devices[slot.device_id]
        twins = [
            other
            for other in ledger.devices.values()
            if (other.node == device.node and CPU not in (other.kind, device.kind)) or other is device
        ]
        if self._book.is_closed:
            raise CacheClosedError(f"the cache was shut down before {entry.key.model} was loaded")
        async with (
            self._starts[device.node],
            steer(device, slot.held_bytes, {twin: self._left_by_ray(twin) for twin in twins}, START_WITHIN_S),
        ):
            start_session(entry, self._cache, device, slot)
            started: Started = await asyncio.wait_for(entry.handle.start.remote(), START_WITHIN_S)
            entry.started = started
        self._sizes.remember_process(CPU, started.process_bytes)
        real = device_of(started, ledger.devices.values())
        if entry.name not in ledger.slots or real is None:
            raise DeadlineExceededError(f"{entry.key.model}: its device left the cluster while its session started")
        if real != slot.device_id:
            ledger.move(entry.name, real)
            if ledger.excess_bytes(real) > 0 or real in entry.avoid:
                raise MisplacedError(f"started on {real} instead of {device.device_id}")

    def _left_by_ray(self, device: Device) -> int:
        """Return the bytes of a device that no process holds; the ledger counts those as well whose turn has not come."""
        started = (
            slot
            for slot in self._book.ledger.slots.values()
            if slot.name in self._book.entries and self._book.entries[slot.name].started is not None
        )
        return device.capacity_bytes - sum(slot.held_bytes for slot in started if slot.device_id == device.device_id)

    async def _prepare_next_try(self, entry: Entry, device_id: str, exc: Exception, tries: int) -> bool:
        """End what failed, and choose where the next try goes: another device first; false where the same failure would come again."""
        _log.warning("%s did not load on %s: %s", entry.key.model, device_id, exc)
        self._metrics.failed(entry.key.model)
        if self._book.entries.get(entry.name) is not entry:
            return False
        await end_session(self._book, entry)
        if self._book.entries.get(entry.name) is not entry or (
            entry.is_replica and not isinstance(exc, MisplacedError)
        ):
            return False
        is_ours = isinstance(exc, GenAIRayError) or isinstance(getattr(exc, "cause", None), GenAIRayError)
        is_deterministic = (
            is_ours and device_id in self._book.ledger.devices
        )  # the death of a node says nothing of the model
        if not isinstance(exc, MisplacedError):
            entry.avoid |= {device_id}
            if not self._has_other_device(entry):
                entry.avoid = frozenset()
                if is_deterministic:
                    return False
        self._book.rename(entry)
        if not is_deterministic:
            await asyncio.sleep(BACKOFF_S * tries)  # a node that has died is reported within this
        return True

    def _has_other_device(self, entry: Entry) -> bool:
        try:
            kinds = self.need_of(entry).kinds
        except (BackendUnavailableError, ConfigError):
            return False
        return any(
            device.device_id not in entry.avoid and (kinds is None or device.kind in kinds)
            for device in self._book.ledger.devices.values()
        )
