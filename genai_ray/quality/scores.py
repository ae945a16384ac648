"""What was measured of each candidate of a comparison, frame by frame, and the numbers of a whole clip."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields

__all__ = ["CandidateScores", "WorstFrame", "has_durations", "pool"]

_MAIN = {"psnr": "psnr_of_mean_mse"}
"""The number of ``pool`` by which candidates are told apart, if it is not the mean."""


@dataclass(frozen=True, slots=True, eq=False)
class WorstFrame:
    """A frame to look at."""

    index: int
    """Position in the clip, from 0."""
    reference: npt.NDArray[Any]
    """(H, W, 3), RGB, uint8 or uint16, as it was compared."""
    candidate: npt.NDArray[Any]
    """The same shape and dtype."""


@describe_fields
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
    worst_frames: tuple[int, ...]
    """Positions of the frames of the lowest values of the first metric, at least 12 frames apart, the worst first."""
    worst: tuple[WorstFrame, ...] = ()
    """The same with their pictures; empty if these were not asked for."""
    seconds_per_frame: float | None = None
    """How long each of its frames took to make; None if that is not known."""
    seconds_from: str = ""
    """Where that is from: ``given``, or the file beside it that says so."""
    vmaf_planes: str | None = None
    """What VMAF was measured of: ``as stored``, or ``BT.709 luma``, converted from RGB; None if it was not measured."""

    def quality(self, metric: str) -> float:
        """Return the number by which candidates are told apart: the mean of all frames; for PSNR of their MSE.

        Args:
            metric: A key of ``per_frame``.

        Returns:
            The number; ``inf`` for PSNR if all frames are equal.
        """
        return self.pooled[metric][_MAIN.get(metric, "mean")]

    @property
    def pooled(self) -> dict[str, dict[str, float]]:
        """One number for the clip, by metric and by how it was made; see ``pool``."""
        return {name: pool(name, values) for name, values in self.per_frame.items()}


def has_durations(candidates: Iterable[CandidateScores]) -> bool:
    """Tell whether it is known of any candidate how long its frames took to make.

    Args:
        candidates: What was measured.

    Returns:
        Whether it is.
    """
    return any(scores.seconds_per_frame is not None for scores in candidates)


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
