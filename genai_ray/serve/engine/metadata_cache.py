"""What is known of the files of a model repository: each is read once, also where it cannot be loaded."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from genai_ray.errors import ModelLoadError, ResourceExhaustedError, VideoError
from genai_ray.inspection import forget_failures
from genai_ray.serve.engine.limits import COME_AGAIN
from genai_ray.serve.engine.model_metadata import ModelMetadata, read_metadata

__all__ = ["ModelMetadataCache"]

BROKEN_FOR_S = 60.0
"""For so long a file that is no model is not read again, unless it changes."""


class _Broken(NamedTuple):
    """A file that could not be read as a model."""

    stamp: str
    """Its state then."""
    why: tuple[str, str, str]
    """The fields of the error; not the error itself, whose traceback would keep what was read."""
    until_s: float
    """How long that is remembered, on the monotonic clock."""


class ModelMetadataCache:
    """Reads files for all who ask, from one event loop.

    Args:
        call: Calls what waits, on a thread.
        settle: Is called, on the same thread, with the source and the facts of each state of a file that is met.
    """

    def __init__(
        self,
        call: Callable[[Callable[[str], ModelMetadata], str], Awaitable[ModelMetadata]],
        settle: Callable[[str, ModelMetadata], object] | None = None,
    ) -> None:
        self._call, self._settle = call, settle
        self._facts: dict[tuple[str, str], ModelMetadata] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[ModelMetadata]] = {}
        self._broken: dict[str, _Broken] = {}

    async def look(self, source: str, stamp: str, within_s: float) -> ModelMetadata:
        """Return what a file says; it may have to be fetched, or opened.

        Args:
            source: Id of the catalog, path or URI.
            stamp: What changes when the file does.
            within_s: Most seconds to wait.

        Returns:
            The facts.

        Raises:
            ModelLoadError: If it is corrupt; that is remembered for a minute, or until the file changes.
            ResourceExhaustedError: If it was not looked at in time.
        """
        key = source, stamp
        if key in self._facts:
            return self._facts[key]
        broken = self._broken.get(source)
        if broken is not None and broken.stamp == stamp and broken.until_s > time.monotonic():
            raise ModelLoadError(*broken.why)
        task = self._looking.get(key)
        if task is None:
            task = self._looking[key] = asyncio.ensure_future(self._call(self._read, source))
            task.add_done_callback(functools.partial(self._looked, key))
        done, _ = await asyncio.wait([task], timeout=within_s)
        if not done:
            raise ResourceExhaustedError(
                f"{source.rpartition('/')[2]} was not looked at within {within_s:g} s", do=COME_AGAIN
            )
        return task.result()

    def broken(self) -> dict[str, str]:
        """Return the files that cannot be loaded whatever the cache does.

        Returns:
            Why, by source.
        """
        return {
            source: str(ModelLoadError(*found.why))
            for source, found in self._broken.items()
            if found.until_s > time.monotonic()
        }

    def keep_broken(self, stamps: Mapping[str, str | None]) -> None:
        """Forget those that have changed, or are not there any more.

        Args:
            stamps: What changes when a file does, by source; None for one whose state is not known.
        """
        self._broken = {
            source: found
            for source, found in self._broken.items()
            if source in stamps and stamps[source] in (None, found.stamp)
        }

    def forget_broken(self) -> None:
        """Read files anew that could not be loaded."""
        self._broken.clear()
        forget_failures()

    def _read(self, source: str) -> ModelMetadata:
        facts = read_metadata(source)
        if self._settle is not None:
            self._settle(source, facts)
        return facts

    def _looked(self, key: tuple[str, str], task: asyncio.Task[ModelMetadata]) -> None:
        del self._looking[key]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ModelLoadError) and not isinstance(error.__cause__, VideoError):  # else its store failed
            self._broken = {source: found for source, found in self._broken.items() if found.until_s > time.monotonic()}
            self._broken[key[0]] = _Broken(
                key[1], (error.got, error.allowed, error.do), time.monotonic() + BROKEN_FOR_S
            )
        elif error is None:
            self._broken.pop(key[0], None)
            self._facts = {other: facts for other, facts in self._facts.items() if other[0] != key[0]} | {
                key: task.result()
            }
