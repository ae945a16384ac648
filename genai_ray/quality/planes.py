"""Checks a pair of pictures, and returns the values that a metric compares."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.types import FRAME_DTYPES, full_range

__all__ = [
    "Channels",
    "check_pair",
    "check_pictures",
    "luma_bt601",
    "reduce_frame",
    "resolve_data_range",
    "take_planes",
]

Channels = Literal["rgb", "y"]
"""The compared values: all channels as they are, or BT.601 luma, as in super-resolution papers."""


def resolve_data_range(dtype: npt.DTypeLike, data_range: float | None) -> float:
    """Return the width of the value range of pictures.

    Args:
        dtype: The pictures' dtype.
        data_range: The caller's width; None for 255, 65535 or 1 by dtype.

    Returns:
        The width, above 0.

    Raises:
        InvalidInputError: If it is not above 0, or it is None and the dtype is not uint8, uint16 or float32.
    """
    if data_range is None:
        if np.dtype(dtype) not in FRAME_DTYPES:
            got = f"pictures of dtype {np.dtype(dtype)} without a data_range"
            raise InvalidInputError(
                got, "uint8, uint16 or float32, or a data_range", "Pass data_range=255.0, for example."
            )
        return full_range(dtype)
    if not (data_range > 0 and np.isfinite(data_range)):
        raise InvalidInputError(f"a data_range of {data_range}", "a finite number above 0")
    return float(data_range)


def check_pair(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
    """Refuse two arrays that cannot be compared value by value.

    Args:
        reference: Any shape, any real dtype.
        candidate: The same shape and dtype.

    Raises:
        InvalidInputError: If one is not an array of real numbers.
        QualityError: If shapes or dtypes differ, the arrays are empty, or a value is NaN or infinite.
    """
    for name, array in (("reference", reference), ("candidate", candidate)):
        if not isinstance(array, np.ndarray):
            got = f"a {name} of type {type(array).__name__}"
            raise InvalidInputError(got, "a numpy array", "Use numpy.asarray(image).")
        if array.dtype.kind not in "uif":
            raise InvalidInputError(f"a {name} of dtype {array.dtype}", "integers or floating-point numbers")
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        got = f"a candidate {candidate.shape} {candidate.dtype} for a reference {reference.shape} {reference.dtype}"
        raise QualityError(got, "equal shape and dtype", "Nothing is cropped or converted silently.")
    if reference.size == 0:
        raise QualityError("empty arrays", "at least one value")
    if reference.dtype.kind == "f" and not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise QualityError("NaN or infinite values", "finite values")


def check_pictures(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
    """Refuse pictures that a metric cannot measure.

    Args:
        reference: One plane (H, W), one picture (H, W, C) or several (N, H, W, C), with C = 1 or 3.
        candidate: The same shape and dtype.

    Raises:
        InvalidInputError: If one is not an array of real numbers, or has another number of axes or channels.
        QualityError: If shapes or dtypes differ, the arrays are empty, or a value is NaN or infinite.
    """
    check_pair(reference, candidate)
    shape = reference.shape
    if len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[-1] not in (1, 3)):
        raise InvalidInputError(f"pictures of shape {shape}", "(H, W), (H, W, C) or (N, H, W, C) with C = 1 or 3")


def luma_bt601(pictures: npt.NDArray[Any], data_range: float) -> npt.NDArray[np.float64]:
    """Compute the luma of super-resolution papers: BT.601, limited range, float, not rounded.

    ``Y = 16 + 65.481 R + 128.553 G + 24.966 B`` with R, G, B in [0, 1], as in MATLAB's ``rgb2ycbcr`` and BasicSR.

    Args:
        pictures: RGB, (..., 3), values in [0, ``data_range``].
        data_range: The width of the pictures' value range.

    Returns:
        (...,) float64 in [16, 235]; by the same convention, metrics use a data range of 255 for it.

    Raises:
        InvalidInputError: If there are not three channels.
    """
    if pictures.ndim < 3 or pictures.shape[-1] != 3:
        raise InvalidInputError(f"the luma of pictures of shape {pictures.shape}", "RGB: (H, W, 3) or (N, H, W, 3)")
    return 16.0 + pictures.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / data_range)


def reduce_frame(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float64]:
    """Reduce a picture by the mean of ``factor`` x ``factor`` pixels.

    Args:
        frame: (factor * H, factor * W, C), any real dtype.
        factor: Pixels along each axis that become one; at least 1.

    Returns:
        (H, W, C) float64, not rounded.

    Raises:
        QualityError: If the sides are not multiples of the factor.
    """
    if factor < 1 or frame.shape[0] % factor or frame.shape[1] % factor:
        got = f"{frame.shape[1]}x{frame.shape[0]} reduced by {factor}"
        raise QualityError(got, "sides that are multiples of the factor")
    total = frame[::factor, ::factor].astype(np.float64)
    for row, column in np.ndindex(factor, factor):
        if row or column:
            total += frame[row::factor, column::factor]
    return total / factor**2 if factor > 1 else total


def take_planes(
    reference: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    *,
    data_range: float | None,
    channels: Channels,
    crop_border_px: int,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
    """Check two pictures and return the planes to compare.

    Args:
        reference: One plane (H, W), one picture (H, W, C) or several (N, H, W, C), with C = 1 or 3.
        candidate: The same shape and dtype.
        data_range: The width of the value range; None for 255, 65535 or 1 by dtype.
        channels: ``"rgb"`` for all channels, ``"y"`` for BT.601 luma.
        crop_border_px: Pixels to ignore at each of the four edges.

    Returns:
        Reference and candidate as (N, H, W, C), luma as float64 with C = 1, and their data range.

    Raises:
        InvalidInputError: If the shape, dtype, data range, channels or border is wrong.
        QualityError: If shapes or dtypes differ, the arrays are empty, nothing is left inside the border, or a value
            is NaN or infinite.
    """
    check_pictures(reference, candidate)
    width = resolve_data_range(reference.dtype, data_range)
    if channels not in ("rgb", "y"):
        raise InvalidInputError(f"channels={channels!r}", "'rgb' or 'y'")
    if crop_border_px < 0:
        raise InvalidInputError(f"a border of {crop_border_px} px", "0 or more")
    pair = [array if array.ndim > 2 else array[..., None] for array in (reference, candidate)]
    if channels == "y":
        pair = [luma_bt601(array, width)[..., None] for array in pair]
        width = 255.0
    pair = [array if array.ndim == 4 else array[None] for array in pair]
    if crop_border_px:
        inside = slice(crop_border_px, -crop_border_px)
        pair = [array[:, inside, inside] for array in pair]
        if pair[0].size == 0:
            got = f"a border of {crop_border_px} px for pictures of shape {reference.shape}"
            raise QualityError(got, "a border that leaves at least one pixel")
    return pair[0], pair[1], width
