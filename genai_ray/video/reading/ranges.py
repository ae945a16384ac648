"""Ranges of a video: segments of frames, and a piece in time."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Segment", "Span", "cut_segments"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open range of frames in display order."""

    index: int
    """Position in the plan."""
    start: int
    """First frame."""
    stop: int
    """One past the last frame."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a video, half-open, in seconds of the file's times."""

    begin: Fraction
    """The time of its first frame."""
    end: Fraction
    """When its last frame ends."""
    tracks_end: Fraction
    """When the other tracks end: with the pictures, or, if the piece goes on to the end of the video, at their own
    end."""


def cut_segments(count: int, keys: tuple[int, ...], most: int) -> tuple[Segment, ...]:
    """Cut evenly, at key frames if they are near, and less often if more frames would be dropped than kept.

    Args:
        count: Frames to cut.
        keys: Positions of key frames, ascending; the first may be negative: decoding of frame 0 starts there.
        most: Most frames in a segment, if key frames allow it.

    Returns:
        The segments, which begin at 0 and end at ``count``.
    """
    number = -(-count // most)
    while True:
        cuts = [0]
        for index in range(1, number):
            wanted = round(count * index / number)
            slack = max(count // number // 4, 1)
            near = keys[bisect.bisect_left(keys, wanted - slack) : bisect.bisect_right(keys, wanted)]
            cut = near[-1] if near else wanted
            if cut > cuts[-1]:
                cuts.append(cut)
        dropped = sum(cut - keys[max(bisect.bisect_right(keys, cut) - 1, 0)] for cut in cuts) if keys else 0
        if number == 1 or dropped <= count:
            break
        number -= 1
    return tuple(
        Segment(index, start, stop) for index, (start, stop) in enumerate(zip(cuts, [*cuts[1:], count], strict=True))
    )
