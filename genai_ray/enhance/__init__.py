"""The main job: a video in, a better video out."""

from genai_ray.enhance.job.forecast import ClipForecast, JobForecast, forecast_videos
from genai_ray.enhance.job.job import enhance_videos
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress, VideoReport
from genai_ray.enhance.plan.background import Background, parse_background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.timeline import parse_rate

__all__ = [
    "Background",
    "ClipForecast",
    "EnhanceOptions",
    "EnhanceReport",
    "JobForecast",
    "ModelUse",
    "Progress",
    "VideoReport",
    "enhance_videos",
    "forecast_videos",
    "parse_background",
    "parse_rate",
]
