"""The one actor of a cache, and its parts; a call passes through them in this order.

* ``calls``: ``CacheCalls``, what clients can ask; ``CacheOptions``, how a new cache behaves.
* ``actor``: ``CacheActor`` answers the calls, and adopts existing sessions when its process starts again.
* ``session_table``: ``SessionRecord``, the cache's record of a session, and the table of all of them.
* ``loading``: ``Loader`` joins requests for one session, starts its process, loads it, and remembers failures.
* ``eviction``: ``Evictor`` finds a place, and retires idle sessions for it.
* ``reuse``: which process is used again, and what is reserved for it.
* ``session_actors``: the processes of sessions, as actors of Ray.
* ``leases``: ``Leases`` keeps the models of jobs loaded.
* ``maintenance``: nodes that come and go, replicas, idle sessions; ``autoscaling`` asks Ray for nodes.
* ``measured_sizes``: bytes that sessions were measured to take. ``metrics``: figures for Prometheus.
* ``status``: ``CacheStatus``, the state of a cache at one moment.
"""

from genai_ray.cluster.cache.actor import CacheActor
from genai_ray.cluster.cache.calls import CacheCalls, CacheOptions
from genai_ray.cluster.cache.status import CacheStatus

__all__ = ["CacheActor", "CacheCalls", "CacheOptions", "CacheStatus"]
