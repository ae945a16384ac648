"""Encodes the RGB frames of one segment into a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.stream import VideoStream

from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.video.codecs import (
    CODECS,
    X265_DELAY_FRAMES,
    bound_options,
    fixed_options,
    hdr_options,
    keep_scheduling,
)
from genai_ray.video.colour import JFIF, from_rgb
from genai_ray.video.container import av_errors
from genai_ray.video.encoding.hardware import find_codec, find_device, name_input
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import YCGCO, Colour, VideoInfo

# Errors only: SVT-AV1 would print its settings and the thread's priority whenever it is opened.
os.environ.setdefault("SVT_LOG", "1")

__all__ = [
    "SegmentWriter",
    "add_encoder",
    "choose_pixel_format",
    "describe_losses",
    "encoder_options",
    "find_side_step",
    "holds_alpha",
]


def holds_alpha(encoding: Encoding, suffix: str) -> bool:
    """Tell whether a container holds the alpha that an encoder stores.

    Args:
        encoding: The settings, validated.
        suffix: Suffix of the output, lower case, with its dot.

    Returns:
        False for VP9 in MP4; True for an encoder that stores no alpha.
    """
    codec = CODECS[encoding.encoder]
    return not codec.alpha_formats or suffix in (codec.alpha_suffixes or codec.suffixes)


def choose_pixel_format(encoding: Encoding, size: tuple[int, int], source: str, *, has_alpha: bool = False) -> str:
    """Choose the pixel format of the result, and check that the encoder supports it.

    Args:
        encoding: The settings, validated.
        size: (width, height) in pixels; odd sizes are stored as 4:4:4, because 4:2:0 needs even sizes.
        source: Pixel format of the source; its depth is kept, and its chroma sampling if the encoder is lossless.
        has_alpha: Whether alpha is stored.

    Returns:
        FFmpeg's name of the pixel format.

    Raises:
        ConfigError: If the encoder has no format for the size, the depth or alpha.
    """
    codec = find_codec(encoding.encoder)
    if has_alpha and not codec.alpha_formats:
        raise ConfigError(
            f"alpha with {encoding.encoder}", ", ".join(name for name, other in CODECS.items() if other.alpha_formats)
        )
    by_sampling = codec.alpha_formats if has_alpha else codec.formats
    sampling = _choose_sampling(encoding, source, is_odd=bool(size[0] % 2 or size[1] % 2), has_alpha=has_alpha)
    if sampling is None:
        raise ConfigError(
            f"{encoding.encoder} for pictures of {size[0]}x{size[1]}",
            "even sizes",
            "Use libx264, libx265, libvpx-vp9 or ffv1.",
        )
    chosen = _choose_depth(by_sampling[sampling], encoding, av.VideoFormat(source).components[0].bits)
    known = {item.name for item in av.Codec(encoding.encoder, "w").video_formats or ()}
    if known and name_input(encoding.encoder, chosen) not in known and not find_device(encoding.encoder):
        raise ConfigError(
            f"{encoding.encoder} with {chosen}, which this build of it lacks", do="Choose another bit depth or codec."
        )
    return chosen


def find_side_step(encoding: Encoding, source: str, *, has_alpha: bool = False) -> int:
    """Return of how many pixels the sides of a result must be a multiple, to be stored as an even size would be.

    Args:
        encoding: The settings, with a codec.
        source: Pixel format of the source.
        has_alpha: Whether alpha is stored.

    Returns:
        2 if fewer samples of chroma than of luma are stored; 1 for 4:4:4 and RGB.
    """
    return 1 if _choose_sampling(encoding, source, is_odd=False, has_alpha=has_alpha) == "444" else 2


def _choose_sampling(encoding: Encoding, source: str, *, is_odd: bool, has_alpha: bool) -> str | None:
    codec = find_codec(encoding.encoder)
    by_sampling = codec.alpha_formats if has_alpha else codec.formats
    wanted = (_sampling_of(source),) if codec.keeps_sampling else ()
    known = (name for name in (*wanted, "420", "422", "444") if name in by_sampling)
    return next((name for name in known if name == "444" or not is_odd), None)


def _sampling_of(pix_fmt: str) -> str:
    shape = av.VideoFormat(pix_fmt)
    return {(4, 4): "444", (2, 4): "422"}.get((shape.chroma_width(4), shape.chroma_height(4)), "420")


def _choose_depth(formats: tuple[str, ...], encoding: Encoding, source_bits: int) -> str:
    depths = {av.VideoFormat(name).components[0].bits: name for name in formats}
    if encoding.bit_depth is not None and encoding.bit_depth not in depths:
        raise ConfigError(
            f"{encoding.bit_depth} bits with {encoding.encoder}", " or ".join(str(bits) for bits in depths)
        )
    wanted = encoding.bit_depth or next((bits for bits in depths if bits >= source_bits), max(depths))
    return depths[wanted]


def encoder_options(
    encoding: Encoding, pix_fmt: str, size: tuple[int, int], info: VideoInfo | None = None
) -> dict[str, str]:
    """Return all options of an encoder.

    Args:
        encoding: The settings.
        pix_fmt: Result of ``choose_pixel_format``.
        size: (width, height) in pixels.
        info: The source; None for a trial without one.

    Returns:
        Options by FFmpeg's names.
    """
    rate = None if encoding.video_bitrate is None else int(encoding.video_bitrate)
    options = find_codec(encoding.encoder).options(encoding.preset, encoding.crf, rate)
    parts = [fixed_options(encoding.encoder, encoding.threads, pix_fmt, size), bound_options(encoding.encoder, size)]
    if info is not None and info.hdr is not None:
        parts.append(hdr_options(encoding.encoder, info.hdr))
    if info is not None and "420" in pix_fmt:
        parts.append({"chroma_sample_location": info.colour.chroma_location})
    for part in (*parts, encoding.options):
        for name, value in part.items():
            options[name] = f"{options[name]}:{value}" if name in options and name.endswith("-params") else value
    return options


def describe_losses(info: VideoInfo, encoding: Encoding, size: tuple[int, int]) -> Iterator[str]:
    """Say what the encoder cannot keep of a source's pictures.

    Args:
        info: The source.
        encoding: The settings, validated.
        size: (width, height) of the result in pixels.

    Yields:
        One sentence each.

    Raises:
        ConfigError: If the encoder has no pixel format for the size or the depth.
    """
    has_alpha = info.has_alpha and encoding.has_alpha
    stored = choose_pixel_format(encoding, size, info.pix_fmt, has_alpha=has_alpha)
    bits = av.VideoFormat(stored).components[0].bits
    if info.bit_depth > bits:
        yield f"{info.bit_depth} bits per component were reduced to {bits}"
    if info.has_alpha and not has_alpha:
        yield f"alpha was left out: {encoding.encoder} cannot store it"
    before = _sampling_of(info.pix_fmt)
    after = _sampling_of(stored)
    if before > after and size == (info.width, info.height):
        yield f"chroma was reduced from 4:{before[1]}:{before[2]} to 4:{after[1]}:{after[2]}"
    if info.is_interlaced:
        yield "interlaced source: both fields of each frame were enhanced as one picture"
    colour = info.colour
    if colour.source_matrix == YCGCO:
        yield f"YCgCo colour: stored and tagged as {colour.standard}"
    elif colour.source_matrix is not None:
        yield f"colours of matrix {colour.source_matrix} (ITU-T H.273) were read as {colour.standard}, which differs"
    yield from (f"{words} in the video stream were left out" for words in info.unkept)
    if encoding.is_in_hardware:
        yield f"encoded in hardware by {encoding.encoder}: the same job may give other bytes"
    if info.hdr is not None and not encoding.has_hdr:
        yield f"HDR10's static metadata was left out: {encoding.encoder} cannot store it"


class SegmentWriter:
    """Encodes frames of one segment. The file is whole if the block ends without an error, else it is removed.

    PNG and JPEG have no tag for rotation here: their frames are rotated as a player would.

    Args:
        path: The file, in FFmpeg's NUT format, which keeps any time base exactly.
        info: The source; its times, colour and aspect ratio are kept.
        size: (width, height) of the frames in pixels, before rotation.
        encoding: The settings.
        has_alpha: Whether frames have alpha.

    Raises:
        ConfigError: If the encoder has no pixel format for the size, the bit depth or alpha.
        VideoError: If the encoder or the file system fails.
    """

    def __init__(
        self, path: Path, *, info: VideoInfo, size: tuple[int, int], encoding: Encoding, has_alpha: bool = False
    ) -> None:
        self.path = path
        self.info = info
        self.size = size
        self.has_alpha = has_alpha
        self.turns = _turns_of(encoding, info)
        self.colour = _colour_of(encoding, info)
        self._num_frames = 0
        self._pix_fmt = choose_pixel_format(encoding, size, info.pix_fmt, has_alpha=has_alpha)
        with av_errors(path.parent, "opening a segment for writing"):
            # Each packet is written at once: the progress of a segment shows in its file, at no measurable cost.
            self._sink = av.open(
                str(path),
                "w",
                format=_choose_container(encoding, has_alpha),
                options={"fflags": "+bitexact+flush_packets"},
            )
            self._stream = add_encoder(self._sink, encoding, info, size, self._pix_fmt)

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        """Encode one frame.

        Args:
            frame: RGB (H, W, 3), or RGBA (H, W, 4) with alpha; uint8 or uint16, C-contiguous, of the writer's size.
            pts: Presentation time in the source's ``time_base`` units, greater than that of the frame before.

        Raises:
            InvalidInputError: If the frame has another size or dtype.
            VideoError: If the encoder fails.
        """
        self.write_picture(self.convert(frame, pts))

    def convert(self, frame: npt.NDArray[Any], pts: int) -> av.VideoFrame:
        """Convert a frame for the encoder; see ``write``.

        Args:
            frame: As ``write``.
            pts: As ``write``.

        Returns:
            The picture, with its time.

        Raises:
            InvalidInputError: If the frame has another size or dtype.
            VideoError: If FFmpeg fails.
        """
        shape = (self.size[1], self.size[0], 4 if self.has_alpha else 3)
        if frame.shape != shape or frame.dtype not in (np.uint8, np.uint16):
            raise InvalidInputError(f"a frame {frame.shape} {frame.dtype}", f"{shape} uint8 or uint16")
        with av_errors(self.path.parent, "encoding a segment"):
            if self.turns:
                frame = np.ascontiguousarray(np.rot90(frame, self.turns))
            picture = from_rgb(frame, self.colour, self._pix_fmt)
            picture.pts = pts
            picture.time_base = self.info.time_base
            return picture

    def write_picture(self, picture: av.VideoFrame) -> None:
        """Encode a picture that has the encoder's format.

        Args:
            picture: From ``convert``, or one that holds the same values.

        Raises:
            VideoError: If the encoder fails.
        """
        with av_errors(self.path.parent, "encoding a segment"):
            with keep_scheduling() if self._num_frames == 0 else nullcontext():  # the first frame opens the encoder
                packets = self._stream.encode(picture)
            self._sink.mux(packets)
            self._num_frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_whole = False
        try:
            try:
                if kind is None:
                    with av_errors(self.path.parent, "encoding a segment"):
                        self._end()
            finally:
                with av_errors(self.path.parent, "writing a segment"):
                    self._sink.close()
            is_whole = kind is None
        finally:
            if not is_whole:
                self.path.unlink(missing_ok=True)

    def _end(self) -> None:
        packet: Any
        for packet in self._stream.encode(None):
            if self._num_frames <= X265_DELAY_FRAMES:
                packet.dts = packet.pts  # so few packets are in display order
            self._sink.mux(packet)


def add_encoder(
    sink: OutputContainer, encoding: Encoding, info: VideoInfo, size: tuple[int, int], pix_fmt: str
) -> VideoStream:
    """Add a stream with its encoder to a container.

    Args:
        sink: The container.
        encoding: The settings.
        info: The source; its times, colour and aspect ratio are kept.
        size: (width, height) of the frames in pixels, before rotation.
        pix_fmt: Result of ``choose_pixel_format``.

    Returns:
        The stream; its encoder is not open yet.
    """
    is_turned = bool(_turns_of(encoding, info) % 2)
    stream: Any = sink.add_stream(
        encoding.encoder,
        rate=info.average_rate,
        options=encoder_options(encoding, pix_fmt, size, info),
        hwaccel=find_device(encoding.encoder),
    )
    stream.width, stream.height = reversed(size) if is_turned else size
    stream.pix_fmt = name_input(encoding.encoder, pix_fmt)
    codec = stream.codec_context
    codec.time_base = Fraction(info.time_base)
    codec.framerate = Fraction(info.average_rate)
    codec.thread_count = encoding.threads
    codec.sample_aspect_ratio = 1 / info.sample_aspect_ratio if is_turned else info.sample_aspect_ratio
    _colour_of(encoding, info).tag(codec)
    return cast(VideoStream, stream)


def _turns_of(encoding: Encoding, info: VideoInfo) -> int:
    return info.rotation // 90 % 4 if encoding.encoder in ("png", "mjpeg") else 0


def _colour_of(encoding: Encoding, info: VideoInfo) -> Colour:
    return JFIF if encoding.encoder == "mjpeg" else info.colour


def _choose_container(encoding: Encoding, has_alpha: bool) -> str:
    """Choose a segment's container: NUT cannot hold ProRes, nor VP9's alpha, which is data beside its packets."""
    if encoding.encoder == "prores_ks":
        return "mov"
    return "matroska" if encoding.encoder == "libvpx-vp9" and has_alpha else "nut"
