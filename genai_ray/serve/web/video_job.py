"""What is known of a video job, and what a client is told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["STATES", "VideoJob", "VideoRequest", "read_job"]

STATES = ("queued", "running", "done", "failed", "cancelled")
"""States of a job; the last three are for good."""


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """What a job is to do."""

    models: tuple[str, ...]
    """Names of the models, as they were asked for."""
    sources: tuple[str, ...]
    """What the cache is asked for: ids or paths, one a model."""
    backend: str = "onnx"
    """The runtime."""
    precision: str = "fp32"
    """The number format."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    device_kinds: tuple[str, ...] = ()
    """Words of which the kind of a device must have one; empty for any."""
    params: Mapping[str, float] = field(default_factory=dict)
    """Extra inputs of the models."""
    name: str = "video"
    """What the client calls the video."""
    suffix: str = ".mp4"
    """Of the result."""
    uri: str | None = None
    """Where the video is fetched from; None where it was sent."""
    cache_name: str = "default"
    """Name of the model cache."""


@dataclass(frozen=True, slots=True)
class VideoJob:
    """One job, as its folder has it."""

    job_id: str
    """Unique, and not to be guessed."""
    request: VideoRequest
    """What it is to do."""
    created_s: float
    """When it came, in seconds of the epoch."""
    state: str = "queued"
    """A word of ``STATES``."""
    stage: str = ""
    """What it is doing while it runs."""
    frames_done: int = 0
    """Frames enhanced so far."""
    frames_total: int | None = None
    """Frames of the video, once they are counted."""
    ended_s: float | None = None
    """When it ended, in seconds of the epoch."""
    error: str | None = None
    """Why it failed."""
    report: Mapping[str, Any] | None = None
    """What it says of itself at the end."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in STATES[2:]

    def to_json(self) -> dict[str, Any]:
        """Return what a client is told.

        Returns:
            Fit for JSON; no path of this machine is in it.
        """
        facts = {name: value for name, value in asdict(self).items() if name not in ("request", "job_id")}
        here = f"/v1/videos/{self.job_id}"
        links = {"self": here} | ({"result": f"{here}/result"} if self.state == "done" else {})
        return {
            "id": self.job_id,
            "name": self.request.name,
            "models": list(self.request.models),
            **facts,
            "links": links,
        }


def read_job(path: Path) -> VideoJob:
    """Read what is known of a job.

    Args:
        path: A file with the job as JSON.

    Returns:
        The job.

    Raises:
        OSError, ValueError, TypeError, KeyError: If it cannot be read, or is something else.
    """
    facts: dict[str, Any] = json.loads(path.read_text())
    request: dict[str, Any] = facts.pop("request")
    request |= {name: tuple(request[name]) for name in ("models", "sources", "device_kinds")}
    return VideoJob(request=VideoRequest(**request), **facts)
