"""Encoding one segment: RGB frames to a stream of packets in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream

from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.video.container import av_errors
from genai_ray.video.decode import SWS_FLAGS, colorspace_of
from genai_ray.video.plan import FULL, VideoInfo

__all__ = ["Encoding", "SegmentWriter", "validate_encoding"]

_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_SUFFIXES = (".mp4", ".mkv")
_CODECS = ("libx264",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How results are encoded; part of what a segment's bytes depend on."""

    codec: str = "libx264"
    """FFmpeg's name of the encoder."""
    preset: str = "medium"
    """x264's preset."""
    crf: float = 18.0
    """Constant rate factor: 0 is lossless, 51 the worst."""
    threads: int = 1
    """Encoder threads of one segment; x264's bytes depend on it, so it is never automatic."""


def validate_encoding(encoding: Encoding, suffix: str) -> None:
    """Check at the start what would fail an hour later.

    Args:
        encoding: The settings.
        suffix: Of the output, lower case, with its dot.

    Raises:
        ConfigError: If encoder, preset, CRF, threads or suffix are not what is written here.
    """
    if suffix not in _SUFFIXES:
        raise ConfigError(f"an output ending in {suffix or 'nothing'!r}", " or ".join(_SUFFIXES))
    if encoding.codec not in _CODECS or encoding.codec not in av.codecs_available:
        raise ConfigError(f"codec {encoding.codec!r}", ", ".join(_CODECS))
    if encoding.preset not in _PRESETS:
        raise ConfigError(f"preset {encoding.preset!r}", ", ".join(_PRESETS))
    if not 0 <= encoding.crf <= 51:
        raise ConfigError(f"crf {encoding.crf}", "from 0 (lossless) to 51")
    if encoding.threads < 1:
        raise ConfigError(f"encoder threads {encoding.threads}", "1 or more")


class SegmentWriter:
    """Encodes frames of one segment; the file is whole when the block ends without an error, and gone otherwise.

    Args:
        path: Where packets go, in FFmpeg's NUT format, which keeps any time base exactly.
        info: The source: its times, colour and aspect are kept.
        size: (width, height) of the frames in pixels; odd sizes are encoded as 4:4:4, since 4:2:0 has no odd ones.
        encoding: The settings.

    Raises:
        VideoError: If the encoder or the file system fails.
    """

    def __init__(self, path: Path, *, info: VideoInfo, size: tuple[int, int], encoding: Encoding) -> None:
        self.path, self.info, self.size = path, info, size
        with av_errors(path, "opening for writing"):
            # Each packet is written as it comes: how far a segment is can be seen from outside, at no measurable cost.
            self._sink = av.open(str(path), "w", format="nut", options={"fflags": "+bitexact+flush_packets"})
            self._stream = self._add_stream(encoding)
        self._reformatter = VideoReformatter()

    def write(self, frame: npt.NDArray[np.uint8], pts: int) -> None:
        """Encode one frame.

        Args:
            frame: RGB (H, W, 3), uint8, C-contiguous, of the writer's size.
            pts: Presentation time in the source's ``time_base`` units; larger than the one before.

        Raises:
            InvalidInputError: If the frame is not of the writer's size.
            VideoError: If the encoder fails.
        """
        if frame.shape != (self.size[1], self.size[0], 3) or frame.dtype != np.uint8:
            raise InvalidInputError(f"a frame {frame.shape} {frame.dtype}", f"({self.size[1]}, {self.size[0]}, 3) uint8")
        colour = self.info.colour
        with av_errors(self.path, "encoding"):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            yuv = self._reformatter.reformat(
                picture,
                format=self._stream.pix_fmt,
                src_color_range=ColorRange.JPEG,
                dst_colorspace=colorspace_of(colour),
                dst_color_range=ColorRange.JPEG if colour.range == FULL else ColorRange.MPEG,
                interpolation=SWS_FLAGS,
                threads=1,
            )
            yuv.pts, yuv.time_base = pts, self.info.time_base
            yuv.colorspace, yuv.color_range = colour.matrix, colour.range
            self._sink.mux(self._stream.encode(yuv))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with av_errors(self.path, "encoding"):
                    self._sink.mux(self._stream.encode(None))
        finally:
            with av_errors(self.path, "closing"):
                self._sink.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def _add_stream(self, encoding: Encoding) -> VideoStream:
        info, (width, height) = self.info, self.size
        options = {"preset": encoding.preset, "crf": f"{encoding.crf:g}"}
        if _has_avx512():
            options["x264-params"] = "asm=avx2"  # with AVX-512 x264's bytes vary for equal frames
        stream: Any = self._sink.add_stream(encoding.codec, rate=info.average_rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        codec = stream.codec_context
        codec.time_base, codec.framerate = Fraction(info.time_base), Fraction(info.average_rate)
        codec.thread_count = encoding.threads
        codec.sample_aspect_ratio = info.sample_aspect_ratio
        colour = info.colour
        codec.colorspace, codec.color_range = colour.matrix, colour.range
        codec.color_primaries, codec.color_trc = colour.primaries, colour.transfer
        return cast(VideoStream, stream)


def _has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " avx512f" in cpuinfo.read_text()
