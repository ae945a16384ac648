"""The times of a result whose source comes frame by frame: those that ``retime`` gives a source that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from genai_ray.catalog import ModelSpec
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.timeline import DEFAULT_FACTOR, RATE_TOLERANCE, Moment, adds_frames
from genai_ray.errors import ConfigError
from genai_ray.video import VideoInfo

__all__ = ["Pace", "plan_pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How frames of a source become frames of its result, in time."""

    time_base: Fraction
    """Seconds per unit of the result's times."""
    rate: Fraction
    """Frames per second of the result, on average."""
    units: int
    """Units of the result for one of the source."""
    parts: int = 1
    """Frames for one of the source; of no meaning with ``step``."""
    step: int | None = None
    """Units between two frames of a constant rate; None if each frame of the source is cut into ``parts``."""

    def moments(self, index: int, begin: int, end: int, first: int) -> list[Moment]:
        """Return the frames that are shown from a frame of the source until it ends.

        Args:
            index: Index of the frame.
            begin: When it is shown, in units of the source.
            end: When it ends, in units of the source.
            first: When the first frame of the source is shown.

        Returns:
            The frames in order of time.
        """
        length = end - begin
        start = begin * self.units
        if self.step is None:
            units = length * self.units // self.parts
            return [Moment(start + part * units, index, Fraction(part, self.parts)) for part in range(self.parts)]
        origin = first * self.units
        number = -((origin - start) // self.step)
        times = range(origin + number * self.step, end * self.units, self.step)
        return [Moment(time, index, Fraction(time - start, length * self.units)) for time in times]


def plan_pace(info: VideoInfo, specs: Sequence[ModelSpec], options: EnhanceOptions) -> Pace:
    """Plan the times of a result.

    Args:
        info: Facts of the source.
        specs: The chain.
        options: The options, checked.

    Returns:
        The pace.

    Raises:
        ConfigError: If fewer frames per second are asked for than the source has.
    """
    base, rate = info.time_base, info.average_rate
    if not adds_frames(specs):
        return Pace(base, rate, 1)
    if options.slow_motion is not None:
        return Pace(base, rate, options.slow_motion, options.slow_motion)
    if options.fps is None:
        factor = options.factor or DEFAULT_FACTOR
        return Pace(base / factor, rate * factor, factor, factor)
    if rate > options.fps * (1 + RATE_TOLERANCE):
        raise ConfigError(
            f"{float(options.fps):g} frames per second from a source of {float(rate):.3f}", "as many as it has, or more"
        )
    length = 1 / options.fps
    unit = Fraction(
        math.gcd(base.numerator * length.denominator, length.numerator * base.denominator),
        base.denominator * length.denominator,
    )
    return Pace(unit, options.fps, int(base / unit), step=int(length / unit))
