"""``GET /metrics``: the statistics of all replicas, and the state of the cache at that moment, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from genai_ray.cluster import CacheStatus
from genai_ray.serve.engine.statistics import BOUNDS_S, Statistics

__all__ = ["CONTENT_TYPE", "write_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MODEL = ["model", "version"]


def write_metrics(statistics: Statistics, status: CacheStatus) -> bytes:
    """Write all metrics.

    Args:
        statistics: Of all replicas.
        status: State of the cache.

    Returns:
        Prometheus's text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(statistics, status))
    return bytes(generate_latest(registry))


class _Figures(Collector):
    """Both counts are made elsewhere (in all replicas, and in the cache), so each scrape collects them anew."""

    def __init__(self, statistics: Statistics, status: CacheStatus) -> None:
        self._statistics = statistics
        self._status = status

    def collect(self) -> Iterator[Metric]:
        responses = CounterMetricFamily(
            "genai_ray_responses", "Answers by protocol and status.", labels=["protocol", "status"]
        )
        for (protocol, code), count in sorted(self._statistics.responses.items()):
            responses.add_metric([protocol, code], count)
        yield responses
        yield from self._collect_models()
        yield from self._collect_cache()

    def _collect_models(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "genai_ray_request_seconds", "Successful requests, from their arrival to their result.", labels=_MODEL
        )
        failures = CounterMetricFamily(
            "genai_ray_request_failures", "Requests that found their model and failed.", labels=_MODEL
        )
        queue = CounterMetricFamily(
            "genai_ray_queue_seconds", "Seconds that requests waited to be sent to a session.", labels=_MODEL
        )
        compute = CounterMetricFamily(
            "genai_ray_compute_seconds", "Seconds that sessions took for calls.", labels=_MODEL
        )
        sizes = HistogramMetricFamily(
            "genai_ray_batch_size", "Frames or requests in one call of a session.", labels=_MODEL
        )
        for (model, version), counts in sorted(self._statistics.counts.items()):
            labels = [model, version]
            total = 0
            buckets = []
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts.buckets, strict=True):
                total += count
                buckets.append((bound, float(total)))
            durations.add_metric(labels, buckets, sum_value=counts.parts["success"].ns / 1e9)
            failures.add_metric(labels, counts.parts["fail"].count)
            queue.add_metric(labels, counts.parts["queue"].ns / 1e9)
            compute.add_metric(labels, counts.parts["compute_infer"].ns / 1e9)
            at_most = [
                (str(bound), float(sum(d.count for size, d in counts.batches.items() if size <= bound)))
                for bound in (1, 2, 4, 8, 16, 32)
            ]
            sizes.add_metric(labels, [*at_most, ("+Inf", float(counts.executions))], sum_value=counts.inferences)
        yield from (durations, failures, queue, compute, sizes)

    def _collect_cache(self) -> Iterator[Metric]:
        status = self._status
        for name in ("used_bytes", "budget_bytes", "leases"):
            yield GaugeMetricFamily(f"genai_ray_cache_{name}", f"{name} of the model cache.", getattr(status, name))
        for name in ("loads", "reuses", "evictions", "failures"):
            yield CounterMetricFamily(f"genai_ray_cache_{name}", f"{name} of the model cache.", getattr(status, name))
        labels = ["model_id", "session", "state"]
        taken = GaugeMetricFamily("genai_ray_session_bytes", "Bytes that are reserved for a session.", labels=labels)
        queues = GaugeMetricFamily("genai_ray_session_queue", "Requests in a session.", labels=labels)
        for entry in status.models:
            values = [entry.model_id, entry.name, entry.state]
            taken.add_metric(values, entry.bytes)
            queues.add_metric(values, entry.queue)
        yield from (taken, queues)
