"""How far a job is: counts that the scheduler and the sessions know, and the time left that follows from them."""

from __future__ import annotations

import threading
import time

from genai_ray.enhance.job.clip_plan import Begun
from genai_ray.enhance.job.report import Progress

__all__ = ["Meter"]


class Meter:
    """Counts of one job; told by the scheduler's thread, asked by another one.

    Args:
        clips: Videos of the job.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self.first: Begun | None = None
        """The first video that had segments to do."""
        self._lock = threading.Lock()
        self._begun = self._unplanned = self._ended = self._failed = 0
        self._planned = self._reused = self._fresh = 0
        self._first_at: float | None = None

    def begin(self, begun: Begun) -> None:
        """Count a video that has been planned.

        Args:
            begun: What came of it.
        """
        with self._lock:
            self._begun += 1
            skipped = begun.record.report.frames if begun.record is not None and not begun.frames else 0
            self._planned += begun.frames + skipped
            self._reused += begun.frames_reused + skipped
            self._fresh += sum(result.frames for result in begun.results)
            if self.first is None and (begun.todo or begun.results):
                self.first = begun

    def add_frames(self, frames: int) -> None:
        """Count a segment that is done.

        Args:
            frames: Its frames.
        """
        with self._lock:
            self._fresh += frames

    def end(self, *, is_failed: bool, was_begun: bool) -> None:
        """Count a video that has ended.

        Args:
            is_failed: Whether it failed.
            was_begun: Whether it was planned before.
        """
        with self._lock:
            self._ended += 1
            self._failed += is_failed
            self._unplanned += not was_begun

    def read(self, computed: int) -> Progress:
        """Return how far the job is.

        Args:
            computed: Frames that the sessions say they have computed for it, those of unfinished segments included.

        Returns:
            The counts; the time left is that of all frames at the speed since the first one.
        """
        with self._lock:
            now, fresh = time.monotonic(), max(self._fresh, computed)
            to_begin = self.clips - self._begun - self._unplanned
            expected = self._planned / self._begun * to_begin if self._begun else 0
            total = self._planned + round(expected)
            done = min(self._reused + fresh, total)
            if fresh and self._first_at is None:
                self._first_at = now
            seconds = now - self._first_at if self._first_at is not None else 0.0
            left = (total - done) * seconds / fresh if fresh and seconds > 1.0 and self._begun else None
            stage = "joining" if total and done >= total else "enhancing" if done else "starting"
            return Progress(done, total, stage, self._ended, self.clips, self._failed, left)
