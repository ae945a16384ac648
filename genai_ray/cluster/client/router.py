"""Which session actor a client calls: from what it knows, or from the cache.

Internal: ``serve`` and ``enhance`` reach it by ``router_of(cache)``.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import Any, TypeAlias

from ray.actor import ActorHandle
from ray.exceptions import RayError

from genai_ray.catalog import ModelSpec
from genai_ray.cluster.cache import CacheCalls
from genai_ray.cluster.client.connection import Connection
from genai_ray.cluster.client.requests import build_load_request, own_node
from genai_ray.cluster.messages import Acquired, Key, LoadRequest, Replica, SessionRequest, key_of
from genai_ray.cluster.runtime.replies import wait_for
from genai_ray.cluster.served import HOT_QUEUE
from genai_ray.errors import CacheClosedError, ResourceExhaustedError

__all__ = ["Handle", "Route", "Router"]

_log = logging.getLogger(__name__)

Handle: TypeAlias = "ActorHandle[Any]"

REFRESH_S = 5.0
"""A client asks the cache for new replicas of an entry that it uses after this time, in the background."""

PROGRESS_WITHIN_S = 2.0
"""The frames of a session that does not answer within this time are not counted."""


class Route:
    """The replicas of one entry, as one client knows them.

    Args:
        acquired: The answer of the cache.
        node: The client's own node.
    """

    def __init__(self, acquired: Acquired, node: str | None) -> None:
        self._node = node
        self._asked_s = time.monotonic()
        self._set(acquired.replicas)

    def choose(self, lost: str | None) -> tuple[str, Handle] | None:
        """Choose a replica, unless the caller has lost one that is still known here.

        Args:
            lost: Name of a replica that the caller saw dead or retired; it is forgotten.

        Returns:
            Name and actor; None if the cache must be asked.
        """
        if lost is None or not self.knows(lost):  # or another thread has reported it already
            return self.pick()
        self.forget(lost)
        return None

    def pick(self) -> tuple[str, Handle] | None:
        """Choose a replica: one on this node unless its queue is long, else by chance, in favour of short queues.

        Returns:
            Name and actor; None if no replica is known.
        """
        if len(self.replicas) == 1:
            return self._only
        if not self.replicas:
            return None
        near = [replica for replica in self.replicas if replica.node == self._node and replica.queue < HOT_QUEUE]
        # By chance, because all clients see the same lengths and would all take the shortest queue.
        among = near or list(self.replicas)
        chosen = random.choices(among, [1 / (1 + replica.queue) for replica in among])[0]
        return chosen.name, chosen.handle

    def forget(self, name: str) -> None:
        """Forget a replica that was seen dead or retired.

        Args:
            name: Its name.
        """
        self._set(tuple(replica for replica in self.replicas if replica.name != name))

    def knows(self, name: str) -> bool:
        """Tell whether a session is one of the replicas.

        Args:
            name: Its name.

        Returns:
            Whether this client knows it as one of them.
        """
        return any(replica.name == name for replica in self.replicas)

    def is_due(self) -> bool:
        """Tell whether to ask the cache for other replicas; true once every ``REFRESH_S``.

        Returns:
            Whether to ask now.
        """
        now = time.monotonic()
        if now - self._asked_s < REFRESH_S:
            return False
        self._asked_s = now
        return True

    def update(self, acquired: Acquired | None) -> None:
        """Take over the answer of the cache.

        Args:
            acquired: The replicas; None if there is none at the moment, which the next call finds out by itself.
        """
        if acquired is not None:
            self._set(acquired.replicas)

    def _set(self, replicas: tuple[Replica, ...]) -> None:
        self.replicas = replicas
        self._only = (replicas[0].name, replicas[0].handle) if len(replicas) == 1 else None


class Router:
    """The sessions that one client knows. A hit costs no call to the cache.

    Args:
        connection: Line to the cache.
        deadline_s: Most seconds that a request may take.
        is_online: Whether somebody waits for the requests.
    """

    def __init__(self, connection: Connection, deadline_s: float, *, is_online: bool) -> None:
        self.deadline_s = deadline_s
        self.is_online = is_online
        self.tag: str | None = None
        """Name under which sessions count the frames of this client; None if nobody asks."""
        self._connection = connection
        self._routes: dict[Key, Route] = {}
        self._warned: set[Key] = set()

    def acquire(
        self, request: SessionRequest, spec: ModelSpec, lost: str | None = None, within_s: float | None = None
    ) -> tuple[str, Handle]:
        """Return the actor of a session, from what this client knows or from the cache.

        Args:
            request: Which session.
            spec: Its model.
            lost: Name of a session that the caller saw dead or retired.
            within_s: Most seconds to wait; None for the client's deadline.

        Returns:
            Name and actor.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """
        return self.pick(request, lost) or self.fetch(request, spec, lost=lost, within_s=within_s)

    def pick(self, request: SessionRequest, lost: str | None = None) -> tuple[str, Handle] | None:
        """Return the actor of a session from what this client knows, without waiting.

        Args:
            request: Which session.
            lost: Name of a session that the caller saw dead or retired.

        Returns:
            Name and actor; None if the cache must be asked.
        """
        key = key_of(request)
        route = self._routes.get(key)
        if route is None:
            return None
        self._connection.check_open()
        if route.is_due():  # the answer is for later calls
            self._connection.send(CacheCalls.replicas, key).future().add_done_callback(
                lambda done: None if done.exception() else route.update(done.result())
            )
        return route.choose(lost)

    def fetch(
        self,
        request: SessionRequest,
        spec: ModelSpec,
        *,
        lost: str | None = None,
        is_explicit: bool = False,
        within_s: float | None = None,
    ) -> tuple[str, Handle]:
        """Ask the cache for a session, which it loads if necessary.

        Args:
            request: Which session.
            spec: Its model.
            lost: Name of a session that the caller saw dead or retired.
            is_explicit: Whether a caller asked to load the model, rather than for a result.
            within_s: Most seconds to wait; None for the client's deadline.

        Returns:
            Name and actor.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """
        key = key_of(request)
        asked = self.load_request(request, spec, is_explicit=is_explicit, within_s=within_s)
        acquired = self._connection.call_within(within_s, CacheCalls.acquire, asked, lost)
        route = Route(acquired, own_node())
        self._routes[key] = route
        floor_bytes = acquired.floor_bytes
        if floor_bytes is not None and acquired.num_bytes > floor_bytes and key not in self._warned:
            self._warned.add(key)
            _log.warning(
                "%s takes %d bytes, more than memory_bytes=%d: the cache reserves what it takes",
                key.model,
                acquired.num_bytes,
                floor_bytes,
            )
        chosen = route.pick()
        if chosen is None:
            raise ResourceExhaustedError(
                f"{key.model} was evicted as soon as it was loaded", do="Give the cache a larger budget."
            )
        return chosen

    def load_request(
        self, request: SessionRequest, spec: ModelSpec, *, is_explicit: bool = False, within_s: float | None = None
    ) -> LoadRequest:
        """Build what the cache is asked: the request, with hash and predicted bytes of the file, and the deadline.

        Args:
            request: Which session.
            spec: Its model.
            is_explicit: Whether a caller asked to load the model, rather than for a result.
            within_s: When the client gives up; None for its deadline.

        Returns:
            The request for the cache.

        Raises:
            CacheClosedError: If the cache or this client is closed.
            ModelNotFoundError: If the model's file is not there.
            ModelLoadError: If it is corrupt.
        """
        self._connection.check_open()  # before Ray is asked for this node
        return build_load_request(
            request,
            spec,
            is_explicit=is_explicit,
            is_online=self.is_online,
            within_s=self.deadline_s if within_s is None else within_s,
        )

    def knows(self, request: SessionRequest, name: str | None = None) -> bool:
        """Tell whether this client knows a session as one of those of a request.

        Args:
            request: The request.
            name: Name of the session; None for any.

        Returns:
            Whether it does.
        """
        route = self._routes.get(key_of(request))
        return route is not None and (bool(route.replicas) if name is None else route.knows(name))

    def dismiss(self, request: SessionRequest, name: str) -> None:
        """End and forget a session of a single request.

        Args:
            request: The request.
            name: Name of the session.
        """
        self._routes.pop(key_of(request), None)
        with contextlib.suppress(CacheClosedError):  # a cache that was shut down has ended the session
            self._connection.send(CacheCalls.dismiss, name)

    def forget(self, key: Key) -> None:
        """Forget the sessions of an entry: the next call asks the cache.

        Args:
            key: The entry.
        """
        self._routes.pop(key, None)

    def forget_model(self, model_id: str) -> None:
        """Forget the sessions of a model.

        Args:
            model_id: Its canonical id.
        """
        self._routes = {key: route for key, route in list(self._routes.items()) if key.model != model_id}

    def forget_all(self) -> None:
        """Forget every session."""
        self._routes.clear()

    def count_frames(self) -> dict[str, int]:
        """Ask the sessions that this client knows how many frames they computed under its tag.

        Returns:
            Frames by model id; a session that is gone or silent counts as none.
        """
        counts: dict[str, int] = {}
        for key, route in list(self._routes.items()):
            if key.alone:
                continue
            counts.setdefault(key.model, 0)
            for replica in route.replicas:
                with contextlib.suppress(RayError):
                    counts[key.model] += int(
                        wait_for(replica.handle.progress.remote(replica.name, self.tag), PROGRESS_WITHIN_S)
                    )
        return counts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_routes": {}}
