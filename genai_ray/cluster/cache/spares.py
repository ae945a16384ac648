"""A spare process on every node: the next session that needs a new process gets it, as Ray takes an idle one first."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from genai_ray.cluster.cache.session_table import SessionTable

__all__ = ["Spares"]

_log = logging.getLogger(__name__)

START_WITHIN_S = 30.0
"""A spare process that is not there after this is asked for again."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A spare process on its way."""

    before: frozenset[int]
    """Processes that were there before it."""
    until_s: float
    """Until when it is waited for."""


class Spares:
    """Keeps a spare process on every node whose device leaves bytes for one.

    A task or another cache may take it: Ray gives an idle process to whoever asks next. Another one is asked for when
    its process has ended, or has become one of our sessions.

    Args:
        table: Sessions and devices.
    """

    def __init__(self, table: SessionTable) -> None:
        self.pids: dict[str, int] = {}
        self._table = table
        self._asked: dict[str, _Asked] = {}
        self._refused: set[str] = set()

    async def look(self) -> None:
        """See whether each node has its spare process; ask for those that are missing, unless a session loads."""
        places = {device.node: device for device in self._table.ledger.devices.values() if device.spare_bytes}
        for node in (self.pids.keys() | self._asked.keys()) - places.keys():
            self.pids.pop(node, None)
            self._asked.pop(node, None)
        await asyncio.gather(*(self._look_at(node, device.device_id) for node, device in places.items()))

    async def _look_at(self, node: str, device_id: str) -> None:
        ledger = self._table.ledger
        try:
            there = await self._table.processes.process_ids(node)
            self._note(node, there)
            is_loading = any(not record.ready.is_set() for record in self._table.records.values())
            if node in self.pids or node in self._asked or is_loading or device_id not in ledger.devices:
                return
            if ledger.excess_bytes(device_id) > 0:  # a node that comes leaves the others less
                return
            self._asked[node] = _Asked(there, time.monotonic() + START_WITHIN_S)
            await self._table.processes.start_spare(node)
            self._refused.discard(node)
        except ConnectionError as exc:
            if node not in self._refused:
                _log.warning("node %s keeps no spare process: %s", node, exc)
                self._refused.add(node)

    def _note(self, node: str, there: frozenset[int]) -> None:
        """Note which process is the spare one: one that is new since it was asked for, and no session's."""
        taken = {
            record.started.pid
            for record in self._table.records.values()
            if record.started is not None and record.started.node == node
        }
        if self.pids.get(node) not in there - taken:
            self.pids.pop(node, None)
        asked = self._asked.get(node)
        if asked is None:
            return
        new = there - taken - asked.before
        if new:
            self.pids[node] = min(new)
        if new or time.monotonic() > asked.until_s:
            del self._asked[node]
