"""Which replica of a session a client calls: what it knows of them, and its choice."""

from __future__ import annotations

import random
import time
from typing import Any

from genai_ray.cluster.messages import Acquired, Replica
from genai_ray.cluster.session_actor import HOT_QUEUE

__all__ = ["Route"]

REFRESH_S = 5.0
"""After so long a client that uses an entry asks, in the background, whether it has other replicas by now."""


class Route:
    """The replicas of one entry, as one client knows them.

    Args:
        acquired: What the cache said.
        node: The client's own node.
    """

    def __init__(self, acquired: Acquired, node: str | None) -> None:
        self._node = node
        self._asked_s = time.monotonic()
        self._set(acquired.replicas)

    def choose(self, lost: str | None) -> tuple[str, Any] | None:
        """Choose a replica, unless the caller tells something that is not known yet.

        Args:
            lost: Name of a replica that the caller saw dead or retired; it is left out from now on.

        Returns:
            Name and actor; None where the cache is to be asked.
        """
        if lost is None or not self.knows(lost):  # or another thread has been told already
            return self.pick()
        self.forget(lost)
        return None

    def pick(self) -> tuple[str, Any] | None:
        """Choose a replica: one on this node unless its queue is long, else the shorter the queue the likelier.

        Returns:
            Name and actor; None where none is known any more.
        """
        if len(self.replicas) == 1:
            return self._only
        if not self.replicas:
            return None
        near = [replica for replica in self.replicas if replica.node == self._node and replica.queue < HOT_QUEUE]
        # By chance, since all clients see the same lengths, and the shortest queue would be everybody's.
        among = near or list(self.replicas)
        chosen = random.choices(among, [1 / (1 + replica.queue) for replica in among])[0]
        return chosen.name, chosen.handle

    def forget(self, name: str) -> None:
        """Leave out a replica that was seen dead or retired.

        Args:
            name: Its name.
        """
        self._set(tuple(replica for replica in self.replicas if replica.name != name))

    def knows(self, name: str) -> bool:
        """Tell whether a session is one of the replicas.

        Args:
            name: Its name.

        Returns:
            Whether it is, as far as this client knows.
        """
        return any(replica.name == name for replica in self.replicas)

    def is_due(self) -> bool:
        """Tell whether to ask the cache for other replicas; says so once in a while.

        Returns:
            Whether this is the time.
        """
        now = time.monotonic()
        if now - self._asked_s < REFRESH_S:
            return False
        self._asked_s = now
        return True

    def update(self, acquired: Acquired | None) -> None:
        """Enter what the cache said.

        Args:
            acquired: The replicas; None where there is none at the moment, which the next call will find out by itself.
        """
        if acquired is not None:
            self._set(acquired.replicas)

    def _set(self, replicas: tuple[Replica, ...]) -> None:
        self.replicas = replicas
        self._only = (replicas[0].name, replicas[0].handle) if len(replicas) == 1 else None
