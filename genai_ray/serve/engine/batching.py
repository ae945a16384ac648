"""``Batcher``: what waits for one session goes to it in one call; what comes while it idles goes at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from genai_ray.errors import TooManyRequestsError

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")

LATE = 2.0
"""An item is refused that has less than this many times as long left as a call takes: it would be computed for nobody, and the next ones be late for it."""

_FIRST_S, _SLOWER = 0.05, 1.25


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    """One request in the line."""

    item: Item
    size: int
    since_s: float
    deadline: float
    future: asyncio.Future[Result]
    has_waited: bool = False


class Batcher(Generic[Item, Result]):
    """Merges items of one kind; used from one event loop.

    What comes while nothing is out goes at once. A call beside others goes when as many wait as the largest of them took, or ``max_size``: a smaller
    one would gain little in a session that is at work, and each call costs a way there and back. So a lone item waits for one call at the most.

    Args:
        call: Computes several items; gives one result each, in order, or the error of this one. What it raises is raised to each of them.
        max_size: Most of the items' sizes together in one call; a larger item goes alone.
        max_calls: Calls at the same time; what comes while so many are out waits, and is merged.
        wait_s: Most seconds that an item waits for others although a call could be made; 0 for none.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int,
        max_calls: int = 2,
        wait_s: float = 0.0,
    ) -> None:
        self._call, self._max_size, self._max_calls, self._wait_s = call, max_size, max_calls, wait_s
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._call_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is out."""
        return not self._waiting and not self._tasks

    async def submit(self, item: Item, size: int = 1, deadline: float = math.inf) -> Result:
        """Compute an item, together with others that wait.

        Args:
            item: What to compute.
            size: What it counts for in ``max_size``.
            deadline: When it must be done, by the monotonic clock.

        Returns:
            Its result.

        Raises:
            TooManyRequestsError: If others take so long that it would not be done by its deadline.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, size, loop.time(), deadline, loop.create_future())
        self._waiting.append(waiting)
        self._pump()
        waiting.has_waited = (
            True  # or is out already: what comes while nothing is out is tried, however little time it has
        )
        try:
            return await waiting.future
        except asyncio.CancelledError:  # whoever asked has gone
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            raise

    def _pump(self) -> None:
        """Make the calls that may be made now."""
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._tasks) < self._max_calls:
            total = min(sum(waiting.size for waiting in self._waiting), self._max_size)
            if total < max(self._tasks.values(), default=0):
                return
            left_s = self._waiting[0].since_s + self._wait_s - loop.time()
            if self._wait_s and left_s > 0 and total < self._max_size:
                loop.call_later(left_s, self._pump)
                return
            batch = self._take()
            if batch:
                task = loop.create_task(self._run(batch))
                self._tasks[task] = min(sum(waiting.size for waiting in batch), self._max_size)
                task.add_done_callback(self._ended)

    def _take(self) -> list[_Waiting[Item, Result]]:
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
        if late and not batch and not self._tasks:
            batch.append(
                late.pop()
            )  # with nothing out the last one is tried: else nobody would ever know that calls take less time again
        for waiting in late:
            waiting.future.set_exception(
                TooManyRequestsError(
                    "too many requests wait: this one would not be done in time", do="Send it again later."
                )
            )
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
        self._learn(time.monotonic() - began_s)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)

    def _learn(self, seconds: float) -> None:
        """Follow what a call takes: down at once, up by steps, since one that waited for a load says nothing of the next ones."""
        self._call_s = min(seconds, max(_SLOWER * self._call_s, _FIRST_S))

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._pump()
