"""Converts a model to another precision, and refuses it if its results change too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.backends import open_runtime
from genai_ray.backends.onnx_runtime import to_fp16
from genai_ray.catalog import ModelSpec
from genai_ray.errors import ConfigError, InferenceError, ModelLoadError
from genai_ray.graph import Graph, fuse_frames
from genai_ray.types import ModelPrecision

__all__ = ["convert_model"]

MIN_AGREEMENT_DB = 40.0
"""PSNR that a converted model must reach against FP32 on the calibration frames."""

_CALIBRATION_SIZE_PX = 96


def convert_model(model: Graph, spec: ModelSpec, precision: ModelPrecision) -> tuple[Graph, float | None]:
    """Convert a model to a precision, and measure how well it still agrees with FP32.

    Args:
        model: The model of the file, in FP32.
        spec: Its spec.
        precision: The number format.

    Returns:
        The model to load, and its agreement with FP32 in dB: PSNR of the outputs for calibration frames on the CPU,
        ``inf`` for equal outputs, None if nothing was converted or measured.

    Raises:
        ConfigError: If the precision is neither fp32 nor fp16.
        ModelLoadError: If the model cannot be converted, or agrees with FP32 by less than 40 dB.
    """
    if precision is ModelPrecision.FP32:
        return model, None
    if precision is not ModelPrecision.FP16:
        raise ConfigError(f"precision {precision.value!r}", "fp32 or fp16")
    converted = to_fp16(model)
    if not spec.is_image_model:
        return converted, None
    reference = _run_calibration(model, spec)
    try:
        candidate = _run_calibration(converted, spec)
    except (ModelLoadError, InferenceError) as exc:
        raise ModelLoadError(
            f"{spec.model_id} cannot be converted to {precision.value}: {exc.got}", do="Use fp32."
        ) from exc
    mse = float(np.mean((reference.astype(np.float64) - candidate) ** 2))
    agreement_db = float("-inf")  # the converted model gives no numbers
    if np.isfinite(mse):
        agreement_db = float("inf") if mse == 0 else 10 * float(np.log10(1 / mse))
    if agreement_db < MIN_AGREEMENT_DB:
        raise ModelLoadError(
            f"{spec.model_id} in {precision.value} agrees with fp32 by only {agreement_db:.1f} dB",
            f"at least {MIN_AGREEMENT_DB:.0f} dB",
            "Use fp32.",
        )
    return converted, agreement_db


def _run_calibration(model: Graph, spec: ModelSpec) -> npt.NDArray[np.float32]:
    runtime = open_runtime(fuse_frames(model, spec, np.float32).SerializeToString())
    try:
        frames = calibration_frames(_CALIBRATION_SIZE_PX)
        feeds: dict[str, npt.NDArray[Any]] = {"frames": frames[:1]}
        if len(spec.inputs) == 2:
            feeds = {"frames0": frames[:1], "frames1": frames[1:]}
        feeds |= {name: np.full((), param.default, np.float32) for name, param in spec.params.items()}
        return runtime.run(feeds)["output"]
    finally:
        runtime.close()


def calibration_frames(size_px: int) -> npt.NDArray[np.float32]:
    """Make two neighbouring frames with smooth ramps, edges and texture; every call makes the same frames.

    Args:
        size_px: Height and width.

    Returns:
        Frames (2, size_px, size_px, 3), float32 in [0, 1]; the second is the first moved by two pixels.
    """
    y, x = np.mgrid[0:size_px, 0 : size_px + 2].astype(np.float32)
    waves = np.stack([np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)], axis=-1)
    edges = (((x // 12) + (y // 9)) % 2)[..., None]
    noise = np.random.default_rng(7).random((size_px, size_px + 2, 3), dtype=np.float32)
    picture = np.clip(0.45 + 0.25 * waves + 0.2 * edges + 0.1 * (noise - 0.5), 0, 1).astype(np.float32)
    return np.ascontiguousarray(np.stack([picture[:, 2:], picture[:, :-2]]))
