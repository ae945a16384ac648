"""Models that are loaded before a request asks for them: preloaded, pinned, or kept on several devices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from genai_ray.cluster import Lease, ModelCache, open_session
from genai_ray.errors import GenAIRayError
from genai_ray.serve.engine.repository import ServedModel

__all__ = ["Preload"]


class Preload:
    """The models that one process keeps loaded; several processes may keep the same ones, and nothing is loaded twice.

    Args:
        cache: The client.
    """

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._loaded: dict[str, ServedModel] = {}
        self._leases: dict[str, Lease] = {}

    def update(self, models: Sequence[ServedModel]) -> None:
        """Load, pin and lease models as their options say, and release those that have changed or are gone.

        Args:
            models: The models on offer; those that have not changed since the last call are left alone.

        Raises:
            GenAIRayError: The first error, if models cannot be loaded; the others are loaded.
        """
        wanted = {
            model.name: model
            for model in models
            if not model.fault and (model.serving.preload or model.serving.pin or model.serving.min_replicas)
        }
        errors: list[GenAIRayError] = []
        with self._lock:
            for name in [name for name, model in self._loaded.items() if wanted.get(name) != model]:
                self._release(name, wanted.get(name))
            for name in [name for name in wanted if name not in self._loaded]:
                try:
                    self._load(wanted[name])
                except GenAIRayError as exc:
                    errors.append(exc)
        if errors:
            raise errors[0]

    def release(self) -> None:
        """Give all leases back."""
        with self._lock:
            for lease in self._leases.values():
                lease.release()
            self._leases = {}

    def _load(self, model: ServedModel) -> None:
        serving = model.serving
        request = model.request()
        if serving.preload or serving.pin:
            open_session(self._cache, request).touch()
        if serving.pin:
            self._cache.pin(model.source())
        if serving.min_replicas:
            self._leases[model.name] = self._cache.lease([request], replicas=serving.min_replicas, follows_file=True)
        self._loaded[model.name] = model

    def _release(self, name: str, now: ServedModel | None) -> None:
        """Release a model that has changed, or is no longer on offer."""
        before = self._loaded.pop(name)
        lease = self._leases.pop(name, None)
        if lease is not None:
            lease.release()
        is_still_pinned = now is not None and now.serving.pin and now.source() == before.source()
        if before.serving.pin and not is_still_pinned:
            with contextlib.suppress(GenAIRayError):  # it may have been evicted
                self._cache.unpin(before.source())
