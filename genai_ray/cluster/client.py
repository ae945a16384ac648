"""``ModelCache``: what callers hold; cheap, picklable, and a hit costs no call to the cache."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError

from genai_ray.catalog import ModelSpec
from genai_ray.cluster.actor import SessionRequest
from genai_ray.cluster.cache import CacheActor
from genai_ray.cluster.calls import CachedSession, Handle, wait_for
from genai_ray.cluster.connect import connect
from genai_ray.cluster.sessions import NAMESPACE, Key, end_sessions, key_of
from genai_ray.errors import CacheClosedError, ConfigError, DeadlineExceededError
from genai_ray.inspection import find_model
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["ModelCache"]

BUDGET_SHARE = 0.6
"""Of Ray's ``memory`` resource, the budget of a cache that is given none."""

UNKNOWN_MODEL_BYTES = 400_000_000
"""Reserved for a model of which nothing is known; what is measured replaces it."""

DEADLINE_S = 3600.0
"""Longer than a load may take in the worst case, and than a batch of large frames takes on a slow CPU."""

_RETRY_S = 0.1
_SHUTDOWN_WITHIN_S = 10.0


class ModelCache:
    """Client of one cache of the cluster, which holds models in processes of their own within a budget of bytes.

    Args:
        max_memory_bytes: Budget of a new cache; None to join one, or for 60 % of the cluster's memory.
        name: Name of the cache.
        address: Ray cluster to join; None for the one around, or one of this process's own.
        deadline_s: Most seconds that a call of this client or of its sessions may take.

    Raises:
        ConfigError: If budget or deadline is not positive, or the cache has another budget.

    Example:
        >>> with ModelCache(max_memory_bytes=10**9, name="example") as cache:
        ...     cache.load_model("websr-x2-s")
        ...     cache.loaded_models()
        ['websr-x2-s']
    """

    def __init__(self, max_memory_bytes: int | None = None, *, name: str = "default", address: str | None = None, deadline_s: float = DEADLINE_S) -> None:
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s={deadline_s}", "more than 0")
        if max_memory_bytes is not None and max_memory_bytes <= 0:
            raise ConfigError(f"a budget of {max_memory_bytes} bytes", "more than 0")
        self.name, self.deadline_s = name, deadline_s
        self.is_embedded = connect(address)
        total = int(ray.cluster_resources().get("memory", 0) * BUDGET_SHARE)  # type: ignore[no-untyped-call]
        actor = ray.remote(CacheActor).options(
            name=f"cache:{name}",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=1000,
            max_restarts=-1,
            resources={"node:__internal_head__": 0.001},
        )
        self._actor: Any = actor.remote(name, max_memory_bytes or total)
        self._handles: dict[Key, tuple[str, Handle]] = {}
        self._closed = False
        self._call("open", max_memory_bytes)

    def load_model(  # noqa: PLR0913 - the design's own signature
        self,
        model: str | Path,
        backend: ModelBackend = ModelBackend.ONNX,
        precision: ModelPrecision = ModelPrecision.FP32,
        memory_bytes: int | None = None,
        *,
        device: str = "auto",
        max_frame: tuple[int, int] | None = None,
        max_batch: int | None = None,
        tile_size_px: int | None = None,
    ) -> None:
        """Load a model, evicting idle ones in LRU order where bytes are short; does nothing where it is loaded already.

        Args:
            model: Id, alias, or path of an .onnx file.
            backend: The runtime.
            precision: The number format.
            memory_bytes: Bytes to reserve at the least; measured when left out.
            device: ``auto``, ``cpu`` or ``cuda``.
            max_frame: (height, width) in pixels of the largest frame that will come; larger ones are tiled.
            max_batch: Most frames in one runtime call; None for automatic.
            tile_size_px: Longest side of a tile, halo included; 0 for never; None for automatic.

        Raises:
            ConfigError: If a number is not positive, or tiles are asked for that the model cannot have.
            ModelNotFoundError: If it is not known.
            ModelLoadError: If it cannot be loaded.
            BackendUnavailableError: If runtime or device is not there.
            ResourceExhaustedError: If it is larger than the budget, or nothing may go for it.
            CacheClosedError: If the cache was shut down.
        """
        for name, value in {"memory_bytes": memory_bytes, "max_batch": max_batch, "max_frame": min(max_frame) if max_frame else None}.items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value}", "more than 0")
        spec, _ = find_model(model)
        request = SessionRequest(
            spec.model_id,
            ModelBackend(backend),
            ModelPrecision(precision),
            device=device,
            floor_bytes=memory_bytes,
            max_frame=max_frame,
            max_batch=max_batch,
            tile_size_px=tile_size_px,
        )
        self._handles.pop(key_of(request), None)  # it may have been evicted since: the cache knows
        self.acquire(request, spec)

    def get_session(
        self,
        model: str | Path,
        backend: ModelBackend | None = None,
        precision: ModelPrecision | None = None,
        *,
        device: str = "auto",
        tag: str | None = None,
    ) -> CachedSession:
        """Return a session; loaded where it is not there.

        Args:
            model: Id, alias, or path of an .onnx file.
            backend: The runtime; None for the entry of this model used last, else ONNX.
            precision: The number format; None likewise, else FP32.
            device: ``auto``, ``cpu`` or ``cuda``.
            tag: Whose progress its frames count as.

        Returns:
            The session; it stays usable when the cache evicts and loads the model again.

        Raises:
            GenAIRayError: As ``load_model``.
        """
        spec, _ = find_model(model)
        if backend is None and precision is None:
            known: SessionRequest | None = self._call("find", spec.model_id)
            if known is not None:
                session = CachedSession(self, known, spec, tag)
                session.touch()
                return session
        request = SessionRequest(spec.model_id, ModelBackend(backend or ModelBackend.ONNX), ModelPrecision(precision or ModelPrecision.FP32), device=device)
        session = CachedSession(self, request, spec, tag)
        session.touch()
        return session

    def memory_usage(self) -> tuple[int, int]:
        """Return (bytes used, budget in bytes).

        Returns:
            Both; loading and retiring sessions count as used.
        """
        used, budget = self._call("memory")
        return used, budget

    def loaded_models(self) -> list[str]:
        """Return the canonical ids of loaded models, least recently used first.

        Returns:
            The ids.
        """
        return list(self._call("loaded"))

    def evict(self, model: str | Path) -> None:
        """Evict every entry of a model, when what it computes is done.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If it is pinned or stays at work.
        """
        self._call("evict", find_model(model)[0].model_id)

    def evict_lru(self) -> str | None:
        """Evict the model that was not used for the longest time.

        Returns:
            Its id, or None where nothing may go.
        """
        evicted: str | None = self._call("evict_lru")
        return evicted

    def pin(self, model: str | Path) -> None:
        """Keep a model from being evicted.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._call("pin", find_model(model)[0].model_id, True)

    def unpin(self, model: str | Path) -> None:
        """Let a pinned model go again.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._call("pin", find_model(model)[0].model_id, False)

    def status(self) -> dict[str, Any]:
        """Return budget, bytes, counts and every session, fit for JSON.

        Returns:
            The state.
        """
        return dict(self._call("status"))

    def progress(self, tag: str) -> dict[str, int]:
        """Ask the sessions that this client knows how many frames they computed for somebody.

        Args:
            tag: Whose.

        Returns:
            Frames by model id; sessions that are gone count as nothing.
        """
        counts: dict[str, int] = {}
        for key, (_, handle) in list(self._handles.items()):
            try:
                counts[key[0]] = int(wait_for(handle.progress.remote(tag)))
            except RayActorError:
                counts[key[0]] = 0
        return counts

    def shutdown(self) -> None:
        """End every session and the cache itself, and Ray where this client started it; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if ray.is_initialized():
            try:
                ray.get(self._actor.shutdown.remote(), timeout=_SHUTDOWN_WITHIN_S)
            except (RayActorError, GetTimeoutError):
                end_sessions(self.name)  # the cache is dead or silent, and its sessions would outlive it
            ray.kill(self._actor)
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "is_embedded": False}

    def acquire(self, request: SessionRequest, spec: ModelSpec, lost: str | None = None) -> tuple[str, Handle]:
        """Return the actor of a session, from what this client knows or from the cache.

        Args:
            request: Which session.
            spec: Its model.
            lost: Name of a session that the caller saw dead or retired.

        Returns:
            Name and handle.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """
        key = key_of(request)
        known = self._handles.get(key)
        if known is not None and (lost is None or known[0] != lost):
            return known
        needed = request.floor_bytes or spec.memory_bytes or UNKNOWN_MODEL_BYTES
        if request.floor_bytes is None:
            needed = min(needed, self.memory_usage()[1])
        found: tuple[str, Handle] = self._call("acquire", request, needed, lost)
        self._handles[key] = found
        return found

    def _call(self, method: str, *args: Any) -> Any:
        if self._closed:
            raise CacheClosedError(f"cache {self.name!r} was shut down", do="Make a new ModelCache.")
        deadline = time.monotonic() + self.deadline_s
        try:
            while True:
                try:
                    return wait_for(getattr(self._actor, method).remote(*args), max(deadline - time.monotonic(), 0.0))
                except ActorUnavailableError:
                    time.sleep(_RETRY_S)  # its process died; Ray starts it again within 2 s, and it adopts its sessions
        except GetTimeoutError as exc:
            raise DeadlineExceededError(f"cache {self.name!r}: {method} was not done within {self.deadline_s:g} s", do="Give the client more time.") from exc
        except ActorDiedError as exc:
            self._closed = True
            raise CacheClosedError(f"cache {self.name!r} was shut down or died", do="Make a new ModelCache.") from exc
