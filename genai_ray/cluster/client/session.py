"""``CachedSession`` and ``PendingCall``: calls of a session actor that survive its eviction and its death."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)

from genai_ray.backends import Tensors
from genai_ray.catalog import ModelSpec
from genai_ray.cluster.client.router import Handle
from genai_ray.cluster.messages import Caller, Retired, SessionRequest, isolate
from genai_ray.cluster.runtime.replies import is_crash, wait_for
from genai_ray.errors import DeadlineExceededError, GenAIRayError, InferenceError, ResourceExhaustedError
from genai_ray.session import Shown, processor_kind
from genai_ray.types import Frames, ModelTask, Params, check_frames

__all__ = ["UNKNOWN_PROCESSOR", "CachedSession", "FrameRange", "PendingCall", "find_processors"]

Ref: TypeAlias = "ray.ObjectRef[Any]"

Call: TypeAlias = Callable[[str, Handle], Ref]
"""Sends one call to an actor. It names the session that it means, since the actor may serve another one by then."""

MAX_DEATHS = 3
"""A request that was in flight in this many sessions when they crashed is taken for the cause."""

_RETRY_S = 0.05

SILENT_S = 3.0
"""A client pings the session of a request that is unanswered for this long."""

SOON_S = 1.0
"""A caller on an event loop waits for a slower answer on a thread."""

SMALL_BYTES = 1_000_000
"""Larger arguments go through the object store, which takes a while, and longer if the store is full."""

UNKNOWN_PROCESSOR = "unknown"
"""Kind of the processor of a session that is gone."""

PING_S = 2.0
"""A session that does not answer a ping for this long is taken for lost, unless it answers the cache."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request in flight."""

    name: str
    """Name of the session that it was sent to."""
    handle: Handle
    """Its actor."""
    ref: Ref
    """Its answer."""


class SessionSource(Protocol):
    """Where session actors come from: the part of ``Router`` that a call needs."""

    deadline_s: float
    """Most seconds that a request may take."""
    is_online: bool
    """Whether a person waits for the results."""
    tag: str | None
    """Name under which sessions count the frames; None if nobody asks."""

    def acquire(
        self, request: SessionRequest, spec: ModelSpec, lost: str | None = None, within_s: float | None = None
    ) -> tuple[str, Handle]:
        """Return name and actor of a session; see ``Router.acquire``."""
        ...

    def pick(self, request: SessionRequest, lost: str | None = None) -> tuple[str, Handle] | None:
        """Return what is known of a session without waiting; see ``Router.pick``."""
        ...

    def knows(self, request: SessionRequest, name: str) -> bool:
        """Tell whether a session is among those of a request; see ``Router.knows``."""
        ...

    def dismiss(self, request: SessionRequest, name: str) -> None:
        """End a session of a single request; see ``Router.dismiss``."""
        ...


class CachedSession(Shown):
    """A session in the cache: the methods of ``InferenceSession``, computed in its process.

    If its process is evicted or dies, the call goes to another one; the caller does not notice.

    Args:
        source: Where its actors come from.
        request: Which session.
        spec: The model.
    """

    def __init__(self, source: SessionSource, request: SessionRequest, spec: ModelSpec) -> None:
        self.spec = spec
        self._source = source
        self._request = request
        self.used: dict[str, Handle] | None = None
        """Collects the actors to which ``submit`` sends frames, by name of the session; None to collect nothing."""

    def __repr__(self) -> str:
        request = self._request
        return f"CachedSession({self.spec.model_id}, {request.backend}, {request.precision}, {request.device})"

    def touch(self) -> None:
        """Load the session if necessary, and count this as a use."""
        is_online = self._source.is_online
        self._ask(lambda name, handle: handle.touch.remote(name, is_online))

    def infer(self, frames: Frames, params: Params | None = None) -> Frames:
        """Enhance frames; see ``InferenceSession.infer``.

        Args:
            frames: (N, H, W, 3) or (H, W, 3), RGB, uint8, uint16 or float32 in [0, 1].
            params: Extra inputs by name.

        Returns:
            Frames by the model's shape law.

        Raises:
            GenAIRayError: As ``InferenceSession.infer``; ``CacheClosedError`` after ``shutdown``.
        """
        return self.submit(frames, params).result()

    def submit(self, frames: Frames | PendingCall | FrameRange, params: Params | None = None) -> PendingCall:
        """Send frames without waiting for the result.

        Args:
            frames: Frames; or the pending result of another session, or some frames of it, which go directly from
                process to process.
            params: Extra inputs by name.

        Returns:
            The pending result.

        Raises:
            InvalidInputError: If frames break the contract.
        """
        for part in frames.parts if isinstance(frames, FrameRange) else (frames,):
            if not isinstance(part, PendingCall):
                check_frames(part)
        return PendingCall(self, frames, params)

    def run(self, feeds: Tensors) -> dict[str, Any]:
        """Run raw tensors; see ``InferenceSession.run``.

        Args:
            feeds: Arrays by name.

        Returns:
            Outputs by name.

        Raises:
            GenAIRayError: As ``InferenceSession.run``.
        """
        return dict(self._ask(self._prepare_run(feeds)))

    async def infer_async(self, frames: Frames, params: Params | None, threads: Executor) -> Frames:
        """Enhance frames as ``infer`` does, from an event loop.

        Args:
            frames: As ``infer``.
            params: As ``infer``.
            threads: Threads for slow waits: for a load, for large frames, for a session in place of one that was
                evicted or died.

        Returns:
            As ``infer``.

        Raises:
            GenAIRayError: As ``infer``.
        """
        check_frames(frames)
        result: Frames = await self._ask_async(
            lambda name, handle: self._infer(name, handle, frames, params), frames.nbytes, threads
        )
        return result

    async def run_async(self, feeds: Tensors, threads: Executor) -> dict[str, Any]:
        """Run raw tensors as ``run`` does, from an event loop.

        Args:
            feeds: As ``run``.
            threads: As for ``infer_async``.

        Returns:
            As ``run``.

        Raises:
            GenAIRayError: As ``run``.
        """
        num_bytes = sum(np.asarray(array).nbytes for array in feeds.values())
        return dict(await self._ask_async(self._prepare_run(feeds), num_bytes, threads))

    def warmup(self) -> None:
        """Load the session if necessary: the cache warms sessions itself."""
        self.touch()

    def status(self) -> dict[str, Any]:
        """Return what the session is and has done.

        Returns:
            ``InferenceSession.status`` with the bytes of its whole process.
        """
        return dict(self._ask(lambda name, handle: handle.status.remote(name)))

    @property
    def avg_latency_ms(self) -> float:
        """Mean milliseconds a frame took in the session."""
        return float(self.status()["avg_latency_ms"])

    @property
    def inference_count(self) -> int:
        """Frames computed since warm-up."""
        return int(self.status()["inference_count"])

    @property
    def runtime_calls(self) -> int:
        """Calls of the runtime since warm-up."""
        return int(self.status()["runtime_calls"])

    @property
    def memory_bytes(self) -> int:
        """Anonymous bytes of the session's whole process."""
        return int(self.status()["memory_bytes"])

    @property
    def warm(self) -> bool:
        """Always true: a session of the cache is warm when it is ready."""
        return True

    def close(self) -> None:
        """Do nothing: the cache owns the session."""

    @property
    def deadline_s(self) -> float:
        """Most seconds that a request may take."""
        return self._source.deadline_s

    def _in_class(self, method: Any) -> Any:
        return method.options(concurrency_group="online") if self._source.is_online else method

    def _send_to_session(self, call: Call, request: SessionRequest, lost: str | None, deadline: float) -> Sent:
        """Send a call to a session of the request; ``lost`` names the one that did not answer."""
        name, handle = self._source.acquire(request, self.spec, lost, max(deadline - time.monotonic(), 0.0))
        return Sent(name, handle, call(name, handle))

    def _infer(
        self, name: str, handle: Handle, frames: Frames | PendingCall | FrameRange, params: Params | None
    ) -> Ref:
        parts = frames.parts if isinstance(frames, FrameRange) else (frames,)
        # Ray resolves references only if each is an argument of its own.
        first, *following = (part.ref if isinstance(part, PendingCall) else part for part in parts)
        window = (frames.start, frames.stop) if isinstance(frames, FrameRange) else None
        infer = self._in_class(handle.infer)
        ref: Ref = infer.remote(self._caller(name), first, params, window, *following)
        return ref

    def _wait_for_session(self, sent: Sent, request: SessionRequest, deadline: float) -> Any:
        """Wait for an answer of a session. A session that answers neither this client nor the cache counts as dead."""
        while True:
            left_s = deadline - time.monotonic()
            try:
                return wait_for(sent.ref, max(min(left_s, SILENT_S), 0.0))
            except GetTimeoutError as exc:
                if left_s <= SILENT_S:
                    raise DeadlineExceededError(
                        f"a request to {self.spec.model_id} took more than {self.deadline_s:g} s"
                    ) from exc
            try:
                wait_for(sent.handle.recency.remote(), PING_S)
            except (GetTimeoutError, RayActorError):
                # The cache pings it once more.
                self._source.acquire(request, self.spec, sent.name, max(deadline - time.monotonic(), 0.0))
                if not self._source.knows(request, sent.name):
                    raise ActorUnavailableError(f"session {sent.name} is silent", None) from None

    def _prepare_run(self, feeds: Tensors) -> Call:
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        return lambda name, handle: self._in_class(handle.run).remote(self._caller(name), arrays)

    def _caller(self, name: str) -> Caller:
        return Caller(name, self._source.is_online, self._source.tag)

    def _ask(self, call: Call) -> Any:
        return self._send_and_wait(None, call, time.monotonic() + self.deadline_s)

    async def _ask_async(self, call: Call, num_bytes: int, threads: Executor) -> Any:
        """Ask on the event loop while all goes well: to change threads twice costs more than a small model's run."""
        deadline = time.monotonic() + self.deadline_s
        sent: Sent | None = None
        known = self._source.pick(self._request) if num_bytes <= SMALL_BYTES else None
        if known is not None:
            sent = Sent(*known, call(*known))
            with contextlib.suppress(RayError, TimeoutError):  # the thread waits for the same answer, and handles both
                async with asyncio.timeout(min(self.deadline_s, SOON_S)):
                    answer = await sent.ref
                if not isinstance(answer, Retired):
                    return answer
        return await asyncio.get_running_loop().run_in_executor(threads, self._send_and_wait, sent, call, deadline)

    def _send_and_wait(self, sent: Sent | None, call: Call, deadline: float) -> Any:
        """Send a call, unless ``sent`` says that it is sent already, and wait for its answer."""
        sent = sent or self._send_to_session(call, self._request, None, deadline)
        answer, _ = self._wait_and_resend(sent, call, deadline)
        return answer

    def _wait_and_resend(self, sent: Sent, call: Call, deadline: float) -> tuple[Any, Sent]:
        """Wait for an answer.

        If the session retires or dies, send again; after two crashes, to a session that nobody else uses.
        """
        deaths = 0
        request = self._request
        try:
            while True:
                try:
                    answer = self._wait_for_session(sent, request, deadline)
                except (RayActorError, OutOfMemoryError, ObjectLostError) as exc:
                    deaths += is_crash(exc)
                    if deaths == MAX_DEATHS:
                        raise self._ends_sessions(exc) from exc
                    if deaths == MAX_DEATHS - 1 and request is self._request:
                        request = isolate(self._request)
                    time.sleep(_RETRY_S)
                else:
                    if not isinstance(answer, Retired):
                        return answer, sent
                sent = self._send_to_session(call, request, sent.name, deadline)
        finally:
            if request is not self._request:
                self._source.dismiss(request, sent.name)

    def _ends_sessions(self, exc: RayError) -> GenAIRayError:
        model = self.spec.model_id
        if isinstance(exc, OutOfMemoryError):
            return ResourceExhaustedError(
                f"{MAX_DEATHS} sessions of {model} ran out of memory during one request",
                do="Send fewer or smaller frames at a time, or use nodes with more memory.",
            )
        return InferenceError(
            f"{MAX_DEATHS} sessions of {model} died of one request", do="This input ends the runtime."
        )


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Some frames of one batch, or of two batches that follow each other."""

    parts: tuple[Frames | PendingCall, ...]
    """One batch or two, (N, H, W, 3) each, or pending results."""
    start: int
    """First frame, counted from the beginning of the first part."""
    stop: int
    """One past the last frame."""

    @property
    def num_frames(self) -> int:
        """Frames in it."""
        return self.stop - self.start


class PendingCall:
    """The pending result of ``CachedSession.submit``.

    Args:
        session: The session that computes it.
        source: Frames, the pending result of another session, or some frames of it.
        params: Extra inputs by name.
    """

    def __init__(
        self, session: CachedSession, source: Frames | PendingCall | FrameRange, params: Params | None
    ) -> None:
        self._session, self.source, self._params = session, source, params
        if isinstance(source, PendingCall | FrameRange):
            num_sent = source.num_frames
        else:
            num_sent = len(source) if source.ndim == 4 else 1
        self.num_frames: int = num_sent - (session.spec.task is ModelTask.INTERPOLATION)
        self._deadline = time.monotonic() + session.deadline_s
        self._sent = session._send_to_session(self._call, session._request, None, self._deadline)
        self._note()

    @property
    def ref(self) -> Ref:
        """Ray's reference to the result, as an argument for another session."""
        return self._sent.ref

    def result(self) -> Frames:
        """Wait for the result; if the session retires or dies, the frames are sent again.

        Returns:
            Frames by the model's shape law.

        Raises:
            GenAIRayError: What the session raised.
            DeadlineExceededError: If the result is not there ``deadline_s`` after the frames were sent.
            InferenceError: If the third session in a row died of this request.
        """
        answer, self._sent = self._session._wait_and_resend(self._sent, self._call_again, self._deadline)
        self._note()
        result: Frames = answer
        return result

    def _note(self) -> None:
        """Collect the actor that got the frames."""
        if self._session.used is not None:
            self._session.used[self._sent.name] = self._sent.handle

    def _call(self, name: str, handle: Handle) -> Ref:
        return self._session._infer(name, handle, self.source, self._params)

    def _call_again(self, name: str, handle: Handle) -> Ref:
        for part in self.source.parts if isinstance(self.source, FrameRange) else (self.source,):
            if isinstance(part, PendingCall):
                part.result()  # the session before this one may have retired as well
        return self._call(name, handle)


def find_processors(used: Mapping[str, Handle] | None) -> tuple[str, ...]:
    """Ask actors what kind of processor they compute on.

    Args:
        used: As ``CachedSession.used``; an actor that died after it got frames is among them.

    Returns:
        Kinds with that of this process's CPU, sorted, see ``processor_kind``; ``UNKNOWN_PROCESSOR`` for an actor that
        does not answer. Empty for None.
    """
    if used is None:
        return ()
    found = {processor_kind("cpu")}
    for handle in used.values():
        try:
            found.add(str(wait_for(handle.start.remote(), PING_S).processor))
        except (RayError, GetTimeoutError):
            found.add(UNKNOWN_PROCESSOR)
    return tuple(sorted(found))
