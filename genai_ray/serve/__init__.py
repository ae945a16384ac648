"""The endpoint: the Open Inference Protocol v2 and pages for people, in front of the cluster's one ``ModelCache``.

Rooms, lowest first; each imports only from those before it, and its ``__init__`` is its map:

* ``engine``: what the endpoint does, whatever protocol asks.
* ``http``: what every HTTP route shares.
* ``oip``: the protocol, over REST and over gRPC.
* ``web``: pictures, videos and the page for people.
* ``deployment``: starts and ends the endpoint and its replicas.

The path of a request, function by function, is in ``docs/architecture.md``.
"""

from genai_ray.serve.engine.inference import InferRequest, InferResponse, Tensor, TensorMetadata
from genai_ray.serve.oip.requests import decode_request, encode_response

__all__ = ["InferRequest", "InferResponse", "Tensor", "TensorMetadata", "decode_request", "encode_response"]
