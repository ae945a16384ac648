"""What ``ModelCache.status`` shows: devices, sessions and counts, fit for JSON."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray.exceptions import RayError

from genai_ray.cluster.cache.measured_sizes import SizeMemory
from genai_ray.cluster.cache.session_table import SessionTable
from genai_ray.cluster.messages import Key
from genai_ray.cluster.placement import Slot, SlotState

__all__ = ["describe", "describe_key"]

_ANSWER_WITHIN_S = 10.0


async def describe(book: SessionTable, sizes: SizeMemory) -> dict[str, Any]:
    """Return budgets, counts, devices and sessions.

    Args:
        book: Sessions and bytes.
        sizes: What processes take.

    Returns:
        The state; sessions first to go first.
    """
    ledger = book.ledger
    now_s = time.monotonic()
    slots = sorted(ledger.slots.values(), key=lambda slot: slot.last_used_s)
    return {
        "policy": ledger.policy.value,
        "used_bytes": ledger.used_bytes,
        "budget_bytes": ledger.budget_bytes,
        **book.counts,
        "process_bytes": {
            kind: sizes.process_bytes(kind) for kind in sorted({device.kind for device in ledger.devices.values()})
        },
        "devices": [
            {
                "device": device.device_id,
                "kind": device.kind,
                "node": device.node,
                "used_bytes": device.used_bytes,
                "held_bytes": device.held_bytes,
                "free_bytes": device.free_bytes,
                "budget_bytes": device.budget_bytes,
            }
            for device in ledger.devices.values()
        ],
        "models": list(await asyncio.gather(*(_describe_slot(book, slot, now_s) for slot in slots))),
        "history": {model: dict(counts) for model, counts in book.history.items()},
    }


def describe_key(key: Key) -> dict[str, str]:
    """Return which entry of the cache something is said of.

    Args:
        key: The entry.

    Returns:
        Its model, backend, precision and device.
    """
    return {"model_id": key.model, "backend": key.backend, "precision": key.precision, "device": key.device}


async def _describe_slot(book: SessionTable, slot: Slot[Key], now_s: float) -> dict[str, Any]:
    session: dict[str, Any] = {}
    entry = book.entries.get(slot.name)
    if entry is not None and slot.state is SlotState.READY:
        try:
            session = await asyncio.wait_for(entry.handle.status.remote(), _ANSWER_WITHIN_S)
        except (RayError, TimeoutError):
            session = {"dead": True}
    key = slot.key
    return {
        **describe_key(key),
        "placed_on": slot.device_id,
        "name": slot.name,
        "digest": "" if entry is None else entry.want.digest,
        "state": slot.state.value,
        "bytes": slot.reserved_bytes,
        "predicted_bytes": slot.held_bytes,
        "floor_bytes": slot.floor_bytes,
        "pinned": slot.is_pinned,
        "leased": book.ledger.is_leased(key),
        "replicas": len(book.ledger.of_key(key)),
        "hits": slot.uses,
        "queue": session.get("in_flight", 0),
        "idle_s": round(max(now_s - slot.last_used_s, 0.0), 3),
        "age_s": round(max(now_s - slot.arrived_s, 0.0), 3),
        "load_s": round(slot.load_s, 3),
        "session": session,
    }
