"""How a cache behaves: ``CacheOptions``."""

from __future__ import annotations

from dataclasses import dataclass

from genai_ray.cluster.placement import EvictionPolicy
from genai_ray.errors import ConfigError

__all__ = ["CacheOptions"]


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
