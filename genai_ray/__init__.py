"""genai_ray: an inference engine for AI video-frame enhancement on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genai_ray import errors
from genai_ray.types import InferenceResult, ModelBackend, ModelPrecision, ModelTask, ValidationResult

if TYPE_CHECKING:
    from genai_ray.batch import BatchInference
    from genai_ray.catalog import ModelCatalog, ModelSpec
    from genai_ray.cluster import CacheOptions, CacheStatus, Lease, ModelCache, SessionRequest
    from genai_ray.datasets import FrameSelection, read_videos
    from genai_ray.enhance import Background, EnhanceOptions, EnhanceReport, enhance_videos, forecast_videos
    from genai_ray.quality import Comparison, QualityValidator, compare, ms_ssim, psnr, ssim, vmaf
    from genai_ray.session import InferenceSession, SessionLimits
    from genai_ray.video import Encoding, VideoReader

__all__ = [
    "Background",
    "BatchInference",
    "CacheOptions",
    "CacheStatus",
    "Comparison",
    "Encoding",
    "EnhanceOptions",
    "EnhanceReport",
    "FrameSelection",
    "InferenceResult",
    "InferenceSession",
    "Lease",
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
    "VideoReader",
    "__version__",
    "compare",
    "enhance_videos",
    "errors",
    "forecast_videos",
    "ms_ssim",
    "psnr",
    "read_videos",
    "ssim",
    "vmaf",
]

__version__ = "0.1.0"

_HOMES = {
    "Background": "genai_ray.enhance",
    "BatchInference": "genai_ray.batch",
    "CacheOptions": "genai_ray.cluster",
    "CacheStatus": "genai_ray.cluster",
    "Comparison": "genai_ray.quality",
    "EnhanceOptions": "genai_ray.enhance",
    "EnhanceReport": "genai_ray.enhance",
    "Encoding": "genai_ray.video",
    "FrameSelection": "genai_ray.datasets",
    "InferenceSession": "genai_ray.session",
    "Lease": "genai_ray.cluster",
    "ModelCache": "genai_ray.cluster",
    "ModelCatalog": "genai_ray.catalog",
    "ModelSpec": "genai_ray.catalog",
    "QualityValidator": "genai_ray.quality",
    "SessionLimits": "genai_ray.session",
    "SessionRequest": "genai_ray.cluster",
    "VideoReader": "genai_ray.video",
    "compare": "genai_ray.quality",
    "enhance_videos": "genai_ray.enhance",
    "forecast_videos": "genai_ray.enhance",
    "ms_ssim": "genai_ray.quality",
    "psnr": "genai_ray.quality",
    "read_videos": "genai_ray.datasets",
    "ssim": "genai_ray.quality",
    "vmaf": "genai_ray.quality",
}
"""Where the names live whose libraries are loaded when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
