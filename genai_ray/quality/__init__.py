"""Tells whether a picture is good enough: metrics as plain functions, and the ``QualityValidator``.

In the order of data: ``planes`` checks a pair of pictures and returns the values to compare; ``noise_ratio``,
``structure`` and ``libvmaf`` measure; ``comparison`` measures with all metrics; ``validator`` compares a PSNR with a
threshold.
"""

from genai_ray.quality.comparison import Comparison, compare
from genai_ray.quality.libvmaf import VMAF_MODELS, vmaf, vmaf_per_frame
from genai_ray.quality.noise_ratio import psnr, psnr_per_channel
from genai_ray.quality.planes import Channels, luma_bt601
from genai_ray.quality.structure import ms_ssim, ssim, ssim_per_channel
from genai_ray.quality.validator import QualityValidator

__all__ = [
    "VMAF_MODELS",
    "Channels",
    "Comparison",
    "QualityValidator",
    "compare",
    "luma_bt601",
    "ms_ssim",
    "psnr",
    "psnr_per_channel",
    "ssim",
    "ssim_per_channel",
    "vmaf",
    "vmaf_per_frame",
]
