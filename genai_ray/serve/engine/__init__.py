"""What the endpoint does, whatever protocol asks for it. No module here knows HTTP or gRPC.

In the order of a request:

* ``inference``: tensors, requests and responses as values.
* ``engine``: ``Engine``: infer, load, unload, status.
* ``limits``: how many requests and bytes one replica takes.
* ``finder``: from a name in a request to the model's file and its session; ``repository``: the names, versions and options on offer.
* ``model_metadata``: tensors of a model and the check of a request; ``metadata_cache``: that, read once per file.
* ``batching``: waiting requests of one model go to its session in one call.
* ``preload``: models that are loaded before anybody asks. ``statistics``: what was computed. ``error_text``: error texts without local folders.
"""

__all__: list[str] = []
