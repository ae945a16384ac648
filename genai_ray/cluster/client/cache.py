"""``ModelCache``: the client of a cache; cheap and picklable."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from genai_ray.cluster.cache import CacheCalls, CacheOptions, CacheStatus
from genai_ray.cluster.client.connection import Connection
from genai_ray.cluster.client.lease import Lease, take_lease
from genai_ray.cluster.client.requests import CACHE_SHARE, is_text, to_request
from genai_ray.cluster.client.router import Router
from genai_ray.cluster.client.session import CachedSession
from genai_ray.cluster.messages import LeaseRequest, SessionRequest, key_of
from genai_ray.cluster.runtime.connect import connect
from genai_ray.errors import ConfigError
from genai_ray.inspection import canonical_id
from genai_ray.types import ModelBackend, ModelPrecision, parse_bytes, take_word

__all__ = ["ModelCache", "lease_within", "open_session", "router_of"]

DEADLINE_S = 3600.0
"""Longer than a load may take in the worst case, and than a batch of large frames takes on a slow CPU."""

EVICT_WITHIN_S = 60.0
"""Most seconds that ``evict`` waits until a model is idle."""

_PRELOAD = "genai_ray.cluster.session_actor"
"""What the process of a session imports."""


class ModelCache:
    """Client of one cache of the cluster. The cache runs each model in a process of its own, within a budget of bytes.

    Leaving the ``with`` block closes this client. It ends the cache only if this client started Ray for itself;
    ``shutdown`` ends the cache for everybody.

    Args:
        max_memory_bytes: Budget of a new cache: a number, or text such as ``2GB`` or ``512MiB``. None to join one, or
            for the default: 60 % of Ray's memory on a CPU node, 95 % of a GPU.
        name: Name of the cache.
        address: Ray cluster to join; None for the one that runs on this machine, else a new one for this process alone.
        deadline_s: Most seconds that a call of this client or of its sessions may take.
        is_online: Whether a person waits for the results: these requests overtake those of batch jobs, and their models
            stay longer.
        options: How a new cache behaves; None for the defaults, or to join one.

    Raises:
        ConfigError: If budget or deadline is not positive, the name is not text, or the cache has another budget or
            other options.

    Example:
        >>> with ModelCache(max_memory_bytes=10**9, name="example") as cache:
        ...     cache.load_model("websr-x2-s")
        ...     cache.loaded_models()
        ['websr-x2-s']
    """

    def __init__(
        self,
        max_memory_bytes: int | str | None = None,
        *,
        name: str = "default",
        address: str | None = None,
        deadline_s: float = DEADLINE_S,
        is_online: bool = False,
        options: CacheOptions | None = None,
    ) -> None:
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s={deadline_s}", "more than 0")
        budget_bytes = parse_bytes(max_memory_bytes) if max_memory_bytes is not None else None
        if not is_text(name):
            raise ConfigError(f"cache name {name}", "UTF-8 text")
        self.name = name
        self.is_embedded = connect(address, preload=_PRELOAD if options and options.spare_processes else "")
        self._connection = Connection(name, budget_bytes, options, deadline_s, is_new=self.is_embedded)
        self._router = Router(self._connection, deadline_s, is_online=is_online)

    def __repr__(self) -> str:
        return f"ModelCache({self.name!r})"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    @property
    def deadline_s(self) -> float:
        """Most seconds that a call of this client or of its sessions may take."""
        return self._router.deadline_s

    def load_model(  # noqa: PLR0913 - the design's own signature
        self,
        model: str | Path | SessionRequest,
        backend: ModelBackend = ModelBackend.ONNX,
        precision: ModelPrecision = ModelPrecision.FP32,
        memory_bytes: int | None = None,
        *,
        device: str = "auto",
        max_frame: tuple[int, int] | None = None,
        max_batch: int | None = None,
        tile_size_px: int | None = None,
    ) -> None:
        """Load a model, and evict idle ones if memory is short; does nothing if the model is loaded already.

        Args:
            model: Id, alias, or path of an .onnx file; or a request, which replaces the other arguments.
            backend: The runtime.
            precision: The number format.
            memory_bytes: Fewest bytes to reserve; None to measure.
            device: ``auto``, ``cpu`` or ``cuda``.
            max_frame: (height, width) in pixels of the largest frame to expect; larger ones are tiled.
            max_batch: Most frames in one runtime call; None for automatic.
            tile_size_px: Longest side of a tile, halo included; 0 for never; None for automatic.

        Raises:
            ConfigError: If a number is not positive, or the model does not allow such tiles.
            ModelNotFoundError: If the model is not known.
            ModelLoadError: If the model cannot be loaded, or its path is not text.
            BackendUnavailableError: If runtime or device is missing.
            ResourceExhaustedError: If the model is larger than the budget, or no loaded model may be evicted for it.
            CacheClosedError: If the cache was shut down.
        """
        largest_px = None if max_frame is None else min(max_frame)
        for name, value in (("memory_bytes", memory_bytes), ("max_batch", max_batch), ("max_frame", largest_px)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value}", "more than 0")
        if not isinstance(model, SessionRequest):
            model = SessionRequest(
                str(model),
                take_word(ModelBackend, backend, "backend"),
                take_word(ModelPrecision, precision, "precision"),
                device,
                floor_bytes=memory_bytes,
                max_frame=max_frame,
                max_batch=max_batch,
                tile_size_px=tile_size_px,
            )
        request, spec = to_request(model)
        self._router.forget(key_of(request))  # it may have been evicted since
        self._router.fetch(request, spec, is_explicit=True)

    def get_session(
        self,
        model: str | Path,
        backend: ModelBackend | None = None,
        precision: ModelPrecision | None = None,
        *,
        device: str = "auto",
    ) -> CachedSession:
        """Return a session; the cache loads the model if necessary.

        Args:
            model: Id, alias, or path of an .onnx file.
            backend: The runtime; None for that of the loaded entry used last, else ONNX.
            precision: The number format; None for that of the loaded entry used last, else FP32.
            device: ``auto``, ``cpu`` or ``cuda``.

        Returns:
            The session; it stays usable when the cache evicts and loads the model again.

        Raises:
            GenAIRayError: As ``load_model``.
        """
        wanted_backend = take_word(ModelBackend, backend or ModelBackend.ONNX, "backend")
        wanted_precision = take_word(ModelPrecision, precision or ModelPrecision.FP32, "precision")
        request, spec = to_request(SessionRequest(str(model), wanted_backend, wanted_precision, device))
        if backend is None and precision is None:
            request = self._connection.call(CacheCalls.find, spec.model_id) or request
        session = CachedSession(self._router, request, spec)
        session.touch()
        return session

    def memory_usage(self) -> tuple[int, int]:
        """Return (bytes used, budget in bytes).

        Returns:
            Both; sessions that load or retire count as used.
        """
        return self._connection.call(CacheCalls.memory)

    def loaded_models(self) -> list[str]:
        """Return the canonical ids of loaded models, least recently used first.

        Returns:
            The ids.
        """
        return self._connection.call(CacheCalls.loaded)

    def evict(self, model: str | Path, *, is_replaced: bool = False) -> None:
        """Evict every entry of a model, as soon as it is idle.

        Args:
            model: Id, alias or path.
            is_replaced: Whether its file was replaced: leases that follow the file then do not keep it.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If it is pinned, leased or stays busy.
        """
        model_id = canonical_id(model)
        within_s = min(self.deadline_s * CACHE_SHARE, EVICT_WITHIN_S)
        self._connection.call(CacheCalls.evict, model_id, within_s, is_replaced)
        self._router.forget_model(model_id)

    @property
    def is_open(self) -> bool:
        """Whether the cache answered last time, and this client is not closed."""
        return self._connection.is_open

    def evict_lru(self) -> str | None:
        """Evict the least recently used model.

        Returns:
            Its id; None if no model may be evicted.
        """
        return self._connection.call(CacheCalls.evict_lru)

    def pin(self, model: str | Path) -> None:
        """Keep a loaded model until it is unpinned.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._connection.call(CacheCalls.pin, canonical_id(model), True)

    def unpin(self, model: str | Path) -> None:
        """Allow a pinned model to be evicted again.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._connection.call(CacheCalls.pin, canonical_id(model), False)

    def status(self) -> CacheStatus:
        """Return budget, bytes, counts and every session.

        Returns:
            The state; ``to_dict`` makes it fit for JSON.
        """
        return self._connection.call(CacheCalls.status)

    def close(self) -> None:
        """Close this client and end its leases; the cache goes on.

        Calls of other threads soon end with ``CacheClosedError``.
        """
        self._connection.close()

    def shutdown(self) -> None:
        """End the cache and its sessions, for all clients: later calls end with ``CacheClosedError``.

        A second call does nothing.
        """
        self._connection.shutdown()
        self._router.forget_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_embedded:  # Ray goes on until this process ends, and so would the sessions
            self.shutdown()
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"is_embedded": False}

    def lease(
        self,
        models: Sequence[str | Path | SessionRequest],
        *,
        replicas: int | None = 1,
        device_kinds: Sequence[str] = (),
        follows_file: bool = False,
    ) -> Lease:
        """Load the models of a chain, all of them or none, and keep them loaded until the lease is released.

        A lease that still waits holds nothing, so two chains never wait for each other. If the holder dies, its lease
        ends within 15 s.

        Args:
            models: Ids, aliases, paths or requests.
            replicas: Devices that each model comes to; None for every device, also those that join later. The call
                returns when each model has its first replica.
            device_kinds: Words such as ``L4``; the kind of a device must contain one of them. Empty for any device.
            follows_file: Whether the lease lets go of a model whose file was replaced, and takes the new file some
                seconds later.

        Returns:
            The lease, with one session a model; a context manager.

        Raises:
            ConfigError: If there are no models, or ``replicas`` is less than 1.
            ResourceExhaustedError: If the models do not fit together, or not by the deadline.
            GenAIRayError: As ``load_model``.
        """
        within_s = self.deadline_s * CACHE_SHARE
        return self._lease(models, within_s, replicas=replicas, device_kinds=device_kinds, follows_file=follows_file)

    def _lease(
        self,
        models: Sequence[str | Path | SessionRequest],
        within_s: float,
        *,
        replicas: int | None = 1,
        device_kinds: Sequence[str] = (),
        follows_file: bool = False,
    ) -> Lease:
        if not models:
            raise ConfigError("a lease needs at least one model")
        if replicas is not None and replicas < 1:
            raise ConfigError(f"replicas={replicas}", "1 or more, or None for every device")
        chosen = [to_request(model) for model in models]
        requests = [
            replace(request, device_kinds=tuple(device_kinds)) if device_kinds else request for request, _ in chosen
        ]
        lease_id = f"lease:{uuid.uuid4().hex[:12]}"

        def build() -> LeaseRequest:
            """Describe the models by their files as they are now."""
            found = [to_request(request) for request in requests]
            return LeaseRequest(
                lease_id,
                tuple(self._router.load_request(request, spec) for request, spec in found),
                replicas,
                follows_file,
            )

        sessions = tuple(
            CachedSession(self._router, request, spec) for request, (_, spec) in zip(requests, chosen, strict=True)
        )
        return take_lease(self._connection, build, sessions, within_s)

    def prefetch(self, models: Sequence[str | Path | SessionRequest]) -> None:
        """Begin to load models that will be needed soon, without waiting. It evicts nothing that is in use.

        Args:
            models: Ids, aliases, paths or requests. A model that fails to load raises when it is used.

        Raises:
            GenAIRayError: If a model is not known, or its path is not text.
        """
        for model in models:
            request, spec = to_request(model)
            self._connection.send(CacheCalls.acquire, self._router.load_request(request, spec), None)


def open_session(cache: ModelCache, request: SessionRequest) -> CachedSession:
    """Return the session of a request; the cache loads it when it is first used. Internal.

    Args:
        cache: The client.
        request: Which session.

    Returns:
        The session.

    Raises:
        GenAIRayError: If its model is not known, or its path is not text.
    """
    request, spec = to_request(request)
    return CachedSession(router_of(cache), request, spec)


def lease_within(cache: ModelCache, requests: Sequence[SessionRequest], within_s: float) -> Lease:
    """Lease sessions as ``ModelCache.lease`` does, and wait less for room than the client's deadline. Internal.

    Args:
        cache: The client.
        requests: Which sessions.
        within_s: Most seconds to wait for room.

    Returns:
        The lease.

    Raises:
        GenAIRayError: As ``ModelCache.lease``.
    """
    return cache._lease(requests, within_s)


def router_of(cache: ModelCache) -> Router:
    """Return the router of a client. Internal.

    Args:
        cache: The client.

    Returns:
        The router that all sessions of the client share.
    """
    return cache._router
