"""Encodes a segment for a number of bytes: the same pictures several times, until the size fits.

What is searched is the constant rate factor, so that bits go where a constant quality puts them, as with two passes.
FFmpeg's own second pass is not used: x264 and x265 write the statistics of the first one to files, but PyAV (18) can
hand SVT-AV1's to nobody; it needs all pictures twice, too; and of 40 frames it missed the size by 1 to 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy.typing as npt
from av.video.frame import PictureType

from genai_ray.video.codecs import CODECS, Codec, fixed_options
from genai_ray.video.container import av_errors
from genai_ray.video.encoding.encode import SegmentWriter
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import VideoInfo

__all__ = ["FULL_SHARE", "BoundedWriter", "Budget", "Search", "measure_part", "open_writer", "read_sizes"]

FULL_SHARE = 0.97
"""A segment that has this share of its bytes is full."""

AIM_SHARE = 0.985
"""The search aims at this share, in the middle between full and too large."""

MOST_TRIES = 8
"""A segment is encoded at most so often."""

_HALVE_EVERY = 4
"""After so many tries one is in the middle between two others, or at the end of the range, in case sizes fall in
steps."""

USUAL_BITS_PER_PX = 0.1
"""Bits per pixel of usual pictures at an encoder's default factor: where the search begins."""

LEAST_CRF = 1.0
"""Lowest factor that is tried: 0 is lossless with x264, which is another profile."""

_FOR_SIZES = {
    "libx264": ("x264-params", "stitchable=1"),
    "libx265": ("x265-params", "info=0"),
    "libsvtav1": ("svtav1-params", "crf={}"),
}
"""Options that keep the factor out of headers, which segments share; SVT-AV1 takes quarters of it only so."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a segment may take."""

    num_bytes: int
    """Most bytes of its packets."""
    num_frames: int
    """Frames that it is planned to have."""
    check: Callable[[], None] = lambda: None
    """Called before each frame that is encoded once more; an error that it raises ends the segment."""


@dataclass(slots=True)
class Search:
    """The search for the factor that gives the most bytes, but not too many."""

    wanted: int
    """Most bytes."""
    codec: Codec
    """Range and steps of factors."""
    sizes: dict[float, int] = field(default_factory=dict)
    """Bytes by the factors that were tried."""

    def first(self, pixels: int) -> float:
        """Return the factor to begin with.

        Args:
            pixels: Pixels of all frames together.

        Returns:
            The factor that would fit usual pictures.
        """
        return self._round(
            self.codec.crf + self.codec.crf_halving * math.log2(USUAL_BITS_PER_PX * pixels / (8 * self.wanted))
        )

    def next(self) -> float | None:
        """Return the factor to try next.

        Returns:
            A factor between those that give too much and those that fit; None if a result is full, or none is better.
        """
        fitting = {factor: size for factor, size in self.sizes.items() if size <= self.wanted}
        over = {factor: size for factor, size in self.sizes.items() if size > self.wanted}
        if len(self.sizes) >= MOST_TRIES or max(fitting.values(), default=0) >= FULL_SHARE * self.wanted:
            return None
        aim = math.log2(AIM_SHARE * self.wanted)
        step = self.codec.crf_step
        is_stuck = len(self.sizes) % _HALVE_EVERY == 0
        if fitting and over:
            low, high = max(over), min(fitting)
            top, bottom = math.log2(over[low]), math.log2(max(fitting[high], 1))
            guess = low + (high - low) * (0.5 if is_stuck else (top - aim) / (top - bottom))
            guess = min(max(guess, low + step), high - step)
        elif over:
            guess = (
                math.inf if is_stuck else max(over) + max(self._halving() * (math.log2(over[max(over)]) - aim), step)
            )
        else:
            low = min(fitting)
            guess = 0 if is_stuck else low + min(self._halving() * (math.log2(max(fitting[low], 1)) - aim), -step)
        factor = self._round(guess)
        return None if factor in self.sizes else factor

    def _halving(self) -> float:
        """Return what halves the size here, by the last two tries if they tell."""
        if len(self.sizes) < 2:
            return self.codec.crf_halving
        (first, before), (last, after) = list(self.sizes.items())[-2:]
        octaves = math.log2(max(before, 1) / max(after, 1))
        halving = (last - first) / octaves if octaves else 0.0
        return min(max(halving, self.codec.crf_halving / 4), self.codec.crf_halving * 4)

    def best(self) -> float:
        """Return the best factor that was tried.

        Returns:
            Of those that fit the one of the most bytes; if none fits, the one of the fewest.
        """
        fitting = [factor for factor, size in self.sizes.items() if size <= self.wanted]
        return max(fitting, key=self.sizes.__getitem__) if fitting else min(self.sizes, key=self.sizes.__getitem__)

    def _round(self, factor: float) -> float:
        step = self.codec.crf_step
        factor = min(max(factor, LEAST_CRF), float(self.codec.max_crf or 0))
        return round(round(factor / step) * step, 3)


class BoundedWriter:
    """Encodes a segment, keeps its pictures beside it, and encodes them again until the size fits.

    The file is whole if the block ends without an error, else it is removed. If even the highest factor gives too many
    bytes, the file is too large.

    Args:
        path: As ``SegmentWriter``.
        info: As ``SegmentWriter``.
        size: As ``SegmentWriter``.
        encoding: As ``SegmentWriter``; of an encoder whose factors have a step.
        budget: Its bytes.

    Raises:
        ConfigError: As ``SegmentWriter``.
        VideoError: As ``SegmentWriter``.
    """

    def __init__(
        self, path: Path, *, info: VideoInfo, size: tuple[int, int], encoding: Encoding, budget: Budget
    ) -> None:
        self.path = path
        self._again = path.with_name(f"{path.stem}.again{path.suffix}")
        self._pictures = path.with_name(f"{path.stem}.pictures{path.suffix}")
        self._info = info
        self._size = size
        self._encoding = encoding
        self._budget = budget
        self._search = Search(max(budget.num_bytes, 1), CODECS[encoding.encoder])
        self._factor = self._search.first(size[0] * size[1] * budget.num_frames)
        self._live = self._open(path, self._factor)
        self._num_frames = 0
        self._kept: Any = None

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        """Encode one frame.

        Args:
            frame: As ``SegmentWriter.write``.
            pts: As ``SegmentWriter.write``.

        Raises:
            InvalidInputError: As ``SegmentWriter.write``.
            VideoError: As ``SegmentWriter.write``.
        """
        picture = self._live.convert(frame, pts)
        self._live.write_picture(picture)
        with av_errors(self.path.parent, "keeping the pictures of a segment"):
            if self._kept is None:
                self._kept = self._open_kept(picture)
            self._kept.mux(self._kept.streams.video[0].encode(picture))
        self._num_frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_whole = False
        try:
            try:
                self._live.__exit__(kind, error, trace)
            finally:
                self._close_kept()
            if kind is None and self._num_frames:
                self._fit()
            is_whole = kind is None
        finally:
            for path in (self._again, self._pictures, *(() if is_whole else (self.path,))):
                path.unlink(missing_ok=True)

    def _fit(self) -> None:
        """Encode again until the best file has the segment's name."""
        search = self._search
        search.sizes[self._factor] = measure_part(self.path)
        while (factor := search.next()) is not None:
            with self._open(self._again, factor) as writer:
                for picture in self._read_kept():
                    self._budget.check()
                    writer.write_picture(picture)
            search.sizes[factor] = measure_part(self._again)
            if search.best() == factor:
                self._again.replace(self.path)

    def _open(self, path: Path, factor: float) -> SegmentWriter:
        options = dict(self._encoding.options)
        name, value = _FOR_SIZES[self._encoding.encoder]
        value = value.format(factor)
        options[name] = f"{value}:{options[name]}" if name in options else value
        encoding = replace(self._encoding, crf=factor, video_bitrate=None, max_size=None, options=options)
        return SegmentWriter(path, info=self._info, size=self._size, encoding=encoding)

    def _open_kept(self, picture: av.VideoFrame) -> Any:
        sink = av.open(str(self._pictures), "w", format="nut", options={"fflags": "+bitexact"})
        size = (picture.width, picture.height)
        options = fixed_options("ffv1", 1, picture.format.name, size) | {"coder": "0", "context": "0"}  # the fastest
        stream: Any = sink.add_stream("ffv1", rate=self._info.average_rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = picture.format.name
        stream.codec_context.time_base = Fraction(self._info.time_base)
        stream.codec_context.thread_count = 1
        return sink

    def _close_kept(self) -> None:
        if self._kept is not None:
            with av_errors(self.path.parent, "keeping the pictures of a segment"):
                self._kept.mux(self._kept.streams.video[0].encode(None))
                self._kept.close()

    def _read_kept(self) -> Iterator[av.VideoFrame]:
        with av_errors(self.path.parent, "reading the pictures of a segment"), av.open(str(self._pictures)) as box:
            for picture in box.decode(box.streams.video[0]):
                picture.pict_type = PictureType.NONE  # FFV1's are key frames, and encoders would obey
                yield picture


def open_writer(
    path: Path,
    *,
    info: VideoInfo,
    size: tuple[int, int],
    encoding: Encoding,
    has_alpha: bool = False,
    budget: Budget | None = None,
) -> SegmentWriter | BoundedWriter:
    """Open the writer of a segment.

    Args:
        path: As ``SegmentWriter``.
        info: As ``SegmentWriter``.
        size: As ``SegmentWriter``.
        encoding: As ``SegmentWriter``.
        has_alpha: As ``SegmentWriter``; not with a budget, whose encoders store none.
        budget: What the segment may take; None for a constant rate factor.

    Returns:
        The writer.

    Raises:
        ConfigError: As ``SegmentWriter``.
        VideoError: As ``SegmentWriter``.
    """
    if budget is None:
        return SegmentWriter(path, info=info, size=size, encoding=encoding, has_alpha=has_alpha)
    return BoundedWriter(path, info=info, size=size, encoding=encoding, budget=budget)


def measure_part(part: Path) -> int:
    """Measure the packets of a finished segment.

    Args:
        part: Its file.

    Returns:
        Bytes.

    Raises:
        VideoError: If the file does not open.
    """
    return sum(read_sizes(part))


def read_sizes(part: Path) -> list[int]:
    """Read the sizes of a finished segment's packets.

    Args:
        part: Its file.

    Returns:
        Bytes of each packet, in decode order.

    Raises:
        VideoError: If the file does not open.
    """
    with av_errors(part, "reading"), av.open(str(part)) as box:
        return [packet.size for packet in box.demux(box.streams.video[0]) if packet.size]
