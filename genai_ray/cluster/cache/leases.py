"""Leases: the models of a chain stay, all of them or none, until their holder gives them back or is no longer heard of."""

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
from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.messages import LEASE_TTL_S, Key, LeaseRequest, LoadRequest, RetentionInfo, key_of
from genai_ray.cluster.placement import Need, SlotState, check_all_fit
from genai_ray.errors import BackendUnavailableError, CacheClosedError, DeadlineExceededError

__all__ = ["Leases"]

_RETRY_S = 0.1


@dataclass(slots=True)
class Lease:
    """A lease in force."""

    request: LeaseRequest
    """What it keeps."""
    until_s: float
    """When it is over unless its holder is heard of."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """What stays."""
        return tuple(key_of(want.request) for want in self.request.wants)


class Leases:
    """The leases of one cache.

    Args:
        book: Sessions and bytes.
        evictor: Makes room.
        need_of: What an entry asks for.
        begin: Starts to load an entry that has been placed, unless it is being loaded.
    """

    def __init__(
        self,
        book: SessionTable,
        evictor: Evictor,
        need_of: Callable[[Entry], Need[Key]],
        begin: Callable[[Entry], None],
    ) -> None:
        self._book, self._evictor, self._need_of, self._begin = book, evictor, need_of, begin
        self._leases: dict[str, Lease] = {}
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._leases)

    async def take(self, request: LeaseRequest, within_s: float) -> None:
        """Lease the models of a chain; those that are not there are placed, all of them or none.

        Args:
            request: Which; one that is in force already is renewed.
            within_s: Most seconds to wait for room.

        Raises:
            ResourceExhaustedError: If they can never be there together, or not by the deadline.
            CacheClosedError: If it is released meanwhile.
        """
        if self.renew(request):
            return
        deadline = time.monotonic() + within_s
        self._waiting[request.lease_id] += 1  # a call that a client repeats may wait beside the first one
        try:
            while not await self._try(request):
                self._check_wanted(request)
                if time.monotonic() > deadline:
                    blocked = (
                        entry.blocked for want in request.wants for entry in self._book.of_key(key_of(want.request))
                    )
                    raise next(filter(None, blocked), None) or DeadlineExceededError(
                        f"no room for {len(request.wants)} models together"
                    )
                self._check_fits(request)
                self._begin_waited(request)
                await self._book.wait_for_change(_RETRY_S)
            self._check_wanted(request)
        except CacheClosedError:
            await self.release(request.lease_id)
            raise
        finally:
            self._waiting -= Counter([request.lease_id])
            self._settle(request)
        await self._tell(self._leases[request.lease_id].keys)

    async def _try(self, request: LeaseRequest) -> bool:
        """Place what is missing and enter the lease, or leave everything as it is."""
        ledger = self._book.ledger
        lease, missing = Lease(request, 0.0), []
        if request.lease_id in self._leases:  # the call was repeated, since the client saw the cache's process die
            return True
        ledger.lease(lease.keys)
        placed = False
        try:
            if self._is_leaving(request):
                return False
            missing = self._missing(request)
            placed = not missing or await self._evictor.try_place(missing)
        except BackendUnavailableError as exc:
            if not self._book.can_grow:
                raise
            for entry in missing:
                entry.blocked = exc
        finally:
            if not placed or request.lease_id in self._leases:  # not had, or had by the repeated call meanwhile
                ledger.unlease(lease.keys)
        if placed and request.lease_id not in self._leases:
            lease.until_s = time.monotonic() + LEASE_TTL_S
            self._leases[request.lease_id] = lease
        if placed:
            for entry in missing:
                self._begin(entry)
        return placed

    def _check_wanted(self, request: LeaseRequest) -> None:
        if not self._waiting[request.lease_id]:
            raise CacheClosedError(f"lease {request.lease_id} was given back before it was had")

    def _settle(self, request: LeaseRequest) -> None:
        """Leave nothing behind of a lease that was not had: what others wait for by now is loaded for them."""
        self._begin_waited(request)
        for entry in [
            entry for want in request.wants for entry in self._book.of_key(key_of(want.request)) if not entry.is_begun
        ]:
            self._book.drop(entry)

    def _begin_waited(self, request: LeaseRequest) -> None:
        """Load what others wait for, which may find room by itself where the whole chain finds none."""
        for entry in [entry for want in request.wants for entry in self._book.of_key(key_of(want.request))]:
            if not entry.is_begun and entry.waiters:
                self._begin(entry)

    def _check_fits(self, request: LeaseRequest) -> None:
        if not self._book.can_grow:
            wanted = [
                self._need_of(Entry(want)) for want in {key_of(want.request): want for want in request.wants}.values()
            ]
            check_all_fit(self._book.ledger, wanted)

    def renew(self, request: LeaseRequest) -> bool:
        """Hear of a holder.

        Args:
            request: What it holds.

        Returns:
            Whether the lease is in force; where not, it is to be taken again.
        """
        lease = self._leases.get(request.lease_id)
        if lease is None:
            return False
        if lease.request != request:  # adopted after a restart, when only the sessions that were there were known
            self._book.ledger.lease(key_of(want.request) for want in request.wants)
            self._book.ledger.unlease(lease.keys)
            lease.request = request
        lease.until_s = time.monotonic() + LEASE_TTL_S
        return True

    def adopt(self, lease_id: str, want: LoadRequest) -> None:
        """Enter a lease that a session knows of, after a restart of the cache.

        Args:
            lease_id: Which.
            want: One of its models.
        """
        lease = self._leases.setdefault(lease_id, Lease(LeaseRequest(lease_id, ()), time.monotonic() + LEASE_TTL_S))
        lease.request = replace(lease.request, wants=(*lease.request.wants, want))
        self._book.ledger.lease([key_of(want.request)])

    async def release(self, lease_id: str) -> None:
        """Give a lease back, or let it go that is still waited for.

        Args:
            lease_id: Which; unknown ones are ignored.
        """
        self._waiting.pop(lease_id, None)
        await self._end(lease_id)

    async def give_way(self, model: str) -> None:
        """End the leases that follow a model's file, which has been replaced; their holders take them again.

        Args:
            model: Its canonical id.
        """
        for lease_id, lease in list(self._leases.items()):
            if lease.request.follows_file and any(key.model == model for key in lease.keys):
                await self._end(lease_id)

    async def _end(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._book.ledger.unlease(lease.keys)
            self._book.notify()
            await self._tell(lease.keys)

    async def expire(self) -> None:
        """End the leases whose holders have not been heard of."""
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.until_s < time.monotonic()]:
            await self.release(lease_id)

    def replicas(self) -> list[tuple[LoadRequest, int | None]]:
        """Return which models are to be on several devices.

        Returns:
            Each with the number of devices; None for every one.
        """
        return [
            (want, lease.request.replicas)
            for lease in self._leases.values()
            if lease.request.replicas != 1
            for want in lease.request.wants
        ]

    def stays(self, entry: Entry) -> RetentionInfo:
        """Return why a session must stay.

        Args:
            entry: The session.

        Returns:
            Its pin and its leases.
        """
        slot = self._book.ledger.slots.get(entry.name)
        leases = tuple(lease_id for lease_id, lease in self._leases.items() if entry.key in lease.keys)
        return RetentionInfo(slot is not None and slot.is_pinned, leases)

    async def tell(self, entry: Entry) -> None:
        """Let a session know why it must stay, for a cache that restarts.

        Args:
            entry: The session; one that is not ready is told when it is, one on its way out may yet refuse to go.
        """
        if entry.ready.is_set() and (self._book.is_usable(entry) or self._book.is_retiring(entry)):
            await self._say(entry, self.stays(entry))

    async def _say(self, entry: Entry, stays: RetentionInfo) -> None:
        with contextlib.suppress(
            RayError, TimeoutError
        ):  # one that is dead is struck out, and its lease begins anew with the next
            await asyncio.wait_for(entry.handle.stay.remote(stays), ANSWER_WITHIN_S)

    async def _tell(self, keys: Sequence[Key]) -> None:
        for entry in [entry for key in keys for entry in self._book.of_key(key)]:
            await self.tell(entry)

    def _is_leaving(self, request: LeaseRequest) -> bool:
        """Tell whether the last session of a model is on its way out: its process may end, come back, or be tried again."""
        slots = [self._book.ledger.of_key(key_of(want.request)) for want in request.wants]
        return any(found and all(slot.state is SlotState.RETIRING for slot in found) for found in slots)

    def _missing(self, request: LeaseRequest) -> list[Entry]:
        """Return an entry for each model that is neither loaded nor placed; one that waits for room is taken over."""
        missing = []
        for key, want in {key_of(want.request): want for want in request.wants}.items():
            entries = self._book.of_key(key)
            if any(entry.name in self._book.ledger.slots and not self._book.is_retiring(entry) for entry in entries):
                continue
            waiting = next(
                (entry for entry in entries if not entry.ready.is_set() and entry.name not in self._book.ledger.slots),
                None,
            )
            missing.append(waiting or Entry(want))
            if waiting is None:
                self._book.add(missing[-1])  # so that whoever asks for it meanwhile waits for this one
        return missing
