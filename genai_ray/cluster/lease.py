"""``Lease``: what the holder of a lease keeps in its hand; a thread of its own tells the cache that it is there."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from genai_ray.cluster.calls import CachedSession
from genai_ray.cluster.connection import Connection
from genai_ray.cluster.messages import LEASE_TTL_S, LeaseRequest
from genai_ray.errors import CacheClosedError, GenAIRayError

__all__ = ["Lease"]

_log = logging.getLogger(__name__)


class Lease:
    """Models that stay loaded until ``release``, the end of the ``with`` block, or the death of this process.

    Args:
        connection: Line to the cache.
        request: What is leased.
        sessions: One session a model, in the order asked for.
    """

    def __init__(self, connection: Connection, request: LeaseRequest, sessions: tuple[CachedSession, ...]) -> None:
        self.sessions = sessions
        self._connection, self._request = connection, request
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="genai-ray-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the models back; a second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        try:
            self._connection.call("release", self._request.lease_id)
        except GenAIRayError as exc:  # the cache was shut down, and the lease with it; or it ends by its time to live
            _log.debug("lease %s was not given back: %s", self._request.lease_id, exc)

    def _beat(self) -> None:
        while not self._over.wait(LEASE_TTL_S / 3):
            try:
                if not self._connection.call("renew", self._request):
                    self._connection.call("lease", self._request, LEASE_TTL_S)
            except CacheClosedError:
                return  # and the lease with it
            except GenAIRayError as exc:
                _log.warning("a lease of %s could not be renewed: %s", [session.spec.model_id for session in self.sessions], exc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
