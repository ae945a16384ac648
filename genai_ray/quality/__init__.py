"""Says whether a picture is fit to keep: metrics and the ``QualityValidator``."""

from genai_ray.quality.psnr import psnr_db
from genai_ray.quality.validator import QualityValidator

__all__ = ["QualityValidator", "psnr_db"]
