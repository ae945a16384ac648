"""The book of a cache: what was asked for, the ledger, and the actors behind its slots."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from genai_ray.cluster.devices import Started
from genai_ray.cluster.messages import Key, LoadRequest, SessionRequest, key_of
from genai_ray.cluster.placement import Ledger, SlotState
from genai_ray.errors import DeadlineExceededError, GenAIRayError

__all__ = ["Entry", "SessionTable"]


@dataclass(slots=True, eq=False)
class Entry:
    """One session of the cache."""

    want: LoadRequest
    """What was asked for."""
    name: str = ""
    """Name of its actor, never used twice."""
    handle: Any = None
    """Its actor."""
    started: Started | None = None
    """Where its process is."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has loaded or failed."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer in the book."""
    error: GenAIRayError | None = None
    """Why it failed."""
    is_adopted: bool = False
    """Whether an earlier life of this cache started it."""
    is_begun: bool = False
    """Whether a task loads it; a lease enters what it may need before it has found room."""
    waiters: int = 0
    """Requests that wait for it."""
    blocked: GenAIRayError | None = None
    """Why it does not start to load yet."""
    avoid: frozenset[str] = frozenset()
    """Devices on which it is not to be."""
    is_replica: bool = False
    """Whether there are others of its model: what becomes of it says nothing of the model."""

    def __post_init__(self) -> None:
        self.name = self.name or self.new_name()

    @property
    def key(self) -> Key:
        """What it is a session of."""
        return key_of(self.want.request)

    def new_name(self) -> str:
        """Return a name that was never used.

        Returns:
            ``session:MODEL:INCARNATION``.
        """
        return f"session:{self.want.request.model}:{uuid.uuid4().hex[:12]}"


class SessionTable:
    """The ledger, and the actors behind its slots.

    Args:
        ledger: Devices, budgets and bytes.
    """

    def __init__(self, ledger: Ledger[Key]) -> None:
        self.ledger = ledger
        self.entries: dict[str, Entry] = {}
        self._by_key: defaultdict[Key, dict[str, Entry]] = defaultdict(dict)
        self._max_replicas: dict[Key, int] = {}
        self.can_grow = self.is_closed = self.is_surveyed = False
        self.pinned: set[Key] = set()
        self.unprobed: set[str] = set()
        self.history: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.counts = {"loads": 0, "adoptions": 0, "evictions": 0, "failures": 0}
        self._changed = asyncio.Event()

    def of_key(self, key: Key) -> list[Entry]:
        """Return the sessions of one key.

        Args:
            key: Which.

        Returns:
            Its entries, oldest first; those that wait for room as well.
        """
        return list(self._by_key[key].values()) if key in self._by_key else []

    def of_model(self, model: str) -> list[Entry]:
        """Return the sessions of one model.

        Args:
            model: Canonical id.

        Returns:
            Its entries of any backend, precision and device.
        """
        return [entry for entry in self.entries.values() if entry.key.model == model]

    def add(self, entry: Entry) -> None:
        """Enter a session.

        Args:
            entry: The session.
        """
        self.entries[entry.name] = entry
        self._by_key[entry.key][entry.name] = entry
        if entry.want.request.max_replicas is not None:
            self._max_replicas.setdefault(
                entry.key, entry.want.request.max_replicas
            )  # a replica must not bring back what was said before

    def bound(self, request: SessionRequest) -> None:
        """Hear how many replicas the cache may make of a model by itself; who says nothing of it changes nothing.

        Args:
            request: What somebody asks for.
        """
        if request.max_replicas is not None:
            self._max_replicas[key_of(request)] = request.max_replicas

    def may_grow(self, key: Key) -> bool:
        """Tell whether the cache may make another replica of a model by itself.

        Args:
            key: Which.

        Returns:
            Whether it has fewer than whoever bounded it last allows; nobody's bound outlives its last session.
        """
        return key not in self._max_replicas or len(self.of_key(key)) < self._max_replicas[key]

    def rename(self, entry: Entry) -> None:
        """Give a session whose process is gone a new name, under which it tries again.

        Args:
            entry: The session; it is not in the ledger.
        """
        self._remove(entry)
        entry.name, entry.handle, entry.started = entry.new_name(), None, None
        self.add(entry)

    def is_retiring(self, entry: Entry) -> bool:
        """Tell whether a session is on its way out.

        Args:
            entry: The session.

        Returns:
            Whether somebody else waits for its process to end, and strikes it out then.
        """
        slot = self.ledger.slots.get(entry.name)
        return slot is not None and slot.state is SlotState.RETIRING

    def is_usable(self, entry: Entry) -> bool:
        """Tell whether requests may be sent to a session.

        Args:
            entry: The session.

        Returns:
            Whether it is ready and stays.
        """
        slot = self.ledger.slots.get(entry.name)
        return entry.ready.is_set() and entry.error is None and slot is not None and slot.state is SlotState.READY

    def is_unpinned(self, entry: Entry) -> bool:
        """Tell whether a session takes the place of a pinned one that died.

        Args:
            entry: The session.

        Returns:
            Whether its key is to be pinned, and no session of it is.
        """
        return entry.key in self.pinned and not any(slot.is_pinned for slot in self.ledger.of_key(entry.key))

    def drop(self, entry: Entry) -> None:
        """Strike out a session that is dead, and make sure that its process ends; where it was pinned, a replica of it is now.

        Args:
            entry: The session; one that is struck out already is left alone.
        """
        if self.entries.get(entry.name) is not entry:
            return
        self._remove(entry)
        self.ledger.release(entry.name)
        heir = next((other for other in self.of_key(entry.key) if self.is_usable(other)), None)
        if heir is not None and self.is_unpinned(heir):
            self.ledger.mark(heir.name, is_pinned=True)
        entry.gone.set()
        if isinstance(entry.handle, ActorHandle):
            ray.kill(entry.handle)
        self.notify()

    def _remove(self, entry: Entry) -> None:
        del self.entries[entry.name], self._by_key[entry.key][entry.name]
        if not self._by_key[entry.key]:
            del self._by_key[entry.key]
            self._max_replicas.pop(entry.key, None)

    def keep(self, entry: Entry) -> None:
        """Take a session back that was on its way out, and send those who waited for its end back to it.

        Args:
            entry: The session.
        """
        if entry.name in self.ledger.slots:
            self.ledger.mark(entry.name, state=SlotState.READY)
            if self.is_unpinned(entry):  # the pinned one died meanwhile
                self.ledger.mark(entry.name, is_pinned=True)
        entry.gone.set()
        entry.gone = asyncio.Event()
        self.notify()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, event: asyncio.Event, entry: Entry, deadline: float) -> None:
        """Wait until a session is ready, or gone.

        Args:
            event: ``ready`` or ``gone`` of the session.
            entry: The session.
            deadline: Until when, by ``time.monotonic``.

        Raises:
            GenAIRayError: Why it does not start to load, or ``DeadlineExceededError``, if the deadline comes first.
        """
        entry.waiters += 1
        try:
            await asyncio.wait_for(event.wait(), max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            raise entry.blocked or DeadlineExceededError(
                f"{entry.key.model} was not ready in time", do="Give the client more time."
            ) from None
        finally:
            entry.waiters -= 1

    async def wait_for_change(self, within_s: float) -> None:
        """Wait until something has changed.

        Args:
            within_s: Or until this is over: a session that falls idle tells nobody.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)
