"""The one actor of a cache, and the parts that it puts together: book, loading, eviction, leases, upkeep."""

from genai_ray.cluster.cache.actor import CacheActor
from genai_ray.cluster.cache.calls import CacheCalls, CacheOptions
from genai_ray.cluster.cache.status import CacheStatus

__all__ = ["CacheActor", "CacheCalls", "CacheOptions", "CacheStatus"]
