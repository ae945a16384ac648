"""A cluster that grows by itself: what finds no place is shown to Ray's autoscaler, and waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.devices import CPU, wants_gpu

__all__ = ["Autoscaling"]


class Autoscaling:
    """What a cache asks of Ray's autoscaler.

    Args:
        book: Sessions and bytes.
        bytes_on: Bytes that an entry takes of a kind of device.
    """

    def __init__(self, book: SessionTable, bytes_on: Callable[[Entry, str], int]) -> None:
        self._book, self._bytes_on = book, bytes_on
        self._shown: list[dict[str, float]] | None = None

    async def show(self) -> None:
        """Tell the autoscaler what waits for a place, when that has changed."""
        book = self._book
        groups = await asyncio.to_thread(_groups_that_grow)
        book.can_grow = book.can_grow or bool(groups)
        if not book.can_grow:
            return
        if self._shown is None and not await asyncio.to_thread(
            _has_restarted
        ):  # else what an earlier life asked for lasts until something else is
            self._shown = []
        has_gpus = any("GPU" in group for group in groups) or any(
            device.kind != CPU for device in book.ledger.devices.values()
        )
        waiting = [
            self._bundle(entry, has_gpus)
            for entry in book.entries.values()
            if entry.blocked is not None and entry.name not in book.ledger.slots
        ]
        await self._ask(waiting)

    async def stop(self) -> None:
        """Ask for nothing any more: what is asked for lasts until it is taken back."""
        if self._book.can_grow:
            await self._ask([])

    async def _ask(self, bundles: list[dict[str, float]]) -> None:
        if bundles != self._shown:
            await asyncio.to_thread(request_resources, bundles=bundles)
            self._shown = bundles

    def _bundle(self, entry: Entry, has_gpus: bool) -> dict[str, float]:
        """Return what an entry waits for: ``auto`` is a GPU where the cluster has some or can have some."""
        request = entry.want.request
        is_gpu = wants_gpu(request.device, request.backend, has_gpus=has_gpus)
        return {"GPU": 1.0} if is_gpu else {"memory": float(self._bytes_on(entry, CPU))}


def _groups_that_grow() -> list[dict[str, float]]:
    """Return the resources of each kind of node that an autoscaler has told Ray that it may add."""
    state: Any = ray._private.state.state
    found = state.get_cluster_config()
    return (
        [] if found is None else [dict(group.resources) for group in found.node_group_configs if group.max_count != 0]
    )


def _has_restarted() -> bool:
    """Tell whether the process of this actor is not its first one."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)
