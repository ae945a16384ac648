"""A cluster that grows by itself: what finds no place is shown to Ray's autoscaler, and waits."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from genai_ray.cluster.cache.book import Book

__all__ = ["Growth"]


class Growth:
    """What a cache asks of Ray's autoscaler.

    Args:
        book: Sessions and bytes.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._shown: list[dict[str, float]] = []

    async def show(self) -> None:
        """Tell the autoscaler what waits for a place, when that has changed."""
        book = self._book
        book.can_grow = book.can_grow or await asyncio.to_thread(_has_autoscaler)
        if not book.can_grow:
            return
        waiting: list[dict[str, float]] = [
            {"memory": float(entry.want.predicted_bytes)} if entry.want.request.device == "cpu" else {"GPU": 1.0}
            for entry in book.entries.values()
            if entry.blocked is not None and entry.name not in book.ledger.slots
        ]
        if waiting != self._shown:
            await asyncio.to_thread(request_resources, bundles=waiting)
            self._shown = waiting


def _has_autoscaler() -> bool:
    """Tell whether an autoscaler has told Ray what nodes it may add."""
    state: Any = ray._private.state.state
    found = state.get_cluster_config()
    return found is not None and any(group.max_count != 0 for group in found.node_group_configs)
