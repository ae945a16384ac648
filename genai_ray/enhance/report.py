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
    """Where it computed."""


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


@dataclass(frozen=True, slots=True)
class EnhanceReport:
    """The whole job; ``to_dict`` is what ``--json`` prints."""

    frames: int
    """Frames in all results."""
    fps: float
    """``frames`` over the seconds from the first decoded frame to the last closed file; 0 where every segment was reused."""
    elapsed_s: float
    """Seconds from the start of the process (or of the call) to the last published file."""
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
    """One entry an input."""

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
    """Frames of the whole job."""
    stage: str
    """What it is doing: ``starting``, ``enhancing`` or ``joining``."""
