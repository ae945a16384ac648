"""Interlaced sources: which of their frames are deinterlaced, and when the frames that are made are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from genai_ray.errors import ConfigError, VideoError
from genai_ray.types import Deinterlace, FieldOrder
from genai_ray.video import (
    CYCLE,
    KEPT,
    Deinterlacing,
    VideoInfo,
    VideoPlan,
    check_deinterlacing,
    count_repeats,
    cut_segments,
)

__all__ = ["check_fields", "count_made", "plan_fields", "stored_at"]

_MAX_TIME_BASE = 2**31 - 1
"""Largest denominator of a time base: containers store it in 32 bits."""

_LEAST_MOVING = 4
"""Groups of frames with motion by which telecine is recognised."""

_APART = ("hevc",)
"""Codecs whose interlaced pictures are single fields, not frames of two."""


def check_fields(how: Deinterlace, order: FieldOrder | None) -> None:
    """Check what is asked for, as far as that is possible without a video.

    Args:
        how: Which frames are deinterlaced.
        order: The field that is shown first; None for what the video says.

    Raises:
        ConfigError: If there is an order, and nothing is deinterlaced.
    """
    if how is Deinterlace.OFF and order is not None:
        raise ConfigError(
            f"field order {order.value!r} with deinterlace 'off'", "deinterlace auto, frame or field, or no field order"
        )


def count_made(plan: VideoPlan, stored: int) -> int:
    """Return how many frames are made of the first stored ones.

    Args:
        plan: The video.
        stored: Number of stored frames.

    Returns:
        Number of frames, which is the position of the first one that is made of the next stored one.
    """
    return stored if plan.deinterlacing is None else plan.deinterlacing.count_made(stored)


def stored_at(plan: VideoPlan, position: int) -> int:
    """Return the position of the stored frame that is shown when a frame begins.

    Args:
        plan: The video.
        position: Position of the frame.

    Returns:
        That of the stored one.
    """
    return position if plan.deinterlacing is None else plan.deinterlacing.stored_at(position)


def plan_fields(
    plan: VideoPlan, how: Deinterlace, order: FieldOrder | None, *, segment_frames: int
) -> tuple[VideoPlan, tuple[str, ...]]:
    """Plan the frames that are made of the stored ones.

    Of each stored frame, ``Deinterlace.FIELD`` makes one at its time, and one halfway to the next frame; that of the
    last frame halfway to its end. ``Deinterlace.IVTC`` shows four frames in the time of five, from the first one on.

    Args:
        plan: The stored frames of the whole video.
        how: Which of them are deinterlaced.
        order: The field that is shown first; None for what the video says.
        segment_frames: Most frames in a segment, if key frames allow it.

    Returns:
        The plan, and notes for the report.

    Raises:
        ConfigError: If times need a time base of more than 32 bits, if they vary and a film is asked for, or if
            pictures are to be deinterlaced.
        VideoError: If such pictures cannot be deinterlaced.
    """
    info = plan.info
    if plan.pictures is not None and how not in (Deinterlace.AUTO, Deinterlace.OFF):
        raise ConfigError(f"deinterlace {how.value!r} of {plan.path}, which is no video", "deinterlace auto or off")
    if plan.pictures is not None or how is Deinterlace.OFF:
        return plan, ()
    if info.is_interlaced and info.codec in _APART:
        got = f"each picture of this {info.codec} stream is a single field"
        do = f"Weave them first: ffmpeg -i {plan.path} -vf weave -flags +ildct+ilme -c:a copy woven.mkv"
        if how is Deinterlace.AUTO:
            return plan, (f"not deinterlaced: {got}. {do}",)
        raise VideoError(f"{plan.path}: {got}", "frames that hold both fields", do)
    every = how is not Deinterlace.AUTO or not info.flags_fields
    means = Deinterlace.FRAME if how is Deinterlace.AUTO else how
    # Pictures that say which field is first know it better than the stream, and may differ from each other.
    known = None if info.is_interlaced and info.flags_fields else info.field_order
    deinterlacing = Deinterlacing(means, every, order or known)
    try:
        check_deinterlacing(plan.path, deinterlacing, info.pix_fmt, (info.width, info.height))
    except VideoError:
        if every or info.is_interlaced:
            raise
        # Now, because a frame that is flagged may come after hours.
        kind = f"{info.pix_fmt} of {info.width}x{info.height}"
        return plan, (f"no frame is deinterlaced, even if one is flagged: FFmpeg's bwdif does not take {kind}",)
    notes = _describe(info, how, order, deinterlacing.order)
    planned = replace(plan, info=replace(info, is_interlaced=False), deinterlacing=deinterlacing)
    if how is Deinterlace.FIELD:
        planned = _double(planned, segment_frames)
    if how is Deinterlace.IVTC:
        planned = _find_film(planned, segment_frames)
        notes = (*notes, *_doubt_film(plan, deinterlacing))
    return planned, notes


def _doubt_film(plan: VideoPlan, deinterlacing: Deinterlacing) -> Iterator[str]:
    """Say that a video does not look like telecined film."""
    repeating, moving = count_repeats(plan, deinterlacing)
    if moving >= _LEAST_MOVING and 2 * repeating < moving:
        yield (
            f"this does not look like telecined film: of {moving} groups of five frames that were tried, {repeating} "
            "repeat a frame; one of five is left out all the same, which --deinterlace frame or field does not"
        )


def _describe(info: VideoInfo, how: Deinterlace, order: FieldOrder | None, used: FieldOrder | None) -> tuple[str, ...]:
    """Say what is deinterlaced, and by which order of fields."""
    if how is Deinterlace.AUTO and not info.is_interlaced:
        return ()
    first = f", {used.value} field first" if used is not None else ""
    each = "one frame for each field" if how is Deinterlace.FIELD else "one frame for each"
    if how is Deinterlace.IVTC:
        made = f"telecined film{first}: its own frames by fieldmatch, bwdif and decimate, four of five"
    elif info.is_interlaced:
        hint = "; --deinterlace field makes one for each field" if how is Deinterlace.AUTO else ""
        made = f"interlaced source{first}: deinterlaced by bwdif, {each}{hint}"
    else:
        assumed = first or ", taken for top field first"
        made = f"the source is not flagged as interlaced{assumed}: deinterlaced by bwdif all the same, {each}"
    if order is not None and info.field_order not in (None, order):
        return made, f"the stream says {info.field_order.value} field first; {order.value} was asked for"
    return (made,)


def _double(plan: VideoPlan, segment_frames: int) -> VideoPlan:
    """Plan a frame for each field."""
    base = plan.info.time_base
    bounds = (*plan.pts, plan.pts[-1] + plan.duration)
    pts = [time for before, after in pairwise(bounds) for time in (2 * before, before + after)]
    end = 2 * bounds[-1]
    # If every half is a whole number, the unit of the source will do.
    parts = 2 if any(time % 2 for time in pts) else 1
    _check_base(plan, base / parts)
    times = tuple(time * parts // 2 for time in pts)
    return _remake(plan, base / parts, times, end * parts // 2, segment_frames)


def _find_film(plan: VideoPlan, segment_frames: int) -> VideoPlan:
    """Plan four frames in the time of five."""
    base = plan.info.time_base
    step = _find_step(plan) * Fraction(CYCLE, KEPT)
    base = Fraction(
        math.gcd(base.numerator * step.denominator, step.numerator * base.denominator),
        base.denominator * step.denominator,
    )
    _check_base(plan, base)
    first, last = (int(time * plan.info.time_base / base) for time in (plan.pts[0], plan.pts[-1] + plan.duration))
    count = count_made(plan, len(plan.pts))
    every = int(step / base)
    times = tuple(range(first, first + count * every, every))
    return _remake(plan, base, times, max(last, times[-1] + 1), segment_frames)


def _find_step(plan: VideoPlan) -> Fraction:
    """Return the seconds between frames of a constant rate; containers may have rounded times to their unit."""
    base = plan.info.time_base
    steps = {after - before for before, after in pairwise(plan.pts)} or {plan.duration}
    if len(steps) == 1:
        return steps.pop() * base
    step = 1 / plan.info.average_rate
    worst = max(abs((time - plan.pts[0]) * base - index * step) for index, time in enumerate(plan.pts))
    if worst > base:
        raise ConfigError(
            f"{plan.path}: times up to {float(worst):.3f} s off a constant rate of {float(1 / step):.3f} a second",
            "a constant rate for deinterlace 'ivtc'",
            "Pass --deinterlace frame (deinterlace='frame'), which keeps times as they are.",
        )
    return step


def _check_base(plan: VideoPlan, base: Fraction) -> None:
    if max(base.numerator, base.denominator) > _MAX_TIME_BASE:
        raise ConfigError(
            f"times of {base} s for {plan.path}",
            f"a time base up to 1/{_MAX_TIME_BASE}",
            "Pass --deinterlace frame (deinterlace='frame').",
        )


def _remake(plan: VideoPlan, base: Fraction, times: tuple[int, ...], end: int, segment_frames: int) -> VideoPlan:
    """Return the plan of frames that are made at these times, in units of ``base``."""
    keys = tuple(dict.fromkeys(min(count_made(plan, key), len(times) - 1) for key in plan.keys))
    promised = plan.num_frames_from_header
    rate = plan.info.average_rate * count_made(plan, 2 * CYCLE) / (2 * CYCLE)
    return replace(
        plan,
        info=replace(plan.info, time_base=base, average_rate=rate),
        pts=times,
        decoded_pts=times,
        duration=end - times[-1],
        keys=keys,
        num_frames_from_header=None if promised is None else count_made(plan, promised),
        segments=cut_segments(len(times), keys, segment_frames),
        stored=plan,
    )
