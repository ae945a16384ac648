"""``results.parquet``: one row for each video, written as videos end; the same job run again reads it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from genai_ray.enhance.job.clip_outcome import ClipOutcome, forget
from genai_ray.enhance.job.report import ModelUse
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.errors import VideoError
from genai_ray.files import join_place

__all__ = ["RESULTS_NAME", "Results"]

_log = logging.getLogger(__name__)

RESULTS_NAME = "results.parquet"

FLUSH_EVERY_S = 2.0

FLUSH_SHARE = 20
"""Writing takes at most about one in this many seconds, however long the table is."""

_COLUMNS = {
    **dict.fromkeys(("uri", "output", "status", "error_class", "error"), "string"),
    "frames": "int64",
    "seconds": "float64",
    **dict.fromkeys(("backend", "precision", "device_kind"), "string"),
    "precision_db": "float64",
    **dict.fromkeys(("segments", "segments_reused"), "int64"),
    "share_outside_rgb": "float64",
    **dict.fromkeys(("frames_checked", "segments_recomputed", "segments_failed"), "int64"),
    "notes": "list",
    "key": "string",
    "size": "int64",
    "stamp": "string",
}


class Results:
    """The table of one job's output folder.

    Args:
        folder: Path or URI of the folder.

    Raises:
        ConfigError: If a file of that name is no such table.
    """

    def __init__(self, folder: str) -> None:
        from genai_ray.tables import ResultTable  # noqa: PLC0415 - Arrow takes 0.15 s, and one video needs none

        self.place = join_place(folder, RESULTS_NAME)
        self._table = ResultTable(self.place, _COLUMNS, "output")
        names = ("output", "status", "key", "size", "stamp", "frames", "uri")
        self._known = {row[0]: row[1:] for row in self._table.earlier(names) if row[3] is not None}
        self._rows: list[dict[str, Any]] = []
        self._done: list[ClipTarget] = []
        self._flushed_at = time.monotonic()
        self._flush_s = 0.0

    def recorded(self, output: str) -> ClipOutcome | None:
        """Return what an earlier job has recorded for an output.

        Args:
            output: Its place.

        Returns:
            The outcome, or None; its key is empty if a later try failed and left the older file.
        """
        row = self._known.get(_text(output))
        if row is None:
            return None
        status, key, size, stamp, frames, uri = row
        key = key if status == "done" else ""
        return ClipOutcome(uri, output, frames or 0, frames or 0, key=key, size_bytes=size, stamp=stamp)

    def add(
        self, target: ClipTarget, outcome: ClipOutcome, uses: Sequence[ModelUse], precision_db: float | None
    ) -> None:
        """Record a video; the file follows with this or one of the next calls, at the latest at the end of the job.

        Args:
            target: The video.
            outcome: What became of it.
            uses: The chain, as it ran; empty if it did not.
            precision_db: PSNR of its precision from FP32, if that was measured.
        """
        known = self.recorded(target.output)
        if outcome.status == "skipped" and known is not None and known.key == outcome.key:
            return
        row: dict[str, Any] = {
            "uri": _text(target.source),
            "output": _text(target.output),
            "segments": outcome.segments,
            "frames_checked": outcome.frames_checked,
            "segments_recomputed": outcome.segments_recomputed,
            "segments_failed": outcome.segments_failed,
            "key": outcome.key,
        }
        if outcome.status == "failed":
            row |= {"status": "failed", "error_class": outcome.error_class, "error": _text(outcome.error)}
            if known is not None:  # the older result still exists, and is still the job's
                row |= {"size": known.size_bytes, "stamp": known.stamp}
        else:
            row |= {
                "status": "done",
                "frames": outcome.frames,
                "seconds": outcome.seconds,
                "notes": [_text(note) for note in outcome.notes],
                "segments_reused": outcome.segments_reused,
                "share_outside_rgb": outcome.share_outside_rgb,
                "size": outcome.size_bytes,
                "stamp": outcome.stamp,
            }
            self._done.append(target)
        if uses:
            row |= {
                "backend": _join(use.backend for use in uses),
                "precision": _join(use.precision for use in uses),
                "device_kind": _join(kind for use in uses for kind in use.device_kind.split("+")),
                "precision_db": precision_db,
            }
        if uses and outcome.way not in ("", *(f"{use.backend} {use.precision}" for use in uses)):
            backend, precision = outcome.way.split()  # it was begun so by an earlier job
            row |= {"backend": backend, "precision": precision, "precision_db": None}
        self._rows.append(row)
        if time.monotonic() - self._flushed_at > max(FLUSH_EVERY_S, FLUSH_SHARE * self._flush_s):
            try:
                self.flush()
            except VideoError as exc:
                _log.warning("%s; the rows follow with the next ones", exc)

    def flush(self) -> None:
        """Bring the file up to date, then remove the markers of results that were not recorded before.

        Raises:
            VideoError: If it cannot be written.
        """
        started = time.monotonic()
        if self._rows:
            self._table.add(self._rows)
            self._rows = []
        forget(self._done)
        self._done = []
        self._flushed_at = time.monotonic()
        self._flush_s = self._flushed_at - started


def _text(words: str) -> str:
    r"""Write bytes of a file's name that are no UTF-8 as ``\udcxx``: a table has no such strings."""
    return words.encode("utf-8", "backslashreplace").decode()


def _join(words: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(words))
