"""Sizes and files of single pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from genai_ray.types import full_range

__all__ = ["encode_jpeg", "enlarge", "shrink", "to_8_bits"]

JPEG_QUALITY = 95


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


def enlarge(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Enlarge a frame bicubically, by Pillow's kernel (a = -0.5).

    Args:
        frame: (H, W, 3) of an integer dtype.
        factor: Pixels of the result for one, along each axis.

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
        plane = np.asarray(Image.fromarray(frame[..., at].astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        larger[..., at] = np.rint(np.clip(plane, 0, full_range(frame.dtype)))
    return larger


def to_8_bits(frame: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert a frame for a picture that people look at.

    Args:
        frame: (H, W, 3), uint8 or uint16.

    Returns:
        (H, W, 3), uint8, rounded to nearest.
    """
    if frame.dtype == np.uint8:
        return frame
    return np.rint(frame / (full_range(frame.dtype) / 255)).astype(np.uint8)


def encode_jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    """Encode a frame as JPEG with all chroma samples.

    Args:
        frame: (H, W, 3).

    Returns:
        The file.
    """
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()
