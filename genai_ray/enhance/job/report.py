"""What an ``enhance`` job says of itself: how far it is while it runs, and its report at the end."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from genai_ray.display import describe_fields, format_count, to_html
from genai_ray.enhance.job.choice import Choice
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.clip_plan import ClipPlan
from genai_ray.enhance.segment.segment import SegmentResult

__all__ = ["EnhanceReport", "ModelUse", "Progress", "ProgressMeter"]

SPEED_AFTER_S = 2.0
"""The time left is reported once the speed has been measured for this long."""

SMOOTH_S = 5.0
"""Time constant of the smoothing of the end: of a change, 63 % is told after this time."""

MAX_NOTES = 100
"""Notes that are kept until they are told, the last ones."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """One model of the chain, as it really ran."""

    model_id: str
    """Canonical id, or the path that it was given by."""
    backend: str
    """The runtime."""
    precision: str
    """The number format of the weights."""
    device: str
    """Where it computed; ``none`` if everything was done before."""
    device_kind: str = ""
    """Kinds of the devices that have it at the end, joined by ``+``: ``cpu``, or the name of the accelerator, such as
    ``NVIDIA L4``."""


@describe_fields
@dataclass(frozen=True, slots=True)
class EnhanceReport:
    """The whole job; ``to_dict`` is what ``--json`` prints."""

    frames: int
    """Frames in all results."""
    fps: float
    """``frames`` per second from the first decoded frame to the last closed file; 0 if every segment was reused."""
    elapsed_s: float
    """Seconds from the call to the last published file; the command line adds the time in which its process started."""
    startup_s: float
    """The part of ``elapsed_s`` before the first decoded frame."""
    outputs: tuple[str, ...]
    """Paths of the results."""
    segments: int
    """Segments of all videos."""
    segments_reused: int
    """Segments that an earlier, interrupted job had finished."""
    frames_inferred: int
    """Frames that went through ``BatchInference``, once for each model of the chain."""
    models: tuple[ModelUse, ...]
    """The chain."""
    videos: tuple[ClipOutcome, ...]
    """One entry for each input, in order; of jobs of more than 1,000 videos those that failed (``results`` has all)."""
    frames_checked: int = 0
    """Frames that were compared with those of the source, of the segments that were made now; see ``check``."""
    segments_recomputed: int = 0
    """Finished segments that had wrong frames, and were computed again in FP32 by ONNX Runtime, of those made now."""
    segments_failed: int = 0
    """Segments that still had wrong frames then; their videos failed."""
    clips: int = 1
    """Videos of the job."""
    clips_skipped: int = 0
    """Videos that an earlier job of the same kind had done."""
    clips_failed: int = 0
    """Videos that failed."""
    results: str | None = None
    """Place of ``results.parquet``; None for a job of one file."""
    choice: Choice | None = None
    """What backend ``auto`` has chosen; None for another backend, or if nothing was to be done."""

    def __repr__(self) -> str:
        done = f"{format_count(self.clips, 'video')}, {self.clips_failed} failed, {format_count(self.frames, 'frame')}"
        return f"EnhanceReport({done}, {self.fps:.1f} frames/s, {self.elapsed_s:.1f} s)"

    def _repr_html_(self) -> str:
        models = (f"{one.model_id} ({one.backend}, {one.precision}, {one.device})" for one in self.models)
        rows = [
            ("models", ", ".join(models)),
            ("outputs", ", ".join(self.outputs[:10]) + (", ..." if len(self.outputs) > 10 else "")),
            ("startup_s", f"{self.startup_s:.1f}"),
            ("segments", f"{self.segments}, {self.segments_reused} reused"),
        ]
        if self.results:
            rows.append(("results", self.results))
        return to_html(repr(self), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON.

        Returns:
            The fields by name, nested dataclasses as dictionaries.
        """
        return asdict(replace(self, videos=(), choice=None)) | {
            "videos": tuple(video.to_dict() for video in self.videos),
            "choice": self.choice.to_dict() if self.choice is not None else None,
        }


@describe_fields
@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, as a progress bar needs it."""

    frames_done: int
    """Frames enhanced or reused so far."""
    frames_total: int
    """Frames of the whole job; a video that is not planned yet counts as much as the others on average. 0 while none is
    planned."""
    stage: str
    """What it is doing: ``planning`` (reading packets), ``starting`` (Ray), ``measuring`` (for backend ``auto``),
    ``enhancing`` or ``joining``."""
    clips_done: int = 0
    """Videos that are done, skipped or failed."""
    clips_total: int = 1
    """Videos of the whole job."""
    clips_failed: int = 0
    """Videos that failed."""
    fps: float = 0.0
    """Frames made per second since the first decoded frame, as in the report; 0 before."""
    seconds_left: float | None = None
    """To the last frame of the whole job, smoothed over some seconds; None while it is not known."""
    notes: tuple[str, ...] = ()
    """What is known of videos that were planned since the last call, such as sound that will be encoded: each note
    with its file. The report has all notes."""


class ProgressMeter:
    """Counts of one job, written by the scheduler's thread and read by another one.

    Args:
        clips: Videos of the job.
        clock: Returns seconds since the epoch: the first decoded frame is noted by other processes.
    """

    def __init__(self, clips: int, clock: Callable[[], float] = time.time) -> None:
        self.first_plan: ClipPlan | None = None
        """The first video that has segments to make."""
        self._clips = clips
        self._clock = clock
        self._lock = threading.Lock()
        self._num_planned = 0
        self._num_unplanned = 0
        self._num_ended = 0
        self._num_failed = 0
        self._frames_planned = 0
        self._frames_reused = 0
        self._frames_made = 0
        self._untold: deque[str] = deque(maxlen=MAX_NOTES)
        self._first_at: float | None = None
        self._first_read: tuple[float, int] | None = None
        self._end = _SmoothEnd()

    def add_plan(self, plan: ClipPlan) -> None:
        """Count a video that is planned.

        Args:
            plan: Its plan.
        """
        with self._lock:
            self._num_planned += 1
            self._frames_planned += plan.frames
            self._frames_reused += plan.frames_reused
            self._untold.extend(f"{plan.target.source}: {note}" for note in plan.notes)
            if self.first_plan is None and plan.todo:
                self.first_plan = plan

    def add_outcome(self, outcome: ClipOutcome) -> None:
        """Count a video that was done or skipped in the same step in which it was planned.

        Args:
            outcome: What became of it.
        """
        made = sum(result.frames for result in outcome.results)
        with self._lock:
            self._num_planned += 1
            self._frames_planned += outcome.frames
            self._frames_reused += outcome.frames - made
        for result in outcome.results:
            self.add_segment(result)

    def add_segment(self, result: SegmentResult) -> None:
        """Count a segment that is done.

        Args:
            result: What became of it.
        """
        with self._lock:
            self._frames_made += result.frames
            self._first_at = min(result.started_at, self._first_at or result.started_at)

    def end(self, *, is_failed: bool, was_planned: bool) -> None:
        """Count a video that has ended.

        Args:
            is_failed: Whether it failed.
            was_planned: Whether it was counted before.
        """
        with self._lock:
            self._num_ended += 1
            self._num_failed += is_failed
            self._num_unplanned += not was_planned

    def read(self, computed: int) -> Progress:
        """Return how far the job is.

        Args:
            computed: Frames that the sessions have computed for it, with those of unfinished segments.

        Returns:
            The counts, the speed since the first decoded frame, and the time left.
        """
        with self._lock:
            now = self._clock()
            made = max(self._frames_made, computed)
            left = self._clips - self._num_planned - self._num_unplanned
            expected = self._frames_planned / self._num_planned * left if self._num_planned else 0
            total = self._frames_planned + round(expected)
            done = min(self._frames_reused + made, total)
            if made and self._first_read is None:
                self._first_read = (now, made)
            first_at, first_made = self._first_read or (now, 0)
            if self._first_at is not None:  # a segment has told when its first frame was decoded
                first_at, first_made = self._first_at, 0
            seconds = now - first_at
            is_joining = bool(total) and done >= total
            notes = tuple(self._untold)
            self._untold.clear()
            return Progress(
                done,
                total,
                "joining" if is_joining else "enhancing" if self._num_planned else "planning",
                self._num_ended,
                self._clips,
                self._num_failed,
                fps=(made - first_made) / seconds if made and seconds > 0 else 0.0,
                seconds_left=None if is_joining else self._end.seconds_left(now, made, total - done),
                notes=notes,
            )


class _SmoothEnd:
    """When the last frame will be made: batches come in bursts, and the end must not jump with each of them."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._read_at = 0.0
        self._end_at: float | None = None

    def seconds_left(self, now: float, made: int, left: int) -> float | None:
        """Return the smoothed time to the end; None before the speed is known."""
        if not made:
            return None
        if self._first is None:
            self._first = (now, made)
        first_at, first_made = self._first
        if now - first_at < SPEED_AFTER_S or made <= first_made:
            return None
        end_at = now + left * (now - first_at) / (made - first_made)
        weight = 1 - math.exp((self._read_at - now) / SMOOTH_S)
        self._end_at = end_at if self._end_at is None else self._end_at + weight * (end_at - self._end_at)
        self._read_at = now
        return max(0.0, self._end_at - now)
