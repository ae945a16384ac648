"""One segment: decode, infer, encode, with a bounded number of frames in flight; runs inside one Ray task."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.batch import BatchInference
from genai_ray.catalog import ModelSpec
from genai_ray.cluster import ModelCache, PendingCall, SessionRequest
from genai_ray.enhance.plan.background import Background, compose
from genai_ray.enhance.plan.chain import split_chain
from genai_ray.enhance.plan.frame_rate import Timeline
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.segment.cancellation import check_halted
from genai_ray.enhance.segment.frames import Piece, pass_chain
from genai_ray.errors import VideoError
from genai_ray.video import DecodedFrame, SegmentWriter, VideoInfo, decode_segment, predict_encoder_bytes, scale_alpha

__all__ = ["SegmentJob", "SegmentResult", "enhance_segment", "find_requests", "predict_segment_bytes"]

MAX_BATCH_BYTES = 32 * 1024**2
"""Bytes of results that one batch may have; frames too large for it go one by one."""

BATCHES_AHEAD = 2
"""Batches of a segment that wait for a result while the next one is decoded and the last one encoded."""

LOOK_EVERY_S = 0.5
"""How often a segment looks whether its job goes on."""

MAX_AHEAD_BYTES = 256 * 1024**2
"""Bytes of the results of those batches; of frames too large for it the next one is sent when the last one is encoded."""


@dataclass(frozen=True, slots=True)
class SegmentJob:
    """What every segment of a job has in common; travels to each task."""

    specs: tuple[ModelSpec, ...]
    """The chain."""
    requests: tuple[SessionRequest, ...]
    """Which sessions it needs, one a model."""
    options: EnhanceOptions
    """The job's options."""
    cache: ModelCache
    """Client of the cache that holds the models."""
    tag: str
    """Name of the job, by which sessions count its frames."""
    kind: str
    """Of the node that it was started on, see ``node_kind``."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What came of a segment."""

    frames: int
    """Frames written."""
    frames_inferred: int
    """Frames that went through ``BatchInference``, once for each model."""
    started_at: float
    """``time.time()`` at the first decoded frame: wall-clock, since it is compared across processes."""
    outside: tuple[int, int] = (0, 0)
    """Pixels of the source that are no colour of RGB, and pixels that were looked at for it."""
    digest: str = ""
    """What ``hash_segment`` says of its file; empty if it has no frame."""
    is_away: bool = False
    """Whether it was made where the work folder is not: its bytes are still to be brought there."""


def enhance_segment(timeline: Timeline, index: int, path: Path, job: SegmentJob) -> SegmentResult:
    """Enhance one segment of a video.

    Args:
        timeline: The planned video and the plan of its result.
        index: Which segment of it.
        path: Where it is written; nothing is left there of one that fails, or has no frame.
        job: Models, options and cache.

    Returns:
        The counts.

    Raises:
        HaltedError: If the job is over.
        VideoError: If the segment does not decode to exactly the planned frames, or does not give those of the result.
        GenAIRayError: Whatever a session raises.
    """
    plan, options, moments = timeline.plan, job.options, timeline.moments(index)
    if not moments:  # at a constant rate nothing may be shown of frames that are very short
        return SegmentResult(0, 0, time.time())
    stages = _open_stages(job)
    outside: list[tuple[int, int]] = []
    frames = _watched(
        decode_segment(plan, timeline.range_to_decode(index), allow_truncated=options.allow_truncated), job.tag, outside
    )
    first = next(frames, None)
    started_at, written = time.time(), 0
    scale = math.prod(spec.scale for spec in job.specs)
    size = (plan.info.width * scale, plan.info.height * scale)
    if first is None:
        if not options.allow_truncated:
            raise VideoError(f"{plan.path}: segment {index} has no frame that decodes")
        return SegmentResult(0, 0, started_at)
    per_frame = -(-len(moments) // (plan.segments[index].stop - plan.segments[index].start))
    result_bytes = size[0] * size[1] * 3 * first.frame.itemsize * per_frame
    most = max(1, min(options.batch_size, MAX_BATCH_BYTES // result_bytes))
    passed = pass_chain(
        chain([first], frames),
        moments,
        split_chain(job.specs, stages),
        batch_size=most,
        batches_ahead=min(BATCHES_AHEAD, MAX_AHEAD_BYTES // (most * result_bytes)),
        scene_threshold=options.scene_threshold,
    )
    info = timeline.result.info
    has_alpha = info.has_alpha and options.encoding.has_alpha
    with SegmentWriter(path, info=info, size=size, encoding=options.encoding, has_alpha=has_alpha) as writer:
        for pts, frame in _finished(passed, options.background or Background(), has_alpha):
            writer.write(frame, pts)
            written += 1
        if written != len(moments) and not options.allow_truncated:
            raise VideoError(f"{plan.path}: segment {index} gave {written} frames", f"{len(moments)}, as planned")
    no_colour, looked_at = zip(*outside, strict=True)
    return SegmentResult(
        written, sum(stage.frames_done for stage in stages), started_at, (sum(no_colour), sum(looked_at))
    )


def find_requests(info: VideoInfo, specs: Sequence[ModelSpec], options: EnhanceOptions) -> tuple[SessionRequest, ...]:
    """Return which sessions the chain needs: each for the largest frame that will come to it.

    Args:
        info: The video's.
        specs: The chain.
        options: The options of the video.

    Returns:
        One request a model.
    """
    height, width = info.height, info.width
    requests = []
    for spec in specs:
        request = SessionRequest(
            spec.model_id,
            options.backend,
            options.precision,
            device=options.device,
            max_frame=(height, width),
            tile_size_px=options.tile_size_px,
            device_kinds=options.device_kinds,
        )
        requests.append(request)
        height, width = height * spec.scale, width * spec.scale
    return tuple(requests)


def predict_segment_bytes(size: tuple[int, int], bit_depth: int) -> int:
    """Predict what a task takes while it makes one segment: frames in the object store and on their way, and the encoder; not the sessions.

    Args:
        size: (width, height) of the result in pixels.
        bit_depth: Bits of a component.

    Returns:
        Bytes.
    """
    frame_bytes = size[0] * size[1] * 3 * (1 if bit_depth <= 8 else 2)
    batches = (
        min(BATCHES_AHEAD, MAX_AHEAD_BYTES // max(frame_bytes, MAX_BATCH_BYTES)) + 2
    )  # one is encoded, and one computed
    return batches * max(frame_bytes, MAX_BATCH_BYTES) + 2 * frame_bytes + predict_encoder_bytes(size, bit_depth)


def _watched(frames: Iterator[DecodedFrame], tag: str, outside: list[tuple[int, int]]) -> Iterator[DecodedFrame]:
    """Pass frames on, note what of them lies outside RGB, and end where the job has ended."""
    looked_at = time.monotonic()
    for frame in frames:
        if time.monotonic() - looked_at > LOOK_EVERY_S:
            check_halted(tag)
            looked_at = time.monotonic()
        outside.append(frame.outside)
        yield frame


def _open_stages(job: SegmentJob) -> list[BatchInference]:
    stages = []
    for spec, request in zip(job.specs, job.requests, strict=True):
        params = {name: value for name, value in job.options.params.items() if name in spec.params}
        stages.append(BatchInference(spec.model_id, batch_size=job.options.batch_size, params=params))
        stages[-1].open(job.cache, request=request, tag=job.tag)
    return stages


def _finished(
    passed: Iterator[list[tuple[int, Piece]]], background: Background, has_alpha: bool
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Wait for results, a batch at a time, and put what belongs to a frame together."""
    for batch in passed:
        yield from _finished_batch(batch, background, has_alpha)
        del batch  # large results must not outlive it while the next ones are waited for


def _finished_batch(
    batch: list[tuple[int, Piece]], background: Background, has_alpha: bool
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    calls = {id(call): call for _, piece in batch for call in (piece.frames, piece.mask) if call is not None}
    results = {key: call.result() if isinstance(call, PendingCall) else call for key, call in calls.items()}
    for pts, piece in batch:
        frame = results[id(piece.frames)][piece.position]
        alpha = (
            piece.alpha
            if piece.alpha is None or not has_alpha
            else scale_alpha(piece.alpha, (frame.shape[1], frame.shape[0]))
        )
        if piece.mask is not None:
            mask = results[id(piece.mask)][piece.position]
            frame = compose(frame, mask, background)
            if background.kind == "alpha":
                alpha = mask if alpha is None else np.minimum(mask, alpha)
        yield pts, frame if alpha is None or not has_alpha else np.concatenate([frame, alpha], axis=-1)
