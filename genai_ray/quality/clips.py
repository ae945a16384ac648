"""Frames to validate: arrays, batches with a column of frames, and videos by their path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.files import is_remote
from genai_ray.video import VideoReader

__all__ = ["check_videos", "columns_of", "iter_clip", "iter_pairs"]

MAX_RATE_DIFFERENCE = 1 / 5000
"""Most by which frame rates may differ: a rate rounded to two decimals, such as 23.98, differs by less."""


def check_videos(reference: Any, output: Any, name: str) -> str:
    """Refuse two videos whose frames do not belong together, although there may be as many of them.

    Args:
        reference: Anything that ``iter_clip`` takes.
        output: The same; nothing is checked unless both are paths.
        name: What ``reference`` is called in errors.

    Returns:
        What light their numbers mean, see ``Colour.light``; ``SDR`` if nothing was checked.

    Raises:
        QualityError: If both are one file, their frames are shown at other times, or they mean another light.
        VideoError: If one cannot be read.
    """
    if not (isinstance(reference, str | Path) and isinstance(output, str | Path)):
        return "SDR"
    if str(reference) == str(output) or _is_one_file(reference, output):
        raise QualityError(f"{output}: the result is the {name} itself", "another file")
    with VideoReader(reference) as first, VideoReader(output) as second:
        lights = [video.info.colour.light for video in (first, second)]
        if lights[0] != lights[1]:
            do = "Convert one of them first: equal numbers mean another light."
            raise QualityError(f"{output} of {lights[1]} for {reference} of {lights[0]}", "the same for both", do)
        spans_s = [video.seconds[-1] - video.seconds[0] for video in (first, second)]
        rounding_s = float(first.info.time_base + second.info.time_base)
        if len(first) == len(second) and abs(spans_s[0] - spans_s[1]) > rounding_s + MAX_RATE_DIFFERENCE * spans_s[0]:
            raise QualityError(
                f"{output}: its {len(second)} frames span {spans_s[1]:.6g} s, those of the {name} {spans_s[0]:.6g} s",
                "frames of one rate",
                "Convert one of them first, or use genai-ray validate, which names frames without a partner.",
            )
    return lights[0]


def columns_of(clip: Any) -> tuple[str, ...]:
    """Return the names of a batch's columns.

    Args:
        clip: Anything that ``iter_clip`` takes.

    Returns:
        The names; none if it is an array or a path.
    """
    if isinstance(clip, Mapping):
        return tuple(clip)
    return tuple(getattr(clip, "column_names", getattr(clip, "columns", ())))  # pyarrow.Table, pandas.DataFrame


def iter_clip(clip: Any, column: str = "frame") -> Iterator[npt.NDArray[Any]]:
    """Walk over frames one by one; of a video, few are in memory at a time.

    Args:
        clip: One frame (H, W, C) or several (N, H, W, C); a ``pyarrow.Table``, dict or DataFrame with a column of
            frames; or the path or URI of a video.
        column: The column of a batch.

    Yields:
        Frames (H, W, C), possibly read-only; those of a video are RGB, uint8 or uint16, as they are stored.

    Raises:
        InvalidInputError: If it is none of these, or has another number of axes.
        VideoError: If the video cannot be read.
    """
    if isinstance(clip, str | Path):
        with VideoReader(clip) as video:
            for decoded in video:
                yield decoded.frame
    elif isinstance(clip, np.ndarray):
        if clip.ndim not in (3, 4):
            raise InvalidInputError(f"frames of shape {clip.shape}", "(H, W, C) or (N, H, W, C)")
        yield from clip if clip.ndim == 4 else clip[None]
    else:
        from genai_ray.frames import iter_frames  # noqa: PLC0415 - Arrow takes 0.15 s of each process

        for run in iter_frames(clip, column):
            yield from run


def _is_one_file(first: str | Path, second: str | Path) -> bool:
    """Tell whether two paths name one file: links count as the file."""
    try:
        return not (is_remote(str(first)) or is_remote(str(second))) and os.path.samefile(first, second)
    except OSError:  # opening it tells what is wrong
        return False


def iter_pairs(
    first: Iterator[npt.NDArray[Any]], second: Iterator[npt.NDArray[Any]], name: str
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Walk over the frames of two clips side by side.

    Args:
        first: Frames of the reference or source.
        second: Frames of the result, as many.
        name: What ``first`` is called in errors.

    Yields:
        A frame of each.

    Raises:
        QualityError: If one has more frames than the other, or both have none.
    """
    count = 0
    while True:
        pair = next(first, None), next(second, None)
        if pair[0] is None and pair[1] is None:
            break
        if pair[0] is None or pair[1] is None:
            more, less = ("result", name) if pair[0] is None else (name, "result")
            raise QualityError(f"a {more} with more frames than the {less}, which has {count}", "equal numbers")
        yield pair[0], pair[1]
        count += 1
    if count == 0:
        raise QualityError("clips without frames", "at least one frame")
