"""``SessionActor``: one ``InferenceSession`` in a process of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from genai_ray.cluster.devices import Started, gpu_used_bytes
from genai_ray.cluster.messages import Description, LoadRequest, Recency, RetentionInfo, Retired
from genai_ray.errors import ResourceExhaustedError
from genai_ray.session import InferenceSession, anonymous_bytes
from genai_ray.types import Frames

__all__ = ["SessionActor"]

CONCURRENCY_GROUPS = {"infer": 16, "online": 16, "control": 2, "load": 2, "watch": 3}
"""Threads by kind of call: no inference delays questions about the session, nor do batch jobs delay online requests."""

HOT_QUEUE = 6
"""Requests that make a session hot if they stay for ``HOT_FOR_S``: three for each concurrent run on two cores."""

HOT_FOR_S = 2.0
"""A session is hot when its queue has been that long for this many seconds."""

_LOOK_EVERY_S = 0.5

FLOOR_SHARES = (1.0, 0.75)
"""Shares of the given bytes that a session tries to keep to, one after the other: predictions err by about a fifth."""

RETIRED_FOR_S = 30.0
"""A retired session whose cache does not end it ends itself after this."""

DRAIN_QUIET_S = 0.05
"""A retired session that nobody has called for this long may end."""

RESERVE_WITHIN_S = 30.0
"""A session waits this long for the cache to make room for another copy of its model."""

DRAIN_MOST_S = 1.0
"""A retired session may end after this, even if calls still come."""


class SessionActor:
    """Wraps one session; every public method is called through Ray.

    Args:
        cache: Name of the cache that starts it.
        load_request: Which session.
        reserved_bytes: Bytes that count against the budgets of the cache.
        held_bytes: Bytes that Ray holds for it: those in units of its device.
        keeper: Actor of the cache, which is asked for more bytes.
        is_logical: Whether its GPU, if it has one, is a logical one: it computes on the CPU.
    """

    def __init__(
        self,
        cache: str,
        load_request: LoadRequest,
        reserved_bytes: int,
        held_bytes: int,
        keeper: Any,
        is_logical: bool = False,
    ) -> None:
        gpus = ray.get_gpu_ids()
        self._has_gpu = bool(gpus) and not is_logical
        if not self._has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and every GPU would be seen
        self._cache = cache
        self._request = load_request.request
        self._digest = load_request.digest
        self._keeper = keeper
        self._reserved_bytes = reserved_bytes
        self._held_bytes = held_bytes
        self._started = Started(
            ray.get_runtime_context().get_node_id(), str(gpus[0]) if gpus else None, os.getpid(), anonymous_bytes()
        )
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._session: InferenceSession | None = None
        self._frames_of: Counter[str] = Counter()
        self._in_flight = self._use_count = self._watchers = self._retirements = 0
        self._measured_bytes: int | None = None
        self._most_bytes = 0
        self._load_s = 0.0
        self._last_use_s = time.monotonic()
        self._retired = self._is_online = False
        self._retention = RetentionInfo()
        self._last_refused_s = 0.0

    @ray.method(concurrency_group="load")
    def start(self) -> Started:
        """Say where this process is; it has loaded nothing by then.

        Returns:
            Node, GPU, process and its bytes.
        """
        return self._started

    @ray.method(concurrency_group="load")
    def load(self) -> tuple[int, float]:
        """Load and warm the session; a second call waits for the first and loads nothing.

        Returns:
            Bytes of this process when warm, and the seconds that it took.

        Raises:
            GenAIRayError: Whatever ``InferenceSession`` raises.
        """
        with self._loading:
            if self._session is None:
                began_at = time.monotonic()
                floor = self._request.floor_bytes
                session = self._open(None) if floor is None else self._open_within(floor)
                self._last_use_s = time.monotonic()
                self._load_s = self._last_use_s - began_at
                self._measured_bytes = self._bytes()
                self._session = session
            return self._measured_bytes or 0, self._load_s

    @ray.method(concurrency_group="watch")
    def watch(self) -> bool:
        """Return when the queue has been long for ``HOT_FOR_S``; if this process dies, the call fails within some ms.

        Returns:
            Whether another replica would be of use; false if another caller watches now: a cache that has restarted.
        """
        with self._lock:
            self._watchers += 1
            mine = self._watchers
        long_since_s = time.monotonic()
        while time.monotonic() - long_since_s < HOT_FOR_S:
            time.sleep(_LOOK_EVERY_S)
            if mine != self._watchers:
                return False
            if self._in_flight < HOT_QUEUE:
                long_since_s = time.monotonic()
        return True

    @ray.method(concurrency_group="infer")
    def infer(
        self,
        frames: Frames | Retired,
        params: Mapping[str, float] | None = None,
        tag: str | None = None,
        is_online: bool = False,
        window: tuple[int, int] | None = None,
        following: Frames | Retired | None = None,
    ) -> Frames | Retired:
        """Enhance frames; see ``InferenceSession.infer``.

        Args:
            frames: Frames of the contract, or the result of another session.
            params: Extra inputs by name.
            tag: Whose progress this counts as.
            is_online: Whether somebody waits for it; then it is called in the group ``online``.
            window: Half-open range of the frames to enhance, counted over ``frames`` and ``following``; None for all.
            following: Frames of the batch after ``frames``, if the window reaches into it.

        Returns:
            Frames; or ``Retired`` if this session, or the one before it, has been retired.
        """
        with self._use(is_online) as session:
            if session is None or isinstance(frames, Retired) or isinstance(following, Retired):
                return Retired()
            if window is not None:
                frames = _cut(frames, following, *window)
            result = session.infer(frames, params, is_online=is_online)
            if tag is not None:
                with self._lock:
                    self._frames_of[tag] += 1 if result.ndim == 3 else len(result)
            return result

    @ray.method(concurrency_group="infer")
    def run(self, feeds: dict[str, Any], is_online: bool = False) -> dict[str, Any] | Retired:
        """Run raw tensors; see ``InferenceSession.run``.

        Args:
            feeds: Arrays by name.
            is_online: Whether somebody waits for it; then it is called in the group ``online``.

        Returns:
            Outputs by name, or ``Retired``.
        """
        with self._use(is_online) as session:
            return Retired() if session is None else session.run(feeds, is_online=is_online)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """Return what the session is and has done.

        Returns:
            ``InferenceSession.status`` with the bytes of the whole process, and the GPUs that it sees: "" for none.
        """
        status = {} if self._session is None else self._session.status()
        return status | {
            "memory_bytes": self._bytes(),
            "pid": os.getpid(),
            "gpu_ids": [] if self._started.gpu is None else [self._started.gpu],
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "retired": self._retired,
            "in_flight": self._in_flight,
        }

    @ray.method(concurrency_group="control")
    def describe(self) -> Description:
        """Return what a restarted cache must know.

        Returns:
            Whose it is, what it is, and in which state.
        """
        return Description(
            cache=self._cache,
            request=self._request,
            digest=self._digest,
            started=self._started,
            reserved_bytes=self._reserved_bytes,
            held_bytes=self._held_bytes,
            measured_bytes=self._measured_bytes,
            load_s=self._load_s,
            retention=self._retention,
            retired=self._retired,
        )

    @ray.method(concurrency_group="control")
    def set_retention(self, retention: RetentionInfo) -> None:
        """Remember why this session is not evicted, for a cache that restarts.

        Args:
            retention: The reasons.
        """
        self._retention = retention

    @ray.method(concurrency_group="control")
    def recency(self) -> Recency:
        """Return how long the session has been idle.

        Returns:
            Idle seconds, uses so far and at the moment, and its bytes.
        """
        num_bytes = self._bytes()
        with self._lock:
            idle_s = 0.0 if self._in_flight else time.monotonic() - self._last_use_s
            return Recency(idle_s, self._use_count, self._in_flight, self._is_online, num_bytes)

    @ray.method(concurrency_group="control")
    def touch(self, is_online: bool) -> Retired | None:
        """Count as a use: a session was asked for.

        Args:
            is_online: Whether by somebody who waits.

        Returns:
            ``Retired`` if it cannot be used any more.
        """
        with self._lock:
            self._use_count += 1
            self._last_use_s = time.monotonic()
            self._is_online = is_online
            return Retired() if self._retired else None

    @ray.method(concurrency_group="control")
    def try_retire(self, use_count: int | None) -> bool:
        """Retire: new requests are told to acquire another session.

        Args:
            use_count: Uses that the cache knows of: refused if there were more meanwhile, or one is in flight. None to
                retire all the same; what is in flight is still computed.

        Returns:
            Whether it is retired now.
        """
        with self._lock:
            if use_count is not None and (self._in_flight or use_count != self._use_count):
                return False
            self._retired = True
            self._retirements += 1
            retirement = self._retirements
        self._end_later(retirement)
        return True

    @ray.method(concurrency_group="control")
    def revive(self) -> None:
        """Take back a retirement: what is in flight takes too long."""
        self._retired = False

    @ray.method(concurrency_group="watch")
    def drain(self) -> None:
        """Return when nothing is in flight and no call has come for a while: calls on their way still get an answer."""
        while self._in_flight and self._retired:
            time.sleep(DRAIN_QUIET_S / 5)
        started = time.monotonic()
        while time.monotonic() < min(max(self._last_refused_s, started) + DRAIN_QUIET_S, started + DRAIN_MOST_S):
            time.sleep(DRAIN_QUIET_S / 5)

    @ray.method(concurrency_group="control")
    def progress(self, tag: str) -> int:
        """Return how many frames were computed for a tag.

        Args:
            tag: Whose.

        Returns:
            Frames so far.
        """
        return self._frames_of[tag]

    def _open(self, room: int | None) -> InferenceSession:
        request = self._request
        device = "cuda" if self._has_gpu else "cpu"
        limits = replace(request.limits(room), reserve=self._reserve)
        session = InferenceSession(
            request.model, backend=request.backend, precision=request.precision, device=device, limits=limits
        )
        try:
            session.warmup()
        except BaseException:
            session.close()  # its threads would keep the model alive
            raise
        return session

    def _open_within(self, floor_bytes: int) -> InferenceSession:
        """Keep to the given bytes by smaller tiles; they are a floor, not a ceiling: the model gets what it needs."""
        for share in FLOOR_SHARES:
            try:
                return self._open(int(share * (floor_bytes - anonymous_bytes())))
            except ResourceExhaustedError:
                continue
        return self._open(None)

    def _reserve(self, more_bytes: int) -> bool:
        """Reserve bytes before another copy of the model takes them; if the cache has none, the copies take turns."""
        if self._session is None:
            return True  # it loads: what it is warmed with has been reserved
        self._most_bytes = now_bytes = self._bytes()
        try:
            asked = self._keeper.grow.remote(ray.get_runtime_context().get_actor_name(), now_bytes + more_bytes)
            may = bool(ray.get(asked, timeout=RESERVE_WITHIN_S))
        except (RayError, TimeoutError):
            return False
        self._most_bytes += more_bytes if may else 0
        return may

    def _end_later(self, retirement: int) -> None:
        """End this process in a while, unless the cache ends it first or takes the retirement back."""

        def end() -> None:
            if not self._retired or retirement != self._retirements:
                return
            if self._in_flight:
                self._end_later(retirement)
            else:
                os._exit(0)

        timer = threading.Timer(RETIRED_FOR_S, end)
        timer.daemon = True
        timer.start()

    def _bytes(self) -> int:
        """Return what this process takes of its device: of a real GPU what NVML says, otherwise anonymous memory."""
        if self._started.gpu is not None and self._has_gpu:
            used = gpu_used_bytes(self._started.gpu, self._started.pid)
            return self._reserved_bytes if used is None else used
        if self._session is not None and self._session.is_loading:
            # the bytes of the file that it reads are freed again, as in the first load
            return min(anonymous_bytes(), self._most_bytes or self._reserved_bytes)
        return anonymous_bytes()

    @contextmanager
    def _use(self, is_online: bool) -> Iterator[InferenceSession | None]:
        with self._lock:
            if self._retired or self._session is None:
                usable = None
                self._last_refused_s = time.monotonic()
            else:
                usable = self._session
                self._in_flight += 1
                self._use_count += 1
                self._is_online = is_online
        try:
            yield usable
        finally:
            if usable is not None:
                with self._lock:
                    self._in_flight -= 1
                    self._last_use_s = time.monotonic()


def _cut(frames: Frames, following: Frames | None, start: int, stop: int) -> Frames:
    """Take a range out of two batches laid end to end; without a copy if it lies in the first."""
    head = frames[start:stop]
    if following is None or stop <= len(frames):
        return head
    joined: Frames = np.concatenate([head, following[max(start - len(frames), 0) : stop - len(frames)]])
    return joined
