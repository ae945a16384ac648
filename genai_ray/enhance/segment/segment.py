"""One segment of one video: decode, models, encode, with a bounded number of frames in flight, in one Ray task.

The pipeline in order: ``decode_source`` gives frames, ``gather`` those that differ in batches, ``pass_chain`` sends
each batch through the chain of sessions, ``compose_results`` waits for results, has them checked and composes frames,
``open_writer`` gives what encodes. If a frame fails the checks, all of this is done once more in FP32 by ONNX Runtime.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from genai_ray.batch import BatchInference
from genai_ray.catalog import ModelSpec
from genai_ray.cluster import Lease, ModelCache, SessionRequest, find_processors, lease_within
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import Timeline, split_chain
from genai_ray.enhance.segment.cancellation import JobCancelledError, check_cancelled
from genai_ray.enhance.segment.chain import compose_results, gather, pass_chain, plan_batches
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.enhance.segment.cuts import find_segment_cuts
from genai_ray.enhance.segment.resize import reduce_frames
from genai_ray.errors import (
    DeadlineExceededError,
    GenAIRayError,
    QualityError,
    ResourceExhaustedError,
    VideoError,
)
from genai_ray.tune import Way
from genai_ray.types import CheckLevel, ModelBackend, ModelPrecision
from genai_ray.video import Budget, DecodedFrame, decode_source, open_writer

__all__ = [
    "JobContext",
    "SegmentResult",
    "enhance_segment",
    "open_stages",
]

_log = logging.getLogger(__name__)

RELOAD_WITHIN_S = 60.0
"""A segment that is computed again waits this long for room for its sessions: the job's own may fill the cache."""

LEASE_WITHIN_S = 2.0
"""It looks as often whether its job is cancelled meanwhile."""

CHECK_EVERY_S = 0.5
"""How often a segment checks whether its job is cancelled."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """What all segments of one job share; every task gets it."""

    specs: tuple[ModelSpec, ...]
    """The chain."""
    requests: tuple[SessionRequest, ...]
    """The sessions that it needs, one for each model."""
    options: EnhanceOptions
    """The job's options."""
    cache: ModelCache
    """Client of the cache that holds the models."""
    tag: str
    """Name of the job, under which sessions count its frames."""
    kind: str
    """Kind of the node that it was started on, see ``node_kind``."""
    way: Way | None = None
    """What it has chosen with backend ``auto``; None for another backend."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What became of a segment."""

    frames: int
    """Frames written."""
    frames_inferred: int
    """Frames that went through ``BatchInference``, once for each model; the second time, if it was computed again."""
    started_at: float
    """``time.time()`` at the first decoded frame: wall-clock, since it is compared across processes."""
    outside: tuple[int, int] = (0, 0)
    """Pixels of the source outside the RGB gamut, and pixels that were checked for it."""
    name: str = ""
    """Its name in the work folder, from ``SegmentStore.name``; empty if it has no frame."""
    frames_checked: int = 0
    """Frames that were compared with those of the source."""
    frames_deinterlaced: int = 0
    """Frames of the source that were made of interlaced ones."""
    measured: Mapping[str, float | str] = field(default_factory=dict)
    """What the strict checks measured, see ``SegmentChecks.measured``."""
    processors: tuple[str, ...] = ()
    """Kinds of processors of its sessions and of its task, see ``find_processors``; none unless checks are strict."""
    frames_digest: str = ""
    """Hash of its decoded frames, from ``digest_part``; empty if the result has no record, or it has no frame."""
    recomputed: str = ""
    """Why it was computed again in FP32 by ONNX Runtime; empty if it was not."""
    is_away: bool = False
    """Whether it was made on a node without the work folder, so that its bytes must still be brought there."""


def enhance_segment(timeline: Timeline, sizes: FrameSizes, index: int, path: Path, job: JobContext) -> SegmentResult:
    """Enhance one segment of a video; if frames fail the checks, once more in FP32 by ONNX Runtime.

    Args:
        timeline: The plan of the video and of its result.
        sizes: The plan of the sizes of its frames.
        index: Index of the segment.
        path: Where it is written; if it fails or has no frame, nothing is left there.
        job: Models, options and cache.

    Returns:
        The counts.

    Raises:
        JobCancelledError: If the job is over.
        VideoError: If the segment does not decode to the planned frames, or does not give those of the result.
        QualityError: If frames fail the checks both times.
        GenAIRayError: What a session raises, or why it cannot be computed the second time.
    """
    try:
        return _make_segment(timeline, sizes, index, path, job, is_last_try=False)
    except _ChecksFailedError as exc:
        found = exc.got
    failed = f"{timeline.plan.path}: segment {index} has wrong frames: {found}"
    _log.warning("%s; it is computed again in fp32 by onnx", failed)
    reference = tuple(map(_to_reference, job.requests))
    do = "Use another model or precision; or pass --check off (check='off') to keep these frames."
    try:
        with _lease_reference(job, reference):
            again = replace(job, requests=reference)
            result = _make_segment(timeline, sizes, index, path, again, is_last_try=True)
    except (JobCancelledError, VideoError):
        raise
    except _ChecksFailedError as exc:
        raise QualityError(f"{failed}. In fp32 by onnx too: {exc.got}", do=do) from exc
    except GenAIRayError as exc:
        raise type(exc)(f"{failed}. In fp32 by onnx it cannot be computed: {exc.got}", exc.allowed, do) from exc
    return replace(result, recomputed=found)


def _to_reference(request: SessionRequest) -> SessionRequest:
    """Return the session of FP32 by ONNX Runtime in the place of another one, on the same kind of device."""
    device = "cpu" if request.backend is ModelBackend.OPENVINO else request.device
    return replace(request, backend=ModelBackend.ONNX, precision=ModelPrecision.FP32, device=device)


def _lease_reference(job: JobContext, reference: Sequence[SessionRequest]) -> Lease:
    """Lease the sessions together, so that none is evicted for another; wait for room while the job goes on."""
    deadline = time.monotonic() + RELOAD_WITHIN_S
    while True:
        check_cancelled(job.tag)
        asked = time.monotonic()
        try:
            return lease_within(job.cache, reference, LEASE_WITHIN_S)
        except (DeadlineExceededError, ResourceExhaustedError):
            now = time.monotonic()
            if now >= deadline or now - asked < LEASE_WITHIN_S / 2:  # room will not do: it said so at once
                raise


class _ChecksFailedError(GenAIRayError):
    """Frames of a segment fail the checks; ``got`` describes them."""


def _make_segment(
    timeline: Timeline, sizes: FrameSizes, index: int, path: Path, job: JobContext, *, is_last_try: bool
) -> SegmentResult:
    """Enhance one segment; if frames fail the checks, raise and leave nothing of it.

    The first try ends with the first batch that fails; the last one goes on, so that all bad frames are known.
    """
    plan = timeline.plan
    options = job.options
    moments = timeline.moments(index)
    if not moments:  # at a constant rate a very short frame may not be shown at all
        return SegmentResult(0, 0, time.time())
    cuts = find_segment_cuts(timeline, index, allow_truncated=options.allow_truncated)
    used: dict[str, Any] | None = {} if options.check == CheckLevel.STRICT else None
    stages = open_stages(job, used)
    seen: list[tuple[int, int, bool]] = []
    decoded = decode_source(plan, timeline.range_to_decode(index), allow_truncated=options.allow_truncated)
    frames = reduce_frames(_watched(decoded, job.tag, seen), sizes)
    first = next(frames, None)
    started_at = time.time()
    if first is None:
        if not options.allow_truncated:
            raise VideoError(f"{plan.path}: segment {index} has no frame that decodes")
        return SegmentResult(0, 0, started_at)
    chain = split_chain(job.specs, stages)
    has_alpha = timeline.result.info.has_alpha and options.encoding.has_alpha
    # Alpha of pictures goes through models that enlarge, as in requests for a picture; that of videos is resampled.
    enlarges_alpha = has_alpha and plan.pictures is not None and sizes.scale > 1 and chain.interpolation is None
    per_frame = -(-len(moments) // (plan.segments[index].stop - plan.segments[index].start)) * (1 + enlarges_alpha)
    result_bytes = sizes.made[0] * sizes.made[1] * 3 * first.frame.itemsize * per_frame
    shown_from = {left: list(group) for left, group in groupby(moments, key=lambda moment: moment.left)}
    timed = ((frame, shown_from.get(frame.index, ())) for frame in itertools.chain([first], frames))
    batch_size, ahead = plan_batches(options, result_bytes)
    batches = gather(timed, batch_size, cuts)
    background = options.background or Background()
    checks = SegmentChecks(plan, job.specs, options.check, sizes.given)
    info = timeline.result.info
    written = 0
    budget = None
    if timeline.budgets:
        budget = Budget(timeline.budgets[index], len(moments), functools.partial(check_cancelled, job.tag))
    with open_writer(
        path, info=info, size=sizes.result, encoding=options.encoding, has_alpha=has_alpha, budget=budget
    ) as writer:
        for pieces in pass_chain(batches, chain, ahead, enlarges_alpha=enlarges_alpha):
            for pts, frame in compose_results(pieces, background, has_alpha, sizes, checks):
                writer.write(frame, pts)
                written += 1
            del pieces  # its large results must not outlive it while the next ones are computed
            if checks.has_failed and not is_last_try:
                break
        if checks.has_failed:
            raise _ChecksFailedError(checks.describe())
        if written != len(moments) and not options.allow_truncated:
            raise VideoError(f"{plan.path}: segment {index} gave {written} frames", f"{len(moments)}, as planned")
    pixels_outside, pixels_checked, _ = zip(*seen, strict=True)
    own = plan.segments[index].stop - plan.segments[index].start  # without the frame that the last pair needs
    return SegmentResult(
        written,
        sum(stage.frames_done for stage in stages),
        started_at,
        (sum(pixels_outside), sum(pixels_checked)),
        frames_checked=checks.num_checked,
        frames_deinterlaced=sum(is_deinterlaced for _, _, is_deinterlaced in seen[:own]),
        measured=checks.measured(),
        processors=find_processors(used),
    )


def open_stages(job: JobContext, used: dict[str, Any] | None = None) -> list[BatchInference]:
    """Open the sessions of a job.

    Args:
        job: Models, options and cache.
        used: Collects the actors that get frames, see ``CachedSession``; None to collect nothing.

    Returns:
        One stage for each model.

    Raises:
        GenAIRayError: As ``ModelCache.get_session``.
    """
    stages = []
    for spec, request in zip(job.specs, job.requests, strict=True):
        params = {name: value for name, value in job.options.params.items() if name in spec.params}
        stage = BatchInference(spec.model_id, batch_size=job.options.batch_size, params=params)
        stage.open(job.cache, request=request).used = used
        stages.append(stage)
    return stages


def _watched(frames: Iterator[DecodedFrame], tag: str, seen: list[tuple[int, int, bool]]) -> Iterator[DecodedFrame]:
    """Pass frames on until the job is cancelled; ``seen`` gets pixels outside RGB, those checked, if deinterlaced."""
    checked_at = time.monotonic()
    for frame in frames:
        if time.monotonic() - checked_at > CHECK_EVERY_S:
            check_cancelled(tag)
            checked_at = time.monotonic()
        seen.append((*frame.outside, frame.is_deinterlaced))
        yield frame
