"""Sessions in processes of their own on Ray, and the one cache that places and evicts them.

From the caller down: ``client`` (``ModelCache``) asks ``cache`` (``CacheActor``) over a ``connection`` where it does not know a
session; ``calls`` sends frames straight to the session's ``actor``. ``placement`` decides where a session goes and what goes for it.
"""

from genai_ray.cluster.cache import CacheOptions
from genai_ray.cluster.client.cache import ModelCache, open_session, router_of
from genai_ray.cluster.client.connection import cache_names
from genai_ray.cluster.client.lease import Lease
from genai_ray.cluster.client.session import CachedSession, PendingCall, Span
from genai_ray.cluster.devices import uses_gpu
from genai_ray.cluster.messages import SessionRequest, key_of
from genai_ray.cluster.placement import EvictionPolicy
from genai_ray.cluster.runtime.connect import connect, disconnect, has_own_node_died, own_folders, say_if_node_dies
from genai_ray.cluster.runtime.last_word import NODE_DIED

__all__ = [
    "NODE_DIED",
    "CacheOptions",
    "CachedSession",
    "EvictionPolicy",
    "Lease",
    "ModelCache",
    "PendingCall",
    "SessionRequest",
    "Span",
    "cache_names",
    "connect",
    "disconnect",
    "has_own_node_died",
    "key_of",
    "open_session",
    "own_folders",
    "router_of",
    "say_if_node_dies",
    "uses_gpu",
]
