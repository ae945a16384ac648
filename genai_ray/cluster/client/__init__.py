"""What callers hold. Everything here is picklable or cheap, and works from any driver, task, actor or Serve replica.

* ``cache``: ``ModelCache``. ``lease``: ``Lease``: models that stay loaded until they are released.
* ``session``: ``CachedSession`` and ``PendingCall``: calls of a session that survive its eviction and its death.
* ``router``: the session actor, among the replicas, that a call goes to.
* ``requests``: a model's hash and predicted bytes, for the cache.
* ``connection``: calls of the cache actor that survive its restart.
"""

__all__: list[str] = []
