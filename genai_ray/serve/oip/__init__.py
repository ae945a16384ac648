"""The Open Inference Protocol v2, over REST and over gRPC. It translates; ``engine`` computes.

In the order of a request:

* ``rest``: the HTTP routes of the protocol. ``requests``: JSON and binary bodies to requests, and responses back.
* ``grpc``: the gRPC methods. ``messages``: protobuf messages to requests, and responses back.
* ``inference.proto``, ``health.proto``: the protobuf messages; ``inference.binpb``: their compiled descriptors.
* ``grpc_health``: who may call over gRPC, health and reflection.
* ``tensors``: numpy arrays as JSON, as bytes and as lists of gRPC.
* ``metadata``: what the server says about itself, its models and its statistics.
* ``schemas``: the JSON Schemas of all bodies.
"""

__all__: list[str] = []
