"""What a job would do, before it does anything: frames, segments, models, bytes, and the time that it will take."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelSpec
from genai_ray.display import describe_fields
from genai_ray.enhance.job.choice import Choice, choose_here
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.clip_plan import ClipPlan, examine_clip, find_begun, name_segments
from genai_ray.enhance.job.results import Results
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.trial import (
    ClipLoad,
    limits_of,
    load_of,
    predict_frame_seconds,
    predict_seconds,
    try_chain,
)
from genai_ray.enhance.plan.clip_target import ClipTarget, Targets, resolve_targets
from genai_ray.enhance.plan.options import EnhanceOptions, Paths, check_given, check_models, convert_params
from genai_ray.errors import GenAIRayError
from genai_ray.files import find_source_facts
from genai_ray.inspection import find_model
from genai_ray.session import count_cores, predict_bytes
from genai_ray.types import ModelBackend

__all__ = ["ClipForecast", "JobForecast", "forecast_videos"]


@describe_fields
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
    size_made: tuple[int, int] = (0, 0)
    """(width, height) of what the models make, which is resampled to the result if a size is asked for."""
    input_bytes: int = 0
    """Size of the input."""
    error: str = ""
    """Why it would fail."""
    notes: tuple[str, ...] = ()
    """What is known before the first frame: the piece, sizes, sound that would be encoded."""


@describe_fields
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
    """Seconds of the whole job on this machine alone, with the start of Ray, by a trial on a few frames; None if
    nothing is to be done."""
    seconds_per_frame: float | None = None
    """Seconds of the models for one frame of the result, of the first video that is to be done; None if none is."""
    choice: Choice | None = None
    """What backend ``auto`` has chosen; None for another backend, or if nothing is to be done."""

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as plain values, fit for JSON.

        Returns:
            The fields by name, nested dataclasses as dictionaries.
        """
        return asdict(replace(self, choice=None)) | {"choice": self.choice.to_dict() if self.choice else None}


def forecast_videos(
    inputs: Paths,
    output: str | Path,
    *,
    models: Paths,
    options: EnhanceOptions | None = None,
) -> JobForecast:
    """Plan a job as ``enhance_videos`` would, write nothing, and enhance a few frames to predict how long it takes.

    Only what backend ``auto`` measures is remembered.

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
    specs = check_models(models, options, has_sequence=targets.has_sequence)
    check_given(specs, (target.options(options) for target in targets))
    options = convert_params(specs, options)
    results = Results(targets.folder) if targets.folder is not None else None
    choice = _choose_first(targets, specs, options, results) if options.backend is ModelBackend.AUTO else None
    way = choice.way if choice is not None else None

    def examine(target: ClipTarget) -> ClipPlan | ClipOutcome | GenAIRayError:
        recorded = results.recorded(target.output) if results is not None else None
        try:
            found = examine_clip(target, specs, options, recorded)
            if isinstance(found, ClipOutcome):
                return found
            return max((name_segments(found, specs, kind, way) for kind in _kinds()), key=lambda plan: len(plan.reused))
        except GenAIRayError as exc:
            if results is None:
                raise
            return exc

    largest: ClipPlan | None = None
    clips: list[ClipForecast] = []
    first: ClipPlan | None = None
    loads: list[ClipLoad] = []
    with ThreadPoolExecutor(max_workers=count_cores()) as pool:
        for target, found in zip(targets, pool.map(examine, targets), strict=True):
            clips.append(_describe(target, found))
            if not isinstance(found, ClipPlan):
                continue
            if largest is None or _pixels(found) > _pixels(largest):
                largest = found
            first = first or found
            loads.append(load_of(found))
    todo = [clip for clip in clips if clip.status == "todo"]
    trial = try_chain(first, specs) if first is not None else None
    return JobForecast(
        clips=tuple(clips),
        frames=sum(clip.frames for clip in todo),
        segments=sum(clip.segments - clip.segments_done for clip in todo),
        input_bytes=sum(clip.input_bytes for clip in todo),
        models=_predict(largest, specs) if largest is not None else {},
        expected_s=predict_seconds(trial, loads) if trial is not None else None,
        seconds_per_frame=predict_frame_seconds(trial, loads[0]) if trial is not None else None,
        choice=choice,
    )


def _kinds() -> list[str]:
    """Return the kinds that the job's node may have: nobody knows the cluster before the job begins."""
    return [node_kind(is_gpu=is_gpu) for is_gpu in (False, True)]


def _choose_first(
    targets: Targets, specs: Sequence[ModelSpec], options: EnhanceOptions, results: Results | None
) -> Choice | None:
    """Choose for the first video that is to be done, as the job does."""
    for target in targets:
        try:
            plan = examine_clip(
                target, specs, options, results.recorded(target.output) if results is not None else None
            )
        except GenAIRayError:
            if results is None:
                raise
            continue
        if isinstance(plan, ClipPlan):
            begun = [way for kind in _kinds() if (way := find_begun(plan, specs, kind)) is not None]
            return Choice(begun[0], "begun") if begun else choose_here(plan.requests, options)
    return None


def _describe(target: ClipTarget, found: ClipPlan | ClipOutcome | GenAIRayError) -> ClipForecast:
    if isinstance(found, GenAIRayError):
        return ClipForecast(target.source, target.output, "failed", error=str(found))
    if isinstance(found, ClipOutcome):
        return ClipForecast(target.source, target.output, "done", found.frames)
    info = found.timeline.plan.info
    facts = find_source_facts(target.source)
    return ClipForecast(
        source=target.source,
        output=target.output,
        status="todo",
        frames=found.frames - found.frames_reused,
        segments=found.segments,
        segments_done=len(found.reused),
        size_in=(info.width, info.height),
        size_out=found.sizes.result,
        size_made=found.sizes.made,
        input_bytes=facts.size if facts is not None else 0,
        notes=found.notes,
    )


def _pixels(plan: ClipPlan) -> int:
    info = plan.timeline.plan.info
    return info.width * info.height


def _predict(plan: ClipPlan, specs: Sequence[ModelSpec]) -> dict[str, int]:
    found = {}
    for spec, request in zip(specs, plan.requests, strict=True):
        found[spec.model_id] = predict_bytes(
            find_model(spec.model_id)[1],
            spec,
            limits_of(request),
            backend=request.backend,
            precision=request.precision,
            threads=None if request.device.startswith("cuda") else count_cores(),
        )
    return found
