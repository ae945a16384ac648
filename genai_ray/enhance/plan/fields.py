"""Interlaced sources: which of their frames are deinterlaced, and when the frames that are made are shown."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from genai_ray.errors import ConfigError, VideoError
from genai_ray.types import Deinterlace, FieldOrder
from genai_ray.video import Deinterlacing, VideoInfo, VideoPlan, check_deinterlacing, cut_segments

__all__ = ["check_fields", "plan_fields"]

_MAX_TIME_BASE = 2**31 - 1
"""Largest denominator of a time base: containers store it in 32 bits."""

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


def plan_fields(
    plan: VideoPlan, how: Deinterlace, order: FieldOrder | None, *, segment_frames: int
) -> tuple[VideoPlan, tuple[str, ...]]:
    """Plan the frames that are made of the stored ones.

    Of each stored frame, ``Deinterlace.FIELD`` makes one at its time, and one halfway to the next frame; that of the
    last frame halfway to its end.

    Args:
        plan: The stored frames of the whole video.
        how: Which of them are deinterlaced.
        order: The field that is shown first; None for what the video says.
        segment_frames: Most frames in a segment, if key frames allow it.

    Returns:
        The plan, and notes for the report.

    Raises:
        ConfigError: If times need a time base of more than 32 bits.
        VideoError: If such pictures cannot be deinterlaced.
    """
    info = plan.info
    if how is Deinterlace.OFF:
        return plan, ()
    if info.is_interlaced and info.codec in _APART:
        if how is Deinterlace.AUTO:
            return plan, (f"not deinterlaced: each picture of this {info.codec} stream is a single field",)
        raise VideoError(
            f"{plan.path}: each picture of this {info.codec} stream is a single field",
            "frames that hold both fields",
            f"Weave them first: ffmpeg -i {plan.path} -vf weave -flags +ildct+ilme -c:a copy woven.mkv",
        )
    every = how is not Deinterlace.AUTO or not info.flags_fields
    # Pictures that say which field is first know it better than the stream, and may differ from each other.
    known = None if info.is_interlaced and info.flags_fields else info.field_order
    deinterlacing = Deinterlacing(every, how is Deinterlace.FIELD, order or known)
    if every or info.is_interlaced:
        check_deinterlacing(plan.path, deinterlacing, info.pix_fmt, (info.width, info.height))
    notes = _describe(info, how, order, deinterlacing.order)
    planned = replace(plan, info=replace(info, is_interlaced=False), deinterlacing=deinterlacing)
    if how is Deinterlace.FIELD:
        planned = _double(planned, segment_frames)
    return planned, notes


def _describe(info: VideoInfo, how: Deinterlace, order: FieldOrder | None, used: FieldOrder | None) -> tuple[str, ...]:
    """Say what is deinterlaced, and by which order of fields."""
    if how is Deinterlace.AUTO and not info.is_interlaced:
        return ()
    first = f", {used.value} field first" if used is not None else ""
    each = "one frame for each field" if how is Deinterlace.FIELD else "one frame for each"
    if info.is_interlaced:
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
    if base.denominator * parts > _MAX_TIME_BASE:
        raise ConfigError(
            f"times of {base / 2} s for {plan.path}",
            f"a time base up to 1/{_MAX_TIME_BASE}",
            "Pass --deinterlace frame (deinterlace='frame').",
        )
    times = tuple(time * parts // 2 for time in pts)
    keys = tuple(2 * key for key in plan.keys)
    promised = plan.num_frames_from_header
    return replace(
        plan,
        info=replace(plan.info, time_base=base / Fraction(parts), average_rate=2 * plan.info.average_rate),
        pts=times,
        decoded_pts=times,
        duration=end * parts // 2 - times[-1],
        keys=keys,
        num_frames_from_header=None if promised is None else 2 * promised,
        segments=cut_segments(len(times), keys, segment_frames),
        stored=plan,
    )
