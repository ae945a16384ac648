"""``Finder``: from what a request calls a model to its file as it is now, what is known of it, and the session of just that file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from genai_ray.catalog import ServeProfile, hash_file
from genai_ray.cluster import ModelCache, SessionRequest
from genai_ray.errors import (
    ConfigError,
    DeadlineExceededError,
    ModelLoadError,
    ModelNotFoundError,
    ResourceExhaustedError,
)
from genai_ray.inspection import find_model
from genai_ray.serve.engine.limits import COME_AGAIN
from genai_ray.serve.engine.metadata_cache import ModelMetadataCache
from genai_ray.serve.engine.model_metadata import ModelMetadata
from genai_ray.serve.engine.repository import Repository, ServedModel
from genai_ray.serve.engine.statistics import Statistics

__all__ = ["Finder", "Target"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Target:
    """One version of one model, found."""

    model: ServedModel
    """The model."""
    version: str
    """The version, never empty."""
    source: str
    """What the cache is asked for."""
    facts: ModelMetadata
    """What is known of it."""

    @property
    def request(self) -> SessionRequest:
        """Which session computes it."""
        return replace(self.model.request(self.version), model=self.facts.spec.model_id)


class Finder:
    """Finds the models of a repository; on one event loop, with threads for what waits.

    Args:
        profile: Options.
        cache: The client; its deadline is the profile's.
        repository: What is offered.
    """

    def __init__(self, profile: ServeProfile, cache: ModelCache, repository: Repository) -> None:
        self.profile, self.cache, self.repository = profile, cache, repository
        self.tally = Statistics()
        self._other_threads = ThreadPoolExecutor(profile.max_waiting, thread_name_prefix="genai-ray-other")
        self.looking = ModelMetadataCache(self.call, self.end_older)
        self._stamps: dict[tuple[str, str], asyncio.Future[str]] = {}
        self.catch_up: Callable[[], Awaitable[object]] = _nothing
        """Makes known here what another replica found in the model repository, and there that something was found here."""

    async def find(self, name: str, version: str = "", within_s: float | None = None) -> Target:
        """Find a model by what a request calls it.

        Args:
            name: Name of the model.
            version: A version; empty for the highest.
            within_s: Most seconds to wait for its file to be looked at; None for as long as a request may take.

        Returns:
            The model.

        Raises:
            ModelNotFoundError: If there is none.
            ModelLoadError: If its file, or its file of options, is wrong; that is remembered for a minute, or until the file changes or is asked to be loaded.
            ResourceExhaustedError: If its file was not fetched, or looked at, in time.
        """
        within_s = self.profile.request_timeout_s if within_s is None else within_s
        model, source = await self._named(name, version)
        try:
            return await self._look_at(model, source, version, within_s)
        except (
            ModelNotFoundError
        ):  # its file has gone since the repository was looked at; an older version may be there
            with contextlib.suppress(ModelLoadError):
                await self.look_again()
            return await self._look_at(*await self._named(name, version), version, within_s)

    async def _look_at(self, model: ServedModel, source: str, version: str, within_s: float) -> Target:
        if model.fault is not None:
            raise ModelLoadError(*model.fault)
        facts = await self.looking.look(source, await self._stamp(model, version, within_s), within_s)
        return Target(model, version or model.latest, source, facts)

    async def _stamp(self, model: ServedModel, version: str, within_s: float) -> str:
        """Ask for the state of a file on a thread, once for all who ask meanwhile: a disk may hang."""
        if not model.is_local(version):
            return model.stamp(version)  # nothing is asked for it, and a change of thread costs more than many a model
        key = model.name, version
        asking = self._stamps.get(key)
        if asking is None:
            asking = self._stamps[key] = asyncio.ensure_future(self.call(model.stamp, version))
            asking.add_done_callback(lambda _: self._stamps.pop(key, None))
        done, _ = await asyncio.wait([asking], timeout=within_s)
        if not done:
            raise ResourceExhaustedError(f"the file of {model.name} was not found within {within_s:g} s", do=COME_AGAIN)
        return asking.result()

    async def broken(self) -> dict[str, str]:
        """Return the files that cannot be loaded, as they are now.

        Returns:
            Why, by source.
        """
        if broken := self.looking.broken():
            found = {
                source: (model, version)
                for model in self.repository.models()
                for version, source in model.versions.items()
                if source in broken
            }
            asking = [self._stamp(model, version, self.profile.request_timeout_s) for model, version in found.values()]
            stamps = zip(found, await asyncio.gather(*asking, return_exceptions=True), strict=True)
            self.looking.keep_broken(
                {source: None if isinstance(stamp, BaseException) else stamp for source, stamp in stamps}
            )
        return self.looking.broken()

    def end_older(self, source: str, facts: ModelMetadata) -> None:
        """End sessions of a state that a file no longer has; waits, and belongs on a thread.

        Args:
            source: The file.
            facts: What is known of it now.

        Raises:
            ResourceExhaustedError: If one is leased by a job, or at work until the deadline.
        """
        model_id = facts.spec.model_id
        if not facts.spec.is_path or model_id not in self.cache.loaded_models():
            return
        path = find_model(source)[1]
        state = path.stat()
        digest = hash_file(path, state.st_size, state.st_mtime_ns) if facts.spec.sha256 is None else facts.spec.sha256
        older = [
            entry
            for entry in self.cache.status()["models"]
            if entry["model_id"] == model_id and entry["digest"] not in (digest, "")
        ]
        if not older:
            return
        pinned = [entry for entry in older if entry["pinned"]]
        if pinned:
            self.cache.unpin(source)
        try:
            with contextlib.suppress(ModelNotFoundError):  # another replica was faster
                self.cache.evict(source, is_replaced=True)
            for entry in pinned:
                self.cache.load_model(source, entry["backend"], entry["precision"], device=entry["device"])
        finally:
            if pinned:
                with contextlib.suppress(ModelNotFoundError):
                    self.cache.pin(source)

    async def rescan(self) -> None:
        """Look at the model repository again since somebody asks for it, and have other replicas do so.

        Raises:
            ModelLoadError: As ``look_again``.
        """
        await self.look_again()
        self.tally.scans += 1
        await self._meet_others()  # whoever is told that a model is there may ask another replica for it at once

    async def look_again(self) -> None:
        """Look at the model repository again.

        Raises:
            ModelLoadError: If it is not there or cannot be listed; what was offered before stays.
        """
        try:
            await self.call(self.repository.rescan)
        except ConfigError as exc:  # not the fault of whoever asks
            raise ModelLoadError(exc.got, exc.allowed, exc.do) from exc

    async def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call what waits, on a thread.

        Args:
            function: What.
            args: Its arguments.

        Returns:
            Its result.
        """
        return await asyncio.get_running_loop().run_in_executor(self._other_threads, function, *args)

    async def _meet_others(self) -> None:
        """Let other replicas know what was found here, and the other way round; where they are not to be had, both stay as they are."""
        with contextlib.suppress(ResourceExhaustedError, DeadlineExceededError):
            await self.catch_up()

    async def _named(self, name: str, version: str) -> tuple[ServedModel, str]:
        """Return a model and the source of a version, which another replica may have found meanwhile."""
        with contextlib.suppress(ModelNotFoundError):
            model = self.repository.get(name)
            return model, model.source(version)
        await self._meet_others()
        model = self.repository.get(name)
        return model, model.source(version)


async def _nothing() -> None:
    """Know of no other replica."""
