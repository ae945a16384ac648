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
    from genai_ray.enhance import (
        Background,
        EnhanceOptions,
        EnhanceReport,
        VerifyReport,
        enhance_pipe,
        enhance_videos,
        forecast_videos,
        split_video,
        verify_video,
    )
    from genai_ray.evaluation import EvaluationReport, evaluate_models
    from genai_ray.notebook import show
    from genai_ray.progress import show_progress
    from genai_ray.quality import Comparison, QualityReport, QualityValidator, compare, ms_ssim, psnr, ssim, vmaf
    from genai_ray.scenes import Scene, SceneList, build_edl, find_scenes
    from genai_ray.session import InferenceSession, SessionLimits
    from genai_ray.validate import validate_videos
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
    "EvaluationReport",
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
    "QualityReport",
    "QualityValidator",
    "Scene",
    "SceneList",
    "SessionLimits",
    "SessionRequest",
    "ValidationResult",
    "VerifyReport",
    "VideoReader",
    "__version__",
    "build_edl",
    "compare",
    "enhance_pipe",
    "enhance_videos",
    "errors",
    "evaluate_models",
    "find_scenes",
    "forecast_videos",
    "ms_ssim",
    "psnr",
    "read_videos",
    "show",
    "show_progress",
    "split_video",
    "ssim",
    "validate_videos",
    "verify_video",
    "vmaf",
]

__version__ = "0.1.0"

_HOMES = {
    "genai_ray.batch": ("BatchInference",),
    "genai_ray.catalog": ("ModelCatalog", "ModelSpec"),
    "genai_ray.cluster": ("CacheOptions", "CacheStatus", "Lease", "ModelCache", "SessionRequest"),
    "genai_ray.datasets": ("FrameSelection", "read_videos"),
    "genai_ray.enhance": (
        "Background",
        "EnhanceOptions",
        "EnhanceReport",
        "VerifyReport",
        "enhance_pipe",
        "enhance_videos",
        "forecast_videos",
        "split_video",
        "verify_video",
    ),
    "genai_ray.evaluation": ("EvaluationReport", "evaluate_models"),
    "genai_ray.notebook": ("show",),
    "genai_ray.progress": ("show_progress",),
    "genai_ray.quality": (
        "Comparison",
        "QualityReport",
        "QualityValidator",
        "compare",
        "ms_ssim",
        "psnr",
        "ssim",
        "vmaf",
    ),
    "genai_ray.scenes": ("Scene", "SceneList", "build_edl", "find_scenes"),
    "genai_ray.session": ("InferenceSession", "SessionLimits"),
    "genai_ray.validate": ("validate_videos",),
    "genai_ray.video": ("Encoding", "VideoReader"),
}
"""The names whose libraries are loaded when they are first used."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
