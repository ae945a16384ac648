"""What every HTTP route shares.

In the order of a request:

* ``middleware``: Host, Origin, token, access log, counts; ``origins`` decides about Host and Origin.
* ``routes``: ``Operation``, one row of the route table. ``openapi``: the document made from these rows.
* ``bodies``: queries, bodies and uploaded files, within their limits.
* ``sending``: responses, counted until they are sent.
* ``metrics``: figures for Prometheus.
"""

__all__: list[str] = []
