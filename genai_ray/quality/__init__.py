"""Says whether a picture is fit to keep: metrics as plain functions, and the ``QualityValidator``.

In the order in which data passes: ``planes`` checks a pair and takes the values that are compared; ``noise_ratio``,
``structure`` and ``libvmaf`` measure; ``comparison`` puts all of them side by side; ``validator`` holds one against a threshold.
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
