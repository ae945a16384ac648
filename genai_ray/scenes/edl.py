"""Scenes as an edit decision list in the format CMX 3600, with timecodes of SMPTE ST 12-1.

A timecode counts frames in whole frames per second. At 30000/1001 and 60000/1001 that runs 3.6 s an hour behind the
clock; drop-frame timecode leaves out two numbers (four at 60000/1001) at the start of each minute but every tenth.
"""

from __future__ import annotations

import os
import re
from fractions import Fraction
from typing import Literal, TypeAlias

from genai_ray.errors import ConfigError
from genai_ray.scenes.scenes import SceneList
from genai_ray.video import VideoPlan, read_timecode

__all__ = ["MAX_EVENTS", "Counting", "build_edl"]

Counting: TypeAlias = Literal["auto", "drop", "non-drop"]
"""How timecodes count."""

MAX_EVENTS = 999
"""Scenes that the format has numbers for; more get longer numbers, which some editors refuse."""

MAX_RATE = 99
"""A timecode has two digits for frames."""

_DROP_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))
_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


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
    tag = _TIMECODE.fullmatch(read_timecode(path, any_format=scenes.plan.any_format) or "")
    is_drop = rate in _DROP_RATES and (tag is None or tag[4] != ":")
    if counting != "auto":
        is_drop = counting == "drop"
    if is_drop and rate not in _DROP_RATES:
        raise ConfigError(
            f"{path}: drop-frame timecode at {rate} frames per second", "30000/1001 or 60000/1001 frames per second"
        )
    clock = _Timecode(round(rate), is_drop)
    begin = clock.count(tuple(int(tag[group]) for group in (1, 2, 3, 5))) if tag is not None else 0
    name = re.sub(r"[\x00-\x1f\x7f]", "?", os.path.basename(path))
    lines = [f"TITLE: {os.path.splitext(name)[0]}", f"FCM: {'DROP' if is_drop else 'NON-DROP'} FRAME", ""]
    for scene in scenes:
        source = (clock.write(begin + frame) for frame in (scene.start, scene.stop))
        record = (clock.write(frame) for frame in (scene.start, scene.stop))
        lines.append(f"{scene.index + 1:03d}  AX       V     C        {' '.join((*source, *record))}")
        lines.append(f"* FROM CLIP NAME: {name}")
    return "\n".join(lines) + "\n"


class _Timecode:
    """Converts between frames and timecodes, which begin again after 24 hours."""

    def __init__(self, rate: int, is_drop: bool) -> None:
        self._rate = rate
        self._dropped = rate // 15 if is_drop else 0
        self._mark = ";" if is_drop else ":"

    def write(self, frame: int) -> str:
        """Return the timecode of a frame."""
        minute = 60 * self._rate - self._dropped
        tens, rest = divmod(frame, 10 * minute + self._dropped)
        minutes = max(rest - self._dropped, 0) // minute
        number = frame + self._dropped * (9 * tens + minutes)
        seconds, frames = divmod(number, self._rate)
        hours, minutes, seconds = seconds // 3600 % 24, seconds // 60 % 60, seconds % 60
        return f"{hours:02d}:{minutes:02d}:{seconds:02d}{self._mark}{frames:02d}"

    def count(self, parts: tuple[int, ...]) -> int:
        """Return the frame of a timecode: hours, minutes, seconds and frames."""
        hours, minutes, seconds, frames = parts
        minutes += 60 * hours
        return (60 * minutes + seconds) * self._rate + frames - self._dropped * (minutes - minutes // 10)


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
