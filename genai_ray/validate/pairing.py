"""Pairs the frames of two clips by their times: each with the nearest one of the other clip, in order.

Containers round times: Matroska to milliseconds, GIF to hundredths of a second. So two times of one frame may differ by
one unit of each file, and by what a rounded frame rate (23.98 for 24000/1001) adds in the course of the clip. Frames
are told apart by the gaps to their neighbours, not by an absolute tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MAX_RATE_DIFFERENCE", "Pairing", "pair_times"]

MAX_RATE_DIFFERENCE = 1 / 5000
"""Most by which the frame rates of two clips may differ: a rate rounded to two decimals, such as 23.98, differs by
less."""

MOST_MISSING_FIRST = 8
"""So many frames may be missing before the first one of a clip for the others to be told apart."""

_SHARE_OF_GAP = 0.75
"""Partners are nearer to each other than this part of the gap to their neighbours."""

_FOLLOW = 4
"""Part of a difference, one in so many, by which the next times are expected to differ too."""

_EXACT_S = 1e-6
"""What binary numbers add."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which frames of two clips have no partner; all others pair in order."""

    reference: tuple[int, ...]
    """Frames of the reference without a partner."""
    candidate: tuple[int, ...]
    """Frames of the candidate without a partner."""
    most_apart_s: float
    """Most seconds between two partners, counted from the first ones."""

    @property
    def count(self) -> int:
        """Frames without a partner."""
        return len(self.reference) + len(self.candidate)


def pair_times(
    reference: Sequence[float], candidate: Sequence[float], *, unit_s: float, begins_apart_s: float = 0.0
) -> Pairing:
    """Pair the frames of two clips.

    Args:
        reference: Seconds of each frame, rising.
        candidate: The same of the other clip.
        unit_s: Seconds to which both files round times, together.
        begins_apart_s: How much later the candidate's first frame is than the reference's, by the files' own clocks.
            It decides between explanations that are equally good: whether first or last frames are missing.

    Returns:
        The pairing with the fewest frames alone, of those with a pair among the first frames.
    """
    first, second = (np.asarray(times, np.float64) for times in (reference, candidate))
    best = _walk(first, second, 0, 0, unit_s)
    choices = [(best.count, abs(begins_apart_s), 0, best)]
    for missing in range(1, MOST_MISSING_FIRST + 1 if best.count else 1):
        for skip in ((missing, 0), (0, missing)):
            if skip[0] < len(first) and skip[1] < len(second):
                found = _walk(first, second, *skip, unit_s)
                begin_s = begins_apart_s + second[skip[1]] - second[0] - (first[skip[0]] - first[0])
                choices.append((found.count, abs(float(begin_s)), missing, found))
    return min(choices, key=lambda choice: (choice[0], round(choice[1], 3), choice[2]))[3]


def _walk(
    reference: np.ndarray[tuple[int], np.dtype[np.float64]],
    candidate: np.ndarray[tuple[int], np.dtype[np.float64]],
    skip_reference: int,
    skip_candidate: int,
    unit_s: float,
) -> Pairing:
    """Pair two clips of which the given first frames are partners."""
    first = (reference - reference[skip_reference]).tolist()
    second = (candidate - candidate[skip_candidate]).tolist()
    gaps = _gaps_of(first), _gaps_of(second)
    alone: tuple[list[int], list[int]] = (list(range(skip_reference)), list(range(skip_candidate)))
    i, j = skip_reference, skip_candidate
    follow = most = 0.0
    while i < len(first) and j < len(second):
        apart = second[j] - first[i]
        left = apart - math.copysign(max(abs(follow) - unit_s, 0.0), follow)  # within a unit it is rounding
        is_within = abs(apart) <= unit_s + MAX_RATE_DIFFERENCE * first[i] + _EXACT_S
        is_near = abs(left) <= _SHARE_OF_GAP * min(gaps[0][i], gaps[1][j])
        if left > 0 and i + 1 < len(first):
            is_near = is_near and left <= abs(left - (first[i + 1] - first[i]))
        if left < 0 and j + 1 < len(second):
            is_near = is_near and -left <= abs(left + (second[j + 1] - second[j]))
        if is_within and is_near:
            follow += (apart - follow) / _FOLLOW
            most = max(most, abs(apart))
            i, j = i + 1, j + 1
        elif left > 0:
            alone[0].append(i)
            i += 1
        else:
            alone[1].append(j)
            j += 1
    return Pairing((*alone[0], *range(i, len(first))), (*alone[1], *range(j, len(second))), most)


def _gaps_of(times: Sequence[float]) -> list[float]:
    """Return the smaller gap beside each frame; infinite for a single frame."""
    between = np.diff(times)
    before, after = np.append(np.inf, between), np.append(between, np.inf)
    found: list[float] = np.minimum(before, after).tolist()
    return found
