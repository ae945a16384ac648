"""``CachedSession`` and ``PendingCall``: calls of a session actor that survive its eviction and its death."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from genai_ray.backends import Tensors
from genai_ray.catalog import ModelSpec
from genai_ray.cluster.actor import Retired, SessionRequest
from genai_ray.errors import DeadlineExceededError, GenAIRayError, InferenceError, ResourceExhaustedError
from genai_ray.types import Frames, check_frames

__all__ = ["CachedSession", "PendingCall", "wait_for"]

Handle: TypeAlias = "ActorHandle[Any]"
Ref: TypeAlias = "ray.ObjectRef[Any]"

MAX_DEATHS = 3
"""A request in flight in this many sessions that died is what ends them."""


SILENT_S = 3.0
"""A request unanswered for this long asks whether its session is there at all."""

PING_S = 2.0
"""A session that does not answer a ping for this long is taken for lost; the cache asks it once more before it believes that."""


class SessionSource(Protocol):
    """Where sessions come from: the part of ``ModelCache`` that a call needs."""

    deadline_s: float
    """Most seconds that a request may take."""

    def acquire(self, request: SessionRequest, spec: ModelSpec, lost: str | None = None) -> tuple[str, Handle]:
        """Return name and actor of a session; see ``ModelCache.acquire``."""
        ...


class CachedSession:
    """A session in the cache: the methods of ``InferenceSession``, computed in its process.

    A session that was evicted or died is acquired again without the caller noticing.

    Args:
        cache: The client it was asked from.
        request: Which session.
        spec: The model.
        tag: Whose progress its frames count as.
    """

    def __init__(self, cache: SessionSource, request: SessionRequest, spec: ModelSpec, tag: str | None = None) -> None:
        self.spec = spec
        self._cache, self._request, self._tag = cache, request, tag

    def touch(self) -> None:
        """Make sure that the session is loaded, and count this as a use."""
        self._ask(lambda handle: handle.touch.remote())

    def infer(self, frames: Frames, params: Mapping[str, float] | None = None) -> Frames:
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

    def submit(self, frames: Frames | PendingCall, params: Mapping[str, float] | None = None) -> PendingCall:
        """Send frames without waiting for the result.

        Args:
            frames: Frames; or the pending result of another session, which then goes from process to process.
            params: Extra inputs by name.

        Returns:
            The result to come.

        Raises:
            InvalidInputError: If frames break the contract.
        """
        if not isinstance(frames, PendingCall):
            check_frames(frames)
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
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        return dict(self._ask(lambda handle: handle.run.remote(arrays)))

    def warmup(self) -> None:
        """Do nothing more: a session of the cache is warm when it is ready."""
        self.touch()

    def status(self) -> dict[str, Any]:
        """Return what the session is and has done.

        Returns:
            ``InferenceSession.status`` with the bytes of its whole process.
        """
        return dict(self._ask(lambda handle: handle.status.remote()))

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
        return self._cache.deadline_s

    def _acquire(self, lost: str | None) -> tuple[str, Handle]:
        return self._cache.acquire(self._request, self.spec, lost)

    def _infer(self, handle: Handle, frames: Any, params: Mapping[str, float] | None) -> Ref:
        return handle.infer.remote(frames, params, self._tag)

    def _wait(self, name: str, ref: Ref, deadline: float) -> Any:
        """Wait for an answer of a session; where that is silent and the cache has another one by now, it counts as dead."""
        while True:
            left_s = deadline - time.monotonic()
            try:
                return wait_for(ref, max(min(left_s, SILENT_S), 0.0))
            except GetTimeoutError as exc:
                if left_s <= SILENT_S:
                    raise DeadlineExceededError(f"a request to {self.spec.model_id} was not done within {self.deadline_s:g} s") from exc
            current, handle = self._acquire(None)
            if current == name:
                try:
                    wait_for(handle.recency.remote(), PING_S)
                except (GetTimeoutError, RayActorError):
                    current = self._acquire(name)[0]
            if current != name:
                raise ActorUnavailableError(f"session {name} is silent", None)

    def _ask(self, call: Callable[[Handle], Ref]) -> Any:
        def send(lost: str | None) -> tuple[str, Ref]:
            name, handle = self._acquire(lost)
            return name, call(handle)

        return self._settle(send(None), send, time.monotonic() + self.deadline_s)

    def _settle(self, sent: tuple[str, Ref], send: Callable[[str], tuple[str, Ref]], deadline: float) -> Any:
        """Wait for an answer; where the session was retired or died meanwhile, send again."""
        deaths = 0
        while True:
            name, ref = sent
            try:
                answer = self._wait(name, ref, deadline)
            except (RayActorError, OutOfMemoryError) as exc:
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise InferenceError(f"{deaths} sessions of {self.spec.model_id} died of one request", do="This input ends the runtime.") from exc
            else:
                if not isinstance(answer, Retired):
                    return answer
            sent = send(name)


class PendingCall:
    """A result to come of ``CachedSession.submit``.

    Args:
        session: Where the frames were sent.
        source: The frames, or the pending result that they are.
        params: Extra inputs by name.
    """

    def __init__(self, session: CachedSession, source: Frames | PendingCall, params: Mapping[str, float] | None) -> None:
        self._session, self.source, self._params = session, source, params
        self.num_frames: int = source.num_frames if isinstance(source, PendingCall) else len(source) if source.ndim == 4 else 1
        self._deadline = time.monotonic() + session.deadline_s
        self._send(None)

    def result(self) -> Frames:
        """Wait for the result; where the session was retired or died meanwhile, the frames are sent again.

        Returns:
            Frames by the model's shape law.

        Raises:
            GenAIRayError: What the session raised.
            DeadlineExceededError: If it is not there ``deadline_s`` after it was sent.
            InferenceError: If the third session in a row died of this request.
        """
        answer: Frames = self._session._settle((self._name, self.ref), self._send_again, self._deadline)
        return answer

    def _send(self, lost: str | None) -> tuple[str, Ref]:
        self._name, handle = self._session._acquire(lost)
        self.ref = self._session._infer(handle, self._argument(), self._params)
        return self._name, self.ref

    def _send_again(self, lost: str) -> tuple[str, Ref]:
        if isinstance(self.source, PendingCall):
            self.source.result()  # what was retired may be the session before this one
        return self._send(lost)

    def _argument(self) -> Any:
        return self.source.ref if isinstance(self.source, PendingCall) else self.source


def wait_for(ref: Ref, timeout_s: float | None = None) -> Any:
    """Wait for an answer; an error of ours comes out as itself, with its fields.

    Args:
        ref: What was called.
        timeout_s: Most seconds to wait; None for as long as it takes. Ray's ``GetTimeoutError`` tells that they are over.

    Returns:
        The answer.

    Raises:
        GenAIRayError: What was raised on the other side, as its own class.
        ResourceExhaustedError: If the other side ran out of memory.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as exc:
        cause = exc.cause
        if isinstance(cause, GenAIRayError):
            raise cause from None
        if isinstance(cause, RayActorError | OutOfMemoryError):
            raise cause from None
        if isinstance(cause, MemoryError):
            raise ResourceExhaustedError(f"the session ran out of memory: {cause}") from exc
        raise
