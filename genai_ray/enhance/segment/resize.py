"""Brings frames to their planned sizes: before the first model, and after the last one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.video import DecodedFrame, resample, scale_alpha

__all__ = ["add_bars", "fit_alpha", "fit_frame", "reduce_frames"]

Array: TypeAlias = npt.NDArray[Any]


def reduce_frames(frames: Iterator[DecodedFrame], sizes: FrameSizes) -> Iterator[DecodedFrame]:
    """Reduce frames to the size that the first model gets; alpha keeps its own size, because no model sees it.

    Args:
        frames: As they are decoded.
        sizes: The plan.

    Yields:
        The same frames with pixels of the same dtype.
    """
    for frame in frames:
        height, width, _ = frame.frame.shape
        if (width, height) == sizes.given:
            yield frame
            continue
        reduced: Array = resample(frame.frame, sizes.given)
        if frame.frame.dtype == np.uint8:
            reduced = ((reduced + np.uint32(128)) // 257).astype(np.uint8)  # rounded to nearest
        yield replace(frame, frame=reduced)


def fit_frame(frame: Array, sizes: FrameSizes) -> Array:
    """Resample what the chain has made to the picture that is planned, and cut it; bars are added later.

    Args:
        frame: RGB (H, W, 3) or a mask (H, W, 1), of the size that the chain makes, uint8 or uint16; not written to.
        sizes: The plan.

    Returns:
        The picture, C-contiguous: uint16 in [0, 65535] if it was resampled, else the same dtype.
    """
    return resample(frame, sizes.picture, _part(sizes)) if sizes.is_resampled else _cut(frame, sizes)


def fit_alpha(alpha: Array, sizes: FrameSizes) -> Array:
    """Scale the alpha of a source for ``fit_frame``.

    Args:
        alpha: (h, w, 1), uint8 or uint16, of the size of the source.
        sizes: The plan.

    Returns:
        Of the size and dtype of the picture that ``fit_frame`` returns.
    """
    if sizes.is_resampled:
        return resample(alpha, sizes.picture, _part(sizes))
    return _cut(scale_alpha(alpha, sizes.picture), sizes)


def add_bars(picture: Array, sizes: FrameSizes) -> Array:
    """Put a picture between black bars, which are transparent if it has alpha.

    Args:
        picture: From ``fit_frame``, RGB (H, W, 3) or RGBA (H, W, 4).
        sizes: The plan.

    Returns:
        Of the size of the result; ``picture`` itself if that is its size.
    """
    width, height = sizes.result
    if picture.shape[:2] == (height, width):
        return picture
    # Even, so that a bar does not tint the picture by chroma that both share.
    left, top = (side // 2 * 2 for side in _middle(sizes.result, sizes.picture))
    whole = np.zeros((height, width, picture.shape[2]), picture.dtype)
    whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return whole


def _cut(picture: Array, sizes: FrameSizes) -> Array:
    """Take the middle of a picture that is larger than the result."""
    left, top, width, height = _part(sizes)
    if picture.shape[:2] == (height, width):
        return picture
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def _part(sizes: FrameSizes) -> tuple[int, int, int, int]:
    """Return left, top, width and height of what the result shows of the picture."""
    left, top = _middle(sizes.picture, sizes.result)
    width, height = (min(sides) for sides in zip(sizes.picture, sizes.result, strict=True))
    return left, top, width, height


def _middle(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Return the place of a rectangle in the middle of another one."""
    left, top = (max(whole - part, 0) // 2 for whole, part in zip(outer, inner, strict=True))
    return left, top
