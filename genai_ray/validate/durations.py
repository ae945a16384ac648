"""How long each frame of a candidate took to make: from what ``enhance`` has written beside it.

``CANDIDATE.report.json`` is what ``enhance --json`` prints, kept under this name; ``results.parquet`` is the table of a
job with a folder as output. Both are only believed if they are of this very file: of its size and its last change, as
the job recorded them. A clip that was made anew under its old name has another time, whatever it holds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from genai_ray.errors import GenAIRayError, InvalidInputError
from genai_ray.files import FileFacts, find_facts, join_place, open_to_read
from genai_ray.tables import iter_rows

__all__ = ["REPORT_SUFFIX", "check_durations", "find_duration"]

REPORT_SUFFIX = ".report.json"
"""Suffix of the report of a job: it is named after the result."""

RESULTS_NAME = "results.parquet"

_OF_ANOTHER = "it is of another file of this name: size or last change differ (a copy by cp -p keeps both)"

_MAX_REPORT_BYTES = 64 * 1024**2

_BROKEN = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)
"""What reading a report raises if it has another form."""


def check_durations(given: Sequence[float | None] | None, count: int) -> list[float | None]:
    """Check the seconds per frame that a caller gives.

    Args:
        given: One for each candidate, None for one that is not known; or None.
        count: Candidates.

    Returns:
        As many numbers; None for those that are not known.

    Raises:
        InvalidInputError: If there are not as many, or one is no finite number above 0.
    """
    if given is None:
        return [None] * count
    if len(given) != count:
        raise InvalidInputError(f"{len(given)} seconds per frame for {count} candidates", "one for each candidate")
    for seconds in given:
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise InvalidInputError(f"{seconds} seconds per frame", "a finite number above 0, or None if not known")
    return list(given)


def find_duration(candidate: str, frames: int) -> tuple[float | None, str]:
    """Find how long each frame of a result took.

    Args:
        candidate: Path or URI of the result.
        frames: Its frames.

    Returns:
        Seconds per frame, and the file that says so; None and why nothing is known, or an empty text if nothing lies
        beside it.
    """
    report = candidate + REPORT_SUFFIX
    table = join_place(_folder_of(candidate), RESULTS_NAME)
    reason = ""
    for place, read in ((report, _read_report), (table, _read_row)):
        try:
            if find_facts(place) is None:  # it raises for a name that is too long, or a URI that only opens one file
                continue
            seconds, why = read(place, candidate, frames, find_facts(candidate))
        except (GenAIRayError, OSError, *_BROKEN) as exc:
            seconds, why = None, f"it cannot be read ({exc})"
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            seconds, why = None, f"it has {seconds} seconds"
        if seconds is not None:
            return seconds, place
        if why:
            reason = reason or f"{place} does not tell seconds per frame: {why}"
    return None, reason


def _read_report(place: str, candidate: str, frames: int, facts: FileFacts | None) -> tuple[float | None, str]:
    with open_to_read(place) as file:
        report: Mapping[str, Any] = json.loads(file.read(_MAX_REPORT_BYTES))
    name = os.path.basename(candidate)
    videos = [video for video in report["videos"] if os.path.basename(str(video["output"])) == name]
    if len(videos) != 1:
        return None, f"it has {len(videos)} videos named {name}"
    (video,) = videos
    if int(video["frames"]) != frames:
        return None, f"its video has {video['frames']} frames, the candidate {frames}"
    if not _is_of(facts, video.get("size_bytes"), video.get("stamp")):
        return None, _OF_ANOTHER
    if len(report["videos"]) == 1 and float(report["fps"]) > 0:
        return 1 / float(report["fps"]), ""
    return _divide(float(video["seconds"]), int(video["segments_reused"]), frames)


def _read_row(place: str, candidate: str, frames: int, facts: FileFacts | None) -> tuple[float | None, str]:
    name = os.path.basename(candidate)
    for row in iter_rows(place):
        if os.path.basename(str(row["output"])) != name or row["status"] != "done":
            continue
        if row["frames"] != frames or not _is_of(facts, row.get("size"), row.get("stamp")):
            return None, _OF_ANOTHER
        return _divide(row["seconds"], row["segments_reused"] or 0, frames)
    return None, ""


def _is_of(facts: FileFacts | None, size: object, stamp: object) -> bool:
    """Tell whether a file is the one that a job recorded; a store need not tell both facts, but one."""
    if facts is None:
        return False
    known: list[tuple[object, object]] = [(size, facts.size)] if facts.size >= 0 else []
    known += [(stamp, facts.stamp)] if facts.stamp else []
    return bool(known) and all(told == now for told, now in known)


def _divide(seconds: float, reused: int, frames: int) -> tuple[float | None, str]:
    if reused:
        return None, f"{reused} segments were made by an earlier job"
    return (seconds / frames, "") if seconds > 0 else (None, "it has no time")


def _folder_of(candidate: str) -> str:
    return candidate.rpartition("/")[0] if "://" in candidate else os.path.dirname(os.path.abspath(candidate))
