"""One segment: decode, infer, encode, with a bounded number of frames in flight; runs inside one Ray task."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.batch import BatchInference
from genai_ray.catalog import ModelSpec
from genai_ray.cluster import ModelCache, PendingCall
from genai_ray.enhance.options import EnhanceOptions
from genai_ray.enhance.store import PARTIAL_SUFFIX
from genai_ray.errors import VideoError
from genai_ray.types import ModelTask
from genai_ray.video import DecodedFrame, SegmentWriter, VideoPlan, decode_segment

__all__ = ["SegmentJob", "SegmentResult", "enhance_segment"]

MAX_BATCH_BYTES = 32 * 1024**2
"""Bytes of results that one batch may have; frames too large for it go one by one."""

BATCHES_IN_FLIGHT = 2
"""Batches of a segment that wait for a result while the next one is decoded and the last one encoded."""


@dataclass(frozen=True, slots=True)
class SegmentJob:
    """What every segment of a job has in common; travels to each task."""

    specs: tuple[ModelSpec, ...]
    """The chain."""
    options: EnhanceOptions
    """The job's options."""
    cache: ModelCache
    """Client of the cache that holds the models."""
    tag: str
    """Name of the job, by which sessions count its frames."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What came of a segment."""

    frames: int
    """Frames written."""
    frames_inferred: int
    """Frames that went through ``BatchInference``, once for each model."""
    started_at: float
    """``time.time()`` at the first decoded frame: wall-clock, since it is compared across processes."""


def enhance_segment(plan: VideoPlan, index: int, path: Path, job: SegmentJob) -> SegmentResult:
    """Enhance one segment of a video and publish it.

    Args:
        plan: The planned video.
        index: Which segment of it.
        path: Where the finished segment goes; it appears there whole or not at all.
        job: Models, options and cache.

    Returns:
        The counts.

    Raises:
        VideoError: If the segment does not decode to exactly the planned frames.
        GenAIRayError: Whatever a session raises.
    """
    options = job.options
    stages = [
        BatchInference(
            spec.model_id,
            batch_size=options.batch_size,
            backend=options.backend,
            precision=options.precision,
            params=_params(spec, options),
        )
        for spec in job.specs
    ]
    for stage in stages:
        stage.open(job.cache, device=options.device, tag=job.tag)
    frames = decode_segment(plan, plan.segments[index], allow_truncated=options.allow_truncated)
    first = next(frames, None)
    started_at, written = time.time(), 0
    scale = int(np.prod([spec.scale for spec in job.specs]))
    size = (plan.info.width * scale, plan.info.height * scale)
    if first is None:
        if not options.allow_truncated:
            raise VideoError(f"{plan.path}: segment {index} has no frame that decodes")
        return SegmentResult(0, 0, started_at)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with SegmentWriter(partial, info=plan.info, size=size, encoding=options.encoding) as writer:
        for pts, result in _pass_chain(_batches(first, frames, size, options.batch_size), stages, job):
            for frame_pts, frame in zip(pts, result, strict=True):
                writer.write(frame, frame_pts)
            written += len(pts)
    partial.replace(path)
    return SegmentResult(written, sum(stage.frames_done for stage in stages), started_at)


def _params(spec: ModelSpec, options: EnhanceOptions) -> dict[str, float]:
    return {name: value for name, value in options.params.items() if name in spec.params}


def _batches(first: DecodedFrame, rest: Iterator[DecodedFrame], size: tuple[int, int], batch_size: int) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    most = max(1, min(batch_size, MAX_BATCH_BYTES // (size[0] * size[1] * 3 * first.frame.itemsize)))
    pending = [first]
    for frame in rest:
        if len(pending) == most:
            yield [f.pts for f in pending], np.stack([f.frame for f in pending])
            pending = []
        pending.append(frame)
    yield [f.pts for f in pending], np.stack([f.frame for f in pending])


def _pass_chain(
    batches: Iterator[tuple[list[int], npt.NDArray[Any]]], stages: Sequence[BatchInference], job: SegmentJob
) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """Send batches through the chain, several at once, and give back results in order."""
    waiting: deque[tuple[list[int], PendingCall | npt.NDArray[Any]]] = deque()
    for pts, frames in batches:
        passed: PendingCall | npt.NDArray[Any] = frames
        for stage, spec in zip(stages, job.specs, strict=True):
            sent = stage.submit(passed)
            passed = sent if spec.task is not ModelTask.BACKGROUND_REMOVAL else _compose(passed, sent, job.options.background)
        waiting.append((pts, passed))
        if len(waiting) > BATCHES_IN_FLIGHT:
            yield _finish(waiting.popleft())
    while waiting:
        yield _finish(waiting.popleft())


def _finish(item: tuple[list[int], PendingCall | npt.NDArray[Any]]) -> tuple[list[int], npt.NDArray[Any]]:
    pts, passed = item
    return pts, passed.result() if isinstance(passed, PendingCall) else passed


def _compose(source: PendingCall | npt.NDArray[Any], mask: PendingCall, background: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Put a plain colour behind the subject: ``frame * mask + background * (1 - mask)``, rounded to nearest."""
    frames = source.result() if isinstance(source, PendingCall) else source
    peak = float(np.iinfo(frames.dtype).max)
    share = mask.result().astype(np.float32) / peak
    colour = np.asarray(background, np.float32) * (peak / 255)
    composed: npt.NDArray[Any] = np.rint(frames * share + colour * (1 - share)).astype(frames.dtype)
    return composed
