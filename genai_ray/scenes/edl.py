"""Scenes as an edit decision list in the format CMX 3600."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from typing import Literal, TypeAlias

from genai_ray.errors import ConfigError
from genai_ray.scenes.scenes import SceneList
from genai_ray.video import DROP_RATES, Timecode, VideoPlan, is_non_drop, read_timecode

__all__ = ["MAX_EVENTS", "Counting", "build_edl"]

Counting: TypeAlias = Literal["auto", "drop", "non-drop"]
"""How timecodes count."""

MAX_EVENTS = 999
"""Scenes that the format has numbers for; more get longer numbers, which some editors refuse."""

MAX_RATE = 99
"""A timecode has two digits for frames."""


def build_edl(scenes: SceneList, *, counting: Counting = "auto") -> str:
    """Write scenes as an edit decision list: one event for each, in a row from zero.

    Times of the source begin at the timecode of the file, if it has one.

    Args:
        scenes: From ``find_scenes``.
        counting: ``drop`` or ``non-drop`` frame; ``auto`` for what the file's timecode is, or else drop frame at
            30000/1001 and 60000/1001 frames per second.

    Returns:
        The text, with a line that says whether timecodes are drop frame.

    Raises:
        ConfigError: If the frame rate is variable, has no timecode, or no drop-frame timecode although that is asked
            for.
    """
    path = scenes.path
    rate = _find_rate(scenes.plan)
    tag = read_timecode(path, any_format=scenes.plan.any_format) or ""
    is_drop = rate in DROP_RATES and not is_non_drop(tag)
    if counting != "auto":
        is_drop = counting == "drop"
    if is_drop and rate not in DROP_RATES:
        raise ConfigError(
            f"{path}: drop-frame timecode at {rate} frames per second", "30000/1001 or 60000/1001 frames per second"
        )
    clock = Timecode(round(rate), is_drop)
    begin = clock.count(tag) or 0
    name = re.sub(r"[\x00-\x1f\x7f]", "?", os.path.basename(path))
    lines = [f"TITLE: {os.path.splitext(name)[0]}", f"FCM: {'DROP' if is_drop else 'NON-DROP'} FRAME", ""]
    for scene in scenes:
        source = (clock.write(begin + frame) for frame in (scene.start, scene.stop))
        record = (clock.write(frame) for frame in (scene.start, scene.stop))
        lines.append(f"{scene.index + 1:03d}  AX       V     C        {' '.join((*source, *record))}")
        lines.append(f"* FROM CLIP NAME: {name}")
    return "\n".join(lines) + "\n"


def _find_rate(plan: VideoPlan) -> Fraction:
    """Return the constant frame rate of a video; times and their average may be rounded to the file's unit."""
    average = plan.info.average_rate
    base = plan.info.time_base
    usual = [Fraction(round(average)), Fraction(round(average) * 1000, 1001)]
    for rate in (*sorted(usual, key=lambda rate: abs(rate - average)), average):
        unit, step = base.numerator * rate.numerator, base.denominator * rate.denominator
        if rate > 0 and all(abs((pts - plan.pts[0]) * unit - i * step) <= unit for i, pts in enumerate(plan.pts)):
            break
    else:
        raise ConfigError(
            f"{plan.path}: an EDL of a variable frame rate",
            "a constant one",
            "Use --json, which has exact times, or make it constant first: ffmpeg -i IN -fps_mode cfr OUT.",
        )
    if rate not in usual or not 1 <= rate <= MAX_RATE:
        raise ConfigError(
            f"{plan.path}: timecode at {rate} frames per second",
            f"a whole number from 1 to {MAX_RATE}, or 1000/1001 of one",
            "Use --json, which has exact times.",
        )
    return rate
