"""Finds the units (NAL units) of H.264 and HEVC in a packet, and whether one of them is a picture."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["find_units", "holds_picture", "read_length_bytes"]

_START = b"\0\0\1"
_SIZES_AT = {"h264": 4, "hevc": 21}
"""Position of the size of lengths in a stream's extradata."""

_BESIDE_PICTURES = (*range(6, 16), 20, 21)
"""H.264 unit types that are not part of a picture, or belong to another view or layer, which is not decoded."""


def read_length_bytes(extradata: bytes, codec: str) -> int:
    """Read how units are separated.

    Args:
        extradata: The stream's extradata.
        codec: FFmpeg's name of its codec.

    Returns:
        Bytes of the length before each unit; 0 if start codes separate them.

    Raises:
        IndexError: If the extradata is too short.
    """
    return (extradata[_SIZES_AT[codec]] & 3) + 1 if extradata[:1] == b"\1" and codec in _SIZES_AT else 0


def find_units(data: bytes, length_bytes: int) -> Iterator[int]:
    """Find where units begin.

    Args:
        data: A packet.
        length_bytes: Bytes of the length before each unit; 0 for start codes.

    Yields:
        Positions of their first bytes.
    """
    position = 0
    while not length_bytes and (position := data.find(_START, position) + 3) > 2:
        yield position
    while length_bytes and position + length_bytes < len(data):
        size = int.from_bytes(data[position : position + length_bytes])
        yield position + length_bytes
        position += length_bytes + size


def holds_picture(data: bytes, extradata: bytes, codec: str) -> bool:
    """Tell whether a packet may hold a picture, not only other units such as parameter sets.

    Args:
        data: The packet.
        extradata: The stream's extradata.
        codec: FFmpeg's name of its codec.

    Returns:
        False only if there is certainly no picture; always True for other codecs than H.264.
    """
    if codec != "h264":
        return True
    try:
        heads = [data[start] for start in find_units(data, read_length_bytes(extradata, codec))]
    except IndexError:
        return True
    # The first bit is set only by damage.
    return not heads or any(head & 0x80 or head & 31 not in _BESIDE_PICTURES for head in heads)
