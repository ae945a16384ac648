"""Whether two neighbouring frames are the same picture, the same scene, or a cut apart; from these two alone.

What is found does not depend on where a video was cut into segments. Does not find fades: their neighbours resemble each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from genai_ray.types import full_range

__all__ = ["SCENE_THRESHOLD", "is_cut", "thumbnail"]

SCENE_THRESHOLD = 0.3
"""Below this similarity two frames are a cut apart. In real footage cuts lie below 0.25, and a fast pan of a whole street at 0.5."""

_SIDE, _WINDOW = 32, 7
_GREY = np.array([0.299, 0.587, 0.114])


def thumbnail(frame: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Reduce a frame to what is compared.

    Args:
        frame: RGB (H, W, 3), uint8 or uint16.

    Returns:
        Grey in [0, 255], at most 32x32, each pixel the mean of an area.
    """
    rows, columns = (np.linspace(0, length, min(length, _SIDE) + 1).round().astype(int) for length in frame.shape[:2])
    # Sums of whole numbers are exact, so that every machine finds the same cuts.
    sums = np.add.reduceat(
        np.add.reduceat(frame, rows[:-1], axis=0, dtype=np.uint32), columns[:-1], axis=1, dtype=np.uint64
    )
    areas = np.diff(rows)[:, None] * np.diff(columns)[None]
    grey: npt.NDArray[np.float64] = (sums @ _GREY) / areas * (255 / full_range(frame.dtype))
    return grey


def is_cut(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], threshold: float) -> bool:
    """Tell whether a cut lies between two frames: whether the structural similarity of their thumbnails is below a threshold.

    Args:
        before: Thumbnail of a frame.
        after: Thumbnail of the next one, of the same size.
        threshold: From 0 (nothing is a cut) to 1.

    Returns:
        Whether it is a cut.
    """
    return threshold > 0 and _similarity(before, after) < threshold


def _similarity(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the mean SSIM (Wang 2004) over uniform windows of 7x7."""
    window = (min(_WINDOW, a.shape[0]), min(_WINDOW, a.shape[1]))
    first, second = sliding_window_view(a, window), sliding_window_view(b, window)
    mean_a, mean_b = first.mean((2, 3)), second.mean((2, 3))
    covariance = (first * second).mean((2, 3)) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (first.var((2, 3)) + second.var((2, 3)) + c2))).mean())
