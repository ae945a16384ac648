"""Frames through a chain of models: gathered into batches, sent ahead, and composed when they come back, in order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.batch import BatchInference
from genai_ray.cluster import FrameRange, PendingCall
from genai_ray.enhance.plan.background import Background, compose
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import TIMESTEP, Chain, Moment
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.enhance.segment.cuts import SegmentCuts
from genai_ray.enhance.segment.resize import add_bars, fit_alpha, fit_frame
from genai_ray.video import DecodedFrame

__all__ = [
    "BATCHES_AHEAD",
    "MAX_AHEAD_BYTES",
    "MAX_BATCH_BYTES",
    "compose_results",
    "gather",
    "pass_chain",
    "plan_batches",
]

MAX_BATCH_BYTES = 32 * 1024**2
"""Bytes of results that one batch may have; larger frames go one by one."""

BATCHES_AHEAD = 2
"""Batches of a segment that wait for results while the next one is decoded and the last one encoded."""

MAX_AHEAD_BYTES = 256 * 1024**2
"""Bytes of the results of those batches; if one frame is larger, the next one is sent when the last one is encoded."""

Array: TypeAlias = npt.NDArray[Any]
Frames: TypeAlias = Array | PendingCall


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


def plan_batches(options: EnhanceOptions, result_bytes: int, sessions: int = 1) -> tuple[int, int]:
    """Plan batches, so that the results in flight are bounded.

    Args:
        options: The options of the job.
        result_bytes: Bytes of what one frame of the source becomes.
        sessions: Sessions of each model that compute at the same time.

    Returns:
        Most frames in a batch, and how many batches are sent before one is waited for.
    """
    batch_size = max(1, min(options.batch_size, MAX_BATCH_BYTES // result_bytes))
    return batch_size, sessions * min(BATCHES_AHEAD, MAX_AHEAD_BYTES // (batch_size * result_bytes))


def gather(
    frames: Iterator[tuple[DecodedFrame, Sequence[Moment]]], batch_size: int, cuts: SegmentCuts | None
) -> Iterator[_Batch]:
    """Gather different frames into batches.

    A frame equal to the one before it is not computed again. Between two equal frames, and across a cut, no frame is
    made: there the first one is shown until the second.

    Args:
        frames: Frames of the source, each with the frames of the result that are shown from it until the next one.
        batch_size: Most frames in a batch.
        cuts: Tells cuts; None if no frames are added.

    Yields:
        Batches in order.
    """
    batch = _Batch()
    last: DecodedFrame | None = None
    for frame, moments in frames:
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
        batch.shown[-1] += [(moment.pts, moment.timestep) for moment in moments]
    if batch.frames:
        batch.hold()  # nothing follows
        yield batch


def _is_equal(a: DecodedFrame, b: DecodedFrame) -> bool:
    return np.array_equal(a.frame, b.frame) and (a.alpha is None or b.alpha is None or np.array_equal(a.alpha, b.alpha))


def pass_chain(
    batches: Iterator[_Batch], chain: Chain[BatchInference], ahead: int, *, enlarges_alpha: bool = False
) -> Iterator[list[tuple[int, _Piece]]]:
    """Send batches through a chain, some of them before waiting for one.

    Args:
        batches: From ``gather``.
        chain: The stages.
        ahead: How many batches are sent before one is waited for.
        enlarges_alpha: Whether alpha goes through the models too.

    Yields:
        For each batch, pts and place of the frames of the result, for ``compose_results``.

    Raises:
        GenAIRayError: What a session raises.
    """
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


def compose_results(
    pieces: list[tuple[int, _Piece]], background: Background, has_alpha: bool, sizes: FrameSizes, checks: SegmentChecks
) -> Iterator[tuple[int, Array]]:
    """Wait for the results of a batch, have them checked, and compose frames: size, background and alpha.

    Args:
        pieces: From ``pass_chain``.
        background: What replaces a background that is removed.
        has_alpha: Whether the result has alpha.
        sizes: The plan of sizes.
        checks: What compares frames with those of the source.

    Yields:
        pts and frame, (H, W, 3), or (H, W, 4) with alpha.

    Raises:
        GenAIRayError: What a session raises.
    """
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
