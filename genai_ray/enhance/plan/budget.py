"""How a bit rate or a size that is asked for is divided among the segments of a result.

It follows from the source and the options alone, so that neither the number of workers nor a restart changes a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.errors import ConfigError, VideoError
from genai_ray.types import parse_bit_rate, parse_bytes
from genai_ray.video import Encoding, VideoPlan, measure_least, measure_rest, weigh_segments

__all__ = ["FULL_SIZE_SHARE", "describe_size", "divide_bytes", "give_budgets"]

FULL_SIZE_SHARE = 0.95
"""A result has at least this share of the size that is asked for, unless its pictures cannot fill it."""

SHARE_BY_TIME = Fraction(1, 5)
"""Of the bytes, what segments get by their length; the rest by the bytes of the source's packets in them."""

MEASURED_BITS_PER_PX = 0.25
"""With less for each pixel, it is measured whether pictures can be so small: noise takes half of it even with the
highest factor."""

LOW_BITS_PER_PX = 0.05
"""With less, what is measured is the limit. Of pictures that need more, it may be nearly twice what is needed, because
a filter enlarges their noise in another way than a model does; or half of it."""

_UNSURE = 2
"""By how much what is measured may be wrong of noise."""


def give_budgets(
    timeline: Timeline, size: tuple[int, int], encoding: Encoding, suffix: str
) -> tuple[Timeline, tuple[str, ...]]:
    """Give each segment its bytes, if a bit rate or a size is asked for.

    Args:
        timeline: The plan of the source and of the result.
        size: (width, height) of the result's pictures.
        encoding: The settings, with a codec.
        suffix: Suffix of the output, lower case, with its dot.

    Returns:
        The timeline with budgets, and notes for the report; unchanged if segments have a constant quality.

    Raises:
        ConfigError: If the pictures cannot be so small; the error has the smallest value that would do.
        VideoError: If the source cannot be read.
    """
    if not encoding.has_budget:
        return timeline, ()
    result = timeline.result
    lengths = _lengths(result)
    seconds = float(sum(lengths) * result.info.time_base)
    rest = 0
    if encoding.max_size is not None:
        most = parse_bytes(encoding.max_size, "max_size")
        rest = measure_rest(result, encoding, suffix)
        room = most - rest
    else:
        room = int(_read_rate(encoding) * seconds / 8)
    doubts = _check_room(timeline, size, encoding, room, rest)
    budgets = divide_bytes(room, lengths, weigh_segments(timeline.plan))
    note = f"pictures get {8 * room / seconds / 1000:.0f} kb/s on average"
    if encoding.max_size is not None:
        note = f"size: of {most:,} bytes, {rest:,} are for sound, subtitles and the container; {note}"
    return replace(timeline, budgets=budgets), (note, *doubts)


def divide_bytes(room: int, lengths: Sequence[int], weights: Sequence[int]) -> tuple[int, ...]:
    """Divide bytes among segments.

    Args:
        room: All bytes.
        lengths: Length of each segment; 0 for one without frames.
        weights: Bytes of the source in each of them.

    Returns:
        Bytes for each segment, together at most ``room``.
    """
    weights = [weight if length else 0 for weight, length in zip(weights, lengths, strict=True)]
    by_time = SHARE_BY_TIME if sum(weights) else Fraction(1)
    shares = [
        by_time * Fraction(length, sum(lengths)) + (1 - by_time) * Fraction(weight, sum(weights) or 1)
        for length, weight in zip(lengths, weights, strict=True)
    ]
    return tuple(int(room * share) for share in shares)


def describe_size(encoding: Encoding, taken: int, most: int, output: str) -> tuple[str, ...]:
    """Compare the size of a finished result with the one that is asked for.

    Args:
        encoding: The settings.
        taken: Bytes of the result, or, if a bit rate is asked for, of its pictures.
        most: Bytes that they may have.
        output: Its name, for the error.

    Returns:
        A note if it is smaller than promised.

    Raises:
        VideoError: If it is larger than allowed.
    """
    if encoding.max_size is not None:
        name, asked, unit, of = "max_size", parse_bytes(encoding.max_size), "kB", ""
    else:
        name, asked, unit, of = "video_bitrate", _read_rate(encoding), "k", " of pictures"
    if taken > most:
        needed = f"{math.ceil(_MORE * asked * taken / most / 1000)}{unit}"
        raise VideoError(
            f"{output} would have {taken:,} bytes{of}: some segments exceed their share at the lowest quality",
            f"{most:,} bytes",
            f"Pass --{name.replace('_', '-')} {needed} ({name}='{needed}') or more, or make it smaller or shorter.",
        )
    if taken < FULL_SIZE_SHARE * most:
        return (f"size: {taken:,} of {most:,} bytes{of}: the best quality does not take more",)
    return ()


_MORE = 1.02
"""By how much more is proposed than what was too much."""


def _read_rate(encoding: Encoding) -> int:
    return parse_bit_rate(encoding.video_bitrate or 0, "video_bitrate")


def _lengths(result: VideoPlan) -> list[int]:
    """Return how long each segment is shown, in units of its times."""
    ends = (*result.pts, result.pts[-1] + result.duration)
    return [ends[segment.stop] - ends[segment.start] for segment in result.segments]


def _check_room(timeline: Timeline, size: tuple[int, int], encoding: Encoding, room: int, rest: int) -> tuple[str, ...]:
    """Refuse a size that pictures of the lowest quality exceed; return a note if they may exceed it."""
    result = timeline.result
    pixels = size[0] * size[1] * len(result.pts)
    if 8 * room >= MEASURED_BITS_PER_PX * pixels:
        return ()
    least = measure_least(timeline.plan, result, size, encoding)
    surely = least if 8 * room < LOW_BITS_PER_PX * pixels else least // _UNSURE
    if room >= surely:
        if room >= _UNSURE * least:
            return ()
        what = f"size: pictures get {room:,} bytes; {least:,} were measured for a few frames of the lowest quality"
        return (
            f"{what}, enlarged by a filter. If the models' pictures need more than they get, the job fails at its end",
        )
    do = "Or make the result smaller, with --height (height=...), or shorter."
    if encoding.max_size is None:
        seconds = float(sum(_lengths(result)) * result.info.time_base)
        rate = -(-8 * surely // max(int(seconds * 1000), 1))
        raise ConfigError(
            f"{result.path}: video_bitrate {encoding.video_bitrate} for {size[0]}x{size[1]} with {encoding.encoder}",
            f"{rate}k or more",
            do,
        )
    allowed = rest + surely
    raise ConfigError(
        f"{result.path}: max_size {encoding.max_size} bytes; sound, subtitles and container take {rest:,}, and "
        f"pictures of {size[0]}x{size[1]} with {encoding.encoder} {surely:,} or more",
        f"{-(-allowed // 1000)}kB or more",
        do,
    )
