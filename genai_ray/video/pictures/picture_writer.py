"""Writes results as pictures: one picture, an animation, or numbered pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import ConfigError, InvalidInputError, VideoError
from genai_ray.files import has_number
from genai_ray.video.container import av_errors
from genai_ray.video.pictures.animation_writer import ANIMATED, check_webp, round_durations, write_animation
from genai_ray.video.pictures.animations import FOR_EVER
from genai_ray.video.pictures.frame_files import describe_leftovers, read_pictures
from genai_ray.video.pictures.images import Picture, check_encoding, encode_picture
from genai_ray.video.reading.plan import PictureSource, VideoPlan

__all__ = ["check_images", "describe_plays", "format_of", "write_images"]

Array = npt.NDArray[Any]

_FORMATS = {".png": "png", ".apng": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
_DEEP = ("png",)
"""Formats that hold 16 bits."""


def format_of(suffix: str) -> str:
    """Return the format of a picture's file.

    Args:
        suffix: Its suffix, lower case, with its dot.

    Returns:
        ``png``, ``jpeg``, ``webp`` or ``gif``.
    """
    return _FORMATS[suffix]


def check_images(plan: VideoPlan, size: tuple[int, int], output: str, *, has_alpha: bool) -> None:
    """Check, before anything is computed, that pictures or an animation can hold a result.

    Args:
        plan: The plan of the result.
        size: (width, height) of its frames in pixels.
        output: A file, or the pattern of numbered files.
        has_alpha: Whether frames have alpha; alpha that is opaque everywhere does not count for JPEG.

    Raises:
        ConfigError: If the format cannot hold the number of frames, their size, alpha, colour profile or durations.
    """
    kind = format_of(os.path.splitext(output)[1].lower())
    source = plan.pictures or PictureSource(())
    is_numbered = has_number(output)
    count = len(plan.pts)
    try:
        if kind == "gif" or (count > 1 and not is_numbered):
            _check_animation(plan, size, kind)
        if kind != "gif":
            blank = np.zeros((1, 1), np.uint8)
            has_alpha = has_alpha and not (kind == "jpeg" and source.is_opaque)
            picture = Picture(blank[..., None], blank if has_alpha else None, source.is_grey, kind, source.icc_profile)
            check_encoding(picture, size, kind, None)
    except (InvalidInputError, VideoError) as exc:
        raise ConfigError(f"{plan.path}: {exc.got}", exc.allowed, "Choose another suffix for the output.") from exc


def _check_animation(plan: VideoPlan, size: tuple[int, int], kind: str) -> None:
    if kind not in ANIMATED:
        raise InvalidInputError(
            f"{len(plan.pts)} frames as one {kind}, which holds one picture",
            ".gif, .webp or .apng, a video, or numbered pictures such as out/%05d.jpg",
        )
    most = ANIMATED[kind].max_side_px
    if max(size) > most:
        raise InvalidInputError(f"frames of {size[0]}x{size[1]} as {kind}", f"{most} pixels a side")
    if kind == "webp":
        check_webp(size, len(plan.pts))
    round_durations(_times_of(plan), kind)


def write_images(
    plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int], output: Path, quality: int | None = None
) -> tuple[str, ...]:
    """Write a result from its finished segments, which hold PNG packets.

    Args:
        plan: The plan of the result.
        parts: Files of the segments in order.
        counts: Frames in each of them.
        output: A file, or the pattern of numbered files, whose folder is created.
        quality: Quality of JPEG and WebP, from 1 to 100; None for 92.

    Returns:
        Notes on what is converted or left out.

    Raises:
        VideoError: If a part does not hold its frames, or writing fails.
    """
    kind = format_of(output.suffix.lower())
    source = plan.pictures or PictureSource(())
    frames = (
        _to_picture(frame, source, kind)
        for part, count in zip(parts, counts, strict=True)
        for frame in (read_pictures(plan, part, count) if count else ())
    )
    told: tuple[str, ...] = ()
    with av_errors(plan.path, f"writing {output.name}"):
        if has_number(output.name):
            output.parent.mkdir()
            for number, picture in enumerate(frames, source.first_number):
                (output.parent / (output.name % number)).write_bytes(encode_picture(picture, kind, quality))
        elif sum(counts) == 1 and kind != "gif":
            output.write_bytes(encode_picture(next(frames), kind, quality))
        else:
            times_s = _times_of(plan)[: sum(counts) + 1]
            durations_s = round_durations(times_s, kind)
            plays = min(source.plays, ANIMATED[kind].max_plays) if source.is_animation else FOR_EVER
            write_animation(frames, durations_s, plays, output, kind, quality)
            told = tuple(_describe_times(times_s, durations_s, kind))
            if source.is_animation and plays < source.plays:
                told = (*told, f"the animation is played {plays} times, not {source.plays}: {kind} can say no more")
    return (*_describe_losses(plan, kind), *told)


def describe_plays(source: PictureSource) -> Iterator[str]:
    """Say what a video cannot keep of pictures.

    Args:
        source: The pictures.

    Yields:
        One sentence each.
    """
    if source.is_animation and source.plays != 1:
        often = "without end" if source.plays == FOR_EVER else f"{source.plays} times"
        yield f"the animation is played {often}, which a video cannot say"
    if source.icc_profile is not None:
        yield "the colour profile was left out: its colours are stored as they are, and read as sRGB"


def _times_of(plan: VideoPlan) -> list[Fraction]:
    """Return when each frame begins, and when the last one ends, in seconds from the first one on."""
    base = plan.info.time_base
    return [(pts - plan.pts[0]) * base for pts in (*plan.pts, plan.pts[-1] + plan.duration)]


def _to_picture(frame: Array, source: PictureSource, kind: str) -> Picture:
    """Make a picture of a frame, RGB or RGBA, in a depth that the format holds."""
    if frame.dtype == np.uint16 and kind not in _DEEP:
        frame = np.rint(frame / 257.0).astype(np.uint8)
    alpha = np.ascontiguousarray(frame[..., 3]) if frame.shape[2] == 4 and kind != "jpeg" else None
    profile = source.icc_profile if source.format != "gif" else None
    return Picture(np.ascontiguousarray(frame[..., :3]), alpha, source.is_grey, kind, profile)


def _describe_losses(plan: VideoPlan, kind: str) -> Iterator[str]:
    """Say what a format cannot keep."""
    source = plan.pictures
    if source is None:
        yield from describe_leftovers(plan, f"a {kind} file")
    if plan.info.bit_depth > 8 and kind not in _DEEP:
        yield f"{plan.info.bit_depth} bits per component were reduced to 8, which {kind} holds"
    if kind == "gif":
        yield "frames of more than 256 colours were reduced to 256, which is what GIF holds"
        if plan.info.has_alpha:
            yield "alpha was reduced to shown or not: pixels of less than half are transparent"
        if source is not None and source.icc_profile is not None:
            yield "the colour profile was left out: GIF has none"


def _describe_times(times_s: Sequence[Fraction], durations_s: Sequence[Fraction], kind: str) -> Iterator[str]:
    moved = sum(after - before != told for (before, after), told in zip(pairwise(times_s), durations_s, strict=True))
    if moved:
        unit_s = ANIMATED[kind].unit_s
        what = f"{math.floor(unit_s * 1000)} ms" if unit_s is not None else "fractions of 16 bits"
        yield f"{moved} of {len(durations_s)} durations were rounded to {what}, the unit of {kind}"
