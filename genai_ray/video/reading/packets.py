"""Which packets are frames that a decoder shows: from their first bytes, or else by decoding the file.

Most packets are one frame each. Others are single fields (H.264, MPEG-2), hidden pictures (VP8, VP9), pictures that are
not coded or share a packet (MPEG-4), slices, parameter sets, or pictures that a decoder skips (H.264, HEVC). For codecs
that this module cannot read, only decoding tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import av
from av.video.stream import VideoStream

from genai_ray.video.container import open_video
from genai_ray.video.info import build_decoder, decode_packet, main_stream
from genai_ray.video.units import find_units, holds_picture, read_length_bytes

__all__ = ["Decoded", "Kind", "PacketReader", "decode_times"]

_ONE_FRAME_EACH = frozenset(
    re.findall(
        r"\w+",
        "av1 mjpeg mjpegb ljpeg jpegls jpeg2000 png apng gif bmp tiff targa exr prores prores_raw dnxhd ffv1 ffvhuff "
        "huffyuv utvideo magicyuv rawvideo v210 v210x v308 v408 v410 r10k r210 dvvideo hap speedhq flv1 h263 h263p "
        "msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 qtrle rpza msrle msvideo1",
    )
)
"""Codecs, by FFmpeg's names, whose packets are one frame each."""

MAX_NOT_CODED_BYTES = 19
"""FFmpeg treats an MPEG-4 picture of at most so many bytes as one that may not be coded."""

_START = b"\0\0\1"
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


class Kind(Enum):
    """What a packet is."""

    FRAME = "frame"
    """One frame that is shown."""
    SECOND_FIELD = "second field"
    """The other half of the previous packet's frame."""
    HIDDEN = "hidden"
    """A picture that is only a reference for others, or no picture."""
    UNKNOWN = "unknown"
    """The bytes do not tell."""


class PacketReader:
    """Reads the packets of one stream in decode order.

    Args:
        stream: The video.
    """

    def __init__(self, stream: VideoStream) -> None:
        codec = stream.codec_context.codec.canonical_name
        readers: dict[str, Callable[[bytes], Kind]] = {
            "h264": self._read_h264,
            "hevc": lambda data: _sure(self._is_hevc_frame(data)),
            "vp8": lambda data: Kind.FRAME if data[0] & 0x10 else Kind.HIDDEN,
            "vp9": _read_vp9,
            "mpeg4": lambda data: _sure(len(data) > MAX_NOT_CODED_BYTES),
            "mpeg1video": lambda data: _sure(_is_mpeg_frame(data)),
            "mpeg2video": lambda data: _sure(_is_mpeg_frame(data)),
        }
        always = _sure(codec in _ONE_FRAME_EACH)
        self._read: Callable[[bytes], Kind] = readers.get(codec, lambda _: always)
        self._has_ended = False
        self._h264_layout: tuple[int, bool, bool] | None = None
        self._first_field: tuple[int, int] | None = None
        self._length_bytes = 0
        self._extradata = bytes(stream.codec_context.extradata or b"")
        try:
            self._read_extradata(self._extradata, codec)
        except IndexError:
            self._read = lambda _: Kind.UNKNOWN

    def read(self, data: bytes) -> Kind:
        """Tell what a packet is.

        Args:
            data: The next packet.

        Returns:
            Its kind; ``UNKNOWN`` if it is not certain.
        """
        try:
            return self._read(data)
        except IndexError:  # the packet is too short
            return Kind.UNKNOWN

    def _read_extradata(self, extradata: bytes, codec: str) -> None:
        """Read how units are separated, and the parameter sets that are not in packets."""
        self._length_bytes = read_length_bytes(extradata, codec)
        if codec != "h264":
            return
        if not self._length_bytes:
            for start in find_units(extradata, 0):
                if extradata[start] & 31 == 7:
                    self._read_h264_layout(extradata[start:])
        elif extradata[5] & 31:
            self._read_h264_layout(extradata[8:])

    def _read_h264_layout(self, unit: bytes) -> None:
        layout = _read_sequence(unit)
        if self._h264_layout is not None and self._h264_layout != layout:
            raise IndexError("parameter sets of several layouts")  # only a decoder knows which one a slice uses
        self._h264_layout = layout

    def _read_h264(self, data: bytes) -> Kind:
        fields: list[tuple[int, int]] = []
        for start in find_units(data, self._length_bytes):
            kind = data[start] & 31
            if kind == 7:
                self._read_h264_layout(data[start : start + 1024])
            elif kind in (1, 2, 5):
                begins_picture = fields or data[start + 1] & 0x80
                if self._h264_layout is None or not begins_picture:
                    return Kind.UNKNOWN
                is_frames_only = self._h264_layout[2]
                field = None
                if not is_frames_only:
                    field = self._read_field(data[start + 1 : start + 64], self._h264_layout)
                if field is None:
                    return Kind.FRAME if not fields and self._first_field is None else Kind.UNKNOWN
                if field not in fields:
                    fields.append(field)
        if not fields and not holds_picture(data, self._extradata, "h264"):
            return Kind.HIDDEN
        return self._pair(fields)

    def _read_field(self, header: bytes, layout: tuple[int, bool, bool]) -> tuple[int, int] | None:
        """Read frame_num and bottom_field_flag of a slice (7.3.3); None for a slice of a whole frame."""
        bits = _Bits(header)
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            bits.exponential()
        bits.take(2 * layout[1])
        frame_num = bits.take(layout[0])
        return (frame_num, bits.take(1)) if bits.take(1) else None

    def _pair(self, fields: list[tuple[int, int]]) -> Kind:
        """Combine the fields of a packet with that of the packet before, if that one lacks its other half."""
        first = self._first_field
        self._first_field = None
        if first is not None:
            return Kind.SECOND_FIELD if fields == [(first[0], 1 - first[1])] else Kind.UNKNOWN
        if len(fields) == 1:
            self._first_field = fields[0]
            return Kind.FRAME
        is_whole = len(fields) == 2 and fields[0] == (fields[1][0], 1 - fields[1][1])
        return Kind.FRAME if is_whole else Kind.UNKNOWN

    def _is_hevc_frame(self, data: bytes) -> bool:
        has_ended = self._has_ended
        self._has_ended = data.endswith((b"\0\0\1\x48\1", b"\0\0\0\2\x48\1"))
        for start in find_units(data, self._length_bytes):
            kind = data[start] >> 1 & 63
            layer = (data[start] & 1) << 5 | data[start + 1] >> 3
            if kind < 32 and layer == 0:
                # After the end of a sequence, or a broken link, a decoder may skip leading pictures.
                return bool(data[start + 2] & 0x80) and kind != 16 and not has_ended
        return False


@dataclass(slots=True)
class Decoded:
    """Result of decoding a whole file, in the stream's ``time_base`` units."""

    shown: list[int | None] = field(default_factory=list)
    """Presentation times of the frames in the order of the decoder; None for a frame without a time."""
    brought: list[int | None] = field(default_factory=list)
    """Decode times of the packets that returned these frames; None at the end of the file, or without a time."""
    failed: list[int] = field(default_factory=list)
    """Times of packets after the first frame that do not decode: each is a damaged frame."""


def decode_times(place: str, *, any_format: bool = False) -> Decoded:
    """Decode a whole file to learn when its frames are shown.

    Args:
        place: Path or URI.
        any_format: Whether the file may name other files and hosts.

    Returns:
        The times.

    Raises:
        VideoError: If the file does not open or cannot be read.
    """
    decoded = Decoded()
    with open_video(place, any_format=any_format) as container:
        stream = main_stream(container)
        decoder = build_decoder(stream)
        packet: Any
        for packet in container.demux(stream):
            try:
                frames = decode_packet(decoder, packet)
            except av.FFmpegError:  # a damaged picture; errors of reading are raised outside this block
                time = packet.pts if packet.pts is not None else packet.dts
                if decoded.shown and time is not None:
                    decoded.failed.append(time)
                continue
            decoded.shown.extend(frame.pts for frame in frames)
            decoded.brought.extend(frame.dts for frame in frames)
    return decoded


def _sure(is_frame: bool) -> Kind:
    return Kind.FRAME if is_frame else Kind.UNKNOWN


class _Bits:
    """Reads bits of a unit without its emulation prevention bytes."""

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(plain)
        self._left = 8 * len(plain)

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError("no more bits")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def exponential(self) -> int:
        """Read an unsigned Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        code = self.exponential()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _read_sequence(unit: bytes) -> tuple[int, bool, bool]:
    """Read bits of frame_num, separate_colour_plane_flag and frame_mbs_only_flag of an H.264 sequence (7.3.2.1.1)."""
    bits = _Bits(unit[4:])
    has_planes = False
    bits.exponential()
    if unit[1] in _HIGH_PROFILES:
        chroma_format = bits.exponential()
        has_planes = chroma_format == 3 and bool(bits.take(1))
        bits.exponential()
        bits.exponential()
        bits.take(1)
        if bits.take(1):
            for index in range(8 if chroma_format != 3 else 12):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    frame_num_bits = bits.exponential() + 4
    order_type = bits.exponential()
    if order_type == 0:
        bits.exponential()
    elif order_type == 1:
        bits.take(1)
        bits.signed()
        bits.signed()
        for _ in range(bits.exponential()):
            bits.signed()
    bits.exponential()
    bits.take(1)
    bits.exponential()
    bits.exponential()
    return frame_num_bits, has_planes, bool(bits.take(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _split_vp9(data: bytes) -> Iterator[bytes]:
    """Split a VP9 packet (annex B): it holds several frames if it ends with an index of their sizes."""
    marker = data[-1]
    count = (marker & 7) + 1
    width = (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    if marker & 0xE0 != 0xC0 or index < 0 or data[index] != marker:
        yield data
        return
    position = 0
    for at in range(index + 1, len(data) - 1, width):
        size = int.from_bytes(data[at : at + width], "little")
        if size:
            yield data[position : position + size]
        position += size


def _read_vp9(data: bytes) -> Kind:
    shown = sum(map(_is_vp9_shown, _split_vp9(data)))
    return (Kind.HIDDEN, Kind.FRAME)[shown] if shown < 2 else Kind.UNKNOWN


def _is_vp9_shown(frame: bytes) -> bool:
    bits = _Bits(frame[:2] + b"\xff")
    bits.take(2)
    if bits.take(2) == 3:
        bits.take(1)
    if bits.take(1):  # show_existing_frame
        return True
    bits.take(1)
    return bool(bits.take(1))


def _is_mpeg_frame(data: bytes) -> bool:
    """Tell whether a packet of MPEG-1 or MPEG-2 has one picture: a frame, or two fields."""
    position = data.find(_START + b"\0")
    if position < 0:
        return False
    extension = data.find(_START + b"\xb5", position)
    if extension < 0 or data[extension + 4] >> 4 != 8:  # MPEG-1: no picture coding extension, no fields
        return True
    return data[extension + 6] & 3 == 3 or data.count(_START + b"\0") == 2
