"""Models that are there before anybody asks for them: preloaded, pinned, or kept on several devices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from genai_ray.cluster import Lease, ModelCache, open_session
from genai_ray.errors import GenAIRayError
from genai_ray.serve.engine.repository import ServedModel

__all__ = ["Preload"]


class Preload:
    """What one process keeps there; where several keep the same models, nothing is loaded twice.

    Args:
        cache: The client.
    """

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._brought: dict[str, ServedModel] = {}
        self._leases: dict[str, Lease] = {}

    def bring(self, models: Sequence[ServedModel]) -> None:
        """Load what is to be there and is not, pin what is pinned, lease what is kept on several devices, and let go what is not any more.

        Args:
            models: What is offered; those that were brought already, and have not changed, are left alone.

        Raises:
            GenAIRayError: If one cannot be loaded: the first error; the others are there.
        """
        wanted = {
            model.name: model
            for model in models
            if not model.fault and (model.serving.preload or model.serving.pin or model.serving.min_replicas)
        }
        errors: list[GenAIRayError] = []
        with self._lock:
            for name in [name for name, model in self._brought.items() if wanted.get(name) != model]:
                self._let_go(name, wanted.get(name))
            for name in [name for name in wanted if name not in self._brought]:
                try:
                    self._bring(wanted[name])
                except GenAIRayError as exc:
                    errors.append(exc)
        if errors:
            raise errors[0]

    def release(self) -> None:
        """Give the leases back."""
        with self._lock:
            for lease in self._leases.values():
                lease.release()
            self._leases = {}

    def _bring(self, model: ServedModel) -> None:
        serving, request = model.serving, model.request()
        if serving.preload or serving.pin:
            open_session(self._cache, request).touch()
        if serving.pin:
            self._cache.pin(model.source())
        if serving.min_replicas:
            self._leases[model.name] = self._cache.lease([request], replicas=serving.min_replicas, follows_file=True)
        self._brought[model.name] = model

    def _let_go(self, name: str, instead: ServedModel | None) -> None:
        """Give back what is kept of a model that has changed, or is not offered any more."""
        before, lease = self._brought.pop(name), self._leases.pop(name, None)
        if lease is not None:
            lease.release()
        if before.serving.pin and not (
            instead is not None and instead.serving.pin and instead.source() == before.source()
        ):
            with contextlib.suppress(GenAIRayError):  # it is not loaded any more
                self._cache.unpin(before.source())
