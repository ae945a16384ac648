"""Undoes the telecine of film (3:2 pulldown), with FFmpeg's filters ``fieldmatch`` and ``decimate``.

Telecine made five interlaced frames of four of the film. ``fieldmatch`` puts the fields of each film frame together
again, for each picture from itself and its two neighbours; ``bwdif`` makes progressive what stays combed; ``decimate``
leaves out one of five, the one that differs least from the one before it. What it decides for five pictures depends on
them and on the last one before them. So a range of a video is filtered as the whole would be, if the five pictures
before it are given too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import numpy.typing as npt

from genai_ray.types import Deinterlace
from genai_ray.video.reading.deinterlace import (
    CYCLE,
    KEPT,
    PARITIES,
    Deinterlacing,
    PictureFilter,
    Steps,
    StoredPictures,
    deinterlace,
    list_steps,
)

__all__ = ["check_deinterlacing", "count_repeating", "undo_telecine"]

_DECIMATE: Steps = (("decimate", f"cycle={CYCLE}"),)

_MOVING_LEVELS = 1.0
"""Mean difference of neighbours, in levels of 255, from which five frames count as moving."""

_REPEATED_SHARE = 0.5
"""A picture is a repetition if it differs from the one before by less than this share of what the others do."""


def check_deinterlacing(path: str, deinterlacing: Deinterlacing, pix_fmt: str, size: tuple[int, int]) -> None:
    """Check that the filters take such pictures.

    Args:
        path: The file, for the error.
        deinterlacing: How they are deinterlaced.
        pix_fmt: FFmpeg's name of their pixel format.
        size: (width, height) in pixels.

    Raises:
        VideoError: If they do not take the pixel format, or such small pictures.
    """
    steps = list_steps(deinterlacing)
    if deinterlacing.how is Deinterlace.IVTC:
        steps = (*_list_matching(deinterlacing), *steps, *_DECIMATE)
    PictureFilter(path, steps, pix_fmt, size)


def undo_telecine(
    path: str, decode: StoredPictures, start: int, stop: int, count: int, deinterlacing: Deinterlacing
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give a range of the pictures of a film.

    Args:
        path: The file, for errors.
        decode: Gives stored pictures.
        start: Position of the first picture of the film.
        stop: One past that of the last one.
        count: Stored pictures of the whole video.
        deinterlacing: How they are deinterlaced.

    Yields:
        Position in the film, and picture.

    Raises:
        VideoError: What ``decode`` raises, or if a filter does not take a picture.
    """
    first = max(start // KEPT - 1, 0) * CYCLE
    last = min(((stop - 1) // KEPT + 1) * CYCLE, count)
    combed = replace(deinterlacing, how=Deinterlace.FRAME, every=False)
    matched = functools.partial(_match_fields, path, decode, count, deinterlacing)
    pictures = (picture for _, _, picture in deinterlace(path, matched, first, last, count, combed))
    for position, picture in enumerate(_filter_all(path, _DECIMATE, pictures), first // CYCLE * KEPT):
        if position >= stop:
            return
        if position >= start:
            yield position, picture


def count_repeating(
    path: str, decode: StoredPictures, start: int, stop: int, count: int, deinterlacing: Deinterlacing
) -> tuple[int, int]:
    """Count fives of neighbouring pictures, and those with a repetition, as telecine leaves one in each.

    Args:
        path: The file, for errors.
        decode: Gives stored pictures.
        start: Position of the first picture.
        stop: One past that of the last one.
        count: Stored pictures of the whole video.
        deinterlacing: How they are deinterlaced.

    Returns:
        (fives with motion and a repetition, fives with motion).

    Raises:
        VideoError: As ``undo_telecine``.
    """
    lumas = (_luma(picture) for _, picture in _match_fields(path, decode, count, deinterlacing, start, stop))
    changes = [float(np.abs(one - two).mean()) for one, two in pairwise(lumas)]
    fives = [sorted(changes[at : at + CYCLE]) for at in range(0, len(changes) - CYCLE + 1, CYCLE)]
    moving = [five for five in fives if five[CYCLE // 2] > _MOVING_LEVELS]
    return sum(five[0] < _REPEATED_SHARE * five[CYCLE // 2] for five in moving), len(moving)


def _luma(picture: av.VideoFrame) -> npt.NDArray[np.int16]:
    plane = picture.planes[0]  # planar YUV of 8 bits, which the filter takes
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width].astype(np.int16)


def _match_fields(
    path: str, decode: StoredPictures, count: int, deinterlacing: Deinterlacing, start: int, stop: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give a range of pictures whose fields belong together; those that stay combed are flagged as interlaced."""
    first = max(start - 1, 0)
    pictures = (picture for _, picture in decode(first, min(stop + 1, count)))
    for position, picture in enumerate(_filter_all(path, _list_matching(deinterlacing), pictures), first):
        if position >= stop:
            return
        if position >= start:
            yield position, picture


def _filter_all(path: str, steps: Steps, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    filtering: PictureFilter | None = None
    for number, picture in enumerate(pictures):
        if filtering is None:
            filtering = PictureFilter(path, steps, picture.format.name, (picture.width, picture.height))
        picture.pts = number
        yield from filtering.push(picture)
    if filtering is not None:
        yield from filtering.push(None)


def _list_matching(deinterlacing: Deinterlacing) -> Steps:
    return (("fieldmatch", f"order={PARITIES[deinterlacing.order]}"),)
