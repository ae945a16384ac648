"""The sessions of a cache: ``SessionRecord``, the one record of each, and ``SessionTable``, which holds them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from genai_ray.cluster.devices import Started
from genai_ray.cluster.messages import Key, LoadRequest, SessionRequest, key_of
from genai_ray.cluster.placement import Device, Ledger, Need, Slot, SlotState
from genai_ray.errors import DeadlineExceededError, GenAIRayError

__all__ = ["SessionProcesses", "SessionRecord", "SessionTable"]


@dataclass(slots=True, eq=False, kw_only=True)
class SessionRecord(Slot):
    """One session of the cache: what placement knows of it, and what the cache adds."""

    load_request: LoadRequest = field(kw_only=False)
    """What was asked for."""
    key: Key = field(init=False)
    """What it is a session of; replicas share it."""
    name: str = ""
    """Its name, never used twice; an actor has that of its first session."""
    handle: Any = None
    """The actor of its process; None before it was started, and after another session has taken it over."""
    started: Started | None = None
    """Where its process is."""
    predecessor: str | None = None
    """Name of the session whose process it has taken over; None if its process is its own."""
    kept_bytes: int | None = None
    """Bytes that its process holds, which is closed and may serve another session; None for any other."""
    inherited_bytes: int = 0
    """Bytes that its process kept of earlier sessions, beyond those of a new one."""
    needs_new_process: bool = False
    """Whether it takes over no process: a load in a used one failed."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has loaded or failed."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer in the table."""
    error: GenAIRayError | None = None
    """Why it failed."""
    is_adopted: bool = False
    """Whether it was started before the process of the cache died."""
    is_begun: bool = False
    """Whether a task loads it; a lease adds its sessions before it has found room for them."""
    waiters: int = 0
    """Requests that wait for it."""
    blocked: GenAIRayError | None = None
    """Why it does not start to load yet."""
    avoid: frozenset[str] = frozenset()
    """Devices on which it is not placed."""
    is_replica: bool = False
    """Whether there are others of its key: its failure says nothing of the model."""

    def __post_init__(self) -> None:
        self.key = key_of(self.load_request.request)
        self.floor_bytes = self.load_request.request.floor_bytes or 0
        self.name = self.name or self.new_name()

    @property
    def is_usable(self) -> bool:
        """Whether requests may be sent to it: it is loaded and not retiring."""
        return self.ready.is_set() and self.error is None and self.state is SlotState.READY

    @property
    def left_bytes(self) -> int:
        """What its process, which is closed, holds beyond the bytes of a new one."""
        if self.kept_bytes is None or self.started is None:
            return 0
        return max(self.kept_bytes - self.started.process_bytes, 0)

    def new_name(self) -> str:
        """Return a name that was never used.

        Returns:
            ``session:MODEL:INCARNATION``.
        """
        return f"session:{self.key.model}:{uuid.uuid4().hex[:12]}"


class SessionProcesses(Protocol):
    """All that a cache asks of Ray about the processes of its sessions, beside calls of their handles.

    ``RaySessions`` is the real one; tests bring their own.
    """

    async def start(self, record: SessionRecord, device: Device, free: Mapping[Device, int]) -> Started:
        """Start the process of a session on a device; it loads nothing by itself.

        Args:
            record: The session; its handle is set, also if the start fails.
            device: Where.
            free: Bytes that Ray has left of every GPU of its node, or of this device.

        Returns:
            Where it really runs.

        Raises:
            RayError: If the process ended.
            TimeoutError: If it does not report in time.
        """

    def kill(self, record: SessionRecord) -> None:
        """Kill the process of a session, if it has one; does not wait.

        Args:
            record: The session.
        """

    async def kill_and_wait(self, record: SessionRecord) -> None:
        """Kill the process of a session, and return when it is gone: its bytes are not free before.

        Args:
            record: The session; one that has no process yet is left alone.
        """

    async def process_ids(self, node: str) -> frozenset[int]:
        """Return the processes of a node that have started, with or without work.

        Args:
            node: Id of the node.

        Returns:
            Their ids.

        Raises:
            ConnectionError: If the node does not say.
        """

    async def start_spare(self, node: str) -> None:
        """Have a process started that the next session on a node takes; returns before it is there.

        Args:
            node: Id of the node.

        Raises:
            ConnectionError: If the node does not do so.
        """


class SessionTable:
    """All sessions of a cache, those that wait for room included, and the ledger of those that have a place.

    Args:
        ledger: Devices, budgets and bytes.
        processes: Starts and kills the processes.
    """

    def __init__(self, ledger: Ledger[SessionRecord], processes: SessionProcesses) -> None:
        self.ledger = ledger
        self.processes = processes
        self.records: dict[str, SessionRecord] = {}
        self._by_key: defaultdict[Key, dict[str, SessionRecord]] = defaultdict(dict)
        self._max_replicas: dict[Key, int] = {}
        self.can_grow = False
        self.is_closed = False
        self.is_surveyed = False
        self.pinned: set[Key] = set()
        self.unprobed: set[str] = set()
        self.history: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.counts = {"loads": 0, "reuses": 0, "adoptions": 0, "evictions": 0, "failures": 0}
        self._changed = asyncio.Event()

    def of_key(self, key: Key) -> list[SessionRecord]:
        """Return the sessions of one key.

        Args:
            key: Which.

        Returns:
            Its sessions, oldest first; those that wait for room as well.
        """
        return list(self._by_key[key].values()) if key in self._by_key else []

    def of_model(self, model: str) -> list[SessionRecord]:
        """Return the sessions of one model.

        Args:
            model: Canonical id.

        Returns:
            Its sessions of any backend, precision and device.
        """
        return [record for record in self.records.values() if record.key.model == model]

    def add(self, record: SessionRecord) -> None:
        """Add a session.

        Args:
            record: The session.
        """
        self.records[record.name] = record
        self._by_key[record.key][record.name] = record
        limit = record.load_request.request.max_replicas
        if limit is not None:  # a replica must not bring back an older limit
            self._max_replicas.setdefault(record.key, limit)

    def limit_replicas(self, request: SessionRequest) -> None:
        """Note how many replicas the cache may make of a model by itself; a request without a limit changes nothing.

        Args:
            request: What a client asks for.
        """
        if request.max_replicas is not None:
            self._max_replicas[key_of(request)] = request.max_replicas

    def may_replicate(self, key: Key) -> bool:
        """Tell whether the cache may make another replica of a model by itself.

        Args:
            key: Which.

        Returns:
            Whether it has fewer than the last limit allows; a limit ends with the last session of its key.
        """
        return key not in self._max_replicas or len(self.of_key(key)) < self._max_replicas[key]

    def rename(self, record: SessionRecord) -> None:
        """Give a session whose process is gone a new name, under which it tries again.

        Args:
            record: The session; it has no place.
        """
        self._remove(record)
        record.name = record.new_name()
        record.handle = record.started = record.predecessor = None
        record.inherited_bytes = 0
        self.add(record)

    def take_over(self, record: SessionRecord, closed: SessionRecord, need: Need) -> None:
        """Place a session in the process of another one, which has closed and is removed; its pin passes to a replica.

        Args:
            record: The session; it has no place.
            closed: The other one.
            need: What the session takes in that process.

        Raises:
            ResourceExhaustedError: As ``Ledger.take_over``; nothing has changed then.
        """
        self.ledger.take_over(record, need, closed.name, time.monotonic())
        record.handle, record.started, record.predecessor = closed.handle, closed.started, closed.name
        record.inherited_bytes = closed.left_bytes
        closed.handle = None  # a task that still holds the record cannot end the process
        self._leave(closed)

    def _leave(self, record: SessionRecord) -> None:
        """Remove a session whose bytes are free, and tell everybody."""
        self._remove(record)
        self.pass_pin_on(record.key)
        record.gone.set()
        self.notify()

    def pass_pin_on(self, key: Key) -> None:
        """Pin a usable session of a key that is to be pinned, unless one is.

        Args:
            key: The key.
        """
        heir = next((record for record in self.of_key(key) if record.is_usable), None)
        if heir is not None and self.lacks_pin(heir):
            self.ledger.mark(heir.name, is_pinned=True)

    def lacks_pin(self, record: SessionRecord) -> bool:
        """Tell whether a session takes the place of a pinned one that died.

        Args:
            record: The session.

        Returns:
            Whether its key is to be pinned, and no session of it is.
        """
        return record.key in self.pinned and not any(other.is_pinned for other in self.ledger.of_key(record.key))

    def drop(self, record: SessionRecord) -> None:
        """Remove a session that is dead, and make sure that its process ends; its pin passes to a replica.

        Args:
            record: The session; one that was removed already is left alone.
        """
        if self.records.get(record.name) is not record:
            return
        self.ledger.release(record.name)
        try:
            self.processes.kill(record)
        finally:
            self._leave(record)

    def _remove(self, record: SessionRecord) -> None:
        del self.records[record.name]
        del self._by_key[record.key][record.name]
        if not self._by_key[record.key]:
            del self._by_key[record.key]
            self._max_replicas.pop(record.key, None)

    async def end(self, record: SessionRecord) -> None:
        """End the process of a session, wait until it is gone, and free its bytes; the record stays, and may try again.

        Args:
            record: The session.
        """
        name = record.name
        if record.is_placed:
            self.ledger.mark(name, state=SlotState.RETIRING)  # from here on nobody else removes it
        await self.processes.kill_and_wait(record)
        self.ledger.release(name)
        self.notify()

    def revive(self, record: SessionRecord) -> None:
        """Take a retiring session back into use, and send those who waited for its end back to it.

        Args:
            record: The session.
        """
        if record.is_placed:
            self.ledger.mark(record.name, state=SlotState.READY)
            if self.lacks_pin(record):  # the pinned one died meanwhile
                self.ledger.mark(record.name, is_pinned=True)
        record.gone.set()
        record.gone = asyncio.Event()
        self.notify()

    def notify(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, event: asyncio.Event, record: SessionRecord, deadline: float) -> None:
        """Wait until a session is ready, or gone.

        Args:
            event: ``ready`` or ``gone`` of the session.
            record: The session.
            deadline: Until when, by ``time.monotonic``.

        Raises:
            GenAIRayError: Why it does not start to load, or ``DeadlineExceededError``, if the deadline comes first.
        """
        record.waiters += 1
        try:
            await asyncio.wait_for(event.wait(), max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            raise record.blocked or DeadlineExceededError(
                f"{record.key.model} was not ready in time", do="Give the client more time."
            ) from None
        finally:
            record.waiters -= 1

    async def wait_for_change(self, within_s: float) -> None:
        """Wait until something has changed.

        Args:
            within_s: Or until this is over: a session that falls idle tells nobody.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)
