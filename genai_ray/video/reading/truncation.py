"""Tells whether the end of a file is there, by the sizes in its structure: durations in headers are often wrong."""

from __future__ import annotations

import io
from typing import BinaryIO

from genai_ray.files import open_to_read

__all__ = ["is_whole"]

_HEADER_BYTES = 65536
"""The sizes of Matroska and ASF lie within so many bytes."""

_SEGMENT = bytes.fromhex("18538067")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def is_whole(place: str, format_name: str) -> bool:
    """Tell whether the end of a file is certainly there.

    Args:
        place: Path or URI.
        format_name: FFmpeg's name of the container.

    Returns:
        True if every part ends within the file; False also if the format does not state the sizes of its parts.

    Raises:
        VideoError: If the file cannot be read.
    """
    check = next((check for name, check in _CHECKS.items() if format_name.startswith(name)), None)
    if check is None:
        return False
    with open_to_read(place) as file:
        return check(file, file.seek(0, io.SEEK_END))


def _ends_matroska(file: BinaryIO, size: int) -> bool:
    head = _read(file, 0, _HEADER_BYTES)
    start = head.find(_SEGMENT) + len(_SEGMENT)
    if start < len(_SEGMENT) or start >= len(head) or head[start] == 0:
        return False
    width = 9 - head[start].bit_length()
    stated = int.from_bytes(head[start : start + width]) & (1 << 7 * width) - 1
    is_known = stated != (1 << 7 * width) - 1  # all bits set: the recorder could not go back to write the size
    return is_known and start + width + stated <= size


def _ends_flv(file: BinaryIO, size: int) -> bool:
    """Check that the last tag is complete; its size follows it."""
    tag = size - 4 - int.from_bytes(_read(file, size - 4, 4))
    head = _read(file, tag, 4) if 9 < tag < size else b""
    return len(head) == 4 and head[0] & 31 in (8, 9, 18) and tag + 11 + int.from_bytes(head[1:]) + 4 == size


def _ends_asf(file: BinaryIO, size: int) -> bool:
    head = _read(file, 0, _HEADER_BYTES)
    start = head.find(_ASF_FILE_PROPERTIES) + 40
    stated = int.from_bytes(head[start : start + 8], "little")
    return start >= 40 and 0 < stated <= size


def _ends_mov(file: BinaryIO, size: int) -> bool:
    position = 0
    while position < size:
        head = _read(file, position, 16)
        length = int.from_bytes(head[:4])
        if length == 1:
            length = int.from_bytes(head[8:16])
        if length == 0:  # "to the end of the file" does not tell where that is
            return False
        if len(head) < 8 or length < 8:
            return False
        position += length
    return position == size


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(max(position, 0))
    return file.read(count)


_CHECKS = {"matroska": _ends_matroska, "flv": _ends_flv, "asf": _ends_asf, "mov,": _ends_mov}
"""Checks by the first letters of FFmpeg's name of the container."""
