"""``show``: frames of an array or a video, as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.display import draw_pictures
from genai_ray.errors import InvalidInputError
from genai_ray.video import VideoReader

__all__ = ["show"]


def show(media: str | Path | VideoReader | npt.NDArray[Any], *, count: int = 8) -> Any:
    """Draw frames of a video, or of an array, in order and evenly spread.

    Args:
        media: Path or URI of a video; a ``VideoReader``; one frame (H, W, 3), frames (N, H, W, 3) or masks (..., 1),
            uint8, uint16 or float32 in [0, 1].
        count: Most frames to draw.

    Returns:
        A matplotlib ``Figure``, which a notebook shows.

    Raises:
        InvalidInputError: If there is no frame, ``count`` is less than 1, or the array is none of frames.
        VideoError: If the file is not a video, or a frame does not decode.
        BackendUnavailableError: If matplotlib is not installed.

    Example:
        >>> len(show("samples/bigbuckbunny-360p.mp4", count=4).axes)
        4
    """
    if count < 1:
        raise InvalidInputError(f"count={count}", "1 or more")
    if isinstance(media, str | Path):
        with VideoReader(media) as video:
            return show(video, count=count)
    if isinstance(media, VideoReader):
        frames = [media[index] for index in _spread(len(media), count)]
        return draw_pictures({f"frame {one.index}, {one.pts_seconds:.2f} s": one.frame for one in frames})
    if np.ndim(media) not in (3, 4):
        got = f"{type(media).__name__} {np.shape(media)}"
        raise InvalidInputError(got, "a path, a VideoReader, or frames (H, W, 3) or (N, H, W, 3)")
    if media.ndim == 3:
        return draw_pictures({f"{media.shape[1]}x{media.shape[0]}": media})
    return draw_pictures({f"frame {index}": media[index] for index in _spread(len(media), count)})


def _spread(length: int, count: int) -> list[int]:
    """Return so many positions, the first and the last among them."""
    return np.unique(np.rint(np.linspace(0, length - 1, min(count, length))).astype(int)).tolist() if length else []
