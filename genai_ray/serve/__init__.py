"""The endpoint: the Open Inference Protocol v2 and pages for people, in front of the cluster's one ``ModelCache``.

Rooms, lowest first; each imports only from those before it, and its ``__init__`` is its map:

* ``engine``: what the endpoint does, whatever protocol asks.
* ``http``: what every HTTP route shares.
* ``oip``: the protocol, over REST and over gRPC.
* ``web``: pictures, videos and the page for people.
* ``deployment``: starts and ends the endpoint and its replicas.

The path of ``POST /v2/models/NAME/infer``, from the socket to the session:

1. ``serve/http/middleware.py::Middleware.__call__``: Host, Origin and token.
2. ``serve/oip/rest.py::_Api.infer``: the handler of the route; the next steps up to 6 are its calls.
3. ``serve/http/bodies.py::read_body``: the body, within the limits of the replica.
4. ``serve/engine/engine.py::Engine.find``: the model, by its name.
5. ``serve/oip/requests.py::decode_request``: JSON and binary tensors to an ``InferRequest``.
6. ``serve/engine/engine.py::Engine.infer``: limits and deadline.
7. ``serve/engine/model_metadata.py::check_frame_request``: the request fits the model; ``check_feeds`` for raw tensors.
8. ``serve/engine/batching.py::SessionCalls.infer``: waiting requests go together; ``SessionCalls.run`` for raw tensors.
9. ``cluster/client/session.py::CachedSession.infer_async``: a call of the session's actor, repeated after an eviction.
10. ``cluster/session_actor.py::SessionActor.infer``: the same call in the process of the session.
11. ``session/session.py::InferenceSession.infer``: tiles, and runs of the model, those of online requests first.

Back: ``Engine.infer``, ``serve/oip/requests.py::encode_response``, ``serve/oip/rest.py::_Api.infer``, and
``serve/http/middleware.py::UntilSent.__call__``, which counts a response until it is sent.

Over gRPC, ``serve/oip/grpc.py::InferenceServicer.ModelInfer`` and ``serve/oip/messages.py::read_request`` stand for 1
to 5.
"""

from genai_ray.serve.engine.inference import InferRequest, InferResponse, Tensor, TensorMetadata
from genai_ray.serve.oip.requests import decode_request, encode_response

__all__ = ["InferRequest", "InferResponse", "Tensor", "TensorMetadata", "decode_request", "encode_response"]
