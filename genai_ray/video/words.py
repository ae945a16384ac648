"""What a file says of itself in words: titles, languages, places, makers. What a result has no place for is said."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

__all__ = ["TECHNICAL_WORDS", "describe_lost_words", "read_words"]

TECHNICAL_WORDS = ("encoder", "major_brand", "minor_version", "compatible_brands")
"""Words about how a file was written, which a result has of its own."""

_NOT_MISSED = (*TECHNICAL_WORDS, "duration", "software")

_TRACK_WORDS = ("title", "language")
"""What a person sees of a track when choosing one."""

_UNKNOWN = ("", "und")
"""Languages that are none."""


def read_words(stream: Any) -> dict[str, str]:
    """Read what a track says of itself.

    Args:
        stream: The track.

    Returns:
        Its metadata; a title that MP4 and MOV call name is a title.
    """
    words = dict(stream.metadata)
    if "title" not in words and "name" in words:
        words["title"] = words.pop("name")
    return words


def describe_lost_words(source: InputContainer, tracks: Collection[int], result: Path) -> Iterator[str]:
    """Say which words of a source are not in its result.

    Args:
        source: The source, open.
        tracks: Indices of those of its streams that are in the result, in the same order.
        result: The finished file.

    Yields:
        One sentence for the file, and one a track.

    Raises:
        av.FFmpegError: If the result does not open.
    """
    name = "matroska" if result.suffix.lower() == ".mkv" else result.suffix[1:].lower()
    with av.open(str(result)) as box:
        there = {key.lower() for key in box.metadata}
        lost = sorted(key for key in source.metadata if key.lower() not in there and key.lower() not in _NOT_MISSED)
        if lost:
            yield f"metadata {', '.join(lost)} was left out: {name} has no place for it"
        for kind in ("video", "audio", "subtitle"):
            copied = (stream for stream in source.streams if stream.index in tracks and _is_track(stream, kind))
            for stream, copy in zip(
                copied, (stream for stream in box.streams if _is_track(stream, kind)), strict=False
            ):
                before, after = read_words(stream), read_words(copy)
                for word in _TRACK_WORDS:
                    value = before.get(word, "")
                    if value not in _UNKNOWN and after.get(word) != value:
                        yield f"{word} {value!r} of {kind} stream {stream.index} was left out: {name} has no place for it"


def _is_track(stream: Any, kind: str) -> bool:
    return bool(stream.type == kind) and not stream.disposition & Disposition.attached_pic
