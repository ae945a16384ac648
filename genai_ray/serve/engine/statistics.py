"""What was computed, as the protocol's statistics have it, and the figures of all replicas together."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BOUNDS_S", "ModelCounts", "Statistics"]

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets for durations of requests, in seconds."""


@dataclass(slots=True)
class _Duration:
    """How often something was done, and how long it took."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class ModelCounts:
    """Figures of one version of one model."""

    parts: dict[str, _Duration] = field(default_factory=lambda: {name: _Duration() for name in _PARTS})
    """Durations by their names in the protocol."""
    batches: dict[int, _Duration] = field(default_factory=dict)
    """Calls of the session by the number of elements in them."""
    inferences: int = 0
    """Elements computed: frames, or requests for raw tensors."""
    executions: int = 0
    """Calls of the session."""
    last_ms: int = 0
    """When the last request came, in milliseconds of the epoch."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """Successful requests by duration; the last bucket is above all bounds."""

    def note(self, part: str, ns: int) -> None:
        """Count one duration.

        Args:
            part: Its name in the protocol.
            ns: The duration in nanoseconds.
        """
        self.parts[part].add(ns)
        if part == "success":
            self.buckets[bisect.bisect_left(BOUNDS_S, ns / 1e9)] += 1
        self.last_ms = int(time.time() * 1000)

    def note_call(self, size: int, ns: int) -> None:
        """Count one call of the session.

        Args:
            size: Elements in it.
            ns: Its duration in nanoseconds.
        """
        self.executions += 1
        self.inferences += size
        self.batches.setdefault(size, _Duration()).add(ns)

    def merge(self, other: ModelCounts) -> None:
        """Add other figures of the same model.

        Args:
            other: The other figures.
        """
        for name, duration in other.parts.items():
            self.parts[name].add(duration.ns, duration.count)
        for size, duration in other.batches.items():
            self.batches.setdefault(size, _Duration()).add(duration.ns, duration.count)
        self.inferences += other.inferences
        self.executions += other.executions
        self.last_ms = max(self.last_ms, other.last_ms)
        self.buckets = [mine + more for mine, more in zip(self.buckets, other.buckets, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as the protocol's statistics extension has them.

        Returns:
            Fit for JSON.
        """
        none = {"count": 0, "ns": 0}
        return {
            "last_inference": self.last_ms,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {name: duration.to_json() for name, duration in self.parts.items()}
            | {"cache_hit": none, "cache_miss": none},
            "response_stats": {},
            "batch_stats": [
                {"batch_size": size, "compute_input": none, "compute_infer": duration.to_json(), "compute_output": none}
                for size, duration in sorted(self.batches.items())
            ],
        }


class Statistics:
    """Figures of all models: of one replica since it last reported, or of all replicas."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], ModelCounts] = {}
        self.responses: Counter[tuple[str, str]] = Counter()
        self.scans = 0
        """How often clients made a replica look at the model repository; the other replicas look when this grows."""

    def counts_of(self, model: str, version: str) -> ModelCounts:
        """Return the figures of a model, to be added to.

        Args:
            model: Name of the model.
            version: Version of the model.

        Returns:
            The figures.
        """
        return self.counts.setdefault((model, version), ModelCounts())

    def note_response(self, protocol: str, status: str) -> None:
        """Count a response.

        Args:
            protocol: ``http`` or ``grpc``.
            status: Its status, as the protocol writes it.
        """
        self.responses[protocol, status] += 1

    def merge(self, other: Statistics) -> None:
        """Add what a replica counted.

        Args:
            other: Figures of the replica.
        """
        for (model, version), more in other.counts.items():
            self.counts_of(model, version).merge(more)
        self.responses.update(other.responses)
        self.scans += other.scans

    def take(self) -> Statistics:
        """Return the figures, and start again from zero.

        Returns:
            The figures.
        """
        taken = Statistics()
        taken.merge(self)
        self.counts = {}
        self.responses = Counter()
        self.scans = 0
        return taken
