"""The endpoint: the Open Inference Protocol v2 over HTTP, in front of the cluster's one ``ModelCache``."""

from genai_ray.serve.engine.inference import InferRequest, InferResponse, Tensor, TensorMetadata
from genai_ray.serve.oip.requests import decode_request, encode_response

__all__ = ["InferRequest", "InferResponse", "Tensor", "TensorMetadata", "decode_request", "encode_response"]
