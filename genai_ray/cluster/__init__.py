"""Sessions in processes of their own on Ray, and the one cache that places and evicts them.

From the caller down:

* ``client``: ``ModelCache``, and ``CachedSession``, which sends frames to the process of a session.
* ``cache``: ``CacheActor``, which a client asks if it does not know a session: it loads, evicts, and keeps count.
* ``session_actor``: ``SessionActor``, the process that runs one model in an ``InferenceSession``, and then perhaps
  another one; ``served`` is what it knows of the one that it runs.
* ``placement``: decides on which device a session starts, and which sessions are evicted for it. Pure, without Ray.
* ``messages``: what travels between these. ``devices``: what a node has. ``runtime``: starts or joins Ray.

One session has three nouns: what a client asks for (``SessionRequest``), the cache's record of it (``SessionRecord`` in
``cache.session_table``, whose part for placement is a ``Slot``), and what the client holds (``CachedSession``).
"""

from genai_ray.cluster.cache import CacheOptions, CacheStatus
from genai_ray.cluster.client.cache import ModelCache, lease_within, open_session, router_of
from genai_ray.cluster.client.connection import cache_names
from genai_ray.cluster.client.lease import Lease
from genai_ray.cluster.client.session import (
    UNKNOWN_PROCESSOR,
    CachedSession,
    FrameRange,
    PendingCall,
    find_processors,
)
from genai_ray.cluster.devices import hold_memory, name_nodes, uses_gpu
from genai_ray.cluster.messages import SessionRequest, key_of
from genai_ray.cluster.placement import EvictionPolicy
from genai_ray.cluster.runtime.connect import (
    check_inside,
    check_own_gpu,
    connect,
    disconnect,
    has_own_node_died,
    own_folders,
    say_if_node_dies,
)
from genai_ray.cluster.runtime.driver import NODE_DIED
from genai_ray.cluster.runtime.probe import ANSWER_WITHIN_S, Answer, RunningCluster, find_cluster

__all__ = [
    "ANSWER_WITHIN_S",
    "NODE_DIED",
    "UNKNOWN_PROCESSOR",
    "Answer",
    "CacheOptions",
    "CacheStatus",
    "CachedSession",
    "EvictionPolicy",
    "FrameRange",
    "Lease",
    "ModelCache",
    "PendingCall",
    "RunningCluster",
    "SessionRequest",
    "cache_names",
    "check_inside",
    "check_own_gpu",
    "connect",
    "disconnect",
    "find_cluster",
    "find_processors",
    "has_own_node_died",
    "hold_memory",
    "key_of",
    "lease_within",
    "name_nodes",
    "open_session",
    "own_folders",
    "router_of",
    "say_if_node_dies",
    "uses_gpu",
]
