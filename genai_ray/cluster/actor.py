"""``SessionActor``: one ``InferenceSession`` in a process of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from genai_ray.errors import ResourceExhaustedError
from genai_ray.session import InferenceSession, SessionLimits, anonymous_bytes
from genai_ray.types import Frames, ModelBackend, ModelPrecision

__all__ = ["Description", "Recency", "Retired", "SessionActor", "SessionRequest"]

CONCURRENCY_GROUPS = {"infer": 16, "control": 2, "load": 2, "watch": 2}
"""Questions about a session have threads of their own, so that no inference delays them."""

RETIRED_FOR_S = 30.0
"""A retired session whose cache does not end it ends itself after this."""

DRAIN_QUIET_S = 0.05
"""A retired session that nobody has called for this long may end."""

DRAIN_MOST_S = 1.0
"""After this it may end all the same."""


@dataclass(frozen=True, slots=True)
class Retired:
    """What a session answers once it has been retired: acquire another one."""


@dataclass(frozen=True, slots=True)
class Recency:
    """How long a session has been idle."""

    idle_s: float
    """Seconds since the end of the last use; 0 while one is in flight."""
    use_count: int
    """Uses so far."""
    in_flight: int
    """Uses at the moment."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Everything that says which session is wanted."""

    model: str
    """Canonical id, or an absolute path."""
    backend: ModelBackend
    """The runtime."""
    precision: ModelPrecision
    """The number format."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    floor_bytes: int | None = None
    """Bytes that the caller gave: a reservation that the session keeps to where it can."""
    max_frame: tuple[int, int] | None = None
    """(height, width) of the largest frame."""
    max_batch: int | None = None
    """Most frames in one runtime call."""
    tile_size_px: int | None = None
    """Longest side of a tile; 0 for never."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a session tells a cache that has restarted and finds it."""

    cache: str
    """Name of the cache that started it."""
    request: SessionRequest
    """What it is a session of."""
    reserved_bytes: int
    """Bytes reserved for it, or measured where it has loaded."""
    pinned: bool
    """Whether it must stay."""
    retired: bool
    """Whether it only waits for its end."""


class SessionActor:
    """Wraps one session; every public method is called through Ray.

    Args:
        cache: Name of the cache that starts it.
        request: Which session.
        reserved_bytes: Bytes reserved for it until it has loaded.
    """

    def __init__(self, cache: str, request: SessionRequest, reserved_bytes: int) -> None:
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and every GPU would be seen
        self._cache, self._request, self._bytes = cache, request, reserved_bytes
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._session: InferenceSession | None = None
        self._frames_of: Counter[str] = Counter()
        self._in_flight = self._use_count = 0
        self._last_use_s = time.monotonic()
        self._retired = self._pinned = False
        self._last_refused_s = 0.0

    @ray.method(concurrency_group="load")
    def load(self) -> int:
        """Load and warm the session; a second call waits for the first and loads nothing.

        Returns:
            Anonymous bytes of this process when warm.

        Raises:
            GenAIRayError: Whatever ``InferenceSession`` raises.
        """
        with self._loading:
            if self._session is not None:
                return self._bytes
            floor = self._request.floor_bytes
            room = None if floor is None else floor - anonymous_bytes()
            try:
                session = self._open(room)
            except ResourceExhaustedError:
                # Bytes given are a floor, not a ceiling: what the model needs at the least is measured and recorded.
                session = self._open(None)
            self._bytes, self._last_use_s = anonymous_bytes(), time.monotonic()
            self._session = session
            return self._bytes

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never return: the call fails within some ms of this process's death, which is how a cache learns of it."""
        threading.Event().wait()

    @ray.method(concurrency_group="infer")
    def infer(self, frames: Frames | Retired, params: Mapping[str, float] | None = None, tag: str | None = None) -> Frames | Retired:
        """Enhance frames; see ``InferenceSession.infer``.

        Args:
            frames: Frames of the contract, or the result of another session.
            params: Extra inputs by name.
            tag: Whose progress this counts as.

        Returns:
            Frames; or ``Retired`` where this session, or the one before it, has been retired.
        """
        with self._use() as session:
            if session is None or isinstance(frames, Retired):
                return Retired()
            result = session.infer(frames, params)
            if tag is not None:
                with self._lock:
                    self._frames_of[tag] += 1 if result.ndim == 3 else len(result)
            return result

    @ray.method(concurrency_group="infer")
    def run(self, feeds: dict[str, Any]) -> dict[str, Any] | Retired:
        """Run raw tensors; see ``InferenceSession.run``.

        Args:
            feeds: Arrays by name.

        Returns:
            Outputs by name, or ``Retired``.
        """
        with self._use() as session:
            return Retired() if session is None else session.run(feeds)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """Return what the session is and has done.

        Returns:
            ``InferenceSession.status`` with the bytes of the whole process.
        """
        status = {} if self._session is None else self._session.status()
        return status | {"memory_bytes": anonymous_bytes(), "pid": os.getpid(), "retired": self._retired, "in_flight": self._in_flight}

    @ray.method(concurrency_group="control")
    def describe(self) -> Description:
        """Return what a restarted cache must know.

        Returns:
            Whose it is, what it is, and in which state.
        """
        return Description(self._cache, self._request, self._bytes, self._pinned, self._retired)

    @ray.method(concurrency_group="control")
    def pin(self, pinned: bool) -> None:
        """Remember whether this session must stay, for a cache that restarts.

        Args:
            pinned: Which.
        """
        self._pinned = pinned

    @ray.method(concurrency_group="control")
    def recency(self) -> Recency:
        """Return how long the session has been idle.

        Returns:
            Idle seconds, uses so far and at the moment.
        """
        with self._lock:
            idle_s = 0.0 if self._in_flight else time.monotonic() - self._last_use_s
            return Recency(idle_s, self._use_count, self._in_flight)

    @ray.method(concurrency_group="control")
    def touch(self) -> None:
        """Count as a use: a session was asked for."""
        with self._lock:
            self._use_count += 1
            self._last_use_s = time.monotonic()

    @ray.method(concurrency_group="control")
    def try_retire(self, use_count: int) -> bool:
        """Retire, unless somebody used the session meanwhile.

        Args:
            use_count: Uses that the asker knows of.

        Returns:
            Whether it is retired now.
        """
        with self._lock:
            if self._in_flight or use_count != self._use_count:
                return False
            self._retired = True
        end = threading.Timer(RETIRED_FOR_S, os._exit, (0,))
        end.daemon = True
        end.start()
        return True

    @ray.method(concurrency_group="control")
    def drain(self) -> None:
        """Return when nobody has met this retired session for a while: calls on their way get an answer, not a dead process."""
        started = time.monotonic()
        while time.monotonic() < min(max(self._last_refused_s, started) + DRAIN_QUIET_S, started + DRAIN_MOST_S):
            time.sleep(DRAIN_QUIET_S / 5)

    @ray.method(concurrency_group="control")
    def progress(self, tag: str) -> int:
        """Return how many frames were computed for somebody.

        Args:
            tag: Whose.

        Returns:
            Frames so far.
        """
        return self._frames_of[tag]

    def _open(self, room: int | None) -> InferenceSession:
        request = self._request
        limits = SessionLimits(max_bytes=room, max_frame=request.max_frame, max_batch=request.max_batch, tile_size_px=request.tile_size_px)
        session = InferenceSession(request.model, backend=request.backend, precision=request.precision, device=request.device, limits=limits)
        session.warmup()
        return session

    @contextmanager
    def _use(self) -> Iterator[InferenceSession | None]:
        with self._lock:
            if self._retired or self._session is None:
                usable, self._last_refused_s = None, time.monotonic()
            else:
                usable = self._session
                self._in_flight += 1
                self._use_count += 1
        try:
            yield usable
        finally:
            if usable is not None:
                with self._lock:
                    self._in_flight -= 1
                    self._last_use_s = time.monotonic()
