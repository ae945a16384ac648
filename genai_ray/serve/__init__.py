"""The endpoint: the Open Inference Protocol v2 over HTTP, in front of the cluster's one ``ModelCache``."""

from genai_ray.serve.engine.tensors import Tensor, TensorFacts
from genai_ray.serve.oip.requests import InferRequest, InferResponse, decode_request, encode_response

__all__ = ["InferRequest", "InferResponse", "Tensor", "TensorFacts", "decode_request", "encode_response"]
