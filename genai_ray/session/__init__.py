"""One model on one device: ``InferenceSession``; works without Ray."""

from genai_ray.session.memory import anonymous_bytes
from genai_ray.session.session import InferenceSession
from genai_ray.session.sizing import SessionLimits, describe_seams, predict_bytes
from genai_ray.session.warming import Shapes

__all__ = ["InferenceSession", "SessionLimits", "Shapes", "anonymous_bytes", "describe_seams", "predict_bytes"]
