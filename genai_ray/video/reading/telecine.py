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

import av

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

__all__ = ["check_deinterlacing", "undo_telecine"]

_DECIMATE: Steps = (("decimate", f"cycle={CYCLE}"),)


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
