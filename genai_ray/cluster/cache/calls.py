"""What a cache offers its clients: how a new one behaves (``CacheOptions``), and what it can be asked (``CacheCalls``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from genai_ray.cluster.cache.status import CacheStatus
from genai_ray.cluster.messages import Acquired, Key, LeaseRequest, LoadRequest, SessionRequest
from genai_ray.cluster.placement import EvictionPolicy
from genai_ray.errors import ConfigError

__all__ = ["CacheCalls", "CacheOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """How a new cache behaves; one that is there already keeps what it has.

    Raises:
        ConfigError: If a number makes no sense, or the policy is not known.
    """

    policy: EvictionPolicy = EvictionPolicy.LRU
    """Which idle session leaves first: ``lru``, or ``gdsf``, which weighs what it costs to load it again."""
    min_stay_s: float = 5.0
    """A load by itself (not ``load_model``) leaves alone for this long what came in, and waits; 0 for never."""
    idle_release_s: float | None = None
    """Sessions idle for this long are retired; None for never, except on a cluster that grows by itself: 300 s, so that nodes can go."""
    can_grow: bool = False
    """Whether nodes come by themselves when Ray's autoscaler sees a demand: what finds no place then waits for one. A cluster whose
    autoscaler tells Ray what it may add is known without this."""
    load_within_s: float = 300.0
    """Most seconds that one try of a load may take."""
    replicas_per_device: int = 1
    """Most sessions of a hot model on one device, where other devices have no room for a replica: more than 1 where several were
    measured to be faster than one, which runs a frame on each core of a CPU and two on a GPU already."""

    def __post_init__(self) -> None:
        if self.policy not in list(EvictionPolicy):
            raise ConfigError(f"policy {self.policy!r}", " or ".join(EvictionPolicy))
        object.__setattr__(self, "policy", EvictionPolicy(self.policy))
        if self.min_stay_s < 0:
            raise ConfigError(f"min_stay_s={self.min_stay_s}", "0 or more")
        for name, value in {"idle_release_s": self.idle_release_s, "load_within_s": self.load_within_s}.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}", "more than 0")
        if type(self.replicas_per_device) is not int or self.replicas_per_device < 1:
            raise ConfigError(f"replicas_per_device={self.replicas_per_device}", "a whole number, 1 or more")


class CacheCalls(Protocol):
    """Every call of a cache: ``CacheActor`` answers them, and clients send them by ``Connection.call(CacheCalls.NAME, ...)``."""

    async def open(self, budget_bytes: int | None, options: CacheOptions | None) -> None:
        """Join the cache.

        Args:
            budget_bytes: The budget that the caller means it to have; None for any.
            options: How the caller means it to behave; None for any.

        Raises:
            ConfigError: If the cache has another budget, or behaves otherwise.
        """

    async def acquire(self, load_request: LoadRequest, lost: str | None = None) -> Acquired:
        """Return the ready sessions of an entry, loaded where it is not there; concurrent calls for one entry load it once.

        Args:
            load_request: Which session.
            lost: Name of a session that the caller saw dead or retired.

        Returns:
            Names and handles of its actors.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """

    async def replicas(self, key: Key) -> Acquired | None:
        """Return the sessions of an entry without loading it.

        Args:
            key: Which.

        Returns:
            As ``acquire``, with their queues where there are several; None where it is not ready.
        """

    async def lease(self, request: LeaseRequest, within_s: float) -> None:
        """Lease the models of a chain, all of them or none; see ``Leases.take``.

        Args:
            request: Which.
            within_s: Most seconds to wait for room.
        """

    async def renew(self, request: LeaseRequest) -> bool:
        """Hear of the holder of a lease; see ``Leases.renew``.

        Args:
            request: What it holds.

        Returns:
            Whether the lease is in force.
        """

    async def release(self, lease_id: str) -> None:
        """Give a lease back; see ``Leases.release``.

        Args:
            lease_id: Which.
        """

    async def grow(self, name: str, num_bytes: int) -> bool:
        """Reserve more bytes for a session before it takes them; see ``Evictor.grow``.

        Args:
            name: The session.
            num_bytes: What it will take in all.

        Returns:
            Whether it may.
        """

    async def dismiss(self, name: str) -> None:
        """End a session of a single request.

        Args:
            name: The session; unknown ones, and those of an entry that others use, are left alone.
        """

    async def find(self, model: str) -> SessionRequest | None:
        """Return the entry of a model that was used last.

        Args:
            model: Canonical id.

        Returns:
            Its request, or None where no entry of it is loaded.
        """

    async def memory(self) -> tuple[int, int]:
        """Return bytes used and the budget.

        Returns:
            Both in bytes.
        """

    async def loaded(self) -> list[str]:
        """Return the ids of ready entries, least recently used first.

        Returns:
            The ids; a model with several sessions once, at its latest.
        """

    async def evict(self, model: str, within_s: float, is_replaced: bool = False) -> int:
        """Evict every session of a model.

        Args:
            model: Canonical id.
            within_s: Most seconds to wait until it is idle.
            is_replaced: Whether its file has been replaced: leases that follow the file give way then.

        Returns:
            The number of sessions that went.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If one is pinned, leased, or at work until the deadline.
        """

    async def evict_lru(self) -> str | None:
        """Evict the session that goes next.

        Returns:
            Its model's id, or None where none may go.
        """

    async def pin(self, model: str, pinned: bool) -> None:
        """Keep every session of a model, or let it go again; where the process of a pinned one dies, the next one in its place is pinned.

        Args:
            model: Canonical id.
            pinned: Which.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """

    async def status(self) -> CacheStatus:
        """Return the whole state.

        Returns:
            Budget, bytes, counts, devices and sessions.
        """

    async def shutdown(self) -> None:
        """End every session, those of an earlier life of this cache as well, and load none any more."""
