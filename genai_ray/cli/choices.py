"""What the options of the commands share.

This version has fewer backends and precisions than the package's enums name.
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial

import typer

from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["Backend", "Precision", "option"]

option = partial(typer.Option, show_default=False)
"""An option whose default, None, is explained in its help."""


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
