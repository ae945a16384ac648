"""What a cache offers its clients: ``CacheOptions``, how a new one behaves; ``CacheCalls``, what they can ask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from genai_ray.cluster.cache.status import CacheStatus
from genai_ray.cluster.messages import Acquired, Key, LeaseRequest, LoadRequest, SessionRequest
from genai_ray.cluster.placement import EvictionPolicy
from genai_ray.display import describe_fields
from genai_ray.errors import ConfigError
from genai_ray.fields import check_ranges, refuse_unknown
from genai_ray.types import take_fields, take_word

__all__ = ["CacheCalls", "CacheOptions"]


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """How a new cache behaves; one that is there already keeps what it has.

    Raises:
        ConfigError: If a number makes no sense, or the policy is not known.
    """

    policy: EvictionPolicy = EvictionPolicy.LRU
    """Which idle session leaves first: ``lru``, or ``gdsf``, which weighs what it costs to load it again and is
    experimental."""
    min_stay_s: float = 5.0
    """Most seconds for which a loaded model is safe from loads that requests cause: it stays twice as long as it took
    to come, and no longer than this. Such a load waits; ``load_model`` does not. 0 for no limit."""
    idle_release_s: float | None = None
    """Sessions idle for this long retire. None for never; on a growing cluster for 300 s, so that nodes become free."""
    can_grow: bool = False
    """Whether Ray's autoscaler adds nodes on demand: sessions without a place then wait for one. Not needed if the
    autoscaler tells Ray what it may add. Experimental."""
    load_within_s: float = 300.0
    """Most seconds that one try of a load may take."""
    replicas_per_device: int = 1
    """Most sessions of a hot model on one device, if other devices have no room. More than 1 only if several were
    measured to be faster than one, which runs a frame on each core of a CPU and two on a GPU already; experimental."""
    spare_processes: int = 0
    """Processes that are kept ready on each node for the next session that needs a new one: 0 or 1. Its bytes count."""

    logical_gpu_bytes: int | None = None
    """Every GPU that Ray counts is a logical one of so many bytes, and its sessions compute on the CPU: to try
    placement without GPUs. None for real ones, as NVML describes them."""

    def __post_init__(self) -> None:
        take_fields(self)
        object.__setattr__(self, "policy", take_word(EvictionPolicy, self.policy, "policy"))
        check_ranges(self, min_stay_s=(0, math.inf), replicas_per_device=(1, math.inf), spare_processes=(0, 1))
        for name in ("idle_release_s", "load_within_s", "logical_gpu_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}", "more than 0")


class CacheCalls(Protocol):
    """Every call of a cache: ``CacheActor`` answers; clients send them by ``Connection.call(CacheCalls.NAME, ...)``."""

    async def open(self, budget_bytes: int | None, options: CacheOptions | None) -> None:
        """Join the cache.

        Args:
            budget_bytes: The budget that the caller means it to have; None for any.
            options: How the caller means it to behave; None for any.

        Raises:
            ConfigError: If the cache has another budget, or behaves otherwise.
        """

    async def acquire(self, load_request: LoadRequest, lost: str | None = None) -> Acquired:
        """Return the ready sessions of a key; load one if there is none. Concurrent calls for one key load it once.

        Args:
            load_request: Which session.
            lost: Name of a session that the caller saw dead or retired.

        Returns:
            Names and handles of its actors.

        Raises:
            GenAIRayError: Why it cannot be loaded.
        """

    async def replicas(self, key: Key) -> Acquired | None:
        """Return the ready sessions of a key; load nothing.

        Args:
            key: Which.

        Returns:
            As ``acquire``, with their queues if there are several; None if none is ready.
        """

    async def lease(self, request: LeaseRequest, within_s: float) -> None:
        """Lease the models of a chain, all of them or none; see ``Leases.take``.

        Args:
            request: Which.
            within_s: Most seconds to wait for room.
        """

    async def renew(self, request: LeaseRequest) -> bool:
        """Prolong a lease; see ``Leases.renew``.

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
            name: The session; unknown ones, and those that others use, are left alone.
        """

    async def find(self, model: str) -> SessionRequest | None:
        """Return the session of a model that was used last.

        Args:
            model: Canonical id.

        Returns:
            Its request; None if no session of it is loaded.
        """

    async def memory(self) -> tuple[int, int]:
        """Return bytes used and the budget.

        Returns:
            Both in bytes.
        """

    async def loaded(self) -> list[str]:
        """Return the ids of ready models, least recently used first.

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
            The number of sessions.

        Raises:
            ModelNotFoundError: If it is not loaded.
            ResourceExhaustedError: If one is pinned, leased, or at work until the deadline.
        """

    async def evict_lru(self) -> str | None:
        """Evict the idle session that the policy chooses.

        Returns:
            Its model's id; None if none may be evicted.
        """

    async def pin(self, model: str, pinned: bool) -> None:
        """Pin or unpin every session of a model; if a pinned one dies, the next session in its place is pinned.

        Args:
            model: Canonical id.
            pinned: Whether they are pinned from here on.

        Raises:
            ModelNotFoundError: If it is not loaded.
        """

    async def status(self) -> CacheStatus:
        """Return the whole state.

        Returns:
            Budget, bytes, counts, devices and sessions.
        """

    async def shutdown(self) -> None:
        """End every session, adopted ones as well, and load none any more."""
