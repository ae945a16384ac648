"""The Open Inference Protocol v2, over REST and over gRPC. It translates; ``engine`` computes.

In the order of a request:

* ``rest``: the HTTP routes of the protocol. ``grpc``: the gRPC methods; ``grpc_health``: health and reflection; ``messages``: the protobuf messages.
* ``requests``: JSON and binary bodies to requests, and responses back. ``tensors``: numpy as JSON, as bytes and as lists.
* ``metadata``: what the server says of itself, its models and its statistics. ``schemas``: the JSON Schemas of all bodies.
"""

__all__: list[str] = []
