"""Hashes of decoded pictures, and the words in a file's metadata that name its record.

The hash of some frames is sha256 over, for each frame in display order, the text ``WIDTHxHEIGHT BITS``, and for each
plane the text ``WIDTHxHEIGHT`` and its rows as they are stored, without padding: Y, Cb, Cr and alpha of most results;
two bytes little-endian for each value of more than 8 bits. So it depends on neither the container nor its metadata.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from genai_ray.errors import VideoError
from genai_ray.video.container import av_errors, main_stream, open_video
from genai_ray.video.info import build_decoder, decode_packet
from genai_ray.video.reading.decode import decode_from
from genai_ray.video.reading.plan import VideoPlan

__all__ = ["compare_frames", "decode_part", "digest_part", "digest_ranges", "name_record", "read_record_name"]

_KEY = "comment"
"""The only key of free text that MP4, MOV, Matroska and WebM all keep."""

_NAME = re.compile(r"genai-ray record sha256:([0-9a-f]{64})")


def decode_part(part: Path) -> Iterator[av.VideoFrame]:
    """Decode the file of a finished segment.

    Args:
        part: The file.

    Yields:
        Its frames in display order, as they are stored.

    Raises:
        VideoError: If the file does not open, or a frame does not decode.
    """
    with av_errors(part, "reading"), av.open(str(part)) as container:
        stream = main_stream(container)
        decoder = build_decoder(stream)
        for packet in container.demux(stream):
            yield from decode_packet(decoder, packet)


def digest_part(part: Path) -> tuple[int, str]:
    """Decode the file of a finished segment, and hash its frames.

    Args:
        part: The file.

    Returns:
        The number of frames; and their hash, hexadecimal.

    Raises:
        VideoError: If the file does not open, or a frame does not decode.
    """
    digest = hashlib.sha256()
    count = 0
    for frame in decode_part(part):
        _add(digest, frame)
        count += 1
    return count, digest.hexdigest()


def digest_ranges(plan: VideoPlan, counts: Sequence[int]) -> Iterator[str]:
    """Decode a result, and hash its frames in ranges that follow each other.

    Args:
        plan: The planned file.
        counts: Frames of each range.

    Yields:
        The hash of each range, hexadecimal; of an empty range the empty string.

    Raises:
        VideoError: If the file cannot be read, a frame does not decode, or it has fewer frames.
    """
    frames = decode_from(plan, 0)
    for count in counts:
        digest = hashlib.sha256()
        for position in range(count):
            frame = next(frames, None)
            if frame is None:
                raise VideoError(f"{plan.path}: a frame is missing", f"{count} frames instead of {position}")
            _add(digest, frame)
        yield digest.hexdigest() if count else ""


def compare_frames(plan: VideoPlan, start: int, part: Path) -> Iterator[float]:
    """Compare frames of a result with those of a segment's file.

    Args:
        plan: The planned result.
        start: Position of its frame that belongs to the first one of the segment.
        part: The segment's file.

    Yields:
        PSNR of each frame in dB over all stored values; ``inf`` if equal.

    Raises:
        VideoError: If one of them does not decode, or frames have other sizes or bit depths.
    """
    if start >= len(plan.pts):
        raise VideoError(f"{plan.path}: frame {start} is missing")
    wanted = (frame for frame in decode_from(plan, start) if frame.pts is not None and frame.pts >= plan.pts[start])
    for own in decode_part(part):
        frame = next(wanted, None)
        if frame is None:
            raise VideoError(f"{plan.path}: a frame is missing")
        if _describe(frame) != _describe(own):
            raise VideoError(f"{plan.path}: frames of {_describe(frame)} bits", f"{_describe(own)} bits")
        top = 2 ** frame.format.components[0].bits - 1
        pairs = list(zip(_planes(frame), _planes(own), strict=True))
        squares = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
        size = sum(a.size for a, _ in pairs)
        yield 10 * math.log10(top * top * size / squares) if squares else math.inf


def name_record(metadata: MutableMapping[str, str], digest: str) -> None:
    """Name the record of a result in its metadata; the name of another one, copied from the source, is removed.

    Args:
        metadata: That of the result, with what was copied from the source.
        digest: The record's sha256, hexadecimal; empty for a result without a record.
    """
    key = next((key for key in metadata if key.lower() == _KEY), _KEY)
    found = metadata.get(key, "")
    kept = []
    for line in found.splitlines():
        rest = _NAME.sub("", line).strip() if _NAME.search(line) else line
        if rest or not line:
            kept.append(rest)
    if digest:
        kept.append(f"genai-ray record sha256:{digest}")
    if kept != found.splitlines():
        metadata.pop(key, None)
        if kept:
            metadata[key] = "\n".join(kept)


def read_record_name(path: str) -> str:
    """Read which record a file names.

    Args:
        path: Path or URI of the file.

    Returns:
        The record's sha256, hexadecimal; empty if the file names none.

    Raises:
        VideoError: If the file is not a video.
    """
    with open_video(path) as container:
        comments = [value for key, value in container.metadata.items() if key.lower() == _KEY]
    found = [name for comment in comments for name in _NAME.findall(comment)]
    return found[-1] if found else ""


def _add(digest: Any, frame: av.VideoFrame) -> None:
    digest.update(_describe(frame).encode())
    for plane in _planes(frame):
        digest.update(f"{plane.shape[1]}x{plane.shape[0]}".encode())
        digest.update(np.ascontiguousarray(plane))


def _describe(frame: av.VideoFrame) -> str:
    return f"{frame.width}x{frame.height} {frame.format.components[0].bits}"


def _planes(frame: av.VideoFrame) -> Iterator[npt.NDArray[Any]]:
    """Give the stored values of each plane, (rows, values), without padding; of packed formats all in one."""
    parts = frame.format.components
    dtype = np.dtype("<u2" if parts[0].bits > 8 else "u1")
    for plane in frame.planes:
        buffer: Any = plane
        rows = np.frombuffer(buffer, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
        yield rows[:, : plane.width * (1 if frame.format.is_planar else len(parts))]
