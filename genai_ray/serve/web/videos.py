"""``/v1/videos``: submit a video, look at its job, download the result, cancel it. ``video_jobs`` keeps the jobs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from genai_ray.enhance import EnhanceOptions
from genai_ray.enhance.plan.clip_target import RECORD_SUFFIX
from genai_ray.enhance.plan.options import check_given, check_models
from genai_ray.enhance.plan.size import check_sides
from genai_ray.errors import ConfigError, GenAIRayError, InvalidInputError, VideoError
from genai_ray.files import is_of_this_machine, open_below
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.http.bodies import hold_place, on_disk, save_file
from genai_ray.serve.http.queries import Params, Query, check_given_once, parse_query
from genai_ray.serve.http.routes import BINARY, FILE, JSON, Operation, ref
from genai_ray.serve.web.video_job import SOURCE, VideoJob, VideoRequest, take_clip_options, take_encoding_options
from genai_ray.serve.web.video_jobs import VideoDesk, VideoJobs
from genai_ray.types import CheckLevel, ModelBackend, ModelPrecision, ParamPicture
from genai_ray.video import Encoding, check_container, decode_param_picture, to_picture_text, validate_encoding

__all__ = ["check_uri", "video_operations"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_ACCEPTED = 202
_NOT_FOUND = 404
_CONFLICT = 409
_FORMATS = {"mp4": "video/mp4", "mkv": "video/x-matroska", "mov": "video/quicktime", "webm": "video/webm"}
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
_RATE = re.compile(r"[0-9]{1,6}([./][0-9]{1,6})?")
_ID = re.compile(r"[0-9a-f]{32}")
_RENEW_EVERY_S = 15.0
_RETRY_AFTER_S = "1"
_GREY = ParamPicture(np.full((1, 1, 3), 128, np.uint8))
"""Stands for a picture that will come with the body."""


class _VideoQuery(Query):
    model: tuple[Annotated[str, Field(min_length=1)], ...]
    """The chain of models, in order."""
    uri: str | SkipJsonSchema[None] = None
    """Where to fetch the video from, below a prefix that this server allows. Without it the body is the video."""
    params: Params = Field(default_factory=dict)
    start: str | SkipJsonSchema[None] = None
    """Where a piece of the video begins: seconds, 1:30.5, or f250 for frame 250, counted from 0."""
    end: str | SkipJsonSchema[None] = None
    """Where the piece ends."""
    duration: str | SkipJsonSchema[None] = None
    """How long the piece is, instead of its end; f250 is 250 frames."""
    preview: bool = False
    """Whether only 5 s from the middle are enhanced."""
    audio: Literal[
        "auto", "copy", "none", "stretch", "aac", "ac3", "mp3", "opus", "alac", "flac", "pcm_s16le", "pcm_s24le"
    ] = "auto"
    """Sound of the result: copied, or encoded if the format cannot hold it; copy, none or a codec; in slow motion none,
    or stretch."""
    subtitles: Literal["auto", "copy", "none"] = "auto"
    """Subtitles of the result: copied, or converted if the format cannot hold them; copy or none."""
    streams: str | SkipJsonSchema[None] = None
    """Tracks of sound and subtitles to keep, such as 2, audio:0, subtitles or eng, with commas; all by default."""
    factor: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = None
    """Frames of the result for one of the video, if a model adds frames; 2 by default."""
    fps: str | SkipJsonSchema[None] = None
    """Frames per second of the result instead: a number, or a fraction such as 60000/1001."""
    slow_motion: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = None
    """How many times as long as the video the result is instead, at its rate."""
    scene_detector: Literal["auto", "transnetv2", "threshold"] = "auto"
    """What finds cuts, across which no frame is added: a network, or a threshold of similarity."""
    scene_threshold: Annotated[float, Field(ge=0, le=1)] | SkipJsonSchema[None] = None
    """Similarity of neighbours below which a cut lies between them; 0 for never."""
    background: str | SkipJsonSchema[None] = None
    """What replaces a background that a model removes: a colour such as #00b140 (the default), blur, mask or alpha."""
    size: str | SkipJsonSchema[None] = None
    """Size of the result, such as 1920x1080, as players show it; without it the size that the models make."""
    width: int | SkipJsonSchema[None] = None
    """Only the width in pixels; the height follows."""
    height: int | SkipJsonSchema[None] = None
    """Only the height in pixels; the width follows."""
    scale: str | SkipJsonSchema[None] = None
    """The size of the result over that of the clip instead, such as 1.5."""
    fit: Literal["inside", "pad", "crop", "stretch"] | SkipJsonSchema[None] = None
    """How a picture of another shape is put into ``size``; inside by default."""
    input_height: int | SkipJsonSchema[None] = None
    """Height in pixels to which frames are reduced before the first model."""
    deinterlace: Literal["auto", "off", "frame", "field", "ivtc"] = "auto"
    """Deinterlaced frames: those that are flagged, none, all, all into two, by field; or four of five, of film."""
    field_order: Literal["top", "bottom"] | SkipJsonSchema[None] = None
    """The field that is shown first, whatever the video says."""
    codec: str | SkipJsonSchema[None] = None
    """The encoder, such as hevc, av1 or h264_nvenc; by default h264, in webm vp9."""
    crf: float | SkipJsonSchema[None] = None
    """Its constant rate factor."""
    video_bitrate: str | SkipJsonSchema[None] = None
    """Bits per second of the pictures instead, on average, such as 4M."""
    max_size: str | SkipJsonSchema[None] = None
    """Most bytes of the whole result instead, such as 20MB; it fills 95 % or more of them."""
    format: Literal["mp4", "mkv", "mov", "webm"] = "mp4"
    """Format of the result; mp4 by default."""
    check: Literal["default", "strict", "off"] = "default"
    """How closely frames are compared with those of the source: ``default`` finds accidents such as black frames."""
    name: str = ""
    """A name for the video."""


def check_uri(uri: str, allowed: Sequence[str]) -> None:
    """Check a URI against the allowed prefixes. Nothing is fetched; a file of this machine is opened, as its job will.

    Args:
        uri: From the request.
        allowed: Prefixes; a slash is added to each that ends without one.

    Raises:
        InvalidInputError: If it is below none of them, could lead out of it, or is no regular file.
    """
    path = unquote(unquote(urlsplit(uri).path))
    is_printable = (uri + path).isprintable()
    leads_out = "::" in uri or "\\" in uri or ".." in path.split("/") or not is_printable
    prefixes = [prefix if prefix.endswith("/") else prefix + "/" for prefix in allowed]
    if leads_out or not any(uri.startswith(prefix) for prefix in prefixes):
        rule = "URIs below a prefix that this server allows" if allowed else "none on this server"
        raise InvalidInputError(f"uri {uri[:100]!r}", rule, "Send the video itself.")
    if is_of_this_machine(uri):
        if "?" in uri or "#" in uri:
            raise InvalidInputError(f"uri {uri[:100]!r} with ? or #", "%3F and %23 if they are part of a file name")
        try:
            open_below(uri, prefixes).close()
        except VideoError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):  # it may be there when its job starts
                raise InvalidInputError(f"uri {exc.got[:200]}", exc.allowed) from exc


def video_operations(engine: Engine) -> list[Operation]:
    """Return the rows of the route table for video jobs.

    Args:
        engine: Knows the models and the options.

    Returns:
        The rows.
    """
    api = _Api(engine, VideoDesk(engine.profile.people))
    one = "/v1/videos/{job_id}"
    job = {JSON: ref("VideoJob")}
    removed = {JSON: {"oneOf": [ref("VideoJob"), ref("VideoJobRemoved")]}}
    files = dict.fromkeys(_FORMATS.values(), FILE)
    return [
        Operation(
            "POST",
            "/v1/videos",
            api.submit,
            "submit_video",
            "Enhance a video, uploaded or fetched from a URI; responds with a job.",
            job,
            status=_ACCEPTED,
            errors=(400, 404, 413, 429, 504, 507),
            query=_VideoQuery,
            answer_headers={"Location": {"type": "string"}},
            body={BINARY: FILE, "multipart/form-data": ref("UploadForm")},
            is_body_needed=False,
        ),
        Operation("GET", one, api.describe, "video", "State and progress of a job.", job, errors=(400, 404, 504)),
        Operation(
            "DELETE", one, api.remove, "remove_video", "Cancel or remove a job.", removed, errors=(400, 404, 504)
        ),
        Operation(
            "GET",
            one + "/result",
            api.result,
            "video_result",
            "The enhanced video.",
            files,
            errors=(206, 400, 404, 409, 416, 504),
        ),
        Operation(
            "GET",
            one + "/record",
            api.record,
            "video_record",
            "The record of a result of `check=strict`, for `genai-ray verify`; keep it beside the result.",
            {JSON: {"type": "object"}},
            errors=(206, 400, 404, 409, 416, 504),
        ),
    ]


class _Api:
    """The handlers."""

    def __init__(self, engine: Engine, desk: VideoDesk) -> None:
        self._engine = engine
        self._options = engine.profile.people
        self._desk = desk

    async def submit(self, request: Request) -> Response:
        async with hold_place(request, self._engine.admission):
            query = parse_query(request, _VideoQuery)
            targets = [await self._engine.find(name) for name in query.model]
            is_form = query.uri is None and request.headers.get("content-type", "").lower().startswith(
                "multipart/form-data"
            )
            expected = {name for target in targets for name in target.metadata.spec.picture_params} if is_form else ()
            await self._engine.call(_check_job, targets, query, dict.fromkeys(expected, _GREY))
            length = request.headers.get("content-length", "")
            max_bytes = self._options.max_video_bytes
            if query.uri is not None:
                await self._engine.call(check_uri, query.uri, self._options.allowed_uris)
                if length not in ("", "0") or "transfer-encoding" in request.headers:
                    raise InvalidInputError("a body and a uri", "one of them")
            elif length.isdecimal():
                max_bytes = min(int(length), max_bytes)
            job_id = uuid.uuid4().hex
            async with self._counted(job_id, max_bytes):
                job = await self._start_job(request, query, job_id, targets)
        described = job.to_json()
        return JSONResponse(described, _ACCEPTED, {"Location": described["links"]["self"]})

    async def _start_job(
        self, request: Request, query: _VideoQuery, job_id: str, targets: Sequence[Target]
    ) -> VideoJob:
        """Save the uploaded video, if there is one, and submit its job. A failure leaves nothing behind."""
        folder = self._desk.folder / job_id
        try:
            with on_disk():
                folder.mkdir(mode=0o700, parents=True)
            pictures: dict[str, ParamPicture] = {}
            if query.uri is None:
                sent, files = await self._save(request, folder)
                check_given_once(query.params, files)
                pictures = await self._engine.call(_read_pictures, targets, files)
                await self._engine.call(_check_job, targets, query, pictures)
            else:
                sent = PurePath(urlsplit(query.uri).path).name
            serving = targets[0].model.serving
            asked = VideoRequest(
                models=tuple(target.model.name for target in targets),
                sources=tuple(target.source for target in targets),
                backend=serving.backend.value,
                precision=serving.precision.value,
                device=serving.device,
                device_kinds=serving.device_kinds,
                check=query.check,
                name=(query.name or sent or "video")[:200],
                suffix=f".{query.format}",
                uri=query.uri,
                cache_name=self._engine.profile.cache,
                **take_clip_options(query)
                | {"params": query.params | {name: to_picture_text(one) for name, one in pictures.items()}},
                **take_encoding_options(query),
            )
            with on_disk():
                return await self._call(VideoJobs.submit, job_id, asked)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
            raise

    @contextlib.asynccontextmanager
    async def _counted(self, job_id: str, num_bytes: int) -> AsyncIterator[None]:
        """Count an upload from before its first byte until its job is submitted, or it fails."""
        await self._call(VideoJobs.begin, job_id, num_bytes)

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEW_EVERY_S)
                with contextlib.suppress(GenAIRayError):
                    await self._call(VideoJobs.renew, job_id, num_bytes)

        renewing = asyncio.create_task(renew())
        try:
            yield
        except BaseException:
            abandoning = self._call(VideoJobs.abandon, job_id)
            with contextlib.suppress(GenAIRayError):
                await asyncio.shield(abandoning)
            raise
        finally:
            renewing.cancel()

    async def _call(
        self,
        method: Callable[Concatenate[VideoJobs, Arguments], Awaitable[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        return await self._engine.call(functools.partial(self._desk.call, method, *args, **kwargs))

    async def describe(self, request: Request) -> Response:
        return JSONResponse((await self._find(request)).to_json(), headers={"Cache-Control": "no-store"})

    async def remove(self, request: Request) -> Response:
        job = await self._find(request)
        left = await self._call(VideoJobs.remove, job.job_id)
        return JSONResponse(left.to_json() if left else {"id": job.job_id, "state": "removed"})

    async def result(self, request: Request) -> Response:
        job = await self._find_done(request)
        path = self._file_of(job, "")
        name = re.sub(r"[^\w .()-]", "_", _name_result(job))
        return _Download(path, media_type=_FORMATS[job.request.suffix[1:]], filename=name)

    async def record(self, request: Request) -> Response:
        job = await self._find_done(request)
        if job.request.check != CheckLevel.STRICT:
            raise HTTPException(_CONFLICT, f"video job {job.job_id} has no record: only check=strict makes one")
        path = self._file_of(job, RECORD_SUFFIX)
        name = re.sub(r"[^\w .()-]", "_", _name_result(job)) + RECORD_SUFFIX
        return _Download(path, media_type=JSON, filename=name)

    async def _find_done(self, request: Request) -> VideoJob:
        job = await self._find(request)
        if job.state != "done":
            reason = f": {job.error}" if job.error else ""
            headers = {} if job.is_over else {"Retry-After": _RETRY_AFTER_S}
            raise HTTPException(_CONFLICT, f"video job {job.job_id} has no result, it is {job.state}{reason}", headers)
        return job

    def _file_of(self, job: VideoJob, suffix: str) -> Path:
        """Return the file of a result, or of what lies beside it."""
        path = self._desk.folder / job.job_id / f"result{job.request.ending}{suffix}"
        if not path.is_file():
            what = "record" if suffix else "result"
            text = f"the {what} of video job {job.job_id} is not in the folder of videos that this node sees"
            raise HTTPException(_NOT_FOUND, text)
        return path

    async def _save(self, request: Request, folder: Path) -> tuple[str, dict[str, bytes]]:
        """Write the uploaded video into its job's folder, check it, and return its name and the files of pictures."""
        partial = folder / "sent.partial"
        sent, pictures = await save_file(request, self._options.max_video_bytes, partial)
        name = PurePath(sent)
        path = partial.rename(folder / f"{SOURCE}{name.suffix if _SUFFIX.fullmatch(name.suffix) else '.bin'}")
        try:
            await self._engine.call(check_container, path)
        except VideoError as exc:
            raise InvalidInputError(exc.got.replace(str(path), name.name or "the body"), exc.allowed) from exc
        return name.name, pictures

    async def _find(self, request: Request) -> VideoJob:
        parse_query(request, Query)
        job_id = request.path_params["job_id"]
        if _ID.fullmatch(job_id):
            job = await self._call(VideoJobs.describe, job_id)
            if job is not None:
                return job
        kept = f"jobs are kept for {self._options.keep_videos_s:g} s after their end"
        raise HTTPException(_NOT_FOUND, f"no video job {job_id[:40]!r}; {kept}")


def _name_result(job: VideoJob) -> str:
    """Return the name under which a result is saved."""
    return f"{PurePath(job.request.name).stem or 'video'}-{job.request.models[-1]}{job.request.ending}"


class _Download(FileResponse):
    """A file or a part of it; unlike its base class it refuses a part with JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: list[Message] = []

        async def watched(message: Message) -> None:
            if refused or (message["type"] == "http.response.start" and message["status"] >= 400):
                refused.append(message)
            else:
                await send(message)

        await super().__call__(scope, receive, watched)
        if refused:
            size = Headers(raw=refused[0]["headers"]).get("content-range", "").removeprefix("bytes */")
            reason = f"no part of this video, which has {size} bytes" if size else "write it like bytes=0-99"
            headers = {"Content-Range": f"bytes */{size}"} if size else None
            await JSONResponse({"error": f"Range: {reason}"}, refused[0]["status"], headers)(scope, receive, send)


def _read_pictures(targets: Sequence[Target], files: Mapping[str, bytes]) -> dict[str, ParamPicture]:
    """Decode the pictures of a form, in the sizes that the models take."""
    pictures = {}
    known = {name: param for target in targets for name, param in target.metadata.spec.params.items()}
    for name, body in files.items():
        if name not in known:
            raise InvalidInputError(f"a picture for the param {name[:40]!r}", f"{sorted(known) or 'none'}")
        fitted = known[name].read(name, decode_param_picture(body))
        if isinstance(fitted, ParamPicture):
            pictures[name] = fitted
    return pictures


def _check_job(targets: Sequence[Target], query: _VideoQuery, pictures: Mapping[str, ParamPicture]) -> None:
    """Refuse at once what ``enhance_videos`` would refuse later."""
    ways = {
        (way.backend, way.precision, way.device, way.device_kinds) for way in (one.model.serving for one in targets)
    }
    if len(ways) > 1:
        names = [target.model.name for target in targets]
        raise ConfigError(
            f"{names} in one chain, which are served in {len(ways)} ways", "one backend, precision and device for all"
        )
    ((backend, precision, device, _),) = ways
    if query.fps is not None and not _RATE.fullmatch(query.fps):
        raise ConfigError(f"fps {query.fps[:40]!r}", "a number or a fraction, such as 60 or 60000/1001")
    options = EnhanceOptions(
        backend=ModelBackend(backend),
        precision=ModelPrecision(precision),
        device=device,
        **take_clip_options(query) | {"params": {**query.params, **pictures}},
        encoding=Encoding(**take_encoding_options(query)),
    )
    has_alpha = options.background is not None and options.background.kind == "alpha"
    if has_alpha and query.codec is None and query.format != "webm":
        raise ConfigError(
            f"background 'alpha' with format={query.format}, whose encoder stores no alpha", "format=webm"
        )
    validate_encoding(options.encoding, f".{query.format}", has_alpha=has_alpha)
    options.tracks.check(f".{query.format}")
    specs = check_models([target.source for target in targets], options)
    check_given(specs, [options])
    check_sides(options.result_size, options.encoding.fit(f".{query.format}"))
