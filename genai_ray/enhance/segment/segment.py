"""One segment of one video: decode, models, encode, with a bounded number of frames in flight, in one Ray task.

The pipeline in order: ``decode_source`` gives frames, ``_batches`` gathers those that differ, ``_pass_chain`` sends
each batch through the chain of sessions, ``_compose_results`` waits for results, has them checked and composes frames,
``open_writer`` gives what encodes. If a frame fails the checks, all of this is done once more in FP32 by ONNX Runtime.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.batch import BatchInference
from genai_ray.catalog import ModelSpec
from genai_ray.cluster import FrameRange, Lease, ModelCache, PendingCall, SessionRequest, lease_within
from genai_ray.enhance.plan.background import Background, compose
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import TIMESTEP, Chain, Moment, Timeline, split_chain
from genai_ray.enhance.segment.cancellation import JobCancelledError, check_cancelled
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.enhance.segment.cuts import SegmentCuts, find_segment_cuts
from genai_ray.enhance.segment.resize import add_bars, fit_alpha, fit_frame, reduce_frames
from genai_ray.errors import (
    DeadlineExceededError,
    GenAIRayError,
    QualityError,
    ResourceExhaustedError,
    VideoError,
)
from genai_ray.tune import Way
from genai_ray.types import ModelBackend, ModelPrecision
from genai_ray.video import Budget, DecodedFrame, decode_source, open_writer

__all__ = [
    "BATCHES_AHEAD",
    "MAX_AHEAD_BYTES",
    "MAX_BATCH_BYTES",
    "JobContext",
    "SegmentResult",
    "enhance_segment",
]

_log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 32 * 1024**2
"""Bytes of results that one batch may have; larger frames go one by one."""

BATCHES_AHEAD = 2
"""Batches of a segment that wait for results while the next one is decoded and the last one encoded."""

MAX_AHEAD_BYTES = 256 * 1024**2
"""Bytes of the results of those batches; if one frame is larger, the next one is sent when the last one is encoded."""

RELOAD_WITHIN_S = 60.0
"""A segment that is computed again waits this long for room for its sessions: the job's own may fill the cache."""

LEASE_WITHIN_S = 2.0
"""It looks as often whether its job is cancelled meanwhile."""

CHECK_EVERY_S = 0.5
"""How often a segment checks whether its job is cancelled."""

Array: TypeAlias = npt.NDArray[Any]
Frames: TypeAlias = Array | PendingCall


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
    """Frames that went through ``BatchInference``, once for each model; of a segment that was computed again, those of
    the second time."""
    started_at: float
    """``time.time()`` at the first decoded frame: wall-clock, since it is compared across processes."""
    outside: tuple[int, int] = (0, 0)
    """Pixels of the source outside the RGB gamut, and pixels that were checked for it."""
    digest: str = ""
    """Hash of its file, from ``hash_segment``; empty if it has no frame."""
    frames_checked: int = 0
    """Frames that were compared with those of the source."""
    frames_deinterlaced: int = 0
    """Frames of the source that were made of interlaced ones."""
    measured: Mapping[str, float | str] = field(default_factory=dict)
    """What the strict checks measured, see ``SegmentChecks.measured``."""
    frames_digest: str = ""
    """Hash of its decoded frames, from ``digest_part``; empty if the result has no record, or it has no frame."""
    recomputed: str = ""
    """Why it was computed again in FP32 by ONNX Runtime; empty if it was not."""
    is_away: bool = False
    """Whether it was made on a node without the work folder, so that its bytes must still be brought there."""


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Where one frame of the result will be."""

    frames: Frames
    """Its batch."""
    mask: PendingCall | None
    """Masks of that batch, if the chain removes the background."""
    position: int
    """Its position in the batch."""
    alpha: Array | None
    """Alpha of the source at that time, (H, W, 1), of the source's size; None if the source has none."""
    origin: tuple[int, Array] | None = None
    """Index and pixels of the frame of the source that it shows; None for a frame between two of them."""
    enlarged: PendingCall | None = None
    """Alphas of that batch as grey frames that went through the models; None if alpha is resampled."""


@dataclass(slots=True)
class _Batch:
    """Different frames in order, and the frames of the result that come from each of them."""

    frames: list[Array] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """For each frame: its index in the source."""
    alphas: list[tuple[Array | None, Array | None]] = field(default_factory=list)
    """For each frame: its alpha, and that of the next one."""
    shown: list[list[tuple[int, Fraction]]] = field(default_factory=list)
    """For each frame: pts in the result, and how far towards the next frame."""
    enlarged: PendingCall | None = None
    """Alphas as grey frames that went through the models; None if they are resampled."""

    def add(self, frame: DecodedFrame) -> None:
        self.frames.append(frame.frame)
        self.indices.append(frame.index)
        self.alphas.append((frame.alpha, None))
        self.shown.append([])

    def stack(self) -> Array:
        """Return the frames as one array, (N, H, W, 3), and keep them only there."""
        stacked = np.stack(self.frames)
        self.frames = list(stacked)
        return stacked

    def submit_alphas(self, chain: Chain[BatchInference]) -> None:
        """Send alphas through the models as grey frames, unless each is the same everywhere."""
        alphas = [alpha for alpha, _ in self.alphas if alpha is not None]
        if len(alphas) == len(self.frames) and any(map(_varies, alphas)):
            self.enlarged = _submit_through(np.repeat(np.stack(alphas), 3, axis=-1), chain.before_interpolation)

    def hold(self) -> None:
        """Show the last frame until the next one, with nothing between."""
        self.shown[-1] = [(pts, Fraction(0)) for pts, _ in self.shown[-1]]


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
    stages = _open_stages(job)
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
    batch_size = max(1, min(options.batch_size, MAX_BATCH_BYTES // result_bytes))
    batches = _batches(itertools.chain([first], frames), moments, batch_size, cuts)
    ahead = min(BATCHES_AHEAD, MAX_AHEAD_BYTES // (batch_size * result_bytes))
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
        for pieces in _pass_chain(batches, chain, ahead, enlarges_alpha=enlarges_alpha):
            for pts, frame in _compose_results(pieces, background, has_alpha, sizes, checks):
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
    )


def _open_stages(job: JobContext) -> list[BatchInference]:
    stages = []
    for spec, request in zip(job.specs, job.requests, strict=True):
        params = {name: value for name, value in job.options.params.items() if name in spec.params}
        stage = BatchInference(spec.model_id, batch_size=job.options.batch_size, params=params)
        stage.open(job.cache, request=request)
        stages.append(stage)
    return stages


def _watched(frames: Iterator[DecodedFrame], tag: str, seen: list[tuple[int, int, bool]]) -> Iterator[DecodedFrame]:
    """Pass frames on, and stop if the job is cancelled.

    For each frame, ``seen`` gets its pixels outside the RGB gamut, those checked, and whether it was deinterlaced.
    """
    checked_at = time.monotonic()
    for frame in frames:
        if time.monotonic() - checked_at > CHECK_EVERY_S:
            check_cancelled(tag)
            checked_at = time.monotonic()
        seen.append((*frame.outside, frame.is_deinterlaced))
        yield frame


def _batches(
    frames: Iterator[DecodedFrame], moments: Sequence[Moment], batch_size: int, cuts: SegmentCuts | None
) -> Iterator[_Batch]:
    """Gather different frames into batches.

    A frame equal to the one before it is not computed again. Between two equal frames, and across a cut, no frame is
    made: there the first one is shown until the second. ``cuts`` is None if no frames are added.
    """
    shown_from = {left: list(group) for left, group in groupby(moments, key=lambda moment: moment.left)}
    batch = _Batch()
    last: DecodedFrame | None = None
    for frame in frames:
        is_same = last is not None and _is_equal(last, frame)
        is_held = is_same or cuts is None or cuts.lies_before(frame.index, frame.frame)
        if last is not None and is_held:
            batch.hold()
        if not is_same:
            if batch.frames:
                batch.alphas[-1] = (batch.alphas[-1][0], frame.alpha)
            if len(batch.frames) == batch_size:
                yield batch
                batch = _Batch()
            batch.add(frame)
            last = frame
        batch.shown[-1] += [(moment.pts, moment.timestep) for moment in shown_from.get(frame.index, ())]
    if batch.frames:
        batch.hold()  # nothing follows
        yield batch


def _is_equal(a: DecodedFrame, b: DecodedFrame) -> bool:
    return np.array_equal(a.frame, b.frame) and (a.alpha is None or b.alpha is None or np.array_equal(a.alpha, b.alpha))


def _pass_chain(
    batches: Iterator[_Batch], chain: Chain[BatchInference], ahead: int, *, enlarges_alpha: bool
) -> Iterator[list[tuple[int, _Piece]]]:
    """Send batches through a chain, ``ahead`` of them before waiting for one; give pts and place of each frame."""
    waiting: deque[list[tuple[int, _Piece]]] = deque()
    sent = ((batch, _submit_through(batch.stack(), chain.before_interpolation)) for batch in batches)
    # Only pairs need to know what follows; for others it would be one more batch in flight.
    entries = _with_next(sent) if chain.interpolation is not None else ((entry, None) for entry in sent)
    for (batch, passed), following in entries:
        if enlarges_alpha:
            batch.submit_alphas(chain)
        waiting.append(_place(batch, passed, following, chain))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _submit_through(frames: Frames | FrameRange, stages: Sequence[BatchInference]) -> Any:
    """Send frames to one stage after the other; each gets the pending result of the one before it."""
    for stage in stages:
        frames = stage.submit(frames)
    return frames


def _with_next(sent: Iterator[tuple[_Batch, Frames]]) -> Iterator[tuple[tuple[_Batch, Frames], Frames | None]]:
    """Give each batch with the one after it, since its last frame and the next one are a pair."""
    entry = next(sent, None)
    while entry is not None:
        following = next(sent, None)
        yield entry, following[1] if following is not None else None
        entry = following


def _place(
    batch: _Batch, passed: Frames, following: Frames | None, chain: Chain[BatchInference]
) -> list[tuple[int, _Piece]]:
    """Send pairs and results to the remaining stages, and say where each frame of the result will be."""
    wanted = sorted({(step, position) for position, shown in enumerate(batch.shown) for _, step in shown})
    places: dict[tuple[int, Fraction], _Piece] = {}
    masks: dict[int, PendingCall] = {}
    for step, group in groupby(wanted, key=lambda entry: entry[0]):
        for start, stop in _runs([position for _, position in group]):
            result = passed
            offset = 0
            if step and chain.interpolation is not None:
                made = chain.interpolation.submit(
                    _frame_range(passed, following, start, stop + 1), {TIMESTEP: float(step)}
                )
                result = _submit_through(made, chain.after_interpolation)
                offset = start
            elif chain.after_interpolation:
                result = _submit_through(_frame_range(passed, None, start, stop), chain.after_interpolation)
                offset = start
            if chain.mask is not None and id(result) not in masks:
                masks[id(result)] = chain.mask.submit(result)
            for at in range(start, stop):
                alpha = _blend(batch.alphas[at], step)
                origin = None if step else (batch.indices[at], batch.frames[at])
                enlarged = batch.enlarged if alpha is not None and _varies(alpha) else None
                places[at, step] = _Piece(result, masks.get(id(result)), at - offset, alpha, origin, enlarged)
    return [(pts, places[position, step]) for position, shown in enumerate(batch.shown) for pts, step in shown]


def _varies(alpha: Array) -> bool:
    return bool((alpha != alpha.flat[0]).any())


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the half-open ranges that rising positions form."""
    start = positions[0]
    for position, after in pairwise((*positions, -1)):
        if after != position + 1:
            yield start, position + 1
            start = after


def _frame_range(first: Frames, second: Frames | None, start: int, stop: int) -> Frames | FrameRange:
    """Take a range of frames over two batches."""
    length = first.num_frames if isinstance(first, PendingCall) else len(first)
    if start == 0 and stop == length:
        return first
    parts = (first,) if second is None or stop <= length else (first, second)
    arrays = [part for part in parts if not isinstance(part, PendingCall)]
    if len(arrays) < len(parts):
        return FrameRange(parts, start, stop)
    return np.concatenate(
        [array[max(start - at, 0) : stop - at] for array, at in zip(arrays, (0, length), strict=False)]
    )


def _blend(alphas: tuple[Array | None, Array | None], step: Fraction) -> Array | None:
    """Interpolate alpha between two frames; models do not know it."""
    before, after = alphas
    if before is None or after is None or not step:
        return before
    share = np.float32(step)
    blended: Array = np.rint(before * (1 - share) + after * share).astype(before.dtype)
    return blended


def _compose_results(
    pieces: list[tuple[int, _Piece]], background: Background, has_alpha: bool, sizes: FrameSizes, checks: SegmentChecks
) -> Iterator[tuple[int, Array]]:
    """Wait for the results of a batch and have them checked; give each frame with its size, background and alpha."""
    calls = {
        id(call): call for _, piece in pieces for call in (piece.frames, piece.mask, piece.enlarged) if call is not None
    }
    results = {key: call.result() if isinstance(call, PendingCall) else call for key, call in calls.items()}
    for piece, shown in Counter(piece for _, piece in pieces).items():
        if piece.origin is not None:
            checks.add(*piece.origin, results[id(piece.frames)][piece.position], shown)
    for pts, piece in pieces:
        frame = fit_frame(results[id(piece.frames)][piece.position], sizes)
        alpha = fit_alpha(piece.alpha, sizes) if piece.alpha is not None and has_alpha else None
        if piece.enlarged is not None:
            grey = results[id(piece.enlarged)][piece.position]
            alpha = fit_frame(np.rint(grey.mean(axis=2, keepdims=True, dtype=np.float64)).astype(grey.dtype), sizes)
        if piece.mask is not None:
            mask = fit_frame(results[id(piece.mask)][piece.position], sizes)
            frame = compose(frame, mask, background)
            if background.kind == "alpha":
                alpha = mask if alpha is None else np.minimum(mask, alpha)
        if alpha is not None and has_alpha:
            frame = np.concatenate([frame, alpha], axis=-1)
        yield pts, add_bars(frame, sizes)
