"""Compares a model in another precision or runtime with FP32 in ONNX Runtime, and refuses it if it differs too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.backends import RuntimeOptions, open_runtime
from genai_ray.catalog import ModelSpec
from genai_ray.errors import InferenceError, InvalidInputError, ModelLoadError
from genai_ray.graph import Graph, fuse_frames, is_quantized
from genai_ray.session.process import release_freed_memory
from genai_ray.session.sizing import fixed_tile, padded_size
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["calibration_frames", "measure_agreement"]

MIN_AGREEMENT_DB = 40.0
"""PSNR that a model in another precision must reach against FP32 on the calibration frames."""
MIN_FP32_DB = 80.0
"""PSNR that FP32 in another runtime must reach: the catalog's models reach 128 dB or more, in BF16 at most 72. A model
that was quantised to INT8 is rounded at other places there: it must reach the other limit."""

_CALIBRATION_SIZE_PX = 96


def measure_agreement(model: Graph, converted: Graph, spec: ModelSpec, options: RuntimeOptions) -> float:
    """Measure how well a model agrees with FP32 in ONNX Runtime on calibration frames, on the CPU.

    Args:
        model: The image model of the file, in FP32.
        converted: The model to load: the same, or with weights in another precision.
        spec: Its spec.
        options: How it will be loaded; OpenVINO computes in OpenVINO, other backends in ONNX Runtime.

    Returns:
        PSNR of the outputs in dB, ``inf`` for equal outputs.

    Raises:
        ModelLoadError: If it does not run, or agrees by less than 40 dB, or 80 dB in FP32 without INT8.
        BackendUnavailableError: If the runtime or precision is not available.
    """
    precision = options.precision
    reference = _run_calibration(model, spec, RuntimeOptions(folder=options.folder))
    candidate_options = RuntimeOptions(folder=options.folder)
    if options.backend is ModelBackend.OPENVINO:
        candidate_options = replace(options, num_runs=1, may_compile=None)
    way = f"{spec.model_id} in {precision.value}"
    do = "Use fp32."
    if options.backend is ModelBackend.OPENVINO:
        way += " on OpenVINO"
        do = "Use backend onnx." if precision is ModelPrecision.FP32 else "Use fp32, or backend onnx."
    try:
        candidate = _run_calibration(converted, spec, candidate_options)
    except (ModelLoadError, InferenceError, InvalidInputError) as exc:
        raise ModelLoadError(f"{way} does not run: {exc.got}", do=do) from exc
    release_freed_memory()
    mse = float(np.mean((reference.astype(np.float64) - candidate) ** 2))
    agreement_db = float("-inf")  # it gives no numbers
    if np.isfinite(mse):
        agreement_db = float("inf") if mse == 0 else 10 * float(np.log10(1 / mse))
    is_exact = precision is ModelPrecision.FP32 and not is_quantized(model)
    least_db = MIN_FP32_DB if is_exact else MIN_AGREEMENT_DB
    if agreement_db < least_db:
        raise ModelLoadError(f"{way} agrees with fp32 by only {agreement_db:.1f} dB", f"at least {least_db:.0f} dB", do)
    return agreement_db


def _run_calibration(model: Graph, spec: ModelSpec, options: RuntimeOptions) -> npt.NDArray[np.float32]:
    height, width = padded_size(spec, _CALIBRATION_SIZE_PX, _CALIBRATION_SIZE_PX)
    fixed = fixed_tile(spec)[0]
    height, width = fixed[0] or height, fixed[1] or width
    runtime = open_runtime(fuse_frames(model, spec, np.float32).SerializeToString(), options)
    try:
        frames = np.ascontiguousarray(calibration_frames(max(height, width))[:, :height, :width])
        feeds: dict[str, npt.NDArray[Any]] = {"frames": frames[:1]}
        if len(spec.inputs) == 2:
            feeds = {"frames0": frames[:1], "frames1": frames[1:]}
        feeds |= {name: param.to_array() for name, param in spec.params.items()}
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
