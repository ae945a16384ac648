"""The main job: a video in, a better video out.

One video has three nouns: what is asked is a ``ClipTarget``, what is planned a ``ClipPlan``, what became of it a
``ClipOutcome``. The rooms, lowest first:

* ``plan``: what is asked, and what follows from it; knows no Ray.
* ``segment``: decode, models, encode of one segment.
* ``distribution``: what is needed only if nodes share no folder.
* ``job``: the job, its scheduler, its steps and its report.

The path of a frame, function by function, is in ``docs/architecture.md``.
"""

from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.forecast import ClipForecast, JobForecast, forecast_videos
from genai_ray.enhance.job.job import enhance_videos
from genai_ray.enhance.job.pipe import enhance_pipe
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress
from genai_ray.enhance.job.split import SceneFile, check_split, name_scene_folder, split_video
from genai_ray.enhance.job.verify import VerifyReport, verify_video
from genai_ray.enhance.plan.background import Background, parse_background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.timeline import parse_rate
from genai_ray.video import Encoding

__all__ = [
    "Background",
    "ClipForecast",
    "ClipOutcome",
    "Encoding",
    "EnhanceOptions",
    "EnhanceReport",
    "JobForecast",
    "ModelUse",
    "Progress",
    "SceneFile",
    "VerifyReport",
    "check_split",
    "enhance_pipe",
    "enhance_videos",
    "forecast_videos",
    "name_scene_folder",
    "parse_background",
    "parse_rate",
    "split_video",
    "verify_video",
]
