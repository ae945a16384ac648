"""The words of options that this version can honour; the package's enums also name what later versions will."""

from __future__ import annotations

from enum import StrEnum

from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["Backend", "Precision"]


class Backend(StrEnum):
    """Runtimes."""

    ONNX = ModelBackend.ONNX
    TENSORRT = ModelBackend.TENSORRT
    COREML = ModelBackend.COREML
    DIRECTML = ModelBackend.DIRECTML


class Precision(StrEnum):
    """Number formats."""

    FP32 = ModelPrecision.FP32
    FP16 = ModelPrecision.FP16
