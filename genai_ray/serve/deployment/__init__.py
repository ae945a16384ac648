"""What starts the endpoint and ends it: the top of ``serve``, the only room that knows all others.

In the order of a start:

* ``endpoint``: ``Endpoint`` starts Ray Serve with its HAProxy ingress, and ends both.
* ``ports``: which ports are free, who has one, and what a killed endpoint left behind.
* ``haproxy``: the launcher that rewrites HAProxy's configuration and ties its life to Ray's.
* ``ingress``: the Ray Serve deployment: replicas that answer requests, and one that adds up their statistics.
"""

__all__: list[str] = []
