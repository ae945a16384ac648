"""Metadata of a file and of its tracks: what a track says of itself, and what a result has lost of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

__all__ = ["TECHNICAL_KEYS", "describe_lost_metadata", "read_metadata"]

TECHNICAL_KEYS = ("encoder", "major_brand", "minor_version", "compatible_brands")
"""Metadata about how a file was written; a result has its own."""

_IGNORED_KEYS = (*TECHNICAL_KEYS, "duration", "software")

_TRACK_KEYS = ("title", "language")
"""Metadata by which a person chooses a track."""

_UNKNOWN = ("", "und")
"""Values that mean no language."""


def read_metadata(stream: Any) -> dict[str, str]:
    """Read the metadata of a track.

    Args:
        stream: The track.

    Returns:
        Its metadata; MP4's and MOV's ``name`` becomes ``title``.
    """
    metadata = dict(stream.metadata)
    if "title" not in metadata and "name" in metadata:
        metadata["title"] = metadata.pop("name")
    return metadata


def describe_lost_metadata(source: InputContainer, tracks: Collection[int], result: Path) -> Iterator[str]:
    """Say which metadata of a source is missing in its result.

    Args:
        source: The source, open.
        tracks: Indices of its streams that are in the result, in the same order.
        result: The finished file.

    Yields:
        One sentence for the file, and one for each track.

    Raises:
        av.FFmpegError: If the result does not open.
    """
    name = "matroska" if result.suffix.lower() == ".mkv" else result.suffix[1:].lower()
    with av.open(str(result)) as box:
        there = {key.lower() for key in box.metadata}
        lost = sorted(key for key in source.metadata if key.lower() not in there and key.lower() not in _IGNORED_KEYS)
        if lost:
            yield f"metadata {', '.join(lost)} was left out: {name} cannot hold it"
        for kind in ("video", "audio", "subtitle"):
            copied = (stream for stream in source.streams if stream.index in tracks and _is_track(stream, kind))
            for stream, copy in zip(
                copied, (stream for stream in box.streams if _is_track(stream, kind)), strict=False
            ):
                before = read_metadata(stream)
                after = read_metadata(copy)
                for word in _TRACK_KEYS:
                    value = before.get(word, "")
                    if value not in _UNKNOWN and after.get(word) != value:
                        yield f"{word} {value!r} of {kind} stream {stream.index} was left out: {name} cannot hold it"


def _is_track(stream: Any, kind: str) -> bool:
    return bool(stream.type == kind) and not stream.disposition & Disposition.attached_pic
