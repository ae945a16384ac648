"""When the frames of a result are shown, and between which two frames of the source each of them lies.

Everything is rational: the result gets a time base in which each of its times is a whole number. Does not look at pictures.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from genai_ray.errors import ConfigError
from genai_ray.video import Segment, VideoPlan

__all__ = ["MAX_FACTOR", "MAX_FPS", "Moment", "Timeline", "parse_rate", "retime"]

MAX_FACTOR = 16
"""Most frames of a result for one of the source."""

MAX_FPS = 1000
"""Containers of the Matroska family tell no times apart that are closer."""

RATE_TOLERANCE = Fraction(1, 1000)
"""A source whose rate is this much above the one that is asked for has it: its container rounds times."""

_MAX_TIME_BASE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame of a result."""

    pts: int
    """When it is shown, in the result's ``time_base`` units."""
    left: int
    """The frame of the source that is shown then."""
    timestep: Fraction
    """How far between that and the next one, in [0, 1); 0 is the frame itself."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The plan of a source and the plan of its result."""

    plan: VideoPlan
    """The source."""
    result: VideoPlan
    """The result: its times, time base and rate; cut into as many segments; ``plan`` itself where nothing changes."""

    def moments(self, index: int) -> list[Moment]:
        """Return the frames of the result that belong to a segment of the source: those shown from its first frame on.

        Args:
            index: Which segment.

        Returns:
            They, in order.
        """
        segment, times, source = self.result.segments[index], self.result.pts, self.plan.pts
        unit = self.result.info.time_base / self.plan.info.time_base
        moments = []
        for pts in times[segment.start : segment.stop]:
            time = pts * unit
            left = bisect.bisect_right(source, time) - 1
            step = source[left + 1] - source[left] if left + 1 < len(source) else 0
            moments.append(Moment(pts, left, (time - source[left]) / step if step else Fraction(0)))
        return moments

    def range_to_decode(self, index: int) -> Segment:
        """Return the frames of the source that a segment of the result is made of.

        Args:
            index: Which segment.

        Returns:
            The segment; with one frame more, which the last pair needs, where frames are added.
        """
        segment = self.plan.segments[index]
        if self.result.pts is self.plan.pts:
            return segment
        return replace(segment, stop=min(segment.stop + 1, len(self.plan.pts)))


def parse_rate(word: str | float) -> Fraction:
    """Read a rate.

    Args:
        word: A number or a fraction, such as 60 or 60000/1001.

    Returns:
        Frames per second, exactly.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        return Fraction(str(word))
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"fps {word}", "a number or a fraction, such as 60 or 60000/1001") from None


def retime(plan: VideoPlan, *, factor: int = 1, fps: Fraction | None = None) -> Timeline:
    """Plan a result of more frames; its first frame and its end are the source's.

    With ``factor`` m, the time of each frame is cut into m equal parts, whatever the frame's length, so a variable frame rate stays
    variable; the last frame has no successor and is held. With ``fps``, frames come at a constant rate from the first frame on.

    Args:
        plan: The source.
        factor: Frames of the result for one of the source, from 1 to ``MAX_FACTOR``.
        fps: Frames per second instead, at least those of the source, at most ``MAX_FPS``.

    Returns:
        Both plans.

    Raises:
        ConfigError: If ``fps`` is less than the source has, or a time of the result has no place in a time base of 32 bits.
    """
    if fps is None and factor == 1:
        return Timeline(plan, plan)
    base, bounds = plan.info.time_base, (*plan.pts, plan.pts[-1] + plan.duration)
    if fps is None:
        unit, rate = base / factor, plan.info.average_rate * factor
        times = [a * factor + step * (b - a) for a, b in pairwise(bounds) for step in range(factor)]
        end = bounds[-1] * factor
    else:
        own = len(plan.pts) / ((bounds[-1] - bounds[0]) * base)
        if own > fps * (1 + RATE_TOLERANCE):
            raise ConfigError(
                f"{float(fps):g} frames per second from {plan.path} of {float(own):.3f}", "as many as it has, or more"
            )
        unit, rate = _gcd(base, 1 / fps), fps
        first, step, end = (int(value / unit) for value in (bounds[0] * base, 1 / fps, bounds[-1] * base))
        times = list(range(first, end, step))
    common = math.gcd(*times, end)
    unit *= common
    if max(unit.numerator, unit.denominator) > _MAX_TIME_BASE:
        raise ConfigError(
            f"times of {unit} s for {plan.path}",
            f"a time base up to 1/{_MAX_TIME_BASE}",
            "Ask for another factor or rate.",
        )
    pts = tuple(time // common for time in times)
    result = replace(
        plan,
        info=replace(plan.info, time_base=unit, average_rate=rate),
        pts=pts,
        duration=end // common - pts[-1],
        segments=_cut(plan, pts, unit),
    )
    return Timeline(plan, result)


def _gcd(a: Fraction, b: Fraction) -> Fraction:
    """Return the largest unit of which both are whole multiples."""
    return Fraction(math.gcd(a.numerator * b.denominator, b.numerator * a.denominator), a.denominator * b.denominator)


def _cut(plan: VideoPlan, pts: Sequence[int], unit: Fraction) -> tuple[Segment, ...]:
    """Cut the result where the source is cut."""
    starts = [
        bisect.bisect_left(pts, plan.pts[segment.start] * plan.info.time_base / unit) for segment in plan.segments
    ]
    return tuple(Segment(index, start, stop) for index, (start, stop) in enumerate(pairwise((*starts, len(pts)))))
