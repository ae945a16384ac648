"""Encoding one segment: RGB frames to a stream of packets in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.video.codecs import CODEC_ALIASES, CODECS, SUFFIXES, Codec, fixed_options
from genai_ray.video.colour import from_rgb
from genai_ray.video.container import av_errors
from genai_ray.video.plan import VideoInfo

__all__ = ["Encoding", "SegmentWriter", "choose_pixel_format", "validate_encoding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How results are encoded; part of what a segment's bytes depend on."""

    codec: str = "libx264"
    """FFmpeg's name of the encoder, or h264, hevc, av1, vp9, prores."""
    preset: str | None = None
    """The encoder's preset (VP9: cpu-used, ProRes: profile); None for medium, 8 (AV1), 4 (VP9), hq (ProRes)."""
    crf: float | None = None
    """Constant rate factor; None for 18 (H.264), 20 (HEVC), 24 (AV1, VP9); FFV1 and ProRes have none."""
    threads: int = 1
    """Encoder threads of one segment; x264's bytes depend on it, so it is never automatic."""
    bit_depth: int | None = None
    """8 or 10 bits a component; None for 10 where the source has more than 8, else for the fewest that the encoder has."""
    options: Mapping[str, str] = field(default_factory=dict)
    """More options of the encoder by FFmpeg's names; they win over what is written here."""

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODEC_ALIASES.get(self.codec, self.codec)


def validate_encoding(encoding: Encoding, suffix: str) -> None:
    """Check at the start what would fail an hour later; the encoder is opened once.

    Args:
        encoding: The settings.
        suffix: Of the output, lower case, with its dot.

    Raises:
        ConfigError: If encoder, preset, CRF, threads, bit depth, options or suffix are not what is written here, or the
            encoder is not in this build or does not open.
    """
    if suffix not in SUFFIXES:
        raise ConfigError(f"an output ending in {suffix or 'nothing'!r}", " or ".join(SUFFIXES))
    if encoding.encoder not in CODECS:
        raise ConfigError(f"codec {encoding.codec!r}", ", ".join((*CODECS, *CODEC_ALIASES)))
    codec = CODECS[encoding.encoder]
    if encoding.encoder not in av.codecs_available:
        raise ConfigError(f"codec {encoding.codec!r}, which this build of FFmpeg lacks", ", ".join(name for name in CODECS if name in av.codecs_available))
    if suffix not in codec.suffixes:
        raise ConfigError(f"{encoding.codec} in {suffix}", " or ".join(codec.suffixes))
    if encoding.preset is not None and encoding.preset not in codec.presets:
        raise ConfigError(f"preset {encoding.preset!r}", ", ".join(codec.presets) or f"none, since {encoding.codec} has none")
    if encoding.crf is not None and (codec.max_crf is None or not 0 <= encoding.crf <= codec.max_crf):
        raise ConfigError(f"crf {encoding.crf}", f"none, since {encoding.codec} has none" if codec.max_crf is None else f"from 0 to {codec.max_crf}")
    if encoding.threads < 1:
        raise ConfigError(f"encoder threads {encoding.threads}", "1 or more")
    _try_encoder(encoding, _choose(codec.even, encoding, 8))


def choose_pixel_format(encoding: Encoding, size: tuple[int, int], source_bits: int) -> str:
    """Choose what pictures are stored as, and check that the encoder takes it.

    Args:
        encoding: The settings, validated.
        size: (width, height) in pixels; odd sizes are stored as 4:4:4, since 4:2:0 has no odd ones.
        source_bits: Bits a component of the source.

    Returns:
        FFmpeg's name of the pixel format.

    Raises:
        ConfigError: If the encoder has no format for the size or the depth.
    """
    codec: Codec = CODECS[encoding.encoder]
    formats = codec.odd if size[0] % 2 or size[1] % 2 else codec.even
    if not formats:
        raise ConfigError(f"{encoding.codec} for pictures of {size[0]}x{size[1]}", "even sizes", "Use libx264, libx265, libvpx-vp9 or ffv1.")
    chosen = _choose(formats, encoding, source_bits)
    known = {item.name for item in av.Codec(encoding.encoder, "w").video_formats or ()}
    if known and chosen not in known:
        raise ConfigError(f"{encoding.codec} with {chosen}, which this build of it lacks", do="Ask for another bit depth or codec.")
    return chosen


def _choose(formats: tuple[str, ...], encoding: Encoding, source_bits: int) -> str:
    depths = {av.VideoFormat(name).components[0].bits: name for name in formats}
    wanted = encoding.bit_depth if encoding.bit_depth is not None else max(min(depths), 10 if source_bits > 8 else 8)
    if wanted not in depths:
        raise ConfigError(f"{wanted} bits with {encoding.codec}", " or ".join(str(bits) for bits in depths))
    return depths[wanted]


def _options(encoding: Encoding, width: int) -> dict[str, str]:
    codec = CODECS[encoding.encoder]
    return {**codec.options(encoding.preset, encoding.crf), **fixed_options(encoding.encoder, encoding.threads, width), **encoding.options}


def _try_encoder(encoding: Encoding, pix_fmt: str) -> None:
    context: Any = av.CodecContext.create(encoding.encoder, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 128, 128, pix_fmt, Fraction(1, 25)
    context.framerate, context.thread_count = Fraction(25), encoding.threads
    context.options = _options(encoding, 128)
    try:
        context.open(strict=False)
    except (av.FFmpegError, ValueError) as exc:
        raise ConfigError(f"{encoding.codec} with {pix_fmt} and {context.options}, which does not open ({exc})", "settings that the encoder takes") from exc
    unknown = sorted(set(context.options) & set(encoding.options))
    if unknown:
        raise ConfigError(f"encoder option {unknown[0]!r}", f"options of {encoding.encoder} by FFmpeg's names")


class SegmentWriter:
    """Encodes frames of one segment; the file is whole when the block ends without an error, and gone otherwise.

    Args:
        path: Where packets go, in FFmpeg's NUT format, which keeps any time base exactly.
        info: The source: its times, colour and aspect are kept.
        size: (width, height) of the frames in pixels.
        encoding: The settings.

    Raises:
        ConfigError: If the encoder has no pixel format for the size or the bit depth.
        VideoError: If the encoder or the file system fails.
    """

    def __init__(self, path: Path, *, info: VideoInfo, size: tuple[int, int], encoding: Encoding) -> None:
        self.path, self.info, self.size = path, info, size
        pix_fmt = choose_pixel_format(encoding, size, info.bit_depth)
        with av_errors(path, "opening for writing"):
            # Each packet is written as it comes: how far a segment is can be seen from outside, at no measurable cost.
            kind = "mov" if encoding.encoder == "prores_ks" else "nut"  # NUT has no ProRes
            self._sink = av.open(str(path), "w", format=kind, options={"fflags": "+bitexact+flush_packets"})
            self._stream = self._add_stream(encoding, pix_fmt)

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        """Encode one frame.

        Args:
            frame: RGB (H, W, 3), uint8 or uint16, C-contiguous, of the writer's size.
            pts: Presentation time in the source's ``time_base`` units; larger than the one before.

        Raises:
            InvalidInputError: If the frame is not of the writer's size.
            VideoError: If the encoder fails.
        """
        if frame.shape != (self.size[1], self.size[0], 3) or frame.dtype not in (np.uint8, np.uint16):
            raise InvalidInputError(f"a frame {frame.shape} {frame.dtype}", f"({self.size[1]}, {self.size[0]}, 3) uint8 or uint16")
        with av_errors(self.path, "encoding"):
            yuv = from_rgb(frame, self.info.colour, str(self._stream.pix_fmt))
            yuv.pts, yuv.time_base = pts, self.info.time_base
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

    def _add_stream(self, encoding: Encoding, pix_fmt: str) -> VideoStream:
        info, (width, height) = self.info, self.size
        stream: Any = self._sink.add_stream(encoding.encoder, rate=info.average_rate, options=_options(encoding, width))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        codec = stream.codec_context
        codec.time_base, codec.framerate = Fraction(info.time_base), Fraction(info.average_rate)
        codec.thread_count = encoding.threads
        codec.sample_aspect_ratio = info.sample_aspect_ratio
        info.colour.tag(codec)
        return cast(VideoStream, stream)
