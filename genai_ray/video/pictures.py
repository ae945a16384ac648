"""Frames as files of their own: the packets of PNG and JPEG segments are those files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from genai_ray.errors import ConfigError, VideoError
from genai_ray.video.container import av_errors, open_video
from genai_ray.video.info import main_stream
from genai_ray.video.plan import VideoPlan

__all__ = ["FIRST_NUMBER", "describe_leftovers", "folder_of_pictures", "read_pictures", "write_pictures"]

FIRST_NUMBER = 1
"""Of the first frame in a file's name, as FFmpeg counts."""

_NUMBER = re.compile(r"%(0\d+)?d")


def folder_of_pictures(output: Path) -> Path:
    """Check the pattern of frames' names and return the folder that they go to.

    Args:
        output: Such as ``frames/%06d.png``.

    Returns:
        The folder.

    Raises:
        ConfigError: If the name has not exactly one number, such as %06d, or the folder's name has one.
    """
    if len(_NUMBER.findall(output.name)) != 1 or output.name.count("%") != 1 or "%" in str(output.parent):
        raise ConfigError(
            f"{output} for frames", f"one number in the name of the file, such as frames/%06d{output.suffix}"
        )
    return output.parent


def write_pictures(plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int], output: Path) -> tuple[str, ...]:
    """Write every frame as a file; the folder appears under its name when all of them are there.

    Args:
        plan: The planned video.
        parts: The segments' files in order, of PNG or JPEG packets.
        counts: Frames in each of them.
        output: Pattern of the names; its folder is replaced when it exists.

    Returns:
        Notes: what pictures have no place for.

    Raises:
        VideoError: If a part does not hold its frames, or writing fails.
    """
    folder = folder_of_pictures(output)
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    with av_errors(plan.path, f"writing its frames in {folder.parent}"):
        _remove(partial)
        partial.mkdir()
        try:
            number = FIRST_NUMBER
            for part, count in zip(parts, counts, strict=True):
                packets = _packets(plan, part, count) if count else []
                for packet in packets:
                    (partial / (output.name % number)).write_bytes(packet)
                    number += 1
            _remove(old)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            _remove(old)
        finally:
            _remove(partial)
    steps = {after - before for before, after in zip(plan.pts, plan.pts[1:], strict=False)}
    is_timed = len(steps) > 1 and max(steps) - min(steps) > 1
    return (
        *describe_leftovers(plan, "a folder of frames"),
        *(["times were left out: those of the source vary, files have none"] if is_timed else []),
    )


def read_pictures(plan: VideoPlan, part: Path, count: int) -> Iterator[npt.NDArray[Any]]:
    """Decode a segment of PNG packets.

    Args:
        plan: The planned video.
        part: The segment's file.
        count: Frames in it.

    Yields:
        Arrays (H, W, 3) or (H, W, 4), uint8 or uint16, C-contiguous.

    Raises:
        VideoError: If the part does not hold its frames.
    """
    found = 0
    with av_errors(part, "reading"), av.open(str(part)) as box:
        for frame in box.decode(box.streams.video[0]):
            found += 1
            yield np.ascontiguousarray(frame.to_ndarray())
    if found != count:
        raise VideoError(f"{plan.path}: a segment holds {found} frames", f"{count}", "Remove the work folder.")


def describe_leftovers(plan: VideoPlan, place: str) -> Iterator[str]:
    """Say which streams of a source a result without a container has no place for.

    Args:
        plan: The planned video.
        place: What the result is, in words.

    Yields:
        One sentence a stream.

    Raises:
        VideoError: If the file does not open.
    """
    with open_video(plan.path, any_format=plan.any_format) as container:
        for stream in container.streams:
            if stream.index != main_stream(container).index:
                yield f"{stream.type} stream {stream.index} was left out: {place} has none"


def _packets(plan: VideoPlan, part: Path, count: int) -> Iterator[bytes]:
    found = 0
    with av.open(str(part)) as box:
        for packet in box.demux(box.streams.video[0]):
            if packet.size:
                found += 1
                yield bytes(packet)
    if found != count:
        raise VideoError(f"{plan.path}: a segment holds {found} frames", f"{count}", "Remove the work folder.")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
