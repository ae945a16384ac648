"""One video job: the request, the state that its folder keeps, and the actor that runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import RayError, RayTaskError

from genai_ray.catalog import WebOptions
from genai_ray.enhance import EnhanceOptions, EnhanceReport, enhance_videos
from genai_ray.errors import GenAIRayError
from genai_ray.files import fetch_untrusted
from genai_ray.serve.http.routes import COUNT, NAME, TEXT, Schema, list_of, record
from genai_ray.types import CheckLevel, ModelBackend, ModelPrecision
from genai_ray.video import Encoding, check_container, is_picture_text, parse_picture_text

__all__ = ["SCHEMAS", "SOURCE", "TRIES", "VideoJob", "VideoRequest", "VideoRunner", "explain_failure", "read_job"]

_log = logging.getLogger(__name__)

SOURCE = "source"
"""Name, without its suffix, of the video in a job's folder."""

TRIES = 3
"""How often a job is started if its process dies."""

_FINAL = ("done", "failed", "cancelled")
_STATES = ("queued", "running", *_FINAL)


_ENCODING_OPTIONS = ("codec", "crf", "video_bitrate", "max_size")

_CLIP_OPTIONS = (
    *("params", "start", "end", "duration", "preview", "audio", "subtitles", "streams", "factor", "fps", "background"),
    *("scene_detector", "scene_threshold"),
    *("slow_motion", "size", "width", "height", "scale", "fit", "input_height", "deinterlace", "field_order"),
)


def take_clip_options(asked: object) -> dict[str, Any]:
    """Return the options of a clip that a query, ``VideoRequest`` and ``EnhanceOptions`` have by the same names.

    Args:
        asked: A query or a ``VideoRequest``.

    Returns:
        Values by name, pictures among the params decoded; words as they are, which ``EnhanceOptions`` reads.

    Raises:
        InvalidInputError: If a picture is none.
    """
    options = {name: getattr(asked, name) for name in _CLIP_OPTIONS}
    params = options["params"].items()
    read = {name: parse_picture_text(value) if is_picture_text(value) else value for name, value in params}
    return options | {"params": read}


def take_encoding_options(asked: object) -> dict[str, Any]:
    """Return the options of the encoder that a query, ``VideoRequest`` and ``Encoding`` have by the same names.

    Args:
        asked: A query or a ``VideoRequest``.

    Returns:
        Values by name; words as they are, which ``Encoding`` reads.
    """
    return {name: getattr(asked, name) for name in _ENCODING_OPTIONS}


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """What a job is to do."""

    models: tuple[str, ...]
    """Names of the models, as in the request."""
    sources: tuple[str, ...]
    """Model ids or paths that the cache loads, one for each model."""
    backend: str = "onnx"
    """The runtime."""
    precision: str = "fp32"
    """The number format."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    device_kinds: tuple[str, ...] = ()
    """Words of which the kind of a device must have one; empty for any."""
    params: Mapping[str, float | Sequence[float] | str] = field(default_factory=dict)
    """Extra inputs of the models; pictures as ``to_picture_text`` writes them."""
    check: str = "default"
    """How closely frames are compared with those of the source."""
    name: str = "video"
    """The client's name for the video."""
    suffix: str = ".mp4"
    """Suffix of the result."""
    uri: str | None = None
    """Where to fetch the video from; None if it was uploaded."""
    cache_name: str = "default"
    """Name of the model cache."""
    start: str | None = None
    """Where the piece begins, as in ``EnhanceOptions``."""
    end: str | None = None
    """Where it ends."""
    duration: str | None = None
    """How long it is, instead of ``end``."""
    preview: bool = False
    """Whether only 5 s from the middle are enhanced."""
    audio: str = "auto"
    """Sound of the result, as in ``EnhanceOptions``."""
    subtitles: str = "auto"
    """Subtitles of the result."""
    streams: str | None = None
    """Tracks of sound and subtitles to keep; None for all."""
    factor: int | None = None
    """Frames of the result for one of the video, if a model adds frames; None for 2."""
    fps: str | None = None
    """Frames per second of the result instead."""
    slow_motion: int | None = None
    """How many times as long the result is instead."""
    scene_detector: str = "auto"
    """What finds cuts, across which no frame is added, as in ``EnhanceOptions``."""
    scene_threshold: float | None = None
    """Similarity of neighbours below which a cut lies between them."""
    background: str | None = None
    """What replaces a background that is removed, as ``parse_background`` reads it; None for green."""
    size: str | None = None
    """Size of the result, as in ``EnhanceOptions``."""
    width: int | None = None
    """Only its width."""
    height: int | None = None
    """Only its height."""
    scale: str | None = None
    """Its size over that of the video."""
    fit: str | None = None
    """How a picture of another shape is put into ``size``."""
    input_height: int | None = None
    """Height of the frames that the first model gets."""
    deinterlace: str = "auto"
    """Which frames are deinterlaced, as in ``EnhanceOptions``."""
    field_order: str | None = None
    """The field that is shown first; None for what the video says."""
    codec: str | None = None
    """The encoder, as in ``Encoding``; None for the default of ``suffix``."""
    crf: float | None = None
    """Its constant rate factor."""
    video_bitrate: str | None = None
    """Bits per second of the pictures instead."""
    max_size: str | None = None
    """Most bytes of the result instead."""

    @property
    def ending(self) -> str:
        """End of the result's name, which tells a preview."""
        return f".preview{self.suffix}" if self.preview else self.suffix


@dataclass(frozen=True, slots=True)
class VideoJob:
    """One job, as its folder keeps it."""

    job_id: str
    """Unique, and hard to guess."""
    request: VideoRequest
    """What it is to do."""
    created_s: float
    """When it was submitted, in seconds of the epoch."""
    state: str = "queued"
    """``queued``, ``running``, ``done``, ``failed`` or ``cancelled``."""
    stage: str = ""
    """What a running job is doing."""
    frames_done: int = 0
    """Frames enhanced so far."""
    frames_total: int | None = None
    """Frames of the video; None until they are counted."""
    ended_s: float | None = None
    """When it ended, in seconds of the epoch."""
    error: str | None = None
    """Why it failed."""
    report: Mapping[str, Any] | None = None
    """Figures of a job that is done."""

    @property
    def is_over(self) -> bool:
        """Whether its state is final."""
        return self.state in _FINAL

    def to_json(self) -> dict[str, Any]:
        """Return the job as clients see it.

        Returns:
            The fields of the schema ``VideoJob``, without paths of this machine.
        """
        fields = {name: value for name, value in asdict(self).items() if name not in ("request", "job_id")}
        here = f"/v1/videos/{self.job_id}"
        links = {"self": here} | ({"result": f"{here}/result"} if self.state == "done" else {})
        if self.state == "done" and self.request.check == CheckLevel.STRICT:
            links["record"] = f"{here}/record"
        names = {"name": self.request.name, "models": list(self.request.models)}
        return {"id": self.job_id, **names, **fields, "links": links}


_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}

SCHEMAS: dict[str, Schema] = {
    "VideoJob": record(
        id=_ID,
        name=NAME,
        models=list_of(NAME, minItems=1),
        created_s={"type": "number", "minimum": 0},
        state={"enum": list(_STATES)},
        stage=TEXT,
        frames_done=COUNT,
        frames_total={"type": ["integer", "null"], "minimum": 0},
        ended_s={"type": ["number", "null"], "minimum": 0},
        error={"type": ["string", "null"]},
        report={"type": ["object", "null"]},
        links=record({"result": NAME, "record": NAME}, self=NAME),
    ),
    "VideoJobRemoved": record(id=_ID, state={"const": "removed"}),
}
"""Schemas of the responses about jobs, by name."""


def read_job(path: Path) -> VideoJob:
    """Read a job from its folder.

    Args:
        path: The file with the job as JSON.

    Returns:
        The job.

    Raises:
        OSError, ValueError, TypeError, KeyError: If the file cannot be read, or holds something else.
    """
    fields: dict[str, Any] = json.loads(path.read_text())
    request: dict[str, Any] = fields.pop("request")
    request |= {name: tuple(request[name]) for name in ("models", "sources", "device_kinds")}
    return VideoJob(request=VideoRequest(**request), **fields)


class VideoRunner:
    """Runs one job. An actor, not a task: ``ray.cancel`` of a task that is just ending aborts the caller's process.

    Args:
        folder: The job's folder.
        job_id: The job.
        request: What it is to do.
    """

    def __init__(self, folder: str, job_id: str, request: VideoRequest) -> None:
        self._folder = Path(folder)
        self._job_id = job_id
        self._request = request

    def run(self, jobs: Any, limits: WebOptions) -> dict[str, Any]:
        """Run the job, or resume it from the finished segments in its folder.

        Args:
            jobs: Handle of the ``VideoJobs`` actor, which is told of the progress.
            limits: How large a fetched video may be, and where it may come from.

        Returns:
            Figures for the job's ``report``.

        Raises:
            GenAIRayError: If the video cannot be fetched or enhanced.
        """
        request = self._request
        source = next(self._folder.glob(f"{SOURCE}.*"), None) or self._fetch(request.uri or "", limits)
        check_container(source)
        options = EnhanceOptions(
            backend=ModelBackend(request.backend),
            precision=ModelPrecision(request.precision),
            device=request.device,
            device_kinds=request.device_kinds,
            check=CheckLevel(request.check),
            **take_clip_options(request),
            encoding=Encoding(**take_encoding_options(request)),
            overwrite=True,  # the process may have died just after it published the result
            cache_name=request.cache_name,
        )
        report = enhance_videos(
            source,
            self._folder / f"result{request.suffix}",
            models=request.sources,
            options=options,
            on_progress=lambda progress: jobs.report.remote(self._job_id, progress),
        )
        return _summarize(report, request.models)

    def _fetch(self, uri: str, limits: WebOptions) -> Path:
        """Copy the video of a URI into the job's folder; it appears there whole or not at all."""
        partial = self._folder / "fetched.partial"
        fetch_untrusted(uri, partial, limits.max_video_bytes, limits.allowed_uris)
        return partial.rename(self._folder / f"{SOURCE}{Path(urlsplit(uri).path).suffix[:6] or '.bin'}")


def _summarize(report: EnhanceReport, names: Sequence[str]) -> dict[str, Any]:
    (video,) = report.videos
    return {
        "frames": report.frames,
        "fps": round(report.fps, 3),
        "elapsed_s": round(report.elapsed_s, 3),
        "segments": report.segments,
        "segments_reused": report.segments_reused,
        "frames_checked": report.frames_checked,
        "segments_recomputed": report.segments_recomputed,
        "size_in": list(video.size_in),
        "size_out": list(video.size_out),
        "size_made": list(video.size_made),
        "begins_s": video.begins_s,
        "notes": list(video.notes),
        "models": [asdict(use) | {"model_id": name} for use, name in zip(report.models, names, strict=True)],
    }


def explain_failure(exc: RayError, folder: Path, name: str) -> str:
    """Say why a job failed, without paths of this machine.

    Args:
        exc: What its runner raised.
        folder: The job's folder.
        name: The client's name for the video.

    Returns:
        The text.
    """
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    if isinstance(cause, GenAIRayError):
        text = str(cause)
        for path in (*folder.glob(f"{SOURCE}.*"), folder):
            text = text.replace(str(path), name)
        return text
    _log.error("video job %s failed", folder.name, exc_info=exc)
    if isinstance(exc, RayTaskError):
        return f"the server failed: {cause.strerror if isinstance(cause, OSError) else type(cause).__name__}"
    return f"its process died {TRIES} times: {type(exc).__name__}"
