"""genai_ray: an inference engine for AI video-frame enhancement on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genai_ray import errors
from genai_ray.types import InferenceResult, ModelBackend, ModelPrecision, ModelTask, ValidationResult

if TYPE_CHECKING:
    from genai_ray.batch import BatchInference
    from genai_ray.catalog import ModelCatalog, ModelSpec
    from genai_ray.cluster import CacheOptions, ModelCache, SessionRequest
    from genai_ray.datasets import FrameSelection, read_videos
    from genai_ray.enhance import EnhanceOptions, EnhanceReport, enhance_videos
    from genai_ray.quality import QualityValidator
    from genai_ray.session import InferenceSession, SessionLimits

__all__ = [
    "BatchInference",
    "CacheOptions",
    "EnhanceOptions",
    "EnhanceReport",
    "FrameSelection",
    "InferenceResult",
    "InferenceSession",
    "ModelBackend",
    "ModelCache",
    "ModelCatalog",
    "ModelPrecision",
    "ModelSpec",
    "ModelTask",
    "QualityValidator",
    "SessionLimits",
    "SessionRequest",
    "ValidationResult",
    "__version__",
    "enhance_videos",
    "errors",
    "read_videos",
]

__version__ = "0.1.0"

_HOMES = {
    "BatchInference": "genai_ray.batch",
    "CacheOptions": "genai_ray.cluster",
    "EnhanceOptions": "genai_ray.enhance",
    "EnhanceReport": "genai_ray.enhance",
    "FrameSelection": "genai_ray.datasets",
    "InferenceSession": "genai_ray.session",
    "ModelCache": "genai_ray.cluster",
    "ModelCatalog": "genai_ray.catalog",
    "ModelSpec": "genai_ray.catalog",
    "QualityValidator": "genai_ray.quality",
    "SessionLimits": "genai_ray.session",
    "SessionRequest": "genai_ray.cluster",
    "enhance_videos": "genai_ray.enhance",
    "read_videos": "genai_ray.datasets",
}
"""Where the names live whose libraries are loaded when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
