"""``results.parquet``: one row a video, written as videos end, and read by the same command when it is run again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from genai_ray.enhance.job.records import Record, forget
from genai_ray.enhance.job.report import ModelUse, VideoReport
from genai_ray.enhance.job.scheduler import Ended
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.errors import VideoError
from genai_ray.files import join_place
from genai_ray.tables import ResultTable

__all__ = ["RESULTS_NAME", "Results"]

_log = logging.getLogger(__name__)

RESULTS_NAME = "results.parquet"

FLUSH_EVERY_S = 2.0

FLUSH_SHARE = 20
"""Writing takes at the most about one in this many seconds, however long the table."""

_COLUMNS = {
    **dict.fromkeys(("uri", "output", "status", "error_class", "error"), "string"),
    "frames": "int64",
    "seconds": "float64",
    **dict.fromkeys(("backend", "precision", "device_kind"), "string"),
    "precision_db": "float64",
    **dict.fromkeys(("segments", "segments_reused"), "int64"),
    "share_outside_rgb": "float64",
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
        ConfigError: If there is another file of that name.
    """

    def __init__(self, folder: str) -> None:
        self.place = join_place(folder, RESULTS_NAME)
        self._table = ResultTable(self.place, _COLUMNS, "output")
        names = ("output", "status", "key", "size", "stamp", "frames", "uri")
        self._known = {row[0]: row[1:] for row in self._table.earlier(names) if row[3] is not None}
        self._rows: list[dict[str, Any]] = []
        self._done: list[ClipTarget] = []
        self._flushed_at, self._flush_s = time.monotonic(), 0.0

    def recorded(self, output: str) -> Record | None:
        """Return what an earlier job has recorded of an output.

        Args:
            output: Its place.

        Returns:
            The record; its key is empty where a later try failed and left the older file. None where nothing is known.
        """
        if _text(output) not in self._known:
            return None
        status, key, size, stamp, frames, uri = self._known[_text(output)]
        report = VideoReport(uri, output, frames or 0, frames or 0, (0, 0), (0, 0))
        return Record(report, key if status == "done" else "", size, stamp)

    def add(self, ended: Ended, uses: Sequence[ModelUse], precision_db: float | None) -> None:
        """Note the end of a video; the file follows with this or one of the next ones, at the latest with the end of the job.

        Args:
            ended: The video.
            uses: The chain, as it ran; empty where it did not.
            precision_db: PSNR of its precision from FP32, where that was measured.
        """
        record, known = ended.record, self.recorded(ended.target.output)
        if record is not None and record.report.status == "skipped" and known is not None and known.key == record.key:
            return
        row: dict[str, Any] = {"uri": _text(ended.target.source), "output": _text(ended.target.output)}
        if record is None:
            row |= {
                "status": "failed",
                "error_class": type(ended.error).__name__,
                "error": _text(str(ended.error)),
                "segments": ended.segments,
                "key": "",
            }
            if known is not None:  # the older result is still there, and still ours
                row |= {"size": known.size, "stamp": known.stamp}
        else:
            report = record.report
            row |= {
                "status": "done",
                "frames": report.frames,
                "seconds": report.seconds,
                "notes": [_text(note) for note in report.notes],
            }
            row |= {
                "segments": report.segments,
                "segments_reused": report.segments_reused,
                "share_outside_rgb": report.share_outside_rgb,
            }
            row |= {"key": record.key, "size": record.size, "stamp": record.stamp}
            self._done.append(ended.target)
        if uses:
            row |= {"backend": _join(use.backend for use in uses), "precision": _join(use.precision for use in uses)}
            row |= {
                "device_kind": _join(kind for use in uses for kind in use.device_kind.split("+")),
                "precision_db": precision_db,
            }
        self._rows.append(row)
        if time.monotonic() - self._flushed_at > max(FLUSH_EVERY_S, FLUSH_SHARE * self._flush_s):
            try:
                self.flush()
            except VideoError as exc:
                _log.warning("%s; the rows follow with the next ones", exc)

    def flush(self) -> None:
        """Bring the file up to date, then remove the marks by which unrecorded results are known.

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


def _join(words: Any) -> str:
    return "+".join(dict.fromkeys(words))
