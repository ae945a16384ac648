"""What every HTTP route shares.

In the order of a request:

* ``middleware``: Host, Origin, token, access log, counts; sends responses in pieces.
* ``routes``: ``Operation``, one row of the route table, and the OpenAPI document made from these rows.
* ``queries``: queries as pydantic models. ``bodies``: bodies and uploaded files, within their limits.
* ``errors``: the HTTP status and the body of each error.
* ``metrics``: figures for Prometheus.
"""

__all__: list[str] = []
