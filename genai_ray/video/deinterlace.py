"""Makes progressive pictures of interlaced ones, with FFmpeg's filter ``bwdif``.

The filter makes each picture from three stored ones: its own, the one before it and the one after it. So a range of a
video is filtered as the whole would be, if its two neighbours are given too. At the beginning of a video the filter has
no neighbour before, and at the end none after: there, and only there, it does without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, cast

import av
from av.filter import Graph

from genai_ray.errors import VideoError
from genai_ray.types import FieldOrder

__all__ = ["Deinterlacing", "check_deinterlacing", "deinterlace"]

_PARITIES = {FieldOrder.TOP: "tff", FieldOrder.BOTTOM: "bff", None: "auto"}

_PLANAR = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "p010le": "yuv420p10le",
    "p210le": "yuv422p10le",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "yuva422p12le": "yuva422p16le",
    "yuva444p12le": "yuva444p16le",
    **dict.fromkeys(("rgb24", "bgr24", "rgb0", "bgr0", "0rgb", "0bgr"), "gbrp"),
    **dict.fromkeys(("rgba", "bgra", "argb", "abgr"), "gbrap"),
    **dict.fromkeys(("rgb48le", "bgr48le"), "gbrp16le"),
    **dict.fromkeys(("rgba64le", "bgra64le"), "gbrap16le"),
}
"""Formats that the filter lacks, and planar ones that hold the same numbers, or these with zeros behind them."""

_TRIAL_SIDE_PX = 32

StoredPictures: TypeAlias = Callable[[int, int], Iterator[tuple[int, av.VideoFrame]]]
"""Decodes a range, from a position to one past the last: gives position and picture of each, as they are stored."""


@dataclass(frozen=True, slots=True)
class Deinterlacing:
    """How the pictures of a video are deinterlaced."""

    every: bool
    """Whether every picture is filtered; else those that are flagged as interlaced."""
    by_field: bool
    """Whether each gives two pictures, one of the time of each field; only with ``every``."""
    order: FieldOrder | None
    """The field that is shown first; None if the pictures say it. One without a flag counts as top field first then."""

    def takes(self, picture: av.VideoFrame) -> bool:
        """Tell whether a picture is filtered.

        Args:
            picture: A decoded picture.

        Returns:
            Whether it is.
        """
        return self.every or bool(picture.interlaced_frame)


def check_deinterlacing(path: str, deinterlacing: Deinterlacing, pix_fmt: str, size: tuple[int, int]) -> None:
    """Check that the filter takes such pictures, by filtering one.

    Args:
        path: The file, for the error.
        deinterlacing: How they are deinterlaced.
        pix_fmt: FFmpeg's name of their pixel format.
        size: (width, height) in pixels.

    Raises:
        VideoError: If it does not take the pixel format, or such small pictures.
    """
    _Filter(path, deinterlacing, pix_fmt, size)


def deinterlace(
    path: str, decode: StoredPictures, start: int, stop: int, count: int, deinterlacing: Deinterlacing
) -> Iterator[tuple[int, int | None, av.VideoFrame]]:
    """Deinterlace a range of pictures. Neighbours of the range are decoded only if a picture beside them is filtered.

    Args:
        path: The file, for errors.
        decode: Gives stored pictures.
        start: Position of the first picture.
        stop: One past that of the last one.
        count: Pictures of the whole video.
        deinterlacing: How they are deinterlaced.

    Yields:
        Position of the stored picture; 0 for the first picture that is made of it, 1 for the second, None for the
        stored one itself; and the picture.

    Raises:
        VideoError: What ``decode`` raises, or if the filter does not take a picture.
    """
    pictures = decode(start, min(stop + 1, count))
    first = None
    if not deinterlacing.every or start == 0:
        first = next(pictures, None)
        if first is None:
            return
    before: av.VideoFrame | None = None
    if start > 0 and (first is None or deinterlacing.takes(first[1])):
        # Only now: if it is a key frame, all pictures since the last one must be decoded for the one before it.
        pictures, first = decode(start - 1, min(stop + 1, count)), None
        before = next(pictures, (0, None))[1]
    filtering: _Filter | None = None
    waiting: tuple[int, av.VideoFrame] | None = first or next(pictures, None)
    while waiting is not None and waiting[0] < stop:
        index, picture = waiting
        if not deinterlacing.takes(picture):
            yield index, None, picture
            filtering, before, waiting = None, picture, next(pictures, None)
            continue
        if filtering is None:
            size = (picture.width, picture.height)
            filtering = _Filter(path, deinterlacing, picture.format.name, size)
            if before is not None:
                filtering.push(before)
            made = filtering.push(picture)
        waiting = next(pictures, None)
        made = filtering.push(waiting[1] if waiting is not None else None)
        for field, one in enumerate(made):
            yield index, field, one
        before = picture


class _Filter:
    """The filter, which gives the pictures made of a stored one when it gets the next one.

    Args:
        path: The file, for errors.
        deinterlacing: How pictures are deinterlaced.
        pix_fmt: FFmpeg's name of their pixel format.
        size: (width, height) in pixels.
    """

    def __init__(self, path: str, deinterlacing: Deinterlacing, pix_fmt: str, size: tuple[int, int]) -> None:
        planar = _choose_format(pix_fmt)
        if planar is None:
            raise VideoError(
                f"{path}: interlaced pictures of pixel format {pix_fmt}",
                "those that FFmpeg's filter bwdif takes: planar YUV, RGB and grey of 8 to 16 bits",
                "Pass --deinterlace off (deinterlace='off') to enhance them as they are.",
            )
        try:
            self._graph = _build_graph(deinterlacing, pix_fmt, planar, size)
        except av.FFmpegError as exc:
            raise VideoError(
                f"{path}: interlaced pictures of {size[0]}x{size[1]} in {pix_fmt}",
                "planes of 3 columns and 4 lines or more",
                "Pass --deinterlace off (deinterlace='off') to enhance them as they are.",
            ) from exc

    def push(self, picture: av.VideoFrame | None) -> list[av.VideoFrame]:
        """Filter a picture.

        Args:
            picture: The next stored one; None after the last one.

        Returns:
            Pictures made of the one before it, if there is one.
        """
        self._graph.push(picture)
        return _pull_all(self._graph)


def _build_graph(deinterlacing: Deinterlacing, pix_fmt: str, planar: str, size: tuple[int, int]) -> Graph:
    graph = Graph()
    graph.threads = 1
    width, height = size
    last = graph.add_buffer(width=width, height=height, format=av.VideoFormat(pix_fmt), time_base=Fraction(1, 1000))
    mode = "send_field" if deinterlacing.by_field else "send_frame"
    steps = [("format", planar)] if planar != pix_fmt else []
    steps += [("bwdif", f"mode={mode}:parity={_PARITIES[deinterlacing.order]}:deint=all"), ("buffersink", "")]
    for name, options in steps:
        step = graph.add(name, options or None)
        last.link_to(step)
        last = step
    graph.configure()
    return graph


@functools.lru_cache(maxsize=64)
def _choose_format(pix_fmt: str) -> str | None:
    """Return the format in which the filter takes pictures without changing a number; None if there is none."""
    for planar in (pix_fmt, _PLANAR.get(pix_fmt)):
        if planar is not None:
            graph = _build_graph(Deinterlacing(True, False, None), planar, planar, (_TRIAL_SIDE_PX, _TRIAL_SIDE_PX))
            graph.push(av.VideoFrame(_TRIAL_SIDE_PX, _TRIAL_SIDE_PX, planar))
            graph.push(None)
            # FFmpeg converts pictures that the filter does not take, so that another format comes out.
            if [made.format.name for made in _pull_all(graph)] == [planar]:
                return planar
    return None


def _pull_all(graph: Graph) -> list[av.VideoFrame]:
    made: list[av.VideoFrame] = []
    while True:
        try:
            made.append(cast(Any, graph.pull()))
        except (av.BlockingIOError, av.EOFError):
            return made
