"""All metrics of one pair, each with the name of its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from genai_ray.display import describe_fields, to_html
from genai_ray.errors import BackendUnavailableError, InvalidInputError, QualityError
from genai_ray.quality.libvmaf import vmaf
from genai_ray.quality.noise_ratio import psnr
from genai_ray.quality.structure import ms_ssim, ssim

__all__ = ["Comparison", "compare"]

_VMAF_MODEL = "vmaf_v0.6.1neg"


@describe_fields
@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of every metric for one candidate."""

    psnr: float
    """PSNR in dB over all values of RGB; ``inf`` for equal pictures."""
    psnr_y: float | None
    """PSNR in dB of BT.601 luma with R = 255; None without three channels."""
    ssim: float | None
    """SSIM of Wang et al. 2004, at most 1; None if the pictures are too small."""
    ms_ssim: float | None
    """MS-SSIM of Wang et al. 2003, in [0, 1]; None if the pictures are too small."""
    vmaf: float | None
    """VMAF, model ``vmaf_v0.6.1neg``, in [0, 100]; None if it cannot be measured."""
    missing: dict[str, str]
    """Why each metric that is None was not measured."""

    @property
    def definitions(self) -> dict[str, str]:
        """The definition of each number, by the name of its field."""
        return {
            "psnr": "PSNR, RGB, dB",
            "psnr_y": "PSNR, BT.601 luma, R = 255, dB",
            "ssim": "SSIM, Wang 2004, Gaussian 11x11, RGB",
            "ms_ssim": "MS-SSIM, Wang 2003, five scales, RGB",
            "vmaf": f"VMAF, {_VMAF_MODEL}, BT.709 luma",
        }

    def to_table(self) -> str:
        """Format the numbers as lines of text.

        Returns:
            One line for each metric: its definition, and its number or why it is missing.
        """
        return "\n".join(f"{name:<40} {value}" for name, value in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        digits = {"psnr": 2, "psnr_y": 2, "ssim": 4, "ms_ssim": 4, "vmaf": 2}
        rows = []
        for field, definition in self.definitions.items():
            value = getattr(self, field)
            text = self.missing.get(field, "") if value is None else f"{value:.{digits[field]}f}"
            rows.append((definition, text))
        return rows

    def __repr__(self) -> str:
        measured = [(name, getattr(self, name)) for name in self.definitions]
        return f"Comparison({', '.join(f'{name}={value:.4g}' for name, value in measured if value is not None)})"

    def _repr_html_(self) -> str:
        return to_html("Comparison", self._rows(), ("metric", "value"))


def compare(reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, data_range: float | None = None) -> Comparison:
    """Measure a candidate by every metric.

    Args:
        reference: Pictures (H, W, C) or (N, H, W, C), RGB (C = 3) or grey (C = 1), uint8, uint16 or float32; any real
            dtype with a ``data_range``.
        candidate: The same shape and dtype.
        data_range: Width of the value range; None for 255, 65535 or 1 by dtype.

    Returns:
        All numbers. A metric that cannot measure these pictures is None, and ``missing`` says why.

    Raises:
        QualityError: If shapes or dtypes differ, the arrays are empty, or a value is NaN or infinite.
        InvalidInputError: If the dtype or data range is not one of these.

    Example:
        >>> import numpy as np
        >>> compare(np.zeros((16, 16, 3), np.uint8), np.ones((16, 16, 3), np.uint8)).psnr > 48
        True
    """
    db = psnr(reference, candidate, data_range=data_range)
    missing: dict[str, str] = {}
    values: dict[str, float | None] = {}
    measures: dict[str, Callable[[], float]] = {
        "psnr_y": lambda: psnr(reference, candidate, data_range=data_range, channels="y"),
        "ssim": lambda: ssim(reference, candidate, data_range=data_range),
        "ms_ssim": lambda: ms_ssim(reference, candidate, data_range=data_range),
        "vmaf": lambda: vmaf(reference, candidate, model=_VMAF_MODEL),
    }
    for name, measure in measures.items():
        try:
            values[name] = measure()
        except (QualityError, InvalidInputError, BackendUnavailableError) as exc:
            values[name] = None
            missing[name] = str(exc)
    return Comparison(psnr=db, missing=missing, **values)
