"""What callers hold. Everything here is picklable or cheap, and works from any driver, task, actor or Serve replica.

* ``cache``: ``ModelCache``. ``connection``: calls of the cache actor that survive its restart.
* ``requests``: what a client tells the cache about a model before it is loaded.
* ``session``: ``CachedSession`` and ``PendingCall``: calls of a session that survive its eviction and its death. ``routes``: which replica is called.
* ``lease``: ``Lease``: models that stay loaded until they are given back.
"""

__all__: list[str] = []
