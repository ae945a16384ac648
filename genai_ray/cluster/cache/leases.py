"""Leases keep the models of a chain loaded, all of them or none, until their holder gives them back or falls silent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ray.exceptions import RayError

from genai_ray.cluster.cache.eviction import Evictor
from genai_ray.cluster.cache.session_actors import ANSWER_WITHIN_S
from genai_ray.cluster.cache.session_table import SessionRecord, SessionTable
from genai_ray.cluster.messages import LEASE_TTL_S, Key, LeaseRequest, LoadRequest, RetentionInfo, key_of
from genai_ray.cluster.placement import Need, check_all_fit
from genai_ray.errors import BackendUnavailableError, CacheClosedError, DeadlineExceededError

__all__ = ["Leases"]

_RETRY_S = 0.1


@dataclass(slots=True)
class LeaseRecord:
    """A lease in force."""

    request: LeaseRequest
    """What it keeps."""
    until_s: float
    """When it ends, unless its holder renews it."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """Keys of the models that it keeps: their sessions are not evicted."""
        return tuple(key_of(asked.request) for asked in self.request.load_requests)


class Leases:
    """The leases of one cache.

    Args:
        table: Sessions and bytes.
        evictor: Makes room.
        need_of: What a session needs.
        begin: Starts to load a session, unless it is being loaded.
    """

    def __init__(
        self,
        table: SessionTable,
        evictor: Evictor,
        need_of: Callable[[SessionRecord], Need],
        begin: Callable[[SessionRecord], None],
    ) -> None:
        self._table = table
        self._evictor = evictor
        self._need_of = need_of
        self._begin = begin
        self._leases: dict[str, LeaseRecord] = {}
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._leases)

    async def take(self, request: LeaseRequest, within_s: float) -> None:
        """Lease the models of a chain; those that are not loaded are placed, all of them or none.

        Args:
            request: Which; a lease in force is renewed.
            within_s: Most seconds to wait for room.

        Raises:
            ResourceExhaustedError: If they can never be loaded together, or not by the deadline.
            CacheClosedError: If it is released meanwhile.
        """
        if await self.renew(request):
            return
        deadline = time.monotonic() + within_s
        self._waiting[request.lease_id] += 1  # a client may repeat its call while the first one waits
        try:
            while not await self._try(request):
                self._check_wanted(request)
                if time.monotonic() > deadline:
                    blocked = (record.blocked for record in self._records(request))
                    raise next(filter(None, blocked), None) or DeadlineExceededError(
                        f"no room for {len(request.load_requests)} models together"
                    )
                self._check_fits(request)
                self._begin_waited(request)
                await self._table.wait_for_change(_RETRY_S)
            self._check_wanted(request)
        except CacheClosedError:
            await self.release(request.lease_id)
            raise
        finally:
            self._waiting -= Counter([request.lease_id])
            self._clean_up(request)
        await self._tell(self._leases[request.lease_id].keys)

    async def _try(self, request: LeaseRequest) -> bool:
        """Place what is missing and take the lease, or leave everything as it is."""
        ledger = self._table.ledger
        lease = LeaseRecord(request, 0.0)
        missing: list[SessionRecord] = []
        if request.lease_id in self._leases:  # the client repeated its call: it saw the cache's process die
            return True
        ledger.lease(lease.keys)
        placed = False
        try:
            if self._is_retiring(request):
                return False
            missing = self._missing(request)
            placed = not missing or await self._evictor.try_place(missing)
        except BackendUnavailableError as exc:
            if not self._table.can_grow:
                raise
            for record in missing:
                record.blocked = exc
        finally:
            if not placed or request.lease_id in self._leases:  # not taken, or taken by the repeated call meanwhile
                ledger.unlease(lease.keys)
        if placed and request.lease_id not in self._leases:
            lease.until_s = time.monotonic() + LEASE_TTL_S
            self._leases[request.lease_id] = lease
        if placed:
            for record in missing:
                self._begin(record)
        return placed

    def _check_wanted(self, request: LeaseRequest) -> None:
        if not self._waiting[request.lease_id]:
            raise CacheClosedError(f"lease {request.lease_id} was given back before it was in force")

    def _clean_up(self, request: LeaseRequest) -> None:
        """Remove what a lease has left behind; what others wait for by now is loaded for them."""
        self._begin_waited(request)
        for record in self._records(request):
            if not record.is_begun:
                self._table.drop(record)

    def _begin_waited(self, request: LeaseRequest) -> None:
        """Load what others wait for: one model may find room although the whole chain finds none."""
        for record in self._records(request):
            if not record.is_begun and record.waiters:
                self._begin(record)

    def _check_fits(self, request: LeaseRequest) -> None:
        if not self._table.can_grow:
            distinct = {key_of(asked.request): asked for asked in request.load_requests}
            needs = [self._need_of(SessionRecord(asked)) for asked in distinct.values()]
            check_all_fit(self._table.ledger, needs)

    def _records(self, request: LeaseRequest) -> list[SessionRecord]:
        """Return the sessions of the models of a lease."""
        return [record for asked in request.load_requests for record in self._table.of_key(key_of(asked.request))]

    async def renew(self, request: LeaseRequest) -> bool:
        """Prolong a lease: its holder is alive.

        Args:
            request: What it holds.

        Returns:
            Whether the lease is in force; if not, the holder must take it again.
        """
        lease = self._leases.get(request.lease_id)
        if lease is None:
            return False
        lease.until_s = time.monotonic() + LEASE_TTL_S
        if lease.request != request:  # adopted after a restart: only the sessions that were there told of it
            self._table.ledger.lease(key_of(asked.request) for asked in request.load_requests)
            self._table.ledger.unlease(lease.keys)
            lease.request = request
            await self._tell(lease.keys)
        return True

    def adopt(self, lease_id: str, load_request: LoadRequest) -> None:
        """Take over a lease that a session knows of, after a restart of the cache.

        Args:
            lease_id: Which.
            load_request: One of its models.
        """
        lease = self._leases.setdefault(
            lease_id, LeaseRecord(LeaseRequest(lease_id, ()), time.monotonic() + LEASE_TTL_S)
        )
        lease.request = replace(lease.request, load_requests=(*lease.request.load_requests, load_request))
        self._table.ledger.lease([key_of(load_request.request)])

    async def release(self, lease_id: str) -> None:
        """End a lease, or the wait for one.

        Args:
            lease_id: Which; unknown ones are ignored.
        """
        self._waiting.pop(lease_id, None)
        await self._end(lease_id)

    async def give_way(self, model: str) -> None:
        """End the leases that follow a model's file, which has been replaced; their holders take new ones.

        Args:
            model: Its canonical id.
        """
        for lease_id, lease in list(self._leases.items()):
            if lease.request.follows_file and any(key.model == model for key in lease.keys):
                await self._end(lease_id)

    async def _end(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._table.ledger.unlease(lease.keys)
            self._table.notify()
            await self._tell(lease.keys)

    async def expire(self) -> None:
        """End the leases whose holders have fallen silent."""
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.until_s < time.monotonic()]:
            await self.release(lease_id)

    def replicas(self) -> list[tuple[LoadRequest, int | None]]:
        """Return which models shall have several replicas.

        Returns:
            Each with the number of devices; None for every one.
        """
        return [
            (asked, lease.request.replicas)
            for lease in self._leases.values()
            if lease.request.replicas != 1
            for asked in lease.request.load_requests
        ]

    def retention_of(self, record: SessionRecord) -> RetentionInfo:
        """Return why a session is not evicted.

        Args:
            record: The session.

        Returns:
            Its pin and its leases.
        """
        leases = tuple(lease_id for lease_id, lease in self._leases.items() if record.key in lease.keys)
        return RetentionInfo(record.is_pinned, leases)

    async def tell(self, record: SessionRecord) -> None:
        """Tell a session why it is not evicted, for a cache that restarts.

        Args:
            record: The session; one that still loads is told when it is ready, one that retires may yet be taken back.
        """
        if record.is_usable or (record.ready.is_set() and record.is_retiring):
            # a dead one is removed soon, and the next session of its model is told
            with contextlib.suppress(RayError, TimeoutError):
                told = record.handle.set_retention.remote(record.name, self.retention_of(record))
                await asyncio.wait_for(told, ANSWER_WITHIN_S)

    async def _tell(self, keys: Sequence[Key]) -> None:
        for record in [record for key in keys for record in self._table.of_key(key)]:
            await self.tell(record)

    def _is_retiring(self, request: LeaseRequest) -> bool:
        """Tell whether all sessions of a model retire: a process may end, come back, or be tried again."""
        found = [self._table.ledger.of_key(key_of(asked.request)) for asked in request.load_requests]
        return any(records and all(record.is_retiring for record in records) for records in found)

    def _missing(self, request: LeaseRequest) -> list[SessionRecord]:
        """Return a record for each model that is neither loaded nor placed; one that waits for room is taken over."""
        missing = []
        for key, asked in {key_of(asked.request): asked for asked in request.load_requests}.items():
            records = self._table.of_key(key)
            if any(record.is_placed and not record.is_retiring for record in records):
                continue
            record = next((record for record in records if not record.ready.is_set() and not record.is_placed), None)
            if record is None:
                record = SessionRecord(asked)
                self._table.add(record)  # requests that come meanwhile wait for this one
            missing.append(record)
        return missing
