"""``Lease``: models that stay loaded for its holder.

A thread renews the lease, so that the cache notices if the holder dies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from genai_ray.cluster.cache import CacheCalls
from genai_ray.cluster.client.connection import Connection
from genai_ray.cluster.client.session import CachedSession
from genai_ray.cluster.messages import LEASE_TTL_S, LeaseRequest
from genai_ray.errors import CacheClosedError, GenAIRayError

__all__ = ["Lease", "take_lease"]

_log = logging.getLogger(__name__)

RELEASE_WITHIN_S = 5.0
"""A lease that the cache does not release within this time ends by its time to live."""


class Lease:
    """Models that stay loaded until ``release``, the end of the ``with`` block, or the death of this process.

    Args:
        connection: Line to the cache.
        request: What is leased.
        sessions: One session a model, in the order of the request.
        build: Makes the request again, of the files as they are then.
    """

    def __init__(
        self,
        connection: Connection,
        request: LeaseRequest,
        sessions: tuple[CachedSession, ...],
        build: Callable[[], LeaseRequest],
    ) -> None:
        self.sessions = sessions
        self._connection, self._request, self._build = connection, request, build
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="genai-ray-lease", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = ", released" if self._over.is_set() else ""
        return f"Lease({', '.join(session.spec.model_id for session in self.sessions)}{state})"

    def release(self) -> None:
        """Let the models be evicted again; takes some seconds at most. A second call does nothing."""
        if not self._over.is_set():
            self._over.set()
            self._give_back()
            self._thread.join(RELEASE_WITHIN_S)  # the caller may shut down Ray next

    def leave(self) -> None:
        """Wait for the end of the thread that renews it, once the client is closed; the cache is told nothing."""
        self._over.set()
        self._thread.join(RELEASE_WITHIN_S)

    def _give_back(self) -> None:
        try:
            self._connection.call_within(RELEASE_WITHIN_S, CacheCalls.release, self._request.lease_id)
        except GenAIRayError as exc:  # cache or client is closed, or the cache is silent
            self._connection.withdraw(self._request.lease_id)
            _log.debug("lease %s was not released: %s", self._request.lease_id, exc)

    def _beat(self) -> None:
        while not self._over.wait(LEASE_TTL_S / 3):
            try:
                if not self._connection.call(CacheCalls.renew, self._request) and not self._over.is_set():
                    if self._request.follows_file:
                        self._request = self._build()
                    self._connection.call(CacheCalls.lease, self._request, LEASE_TTL_S)
                    if self._over.is_set():  # released meanwhile, and perhaps before it was taken again
                        self._give_back()
            except CacheClosedError:
                return  # the lease has ended with the cache
            except (GenAIRayError, OSError) as exc:
                models = [session.spec.model_id for session in self.sessions]
                _log.warning("a lease of %s could not be renewed: %s", models, exc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take_lease(
    connection: Connection, build: Callable[[], LeaseRequest], sessions: tuple[CachedSession, ...], within_s: float
) -> Lease:
    """Wait for room and for the models; if that fails or is interrupted, nothing stays leased.

    Args:
        connection: Line to the cache.
        build: Makes the request, of the files as they are then.
        sessions: One session a model.
        within_s: Most seconds to wait for room.

    Returns:
        The lease.

    Raises:
        GenAIRayError: As ``ModelCache.lease``.
    """
    request = build()
    lease: Lease | None = None
    try:
        connection.call(CacheCalls.lease, request, within_s)
        lease = Lease(connection, request, sessions, build)
        for session in sessions:
            session.touch()
    except BaseException:
        if lease is None:
            connection.withdraw(request.lease_id)
        else:
            lease.release()
        raise
    return lease
