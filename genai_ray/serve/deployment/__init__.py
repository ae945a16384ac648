"""What starts and stops the endpoint: the top room of ``serve``, the only one that knows all others.

In the order of a start:

* ``endpoint``: ``Endpoint`` starts Ray Serve with its HAProxy ingress, and stops both.
* ``ports``: which ports are free, which process has one, and what a killed endpoint left behind.
* ``nodes``: which proxy the nodes of a joined cluster start.
* ``haproxy``: the launcher that rewrites HAProxy's configuration and ties its life to Ray's.
* ``ingress``: the Ray Serve deployments: replicas that answer requests, and one that adds up their statistics.
* ``app``: the route table of all rooms, and the ASGI application of one replica.
"""

__all__: list[str] = []
