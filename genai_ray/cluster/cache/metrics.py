"""What a cache tells Prometheus through Ray's metrics; the names are those of ``CacheStatus``."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from genai_ray.cluster.cache.session_table import SessionRecord
from genai_ray.cluster.placement import Device

__all__ = ["CacheMetrics"]

_log = logging.getLogger(__name__)

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0]


class CacheMetrics:
    """Counters, gauges and histograms of one cache; a figure that Ray refuses is logged, and raises nothing.

    Args:
        cache: Its name, the tag ``cache`` of every series.
    """

    def __init__(self, cache: str) -> None:
        self._tags = {"cache": cache}
        self._loads = Counter("genai_ray_loads", "Sessions loaded.", ("cache", "model"))
        self._failures = Counter("genai_ray_load_failures", "Loads that failed, each try.", ("cache", "model"))
        self._evictions = Counter("genai_ray_evictions", "Sessions that were evicted.", ("cache", "model"))
        self._hits = Counter("genai_ray_hits", "Uses of loaded sessions.", ("cache", "model"))
        self._load_s = Histogram(
            "genai_ray_load_seconds", "Loading and warming a session.", boundaries=_SECONDS, tag_keys=("cache", "model")
        )
        self._age_s = Histogram(
            "genai_ray_age_at_eviction_seconds",
            "From ready to evicted.",
            boundaries=_SECONDS,
            tag_keys=("cache", "model"),
        )
        self._queue = Gauge("genai_ray_queue", "Requests in the sessions of a model.", ("cache", "model"))
        self._used = Gauge("genai_ray_used_bytes", "Bytes of the sessions of a device.", ("cache", "device", "kind"))
        self._budget = Gauge(
            "genai_ray_budget_bytes", "Most bytes of the sessions of a device.", ("cache", "device", "kind")
        )
        self._uses: dict[str, int] = {}
        self._told: dict[Gauge, list[dict[str, str]]] = {}

    def loaded(self, model: str, load_s: float) -> None:
        """Count a load.

        Args:
            model: Its id.
            load_s: Seconds that it took.
        """
        self._tell(self._loads.inc, 1, model=model)
        self._tell(self._load_s.observe, load_s, model=model)

    def failed(self, model: str) -> None:
        """Count a load that failed.

        Args:
            model: Its id.
        """
        self._tell(self._failures.inc, 1, model=model)

    def evicted(self, record: SessionRecord, age_s: float) -> None:
        """Count an eviction.

        Args:
            record: The session.
            age_s: Seconds since it was ready.
        """
        self._tell(self._evictions.inc, 1, model=record.key.model)
        self._tell(self._age_s.observe, max(age_s, 1e-3), model=record.key.model)
        self._count_hits(record)

    def looked(self, devices: list[Device], records: list[SessionRecord], queues: dict[str, int]) -> None:
        """Set what a round of questions to the sessions has shown.

        Args:
            devices: Every device.
            records: Every session, those that retire included: their last uses are counted when they are gone.
            queues: Requests in the sessions of each model.
        """
        tags_of = {device.device_id: {"device": device.device_id, "kind": device.kind} for device in devices}
        self._set(self._used, [(device.used_bytes, tags_of[device.device_id]) for device in devices])
        self._set(self._budget, [(device.budget_bytes, tags_of[device.device_id]) for device in devices])
        self._set(self._queue, [(queue, {"model": model}) for model, queue in queues.items()])
        for record in records:
            self._count_hits(record)
        self._uses = {record.name: record.uses for record in records}

    def _tell(self, record: Callable[[float, dict[str, str]], None], value: float, **tags: str) -> None:
        """Record a figure; Ray takes ASCII alone in tags, so other letters are written as Python writes them."""
        try:
            record(
                value,
                {name: text.encode("ascii", "backslashreplace").decode() for name, text in (self._tags | tags).items()},
            )
        except (ValueError, TypeError, RuntimeError) as exc:
            _log.warning("a figure of %s was not told to Prometheus: %s", tags, exc)

    def _count_hits(self, record: SessionRecord) -> None:
        new = record.uses - self._uses.get(record.name, 0)
        if new > 0:
            self._tell(self._hits.inc, new, model=record.key.model)
            self._uses[record.name] = record.uses

    def _set(self, gauge: Gauge, values: list[tuple[int, dict[str, str]]]) -> None:
        """Set a gauge, and set to 0 the series of last time that are gone."""
        now = [tags for _, tags in values]
        for tags in [tags for tags in self._told.get(gauge, []) if tags not in now]:
            self._tell(gauge.set, 0, **tags)
        for value, tags in values:
            self._tell(gauge.set, value, **tags)
        self._told[gauge] = now
