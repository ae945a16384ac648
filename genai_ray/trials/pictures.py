"""Files of single pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from genai_ray.types import full_range

__all__ = ["encode_jpeg", "to_8_bits"]

JPEG_QUALITY = 95


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
