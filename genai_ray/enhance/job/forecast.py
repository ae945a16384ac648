"""What a job would do, before it does anything: frames, segments, models, bytes, and the time that it will take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.clip_plan import ClipPlan, examine_clip, name_segments
from genai_ray.enhance.job.results import Results
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.plan.clip_target import ClipTarget, resolve_targets
from genai_ray.enhance.plan.options import EnhanceOptions, Paths, check_models, convert_params
from genai_ray.errors import GenAIRayError
from genai_ray.files import find_facts, temporary_folder
from genai_ray.inspection import find_model
from genai_ray.session import InferenceSession, SessionLimits, count_cores, predict_bytes
from genai_ray.types import ModelTask
from genai_ray.video import SegmentWriter, decode_segment

__all__ = ["ClipForecast", "JobForecast", "forecast_videos"]

TRIAL_FRAMES = 6
"""Frames of one video that are really enhanced, to predict how long the others will take."""


@dataclass(frozen=True, slots=True)
class ClipForecast:
    """One video of a job that is not run."""

    source: str
    """Where it is."""
    output: str
    """Where its result would go."""
    status: str
    """``todo``, ``done`` (an earlier job of the same kind has done it) or ``failed``."""
    frames: int = 0
    """Frames of the result."""
    segments: int = 0
    """Segments of the plan."""
    segments_done: int = 0
    """Of them those that an interrupted job has finished."""
    size_in: tuple[int, int] = (0, 0)
    """(width, height) of the input in pixels."""
    size_out: tuple[int, int] = (0, 0)
    """(width, height) of the result in pixels."""
    input_bytes: int = 0
    """Size of the input."""
    error: str = ""
    """Why it would fail."""


@dataclass(frozen=True, slots=True)
class JobForecast:
    """A job that is not run; ``to_dict`` is what ``--dry-run --json`` prints."""

    clips: tuple[ClipForecast, ...]
    """One entry for each video, in order."""
    frames: int
    """Frames to be made, without those of finished segments."""
    segments: int
    """Segments to be made."""
    input_bytes: int
    """Bytes of the inputs of videos that are to be done."""
    models: dict[str, int]
    """Predicted bytes of a session of each model, without its process."""
    expected_s: float | None
    """Seconds for the frames on this machine alone, by a trial on a few of them; None if nothing is to be done."""

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as plain values, fit for JSON.

        Returns:
            The fields by name, nested dataclasses as dictionaries.
        """
        return asdict(self)


def forecast_videos(
    inputs: Paths,
    output: str | Path,
    *,
    models: Paths,
    options: EnhanceOptions | None = None,
) -> JobForecast:
    """Plan a job as ``enhance_videos`` would, write nothing, and enhance a few frames to predict how long it takes.

    Args:
        inputs: As ``enhance_videos``.
        output: As ``enhance_videos``.
        models: As ``enhance_videos``.
        options: As ``enhance_videos``.

    Returns:
        What would be done.

    Raises:
        ConfigError: If an option, the output or the chain makes no sense.
        VideoError: If the only input is missing, is not a video or is truncated.
        GenAIRayError: As ``enhance_videos`` before anything is started.
    """
    options = options or EnhanceOptions()
    targets = resolve_targets(inputs, output, options)
    specs = check_models(models, options)
    options = convert_params(specs, options)
    results = Results(targets.folder) if targets.folder is not None else None
    kinds = [node_kind(is_gpu=is_gpu) for is_gpu in (False, True)]  # nobody knows the cluster's before the job begins

    def examine(target: ClipTarget) -> ClipPlan | ClipOutcome | GenAIRayError:
        recorded = results.recorded(target.output) if results is not None else None
        try:
            found = examine_clip(target, specs, options, recorded)
            if isinstance(found, ClipOutcome):
                return found
            return max((name_segments(found, specs, kind) for kind in kinds), key=lambda plan: len(plan.reused))
        except GenAIRayError as exc:
            if results is None:
                raise
            return exc

    largest: ClipPlan | None = None
    clips: list[ClipForecast] = []
    seconds_per_px = 0.0
    expected_s = 0.0
    with ThreadPoolExecutor(max_workers=count_cores()) as pool:
        for target, found in zip(targets, pool.map(examine, targets), strict=True):
            clips.append(_describe(target, found))
            if not isinstance(found, ClipPlan):
                continue
            if largest is None or _pixels(found) > _pixels(largest):
                largest = found
            seconds_per_px = seconds_per_px or _try_chain(found, specs)
            expected_s += seconds_per_px * _pixels(found) * (found.frames - found.frames_reused)
    todo = [clip for clip in clips if clip.status == "todo"]
    return JobForecast(
        clips=tuple(clips),
        frames=sum(clip.frames for clip in todo),
        segments=sum(clip.segments - clip.segments_done for clip in todo),
        input_bytes=sum(clip.input_bytes for clip in todo),
        models=_predict(largest, specs) if largest is not None else {},
        expected_s=expected_s if largest is not None else None,
    )


def _describe(target: ClipTarget, found: ClipPlan | ClipOutcome | GenAIRayError) -> ClipForecast:
    if isinstance(found, GenAIRayError):
        return ClipForecast(target.source, target.output, "failed", error=str(found))
    if isinstance(found, ClipOutcome):
        return ClipForecast(target.source, target.output, "done", found.frames)
    info = found.timeline.plan.info
    facts = find_facts(target.source)
    return ClipForecast(
        source=target.source,
        output=target.output,
        status="todo",
        frames=found.frames - found.frames_reused,
        segments=found.segments,
        segments_done=len(found.reused),
        size_in=(info.width, info.height),
        size_out=found.size_out,
        input_bytes=facts.size if facts is not None else 0,
    )


def _pixels(plan: ClipPlan) -> int:
    info = plan.timeline.plan.info
    return info.width * info.height


def _limits(request: SessionRequest) -> SessionLimits:
    return SessionLimits(max_frame=request.max_frame, tile_size_px=request.tile_size_px)


def _predict(plan: ClipPlan, specs: Sequence[ModelSpec]) -> dict[str, int]:
    found = {}
    for spec, request in zip(specs, plan.requests, strict=True):
        found[spec.model_id] = predict_bytes(
            find_model(spec.model_id)[1],
            spec,
            _limits(request),
            backend=request.backend,
            precision=request.precision,
            threads=None if request.device.startswith("cuda") else count_cores(),
        )
    return found


def _try_chain(planned: ClipPlan, specs: Sequence[ModelSpec]) -> float:
    """Enhance a few frames; return seconds for each frame and input pixel, if all cores were at work as in a job."""
    plan = planned.timeline.plan
    options = planned.options
    started = time.perf_counter()
    decoded = itertools.islice(decode_segment(plan, plan.segments[0], allow_truncated=True), TRIAL_FRAMES)
    frames = np.stack([frame.frame for frame in decoded])
    alone_s = time.perf_counter() - started
    inferred_s = 0.0
    num_frames = len(frames)
    for spec, request in zip(specs, planned.requests, strict=True):
        params = {name: value for name, value in options.params.items() if name in spec.params}
        needs_pair = len(frames) == 1 and spec.task is ModelTask.INTERPOLATION
        batch = np.concatenate([frames, frames]) if needs_pair else frames
        with InferenceSession(
            spec.model_id,
            backend=options.backend,
            precision=options.precision,
            device=options.device,
            limits=_limits(request),
        ) as session:
            session.warmup()
            started = time.perf_counter()
            result = session.infer(batch, params)
            inferred_s += time.perf_counter() - started
        frames = frames if spec.task is ModelTask.BACKGROUND_REMOVAL else np.ascontiguousarray(result)
    with temporary_folder("trial") as folder:
        path = folder / "trial.nut"
        started = time.perf_counter()
        with SegmentWriter(path, info=plan.info, size=planned.size_out, encoding=options.encoding) as writer:
            for frame, pts in zip(frames, plan.pts, strict=False):
                writer.write(frame, pts)
        alone_s += time.perf_counter() - started
    return (inferred_s + alone_s / count_cores()) / num_frames / _pixels(planned)
