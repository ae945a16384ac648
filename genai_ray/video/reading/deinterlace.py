"""Makes progressive pictures of interlaced ones, with FFmpeg's filter ``bwdif``.

The filter makes each picture from three stored ones: its own, the one before it and the one after it. So a range of a
video is filtered as the whole would be, if its two neighbours are given too. At the beginning of a video the filter has
no neighbour before, and at the end none after: there, and only there, it does without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import av
from av.filter import Graph, filters_available

from genai_ray.errors import VideoError
from genai_ray.types import Deinterlace, FieldOrder

__all__ = [
    "CYCLE",
    "KEPT",
    "PARITIES",
    "Deinterlacing",
    "PictureFilter",
    "Steps",
    "StoredPictures",
    "deinterlace",
    "list_steps",
]

CYCLE = 5
"""Frames of telecined film in which one is a repetition."""

KEPT = CYCLE - 1
"""The frames of the film in them."""

PARITIES = {FieldOrder.TOP: "tff", FieldOrder.BOTTOM: "bff", None: "auto"}
"""Orders of fields in FFmpeg's words."""

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

Steps: TypeAlias = tuple[tuple[str, str], ...]
"""Filters by name, with their options."""


@dataclass(frozen=True, slots=True)
class Deinterlacing:
    """How the pictures of a video are deinterlaced."""

    how: Deinterlace
    """``FRAME`` for one picture of each stored one, ``FIELD`` for one of each field, ``IVTC`` for those of a film."""
    every: bool
    """Whether every picture is filtered; else, with ``FRAME``, those that are flagged as interlaced."""
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

    def count_made(self, stored: int) -> int:
        """Return how many pictures are made of the first stored ones.

        Args:
            stored: Number of stored pictures.

        Returns:
            Number of pictures, which is the position of the first one that is made of the next stored one.
        """
        if self.how is Deinterlace.FIELD:
            return 2 * stored
        return stored // CYCLE * KEPT + stored % CYCLE if self.how is Deinterlace.IVTC else stored

    def stored_at(self, position: int) -> int:
        """Return the position of the stored picture that is shown when one that is made begins.

        Args:
            position: Position of the picture that is made.

        Returns:
            That of the stored one.
        """
        if self.how is Deinterlace.FIELD:
            return position // 2
        return position // KEPT * CYCLE + position % KEPT if self.how is Deinterlace.IVTC else position


def list_steps(deinterlacing: Deinterlacing) -> Steps:
    """Return the filter that makes pictures of one stored picture and its neighbours.

    Args:
        deinterlacing: How they are deinterlaced.

    Returns:
        The filter.
    """
    mode = "send_field" if deinterlacing.how is Deinterlace.FIELD else "send_frame"
    return (("bwdif", f"mode={mode}:parity={PARITIES[deinterlacing.order]}:deint=all"),)


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
    filtering: PictureFilter | None = None
    waiting: tuple[int, av.VideoFrame] | None = first or next(pictures, None)
    while waiting is not None and waiting[0] < stop:
        index, picture = waiting
        if not deinterlacing.takes(picture):
            yield index, None, picture
            filtering, before, waiting = None, picture, next(pictures, None)
            continue
        if filtering is None:
            size = (picture.width, picture.height)
            filtering = PictureFilter(path, list_steps(deinterlacing), picture.format.name, size)
            if before is not None:
                filtering.push(before)
            filtering.push(picture)
        waiting = next(pictures, None)
        made = filtering.push(waiting[1] if waiting is not None else None)
        for field, one in enumerate(made):
            yield index, field, one
        before = picture


class PictureFilter:
    """A chain of FFmpeg's filters.

    Args:
        path: The file, for errors.
        steps: Names of the filters with their options.
        pix_fmt: FFmpeg's name of the pixel format of pictures.
        size: (width, height) in pixels.

    Raises:
        VideoError: If a filter does not take the pixel format, or such small pictures, or is not there.
    """

    def __init__(self, path: str, steps: Steps, pix_fmt: str, size: tuple[int, int]) -> None:
        names = " and ".join(name for name, _ in steps)
        do = "Pass --deinterlace off (deinterlace='off') to enhance them as they are."
        missing = [name for name, _ in steps if name not in filters_available]
        if missing:
            raise VideoError(f"{path}: interlaced, and this build of PyAV lacks FFmpeg's filter {missing[0]}", do=do)
        planar = _choose_format(steps, pix_fmt)
        if planar is None:
            allowed = f"those that FFmpeg's {names} takes: planar YUV"
            raise VideoError(f"{path}: interlaced pictures of pixel format {pix_fmt}", allowed, do)
        try:
            self._graph = _build_graph(steps, pix_fmt, planar, size)
        except av.FFmpegError as exc:
            raise VideoError(
                f"{path}: interlaced pictures of {size[0]}x{size[1]} in {pix_fmt}",
                f"pictures that FFmpeg's {names} takes: planes of 3 columns and 4 lines or more",
                do,
            ) from exc
        self._path = path
        self._pix_fmt = pix_fmt

    def push(self, picture: av.VideoFrame | None) -> list[av.VideoFrame]:
        """Filter a picture.

        Args:
            picture: The next stored one; None after the last one.

        Returns:
            What the filters give now.

        Raises:
            VideoError: If its pixel format is another one.
        """
        if picture is not None and picture.format.name != self._pix_fmt:
            raise VideoError(f"{self._path}: a frame is {picture.format.name}", f"{self._pix_fmt} throughout")
        self._graph.push(picture)
        return _pull_all(self._graph)


def _build_graph(steps: Steps, pix_fmt: str, planar: str, size: tuple[int, int]) -> Graph:
    graph = Graph()
    graph.threads = 1
    # The filter decimate wants a constant rate; nobody reads the times that it gives.
    last = graph.add(
        "buffer", f"video_size={size[0]}x{size[1]}:pix_fmt={pix_fmt}:time_base=1/1000:pixel_aspect=1/1:frame_rate=25"
    )
    planed = (("format", planar),) if planar != pix_fmt else ()
    for name, options in (*planed, *steps, ("buffersink", "")):
        step = graph.add(name, options or None)
        last.link_to(step)
        last = step
    graph.configure()
    return graph


@functools.lru_cache(maxsize=64)
def _choose_format(steps: Steps, pix_fmt: str) -> str | None:
    """Return the format in which the filters take pictures without changing a number; None if there is none."""
    for planar in (pix_fmt, _PLANAR.get(pix_fmt)):
        if planar is not None:
            graph = _build_graph(steps, planar, planar, (_TRIAL_SIDE_PX, _TRIAL_SIDE_PX))
            picture = av.VideoFrame(_TRIAL_SIDE_PX, _TRIAL_SIDE_PX, planar)
            picture.pts = 0
            graph.push(picture)
            graph.push(None)
            # FFmpeg converts pictures that a filter does not take, so that another format comes out.
            if {made.format.name for made in _pull_all(graph)} == {planar}:
                return planar
    return None


def _pull_all(graph: Graph) -> list[av.VideoFrame]:
    made: list[av.VideoFrame] = []
    while True:
        try:
            made.append(cast(Any, graph.pull()))
        except (av.BlockingIOError, av.EOFError):
            return made
