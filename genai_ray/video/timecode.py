"""Timecodes of SMPTE ST 12-1.

A timecode counts frames in whole frames per second. At 30000/1001 and 60000/1001 that runs 3.6 s an hour behind the
clock; drop-frame timecode leaves out two numbers (four at 60000/1001) at the start of each minute but every tenth.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["DROP_RATES", "Timecode", "is_non_drop", "move_timecode"]

DROP_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))
"""Frames per second at which there is drop-frame timecode."""

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


class Timecode:
    """Converts between frames and timecodes, which begin again after 24 hours.

    Args:
        rate: Whole frames per second.
        is_drop: Whether it is drop-frame, at 30 or 60.
    """

    def __init__(self, rate: int, is_drop: bool) -> None:
        self._rate = rate
        self._dropped = rate // 15 if is_drop else 0
        self._mark = ";" if is_drop else ":"

    def write(self, frame: int) -> str:
        """Write the timecode of a frame.

        Args:
            frame: Its number, from 0 at midnight.

        Returns:
            Such as ``01:00:00:00``, or ``01:00:00;00`` for drop-frame.
        """
        minute = 60 * self._rate - self._dropped
        tens, rest = divmod(frame, 10 * minute + self._dropped)
        minutes = max(rest - self._dropped, 0) // minute
        number = frame + self._dropped * (9 * tens + minutes)
        seconds, frames = divmod(number, self._rate)
        hours, minutes, seconds = seconds // 3600 % 24, seconds // 60 % 60, seconds % 60
        return f"{hours:02d}:{minutes:02d}:{seconds:02d}{self._mark}{frames:02d}"

    def count(self, text: str) -> int | None:
        """Read a timecode.

        Args:
            text: Such as ``01:00:00:00``; a semicolon or a dot before the frames is taken too.

        Returns:
            The number of its frame, from 0 at midnight; None if it is no timecode.
        """
        found = _TIMECODE.fullmatch(text)
        if found is None:
            return None
        hours, minutes, seconds, frames = (int(found[group]) for group in (1, 2, 3, 5))
        minutes += 60 * hours
        return (60 * minutes + seconds) * self._rate + frames - self._dropped * (minutes - minutes // 10)


def is_non_drop(text: str) -> bool:
    """Tell whether a timecode says that it is not drop-frame.

    Args:
        text: Such as ``01:00:00:00``; any other text says nothing.

    Returns:
        Whether a colon stands before its frames.
    """
    found = _TIMECODE.fullmatch(text)
    return found is not None and found[4] == ":"


def move_timecode(text: str, frames: int, rate: Fraction) -> str | None:
    """Return the timecode of a later frame.

    Args:
        text: That of the first frame.
        frames: How many frames later.
        rate: Frames per second.

    Returns:
        The timecode, drop-frame if ``text`` is; None if ``text`` is no timecode.
    """
    nearest = min(DROP_RATES, key=lambda known: abs(known - rate))
    is_drop = not is_non_drop(text) and abs(nearest - rate) < Fraction(1, 100)
    clock = Timecode(round(rate), is_drop)
    first = clock.count(text)
    return None if first is None else clock.write(first + frames)
