"""From checked requests to calls of a model's session: requests that wait for one session go to it together.

``Batcher`` merges items of one kind. ``SessionCalls`` keeps a batcher for each kind of request, and makes the calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec, ParamValue, ServeProfile
from genai_ray.cluster import CachedSession, ModelCache, SessionRequest, router_of
from genai_ray.cluster.client.router import Router
from genai_ray.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    ResourceExhaustedError,
    TooManyRequestsError,
)
from genai_ray.serve.engine.limits import RETRY_LATER, max_frames_together
from genai_ray.serve.engine.model_metadata import FRAMES, OUTPUT, Target
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.types import ModelTask

__all__ = ["FRAMES_TOGETHER", "Batcher", "SessionCalls"]

Array = npt.NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")
Results: TypeAlias = dict[str, Array]
"""Outputs of one request by name."""
Compute: TypeAlias = Callable[[CachedSession, dict[str, Array]], Awaitable[Results]]
"""Calls a session with arrays by name."""

FRAMES_TOGETHER = 8
"""Most frames of different requests in one call, if the model's options say nothing."""

LATE = 2.0
"""An item with less time left than this many calls take is refused: it would be late, and delay the next ones."""

_REQUEST_ERRORS = (InvalidInputError, InferenceError, ResourceExhaustedError)
"""What one request of a call may be at fault for."""

_FIRST_CALL_S = 0.05
_GROWTH = 1.25


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    """One item in the queue."""

    item: Item
    size: int
    since_s: float
    deadline: float
    future: asyncio.Future[Result]
    has_waited: bool = False


class Batcher(Generic[Item, Result]):
    """Merges items of one kind into calls; used from one event loop.

    An item that comes while no call runs is sent at once. While calls run, another one starts when the items that wait
    are as large together as the largest of those calls, or ``max_size``: a smaller one would gain little. So a lone
    item waits for one call at most.

    Args:
        call: Computes several items; returns one result for each, in order, or the error of that item.
            If it raises, every item gets the error.
        max_size: Most size of all items in one call; a larger item goes alone.
        max_calls: Most calls at the same time; items that come meanwhile wait, and are merged.
        wait_s: Most seconds that an item waits for others although a call could start; 0 for none.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int,
        max_calls: int = 2,
        wait_s: float = 0.0,
    ) -> None:
        self._call = call
        self._max_size = max_size
        self._max_calls = max_calls
        self._wait_s = wait_s
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._call_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no call runs."""
        return not self._waiting and not self._tasks

    async def submit(self, item: Item, size: int = 1, deadline: float = math.inf) -> Result:
        """Compute an item, together with others that wait.

        Args:
            item: What to compute.
            size: What it counts for in ``max_size``.
            deadline: When it must be done, on the monotonic clock.

        Returns:
            Its result.

        Raises:
            TooManyRequestsError: If calls take so long that it would miss its deadline.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, size, loop.time(), deadline, loop.create_future())
        self._waiting.append(waiting)
        self._start_calls()
        waiting.has_waited = True  # set only now: an item that goes at once is tried, however little time it has
        try:
            return await waiting.future
        except asyncio.CancelledError:  # the client has gone
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            raise

    def _start_calls(self) -> None:
        """Start the calls that may start now."""
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._tasks) < self._max_calls:
            total = min(sum(waiting.size for waiting in self._waiting), self._max_size)
            if total < max(self._tasks.values(), default=0):
                return
            left_s = self._waiting[0].since_s + self._wait_s - loop.time()
            if self._wait_s and left_s > 0 and total < self._max_size:
                loop.call_later(left_s, self._start_calls)
                return
            batch = self._take_batch()
            if batch:
                task = loop.create_task(self._run(batch))
                self._tasks[task] = min(sum(waiting.size for waiting in batch), self._max_size)
                task.add_done_callback(self._end_call)

    def _take_batch(self) -> list[_Waiting[Item, Result]]:
        """Take the items of the next call from the queue; items that would be late are refused."""
        batch: list[_Waiting[Item, Result]] = []
        late: list[_Waiting[Item, Result]] = []
        total = 0
        while self._waiting and (not batch or total + self._waiting[0].size <= self._max_size):
            waiting = self._waiting.popleft()
            if waiting.future.done():
                continue
            if waiting.has_waited and waiting.deadline - time.monotonic() < LATE * self._call_s:
                late.append(waiting)
            else:
                batch.append(waiting)
                total += waiting.size
        if late and not batch and not self._tasks:  # try one, to find out whether calls have become faster
            batch.append(late.pop())
        for waiting in late:
            words = "too many requests wait: this one would not be done in time"
            waiting.future.set_exception(TooManyRequestsError(words, do=RETRY_LATER))
        return batch

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        began_s = time.monotonic()
        try:
            results = await self._call([waiting.item for waiting in batch])
        except BaseException as exc:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
            return
        # Follow faster calls at once, slower ones by steps: a call that waited for a load is no measure for the next.
        self._call_s = min(time.monotonic() - began_s, max(_GROWTH * self._call_s, _FIRST_CALL_S))
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)

    def _end_call(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._start_calls()


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """One request in a batcher."""

    feeds: dict[str, Array]
    """Arrays by name; frames are the one named ``FRAMES``."""
    num_elements: int = 1
    """What it counts for in the statistics: its frames, or 1 for raw tensors."""
    since_ns: int = field(default_factory=time.perf_counter_ns)
    """When it came, by the performance counter."""


class SessionCalls:
    """Sends requests to the sessions of their models; used from one event loop.

    Args:
        profile: Options.
        cache: Where sessions come from.
        statistics: Counts calls.
    """

    def __init__(self, profile: ServeProfile, cache: ModelCache, statistics: Statistics) -> None:
        self._profile = profile
        self._cache = cache
        self._statistics = statistics
        self._batchers: dict[tuple[Any, ...], Batcher[_Request, Results]] = {}
        self._threads = ThreadPoolExecutor(profile.max_waiting, thread_name_prefix="genai-ray-serve")
        """For what blocks in requests to sessions: a model that loads for long may hold them all."""

    async def infer(self, target: Target, frames: Array, params: dict[str, ParamValue], deadline: float) -> Array:
        """Enhance frames.

        Args:
            target: The model.
            frames: (N, H, W, 3), checked.
            params: Extra inputs by name.
            deadline: When they must be done, on the monotonic clock.

        Returns:
            Frames by the model's shape law.

        Raises:
            GenAIRayError: As ``CachedSession.infer``; ``TooManyRequestsError`` if they would miss their deadline.
        """

        async def compute(session: CachedSession, feeds: dict[str, Array]) -> Results:
            return {OUTPUT: await session.infer_async(feeds[FRAMES], params, self._threads)}

        spec = target.metadata.spec
        together = target.model.serving.max_batch_size or FRAMES_TOGETHER
        max_size = min(together, max_frames_together(frames, spec.scale, self._profile))
        if spec.task is ModelTask.INTERPOLATION:  # it would interpolate between the frames of two requests
            max_size = 1
        kind = (FRAMES, frames.shape[1:], frames.dtype.str, tuple(sorted(params.items())))
        batcher = self._batcher(target, kind, max_size, compute)
        results = await batcher.submit(_Request({FRAMES: frames}, len(frames)), len(frames), deadline)
        return results[OUTPUT]

    async def run(self, target: Target, feeds: dict[str, Array], deadline: float) -> Results:
        """Run the model's own tensors.

        Args:
            target: The model.
            feeds: Arrays by name, checked.
            deadline: When they must be done, on the monotonic clock.

        Returns:
            Outputs by name, without sequences and maps.

        Raises:
            GenAIRayError: As ``CachedSession.run``; ``TooManyRequestsError`` if they would miss their deadline.
        """

        async def compute(session: CachedSession, feeds: dict[str, Array]) -> Results:
            outputs = await session.run_async(feeds, self._threads)
            return {tensor.name: outputs[tensor.name] for tensor in target.metadata.outputs}

        max_batch_size = target.model.serving.max_batch_size
        rows = _num_rows(feeds) if max_batch_size and target.metadata.has_free_first_axis else None
        shapes = tuple((name, feeds[name].shape[1:] if rows else feeds[name].shape) for name in sorted(feeds))
        max_size = (max_batch_size or 1) if rows else 1
        batcher = self._batcher(target, ("raw", shapes), max_size, compute)
        return await batcher.submit(_Request(feeds), rows or 1, deadline)

    def _batcher(
        self, target: Target, kind: tuple[Any, ...], max_size: int, compute: Compute
    ) -> Batcher[_Request, Results]:
        """Return the batcher of one kind of request; if there are many, idle ones of other kinds are dropped."""
        serving = target.model.serving
        # All that a batcher keeps of its first request: after a change of file or options there is another batcher.
        key = (
            target.model.name,
            target.version,
            id(target.metadata),
            target.request,
            serving.request_class,
            serving.max_batch_size,
            serving.batch_wait_timeout_s,
            *kind,
        )
        batcher = self._batchers.get(key)
        if batcher is None:
            if len(self._batchers) >= self._profile.max_waiting:
                self._batchers = {other: one for other, one in self._batchers.items() if not one.is_idle}
            wait_s = serving.batch_wait_timeout_s if max_size > 1 else 0.0
            call = functools.partial(self._call, target, compute)
            batcher = self._batchers[key] = Batcher(call, max_size=max_size, wait_s=wait_s)
        return batcher

    async def _call(
        self, target: Target, compute: Compute, requests: Sequence[_Request]
    ) -> Sequence[Results | Exception]:
        """Compute requests in one call; one by one if that fails, or if the model's first axis is not a batch.

        If there is no session for them, all fail at once: each would wait for it again.
        """
        is_online = target.model.serving.request_class == "online"
        source = _SessionSource(router_of(self._cache), self._profile.request_timeout_s, is_online)
        call = functools.partial(self._call_session, target, compute, source)
        if len(requests) == 1:
            return [await call(requests[0].feeds, requests)]
        names = requests[0].feeds
        feeds = {name: np.concatenate([request.feeds[name] for request in requests]) for name in names}
        rows = [_num_rows(request.feeds) or 1 for request in requests]
        try:
            results = await call(feeds, requests)
        except _REQUEST_ERRORS:
            if source.has_refused:
                raise
        else:
            if all(np.shape(array)[:1] == (sum(rows),) for array in results.values()):
                parts = {name: np.split(array, np.cumsum(rows)[:-1]) for name, array in results.items()}
                return [{name: parts[name][index] for name in parts} for index in range(len(requests))]
        alone: list[Results | Exception] = []
        for request in requests:
            try:
                alone.append(await call(request.feeds, [request]))
            except _REQUEST_ERRORS as exc:
                if source.has_refused:
                    raise
                alone.append(exc)
        return alone

    async def _call_session(
        self,
        target: Target,
        compute: Compute,
        source: _SessionSource,
        feeds: dict[str, Array],
        requests: Sequence[_Request],
    ) -> Results:
        """Make one call of the model's session, and count it.

        The call may take as long as any request, even if its clients have gone: the session computes it anyway, and
        would get ever more to do if other calls took its place.
        """
        started = time.perf_counter_ns()
        results = await compute(CachedSession(source, target.request, target.metadata.spec), feeds)
        taken_ns = time.perf_counter_ns() - started
        counts = self._statistics.counts_of(target.model.name, target.version)
        counts.note_call(sum(request.num_elements for request in requests), taken_ns)
        for request in requests:
            counts.note("compute_infer", taken_ns)
            counts.note("queue", started - request.since_ns)
        return results


class _SessionSource:
    """A router with a deadline and a class of requests of its own, for a ``CachedSession``."""

    def __init__(self, router: Router, deadline_s: float, is_online: bool) -> None:
        self.deadline_s = deadline_s
        self.is_online = is_online
        self.tag: str | None = None
        self.has_refused = False
        """Whether a session was asked for in vain."""
        self.pick = router.pick
        self.knows = router.knows
        self.dismiss = router.dismiss
        self._router = router

    def acquire(
        self, request: SessionRequest, spec: ModelSpec, lost: str | None = None, within_s: float | None = None
    ) -> tuple[str, Any]:
        try:
            return self._router.acquire(request, spec, lost, self.deadline_s if within_s is None else within_s)
        except ResourceExhaustedError:
            self.has_refused = True
            raise
        except DeadlineExceededError as exc:
            self.has_refused = True
            raise ResourceExhaustedError(f"{request.model} was not loaded in time", do=RETRY_LATER) from exc


def _num_rows(feeds: dict[str, Array]) -> int | None:
    """Return the common length of the first axes; None if there is none."""
    lengths = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    return lengths.pop() if len(lengths) == 1 and 0 not in lengths else None
