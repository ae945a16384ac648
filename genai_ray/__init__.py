"""genai_ray: an inference engine for AI video-frame enhancement on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genai_ray import errors
from genai_ray.types import InferenceResult, ModelBackend, ModelPrecision, ModelTask, ValidationResult

if TYPE_CHECKING:
    from genai_ray.batch import BatchInference
    from genai_ray.catalog import ModelCatalog, ModelSpec
    from genai_ray.cluster import ModelCache
    from genai_ray.enhance import EnhanceOptions, EnhanceReport, enhance_videos
    from genai_ray.quality import QualityValidator
    from genai_ray.session import InferenceSession, SessionLimits

__all__ = [
    "BatchInference",
    "EnhanceOptions",
    "EnhanceReport",
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
    "ValidationResult",
    "__version__",
    "enhance_videos",
    "errors",
]

__version__ = "0.1.0"

_HOMES = {
    "BatchInference": "genai_ray.batch",
    "EnhanceOptions": "genai_ray.enhance",
    "EnhanceReport": "genai_ray.enhance",
    "InferenceSession": "genai_ray.session",
    "ModelCache": "genai_ray.cluster",
    "ModelCatalog": "genai_ray.catalog",
    "ModelSpec": "genai_ray.catalog",
    "QualityValidator": "genai_ray.quality",
    "SessionLimits": "genai_ray.session",
    "enhance_videos": "genai_ray.enhance",
}
"""Where the names live whose libraries are loaded when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
