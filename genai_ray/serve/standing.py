"""Models that are there before anybody asks for them: preloaded, pinned, or kept on several devices."""

from __future__ import annotations

from collections.abc import Iterable

from genai_ray.cluster import Lease, ModelCache
from genai_ray.serve.repository import ServedModel

__all__ = ["Standing"]


class Standing:
    """What one process keeps there; where several keep the same models, nothing is loaded twice.

    Args:
        cache: The client.
    """

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._brought: dict[str, ServedModel] = {}
        self._leases: dict[str, Lease] = {}

    def bring(self, models: Iterable[ServedModel]) -> None:
        """Load what is to be there and is not, pin what is pinned, and lease what is kept on several devices.

        Args:
            models: What is offered; those that were brought already, and have not changed, are left alone.

        Raises:
            GenAIRayError: If one cannot be loaded; those before it are there.
        """
        for model in models:
            serving, request = model.serving, model.request()
            if self._brought.get(model.name) == model or not (serving.preload or serving.pin or serving.min_replicas):
                continue
            if serving.preload or serving.pin:
                self._cache.session_of(request).touch()
            if serving.pin:
                self._cache.pin(model.source())
            if serving.min_replicas:
                before = self._leases.pop(model.name, None)
                self._leases[model.name] = self._cache.lease([request], copies=serving.min_replicas)
                if before is not None:
                    before.release()
            self._brought[model.name] = model

    def release(self) -> None:
        """Give the leases back."""
        for lease in self._leases.values():
            lease.release()
        self._leases = {}
