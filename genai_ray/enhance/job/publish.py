"""Publishing a result from its finished segments: a video, a folder of frames, or a table of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genai_ray.errors import VideoError
from genai_ray.frames import TableWriter, build_table
from genai_ray.video import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIX,
    VideoPlan,
    describe_leftovers,
    join_segments,
    read_pictures,
    write_pictures,
)

__all__ = ["publish"]

MAX_TABLE_BYTES = 64 * 1024**2
"""Bytes of frames that are in memory, and in a row group, at a time."""


def publish(plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int], output: Path) -> tuple[str, ...]:
    """Write a result; it appears under its name only when it is whole.

    Args:
        plan: The planned video.
        parts: The segments' files in order; those of no frames are left out.
        counts: Frames in each of them.
        output: A video file, a pattern such as ``frames/%06d.png``, or a .parquet file; replaced when it exists.

    Returns:
        Notes: what the result has no place for.

    Raises:
        VideoError: If frames are missing that are not the last ones, a part does not hold its frames, or writing fails.
    """
    _check_counts(plan, counts)
    suffix = output.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return write_pictures(plan, parts, counts, output)
    if suffix == TABLE_SUFFIX:
        with TableWriter(output) as writer:
            for table in _tables(plan, parts, counts):
                writer.write(table)
        return tuple(describe_leftovers(plan, "a table of frames"))
    return join_segments(plan, parts, counts, output)


def _check_counts(plan: VideoPlan, counts: Sequence[int]) -> None:
    """Frames may be missing at the end only: else all that follow would get times that are too early, and run away from the sound."""
    planned = [segment.stop - segment.start for segment in plan.segments]
    for index, (count, wanted) in enumerate(zip(counts, planned, strict=True)):
        if count < wanted and any(counts[index + 1 :]):
            first = plan.segments[index].start + count
            where = f"{plan.path}: frames {first} to {plan.segments[index].stop - 1}, from {float(plan.pts[first] * plan.info.time_base):.3f} s,"
            raise VideoError(f"{where} do not decode, and later ones do", "a file that is whole, or lacks its end")


def _tables(plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int]) -> Iterator[Any]:
    base, done = f"{plan.info.time_base.numerator}/{plan.info.time_base.denominator}", 0
    for part, count in zip(parts, counts, strict=True):
        waiting = []
        for index, frame in enumerate(read_pictures(plan, part, count) if count else ()):
            waiting.append(frame)
            if (len(waiting) + 1) * frame.nbytes > MAX_TABLE_BYTES or index + 1 == count:
                rows = range(done, done + len(waiting))
                done = rows.stop
                yield build_table(
                    np.stack(waiting),
                    video=plan.path,
                    frame_index=rows,
                    pts=plan.pts[rows.start : rows.stop],
                    time_base=base,
                )
                waiting = []
