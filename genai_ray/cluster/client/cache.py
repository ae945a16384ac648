"""``ModelCache``: the client of a cache; cheap and picklable."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from genai_ray.cluster.cache.options import CacheOptions
from genai_ray.cluster.client.connection import Connection
from genai_ray.cluster.client.lease import Lease, take_lease
from genai_ray.cluster.client.requests import CACHE_SHARE, is_text, to_request
from genai_ray.cluster.client.router import Router
from genai_ray.cluster.client.session import CachedSession
from genai_ray.cluster.messages import LeaseRequest, SessionRequest, key_of
from genai_ray.cluster.runtime.connect import connect
from genai_ray.errors import ConfigError
from genai_ray.inspection import canonical_id
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["ModelCache", "open_session", "router_of"]

DEADLINE_S = 3600.0
"""Longer than a load may take in the worst case, and than a batch of large frames takes on a slow CPU."""

EVICT_WITHIN_S = 60.0
"""Most seconds that ``evict`` waits until a model is idle."""


class ModelCache:
    """Client of one cache of the cluster, which holds models in processes of their own within a budget of bytes.

    Leaving its ``with`` block closes this client, and ends the cache only if this client started Ray for itself; ``shutdown`` ends it for all.

    Args:
        max_memory_bytes: Budget of a new cache; None to join one, or for what the devices have: 60 % of Ray's memory on a CPU node,
            95 % of a GPU.
        name: Name of the cache.
        address: Ray cluster to join; None for the one around, or one of this process's own.
        deadline_s: Most seconds that a call of this client or of its sessions may take.
        is_online: Whether somebody waits for its requests: they overtake those of batch jobs, and their models outlive others.
        options: How a new cache behaves; None for the defaults, or to join one.

    Raises:
        ConfigError: If budget or deadline is not positive, the name is no text, or the cache has another budget or other options.

    Example:
        >>> with ModelCache(max_memory_bytes=10**9, name="example") as cache:
        ...     cache.load_model("websr-x2-s")
        ...     cache.loaded_models()
        ['websr-x2-s']
    """

    def __init__(
        self,
        max_memory_bytes: int | None = None,
        *,
        name: str = "default",
        address: str | None = None,
        deadline_s: float = DEADLINE_S,
        is_online: bool = False,
        options: CacheOptions | None = None,
    ) -> None:
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s={deadline_s}", "more than 0")
        if max_memory_bytes is not None and max_memory_bytes <= 0:
            raise ConfigError(f"a budget of {max_memory_bytes} bytes", "more than 0")
        if not is_text(name):
            raise ConfigError(f"a cache named {name}", "UTF-8 text, which Ray can carry")
        self.name = name
        self.deadline_s = deadline_s
        self.is_online = is_online
        self.is_embedded = connect(address)
        self._connection = Connection(name, max_memory_bytes, options, deadline_s)
        self._router = Router(self._connection, deadline_s, is_online=is_online)

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
        """Load a model, evicting idle ones in LRU order where bytes are short; does nothing where it is loaded already.

        Args:
            model: Id, alias, or path of an .onnx file; or a request, which says everything else as well.
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
            ModelLoadError: If it cannot be loaded, or its path is no text.
            BackendUnavailableError: If runtime or device is not there.
            ResourceExhaustedError: If it is larger than the budget, or nothing may go for it.
            CacheClosedError: If the cache was shut down.
        """
        largest_px = None if max_frame is None else min(max_frame)
        for name, value in (("memory_bytes", memory_bytes), ("max_batch", max_batch), ("max_frame", largest_px)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value}", "more than 0")
        if not isinstance(model, SessionRequest):
            model = SessionRequest(
                str(model),
                ModelBackend(backend),
                ModelPrecision(precision),
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
            backend: The runtime; None for the entry of this model used last, else ONNX.
            precision: The number format; None likewise, else FP32.
            device: ``auto``, ``cpu`` or ``cuda``.

        Returns:
            The session; it stays usable when the cache evicts and loads the model again.

        Raises:
            GenAIRayError: As ``load_model``.
        """
        asked, spec = to_request(
            SessionRequest(
                str(model),
                ModelBackend(backend or ModelBackend.ONNX),
                ModelPrecision(precision or ModelPrecision.FP32),
                device,
            )
        )
        known: SessionRequest | None = (
            self._connection.call("find", spec.model_id) if backend is None and precision is None else None
        )
        session = CachedSession(self._router, known or asked, spec)
        session.touch()
        return session

    def memory_usage(self) -> tuple[int, int]:
        """Return (bytes used, budget in bytes).

        Returns:
            Both; loading and retiring sessions count as used.
        """
        used, budget = self._connection.call("memory")
        return used, budget

    def loaded_models(self) -> list[str]:
        """Return the canonical ids of loaded models, least recently used first.

        Returns:
            The ids.
        """
        return list(self._connection.call("loaded"))

    def evict(self, model: str | Path, *, is_replaced: bool = False) -> None:
        """Evict every entry of a model, when what it computes is done.

        Args:
            model: Id, alias or path.
            is_replaced: Whether its file has been replaced: leases that follow the file give way then.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If it is pinned or stays at work.
        """
        model_id = canonical_id(model)
        self._connection.call("evict", model_id, min(self.deadline_s * CACHE_SHARE, EVICT_WITHIN_S), is_replaced)
        self._router.forget_model(model_id)

    @property
    def is_open(self) -> bool:
        """Whether the cache was there when it was last asked, and this client was not closed."""
        return self._connection.is_open

    def evict_lru(self) -> str | None:
        """Evict the model that was not used for the longest time.

        Returns:
            Its id, or None where nothing may go.
        """
        evicted: str | None = self._connection.call("evict_lru")
        return evicted

    def pin(self, model: str | Path) -> None:
        """Keep a model from being evicted.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._connection.call("pin", canonical_id(model), True)

    def unpin(self, model: str | Path) -> None:
        """Let a pinned model go again.

        Args:
            model: Id, alias or path.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """
        self._connection.call("pin", canonical_id(model), False)

    def status(self) -> dict[str, Any]:
        """Return budget, bytes, counts and every session, fit for JSON.

        Returns:
            The state.
        """
        return dict(self._connection.call("status"))

    def close(self) -> None:
        """End this client: what other threads wait for through it ends soon after with ``CacheClosedError``. The cache stays, its leases end."""
        self._connection.close()

    def shutdown(self) -> None:
        """End every session and the cache itself, for all its clients; a second call does nothing. What is used afterwards raises ``CacheClosedError``."""
        self._connection.shutdown()
        self._router.forget_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_embedded:  # nobody else will use it, and Ray goes on until this process ends
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
        """Load the models of a chain, all of them or none, and keep them until the lease is given back.

        While it cannot be had, nothing is kept: two chains never hold what the other one waits for. A holder that dies is noticed
        within 15 s.

        Args:
            models: Ids, aliases, paths; or requests, where more is to be said of one.
            replicas: On how many devices each is to be in the end; None for every device, those that come later as well. The lease is
                there with the first replica.
            device_kinds: Words of which the kind of a device must have one, such as ``L4``; empty for any.
            follows_file: Whether it gives way when a model's file has been replaced, and is taken again of the new file some seconds later.

        Returns:
            The lease, with one session a model; a context manager.

        Raises:
            ConfigError: If there are no models, or ``replicas`` is less than 1.
            ResourceExhaustedError: If they can never be there together, or not by the deadline.
            GenAIRayError: As ``load_model``.
        """
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
            """Say what is asked for, of the files as they are now."""
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
        return take_lease(self._connection, build, sessions, self.deadline_s * CACHE_SHARE)

    def prefetch(self, models: Sequence[str | Path | SessionRequest]) -> None:
        """Begin to load models that will be needed soon, without waiting; nothing in use goes for them.

        Args:
            models: Ids, aliases, paths; or requests, where more is to be said of one. One that fails tells so when it is used.

        Raises:
            GenAIRayError: If one is not known, or its path is no text.
        """
        for model in models:
            request, spec = to_request(model)
            self._connection.send("acquire", self._router.load_request(request, spec), None)


def open_session(cache: ModelCache, request: SessionRequest) -> CachedSession:
    """Return exactly the session that a request means; the cache loads it when it is first used. Internal.

    Args:
        cache: The client.
        request: Which session.

    Returns:
        The session.

    Raises:
        GenAIRayError: If its model is not known, or its path is no text.
    """
    request, spec = to_request(request)
    return CachedSession(router_of(cache), request, spec)


def router_of(cache: ModelCache) -> Router:
    """Return what a client knows of sessions. Internal.

    Args:
        cache: The client.

    Returns:
        Its router, which all of its sessions share.
    """
    return cache._router
