"""Describes a video stream from its header and its first frame: size, depth, alpha, colour, static HDR metadata."""

from __future__ import annotations

import math
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.stream import VideoStream

from genai_ray.display import describe_fields
from genai_ray.errors import VideoError
from genai_ray.types import FieldOrder
from genai_ray.video.container import main_stream, open_video
from genai_ray.video.units import holds_picture

__all__ = [
    "FULL",
    "LIMITED",
    "Colour",
    "HdrMetadata",
    "VideoInfo",
    "build_decoder",
    "decode_packet",
    "describe_stream",
    "describe_video",
    "is_alpha_beside",
    "logging_at",
    "main_stream",
    "rate_of",
]

RGB = 0
BT709 = 1
UNSPECIFIED = 2
RESERVED = 3
SMPTE170M = 6
YCGCO = 8
LIMITED = 1
FULL = 2
HD_LINES = 720
"""An untagged picture of this height or more is BT.709, a smaller one BT.601."""

_STORED = (1, 4, 5, 6, 7, 9, 10)
"""Matrices that results may have."""

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read alpha; FFmpeg's own decoders of these codecs do not."""

_UNKEPT = {
    Type.A53_CC: "closed captions",
    Type.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    Type.DOVI_METADATA: "Dolby Vision metadata",
    Type.STEREO3D: "stereo 3D metadata",
    Type.SPHERICAL: "spherical video metadata",
}
"""Side data that PyAV (18) reads from a frame but cannot give to an encoder."""

_FIELD_ORDERS = {2: FieldOrder.TOP, 3: FieldOrder.BOTTOM, 4: FieldOrder.BOTTOM, 5: FieldOrder.TOP}
"""FFmpeg's AVFieldOrder of interlaced streams: which field is shown first, whichever is stored first."""

_FLAGGING = frozenset(
    re.findall(
        r"\w+",
        "av1 cavs dnxhd dvvideo h264 hevc mjpeg mjpegb mpeg1video mpeg2video mpeg4 prores prores_raw vc1 wmv3",
    )
)
"""Codecs, by FFmpeg's names, whose pictures say whether they are interlaced."""

_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_LOGGING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Colour:
    """The meaning of a picture's numbers, as code points of FFmpeg and ITU-T H.273."""

    matrix: int
    """Matrix coefficients: 1 BT.709, 5 and 6 BT.601, 9 BT.2020."""
    range: int
    """1 limited, 2 full."""
    primaries: int
    """Colour primaries; 2 is unspecified."""
    transfer: int
    """Transfer characteristics; 2 is unspecified."""
    assumed: bool
    """Whether the matrix was not tagged, but follows from the height."""
    chroma_location: str = "left"
    """Position of chroma between luma, in FFmpeg's words (left, center, topleft); left if not tagged, as in H.264."""
    source_matrix: int | None = None
    """Matrix coefficients of the source if results cannot have them, such as 8 (YCgCo); None if they are ``matrix``."""

    @property
    def standard(self) -> str:
        """The matrix in words, such as BT.709."""
        return {1: "BT.709", 5: "BT.601", 6: "BT.601", 9: "BT.2020", 10: "BT.2020"}.get(
            self.matrix, f"matrix {self.matrix}"
        )

    @property
    def light(self) -> str:
        """What light the numbers mean, by their transfer function: ``SDR``, ``HDR (PQ)`` or ``HDR (HLG)``."""
        return {16: "HDR (PQ)", 18: "HDR (HLG)"}.get(self.transfer, "SDR")

    def tag(self, codec: Any) -> None:
        """Tag an output stream with the code points.

        Args:
            codec: PyAV's codec context of that stream.
        """
        codec.colorspace = self.matrix
        codec.color_range = self.range
        codec.color_primaries = self.primaries
        codec.color_trc = self.transfer


@dataclass(frozen=True, slots=True)
class HdrMetadata:
    """HDR10's static metadata: SMPTE ST 2086 (mastering display) and CTA-861.3 (content light level)."""

    primaries: tuple[Fraction, ...] | None
    """CIE 1931 x and y of red, green, blue and white, 8 numbers; None if not stated."""
    luminance: tuple[Fraction, Fraction] | None
    """Least and most luminance of the mastering display, in candela per square metre; None if not stated."""
    light_level: tuple[int, int] | None
    """Most of any pixel (MaxCLL) and of any frame's average (MaxFALL), in candela per square metre; None if not
    stated."""


@describe_fields
@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts of a video stream."""

    width: int
    """Width of the decoded picture in pixels."""
    height: int
    """Height of the decoded picture in pixels."""
    time_base: Fraction
    """Seconds per unit of pts."""
    average_rate: Fraction
    """Frames per second, on average."""
    codec: str
    """FFmpeg's name of the codec."""
    pix_fmt: str
    """FFmpeg's name of the pixel format."""
    bit_depth: int
    """Bits of one component."""
    sample_aspect_ratio: Fraction
    """Width of a pixel over its height; 1 if unknown."""
    rotation: int
    """Degrees by which a player rotates the picture."""
    colour: Colour
    """Matrix, range, primaries, transfer."""
    has_alpha: bool = False
    """Whether pictures have an alpha plane."""
    hdr: HdrMetadata | None = None
    """HDR10's static metadata; None if the stream has none."""
    is_interlaced: bool = False
    """Whether the first picture consists of two fields of different times, by its own flag or by that of the stream."""
    field_order: FieldOrder | None = None
    """Which of the two is shown first, by the stream; None if it does not say."""
    flags_fields: bool = True
    """Whether each picture says whether it is interlaced; if not, the stream says it for all of them."""
    is_mirrored: bool = False
    """Whether a player mirrors the picture, left to right, before it rotates it; decoded frames are mirrored."""
    unkept: tuple[str, ...] = ()
    """Side data of the stream that no result keeps, in words."""


def is_alpha_beside(stream: VideoStream) -> bool:
    """Tell whether a stream's alpha is data beside its packets, as Matroska stores it for VP8 and VP9.

    Args:
        stream: The video.

    Returns:
        Whether its ``alpha_mode`` is 1; FFmpeg writes that key in capitals.
    """
    return any(name.lower() == "alpha_mode" and value == "1" for name, value in stream.metadata.items())


def build_decoder(stream: VideoStream) -> Any:
    """Return a decoder of a stream: its own codec context, or one that reads alpha if the stream needs it.

    Args:
        stream: The video.

    Returns:
        A codec context of one thread.
    """
    codec: Any = stream.codec_context
    alpha = _ALPHA_DECODERS.get(codec.codec.canonical_name)
    if alpha is not None and is_alpha_beside(stream) and alpha in av.codecs_available:
        codec = av.CodecContext.create(alpha, "r")
        codec.extradata = stream.codec_context.extradata
    codec.thread_type = "SLICE"
    codec.thread_count = 1
    return codec


def decode_packet(decoder: Any, packet: Any) -> list[av.VideoFrame]:
    """Decode a packet. FFmpeg's H.264 decoder refuses packets without a picture; here they give no frame.

    Args:
        decoder: Result of ``build_decoder``.
        packet: The next packet of the stream.

    Returns:
        The frames that the decoder returns.

    Raises:
        av.FFmpegError: If a picture does not decode.
    """
    try:
        frames: list[av.VideoFrame] = decoder.decode(packet)
    except av.InvalidDataError:
        if not packet.size or holds_picture(
            bytes(packet), bytes(decoder.extradata or b""), decoder.codec.canonical_name
        ):
            raise
        return []
    return frames


def describe_video(path: str, *, any_format: bool = False) -> tuple[VideoInfo, int | None]:
    """Read the facts of a stream from its header and its first frame, which has the true size, format and rotation.

    Args:
        path: The file.
        any_format: Whether it may name other files and hosts.

    Returns:
        The facts, and the time of the first frame that decodes.

    Raises:
        VideoError: If the file is not a video, or none of its frames decodes.
    """
    with open_video(path, any_format=any_format) as container:
        stream = main_stream(container)
        decoder = build_decoder(stream)
        frame = next((frame for packet in container.demux(stream) for frame in decode_packet(decoder, packet)), None)
        if frame is None:
            raise VideoError(
                f"{path}: none of its frames decodes ({stream.codec_context.name})",
                "undamaged data of a codec that FFmpeg decodes",
            )
        return describe_stream(container, stream, frame), frame.pts


def rate_of(stream: VideoStream) -> Fraction:
    """Return the average frame rate of a stream.

    Args:
        stream: The stream.

    Returns:
        Frames per second; 25 if FFmpeg does not know it.
    """
    rate, guessed = stream.average_rate, stream.guessed_rate
    if not rate or (guessed and rate > 2 * guessed):  # FFmpeg's demuxer of raw DV gives the unit of times
        rate = guessed
    return Fraction(rate or 25)


def describe_stream(container: InputContainer, stream: VideoStream, frame: av.VideoFrame) -> VideoInfo:
    """Read the facts of a stream from its header and its first frame.

    Args:
        container: The container, open.
        stream: The stream.
        frame: Its first frame that decodes.

    Returns:
        The facts.
    """
    codec = stream.codec_context
    field_order = _FIELD_ORDERS.get(codec.field_order)
    flags_fields = codec.codec.canonical_name in _FLAGGING or field_order is None
    side_data = _side_data_of(frame)
    rotation, is_mirrored = _read_orientation(frame, side_data)
    return VideoInfo(
        width=frame.width,
        height=frame.height,
        time_base=Fraction(stream.time_base or Fraction(1, 1000)),
        average_rate=rate_of(stream),
        codec=codec.name,
        pix_fmt=frame.format.name,
        bit_depth=frame.format.components[0].bits,
        sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
        rotation=rotation,
        colour=_read_colour(codec, frame, _find_chroma_location(container, stream.index)),
        has_alpha=any(component.is_alpha for component in frame.format.components),
        hdr=_read_hdr(side_data),
        is_interlaced=bool(frame.interlaced_frame) or not flags_fields,
        field_order=field_order,
        flags_fields=flags_fields,
        is_mirrored=is_mirrored,
        unkept=tuple(words for kind, words in _UNKEPT.items() if kind in side_data),
    )


def _read_colour(codec: Any, frame: av.VideoFrame, chroma_location: str) -> Colour:
    matrix = int(codec.colorspace)
    span = int(codec.color_range)
    source = None
    has_rgb = frame.format.is_rgb or frame.format.has_palette
    # Results are YUV; if the source has no matrix, they get the one that players assume for the height.
    is_assumed = has_rgb or matrix in (RGB, UNSPECIFIED, RESERVED)
    if is_assumed or matrix not in _STORED:
        source = None if is_assumed else matrix
        matrix = BT709 if frame.height >= HD_LINES else SMPTE170M
    if has_rgb:
        span = LIMITED
    if span not in (LIMITED, FULL):
        span = FULL if frame.format.name.startswith("yuvj") else LIMITED
    return Colour(matrix, span, int(codec.color_primaries), int(codec.color_trc), is_assumed, chroma_location, source)


def _read_orientation(frame: av.VideoFrame, side_data: Mapping[Type, bytes]) -> tuple[int, bool]:
    """Read from FFmpeg's matrix (3x3, 16.16) the degrees by which a player rotates, and whether it mirrors before."""
    if (matrix := side_data.get(Type.DISPLAYMATRIX)) is None:
        return frame.rotation, False
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    if a * d - b * c >= 0:
        return frame.rotation, False
    return -round(math.degrees(math.atan2(-b / math.hypot(b, d), -a / math.hypot(a, c)))), True


def _read_hdr(found: Mapping[Type, bytes]) -> HdrMetadata | None:
    """Read FFmpeg's AVMasteringDisplayMetadata (ten rationals, two flags) and AVContentLightMetadata (two numbers)."""
    primaries = luminance = light_level = None
    if (mastering := found.get(Type.MASTERING_DISPLAY_METADATA)) is not None:
        numbers = struct.unpack_from("=22i", mastering)
        ratios = [Fraction(numbers[at], numbers[at + 1] or 1) for at in range(0, 20, 2)]
        primaries = tuple(ratios[:8]) if numbers[20] else None
        luminance = (ratios[8], ratios[9]) if numbers[21] else None
    if (light := found.get(Type.CONTENT_LIGHT_LEVEL)) is not None:
        light_level = struct.unpack_from("=2I", light)
    if primaries is luminance is light_level is None:
        return None
    return HdrMetadata(primaries, luminance, light_level)


def _side_data_of(frame: av.VideoFrame) -> dict[Type, bytes]:
    try:
        side_data: Any = frame.side_data
    except ValueError:
        # FFmpeg has kinds that PyAV (18) does not know, such as Exif: map them all to a kind that no file has.
        kinds: Any = Type
        kinds._missing_ = classmethod(lambda kind, _: kind.VIDEO_HINT)
        side_data = frame.side_data
    return {data.type: bytes(data) for data in side_data}


def _find_chroma_location(container: InputContainer, index: int) -> str:
    """Read the chroma location, for which PyAV (18) has no field, from FFmpeg's description of the file."""
    opened: Any = container
    with logging_at(av.logging.VERBOSE):
        lines = opened.dumps_format().splitlines()
    line = next((line for line in lines if re.match(rf"\s*Stream #0:{index}\b", line)), "")
    words = re.search(r", \w+\(([^)]*)\)[,\s]", line.partition(" Video: ")[2])
    named = {word.strip() for word in words[1].split(",")} if words else set()
    return next((name for name in _CHROMA_LOCATIONS if name in named), "left")


@contextmanager
def logging_at(level: int) -> Iterator[None]:
    """Set the level from which FFmpeg's messages count; one thread at a time, the level is global.

    Args:
        level: One of PyAV's, such as that at which FFmpeg describes the chroma location.

    Yields:
        None.
    """
    with _LOGGING:
        before = av.logging.get_level()
        av.logging.set_level(level)
        av.logging.set_libav_level(level)
        try:
            yield
        finally:
            av.logging.set_level(before)
            av.logging.set_libav_level(av.logging.INFO)
