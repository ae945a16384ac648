"""Worse frames of true ones, and frames that are enlarged without a model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from genai_ray.types import full_range

__all__ = ["BRIGHTNESS", "NOISE", "add_noise", "darken", "enlarge", "shrink"]

NOISE = 15 / 255
"""Standard deviation of added noise, a share of the full range."""

BRIGHTNESS = 0.15
"""What is left of the values of a darkened frame, as a share."""

_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def shrink(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Shrink a frame: each pixel is the mean of a block.

    Args:
        frame: (H, W, 3) of an integer dtype; H and W are multiples of ``factor``.
        factor: Side of a block in pixels.

    Returns:
        (H / factor, W / factor, 3) of the same dtype, rounded to nearest.
    """
    height, width, channels = frame.shape
    blocks = frame.reshape(height // factor, factor, width // factor, factor, channels)
    smaller: npt.NDArray[Any] = np.rint(blocks.mean(axis=(1, 3))).astype(frame.dtype)
    return smaller


def enlarge(
    frame: npt.NDArray[Any], factor: int, kernel: Literal["bicubic", "lanczos"] = "bicubic"
) -> npt.NDArray[Any]:
    """Enlarge a frame by one of Pillow's kernels.

    Args:
        frame: (H, W, 3) of an integer dtype.
        factor: Pixels of the result for one, along each axis.
        kernel: ``bicubic`` (a = -0.5) or ``lanczos`` (a = 3).

    Returns:
        (H * factor, W * factor, 3) of the same dtype, rounded to nearest and clamped; the frame itself for a factor of
        1.
    """
    if factor == 1:
        return frame
    height, width, channels = frame.shape
    size = (width * factor, height * factor)
    larger = np.empty((height * factor, width * factor, channels), frame.dtype)
    for at in range(channels):  # one after the other: as float32, all of them would take four times the memory
        plane = np.asarray(Image.fromarray(frame[..., at].astype(np.float32)).resize(size, _KERNELS[kernel]))
        larger[..., at] = np.rint(np.clip(plane, 0, full_range(frame.dtype)))
    return larger


def add_noise(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add Gaussian noise with a deviation of ``NOISE``, the same to every frame of one shape.

    Args:
        frame: (H, W, 3) of an integer dtype.

    Returns:
        The same shape and dtype, clamped and rounded to nearest.
    """
    most = full_range(frame.dtype)
    noise = np.random.default_rng(0).normal(0.0, NOISE * most, frame.shape)
    return np.rint(np.clip(frame + noise, 0, most)).astype(frame.dtype)


def darken(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Multiply a frame by ``BRIGHTNESS``.

    Args:
        frame: (H, W, 3) of an integer dtype.

    Returns:
        The same shape and dtype, rounded to nearest.
    """
    return np.rint(frame * BRIGHTNESS).astype(frame.dtype)
