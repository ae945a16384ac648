"""Measures one model, in a process of its own; and what can be had without a model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.confine import call_apart
from genai_ray.evaluation.truth import Truth, methods_without_model
from genai_ray.inspection import find_model
from genai_ray.quality import psnr, ssim, vmaf
from genai_ray.quality.scores import pool
from genai_ray.quality.validator import VALIDATOR_VMAF_MODEL
from genai_ray.session import InferenceSession, SessionLimits
from genai_ray.tune import time_infer
from genai_ray.types import ModelTask

__all__ = ["VMAF_MODEL", "measure_apart", "measure_model", "measure_without_model"]

VMAF_MODEL = VALIDATOR_VMAF_MODEL

REPEAT_WITHIN_S = 2.0
"""A model is called with the same frames until this time has passed; the fastest call counts. A slow model is called
once."""

WITHIN_S = 600.0
"""Most seconds for the process of a model, with up to ten frames."""

WITHIN_S_PER_FRAME = 60.0
"""Seconds that more frames may take, each."""


class _Scores:
    """The metrics of frames, one after the other."""

    def __init__(self, has_vmaf: bool) -> None:
        names = ("psnr", "ssim", "vmaf") if has_vmaf else ("psnr", "ssim")
        self._values: dict[str, list[float]] = {name: [] for name in names}

    def add(self, truths: npt.NDArray[Any] | None, results: npt.NDArray[Any]) -> None:
        """Measure results, if it is known what they should be."""
        for truth, result in zip(truths, results, strict=True) if truths is not None else ():
            self._values["psnr"].append(psnr(truth, result))
            self._values["ssim"].append(ssim(truth, result))
            if "vmaf" in self._values:  # frames are far apart: each is measured as a still picture
                self._values["vmaf"].append(vmaf(truth, result, model=VMAF_MODEL))

    def pooled(self) -> dict[str, float | None]:
        """Return one number for all frames, by metric; None for what was not measured."""
        if not self._values["psnr"]:
            return dict.fromkeys(("psnr", "ssim", "vmaf"))
        return {
            "psnr": pool("psnr", np.array(self._values["psnr"]))["psnr_of_mean_mse"],
            "ssim": statistics.fmean(self._values["ssim"]),
            "vmaf": statistics.fmean(self._values["vmaf"]) if "vmaf" in self._values else None,
        }


def measure_apart(model: str, truth: Truth, has_vmaf: bool) -> Mapping[str, Any]:
    """Measure a model in a process of its own, whose memory is that of this model alone.

    Args:
        model: As ``measure_model``.
        truth: Which frames.
        has_vmaf: As ``measure_model``.

    Returns:
        As ``measure_model``.

    Raises:
        GenAIRayError: As ``measure_model``, or if the process ends or takes too long.
    """
    within_s = max(WITHIN_S, WITHIN_S_PER_FRAME * truth.frames)
    found: Mapping[str, Any] = call_apart(
        measure_model, model, truth.reference, truth.frames, has_vmaf, within_s=within_s
    )
    return found


def measure_model(model: str, reference: str | None, frames: int, has_vmaf: bool) -> dict[str, Any]:
    """Run a model on true frames that were made worse.

    Args:
        model: Id, alias or path.
        reference: As ``Truth.reference``.
        frames: As ``Truth.frames``.
        has_vmaf: Whether to measure VMAF.

    Returns:
        ``psnr``, ``ssim`` and ``vmaf``, None if not measured; ``size``, (width, height) of the frames that went in;
        ``frames_per_s`` and ``memory_bytes`` of the session.

    Raises:
        GenAIRayError: What a session or a metric raises, or if a frame does not decode.
    """
    spec, _ = find_model(model)
    batches = Truth(reference, frames).batches(spec.task, spec.scale)
    first = next(batches)
    height, width = first.inputs.shape[1:3]
    scores = _Scores(has_vmaf)
    with InferenceSession(model, limits=SessionLimits(max_frame=(height, width))) as session:
        results, frames_per_s = _time(session, first.inputs)
        memory_bytes = session.memory_bytes  # before the metrics take some
        scores.add(first.truths, results)
        for batch in batches:
            scores.add(batch.truths, session.infer(batch.inputs))
    facts = {"size": (width, height), "frames_per_s": frames_per_s, "memory_bytes": memory_bytes}
    return scores.pooled() | facts


def _time(session: InferenceSession, inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """Return the results of one call, and how many results the fastest of several calls made in a second."""
    results, seconds = time_infer(session, inputs)
    taken_s = [seconds]
    while sum(taken_s) < REPEAT_WITHIN_S:
        taken_s.append(time_infer(session, inputs)[1])
    return results, len(results) / min(taken_s)


def measure_without_model(task: ModelTask, scale: int, truth: Truth, has_vmaf: bool) -> dict[str, dict[str, Any]]:
    """Measure what can be had without a model.

    Args:
        task: The task.
        scale: Pixels of the result for one, along each axis.
        truth: Which frames.
        has_vmaf: Whether to measure VMAF.

    Returns:
        ``psnr``, ``ssim`` and ``vmaf`` by the method's name, as ``measure_model``.

    Raises:
        QualityError: If the frames are too small for a metric.
        VideoError: If a frame does not decode.
    """
    methods = methods_without_model(task, scale)
    scores = {name: _Scores(has_vmaf) for name in methods}
    for batch in truth.batches(task, scale) if methods else ():
        for name, method in methods.items():
            scores[name].add(batch.truths, method(batch.inputs))
    return {name: dict(one.pooled()) for name, one in scores.items()}
