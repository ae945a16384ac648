"""What the endpoint does, whatever protocol asks. No module here knows HTTP or gRPC.

In the order of a request:

* ``inference``: requests, responses and their tensors, as values.
* ``engine``: ``Engine`` finds a model, infers, loads, unloads, and reports states.
* ``repository``: names, versions and options of the models on offer.
* ``model_metadata``: what a model's file says, and the check of a request against it.
* ``limits``: how many requests and bytes one replica takes.
* ``batching``: waiting requests of one model go to its session in one call.
* ``statistics``: what was computed. ``preload``: models that are loaded before a request asks for them.
"""

__all__: list[str] = []
