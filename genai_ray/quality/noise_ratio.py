"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError
from genai_ray.quality.planes import Channels, check_pair, resolve_data_range, take_planes

__all__ = ["psnr", "psnr_per_channel"]


def psnr(
    reference: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    *,
    data_range: float | None = None,
    channels: Channels = "rgb",
    crop_border_px: int = 0,
) -> float:
    """Measure PSNR: ``10 * log10(R^2 / MSE)``, R the data range, MSE over all values of all pictures.

    Args:
        reference: Any shape with at least one value; pictures (H, W, C) or (N, H, W, C) for luma and for a border.
        candidate: The same shape and dtype.
        data_range: R; None for 255 for uint8, 65535 for uint16, 1 for float32.
        channels: ``"rgb"`` for all values, ``"y"`` for BT.601 luma with R = 255, as in super-resolution papers.
        crop_border_px: Pixels to ignore at each edge; these papers ignore as many as the scale, 2 or 4.

    Returns:
        PSNR in dB; ``inf`` for equal arrays. Differences are taken in float64.

    Raises:
        QualityError: If shapes or dtypes differ, the arrays are empty, nothing is left inside the border, or a value
            is NaN or infinite.
        InvalidInputError: If the dtype, data range, channels or border is wrong.

    Example:
        >>> import numpy as np
        >>> round(psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 5, np.uint8)), 2)
        34.15
    """
    if channels == "rgb" and not crop_border_px:
        check_pair(reference, candidate)
        return _psnr_of(reference, candidate, resolve_data_range(reference.dtype, data_range))
    first, second, width = take_planes(
        reference, candidate, data_range=data_range, channels=channels, crop_border_px=crop_border_px
    )
    return _psnr_of(first, second, width)


def psnr_per_channel(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, data_range: float | None = None
) -> tuple[float, ...]:
    """Measure PSNR of each channel.

    Args:
        reference: Pictures (H, W, C) or (N, H, W, C), C = 1 or 3.
        candidate: The same shape and dtype.
        data_range: As for ``psnr``.

    Returns:
        C numbers in dB, in the order of the channels; ``inf`` for equal ones.

    Raises:
        QualityError: As for ``psnr``.
        InvalidInputError: As for ``psnr``, and if there is no channel axis.
    """
    if getattr(reference, "ndim", 0) not in (3, 4):
        raise InvalidInputError(f"pictures of shape {np.shape(reference)}", "(H, W, C) or (N, H, W, C)")
    first, second, width = take_planes(reference, candidate, data_range=data_range, channels="rgb", crop_border_px=0)
    return tuple(_psnr_of(first[..., c], second[..., c], width) for c in range(first.shape[-1]))


def _psnr_of(reference: npt.NDArray[Any], candidate: npt.NDArray[Any], data_range: float) -> float:
    mse = float(np.mean(np.square(candidate.astype(np.float64) - reference)))
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)
