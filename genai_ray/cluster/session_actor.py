"""``SessionActor``: one ``InferenceSession`` in a process of its own.

When the cache evicts a session for another one, it may use the process again: ``close`` ends the first session and
measures what the process still holds, ``reopen`` makes it the process of the second one. The actor keeps its name. A
call therefore names the session that it means, and a call for an earlier session is answered ``Retired``.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from genai_ray.catalog import ModelCatalog
from genai_ray.cluster.devices import Started, name_processor
from genai_ray.cluster.messages import Caller, Description, LoadRequest, Recency, RetentionInfo, Retired
from genai_ray.cluster.served import GROWTH_BYTES, Served, open_session
from genai_ray.errors import InferenceError, InvalidInputError, ResourceExhaustedError
from genai_ray.session import InferenceSession, anonymous_bytes, release_freed_memory
from genai_ray.types import Frames, Params

__all__ = ["SessionActor"]

CONCURRENCY_GROUPS = {"infer": 16, "online": 16, "control": 2, "load": 2, "watch": 3}
"""Threads by kind of call: no inference delays questions about the session, nor do batch jobs delay online requests."""

RETIRED_FOR_S = 30.0
"""A retired session whose cache does not end it ends itself after this."""

RESERVE_WITHIN_S = 30.0
"""A session waits this long for the cache to make room for another copy of its model."""

MAX_LOADS = 200
"""A process that has loaded so many sessions serves no other one."""

KEPT_SHARE = 0.1
"""Of the bytes of a new process with ``GROWTH_BYTES``, the most that a process may hold in addition when its session is
closed. A process of 79.6 MB held 84 to 87 MB after its first small model: imports, and heaps of Ray's threads."""


class SessionActor:
    """Wraps one session at a time; every public method is called through Ray.

    Args:
        cache: Name of the cache that starts it.
        load_request: Which session; it has the name of the actor.
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
        self._keeper = keeper
        self._held_bytes = held_bytes
        context = ray.get_runtime_context()
        name = str(context.get_actor_name())
        gpu = str(gpus[0]) if gpus else None
        kind = name_processor(gpu if self._has_gpu else None)
        self._started = Started(context.get_node_id(), gpu, os.getpid(), anonymous_bytes(), name, kind)
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._served = Served(name, load_request, reserved_bytes)
        self._timer: threading.Timer | None = None
        self._loads = 0
        self._has_failed = False
        gc.collect()  # else garbage is kept for ever as well
        gc.freeze()  # what is there stays: to go through it takes 40 ms at every load and every close

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
            served = self._served
            if served.measured_bytes is None:
                self._loads += 1
                began_at = time.monotonic()
                try:
                    session = open_session(
                        served,
                        None if self._has_gpu else self._started.process_bytes,
                        reserve=lambda more_bytes: self._reserve(served, more_bytes),
                        ask=lambda num_bytes: self._ask(served, num_bytes),
                    )
                except BaseException:
                    self._has_failed = True
                    raise
                served.last_use_s = time.monotonic()
                served.load_s = served.last_use_s - began_at
                served.session = session
                served.measured_bytes = self._bytes()
            return served.measured_bytes, served.load_s

    @ray.method(concurrency_group="load")
    def close(self, name: str) -> int | None:
        """Close the session, which is retired and idle, and give its memory back.

        Args:
            name: The session.

        Returns:
            Bytes that this process still holds, if it may serve another session: they were measured to be at most
            ``KEPT_SHARE`` more than those of a new one that has worked, no call of its sessions has failed but for
            invalid input and frames that are too large, and it has loaded fewer than ``MAX_LOADS``. None if it may not.
        """
        with self._loading:
            with self._lock:
                served = self._served
                session = served.session
                if served.name != name or not served.retired or served.in_flight or session is None:
                    return None
                served.session = None
            session.close()
            del session
            release_freed_memory()
            served.measured_bytes = kept = anonymous_bytes()
            served.is_closed = True
            most = (1 + KEPT_SHARE) * (self._started.process_bytes + GROWTH_BYTES)
            is_given_back = 0 < kept <= most  # 0: this system does not tell
            return kept if is_given_back and self._loads < MAX_LOADS and not self._has_failed else None

    @ray.method(concurrency_group="load")
    def reopen(self, name: str, load_request: LoadRequest, reserved_bytes: int, inherited_bytes: int) -> None:
        """Become the process of another session, which loads nothing by itself; the one before it is closed.

        Specs of models are read again, as a new process reads them.

        Args:
            name: Name of the new session.
            load_request: Which session.
            reserved_bytes: Bytes that count against the budgets of the cache.
            inherited_bytes: Bytes that this process kept of earlier sessions, beyond those of a new one.

        Raises:
            InferenceError: If the session before it is still open.
        """
        with self._loading, self._lock:
            before = self._served
            if not before.is_closed:
                raise InferenceError(f"process {self._started.pid} still serves {before.name}", do="Close it first.")
            ModelCatalog.forget()
            self._served = Served(name, load_request, reserved_bytes, before.name, inherited_bytes)
            if self._timer is not None:
                self._timer.cancel()

    @ray.method(concurrency_group="watch")
    def watch(self, name: str) -> bool:
        """Return when the queue has been long for ``HOT_FOR_S``; if this process dies, the call fails within some ms.

        Args:
            name: The session.

        Returns:
            Whether another replica would be of use; false if another caller watches now, a cache that has restarted,
            or if this process serves another session.
        """
        with self._lock:
            served = self._served
            if served.name != name:
                return False
            served.watchers += 1
            mine = served.watchers
        return served.watch(mine)

    @ray.method(concurrency_group="infer")
    def infer(
        self,
        caller: Caller,
        frames: Frames | Retired,
        params: Params | None = None,
        window: tuple[int, int] | None = None,
        following: Frames | Retired | None = None,
    ) -> Frames | Retired:
        """Enhance frames; see ``InferenceSession.infer``.

        Args:
            caller: The session; one for whom somebody waits is called in the group ``online``.
            frames: Frames of the contract, or the result of another session.
            params: Extra inputs by name.
            window: Half-open range of the frames to enhance, counted over ``frames`` and ``following``; None for all.
            following: Frames of the batch after ``frames``, if the window reaches into it.

        Returns:
            Frames; or ``Retired`` if this session, or the one before it, has been retired.
        """
        with self._use(caller) as session:
            if session is None or isinstance(frames, Retired) or isinstance(following, Retired):
                return Retired()
            if window is not None:
                frames = _cut(frames, following, *window)
            result = session.infer(frames, params, is_online=caller.is_online)
            if caller.tag is not None:
                with self._lock:  # it is in use: this process serves no other one meanwhile
                    self._served.frames_of[caller.tag] += 1 if result.ndim == 3 else len(result)
            return result

    @ray.method(concurrency_group="infer")
    def run(self, caller: Caller, feeds: dict[str, Any]) -> dict[str, Any] | Retired:
        """Run raw tensors; see ``InferenceSession.run``.

        Args:
            caller: As for ``infer``.
            feeds: Arrays by name.

        Returns:
            Outputs by name, or ``Retired``.
        """
        with self._use(caller) as session:
            return Retired() if session is None else session.run(feeds, is_online=caller.is_online)

    @ray.method(concurrency_group="control")
    def status(self, name: str) -> dict[str, Any] | Retired:
        """Return what the session is and has done.

        Args:
            name: The session.

        Returns:
            ``InferenceSession.status`` with the bytes of the whole process, and the GPUs that it sees: "" for none.
            ``Retired`` if the session is closed, or if this process serves another one.
        """
        served = self._served
        session = served.session
        if served.name != name or (session is None and served.retired):
            return Retired()
        return ({} if session is None else session.status()) | {
            "memory_bytes": self._bytes(),
            "pid": os.getpid(),
            "process_loads": self._loads,
            "gpu_ids": [] if self._started.gpu is None else [self._started.gpu],
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "retired": served.retired,
            "in_flight": served.in_flight,
        }

    @ray.method(concurrency_group="control")
    def describe(self) -> Description:
        """Return what a restarted cache must know.

        Returns:
            Whose it is, what it is, and in which state.
        """
        served = self._served
        return Description(
            cache=self._cache,
            name=served.name,
            request=served.load_request.request,
            digest=served.load_request.digest,
            started=self._started,
            reserved_bytes=served.reserved_bytes,
            held_bytes=self._held_bytes,
            measured_bytes=served.measured_bytes,
            load_s=served.load_s,
            retention=served.retention,
            retired=served.retired,
            predecessor=served.predecessor,
            inherited_bytes=served.inherited_bytes,
        )

    @ray.method(concurrency_group="control")
    def set_retention(self, name: str, retention: RetentionInfo) -> None:
        """Remember why this session is not evicted, for a cache that restarts.

        Args:
            name: The session; nothing changes if this process serves another one.
            retention: The reasons.
        """
        served = self._served
        if served.name == name:
            served.retention = retention

    @ray.method(concurrency_group="control")
    def recency(self) -> Recency:
        """Return how long the session has been idle; also asked to see whether this process answers.

        Returns:
            Idle seconds, uses so far and at the moment, and its bytes.
        """
        num_bytes = self._bytes()
        with self._lock:
            served = self._served
            idle_s = 0.0 if served.in_flight else time.monotonic() - served.last_use_s
            return Recency(idle_s, served.use_count, served.in_flight, served.is_online, num_bytes)

    @ray.method(concurrency_group="control")
    def touch(self, name: str, is_online: bool) -> Retired | None:
        """Count as a use: a session was asked for.

        Args:
            name: The session.
            is_online: Whether by somebody who waits.

        Returns:
            ``Retired`` if it cannot be used any more.
        """
        with self._lock:
            served = self._served
            if served.name != name:
                return Retired()
            served.use_count += 1
            served.last_use_s = time.monotonic()
            served.is_online = is_online
            return Retired() if served.retired else None

    @ray.method(concurrency_group="control")
    def try_retire(self, name: str, use_count: int | None) -> bool:
        """Retire: new requests are told to acquire another session.

        Args:
            name: The session.
            use_count: Uses that the cache knows of: refused if there were more meanwhile, or one is in flight. None to
                retire all the same; what is in flight is still computed.

        Returns:
            Whether it is retired now.
        """
        with self._lock:
            served = self._served
            if served.name != name:
                return False
            if use_count is not None and (served.in_flight or use_count != served.use_count):
                return False
            served.retired = True
            served.retirements += 1
            retirement = served.retirements
        self._end_later(served, retirement)
        return True

    @ray.method(concurrency_group="control")
    def revive(self, name: str) -> None:
        """Take back a retirement: what is in flight takes too long.

        Args:
            name: The session; nothing changes if it is closed, or if this process serves another one.
        """
        with self._lock:
            served = self._served
            if served.name == name and served.session is not None:
                served.retired = False

    @ray.method(concurrency_group="watch")
    def drain(self, name: str) -> None:
        """Return when nothing is in flight and no call has come for a while: calls on their way still get an answer.

        Args:
            name: The session.
        """
        served = self._served
        if served.name == name:
            served.drain()

    @ray.method(concurrency_group="control")
    def progress(self, name: str, tag: str) -> int:
        """Return how many frames were computed for a tag.

        Args:
            name: The session.
            tag: Whose.

        Returns:
            Frames so far; 0 if this process serves another session.
        """
        served = self._served
        return served.frames_of[tag] if served.name == name else 0

    def _reserve(self, served: Served, more_bytes: int) -> bool:
        """Reserve bytes before another copy of the model takes them; if the cache has none, the copies take turns."""
        if served.session is None:
            return True  # it loads: what it is warmed with has been reserved
        served.most_bytes = now_bytes = self._bytes()
        may = self._ask(served, now_bytes + more_bytes)
        served.most_bytes += more_bytes if may else 0
        return may

    def _ask(self, served: Served, num_bytes: int) -> bool:
        """Ask the cache to reserve so many bytes in all for a session."""
        try:
            return bool(ray.get(self._keeper.grow.remote(served.name, num_bytes), timeout=RESERVE_WITHIN_S))
        except (RayError, TimeoutError):
            return False

    def _end_later(self, served: Served, retirement: int) -> None:
        """End this process in a while, unless the cache ends it first, uses it again or takes the retirement back."""

        def end() -> None:
            with self._lock:
                if served is not self._served or not served.retired or retirement != served.retirements:
                    return
                if not served.in_flight:
                    os._exit(0)
            self._end_later(served, retirement)

        timer = threading.Timer(RETIRED_FOR_S, end)
        timer.daemon = True
        timer.start()
        self._timer = timer

    def _bytes(self) -> int:
        """Return what this process takes of its device: bytes of a real GPU, otherwise anonymous memory."""
        served = self._served
        session = served.session
        if self._has_gpu:  # nothing but the session takes bytes of a GPU
            return served.reserved_bytes if session is None else session.memory_bytes
        if session is not None and session.is_loading:
            # the bytes of the file that it reads are freed again, as in the first load
            return min(anonymous_bytes(), served.most_bytes or served.reserved_bytes)
        return anonymous_bytes()

    @contextmanager
    def _use(self, caller: Caller) -> Iterator[InferenceSession | None]:
        with self._lock:
            served = self._served
            usable = served.session if served.name == caller.session and not served.retired else None
            if usable is None:
                served.last_refused_s = time.monotonic()
            else:
                served.in_flight += 1
                served.use_count += 1
                served.is_online = caller.is_online
        try:
            yield usable
        except (InvalidInputError, ResourceExhaustedError):
            raise  # the runtime is as it was: a frame may be too large for what is reserved
        except BaseException:
            self._has_failed = True
            raise
        finally:
            if usable is not None:
                with self._lock:
                    served.in_flight -= 1
                    served.last_use_s = time.monotonic()


def _cut(frames: Frames, following: Frames | None, start: int, stop: int) -> Frames:
    """Take a range out of two batches laid end to end; without a copy if it lies in the first."""
    head = frames[start:stop]
    if following is None or stop <= len(frames):
        return head
    joined: Frames = np.concatenate([head, following[max(start - len(frames), 0) : stop - len(frames)]])
    return joined
