"""The main job: a video in, a better video out.

One video has three nouns: what is asked is a ``ClipTarget``, what is planned a ``ClipPlan``, what became of it a
``ClipOutcome``. The rooms, lowest first:

* ``plan``: what is asked, and what follows from it; knows no Ray.
* ``segment``: decode, models, encode of one segment.
* ``distribution``: what is needed only if nodes share no folder.
* ``job``: the job, its scheduler, its steps and its report.

The path of a frame, as ``file::function`` in the package:

1. ``enhance/job/job.py::enhance_videos`` pairs inputs with outputs, and starts the job.
2. ``enhance/job/scheduler.py::Scheduler.run`` submits the steps of each video as Ray tasks.
3. ``enhance/job/steps.py::begin_clip`` is the first step;
   ``enhance/job/clip_plan.py::examine_clip`` plans the video, with ``video/plan.py::plan_video``.
4. ``enhance/job/steps.py::run_segment`` is the step of one segment.
5. ``enhance/segment/segment.py::enhance_segment`` is the pipeline of one segment: decode, models, encode.
6. ``video/decode.py::decode_segment`` decodes a frame; ``video/colour.py::to_rgb`` makes it RGB.
7. ``batch.py::BatchInference.submit`` sends a batch of frames to a model.
8. ``cluster/client/session.py::CachedSession.submit`` sends it to the actor that holds the model.
9. ``cluster/session_actor.py::SessionActor.infer`` gets it there.
10. ``session/session.py::InferenceSession.infer`` and ``session/runs.py::run_frames`` cut it into runs and tiles.
11. ``backends/onnx_runtime.py::OnnxRuntimeSession.run`` calls the runtime.
12. ``cluster/client/session.py::PendingCall.result`` brings the result back to the segment.
13. ``enhance/plan/background.py::compose`` replaces the background, if the chain has a mask.
14. ``video/encode.py::SegmentWriter.write`` encodes the frame.
15. ``enhance/job/segment_store.py::SegmentStore.place`` names the finished segment.
16. ``enhance/job/steps.py::finish_clip`` joins the segments with ``video/join.py::join_segments``, and publishes the
    result.
"""

from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.forecast import ClipForecast, JobForecast, forecast_videos
from genai_ray.enhance.job.job import enhance_videos
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress
from genai_ray.enhance.plan.background import Background, parse_background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.timeline import parse_rate

__all__ = [
    "Background",
    "ClipForecast",
    "ClipOutcome",
    "EnhanceOptions",
    "EnhanceReport",
    "JobForecast",
    "ModelUse",
    "Progress",
    "enhance_videos",
    "forecast_videos",
    "parse_background",
    "parse_rate",
]
