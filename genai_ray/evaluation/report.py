"""``EvaluationReport``: what models gained and cost, as a table and as plain values. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from genai_ray.display import describe_fields, format_count, to_html
from genai_ray.types import ModelTask

__all__ = ["Baseline", "EvaluationReport", "ModelEvaluation"]

_HEADER = ("task", "model", "PSNR", "gain", "SSIM", "VMAF", "frames/s", "MB")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What can be had without a model."""

    name: str
    """Such as ``bicubic``."""
    task: ModelTask
    """The task."""
    scale: int
    """Pixels of the result for one, along each axis."""
    psnr: float
    """As ``ModelEvaluation.psnr``."""
    ssim: float
    """As ``ModelEvaluation.ssim``."""
    vmaf: float | None
    """As ``ModelEvaluation.vmaf``."""


@describe_fields
@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """What one model made of frames whose true result is known, and what it took."""

    model_id: str
    """Its id, or its path."""
    task: ModelTask
    """What it does."""
    scale: int
    """Pixels of the result for one, along each axis."""
    size: tuple[int, int]
    """Width and height in pixels of the frames that went in."""
    frames: int
    """Results that were measured."""
    psnr: float | None
    """PSNR in dB of RGB, of the mean MSE of all frames; None for a task without a true result, as for the others."""
    ssim: float | None
    """SSIM of Wang et al. 2004, RGB, the mean of all frames."""
    vmaf: float | None
    """VMAF, model ``vmaf_v0.6.1neg``, of each frame as a still picture, the mean; None also without the extra."""
    baseline_psnr: float | None
    """PSNR without a model: bicubic, blended, noisy or dark."""
    frames_per_s: float
    """Results that a session of this machine makes in a second, without decoding and encoding."""
    memory_bytes: int
    """Bytes that the session added to its process."""

    @property
    def gain_db(self) -> float | None:
        """PSNR in dB over that without a model; below 0 if the model is worse; None if neither is a number."""
        if self.psnr is None or self.baseline_psnr is None or self.psnr == self.baseline_psnr == math.inf:
            return None
        return self.psnr - self.baseline_psnr

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelEvaluation:
        """Read what ``to_dict`` wrote.

        Args:
            values: The fields by name.

        Returns:
            The evaluation.

        Raises:
            KeyError: If a field is missing.
            ValueError: If a value is of another kind, or no number of its field.
        """
        known = {field.name: values[field.name] for field in fields(ModelEvaluation)}
        for name in ("psnr", "ssim", "vmaf", "baseline_psnr"):
            known[name] = None if known[name] is None else float(known[name])
        width, height = known["size"]
        known |= {"task": ModelTask(known["task"]), "size": (int(width), int(height))}
        known |= {name: int(known[name]) for name in ("scale", "frames", "memory_bytes")}
        known["frames_per_s"] = float(known["frames_per_s"])
        numbers = [value for value in known.values() if isinstance(value, float)]
        if known["frames_per_s"] <= 0 or any(map(math.isnan, numbers)):
            raise ValueError(f"no measurement of {known['model_id']}")
        return ModelEvaluation(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON.

        Returns:
            The fields and ``gain_db`` by name; an infinite number is the text ``"inf"`` or ``"-inf"``.
        """
        return _plain(self) | {"gain_db": _plain_value(self.gain_db)}


@describe_fields
@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Several models on the same true frames, on this machine."""

    reference: str
    """Which frames."""
    frames: int
    """Results of each model that were measured."""
    date: str
    """When, as ``2026-11-30``."""
    device: str
    """Name of the processor or GPU."""
    versions: tuple[str, ...]
    """Of this package and of the libraries that computed."""
    models: tuple[ModelEvaluation, ...]
    """One entry for each model."""
    baselines: tuple[Baseline, ...]
    """What can be had without a model, for each task and scale of these models."""
    left_out: dict[str, str]
    """Why a model of the catalog was not measured, by its id."""
    failed: dict[str, str]
    """The error of a model that does not run, by its id."""
    without_vmaf: str
    """Why VMAF was not measured; empty if it was."""
    elapsed_s: float
    """Seconds that it took."""

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns of ``rows``."""
        return _HEADER

    def rows(self) -> list[tuple[str, ...]]:
        """Return all numbers as text: for each task and scale the models and what can be had without one, best first.

        Returns:
            Task, name, PSNR in dB, gain in dB, SSIM, VMAF, frames/s and MB; empty for what was not measured.
        """
        lines = [(_rank(one), _cells(one, one.name)) for one in self.baselines]
        for model in self.models:
            gain = "" if model.gain_db is None else f"{model.gain_db:+.2f}"
            cost = (f"{model.frames_per_s:.3g}", f"{model.memory_bytes / 1e6:.0f}")
            lines.append((_rank(model), _cells(model, model.model_id, gain, *cost)))
        return [cells for _, cells in sorted(lines)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON.

        Returns:
            The fields by name; an infinite number is the text ``"inf"`` or ``"-inf"``.
        """
        return _plain(self) | {
            "versions": list(self.versions),
            "models": [model.to_dict() for model in self.models],
            "baselines": [_plain(baseline) for baseline in self.baselines],
        }

    def __repr__(self) -> str:
        models, frames = format_count(len(self.models), "model"), format_count(self.frames, "frame")
        return f"EvaluationReport({models}, {frames} of {self.reference})"

    def _repr_html_(self) -> str:
        return to_html(f"{self!r}, {self.device}, {self.date}", self.rows(), self.header)


def _rank(one: Baseline | ModelEvaluation) -> tuple[int, int, float]:
    return list(ModelTask).index(one.task), one.scale, math.inf if one.psnr is None else -one.psnr


def _cells(
    one: Baseline | ModelEvaluation, name: str, gain: str = "", speed: str = "", memory: str = ""
) -> tuple[str, ...]:
    task = f"{one.task} x{one.scale}" if one.task is ModelTask.UPSCALING else one.task.value
    return task, name, _digits(one.psnr, 2), gain, _digits(one.ssim, 4), _digits(one.vmaf, 1), speed, memory


def _digits(value: float | None, count: int) -> str:
    return "" if value is None else f"{value:.{count}f}"


def _plain(record: Any) -> dict[str, Any]:
    return {field.name: _plain_value(getattr(record, field.name)) for field in fields(record)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, ModelTask):
        return value.value
    return list(value) if isinstance(value, tuple) else value
