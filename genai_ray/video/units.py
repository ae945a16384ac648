"""Units of H.264 and HEVC in a packet: where they begin, and whether a picture is among them."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["find_units", "holds_picture", "read_length_bytes"]

_START = b"\0\0\1"
_SIZES_AT = {"h264": 4, "hevc": 21}
"""Where the size of lengths is in what a container says of a stream."""

_BESIDE_PICTURES = (*range(6, 16), 20, 21)
"""Types of H.264's units that are no parts of a picture, or of one of another view or layer, which is not decoded."""


def read_length_bytes(extradata: bytes, codec: str) -> int:
    """Read how units are told apart.

    Args:
        extradata: What a container says of the stream.
        codec: FFmpeg's name of its codec.

    Returns:
        Bytes of the length before each unit; 0 if start codes are between them.

    Raises:
        IndexError: If the container says too little.
    """
    return (extradata[_SIZES_AT[codec]] & 3) + 1 if extradata[:1] == b"\1" and codec in _SIZES_AT else 0


def find_units(data: bytes, length_bytes: int) -> Iterator[int]:
    """Find where units begin.

    Args:
        data: A packet.
        length_bytes: Of the length before each unit; 0 for start codes.

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
    """Tell whether a packet may hold a picture, and not only what lies beside pictures, such as parameter sets.

    Args:
        data: The packet.
        extradata: What its container says of the stream.
        codec: FFmpeg's name of its codec.

    Returns:
        False only if there is surely none; of other codecs than H.264 always True.
    """
    if codec != "h264":
        return True
    try:
        heads = [data[start] for start in find_units(data, read_length_bytes(extradata, codec))]
    except IndexError:
        return True
    return not heads or any(
        head & 0x80 or head & 31 not in _BESIDE_PICTURES for head in heads
    )  # damage sets the first bit, too
