"""``Engine``: what the endpoint does, whatever protocol asks: find a model, infer, load, unload, report states.

Every replica has one engine. It holds no model, and asks the sessions of the cluster's one ``ModelCache``. All of it
runs on one event loop; calls that wait for Ray or for a disk run on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy.typing as npt

from genai_ray.catalog import ServeProfile
from genai_ray.cluster import CacheStatus, ModelCache, hold_memory, router_of
from genai_ray.errors import (
    ConfigError,
    DeadlineExceededError,
    InvalidInputError,
    ModelLoadError,
    ModelNotFoundError,
    ResourceExhaustedError,
)
from genai_ray.inspection import find_model, hash_model
from genai_ray.serve.engine.batching import SessionCalls
from genai_ray.serve.engine.inference import InferRequest, InferResponse
from genai_ray.serve.engine.limits import (
    RETRY_LATER,
    Admission,
    Share,
    bytes_of,
    check_frame_sizes,
    check_result,
    check_tensor_sizes,
)
from genai_ray.serve.engine.model_metadata import (
    FRAMES,
    OUTPUT,
    ModelMetadata,
    ModelMetadataCache,
    Target,
    check_feeds,
    check_frame_request,
    to_outputs,
)
from genai_ray.serve.engine.repository import Repository, ServedModel
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["Engine"]

Array = npt.NDArray[Any]
Result = TypeVar("Result")

_MAX_KNOWN_SIZES = 1024
_SHORT_WAIT_S = 0.01
"""A request that waited for less than this keeps all of its time."""


class Engine:
    """Answers requests for the models of a repository.

    Args:
        profile: Options.
        cache: The client; its deadline is the profile's.
        repository: The models on offer.
    """

    def __init__(self, profile: ServeProfile, cache: ModelCache, repository: Repository) -> None:
        self.profile = profile
        self.cache = cache
        self.repository = repository
        self.statistics = Statistics()
        """Figures of this replica since it last reported them."""
        self.admission = Admission(profile)
        self.catch_up: Callable[[], Awaitable[object]] = _do_nothing
        """Exchanges news of the model repository with the other replicas."""
        self._calls = SessionCalls(profile, cache, self.statistics)
        self._threads = ThreadPoolExecutor(profile.max_waiting, thread_name_prefix="genai-ray-other")
        self._metadata = ModelMetadataCache(self.call, self.evict_outdated, hold_memory)
        self._stamps: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._result_bytes: dict[tuple[Any, ...], int] = {}
        """Bytes of the last result, by model, version and shapes."""

    async def find(self, name: str, version: str = "", within_s: float | None = None) -> Target:
        """Find a model by its name in a request.

        Args:
            name: Name of the model.
            version: A version; empty for the highest.
            within_s: Most seconds to wait for its file; None for as long as a request may take.

        Returns:
            The model.

        Raises:
            ModelNotFoundError: If there is none.
            ModelLoadError: If its file, or its file of options, is wrong; that is remembered for a minute, until the
                file changes, or until a load.
            ResourceExhaustedError: If its file was not fetched or read in time.
        """
        within_s = self.profile.request_timeout_s if within_s is None else within_s
        model = await self._get_model(name, version)
        try:
            return await self._read(model, version, within_s)
        except ModelNotFoundError:
            # Its file has gone since the last look at the repository; perhaps an older version is there.
            with contextlib.suppress(ModelLoadError):
                await self.rescan_here()
            model = await self._get_model(name, version)
            return await self._read(model, version, within_s)

    async def infer(self, target: Target, request: InferRequest, share: Share | None = None) -> InferResponse:
        """Compute a request; the model is loaded if necessary.

        Args:
            target: The model.
            request: The request.
            share: Holds the bytes of the result until it is sent; None if the caller has room for it.

        Returns:
            The outputs that the request asks for.

        Raises:
            InvalidInputError: If the request does not fit the model.
            TooManyRequestsError: If too many requests wait.
            ResourceExhaustedError: If the model was not loaded in time, or finds no room.
            DeadlineExceededError: If it was not computed in time.
            GenAIRayError: Why the model cannot be loaded or run.
        """
        started = time.perf_counter_ns()
        outcome = "fail"
        try:
            with self.admission.admit_to(target.model.name):
                if share is not None:
                    request = await self._wait_for_room(target, request, share)
                arrays = await self._compute(target, request)
                check_result(arrays.values(), self.profile)
                if share is not None:
                    self._hold_result(target, request, share, sum(map(bytes_of, arrays.values())))
                outputs = to_outputs(arrays, () if _is_for_frames(request) else target.metadata.outputs, request)
            outcome = "success"
        finally:
            counts = self.statistics.counts_of(target.model.name, target.version)
            counts.note(outcome, time.perf_counter_ns() - started)
        return InferResponse(target.model.name, outputs, target.version, request.id)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Look at the model repository, and load a model; idle ones are evicted if bytes are short.

        Args:
            name: Name of the model.
            parameters: Of the request; none is allowed, since options and files come from the model repository.

        Raises:
            InvalidInputError: If there are parameters.
            GenAIRayError: As ``find`` and ``ModelCache.load_model``.
        """
        await self.rescan()
        self._metadata.forget_broken()
        target = await self.find(name)
        await self.call(self.evict_outdated, target.source, target.metadata)
        if parameters:
            raise InvalidInputError(
                f"parameters {sorted(parameters)!s:.80} of a load",
                "none",
                "Options and files come from the model repository.",
            )
        await self.call(self.cache.load_model, target.request)

    async def unload(self, name: str) -> None:
        """Evict all versions of a model when they have computed what they were sent; the next request loads it again.

        Args:
            name: Name of the model; its files may be gone.

        Raises:
            ModelNotFoundError: If there is none.
            ResourceExhaustedError: If a version is pinned, leased, or busy until the deadline; the others are evicted.
        """
        model = await self._get_model(name)
        refusal: ResourceExhaustedError | None = None
        for source in model.versions.values():
            try:
                with contextlib.suppress(ModelNotFoundError):  # it is not loaded, as was asked for
                    await self.call(self.cache.evict, source)
            except ResourceExhaustedError as exc:
                refusal = exc
        if refusal is not None:
            raise refusal

    async def is_ready(self, target: Target) -> bool:
        """Tell whether a model is loaded and warm.

        Args:
            target: The model.

        Returns:
            Whether one of its sessions is ready.
        """
        wanted = target.model.key(target.version)
        status = await self.status()
        return any(entry.state == "ready" and entry.key == wanted for entry in status.models)

    async def status(self) -> CacheStatus:
        """Return the state of the cache.

        Returns:
            As ``ModelCache.status``.
        """
        return await self.call(self.cache.status)

    async def broken(self) -> dict[str, str]:
        """Return the files that cannot be loaded, in their present state.

        Returns:
            Error texts by source.
        """
        if broken := self._metadata.broken():
            found = {
                source: (model, version)
                for model in self.repository.models()
                for version, source in model.versions.items()
                if source in broken
            }
            asking = [self._stamp(model, version, self.profile.request_timeout_s) for model, version in found.values()]
            stamps = zip(found, await asyncio.gather(*asking, return_exceptions=True), strict=True)
            self._metadata.keep_broken(
                {source: None if isinstance(stamp, BaseException) else stamp for source, stamp in stamps}
            )
        return self._metadata.broken()

    async def rescan(self) -> None:
        """Look at the model repository because a client asks for it, and have the other replicas look.

        Raises:
            ModelLoadError: As ``rescan_here``.
        """
        await self.rescan_here()
        self.statistics.scans += 1
        await self._try_to_catch_up()  # the client may ask another replica for a new model at once

    async def rescan_here(self) -> None:
        """Look at the model repository again, in this replica.

        Raises:
            ModelLoadError: If the repository is gone or cannot be listed; the models on offer stay the same.
        """
        try:
            await self.call(self.repository.rescan)
        except ConfigError as exc:  # the fault of the repository, not of the request
            raise ModelLoadError(exc.got, exc.allowed, exc.do) from exc

    def evict_outdated(self, source: str, metadata: ModelMetadata) -> None:
        """Evict sessions of an outdated state of a file, and load pinned ones anew; blocks, so call it on a thread.

        Args:
            source: The file.
            metadata: What it says now.

        Raises:
            ResourceExhaustedError: If a session is leased by a job, or busy until the deadline.
        """
        spec = metadata.spec
        if not spec.is_path or spec.model_id not in self.cache.loaded_models():
            return
        digest = hash_model(spec, find_model(source)[1])
        outdated = [
            entry
            for entry in self.cache.status().models
            if entry.model_id == spec.model_id and entry.digest not in (digest, "")
        ]
        if not outdated:
            return
        pinned = [entry for entry in outdated if entry.pinned]
        if pinned:
            self.cache.unpin(source)
        try:
            with contextlib.suppress(ModelNotFoundError):  # another replica was faster
                self.cache.evict(source, is_replaced=True)
            for entry in pinned:
                backend = ModelBackend(entry.backend)
                self.cache.load_model(source, backend, ModelPrecision(entry.precision), device=entry.device)
        finally:
            if pinned:
                with contextlib.suppress(ModelNotFoundError):
                    self.cache.pin(source)

    async def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function that blocks, on a thread.

        Args:
            function: The function.
            args: Its arguments.

        Returns:
            Its result.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _read(self, model: ServedModel, version: str, within_s: float) -> Target:
        if model.fault is not None:
            raise ModelLoadError(*model.fault)
        source = model.source(version)
        metadata = await self._metadata.get(source, await self._stamp(model, version, within_s), within_s)
        return Target(model, version or model.latest, source, metadata)

    async def _get_model(self, name: str, version: str = "") -> ServedModel:
        """Return a model that has a version; another replica may have found it meanwhile."""
        with contextlib.suppress(ModelNotFoundError):
            model = self.repository.get(name)
            model.source(version)
            return model
        await self._try_to_catch_up()
        model = self.repository.get(name)
        model.source(version)
        return model

    async def _try_to_catch_up(self) -> None:
        """Exchange news with the other replicas; if they cannot be reached, all stay as they are."""
        with contextlib.suppress(ResourceExhaustedError, DeadlineExceededError):
            await self.catch_up()

    async def _stamp(self, model: ServedModel, version: str, within_s: float) -> str:
        """Return the state of a file; one thread asks for all who wait, since a disk may hang."""
        if not model.is_local(version):
            return model.stamp(version)  # already known; a thread would take longer than a small model
        key = model.name, version
        asking = self._stamps.get(key)
        if asking is None:
            asking = self._stamps[key] = asyncio.ensure_future(self.call(model.stamp, version))
            asking.add_done_callback(lambda _: self._stamps.pop(key, None))
        done, _ = await asyncio.wait([asking], timeout=within_s)
        if not done:
            words = f"the file of {model.name} was not found within {within_s:g} s"
            raise ResourceExhaustedError(words, do=RETRY_LATER)
        return asking.result()

    async def _compute(self, target: Target, request: InferRequest) -> dict[str, Array]:
        within_s = self._time_limit_s(request)
        deadline = time.monotonic() + within_s
        spec = target.metadata.spec
        try:
            async with asyncio.timeout(within_s):
                if _is_for_frames(request):
                    check = functools.partial(check_frame_request, request, target.metadata)
                    frames, params = await self.call(check) if spec.picture_params else check()
                    check_frame_sizes(frames, spec.scale, self.profile)
                    return {OUTPUT: await self._calls.infer(target, frames, params, deadline)}
                feeds = check_feeds(request, target.metadata)
                check_tensor_sizes(feeds, spec, self.profile)
                return await self._calls.run(target, feeds, deadline)
        except TimeoutError as exc:
            name = target.model.name
            if not router_of(self.cache).knows(target.request):
                raise ResourceExhaustedError(f"{name} was not loaded within {within_s:g} s", do=RETRY_LATER) from exc
            if isinstance(exc, DeadlineExceededError):
                raise
            raise DeadlineExceededError(f"a request to {name} was not done within {within_s:g} s") from exc

    def _time_limit_s(self, request: InferRequest) -> float:
        asked_us = request.parameters.get("timeout", 0)
        if isinstance(asked_us, str | bool) or not 0 <= asked_us < 2**63:
            raise InvalidInputError(f"timeout {asked_us!r:.40}", "microseconds, 0 for the server's own")
        return min(asked_us / 1e6 or self.profile.request_timeout_s, self.profile.request_timeout_s)

    async def _wait_for_room(self, target: Target, request: InferRequest, share: Share) -> InferRequest:
        """Wait until there is room for the result; return the request with the time that is left."""
        within_s = self._time_limit_s(request)
        began_s = time.monotonic()
        spec = target.metadata.spec
        if spec.is_image_model:
            expected_bytes = sum(bytes_of(tensor.array) for tensor in request.inputs) * spec.scale**2
        else:
            expected_bytes = self._result_bytes.get(_result_kind(target, request), 0)
        await share.wait_for_result(expected_bytes, within_s)
        waited_s = time.monotonic() - began_s
        if waited_s < _SHORT_WAIT_S:
            return request
        left_us = max(1, round((within_s - waited_s) * 1e6))
        return replace(request, parameters={**request.parameters, "timeout": left_us})

    def _hold_result(self, target: Target, request: InferRequest, share: Share, num_bytes: int) -> None:
        """Hold the bytes of a result; remember them, unless the model is for images, whose results are known before."""
        if not target.metadata.spec.is_image_model:
            if len(self._result_bytes) >= _MAX_KNOWN_SIZES:
                self._result_bytes.clear()
            self._result_bytes[_result_kind(target, request)] = num_bytes
        share.keep_result(num_bytes, is_written=False)


async def _do_nothing() -> None:
    """Stand for other replicas if there are none."""


def _result_kind(target: Target, request: InferRequest) -> tuple[Any, ...]:
    """Return what the size of a result depends on, as far as is known."""
    return (target.model.name, target.version, *((tensor.name, tensor.array.shape) for tensor in request.inputs))


def _is_for_frames(request: InferRequest) -> bool:
    value = request.parameters.get(FRAMES, False)
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter {FRAMES}: {value!r:.40}", "true or false")
    return value
