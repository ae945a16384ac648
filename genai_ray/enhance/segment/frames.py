"""The frames of one segment on their way through the chain: sent in batches, several at once, by reference from session to session."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.batch import BatchInference
from genai_ray.cluster import PendingCall, Span
from genai_ray.enhance.plan.chain import TIMESTEP, Chain
from genai_ray.enhance.plan.frame_rate import Moment
from genai_ray.enhance.plan.scenes import is_cut, thumbnail
from genai_ray.video import DecodedFrame

__all__ = ["Piece", "pass_chain"]

Frames: TypeAlias = npt.NDArray[Any] | PendingCall


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one frame of the result will be."""

    frames: Frames
    """The batch that it is in."""
    mask: PendingCall | None
    """Masks of that batch, for a chain that removes the background."""
    position: int
    """Its place in the batch."""
    alpha: npt.NDArray[Any] | None
    """Alpha of the source then, (H, W, 1), of the source's size; None where it has none."""


@dataclass(slots=True)
class _Batch:
    """Different frames in order, and what of the result comes from each of them."""

    frames: list[npt.NDArray[Any]] = field(default_factory=list)
    alphas: list[tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]] = field(default_factory=list)
    """For each frame: its alpha, and that of the next one."""
    shown: list[list[tuple[int, Fraction]]] = field(default_factory=list)
    """For each frame: pts in the result, and how far towards the next frame."""

    def add(self, frame: DecodedFrame) -> None:
        self.frames.append(frame.frame)
        self.alphas.append((frame.alpha, None))
        self.shown.append([])

    def hold(self) -> None:
        """Show the last frame until the next one, with nothing between."""
        self.shown[-1] = [(pts, Fraction(0)) for pts, _ in self.shown[-1]]


def pass_chain(
    frames: Iterator[DecodedFrame],
    moments: Sequence[Moment],
    chain: Chain[BatchInference],
    *,
    batch_size: int,
    batches_ahead: int,
    scene_threshold: float,
) -> Iterator[list[tuple[int, Piece]]]:
    """Send frames through a chain.

    A frame equal to the one before it is not computed again, nothing is computed between two equal ones, and nothing across a cut: there the
    frame before it is shown until the frame after it.

    Args:
        frames: Of one segment, and one more where the chain adds frames.
        moments: The frames of the result.
        chain: Stages with open sessions.
        batch_size: Most frames in one call.
        batches_ahead: Batches that are sent before the first of them is waited for.
        scene_threshold: What counts as a cut; see ``is_cut``.

    Yields:
        Batch by batch, time and place of each frame of the result, in order.

    Raises:
        GenAIRayError: Whatever a session raises.
    """
    waiting: deque[list[tuple[int, Piece]]] = deque()
    batches = _batches(frames, moments, batch_size, scene_threshold if chain.between is not None else None)
    sent = ((batch, _send(np.stack(batch.frames), chain.before)) for batch in batches)
    # Only pairs need to know what follows; for others it would be one more batch in flight.
    for (batch, passed), following in (
        _with_next(sent) if chain.between is not None else ((entry, None) for entry in sent)
    ):
        waiting.append(_place(batch, passed, following, chain))
        if len(waiting) > batches_ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _send(frames: Frames | Span, stages: Sequence[BatchInference]) -> Any:
    for stage in stages:
        frames = stage.submit(frames)
    return frames


def _with_next(sent: Iterator[tuple[_Batch, Frames]]) -> Iterator[tuple[tuple[_Batch, Frames], Frames | None]]:
    """Give each batch with what comes after it, since its last frame and the next one are a pair."""
    entry = next(sent, None)
    while entry is not None:
        following = next(sent, None)
        yield entry, following[1] if following is not None else None
        entry = following


def _batches(
    frames: Iterator[DecodedFrame], moments: Sequence[Moment], batch_size: int, threshold: float | None
) -> Iterator[_Batch]:
    """Gather different frames into batches; ``threshold`` is None where no frames are added."""
    shown_from = {left: list(group) for left, group in groupby(moments, key=lambda moment: moment.left)}
    batch, last = _Batch(), None
    small: npt.NDArray[Any] | None = None
    for frame in frames:
        is_same = last is not None and _is_equal(last, frame)
        before = small
        if not is_same:
            small = thumbnail(frame.frame) if threshold is not None else None
        if last is not None and (is_same or before is None or small is None or is_cut(before, small, threshold or 0.0)):
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


def _blend(alphas: tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None], step: Fraction) -> npt.NDArray[Any] | None:
    """Give alpha between two frames, of which models know nothing."""
    before, after = alphas
    if before is None or after is None or not step:
        return before
    share = np.float32(step)
    blended: npt.NDArray[Any] = np.rint(before * (1 - share) + after * share).astype(before.dtype)
    return blended


def _place(
    batch: _Batch, passed: Frames, following: Frames | None, chain: Chain[BatchInference]
) -> list[tuple[int, Piece]]:
    """Send what is needed between and after, and say where each frame of the result will be."""
    wanted = sorted({(step, position) for position, shown in enumerate(batch.shown) for _, step in shown})
    places: dict[tuple[int, Fraction], Piece] = {}
    masks: dict[int, PendingCall] = {}
    for step, group in groupby(wanted, key=lambda entry: entry[0]):
        for start, stop in _runs([position for _, position in group]):
            result, offset = passed, 0
            if step and chain.between is not None:
                made = chain.between.submit(_span(passed, following, start, stop + 1), {TIMESTEP: float(step)})
                result, offset = _send(made, chain.after), start
            elif chain.after:
                result, offset = _send(_span(passed, None, start, stop), chain.after), start
            if chain.mask is not None and id(result) not in masks:
                masks[id(result)] = chain.mask.submit(result)
            mask = masks.get(id(result))
            places |= {
                (at, step): Piece(result, mask, at - offset, _blend(batch.alphas[at], step))
                for at in range(start, stop)
            }
    return [(pts, places[position, step]) for position, shown in enumerate(batch.shown) for pts, step in shown]


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the half-open ranges that rising positions are."""
    start = positions[0]
    for position, after in pairwise((*positions, -1)):
        if after != position + 1:
            yield start, position + 1
            start = after


def _span(first: Frames, second: Frames | None, start: int, stop: int) -> Frames | Span:
    """Take a range of frames over two batches."""
    length = first.num_frames if isinstance(first, PendingCall) else len(first)
    if start == 0 and stop == length:
        return first
    parts = (first,) if second is None or stop <= length else (first, second)
    if not any(isinstance(part, PendingCall) for part in parts):
        return np.concatenate(
            [
                part[max(start - at, 0) : stop - at]  # type: ignore[index]
                for part, at in zip(parts, (0, length), strict=False)
            ]
        )
    return Span(parts, start, stop)
