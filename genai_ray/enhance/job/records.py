"""What is known of finished videos: the record of one, and the marker by which a job that was killed knows its own result again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_ray.enhance.job.report import VideoReport
from genai_ray.enhance.job.segment_store import remove_folder
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.files import discard, find_facts, is_remote, join_place, open_to_read, publish, remove, temporary_folder

__all__ = ["MARKER", "Record", "forget", "read_marker", "write_marker"]

MARKER = "published.json"
"""Written in the work folder before a result is published: a job that was killed then knows its own file again."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a finished video."""

    report: VideoReport
    """What was done."""
    key: str
    """Input, models and options: what it was done under."""
    size: int
    """Bytes of the result."""
    stamp: str
    """Version of the result, see ``files.FileFacts``."""


def forget(targets: Sequence[ClipTarget]) -> None:
    """Remove the markers of results that have been recorded, and their work folders.

    Args:
        targets: Whose.

    Raises:
        VideoError: If a store fails.
    """
    for remote in (False, True):
        chosen = [target.work_dir for target in targets if is_remote(target.work_dir) is remote]
        remove(join_place(folder, MARKER) for folder in chosen)
        for folder in chosen:
            remove_folder(folder)


def write_marker(target: ClipTarget, record: Record) -> None:
    """Write beside a result, before it is published, whose it is.

    Args:
        target: The video.
        record: What will be recorded.

    Raises:
        VideoError: If it cannot be written.
    """
    with temporary_folder("marker") if is_remote(target.work_dir) else nullcontext(target.work_dir) as folder:
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".partial", delete=False) as file:
            json.dump(
                {"key": record.key, "size": record.size, "stamp": record.stamp, "report": _plain(record.report)}, file
            )
        try:
            publish(Path(file.name), join_place(target.work_dir, MARKER))
        finally:
            discard(Path(file.name))


def read_marker(target: ClipTarget) -> Record | None:
    """Read what a job that was killed has published.

    Args:
        target: The video.

    Returns:
        Its record; None if there is no marker, or none that can be read.

    Raises:
        VideoError: If the store fails.
    """
    place = join_place(target.work_dir, MARKER)
    if find_facts(place) is None:
        return None
    with open_to_read(place) as file:
        content = file.read()
    with suppress(ValueError, TypeError, KeyError, AttributeError):  # else it is not what was written, and says nothing
        found = json.loads(content)
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found["report"].items()
        }
        return Record(VideoReport(**told), str(found["key"]), int(found["size"]), str(found["stamp"]))
    return None


def _plain(report: VideoReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in VideoReport.__slots__}
