"""``/v1/videos``: a video becomes a job; its progress, its result, its end. Jobs themselves are ``video_jobs``'."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from genai_ray.catalog import PeopleServing
from genai_ray.cluster.client.connection import start_on_head
from genai_ray.cluster.runtime.replies import wait_for
from genai_ray.enhance import EnhanceOptions
from genai_ray.enhance.plan.options import check_models
from genai_ray.errors import ConfigError, DeadlineExceededError, GenAIRayError, InvalidInputError, VideoError
from genai_ray.files import is_of_this_machine, open_below
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.http.bodies import Query, hold_place, on_disk, save_file
from genai_ray.serve.http.routes import BINARY, JSON, Operation, Schema, ref
from genai_ray.serve.web.pictures import FILE, PARAMS
from genai_ray.serve.web.video_job import VideoJob, VideoRequest
from genai_ray.serve.web.video_jobs import SOURCE, VideoJobs
from genai_ray.types import ModelBackend, ModelPrecision
from genai_ray.video import check_container

__all__ = ["VideoDesk", "check_uri", "video_operations"]

_ACCEPTED, _REFUSED, _NOT_FOUND, _CONFLICT = 202, 400, 404, 409
_FORMATS = {"mp4": "video/mp4", "mkv": "video/x-matroska", "mov": "video/quicktime", "webm": "video/webm"}
_QUERY: dict[str, Schema] = {
    "uri": {
        "type": "string",
        "description": "Where the video is fetched from instead of being sent; only below a prefix that this server allows.",
    },
    "params": PARAMS,
    "format": {"enum": list(_FORMATS), "description": "Of the result; mp4 where it is left out."},
    "name": {"type": "string", "description": "What the video is called."},
}
_MODELS: dict[str, Schema] = {"model": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}}
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
_ID = re.compile(r"[0-9a-f]{32}")
_ANSWER_WITHIN_S = 20.0
_RETRY_S = 0.1
_RENEW_EVERY_S = 15.0
_RETRY_AFTER_S = "1"


class VideoDesk:
    """A replica's line to the jobs of one folder; starts the actor that looks after them where there is none.

    Args:
        folder: The folder.
        options: How many, how large, how long.
    """

    def __init__(self, folder: Path, options: PeopleServing) -> None:
        self.folder, self._options = folder, options
        self.actor_name = f"videos:{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
        self._actor: Any = None

    def call(self, method: str, *args: Any) -> Any:
        """Call the actor, again where it died; waits, and belongs on a thread.

        Args:
            method: One of ``VideoJobs``.
            args: Its arguments.

        Returns:
            Its answer.

        Raises:
            DeadlineExceededError: If it does not answer in time.
            GenAIRayError: What it raised.
        """
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while True:
            try:
                if self._actor is None:
                    self._actor = self._start()
                return wait_for(getattr(self._actor, method).remote(*args), max(deadline - time.monotonic(), 0.0))
            except ActorDiedError:
                self._actor = None  # it had nothing left to do, and went
            except ActorUnavailableError:
                pass  # Ray starts it again
            except GetTimeoutError as exc:
                raise DeadlineExceededError(f"video jobs did not answer within {_ANSWER_WITHIN_S:g} s") from exc
            if time.monotonic() > deadline:
                raise DeadlineExceededError(f"video jobs did not answer within {_ANSWER_WITHIN_S:g} s")
            time.sleep(_RETRY_S)

    def resume(self) -> None:
        """Start the actor where an earlier server left jobs in the folder."""
        if any(self.folder.glob("*/")):
            self.call("open")

    def _start(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return start_on_head(VideoJobs, self.actor_name, str(self.folder), self._options)


def check_uri(uri: str, allowed: Sequence[str]) -> None:
    """Hold a URI against the prefixes that are allowed; nothing is fetched, and a file of this machine is opened as its job will.

    Args:
        uri: What was asked for.
        allowed: Prefixes; each ends at a slash, or is meant to.

    Raises:
        InvalidInputError: If it begins with none of them, could lead out of it, or is no regular file.
    """
    path = unquote(unquote(urlsplit(uri).path))
    leads_out = (
        "::" in uri or "\\" in uri or ".." in path.split("/") or any(not char.isprintable() for char in uri + path)
    )
    prefixes = [prefix if prefix.endswith("/") else prefix + "/" for prefix in allowed]
    if leads_out or not any(uri.startswith(prefix) for prefix in prefixes):
        raise InvalidInputError(
            f"uri {uri[:100]!r}",
            "URIs below a prefix that this server allows" if allowed else "none on this server",
            "Send the video itself.",
        )
    if is_of_this_machine(uri):
        if "?" in uri or "#" in uri:
            raise InvalidInputError(
                f"uri {uri[:100]!r} with ? or #", "%3F and %23 where they are part of a file's name"
            )
        try:
            open_below(uri, prefixes).close()
        except VideoError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):  # it may be there when its job starts
                raise InvalidInputError(f"uri {exc.got[:200]}", exc.allowed) from exc


def video_operations(engine: Engine, desk: VideoDesk) -> list[Operation]:
    """Return the part of the table of routes that is for video jobs.

    Args:
        engine: What knows the models.
        desk: Where jobs are.

    Returns:
        The rows.
    """
    api = _Api(engine, desk)
    one = "/v1/videos/{job_id}"
    job = {JSON: ref("VideoJob")}
    gone = {JSON: {"oneOf": [ref("VideoJob"), ref("VideoJobRemoved")]}}
    files = dict.fromkeys(_FORMATS.values(), FILE)
    return [
        Operation(
            "POST",
            "/v1/videos",
            api.submit,
            "submit_video",
            "Enhance a video: sent, or fetched from a URI; the answer is a job.",
            job,
            status=_ACCEPTED,
            errors=(400, 404, 413, 429, 504, 507),
            query=_QUERY | _MODELS,
            needed=("model",),
            answer_headers={"Location": {"type": "string"}},
            body={BINARY: FILE, "multipart/form-data": ref("UploadForm")},
            is_body_needed=False,
        ),
        Operation("GET", one, api.describe, "video", "How far a job is.", job, errors=(400, 404, 504)),
        Operation(
            "DELETE",
            one,
            api.remove,
            "remove_video",
            "Cancel a job; remove one that is over.",
            gone,
            errors=(400, 404, 504),
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
    ]


class _Api:
    """The handlers."""

    def __init__(self, engine: Engine, desk: VideoDesk) -> None:
        self._engine, self._desk = engine, desk

    async def submit(self, request: Request) -> Response:
        async with hold_place(request, self._engine.admission):
            return await self._submit(request)

    async def _submit(self, request: Request) -> Response:
        query = Query.of(request, once=_QUERY, often=_MODELS)
        uri, format_name = query.text("uri"), query.text("format") or "mp4"
        if format_name not in _FORMATS:
            raise InvalidInputError(f"format {format_name[:20]!r}", ", ".join(_FORMATS))
        query.needed("model")
        targets = [await self._engine.find(name) for name in query.values["model"]]
        params = query.params()
        await self._engine.call(_check_chain, targets, params)
        if uri is not None:
            await self._engine.call(check_uri, uri, self._engine.profile.people.allowed_uris)
            if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
                raise InvalidInputError("a body and a uri", "one of them")
        job_id = uuid.uuid4().hex
        async with self._counted(job_id, self._most_bytes(request)):
            job = await self._start_job(request, job_id, targets, params)
        told = job.to_json()
        return JSONResponse(told, _ACCEPTED, {"Location": told["links"]["self"]})

    async def _start_job(
        self, request: Request, job_id: str, targets: Sequence[Target], params: dict[str, float]
    ) -> VideoJob:
        """Take the video that is sent, if one is, and submit its job; nothing is left where that fails."""
        query = Query.of(request, once=_QUERY, often=_MODELS)
        uri, folder = query.text("uri"), self._desk.folder / job_id
        try:
            with on_disk():
                folder.mkdir(mode=0o700, parents=True)
            sent = await self._take(request, folder) if uri is None else PurePath(urlsplit(uri).path).name
            serving = targets[0].model.serving
            asked = VideoRequest(
                models=tuple(target.model.name for target in targets),
                sources=tuple(target.source for target in targets),
                backend=serving.backend.value,
                precision=serving.precision.value,
                device=serving.device,
                device_kinds=serving.device_kinds,
                params=params,
                name=(query.text("name") or sent or "video")[:200],
                suffix=f".{query.text('format') or 'mp4'}",
                uri=uri,
                cache_name=self._engine.profile.cache,
            )
            with on_disk():
                job: VideoJob = await self._engine.call(self._desk.call, "submit", job_id, asked)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_discard, folder))
            raise
        return job

    def _most_bytes(self, request: Request) -> int:
        """Return how many bytes the video of a request may have."""
        most, said = self._engine.profile.people.max_video_bytes, request.headers.get("content-length", "")
        return min(int(said), most) if said.isdecimal() and "uri" not in request.query_params else most

    @contextlib.asynccontextmanager
    async def _counted(self, job_id: str, num_bytes: int) -> AsyncIterator[None]:
        """Count a video from before its first byte until its job is there, or it does not come."""
        await self._engine.call(self._desk.call, "begin", job_id, num_bytes)

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEW_EVERY_S)
                with contextlib.suppress(GenAIRayError):
                    await self._engine.call(self._desk.call, "renew", job_id, num_bytes)

        renewing = asyncio.create_task(renew())
        try:
            yield
        except BaseException:
            abandoning = self._engine.call(self._desk.call, "abandon", job_id)
            with contextlib.suppress(GenAIRayError):
                await asyncio.shield(abandoning)
            raise
        finally:
            renewing.cancel()

    async def describe(self, request: Request) -> Response:
        return JSONResponse((await self._find(request)).to_json(), headers={"Cache-Control": "no-store"})

    async def remove(self, request: Request) -> Response:
        job = await self._find(request)
        left: VideoJob | None = await self._engine.call(self._desk.call, "remove", job.job_id)
        return JSONResponse(left.to_json() if left else {"id": job.job_id, "state": "removed"})

    async def result(self, request: Request) -> Response:
        job = await self._find(request)
        if job.state != "done":
            reason = f": {job.error}" if job.error else ""
            headers = {} if job.is_over else {"Retry-After": _RETRY_AFTER_S}
            raise HTTPException(_CONFLICT, f"video job {job.job_id} has no result, it is {job.state}{reason}", headers)
        path = self._desk.folder / job.job_id / f"result{job.request.suffix}"
        if not path.is_file():
            raise HTTPException(
                _NOT_FOUND, f"the result of video job {job.job_id} is not in the folder of videos that this node sees"
            )
        name = f"{PurePath(job.request.name).stem or 'video'}-{job.request.models[-1]}{job.request.suffix}"
        return _Download(path, media_type=_FORMATS[job.request.suffix[1:]], filename=re.sub(r"[^\w .()-]", "_", name))

    async def _take(self, request: Request, folder: Path) -> str:
        """Write the video of a request into its job's folder, and look at it."""
        partial = folder / "sent.partial"
        name = await save_file(request, self._engine.profile.people.max_video_bytes, partial)
        suffix = PurePath(name).suffix
        path = partial.rename(folder / f"{SOURCE}{suffix if _SUFFIX.fullmatch(suffix) else '.bin'}")
        try:
            await self._engine.call(check_container, path)
        except VideoError as exc:
            raise InvalidInputError(exc.got.replace(str(path), PurePath(name).name or "the body"), exc.allowed) from exc
        return PurePath(name).name

    async def _find(self, request: Request) -> VideoJob:
        Query.of(request, once=())
        job_id = request.path_params["job_id"]
        job: VideoJob | None = (
            await self._engine.call(self._desk.call, "describe", job_id) if _ID.fullmatch(job_id) else None
        )
        if job is None:
            raise HTTPException(
                _NOT_FOUND,
                f"no video job {job_id[:40]!r}; jobs are kept for {self._engine.profile.people.keep_videos_s:g} s after their end",
            )
        return job


class _Download(FileResponse):
    """A file, a part of which may be asked for; refusals of a part are JSON like all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: list[Message] = []

        async def watched(message: Message) -> None:
            if refused or (message["type"] == "http.response.start" and message["status"] >= _REFUSED):
                refused.append(message)
            else:
                await send(message)

        await super().__call__(scope, receive, watched)
        if refused:
            size = Headers(raw=refused[0]["headers"]).get("content-range", "").removeprefix("bytes */")
            text = "Range: no part of this video" + (
                f", which has {size} bytes" if size else "; write it like bytes=0-99"
            )
            headers = {"Content-Range": f"bytes */{size}"} if size else None
            await JSONResponse({"error": text}, refused[0]["status"], headers)(scope, receive, send)


def _check_chain(targets: Sequence[Target], params: dict[str, float]) -> None:
    """Refuse at once what ``enhance_videos`` would refuse later."""
    ways = [target.model.serving for target in targets]
    servings = {(way.backend, way.precision, way.device, way.device_kinds) for way in ways}
    if len(servings) > 1:
        raise ConfigError(
            f"{[target.model.name for target in targets]} in one chain, which are served in {len(servings)} ways",
            "one backend, precision and device for all",
        )
    ((backend, precision, device, _),) = servings
    options = EnhanceOptions(
        backend=ModelBackend(backend), precision=ModelPrecision(precision), device=device, params=params
    )
    check_models([target.source for target in targets], options)


def _discard(folder: Path) -> None:
    """Remove what was sent of a job that was not taken."""
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()
