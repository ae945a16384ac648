"""``QualityValidator``: whether a picture reaches a threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt

from genai_ray.errors import QualityError
from genai_ray.quality.noise_ratio import psnr
from genai_ray.types import ValidationResult, full_range

__all__ = ["QualityValidator"]


class QualityValidator:
    """Compares results with one reference.

    Args:
        reference: The expected picture: any shape, uint8, uint16 or float32.
        threshold_db: PSNR in dB that a result must reach; finite.

    Raises:
        QualityError: If the threshold is not a finite number or the reference is empty.
        InvalidInputError: If the dtype is wrong.

    Example:
        >>> import numpy as np
        >>> QualityValidator(np.zeros((4, 4, 3), np.uint8)).validate(np.zeros((4, 4, 3), np.uint8)).passed
        True
    """

    def __init__(self, reference: npt.NDArray[Any], threshold_db: float = 30.0) -> None:
        full_range(reference.dtype)
        if not math.isfinite(threshold_db):
            raise QualityError(f"a threshold of {threshold_db} dB", "a finite number")
        if reference.size == 0:
            raise QualityError(f"an empty reference of shape {reference.shape}", "at least one value")
        self.reference = reference
        self.threshold_db = threshold_db

    def validate(self, output: npt.NDArray[Any]) -> ValidationResult:
        """Measure a result.

        Args:
            output: A picture of the reference's shape and dtype.

        Returns:
            Whether it passes, its PSNR in dB, and its score in [0, 1].

        Raises:
            QualityError: If shape or dtype differ from the reference's, or a value is not finite.
        """
        db = psnr(self.reference, output)
        score = 1.0 if math.isinf(db) else min(max(db / 100, 0.0), 1.0)
        return ValidationResult(passed=db >= self.threshold_db, psnr=db, score=score)
