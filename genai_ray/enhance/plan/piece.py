"""A piece of a video: how it is written, and which frames it has.

A piece begins with the first frame that is shown at its start or later, and ends with the last one that begins before
its end. Times are rounded to the unit of the video's times, as FFmpeg rounds them: 33.367 ms is frame 1 at 30000/1001.
"""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from genai_ray.enhance.plan.fields import count_made, stored_at
from genai_ray.errors import ConfigError
from genai_ray.video import Segment, VideoPlan, cut_segments
from genai_ray.video.reading.ranges import Span

__all__ = ["PREVIEW_S", "Piece", "Place", "parse_piece", "parse_place", "take_piece"]

PREVIEW_S = 5
"""Length of a preview."""

MAX_PLACE = 10**9
"""Largest number of seconds or frames."""

_FRAMES = re.compile(r"f([0-9]{1,10})")
_CLOCK = re.compile(r"(?:(?:([0-9]{1,10}):)?([0-9]{1,10}):)?([0-9]{1,10}(?:\.[0-9]{0,20})?)")
_WRITTEN = "seconds such as 90 or 1.5, a time such as 1:30 or 1:02:03.5, or a frame such as f250"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a video, or a length."""

    value: Fraction
    """Seconds from the beginning of the file; or a frame, counted from 0."""
    is_frame: bool = False
    """Whether it counts frames."""

    def __str__(self) -> str:
        return f"f{self.value}" if self.is_frame else f"{float(self.value):g} s"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is asked for of a video."""

    start: Place | None = None
    """Where it begins; None for the first frame."""
    end: Place | None = None
    """Where it ends; None for the end of the video, or if there is a duration."""
    duration: Place | None = None
    """How long it is, from its first frame on."""
    is_preview: bool = False
    """Whether it is ``PREVIEW_S`` seconds from the middle."""


def parse_place(word: Any, name: str) -> Place:
    """Read a place in a video.

    Args:
        word: A number of seconds, or text: seconds, ``M:S``, ``H:M:S``, or ``f`` and a frame.
        name: Name of the option, for the error.

    Returns:
        The place.

    Raises:
        ConfigError: If it is none of these, negative, or above ``MAX_PLACE``.
    """
    place = _parse_text(word) if isinstance(word, str) else _parse_number(word)
    if place is None:
        raise ConfigError(f"{name} {word!r}", _WRITTEN)
    if not 0 <= place.value <= MAX_PLACE:
        raise ConfigError(f"{name} {word}", f"from 0 to {MAX_PLACE:,}")
    return place


def _parse_number(number: Any) -> Place | None:
    if isinstance(number, bool) or not isinstance(number, int | float | Fraction) or not math.isfinite(number):
        return None
    return Place(Fraction(str(number)))  # 0.1 is a tenth


def _parse_text(text: str) -> Place | None:
    text = text.strip()
    if text.startswith("-"):
        found = None if text.startswith("--") else _parse_text(text[1:])
        return None if found is None else replace(found, value=-found.value - 1)  # refused as negative, also -0
    if (frames := _FRAMES.fullmatch(text)) is not None:
        return Place(Fraction(int(frames[1])), is_frame=True)
    if (clock := _CLOCK.fullmatch(text)) is None:
        return None
    hours, minutes, seconds = (Fraction(word or 0) for word in clock.groups())
    if (clock[2] is not None and seconds >= 60) or (clock[1] is not None and minutes >= 60):
        return None
    return Place(hours * 3600 + minutes * 60 + seconds)


def parse_piece(start: Any, end: Any, duration: Any, *, is_preview: bool = False) -> Piece | None:
    """Read the piece that is asked for, as far as that is possible without a video.

    Args:
        start: As ``parse_place``; None for the first frame.
        end: As ``parse_place``; None for the end of the video.
        duration: As ``parse_place``; None for ``end``.
        is_preview: Whether a preview is asked for instead.

    Returns:
        The piece; None for the whole video.

    Raises:
        ConfigError: As ``parse_place``; if end and duration are given, the end is not after the start, the duration is
            0, or a preview is to be a piece too.
    """
    names = {"start": start, "end": end, "duration": duration}
    places = {name: parse_place(word, name) for name, word in names.items() if word is not None}
    if is_preview:
        if places:
            raise ConfigError(f"preview and {' and '.join(places)}", f"one of them: a preview is {PREVIEW_S} s")
        return Piece(is_preview=True)
    if not places:
        return None
    piece = Piece(places.get("start"), places.get("end"), places.get("duration"))
    if piece.end is not None and piece.duration is not None:
        raise ConfigError(f"end {piece.end} and duration {piece.duration}", "one of them")
    if piece.duration is not None and piece.duration.value == 0:
        raise ConfigError(f"duration {piece.duration}", "more than 0")
    begins = piece.start or Place(Fraction(0), is_frame=piece.end is not None and piece.end.is_frame)
    if piece.end is not None and piece.end.is_frame == begins.is_frame and piece.end.value <= begins.value:
        raise ConfigError(f"end {piece.end} of a piece from {begins}", "an end after its start")
    return piece


def take_piece(plan: VideoPlan, piece: Piece | None, *, segment_frames: int) -> tuple[VideoPlan, tuple[str, ...]]:
    """Limit a plan to a piece.

    Args:
        plan: The whole video.
        piece: What is asked for; None for the whole video.
        segment_frames: Most frames in a segment, if key frames allow it.

    Returns:
        The plan, whose segments are those of the piece; and notes for the report.

    Raises:
        ConfigError: If the piece begins after the end of the video, names a frame that the video lacks, or has no
            frame.
    """
    if piece is None:
        return plan, ()
    clock = _Clock(plan)
    first, stop, end, note = _find_middle(clock) if piece.is_preview else _find_frames(clock, piece)
    base = plan.info.time_base
    before = max(bisect.bisect_right(plan.keys, first) - 1, 0)
    keys = tuple(key - first for key in plan.keys[before:] if key < stop)
    cut = cut_segments(stop - first, keys, segment_frames)
    segments = tuple(Segment(part.index, part.start + first, part.stop + first) for part in cut)
    tracks_end = end * base
    if not piece.is_preview and piece.end is None and piece.duration is None:
        tracks_end = max([tracks_end, *(Fraction(ends_s) for _, _, ends_s in plan.tracks_s)])
    taken = replace(plan, segments=segments, span=Span(plan.pts[first] * base, end * base, tracks_end))
    place = (
        f"piece: frames {stored_at(plan, first)} to {stored_at(plan, stop - 1)} of {clock.num_stored}, "
        f"from {clock.say(plan.pts[first])} to {clock.say(end)} of the source"
    )
    return taken, (place, *note)


class _Clock:
    """Converts between what a player's clock shows and the units of a video's times."""

    def __init__(self, plan: VideoPlan) -> None:
        self.plan = plan
        self.pts = plan.pts
        self.end = plan.pts[-1] + plan.duration
        """When the last frame ends."""
        self.num_stored = len(plan.pts if plan.stored is None else plan.stored.pts)
        """Frames that are stored, which is what places count."""

    def ticks(self, seconds: Fraction) -> int:
        """Return a time of the clock in units of the video's times, the nearest; halves are rounded up."""
        return math.floor((seconds + self.plan.begins_s) / self.plan.info.time_base + Fraction(1, 2))

    def length(self, seconds: Fraction) -> int:
        """Return a length in these units."""
        return math.floor(seconds / self.plan.info.time_base + Fraction(1, 2))

    def say(self, ticks: int) -> str:
        """Return what the clock shows then."""
        return f"{float(ticks * self.plan.info.time_base - self.plan.begins_s):.3f} s"


def _find_middle(clock: _Clock) -> tuple[int, int, int, tuple[str, ...]]:
    """Return first frame, one past the last, the end, and notes of a preview."""
    pts = clock.pts
    length = clock.length(Fraction(PREVIEW_S))
    if clock.end - pts[0] <= length:
        return 0, len(pts), clock.end, (f"the whole video: it is not longer than {PREVIEW_S} s",)
    first = min(bisect.bisect_left(pts, (pts[0] + clock.end - length) // 2), len(pts) - 1)
    end = min(pts[first] + length, clock.end)
    return first, bisect.bisect_left(pts, end), end, ()


def _find_frames(clock: _Clock, piece: Piece) -> tuple[int, int, int, tuple[str, ...]]:
    """Return first frame, one past the last, the end, and notes of a piece."""
    pts = clock.pts
    count = len(pts)
    path = clock.plan.path
    plan, last = clock.plan, clock.num_stored - 1
    first = 0
    if piece.start is not None:
        _check_frame(clock, "start", piece.start, last)
        is_frame = piece.start.is_frame
        value = piece.start.value
        first = count_made(plan, int(value)) if is_frame else bisect.bisect_left(pts, clock.ticks(value))
        if first >= count:
            at = clock.say(pts[count_made(plan, last)])
            raise ConfigError(f"{path}: start {piece.start}", f"up to the last frame, f{last} at {at}")
    asked = piece.end or piece.duration
    if asked is None:
        return first, count, clock.end, ()
    if asked.is_frame:
        before = stored_at(plan, first) if piece.end is None else 0
        _check_frame(clock, "end" if piece.end is not None else "duration", asked, last + 1 - before)
        stop = count_made(plan, before + int(asked.value))
        if piece.end is None:
            stop = min(first + stop - count_made(plan, before), count)
        end = pts[stop] if stop < count else clock.end
    else:
        end = clock.ticks(asked.value) if piece.end is not None else pts[first] + clock.length(asked.value)
        stop = bisect.bisect_left(pts, end)
    if stop <= first:
        begins = f"start {piece.start or 'of the video'} (f{stored_at(plan, first)} at {clock.say(pts[first])})"
        raise ConfigError(f"{path}: no frame from {begins} to {asked}", "a piece of one frame or more")
    if end <= clock.end:
        return first, stop, end, ()
    return first, count, clock.end, (f"the video ends at {clock.say(clock.end)}, before the end that is asked for",)


def _check_frame(clock: _Clock, name: str, place: Place, most: int) -> None:
    if place.is_frame and place.value > most:
        raise ConfigError(
            f"{clock.plan.path}: {name} {place}", f"up to f{most}: the video has {clock.num_stored} frames"
        )
