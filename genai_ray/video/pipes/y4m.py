"""Y4M, the uncompressed video that FFmpeg, VapourSynth and mjpegtools pass through pipes: read and written forwards.

A line says size, rate, scan, pixel aspect and format; each frame is a line ``FRAME`` and its planes, the samples of
more than 8 bits with the low byte first (yuv4mpeg(5) of mjpegtools, with FFmpeg's names for more than 8 bits and its
``XCOLORRANGE``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from genai_ray.errors import VideoError
from genai_ray.video.colour import fill_plane, planes_of
from genai_ray.video.info import BT709, FULL, HD_LINES, LIMITED, SMPTE170M, UNSPECIFIED, Colour, VideoInfo

__all__ = ["Y4M_MAGIC", "Y4mHeader", "Y4mReader", "Y4mWriter", "parse_header"]

Y4M_MAGIC = b"YUV4MPEG2"
"""What a stream begins with."""

_MOST_LINE_BYTES = 1024
"""Longest line of a header or of a frame."""

_MOST_SIDE_PX = 32768

_DEPTHS = (9, 10, 12, 14, 16)

_FORMATS = {
    "420": ("yuv420p", "center"),
    "420jpeg": ("yuv420p", "center"),
    "420mpeg2": ("yuv420p", "left"),
    "420paldv": ("yuv420p", "topleft"),
    "422": ("yuv422p", "left"),
    "444": ("yuv444p", "left"),
    "444alpha": ("yuva444p", "left"),
    "mono": ("yuv444p", "left"),
    **{f"{name}p{bits}": (f"yuv{name}p{bits}le", "left") for name in ("420", "422", "444") for bits in _DEPTHS},
    **{f"mono{bits}": (f"yuv444p{bits}le", "left") for bits in _DEPTHS},
}
"""Pixel format of a picture and chroma location, by the word for both; one without chroma gets a neutral one."""

_SCANS = ("p", "t", "b", "m", "?")
"""Progressive, top field first, bottom field first, both kinds of frames, unknown."""

_RANGES = {"FULL": FULL, "LIMITED": LIMITED}

_RATIO = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")


@dataclass(frozen=True, slots=True)
class Y4mHeader:
    """What the first line of a stream says."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    rate: Fraction
    """Frames per second."""
    scan: str = "?"
    """``p`` for progressive, ``t`` and ``b`` for fields with the top or the bottom one first, ``m`` for both kinds of
    frames, ``?`` if unknown."""
    aspect: Fraction | None = None
    """Width of a pixel over its height; None if unknown."""
    format: str = "420jpeg"
    """Word for chroma sampling, chroma location and bits, a key of the formats that are read."""
    range: int | None = None
    """1 limited, 2 full; None if it is not said."""

    @property
    def pix_fmt(self) -> str:
        """FFmpeg's name of the pixel format of its pictures; those without chroma get a neutral one."""
        return _FORMATS[self.format][0]

    @property
    def has_chroma(self) -> bool:
        """Whether planes of chroma are stored."""
        return not self.format.startswith("mono")

    def to_line(self) -> bytes:
        """Return the line.

        Returns:
            ASCII, with its end.
        """
        aspect = self.aspect or Fraction(0, 1)
        words = [
            Y4M_MAGIC.decode(),
            f"W{self.width}",
            f"H{self.height}",
            f"F{self.rate.numerator}:{self.rate.denominator}",
            f"I{self.scan}",
            f"A{aspect.numerator}:{aspect.denominator if aspect else 0}",
            f"C{self.format}",
        ]
        words += [f"XCOLORRANGE={name}" for name, number in _RANGES.items() if number == self.range]
        return " ".join(words).encode() + b"\n"

    def to_info(self) -> VideoInfo:
        """Describe the pictures as those of a file.

        Returns:
            The facts; untagged colour is BT.709 from 720 lines up, else BT.601, and pictures without chroma are of full
            range unless it is said, as FFmpeg reads them.
        """
        pix_fmt, location = _FORMATS[self.format]
        matrix = BT709 if self.height >= HD_LINES else SMPTE170M
        span = self.range or (LIMITED if self.has_chroma else FULL)
        parts = av.VideoFormat(pix_fmt).components
        return VideoInfo(
            width=self.width,
            height=self.height,
            time_base=1 / self.rate,
            average_rate=self.rate,
            codec="rawvideo",
            pix_fmt=pix_fmt,
            bit_depth=parts[0].bits,
            sample_aspect_ratio=self.aspect or Fraction(1),
            rotation=0,
            colour=Colour(matrix, span, UNSPECIFIED, UNSPECIFIED, True, location),
            has_alpha=any(part.is_alpha for part in parts),
            is_interlaced=self.scan in ("t", "b", "m"),
        )


def parse_header(line: bytes, name: str) -> Y4mHeader:
    """Read the first line of a stream.

    Args:
        line: It, with its magic and without its end.
        name: Name of the stream, for the error.

    Returns:
        What it says; words that are not known are passed over.

    Raises:
        VideoError: If it lacks something, or has a format that is not read.
    """
    words = line.decode("ascii", "replace").split()[1:]
    found = {word[0]: word[1:] for word in words if word[0] != "X"}
    extra = dict(word[1:].partition("=")[::2] for word in words if word[0] == "X")
    width, height = (_parse_side(found.get(letter, ""), letter, name) for letter in "WH")
    rate = _parse_ratio(found.get("F", ""))
    if not rate:
        raise VideoError(f"{name}: a frame rate of {found.get('F', 'nothing')!r}", "a rate such as F25:1")
    scan = found.get("I", "?")
    if scan not in _SCANS:
        raise VideoError(f"{name}: interlacing {scan!r}", ", ".join(_SCANS))
    if (word := found.get("C", "420jpeg")) not in _FORMATS:
        raise VideoError(f"{name}: the format C{word}", ", ".join(_FORMATS), "Convert it: ffmpeg -pix_fmt yuv420p.")
    aspect = _parse_ratio(found.get("A", "")) or None
    return Y4mHeader(width, height, rate, scan, aspect, word, _RANGES.get(extra.get("COLORRANGE", "")))


def _parse_side(word: str, letter: str, name: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= _MOST_SIDE_PX:
        raise VideoError(f"{name}: the size {letter}{word}", f"from 1 to {_MOST_SIDE_PX} pixels")
    return int(word)


def _parse_ratio(word: str) -> Fraction | None:
    """Read a fraction; None if it is none, or 0:0 for unknown."""
    found = _RATIO.fullmatch(word)
    return Fraction(int(found[1]), int(found[2])) if found and int(found[2]) else None


class Y4mReader:
    """Reads a stream frame by frame.

    Args:
        source: The stream after its magic; read forwards only, and never further than the frame that is asked for.
        name: Its name, for errors.

    Raises:
        VideoError: If its first line is wrong.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self.header = parse_header(Y4M_MAGIC + self._read_line("header"), name)
        self.failure: VideoError | None = None
        """Why the stream ends too early, once it has ended; the frames before are whole."""

    def frames(self) -> Iterator[av.VideoFrame]:
        """Read all frames.

        Yields:
            Pictures with their numbers, from 0, as times. The stream may end too early: see ``failure``.
        """
        header = self.header
        shape = av.VideoFrame(header.width, header.height, header.pix_fmt)
        kind: Any = np.uint8 if shape.format.components[0].bits <= 8 else np.dtype("<u2")
        shapes = [(plane.height, plane.width) for plane in shape.planes][: None if header.has_chroma else 1]
        num_bytes = sum(height * width for height, width in shapes) * np.dtype(kind).itemsize
        for index in itertools.count():
            try:
                data = self._read_frame(index, num_bytes)
            except VideoError as exc:
                self.failure = exc
                return
            if data is None:
                self.failure = None if index else VideoError(f"{self._name} has no frames", "a frame or more")
                return
            yield self._to_picture(data, index, shapes, kind)

    def _read_frame(self, index: int, num_bytes: int) -> bytes | None:
        """Read the planes of a frame; None at the end of the stream."""
        line = self._read_line(f"line of frame {index}")
        if not line:
            return None
        if line.split(b" ")[0] != b"FRAME":
            raise VideoError(f"{self._name}: frame {index} begins with {line[:20]!r}", "FRAME")
        data = self._read(num_bytes)
        if len(data) < num_bytes:
            raise VideoError(
                f"{self._name}: frame {index} is cut off: {len(data)} of {num_bytes} bytes", "whole frames"
            )
        return data

    def _to_picture(self, data: bytes, index: int, shapes: list[tuple[int, int]], kind: Any) -> av.VideoFrame:
        picture = av.VideoFrame(self.header.width, self.header.height, self.header.pix_fmt)
        samples = np.frombuffer(data, kind)
        at = 0
        for plane, (height, width) in zip(picture.planes, shapes, strict=False):
            fill_plane(plane, samples[at : at + height * width].reshape(height, width))
            at += height * width
        for plane in picture.planes[len(shapes) :]:
            middle = 2 ** (picture.format.components[0].bits - 1)
            fill_plane(plane, np.full((plane.height, plane.width), middle, kind))
        picture.pts = index
        picture.time_base = 1 / self.header.rate
        return picture

    def _read(self, count: int) -> bytes:
        """Read so many bytes, or fewer at the end."""
        parts: list[bytes] = []
        while count and (part := self._source.read(count)):
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_line(self, what: str) -> bytes:
        """Read a line without its end; nothing at the end of the stream."""
        line = self._source.readline(_MOST_LINE_BYTES)
        if line and not line.endswith(b"\n"):
            raise VideoError(f"{self._name}: its {what} has no end", f"a line of up to {_MOST_LINE_BYTES} bytes")
        return line.rstrip(b"\n")


class Y4mWriter:
    """Writes a stream frame by frame, each at once.

    Args:
        sink: Where it goes; its ``write`` takes everything.
        header: Its first line, which is written at once.
    """

    def __init__(self, sink: Any, header: Y4mHeader) -> None:
        self._sink = sink
        self._header = header
        sink.write(header.to_line())

    def write(self, picture: av.VideoFrame) -> None:
        """Write a frame.

        Args:
            picture: Of the header's size and pixel format.
        """
        planes = planes_of(picture)[: None if self._header.has_chroma else 1]
        self._sink.write(b"FRAME\n" + b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes))
