"""A cluster that grows by itself: the cache tells Ray's autoscaler which sessions wait for a place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.devices import CPU, wants_gpu

__all__ = ["Autoscaling"]


class Autoscaling:
    """What a cache asks of Ray's autoscaler.

    Args:
        table: Sessions and bytes.
        bytes_on: Returns the bytes that a session takes on a kind of device.
    """

    def __init__(self, table: SessionTable, bytes_on: Callable[[SessionRecord, str], int]) -> None:
        self._table = table
        self._bytes_on = bytes_on
        self._shown: list[dict[str, float]] | None = None

    async def show(self) -> None:
        """Tell the autoscaler what waits for a place, when that has changed."""
        table = self._table
        groups = await asyncio.to_thread(_groups_that_grow)
        table.can_grow = table.can_grow or bool(groups)
        if not table.can_grow:
            return
        # after a restart of the cache what it asked for before lasts until it asks for something else
        if self._shown is None and not await asyncio.to_thread(_has_restarted):
            self._shown = []
        has_gpus = any("GPU" in group for group in groups) or any(
            device.kind != CPU for device in table.ledger.devices.values()
        )
        waiting = [
            self._bundle(record, has_gpus)
            for record in table.records.values()
            if record.blocked is not None and not record.is_placed
        ]
        await self._ask(waiting)

    async def stop(self) -> None:
        """Ask for nothing any more: a request lasts until it is taken back."""
        if self._table.can_grow:
            await self._ask([])

    async def _ask(self, bundles: list[dict[str, float]]) -> None:
        if bundles != self._shown:
            from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - a tenth of a second in every process

            await asyncio.to_thread(request_resources, bundles=bundles)
            self._shown = bundles

    def _bundle(self, record: SessionRecord, has_gpus: bool) -> dict[str, float]:
        """Return what a session waits for: ``auto`` is a GPU if the cluster has some or can have some."""
        request = record.load_request.request
        is_gpu = wants_gpu(request.device, request.backend, has_gpus=has_gpus)
        return {"GPU": 1.0} if is_gpu else {"memory": float(self._bytes_on(record, CPU))}


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
