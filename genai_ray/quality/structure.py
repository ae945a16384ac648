"""Structural similarity: SSIM of Wang et al. 2004, and MS-SSIM of Wang et al. 2003."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import QualityError
from genai_ray.quality.planes import Channels, take_planes

__all__ = ["MIN_MS_SSIM_SIDE_PX", "MIN_SSIM_SIDE_PX", "ms_ssim", "ms_ssim_per_channel", "ssim", "ssim_per_channel"]

MIN_SSIM_SIDE_PX = 11
"""The side of SSIM's window, which must fit into a picture."""
MIN_MS_SSIM_SIDE_PX = 161
"""At the last of five scales, each half of the one before, the window must still fit: ``(11 - 1) * 2**4 + 1``."""

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, section 3.2
_SIGMA_PX = 1.5
_TRUNCATE_SIGMAS = 3.5  # a radius of 5: 11 taps
_RADIUS_PX = 5
_K1 = 0.01
_K2 = 0.03


def ssim(
    reference: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    *,
    data_range: float | None = None,
    channels: Channels = "rgb",
    crop_border_px: int = 0,
) -> float:
    """Measure SSIM as Wang et al. 2004 define it.

    The window is Gaussian, 11 x 11, sigma 1.5; K1 = 0.01, K2 = 0.03; covariances are those of the population. The
    result is the mean over all positions of the window inside the picture, all channels and all pictures.

    Args:
        reference: One plane (H, W), one picture (H, W, C) or several (N, H, W, C); C = 1 or 3; sides of at least 11 px.
        candidate: The same shape and dtype.
        data_range: Width of the value range; None for 255, 65535 or 1 by dtype.
        channels: ``"rgb"`` for all channels, ``"y"`` for BT.601 luma with a range of 255.
        crop_border_px: Pixels to ignore at each edge.

    Returns:
        A number of at most 1; 1.0 for equal pictures. Computed in float64.

    Raises:
        QualityError: If shapes or dtypes differ, the arrays are empty or too small, or a value is NaN or infinite.
        InvalidInputError: If the shape, dtype, data range, channels or border is wrong.

    Example:
        >>> import numpy as np
        >>> ssim(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
        1.0
    """
    first, second, width = take_planes(
        reference, candidate, data_range=data_range, channels=channels, crop_border_px=crop_border_px
    )
    return float(_ssim_of(first, second, width).mean())


def ssim_per_channel(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, data_range: float | None = None
) -> tuple[float, ...]:
    """Measure SSIM of each channel.

    Args:
        reference: Pictures (H, W, C) or (N, H, W, C), C = 1 or 3.
        candidate: The same shape and dtype.
        data_range: As for ``ssim``.

    Returns:
        C numbers in the order of the channels, each the mean over the pictures.

    Raises:
        QualityError: As for ``ssim``.
        InvalidInputError: As for ``ssim``.
    """
    first, second, width = take_planes(reference, candidate, data_range=data_range, channels="rgb", crop_border_px=0)
    return tuple(float(value) for value in _ssim_of(first, second, width).mean(axis=0))


def ms_ssim(
    reference: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    *,
    data_range: float | None = None,
    channels: Channels = "rgb",
    crop_border_px: int = 0,
) -> float:
    """Measure MS-SSIM as Wang, Simoncelli and Bovik 2003 define it.

    Five scales with the weights .0448 .2856 .3001 .2363 .1333; each scale is the mean of 2 x 2 pixels of the one
    before; contrast-structure at the first four and SSIM at the last; negative values count as 0. The window is that of
    ``ssim``. The result is the mean of the products of all channels and pictures.

    Args:
        reference: One plane (H, W), one picture (H, W, C) or several (N, H, W, C); C = 1 or 3; sides of 161 px or more.
        candidate: The same shape and dtype.
        data_range: Width of the value range; None for 255, 65535 or 1 by dtype.
        channels: ``"rgb"`` for all channels, ``"y"`` for BT.601 luma with a range of 255.
        crop_border_px: Pixels to ignore at each edge.

    Returns:
        A number in [0, 1]; 1.0 for equal pictures. Computed in float64.

    Raises:
        QualityError: If shapes or dtypes differ, the arrays are empty or too small, or a value is NaN or infinite.
        InvalidInputError: If the shape, dtype, data range, channels or border is wrong.
    """
    first, second, width = take_planes(
        reference, candidate, data_range=data_range, channels=channels, crop_border_px=crop_border_px
    )
    return float(_ms_ssim_of(first, second, width).mean())


def ms_ssim_per_channel(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, data_range: float | None = None
) -> tuple[float, ...]:
    """Measure MS-SSIM of each channel.

    Args:
        reference: As for ``ms_ssim``.
        candidate: The same shape and dtype.
        data_range: As for ``ms_ssim``.

    Returns:
        C numbers in the order of the channels, each the mean over the pictures.

    Raises:
        QualityError: As for ``ms_ssim``.
        InvalidInputError: As for ``ms_ssim``.
    """
    first, second, width = take_planes(reference, candidate, data_range=data_range, channels="rgb", crop_border_px=0)
    return tuple(float(value) for value in _ms_ssim_of(first, second, width).mean(axis=0))


def _check_sides(pictures: npt.NDArray[Any], min_side_px: int, metric: str) -> None:
    height, width = pictures.shape[1:3]
    if min(height, width) < min_side_px:
        raise QualityError(f"pictures of {width}x{height} for {metric}", f"sides of at least {min_side_px} px")


def _ssim_of(first: npt.NDArray[Any], second: npt.NDArray[Any], data_range: float) -> npt.NDArray[np.float64]:
    """Return SSIM of every picture and channel, (N, C)."""
    from skimage.metrics import structural_similarity  # noqa: PLC0415 (with SciPy 0.1 s in each process)

    _check_sides(first, MIN_SSIM_SIDE_PX, "SSIM")
    values = np.empty((first.shape[0], first.shape[-1]))
    for n, c in np.ndindex(values.shape):
        values[n, c] = structural_similarity(  # type: ignore[no-untyped-call]
            first[n, ..., c].astype(np.float64),
            second[n, ..., c].astype(np.float64),
            data_range=data_range,
            gaussian_weights=True,
            sigma=_SIGMA_PX,
            use_sample_covariance=False,
        )
    return values


def _ms_ssim_of(first: npt.NDArray[Any], second: npt.NDArray[Any], data_range: float) -> npt.NDArray[np.float64]:
    """Return MS-SSIM of every picture and channel, (N, C)."""
    _check_sides(first, MIN_MS_SSIM_SIDE_PX, "MS-SSIM")
    values = np.empty((first.shape[0], first.shape[-1]))
    for n, c in np.ndindex(values.shape):
        pair = first[n, ..., c].astype(np.float64), second[n, ..., c].astype(np.float64)
        values[n, c] = _over_scales(*pair, data_range)
    return values


def _over_scales(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], data_range: float) -> float:
    product: float = 1.0
    for weight in _WEIGHTS[:-1]:
        product *= max(_similarity(x, y, data_range)[1], 0.0) ** weight
        x = _halve(x)
        y = _halve(y)
    return float(product * max(_similarity(x, y, data_range)[0], 0.0) ** _WEIGHTS[-1])


def _similarity(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], data_range: float) -> tuple[float, float]:
    """Return SSIM and its contrast-structure part: the means over all positions of the window inside the plane."""
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415

    inside = slice(_RADIUS_PX, -_RADIUS_PX)

    def blur(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        blurred: npt.NDArray[np.float64] = gaussian_filter(plane, _SIGMA_PX, truncate=_TRUNCATE_SIGMAS)
        return blurred[inside, inside]

    mean_x = blur(x)
    mean_y = blur(y)
    variances = blur(x * x) + blur(y * y) - mean_x**2 - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1 = (_K1 * data_range) ** 2
    c2 = (_K2 * data_range) ** 2
    contrast_structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * contrast_structure).mean()), float(contrast_structure.mean())


def _halve(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average 2 x 2 pixels; an odd last row or column is repeated, as in Wang's own code."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
