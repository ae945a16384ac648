"""A spare process on every node: the next session that needs a new process gets it, as Ray takes an idle one first."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from genai_ray.cluster.cache.session_table import SessionTable
from genai_ray.cluster.runtime.workers import process_ids, start_process

__all__ = ["Spares"]

_log = logging.getLogger(__name__)

KEEP_S = 600
"""Ray keeps a spare process at least this long; then the next look finds it gone and asks for another. It is also how
long one stays after its cache was shut down."""

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
        nodes = {device.node for device in self._table.ledger.devices.values() if device.spare_bytes}
        for node in set(self.pids) - nodes:
            del self.pids[node]
        await asyncio.gather(*(self._look_at(node) for node in nodes))

    async def _look_at(self, node: str) -> None:
        try:
            there = await asyncio.to_thread(process_ids, node)
            self._note(node, there)
            is_loading = any(not record.ready.is_set() for record in self._table.records.values())
            if node in self.pids or node in self._asked or is_loading:
                return
            self._asked[node] = _Asked(there, time.monotonic() + START_WITHIN_S)
            await asyncio.to_thread(start_process, node, KEEP_S)
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
