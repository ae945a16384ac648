"""Which process is used again: the evicted session that leaves its own, and what the newcomer then reserves."""

from __future__ import annotations

from dataclasses import replace

from genai_ray.cluster.cache.session_table import SessionRecord
from genai_ray.cluster.devices import CPU, LOGICAL_GPU
from genai_ray.cluster.messages import Key
from genai_ray.cluster.placement import Ledger, Need, Plan
from genai_ray.cluster.served import excess_of
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["find_donor", "with_excess"]


def find_donor(ledger: Ledger[SessionRecord], record: SessionRecord, need: Need, found: Plan) -> str | None:
    """Find the victim whose process a session takes over.

    Not on a real GPU, where a process keeps a CUDA context, nor for a request that may end its process.

    Args:
        ledger: What is there.
        record: The session.
        need: What it needs.
        found: Where it is placed, and what is evicted for it.

    Returns:
        Name of the victim for whose process Ray holds least; None if no process fits.
    """
    if record.needs_new_process or record.key.alone or not _is_reusable(record.key):
        return None
    if ledger.devices[found.device_id].kind not in (CPU, LOGICAL_GPU):
        return None
    fitting = [
        slot
        for slot in map(ledger.slots.__getitem__, found.victims)
        if slot.device_id == found.device_id
        and not slot.key.alone
        and _is_reusable(slot.key)
        and ledger.can_take_over(need, slot.name, found.victims)
    ]
    return min(fitting, key=lambda slot: slot.held_bytes).name if fitting else None


def with_excess(need: Need, closed: SessionRecord) -> Need:
    """Add to a need what the process of a closed session kept, unless the caller gave enough for that as well.

    Args:
        need: What a session needs in a new process.
        closed: The session whose process it takes over.

    Returns:
        What it needs there.
    """
    return replace(need, num_bytes=need.num_bytes + max(excess_of(closed.left_bytes) - need.spare_bytes, 0))


def _is_reusable(key: Key) -> bool:
    """Tell whether a process serves sessions of this kind in turn: no other one was tested."""
    return (key.backend, key.precision) == (ModelBackend.ONNX.value, ModelPrecision.FP32.value)
