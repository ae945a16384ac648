"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import QualityError
from genai_ray.types import full_range

__all__ = ["psnr_db"]


def psnr_db(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
    """Measure how near a picture is to its reference: ``10 * log10(R^2 / MSE)``, R the dtype's full range, MSE over all values.

    Args:
        reference: Any shape with at least one value; uint8, uint16 or float32 (full range 255, 65535 or 1).
        candidate: The same shape and dtype.

    Returns:
        PSNR in dB; ``inf`` for equal arrays. The difference is taken in float64.

    Raises:
        QualityError: If shapes or dtypes differ, the arrays are empty, or a value is NaN or infinite.
        InvalidInputError: If the dtype is none of the frame contract's.
    """
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        got = f"a candidate {candidate.shape} {candidate.dtype} for a reference {reference.shape} {reference.dtype}"
        raise QualityError(got, "equal shape and dtype", "Nothing is cropped or converted silently.")
    if reference.size == 0:
        raise QualityError("empty arrays", "at least one value")
    peak = full_range(reference.dtype)
    mse = float(np.mean(np.square(candidate.astype(np.float64) - reference)))
    if not math.isfinite(mse):
        raise QualityError("NaN or infinite values", "finite values")
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)
