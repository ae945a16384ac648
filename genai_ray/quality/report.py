"""``QualityReport``: the numbers of a comparison of whole clips, pooled, as a table, JSON, CSV and figure.

``page`` makes the HTML. Nothing is measured here.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.display import new_figure
from genai_ray.errors import QualityError
from genai_ray.quality.libvmaf import MIN_VMAF_SIDE_PX, find_ffmpeg, options_of_model
from genai_ray.quality.structure import MIN_MS_SSIM_SIDE_PX, MIN_SSIM_SIDE_PX

__all__ = ["CandidateScores", "QualityReport", "WorstFrame", "check_metric", "define_metric", "pool"]

_MIN_SIDES_PX = {"ssim": MIN_SSIM_SIDE_PX, "ms_ssim": MIN_MS_SSIM_SIDE_PX, "vmaf": MIN_VMAF_SIDE_PX}

_DEFINITIONS = {
    "psnr": "PSNR, RGB, dB",
    "ssim": "SSIM, Wang 2004, Gaussian 11x11, RGB",
    "ms_ssim": "MS-SSIM, Wang 2003, five scales, RGB",
}

_POOLED = {
    "psnr_of_mean_mse": "of mean MSE",
    "mean": "mean of frames",
    "harmonic_mean": "harmonic mean",
    "min": "worst",
}
"""How tables call the numbers of ``pool``."""

_DIGITS = {"psnr": 2, "ssim": 4, "ms_ssim": 4, "vmaf": 2}


@dataclass(frozen=True, slots=True, eq=False)
class WorstFrame:
    """A frame to look at."""

    index: int
    """Position in the clip, from 0."""
    reference: npt.NDArray[Any]
    """(H, W, 3), RGB, uint8 or uint16, as it was compared."""
    candidate: npt.NDArray[Any]
    """The same shape and dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class CandidateScores:
    """What was measured of one candidate."""

    candidate: str
    """Path or URI."""
    size: tuple[int, int]
    """Width and height in pixels."""
    notes: tuple[str, ...]
    """How sizes were reconciled, and what was not compared."""
    per_frame: dict[str, npt.NDArray[np.float64]]
    """(N,) of each metric, by its name."""
    worst: tuple[WorstFrame, ...]
    """Frames of the lowest values of the first metric, at least 12 frames apart, the worst first."""

    @property
    def pooled(self) -> dict[str, dict[str, float]]:
        """One number for the clip, by metric and by how it was made; see ``pool``."""
        return {name: pool(name, values) for name, values in self.per_frame.items()}


@dataclass(frozen=True, slots=True, eq=False)
class QualityReport:
    """The comparison of one reference with its candidates."""

    reference: str
    """Path or URI."""
    size: tuple[int, int]
    """Width and height in pixels."""
    seconds: npt.NDArray[np.float64]
    """(N,): time of each frame, counted from the first one."""
    metrics: tuple[str, ...]
    """Names of the metrics."""
    vmaf_model: str | None
    """The model of VMAF; None if it was not measured."""
    candidates: tuple[CandidateScores, ...]
    """One for each candidate, in the order given."""
    elapsed_s: float
    """Seconds that it took."""

    @property
    def definitions(self) -> dict[str, str]:
        """The definition of each metric, by its name."""
        return {name: define_metric(name, self.vmaf_model) for name in self.metrics}

    def rows(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Return the pooled numbers as text, the candidates side by side.

        Returns:
            (definition of the metric, how it was pooled, number of each candidate) of each line.
        """
        lines = []
        pools = [scores.pooled for scores in self.candidates]
        for name, definition in self.definitions.items():
            for key in pools[0][name]:
                if key == "min_frame":
                    continue
                numbers = [f"{pooled[name][key]:.{_DIGITS[name]}f}" for pooled in pools]
                if key == "min":
                    frames = [pooled[name]["min_frame"] for pooled in pools]
                    numbers = [f"{number} (frame {frame})" for number, frame in zip(numbers, frames, strict=True)]
                lines.append((definition, _POOLED[key], tuple(numbers)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures, for JSON.

        Returns:
            Numbers, texts, lists and dicts; an infinite number is the text ``"inf"``.
        """
        return {
            "reference": self.reference,
            "size": list(self.size),
            "frames": len(self.seconds),
            "seconds": self.seconds.tolist(),
            "definitions": self.definitions,
            "elapsed_s": self.elapsed_s,
            "candidates": [
                {
                    "candidate": scores.candidate,
                    "size": list(scores.size),
                    "notes": list(scores.notes),
                    "pooled": {
                        name: {key: _plain(value) for key, value in pooled.items()}
                        for name, pooled in scores.pooled.items()
                    },
                    "per_frame": {name: list(map(_plain, values)) for name, values in scores.per_frame.items()},
                    "worst_frames": [frame.index for frame in scores.worst],
                }
                for scores in self.candidates
            ],
        }

    def to_csv(self) -> str:
        """Return the numbers of every frame.

        Returns:
            Lines of candidate, frame, seconds and each metric, with a header; an infinite number is ``inf``.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["candidate", "frame", "seconds", *self.metrics])
        for scores in self.candidates:
            columns = [scores.per_frame[name] for name in self.metrics]
            for index, seconds in enumerate(self.seconds):
                writer.writerow(
                    [scores.candidate, index, float(seconds), *(float(values[index]) for values in columns)]
                )
        return text.getvalue()

    def to_html(self) -> str:
        """Make one page without outside files: table, curves over time, worst frames beside the reference.

        Returns:
            The text of the HTML file.
        """
        from genai_ray.quality.page import build_page  # noqa: PLC0415  page needs this module

        return build_page(self)

    def plot(self) -> Any:
        """Draw every metric over time.

        Returns:
            A matplotlib ``Figure``, one panel for each metric; frames of infinite PSNR are left out of the curve.

        Raises:
            BackendUnavailableError: If matplotlib is not installed.
        """
        figure = new_figure(9.0, 2.6 * len(self.metrics))
        panels = figure.subplots(len(self.metrics), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, self.metrics, strict=True):
            for scores in self.candidates:
                values = scores.per_frame[name]
                style = {"marker": "."} if len(values) == 1 else {}
                panel.plot(self.seconds, np.where(np.isfinite(values), values, np.nan), label=scores.candidate, **style)
            panel.set_ylabel(self.definitions[name].split(",")[0])
            panel.grid(alpha=0.3)
        panels[0].legend()
        panels[-1].set_xlabel("seconds")
        return figure

    def _repr_html_(self) -> str:
        from genai_ray.quality.page import build_table  # noqa: PLC0415  page needs this module

        return build_table(self)

    def __repr__(self) -> str:
        return (
            f"QualityReport({len(self.seconds)} frames, {len(self.candidates)} candidates, {', '.join(self.metrics)})"
        )


def pool(metric: str, values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Make one number of those of all frames.

    Two meanings of the PSNR of a clip are in use, and differ: ``psnr_of_mean_mse`` is the PSNR of the mean of the
    frames' MSE, as FFmpeg's filter ``psnr`` reports it; ``mean`` is the mean of the frames' PSNR, as most papers report
    it. VMAF has its mean, and ``harmonic_mean``, ``1 / mean(1 / (v + 1)) - 1`` as in libvmaf.

    Args:
        metric: ``psnr``, ``ssim``, ``ms_ssim`` or ``vmaf``.
        values: (N,), one of each frame.

    Returns:
        The numbers by how they were made, also ``min``, the lowest of any frame, and ``min_frame``, its position (int).
    """
    pooled: dict[str, float] = {}
    if metric == "psnr":
        mean_mse = float(np.mean(10.0 ** (-values / 10)))  # of a range of 1
        pooled["psnr_of_mean_mse"] = math.inf if mean_mse == 0 else -10 * math.log10(mean_mse)
    pooled["mean"] = float(np.mean(values))
    if metric == "vmaf":
        pooled["harmonic_mean"] = float(1 / np.mean(1 / (values + 1)) - 1)
    return pooled | {"min": float(np.min(values)), "min_frame": int(np.argmin(values))}


def define_metric(metric: str, vmaf_model: str | None) -> str:
    """Return the definition of a metric in words.

    Args:
        metric: ``psnr``, ``ssim``, ``ms_ssim`` or ``vmaf``.
        vmaf_model: The model of VMAF.

    Returns:
        Its name, what it is measured on, its unit.
    """
    return f"VMAF, {vmaf_model}, BT.709 luma" if metric == "vmaf" else _DEFINITIONS[metric]


def check_metric(metric: str, width: int, height: int, vmaf_model: str) -> None:
    """Check that a metric can measure frames of a size, before any is decoded.

    Args:
        metric: ``psnr``, ``ssim``, ``ms_ssim`` or ``vmaf``.
        width: Of the frames that are compared, in pixels.
        height: The same.
        vmaf_model: A name of ``VMAF_MODELS``.

    Raises:
        QualityError: If they are too small.
        InvalidInputError: If there is no such model of VMAF.
        BackendUnavailableError: If VMAF is not installed.
    """
    least = _MIN_SIDES_PX.get(metric, 1)
    if min(width, height) < least:
        raise QualityError(f"frames of {width}x{height} for {metric}", f"sides of at least {least} px")
    if metric == "vmaf":
        options_of_model(vmaf_model)
        find_ffmpeg()


def _plain(value: float) -> float | str:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else "inf"
