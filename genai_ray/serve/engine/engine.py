"""``Engine``: what the endpoint does, whatever protocol it was asked in: infer, load, unload, and tell.

It lives in every replica that takes requests, holds no model, and asks the sessions of the cluster's one ``ModelCache``.
Everything here runs on one event loop; calls that wait for Ray run on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelServing, ModelSpec, ServeProfile
from genai_ray.cluster import CachedSession, ModelCache, SessionRequest
from genai_ray.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    ModelNotFoundError,
    ResourceExhaustedError,
)
from genai_ray.serve.engine.batching import Batcher
from genai_ray.serve.engine.finder import Finder, Target
from genai_ray.serve.engine.inference import InferRequest, InferResponse
from genai_ray.serve.engine.limits import (
    COME_AGAIN,
    Admission,
    Share,
    at_once,
    bytes_of,
    check_frame_sizes,
    check_result,
    check_tensor_sizes,
)
from genai_ray.serve.engine.model_metadata import FRAMES, OUTPUT, check_feeds, check_frame_request, to_outputs
from genai_ray.serve.engine.repository import Repository, key_of_entry
from genai_ray.types import ModelTask

__all__ = ["Engine", "Target"]

Array = npt.NDArray[Any]
Result = TypeVar("Result")

FRAMES_TOGETHER = 8
"""Most frames of different requests in one call, where the model's options say nothing."""
_MOST_SIZES = 1024
_SOON_S = 0.01
"""What waited for less may take all of its time."""


class _Item(NamedTuple):
    """One request in a line."""

    data: Any
    """Frames, or arrays by name."""
    since_ns: int
    """When it came, by the performance counter."""


class _Source:
    """A cache with another deadline: what a ``CachedSession`` is made of."""

    def __init__(self, cache: ModelCache, deadline_s: float, is_online: bool) -> None:
        self.deadline_s, self.is_online = deadline_s, is_online
        self._cache = cache
        self.pick, self.knows, self.dismiss = cache.pick, cache.knows, cache.dismiss

    def acquire(
        self, request: SessionRequest, spec: ModelSpec, lost: str | None = None, within_s: float | None = None
    ) -> tuple[str, Any]:
        try:
            return self._cache.acquire(request, spec, lost, self.deadline_s if within_s is None else within_s)
        except DeadlineExceededError as exc:
            raise ResourceExhaustedError(f"{request.model} was not loaded in time", do=COME_AGAIN) from exc


class Engine(Finder):
    """Answers requests for the models of a repository.

    Args:
        profile: Options.
        cache: The client; its deadline is the profile's.
        repository: What is offered.
    """

    def __init__(self, profile: ServeProfile, cache: ModelCache, repository: Repository) -> None:
        super().__init__(profile, cache, repository)
        self._threads = ThreadPoolExecutor(profile.max_waiting, thread_name_prefix="genai-ray-serve")
        """For requests to sessions: one that loads for long may hold them all."""
        self._lines: dict[tuple[Any, ...], Batcher[Any, Any]] = {}
        self.admission = Admission(profile)
        self._sizes: dict[tuple[Any, ...], int] = {}
        """Bytes of the last result, by model, version and shapes."""

    async def infer(self, target: Target, request: InferRequest, share: Share | None = None) -> InferResponse:
        """Compute a request; the model is loaded where it is not.

        Args:
            target: The model.
            request: What came.
            share: What holds the bytes of the result until it is sent; None if the caller has room for it.

        Returns:
            The outputs that were asked for.

        Raises:
            InvalidInputError: If the request does not fit the model.
            TooManyRequestsError: If too many requests wait.
            ResourceExhaustedError: If the model was not loaded in time, or finds no room.
            DeadlineExceededError: If it was not computed in time.
            GenAIRayError: Why the model cannot be loaded or run.
        """
        started = time.perf_counter_ns()
        try:
            with self.admission.of(target.model.name):
                if share is not None:
                    request = await self._wait_for_room(target, request, share)
                arrays = await self._compute(target, request)
                check_result(arrays.values(), self.profile)
                if share is not None:
                    self._keep(target, request, share, sum(map(bytes_of, arrays.values())))
                outputs = to_outputs(arrays, () if _is_for_frames(request) else target.facts.outputs, request)
        except BaseException:
            self.tally.of(target.model.name, target.version).note("fail", time.perf_counter_ns() - started)
            raise
        self.tally.of(target.model.name, target.version).note("success", time.perf_counter_ns() - started)
        return InferResponse(target.model.name, outputs, target.version, request.id)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Look at the model repository, and load a model, evicting idle ones where bytes are short.

        Args:
            name: Name of the model.
            parameters: Of the request: there are none, since options and files come from the model repository.

        Raises:
            InvalidInputError: If there are parameters.
            GenAIRayError: As ``find`` and ``ModelCache.load_model``.
        """
        await self.rescan()
        self.looking.forget_broken()
        target = await self.find(name)
        await self.call(self.end_older, target.source, target.facts)
        if parameters:
            raise InvalidInputError(
                f"parameters {sorted(parameters)!s:.80} of a load",
                "none",
                "Options and files come from the model repository.",
            )
        await self.call(self.cache.load_model, target.request)

    async def unload(self, name: str) -> None:
        """Evict all versions of a model when what they compute is done, whatever has become of its files; the next request loads it again.

        Args:
            name: Its name.

        Raises:
            ModelNotFoundError: If there is none.
            ResourceExhaustedError: If it is pinned, leased, or at work until the deadline; other versions go all the same.
        """
        model, _ = await self._named(name, "")
        refusal: ResourceExhaustedError | None = None
        for source in model.versions.values():
            try:
                with contextlib.suppress(ModelNotFoundError):  # it was not loaded, and is what was wanted
                    await self.call(self.cache.evict, source)
            except ResourceExhaustedError as exc:
                refusal = exc
        if refusal is not None:
            raise refusal

    async def is_ready(self, target: Target) -> bool:
        """Tell whether a model is loaded and warm.

        Args:
            target: Which.

        Returns:
            Whether it is.
        """
        wanted = target.model.key(target.version)
        return any(
            entry["state"] == "ready" and key_of_entry(entry) == wanted for entry in (await self.status())["models"]
        )

    async def status(self) -> dict[str, Any]:
        """Return the state of the cache.

        Returns:
            As ``ModelCache.status``.
        """
        return await self.call(self.cache.status)

    async def _wait_for_room(self, target: Target, request: InferRequest, share: Share) -> InferRequest:
        """Wait until there is room for the result; return the request with the time that is left."""
        within_s, began_s = self._within_s(request), time.monotonic()
        spec, given = target.facts.spec, sum(bytes_of(tensor.array) for tensor in request.inputs)
        expected = given * spec.scale**2 if spec.is_image_model else self._sizes.get(_kind(target, request), 0)
        await share.wait_for_result(expected, within_s)
        waited_s = time.monotonic() - began_s
        if waited_s < _SOON_S:
            return request
        return replace(
            request, parameters={**request.parameters, "timeout": max(1, round((within_s - waited_s) * 1e6))}
        )

    def _keep(self, target: Target, request: InferRequest, share: Share, num_bytes: int) -> None:
        """Hold a result, and remember its size: of a model that is not for images nothing else tells it before."""
        if not target.facts.spec.is_image_model:
            if len(self._sizes) >= _MOST_SIZES:
                self._sizes.clear()
            self._sizes[_kind(target, request)] = num_bytes
        share.keep_result(num_bytes, is_written=False)

    async def _compute(self, target: Target, request: InferRequest) -> dict[str, Array]:
        within_s, serving = self._within_s(request), target.model.serving
        deadline, since_ns = time.monotonic() + within_s, time.perf_counter_ns()
        # All that a line keeps of its first request: after a change of file or options there is another line.
        key = (
            target.model.name,
            target.version,
            id(target.facts),
            target.request,
            serving.request_class,
            serving.max_batch_size,
            serving.batch_wait_timeout_s,
        )
        try:
            async with asyncio.timeout(within_s):
                if _is_for_frames(request):
                    frames, params = check_frame_request(request, target.facts)
                    check_frame_sizes(frames, target.facts.spec.scale, self.profile)
                    is_pairs = target.facts.spec.task is ModelTask.INTERPOLATION
                    kind = (*key, FRAMES, frames.shape[1:], frames.dtype.str, tuple(sorted(params.items())))
                    most = (
                        1
                        if is_pairs
                        else min(
                            serving.max_batch_size or FRAMES_TOGETHER,
                            at_once(frames, target.facts.spec.scale, self.profile),
                        )
                    )
                    line = self._line(kind, lambda items: self._call_frames(target, items, params), most, serving)
                    return {OUTPUT: await line.submit(_Item(frames, since_ns), len(frames), deadline)}
                feeds = check_feeds(request, target.facts)
                check_tensor_sizes(feeds, target.facts.spec, self.profile)
                rows = _rows(feeds) if serving.max_batch_size and target.facts.has_free_first_axis else None
                shapes = tuple((name, feeds[name].shape[1:] if rows else feeds[name].shape) for name in sorted(feeds))
                most = (serving.max_batch_size or 1) if rows else 1
                line = self._line((*key, "raw", shapes), lambda items: self._call_raw(target, items), most, serving)
                result: dict[str, Array] = await line.submit(_Item(feeds, since_ns), rows or 1, deadline)
                return result
        except TimeoutError as exc:
            if not self.cache.knows(target.request):
                raise ResourceExhaustedError(
                    f"{target.model.name} was not loaded within {within_s:g} s", do=COME_AGAIN
                ) from exc
            if isinstance(exc, DeadlineExceededError):
                raise
            raise DeadlineExceededError(f"a request to {target.model.name} was not done within {within_s:g} s") from exc

    def _within_s(self, request: InferRequest) -> float:
        asked_us = request.parameters.get("timeout", 0)
        if isinstance(asked_us, str | bool) or not 0 <= asked_us < 2**63:
            raise InvalidInputError(f"timeout {asked_us!r:.40}", "microseconds, 0 for the server's own")
        return min(asked_us / 1e6 or self.profile.request_timeout_s, self.profile.request_timeout_s)

    def _line(
        self, kind: tuple[Any, ...], call: Callable[[Sequence[Any]], Any], most: int, serving: ModelServing
    ) -> Batcher[Any, Any]:
        """Return where requests of one kind wait; idle ones of other kinds are forgotten when there are many."""
        line = self._lines.get(kind)
        if line is None:
            if len(self._lines) >= self.profile.max_waiting:
                self._lines = {other: batcher for other, batcher in self._lines.items() if not batcher.is_idle}
            line = self._lines[kind] = Batcher(
                call, max_size=most, wait_s=serving.batch_wait_timeout_s if most > 1 else 0.0
            )
        return line

    async def _call_frames(
        self, target: Target, items: Sequence[_Item], params: dict[str, float]
    ) -> list[Array | Exception]:
        batches = [item.data for item in items]
        frames = batches[0] if len(batches) == 1 else np.concatenate(batches)
        try:
            result = await self._use(
                target, lambda session: session.infer_async(frames, params, self._threads), items, len(frames)
            )
        except (InvalidInputError, InferenceError):
            if len(items) == 1:
                raise
            return await _one_by_one(lambda alone: self._call_frames(target, alone, params), items)
        if len(batches) == 1:
            return [result]
        return list(np.split(result, np.cumsum([len(batch) for batch in batches])[:-1]))

    async def _call_raw(self, target: Target, items: Sequence[_Item]) -> list[dict[str, Array] | Exception]:
        feeds = (
            items[0].data
            if len(items) == 1
            else {name: np.concatenate([item.data[name] for item in items]) for name in items[0].data}
        )
        counts = [_rows(item.data) or 1 for item in items]
        try:
            outputs = await self._use(
                target, lambda session: session.run_async(feeds, self._threads), items, len(items)
            )
            result = {fact.name: outputs[fact.name] for fact in target.facts.outputs}  # sequences and maps stay here
            is_batch = len(items) > 1 and all(np.shape(array)[:1] == (sum(counts),) for array in result.values())
        except (InvalidInputError, InferenceError):
            if len(items) == 1:
                raise
            is_batch = False
        if len(items) == 1:
            return [result]
        if not is_batch:  # its first axis is no batch after all, or one of the requests is at fault
            return await _one_by_one(lambda alone: self._call_raw(target, alone), items)
        parts = {name: np.split(array, np.cumsum(counts)[:-1]) for name, array in result.items()}
        return [{name: parts[name][index] for name in parts} for index in range(len(items))]

    async def _use(
        self, target: Target, compute: Callable[[CachedSession], Awaitable[Result]], items: Sequence[_Item], size: int
    ) -> Result:
        """Make one call of the model's session for several requests.

        It is waited for as long as any request may take, also where those who asked have gone: the session computes it all the same, and would get
        ever more to do if others took its place in the line.
        """
        source = _Source(self.cache, self.profile.request_timeout_s, target.model.serving.request_class == "online")
        started = time.perf_counter_ns()
        result = await compute(CachedSession(source, target.request, target.facts.spec))
        taken_ns = time.perf_counter_ns() - started
        counts = self.tally.of(target.model.name, target.version)
        counts.note_call(size, taken_ns)
        for item in items:
            counts.note("compute_infer", taken_ns)
            counts.note("queue", started - item.since_ns)
        return result


async def _one_by_one(
    call: Callable[[Sequence[_Item]], Awaitable[list[Result | Exception]]], items: Sequence[_Item]
) -> list[Result | Exception]:
    """Compute requests that do not go together, so that what is wrong with one of them is told to nobody else."""
    results: list[Result | Exception] = []
    for item in items:
        try:
            results += await call([item])
        except (InvalidInputError, InferenceError) as exc:
            results.append(exc)
    return results


def _kind(target: Target, request: InferRequest) -> tuple[Any, ...]:
    """Return what the size of a result depends on, as far as anybody knows."""
    return (target.model.name, target.version, *((tensor.name, tensor.array.shape) for tensor in request.inputs))


def _is_for_frames(request: InferRequest) -> bool:
    value = request.parameters.get(FRAMES, False)
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter {FRAMES}: {value!r:.40}", "true or false")
    return value


def _rows(feeds: dict[str, Array]) -> int | None:
    """Return the common length of the first axes; None where there is none."""
    lengths = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    return lengths.pop() if len(lengths) == 1 and 0 not in lengths else None
