"""Tells whether frames are good enough: metrics as plain functions, and the ``QualityValidator``.

In the order of data: ``planes`` checks a pair of pictures and returns the values to compare; ``noise_ratio``,
``structure`` and ``libvmaf`` measure against a reference, and ``comparison`` with all of them; ``source`` measures
against the frames that a model got. ``clips`` walks over arrays, batches and videos; ``validator`` compares what was
measured with thresholds. ``scores`` are the numbers of whole clips, which ``report`` and ``page`` show.
"""

from genai_ray.quality.comparison import Comparison, compare
from genai_ray.quality.libvmaf import STORED_FORMATS, VMAF_MODELS, VmafMeter, vmaf, vmaf_of_clips, vmaf_per_frame
from genai_ray.quality.noise_ratio import psnr, psnr_per_channel
from genai_ray.quality.planes import Channels, luma_bt601, reduce_frame
from genai_ray.quality.report import QualityReport, check_metric
from genai_ray.quality.scores import CandidateScores, WorstFrame
from genai_ray.quality.source import FrameMeasures, SourceChecks
from genai_ray.quality.structure import ms_ssim, ms_ssim_per_channel, ssim, ssim_per_channel
from genai_ray.quality.validator import QualityValidator

__all__ = [
    "STORED_FORMATS",
    "VMAF_MODELS",
    "CandidateScores",
    "Channels",
    "Comparison",
    "FrameMeasures",
    "QualityReport",
    "QualityValidator",
    "SourceChecks",
    "VmafMeter",
    "WorstFrame",
    "check_metric",
    "compare",
    "luma_bt601",
    "ms_ssim",
    "ms_ssim_per_channel",
    "psnr",
    "psnr_per_channel",
    "reduce_frame",
    "ssim",
    "ssim_per_channel",
    "vmaf",
    "vmaf_of_clips",
    "vmaf_per_frame",
]
