"""One model on one device: ``InferenceSession``; works without Ray."""

from genai_ray.session.memory import anonymous_bytes
from genai_ray.session.session import InferenceSession, SessionLimits

__all__ = ["InferenceSession", "SessionLimits", "anonymous_bytes"]
