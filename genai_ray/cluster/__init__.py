"""Sessions in processes of their own, and the cache that places and evicts them."""

from genai_ray.cluster.calls import CachedSession, PendingCall
from genai_ray.cluster.client import ModelCache
from genai_ray.cluster.connect import connect, disconnect

__all__ = ["CachedSession", "ModelCache", "PendingCall", "connect", "disconnect"]
