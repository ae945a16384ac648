"""The main job: a video in, a better video out."""

from genai_ray.enhance.background import Background, parse_background
from genai_ray.enhance.forecast import ClipForecast, JobForecast, forecast_videos
from genai_ray.enhance.job import enhance_videos
from genai_ray.enhance.options import EnhanceOptions
from genai_ray.enhance.report import EnhanceReport, ModelUse, Progress, VideoReport
from genai_ray.enhance.retime import parse_rate

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
