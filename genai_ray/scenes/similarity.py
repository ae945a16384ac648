"""Finds hard cuts by how much two neighbouring frames resemble each other: almost free, and blind to fades."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from genai_ray.types import full_range

__all__ = ["SCENE_THRESHOLD", "is_cut", "thumbnail"]

SCENE_THRESHOLD = 0.3
"""Two frames less similar than this are a cut apart. In real footage cuts lie below 0.25, a fast pan at 0.5."""

_SIDE = 32
_WINDOW = 7
_GREY = np.array([0.299, 0.587, 0.114])


def thumbnail(frame: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Reduce a frame for ``is_cut``.

    Args:
        frame: RGB (H, W, 3), uint8 or uint16.

    Returns:
        Grey in [0, 255], at most 32x32, each pixel the mean of an area.
    """
    rows, columns = (np.linspace(0, length, min(length, _SIDE) + 1).round().astype(int) for length in frame.shape[:2])
    # Sums of whole numbers are exact, so every machine finds the same cuts.
    lines = np.add.reduceat(frame, rows[:-1], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(lines, columns[:-1], axis=1, dtype=np.uint64)
    areas = np.diff(rows)[:, None] * np.diff(columns)[None]
    grey: npt.NDArray[np.float64] = (sums @ _GREY) / areas * (255 / full_range(frame.dtype))
    return grey


def is_cut(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], threshold: float) -> bool:
    """Tell whether a cut lies between two frames; fades are not found, because their neighbours resemble each other.

    Only these two frames count, so the answer does not depend on how a video was split into segments.

    Args:
        before: Thumbnail of a frame.
        after: Thumbnail of the next one, of the same size.
        threshold: Structural similarity in [0, 1] below which it is a cut; 0 for never.

    Returns:
        Whether it is a cut.
    """
    return threshold > 0 and _similarity(before, after) < threshold


def _similarity(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the mean SSIM (Wang 2004) over uniform windows of 7x7."""
    window = (min(_WINDOW, a.shape[0]), min(_WINDOW, a.shape[1]))
    first = sliding_window_view(a, window)
    second = sliding_window_view(b, window)
    mean_a = first.mean((2, 3))
    mean_b = second.mean((2, 3))
    covariance = (first * second).mean((2, 3)) - mean_a * mean_b
    c1 = (0.01 * 255) ** 2
    c2 = (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    spread = (mean_a**2 + mean_b**2 + c1) * (first.var((2, 3)) + second.var((2, 3)) + c2)
    return float((likeness / spread).mean())
