"""Runtimes: a real session with a packaged model on each, and its result beside the reference backend's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.backends.gpu import count_gpus
from genai_ray.doctor.findings import Finding, State
from genai_ray.doctor.machine import UNTESTED
from genai_ray.errors import BackendUnavailableError, GenAIRayError
from genai_ray.quality import psnr
from genai_ray.session import InferenceSession
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["MODEL", "check_runtimes"]

TOPIC = "runtimes"

MODEL = "websr-x2-s"
"""The packaged model that is run: 5 KB."""

LEAST_DB = 40.0
"""PSNR from the reference backend that a session must reach in every precision."""


@dataclass(frozen=True, slots=True)
class _Runtime:
    """One way to compute."""

    name: str
    backend: ModelBackend
    precision: ModelPrecision
    device: str
    platforms: tuple[str, ...] = ()
    """Systems that can have it, by Python's names; empty for all."""


_REFERENCE = _Runtime("ONNX Runtime, CPU", ModelBackend.ONNX, ModelPrecision.FP32, "cpu")

_RUNTIMES = (
    _Runtime("ONNX Runtime, CUDA", ModelBackend.ONNX, ModelPrecision.FP32, "cuda", ("linux", "win32")),
    _Runtime("ONNX Runtime, TensorRT", ModelBackend.TENSORRT, ModelPrecision.FP32, "cuda", ("linux", "win32")),
    _Runtime("ONNX Runtime, CoreML", ModelBackend.COREML, ModelPrecision.FP32, "auto", ("darwin",)),
    _Runtime("ONNX Runtime, DirectML", ModelBackend.DIRECTML, ModelPrecision.FP32, "auto", ("win32",)),
    *(
        _Runtime(f"OpenVINO, {precision}", ModelBackend.OPENVINO, precision, "cpu")
        for precision in (ModelPrecision.FP32, ModelPrecision.BF16, ModelPrecision.FP16)
    ),
)


def check_runtimes() -> Iterator[Finding]:
    """Run a frame through a session of every runtime, provider and precision that this system could have.

    Yields:
        Which of them compute, and why others do not.
    """
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    try:
        reference = _run(_REFERENCE, frame)
    except GenAIRayError as exc:
        yield Finding(TOPIC, _REFERENCE.name, State.BROKEN, exc.got, exc.do)
        return
    yield Finding(TOPIC, _REFERENCE.name, State.OK, f"ran {MODEL}")
    has_gpu = bool(count_gpus())
    for runtime in _RUNTIMES:
        if runtime.platforms and sys.platform not in runtime.platforms:
            continue
        if runtime.device == "cuda" and not has_gpu:
            yield Finding(TOPIC, runtime.name, State.ABSENT, f"needs an NVIDIA GPU; {UNTESTED}")
        else:
            yield _check(runtime, frame, reference)


def _check(runtime: _Runtime, frame: npt.NDArray[np.uint8], reference: npt.NDArray[Any]) -> Finding:
    note = f"; {UNTESTED}" if runtime.device == "cuda" else ""
    try:
        agreement_db = psnr(reference, _run(runtime, frame))
    except BackendUnavailableError as exc:
        # A GPU that cannot compute is worth a warning; a package or an instruction set that is not here is not.
        state = State.WARNING if runtime.device == "cuda" else State.ABSENT
        has = f"; it has {exc.allowed}" if exc.allowed else ""
        return Finding(TOPIC, runtime.name, state, f"not available: {exc.got}{has}{note}", exc.do)
    except GenAIRayError as exc:
        return Finding(TOPIC, runtime.name, State.WARNING, f"{exc.got}{note}", exc.do)
    if agreement_db < LEAST_DB:
        detail = f"{MODEL} differs from ONNX Runtime on the CPU: {agreement_db:.1f} dB, less than {LEAST_DB:g}{note}"
        return Finding(TOPIC, runtime.name, State.WARNING, detail, "Use --backend onnx --device cpu.")
    same = "the same frame as" if agreement_db == np.inf else f"{agreement_db:.0f} dB from"
    return Finding(TOPIC, runtime.name, State.OK, f"ran {MODEL}: {same} ONNX Runtime on the CPU{note}")


def _run(runtime: _Runtime, frame: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    with InferenceSession(
        MODEL, backend=runtime.backend, precision=runtime.precision, device=runtime.device, threads=1
    ) as session:
        return session.infer(frame)
