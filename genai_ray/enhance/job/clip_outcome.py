"""``ClipOutcome``: what became of one video; and the marker that tells a job which results are its own.

A marker is written in the work folder before the result is published. A job that was killed between publishing and
recording in ``results.parquet`` finds it there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from genai_ray.display import describe_fields
from genai_ray.enhance.job.segment_store import remove_folder
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.segment.segment import SegmentResult
from genai_ray.files import (
    FileFacts,
    discard,
    find_facts,
    is_remote,
    join_place,
    open_to_read,
    publish,
    remove,
    temporary_folder,
)

__all__ = ["MARKER", "ClipOutcome", "forget", "read_marker", "write_marker"]

MARKER = "published.json"

_INTERNAL = ("key", "results", "exception")
"""Fields for later steps and later jobs: not in ``to_dict``."""


@describe_fields
@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """What became of one video of a job."""

    source: str
    """Path or URI of the input."""
    output: str
    """Path or URI of the result."""
    frames: int = 0
    """Frames in the result."""
    frames_expected: int = 0
    """Frames that the input's own index promises; more than ``frames`` only for a truncated input that was allowed."""
    size_in: tuple[int, int] = (0, 0)
    """(width, height) of the input in pixels."""
    size_out: tuple[int, int] = (0, 0)
    """(width, height) of the result in pixels."""
    size_made: tuple[int, int] = (0, 0)
    """(width, height) of what the models made, which was resampled to the result if a size was asked for."""
    begins_s: float = 0.0
    """When the piece that was asked for begins in the input, in seconds of a player's clock; 0 for all of it."""
    notes: tuple[str, ...] = ()
    """What a person should know: assumed colour, streams that the container could not take, a truncated input."""
    status: str = "done"
    """``done``, ``skipped`` (an earlier job of the same kind had done it) or ``failed``."""
    error: str = ""
    """Why it failed."""
    error_class: str = ""
    """Class of that error."""
    seconds: float = 0.0
    """From the start of planning to the published file."""
    segments: int = 0
    """Segments of its plan."""
    segments_reused: int = 0
    """Segments that an earlier, interrupted job had finished."""
    share_outside_rgb: float | None = None
    """Share of the source's pixels, from 0 to 1, outside the RGB gamut: they cannot stay as they are. Measured on one
    frame of 32 of the segments that were made now; None if there was none."""
    frames_checked: int = 0
    """Frames of the result that were compared with those of the source, of the segments that were made now."""
    segments_recomputed: int = 0
    """Finished segments that had wrong frames, and were computed again in FP32 by ONNX Runtime, of those made now."""
    segments_failed: int = 0
    """Segments that still had wrong frames then."""
    way: str = ""
    """Runtime and number format of a video made with backend ``auto``, such as ``openvino fp32``; else empty."""
    record: str = ""
    """Path or URI of its record; empty without one, see ``check`` of ``EnhanceOptions``."""
    key: str = ""
    """Hash of the input, models and options that it was made from; not in ``to_dict``."""
    size_bytes: int = 0
    """Size of the result; of frames as files, of their folder's entry. 0 if there is none."""
    stamp: str = ""
    """Version of the result: nanoseconds of its last change, or the store's version tag. With its size it tells whether
    a file is this result, or was made anew since."""
    results: tuple[SegmentResult, ...] = field(default=(), compare=False, repr=False)
    """What became of the segments that this job made; not in ``to_dict``."""
    exception: BaseException | None = field(default=None, compare=False, repr=False)
    """The error itself; not in ``to_dict``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain values, fit for JSON.

        Returns:
            The fields by name.
        """
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _INTERNAL}

    def is_of(self, there: FileFacts) -> bool:
        """Tell whether a file is the result of this outcome.

        Args:
            there: Size and version of the file.

        Returns:
            Whether both are the same; a version that was not recorded fits any.
        """
        return self.size_bytes == there.size and (not self.stamp or self.stamp == there.stamp)


def write_marker(target: ClipTarget, outcome: ClipOutcome) -> None:
    """Write the marker of a result, before it is published.

    Args:
        target: The video.
        outcome: What will be recorded.

    Raises:
        VideoError: If it cannot be written.
    """
    content = {"key": outcome.key, "report": outcome.to_dict()}
    with temporary_folder("marker") if is_remote(target.work_dir) else nullcontext(target.work_dir) as folder:
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".partial", delete=False) as file:
            json.dump(content, file)
        try:
            publish(Path(file.name), join_place(target.work_dir, MARKER))
        finally:
            discard(Path(file.name))


def read_marker(target: ClipTarget) -> ClipOutcome | None:
    """Read the marker of a result.

    Args:
        target: The video.

    Returns:
        The outcome; None if there is no marker, or it cannot be read.

    Raises:
        VideoError: If the store fails.
    """
    place = join_place(target.work_dir, MARKER)
    if find_facts(place) is None:
        return None
    with open_to_read(place) as file:
        content = file.read()
    with suppress(ValueError, TypeError, KeyError, AttributeError):  # a damaged marker counts as none
        found = json.loads(content)
        report: dict[str, Any] = found["report"]
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in report.items()
        }
        outcome = ClipOutcome(**told, key=str(found["key"]))
        if outcome.to_dict().keys() == report.keys():
            return outcome
    return None


def forget(targets: Sequence[ClipTarget]) -> None:
    """Remove the markers of results that are recorded, and their work folders.

    Args:
        targets: The videos.

    Raises:
        VideoError: If a store fails.
    """
    for remote in (False, True):
        folders = [target.work_dir for target in targets if is_remote(target.work_dir) is remote]
        remove(join_place(folder, MARKER) for folder in folders)
        for folder in folders:
            remove_folder(folder)
