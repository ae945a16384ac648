"""The endpoint: the Open Inference Protocol v2 over HTTP, in front of the cluster's one ``ModelCache``."""

from genai_ray.serve.protocol import InferRequest, InferResponse, decode_request, encode_response
from genai_ray.serve.tensors import Tensor, TensorFacts

__all__ = ["InferRequest", "InferResponse", "Tensor", "TensorFacts", "decode_request", "encode_response"]
