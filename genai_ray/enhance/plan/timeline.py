"""How a chain of models changes the stream of frames: its order, and the times of the result's frames.

Times are rational numbers: a result gets a time base in which each of its times is a whole number.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Generic, TypeVar

from genai_ray.catalog import ModelSpec
from genai_ray.enhance.plan.background import Background
from genai_ray.errors import ConfigError
from genai_ray.scenes import SCENE_THRESHOLD
from genai_ray.types import ModelTask, parse_fraction
from genai_ray.video import Segment, VideoPlan

__all__ = [
    "DEFAULT_FACTOR",
    "RATE_TOLERANCE",
    "TIMESTEP",
    "Chain",
    "Moment",
    "Timeline",
    "adds_frames",
    "check_chain",
    "check_rate",
    "count_results",
    "has_mask",
    "parse_rate",
    "plan_result",
    "retime",
    "split_chain",
]

TIMESTEP = "timestep"
"""Input of a model that adds frames: the place of the new frame between its two neighbours, in [0, 1)."""

DEFAULT_FACTOR = 2
"""Frames of the result for one of the source, if a model adds frames and nothing else is asked for."""

MAX_FACTOR = 16
"""Most frames of a result for one of the source."""

MAX_FPS = 1000
"""The Matroska container stores times in milliseconds."""

RATE_TOLERANCE = Fraction(1, 1000)
"""A source this much faster than the rate that is asked for counts as equal: its container rounds times."""

_MAX_TIME_BASE = 2**31 - 1

Stage = TypeVar("Stage")


@dataclass(frozen=True, slots=True)
class Chain(Generic[Stage]):
    """The stages of a chain, by what they do to a stream of frames."""

    before_interpolation: tuple[Stage, ...]
    """Frame by frame, over the frames of the source; all but the mask if no stage interpolates."""
    interpolation: Stage | None
    """Adds frames between neighbours."""
    after_interpolation: tuple[Stage, ...]
    """Frame by frame, over the frames of the source and the added ones."""
    mask: Stage | None
    """Separates subject and background, at the end."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame of a result."""

    pts: int
    """When it is shown, in the result's ``time_base`` units."""
    left: int
    """Index of the source frame that is shown then."""
    timestep: Fraction
    """Place between that frame and the next one, in [0, 1); 0 is the source frame itself."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The plan of a source and the plan of its result."""

    plan: VideoPlan
    """The source; its segments cover the piece of it that is asked for."""
    result: VideoPlan
    """The result, cut into as many segments as the source; ``plan`` itself if no time changes."""
    adds_frames: bool = False
    """Whether frames are shown between those of the source."""
    budgets: tuple[int, ...] = ()
    """Most bytes of each segment of the result; empty if segments have a constant quality."""
    scene_threshold: float | None = SCENE_THRESHOLD
    """If frames are added: similarity of neighbours below which a cut lies between them, 0 for never; None if
    TransNetV2 finds the cuts."""

    def moments(self, index: int) -> list[Moment]:
        """Return the frames of the result that belong to a segment of the source: those shown from its first frame on.

        Args:
            index: Index of the segment.

        Returns:
            The frames in order of time.
        """
        segment = self.result.segments[index]
        first = self.plan.first
        source = self.plan.from_zero().pts
        unit = self.result.info.time_base / self.plan.info.time_base / self.result.slow_motion
        moments = []
        for pts in self.result.pts[segment.start : segment.stop]:
            time = pts * unit
            left = bisect.bisect_right(source, time) - 1
            step = source[left + 1] - source[left] if left + 1 < len(source) else 0
            moments.append(Moment(pts, first + left, (time - source[left]) / step if step else Fraction(0)))
        return moments

    def range_to_decode(self, index: int) -> Segment:
        """Return the frames of the source that a segment of the result needs.

        Args:
            index: Index of the segment.

        Returns:
            The segment; one frame longer if frames are added, because the last pair needs it.
        """
        segment = self.plan.segments[index]
        return replace(segment, stop=min(segment.stop + 1, self.plan.stop)) if self.adds_frames else segment

    def count_frames(self, index: int) -> int:
        """Return how many frames a segment of the result is planned to have.

        Args:
            index: Index of the segment.

        Returns:
            Frames.
        """
        segment = self.result.segments[index]
        return segment.stop - segment.start


def check_chain(specs: Sequence[ModelSpec]) -> None:
    """Refuse chains that make no sense.

    Args:
        specs: The models in the order in which frames pass them.

    Raises:
        ConfigError: If a model does not map images to images, or the order makes no sense.
    """
    for position, spec in enumerate(specs):
        earlier = {other.task: other.model_id for other in specs[:position]}
        if not spec.is_image_model or spec.task is ModelTask.OTHER:
            raise ConfigError(
                f"{spec.model_id} ({spec.task.value}) in enhance", "models whose input and output are images"
            )
        if ModelTask.BACKGROUND_REMOVAL in earlier:
            raise ConfigError(
                f"{spec.model_id} after {earlier[ModelTask.BACKGROUND_REMOVAL]}",
                "one model that removes the background, as the last of the chain",
                "Put it last: its mask belongs to the frames that are written.",
            )
        if spec.task is ModelTask.INTERPOLATION and spec.task in earlier:
            raise ConfigError(
                f"{earlier[spec.task]} and {spec.model_id} in one chain",
                "one model that adds frames",
                "Use --factor 4 instead.",
            )


def check_rate(
    specs: Sequence[ModelSpec],
    factor: int | None,
    fps: Fraction | None,
    slow_motion: int | None = None,
    *,
    has_sequence: bool = False,
) -> None:
    """Check the frame rate that is asked for.

    Args:
        specs: The chain.
        factor: Frames of the result for one of the source; None if not asked for.
        fps: Frames per second of the result; None if not asked for.
        slow_motion: How many times as long the result is; None if not asked for.
        has_sequence: Whether ``fps`` may be the rate of a sequence of pictures: then it needs no model, and both may be
            given.

    Raises:
        ConfigError: If several are given, or no model of the chain adds frames.
    """
    asked = {"factor": factor, "fps": fps, "slow motion": slow_motion}
    given = [f"{name} {value}" for name, value in asked.items() if value is not None]
    if not given:
        return
    is_rate = has_sequence and fps is not None
    if len(given) > 1 + is_rate:
        raise ConfigError(" and ".join(given), "one of them")
    if not adds_frames(specs) and len(given) > is_rate:
        raise ConfigError(f"{given[0]} without a model that adds frames", "a chain with one", "Add --model rife.")


def has_mask(specs: Sequence[ModelSpec]) -> bool:
    """Tell whether a chain removes the background.

    Args:
        specs: The chain.

    Returns:
        Whether one of its models makes a mask.
    """
    return any(spec.task is ModelTask.BACKGROUND_REMOVAL for spec in specs)


def split_chain(specs: Sequence[ModelSpec], stages: Sequence[Stage]) -> Chain[Stage]:
    """Split a chain into its parts.

    Args:
        specs: The models, a chain that ``check_chain`` accepts.
        stages: One stage for each model.

    Returns:
        The stages by part.
    """
    tasks = [spec.task for spec in specs]
    mask = stages[-1] if tasks[-1] is ModelTask.BACKGROUND_REMOVAL else None
    end = len(stages) - (mask is not None)
    if ModelTask.INTERPOLATION not in tasks:
        return Chain(tuple(stages[:end]), None, (), mask)
    at = tasks.index(ModelTask.INTERPOLATION)
    return Chain(tuple(stages[:at]), stages[at], tuple(stages[at + 1 : end]), mask)


def count_results(specs: Sequence[ModelSpec], computed: Mapping[str, int], *, factor: int) -> int:
    """Estimate how many frames of results a chain has made, from the frames that each model has computed.

    Args:
        specs: The chain.
        computed: Frames by model id.
        factor: Frames of a result for one of the source, if the chain adds frames.

    Returns:
        Frames: those of the model that is least far.
    """
    tasks = [spec.task for spec in specs]
    at = tasks.index(ModelTask.INTERPOLATION) if ModelTask.INTERPOLATION in tasks else -1
    results = []
    for position, spec in enumerate(specs):
        frames = computed.get(spec.model_id, 0)
        if position < at:
            frames *= factor
        elif position == at:
            frames = frames * factor // (factor - 1)  # it computes the added frames only
        results.append(frames)
    return min(results)


def plan_result(
    plan: VideoPlan,
    specs: Sequence[ModelSpec],
    *,
    factor: int | None = None,
    fps: Fraction | None = None,
    slow_motion: int | None = None,
    background: Background | None = None,
) -> Timeline:
    """Plan what a chain makes of a video.

    Args:
        plan: The video.
        specs: The chain.
        factor: Frames of the result for one of the source, if the chain adds frames; None for 2.
        fps: Frames per second of the result instead.
        slow_motion: How many times as long as the source the result is instead, at its rate; None for as long.
        background: What replaces the background, if the chain removes it.

    Returns:
        The plan of the video and the plan of its result.

    Raises:
        ConfigError: As ``retime``.
    """
    factor = int(slow_motion or factor or DEFAULT_FACTOR)  # a manifest may give whole numbers as floats
    is_slow = slow_motion is not None
    timeline = retime(plan, factor=factor, fps=fps, is_slow=is_slow) if adds_frames(specs) else retime(plan)
    kind = background.kind if background is not None else "colour"
    has_alpha = kind == "alpha" or (plan.info.has_alpha and kind != "mask")
    if has_alpha == plan.info.has_alpha:
        return timeline
    return replace(timeline, result=replace(timeline.result, info=replace(timeline.result.info, has_alpha=has_alpha)))


def parse_rate(word: str | float) -> Fraction:
    """Read a frame rate.

    Args:
        word: A number or a fraction, such as 60 or 60000/1001.

    Returns:
        Frames per second, exactly.

    Raises:
        ConfigError: If it is neither.
    """
    rate = parse_fraction(word)
    if rate is None:
        raise ConfigError(f"fps {str(word)[:20]}", "a number or a fraction, such as 60 or 60000/1001")
    return rate


def retime(plan: VideoPlan, *, factor: int = 1, fps: Fraction | None = None, is_slow: bool = False) -> Timeline:
    """Plan a result of more frames; it starts and ends with the source.

    ``factor`` m cuts the time of each frame into m equal parts, whatever the length of the frame, so a variable frame
    rate stays variable; the last frame has no successor and is held. ``fps`` gives a constant rate from the first
    frame on. In slow motion each of the m parts is as long as the whole frame was: all times are m times those of the
    source.

    Args:
        plan: The source.
        factor: Frames of the result for one of the source, from 1 to ``MAX_FACTOR``.
        fps: Frames per second instead, at least those of the source, at most ``MAX_FPS``.
        is_slow: Whether ``factor`` makes the result longer instead of its frames shorter.

    Returns:
        Both plans.

    Raises:
        ConfigError: If ``fps`` is less than the source has, or times need a time base of more than 32 bits.
    """
    source = plan.from_zero()
    if fps is None and factor == 1:
        return Timeline(plan, source)
    base = plan.info.time_base
    bounds = (*source.pts, source.pts[-1] + source.duration)
    if fps is None:
        unit = base if is_slow else base / factor
        rate = plan.info.average_rate * (1 if is_slow else factor)
        times = [a * factor + step * (b - a) for a, b in pairwise(bounds) for step in range(factor)]
        end = bounds[-1] * factor
    else:
        own = _rate_of(source)
        if own > fps * (1 + RATE_TOLERANCE):
            raise ConfigError(
                f"{float(fps):g} frames per second from {plan.path} of {float(own):.3f}", "as many as it has, or more"
            )
        unit = _gcd(base, 1 / fps)
        rate = fps
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
    times_as_long = factor if is_slow else 1
    begins = (source.pts[segment.start] * base * times_as_long / unit for segment in source.segments)
    starts = [bisect.bisect_left(pts, time) for time in begins]
    result = replace(
        source,
        info=replace(plan.info, time_base=unit, average_rate=rate),
        pts=pts,
        duration=end // common - pts[-1],
        slow_motion=times_as_long,
        segments=tuple(Segment(index, *pair) for index, pair in enumerate(pairwise((*starts, len(pts))))),
    )
    return Timeline(plan, result, adds_frames=True)


def _rate_of(source: VideoPlan) -> Fraction:
    """Return frames per second; a piece may end while its last frame is shown, so that frame does not count there."""
    is_cut = source.span is not None and len(source.pts) > 1
    end = source.pts[-1] + (0 if is_cut else source.duration)
    return (len(source.pts) - is_cut) / ((end - source.pts[0]) * source.info.time_base)


def adds_frames(specs: Sequence[ModelSpec]) -> bool:
    """Tell whether a chain adds frames.

    Args:
        specs: The chain.

    Returns:
        Whether one of its models makes frames between two others.
    """
    return any(spec.task is ModelTask.INTERPOLATION for spec in specs)


def _gcd(a: Fraction, b: Fraction) -> Fraction:
    """Return the largest unit of which both are whole multiples."""
    return Fraction(math.gcd(a.numerator * b.denominator, b.numerator * a.denominator), a.denominator * b.denominator)
