"""A cache that has restarted finds the sessions of its earlier life and enters them as they are."""

from __future__ import annotations

import asyncio
import time

import ray
from ray.exceptions import RayError

from genai_ray.cluster.cache.leases import Leases
from genai_ray.cluster.cache.session_actors import NAMESPACE
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.devices import device_of
from genai_ray.cluster.messages import Description, LoadRequest, key_of
from genai_ray.cluster.placement import Need, SlotState
from genai_ray.errors import ResourceExhaustedError

__all__ = ["adopt", "enter"]

_DESCRIBE_WITHIN_S = 10.0


async def adopt(name: str, cache: str, book: SessionTable, leases: Leases) -> Entry | None:
    """Enter a session that runs already; one that has no place here is ended.

    Args:
        name: Name of its actor.
        cache: Name of the cache: sessions of others are left alone.
        book: Sessions and bytes.
        leases: What stays.

    Returns:
        The session, which may still load, or retire: that is left to the caller; None where it is not ours or was ended.

    Raises:
        TimeoutError: If it does not answer: nobody knows whose it is; or if its device is not known yet.
    """
    try:
        handle = ray.get_actor(name, namespace=NAMESPACE)
        found: Description = await asyncio.wait_for(handle.describe.remote(), _DESCRIBE_WITHIN_S)
    except (RayError, ValueError):
        return None
    if found.cache != cache:
        return None
    entry = enter(name, found, book, leases)
    if entry is None:
        ray.kill(handle)
    else:
        entry.handle = handle
    return entry


def enter(name: str, found: Description, book: SessionTable, leases: Leases) -> Entry | None:
    """Enter what a session says of itself into the books; one that is retired or doubled retires: its bytes are not free before its process is gone.

    Args:
        name: Name of its actor.
        found: What it says.
        book: Sessions and bytes.
        leases: What stays.

    Returns:
        The session; None where there is no place for it.

    Raises:
        TimeoutError: If its device is not known yet.
    """
    ledger, want, floor_bytes = book.ledger, LoadRequest(found.request, found.digest), found.request.floor_bytes or 0
    key, device_id = key_of(found.request), device_of(found.started, ledger.devices.values())
    if device_id is None and found.started.node in book.unprobed:
        raise TimeoutError(f"{name} is on a node whose GPUs are not known yet")
    if device_id is None:
        return None
    for lease_id in found.stays.leases:
        leases.adopt(lease_id, want)
    if found.stays.is_pinned:
        book.pinned.add(key)
    is_doubled = any(
        slot.device_id == device_id and slot.state is not SlotState.RETIRING for slot in ledger.of_key(key)
    )
    taken = found.reserved_bytes if found.measured_bytes is None else max(found.measured_bytes, floor_bytes)
    try:
        ledger.reserve(name, Need(key, taken), device_id, floor_bytes, time.monotonic(), found.held_bytes)
    except ResourceExhaustedError:
        return None
    entry = Entry(want, name, started=found.started, is_adopted=True, is_begun=True)
    book.add(entry)
    if found.retired or is_doubled:
        ledger.mark(name, state=SlotState.RETIRING)
        entry.ready.set()
        heir = next((other for other in book.of_key(key) if book.is_usable(other)), None)
        if heir is not None and book.is_unpinned(heir):
            ledger.mark(heir.name, is_pinned=True)
        return entry
    ledger.mark(name, is_pinned=found.stays.is_pinned)
    return entry
