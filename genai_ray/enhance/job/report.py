"""What a finished ``enhance`` job says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EnhanceReport", "ModelUse", "Progress", "VideoReport"]


@dataclass(frozen=True, slots=True)
class ModelUse:
    """One model of the chain, as it really ran."""

    model_id: str
    """Canonical id, or the path it was given by."""
    backend: str
    """The runtime."""
    precision: str
    """The number format of the weights."""
    device: str
    """Where it computed; ``none`` where everything was done before."""
    device_kind: str = ""
    """Kinds of the devices that have it at the end: ``cpu``, or the name of the accelerator, such as ``NVIDIA L4``; several are joined by ``+``."""


@dataclass(frozen=True, slots=True)
class VideoReport:
    """One video of the job."""

    source: str
    """Path of the input."""
    output: str
    """Path of the result."""
    frames: int
    """Frames in the result."""
    frames_expected: int
    """Frames that the input's own index promises; larger than ``frames`` only for a truncated input that was allowed."""
    size_in: tuple[int, int]
    """(width, height) of the input in pixels."""
    size_out: tuple[int, int]
    """(width, height) of the result in pixels."""
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
    """Share of the source's pixels, from 0 to 1, that are no colour of RGB and cannot stay as they are; by one frame of 32 of the segments
    that were done now. None where there was none."""


@dataclass(frozen=True, slots=True)
class EnhanceReport:
    """The whole job; ``to_dict`` is what ``--json`` prints."""

    frames: int
    """Frames in all results."""
    fps: float
    """``frames`` over the seconds from the first decoded frame to the last closed file; 0 where every segment was reused."""
    elapsed_s: float
    """Seconds from the call to the last published file; the command line adds the time that its process took to start."""
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
    videos: tuple[VideoReport, ...]
    """One entry an input, in order; of jobs of more than 1,000 videos those that failed (``results`` has all)."""
    clips: int = 1
    """Videos of the job."""
    clips_skipped: int = 0
    """Videos that an earlier job of the same kind had done."""
    clips_failed: int = 0
    """Videos that failed."""
    results: str | None = None
    """Place of ``results.parquet``; None for a job of one file."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON.

        Returns:
            The fields by name, nested dataclasses as dictionaries.
        """
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, as a progress bar wants it."""

    frames_done: int
    """Frames enhanced or reused so far."""
    frames_total: int
    """Frames of the whole job; of videos that are not planned yet as many as of the others, on average."""
    stage: str
    """What it is doing: ``starting``, ``enhancing`` or ``joining``."""
    clips_done: int = 0
    """Videos that are done, skipped or failed."""
    clips_total: int = 1
    """Videos of the whole job."""
    clips_failed: int = 0
    """Videos that failed."""
    seconds_left: float | None = None
    """To the end of the whole job at the speed so far; None while that is not known."""
