"""Frames to validate: arrays, batches with a column of frames, and videos by their path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.frames import iter_frames
from genai_ray.video import VideoReader

__all__ = ["columns_of", "iter_clip", "iter_pairs"]


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
        for run in iter_frames(clip, column):
            yield from run


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
