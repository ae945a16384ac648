"""The main job: a video in, a better video out."""

from genai_ray.enhance.job import enhance_videos
from genai_ray.enhance.options import EnhanceOptions
from genai_ray.enhance.report import EnhanceReport, ModelUse, Progress, VideoReport

__all__ = ["EnhanceOptions", "EnhanceReport", "ModelUse", "Progress", "VideoReport", "enhance_videos"]
