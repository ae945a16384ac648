"""The protocol over HTTP: an ASGI application of plain routes, bodies read raw, every error ``{"error": text}``.

tritonclient sends no Content-Type and follows no redirects, so no body is parsed by its type and no slash is mended.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from genai_ray import __version__
from genai_ray.errors import (
    CacheClosedError,
    ConfigError,
    DeadlineExceededError,
    GenAIRayError,
    InferenceError,
    InvalidInputError,
    ModelNotFoundError,
    ResourceExhaustedError,
    TooManyRequestsError,
)
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.error_text import without_folders
from genai_ray.serve.engine.limits import LARGE_JSON_BYTES, Share, bytes_of, check_json_result, is_long, max_strings
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.http.bodies import hold_place, read_body
from genai_ray.serve.http.metrics import CONTENT_TYPE, write_metrics
from genai_ray.serve.http.openapi import describe_api
from genai_ray.serve.http.routes import BINARY, HEADER_LENGTH, JSON, Operation, Schema, ref, to_routes
from genai_ray.serve.http.sending import UntilSent
from genai_ray.serve.oip.metadata import (
    describe_config,
    describe_index,
    describe_model,
    describe_server,
    describe_statistics,
)
from genai_ray.serve.oip.requests import decode_request, encode_response, parse_header_length, parse_json
from genai_ray.serve.web.operations import people_operations

__all__ = ["STATUSES", "build_app", "list_operations", "status_of"]

_log = logging.getLogger(__name__)

STATUSES: tuple[tuple[type[GenAIRayError], int], ...] = (
    (InvalidInputError, 400),
    (ConfigError, 400),
    (ModelNotFoundError, 404),
    (DeadlineExceededError, 504),
    (InferenceError, 500),
    (TooManyRequestsError, 429),
    (ResourceExhaustedError, 503),
    (CacheClosedError, 503),
    (GenAIRayError, 503),
)
"""Which status an error becomes: the first row that fits. The last is for models that cannot be loaded, with the reason."""

RETRY_AFTER_S = 1

_TOO_LARGE, _CONFLICT, _BUSY, _UNAVAILABLE, _GONE = 413, 409, 429, 503, 499
_NOT_WANTED = re.compile(r";q=0(\.0*)?$")
_BODY_ERRORS = (400, 413, 415)
_MODEL_ERRORS = (404, 504)


def status_of(error: GenAIRayError) -> int:
    """Return the HTTP status of an error.

    Args:
        error: Any of ours.

    Returns:
        The status.
    """
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def list_operations(engine: Engine, statistics: Callable[[], Awaitable[Any]]) -> list[Operation]:
    """Return the table of routes: everything that is served over HTTP.

    Args:
        engine: What answers.
        statistics: Gives the figures of all replicas, by name and version.

    Returns:
        The rows.
    """
    api = _Api(engine, statistics)
    model, one = "/v2/models/{model}", "/v2/repository/models/{model}"
    get, post = "GET", "POST"
    content, stats = {JSON: ref("IndexRequest")}, {JSON: ref("Statistics")}
    operations = [
        Operation(get, "/v2", api.server, "server", "What the server is.", {JSON: ref("ServerMetadata")}),
        Operation(get, "/v2/", api.server, "server_with_slash", "What the server is.", {JSON: ref("ServerMetadata")}),
        Operation(
            get, "/v2/health/live", api.live, "live", "Whether the server lives.", {JSON: ref("Live")}, is_open=True
        ),
        Operation(
            get,
            "/v2/health/ready",
            api.server_ready,
            "ready",
            "Whether requests are taken.",
            {JSON: ref("Ready")},
            is_open=True,
        ),
        Operation(
            get,
            "/v2/models/stats",
            api.stats,
            "all_statistics",
            "What was computed, by all models.",
            stats,
            errors=(504,),
        ),
        *_model_operations(model, "", api),
        *_model_operations(model + "/versions/{version}", "_version", api),
        Operation(
            get,
            "/metrics",
            api.metrics,
            "metrics",
            "Figures for Prometheus.",
            {"text/plain": {"type": "string"}},
            errors=(504,),
        ),
        Operation(
            post,
            "/v2/repository/index",
            api.index,
            "index",
            "Every model with its state; the model repository is looked at again.",
            {JSON: ref("RepositoryIndex")},
            errors=(*_BODY_ERRORS, 504),
            body=content,
            is_body_needed=False,
        ),
        Operation(
            post,
            f"{one}/load",
            api.load,
            "load",
            "Load a model.",
            errors=(*_BODY_ERRORS, *_MODEL_ERRORS),
            body={JSON: ref("LoadRequest")},
            is_body_needed=False,
        ),
        Operation(
            post,
            f"{one}/unload",
            api.unload,
            "unload",
            "Evict a model when what it computes is done.",
            errors=(*_BODY_ERRORS, *_MODEL_ERRORS, _CONFLICT),
            body={JSON: ref("UnloadRequest")},
            is_body_needed=False,
        ),
        *people_operations(engine),
        Operation(
            get, "/openapi.json", api.document, "openapi", "This document.", {JSON: {"type": "object"}}, is_open=True
        ),
    ]
    api.operations = operations
    return operations


def build_app(
    operations: Iterable[Operation],
    lifespan: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> ASGIApp:
    """Build the application.

    Args:
        operations: The table of routes.
        lifespan: What goes on beside it for as long as it lives.

    Returns:
        The ASGI application.
    """
    app = Starlette(
        routes=to_routes(operations),
        lifespan=lifespan,
        exception_handlers={HTTPException: _refuse, GenAIRayError: _tell, ClientDisconnect: _gone, Exception: _fail},
    )
    app.router.redirect_slashes = False
    return UntilSent(app)


def _model_operations(base: str, suffix: str, api: _Api) -> list[Operation]:
    """Return the rows of one model: of its highest version, or of a named one."""
    length: dict[str, Schema] = {
        HEADER_LENGTH: {"type": "integer", "minimum": 0, "description": "Bytes of the JSON that binary tensors follow."}
    }
    return [
        Operation(
            "GET",
            base,
            api.metadata,
            f"model{suffix}",
            "What a model takes and gives.",
            {JSON: ref("ModelMetadata")},
            errors=_MODEL_ERRORS,
        ),
        Operation(
            "GET",
            f"{base}/ready",
            api.ready,
            f"model_ready{suffix}",
            "Whether it is loaded and warm.",
            {JSON: ref("ModelReady")},
            errors=_MODEL_ERRORS,
        ),
        Operation(
            "GET",
            f"{base}/config",
            api.config,
            f"model_config{suffix}",
            "How it is served.",
            {JSON: ref("ModelConfig")},
            errors=_MODEL_ERRORS,
        ),
        Operation(
            "GET",
            f"{base}/stats",
            api.stats,
            f"statistics{suffix}",
            "What it computed.",
            {JSON: ref("Statistics")},
            errors=_MODEL_ERRORS,
        ),
        Operation(
            "POST",
            f"{base}/infer",
            api.infer,
            f"infer{suffix}",
            "Compute; the model is loaded where it is not.",
            {JSON: ref("InferResponse"), BINARY: {"type": "string", "format": "binary"}},
            errors=(*_BODY_ERRORS, *_MODEL_ERRORS, _BUSY),
            headers=length,
            answer_headers=length,
            body={JSON: ref("InferRequest"), BINARY: {"type": "string", "format": "binary"}},
        ),
    ]


class _Api:
    """The handlers."""

    def __init__(self, engine: Engine, statistics: Callable[[], Awaitable[Any]]) -> None:
        self._engine, self._statistics = engine, statistics
        self.operations: list[Operation] = []

    async def document(self, request: Request) -> Response:
        return JSONResponse(describe_api(self.operations, __version__, self._engine.profile))

    async def server(self, request: Request) -> Response:
        return JSONResponse(describe_server(__version__))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def server_ready(self, request: Request) -> Response:
        if self._engine.cache.is_open:
            return JSONResponse({"ready": True})
        return _error(
            _UNAVAILABLE,
            "the model cache is gone; this replica is replaced by one with another",
            {"Retry-After": str(RETRY_AFTER_S)},
        )

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(describe_model(await self._find(request)))

    async def config(self, request: Request) -> Response:
        return JSONResponse(describe_config(await self._find(request)))

    async def ready(self, request: Request) -> Response:
        target = await self._find(request)
        if await self._engine.is_ready(target):
            return JSONResponse({"name": target.model.name, "ready": True})
        return _error(
            _UNAVAILABLE,
            f"model {target.model.name!r} is not loaded; its first request loads it",
            {"Retry-After": str(RETRY_AFTER_S)},
        )

    async def stats(self, request: Request) -> Response:
        target = await self._find(request) if "model" in request.path_params else None
        return JSONResponse(
            describe_statistics(self._engine.repository, await self._statistics(), await self._engine.status(), target)
        )

    async def metrics(self, request: Request) -> Response:
        return Response(
            write_metrics(await self._statistics(), await self._engine.status()), headers={"Content-Type": CONTENT_TYPE}
        )

    async def index(self, request: Request) -> Response:
        content = await self._content(request)
        only_ready = content.get("ready")
        if not isinstance(only_ready, bool | None):
            raise InvalidInputError(f"ready: {only_ready!r:.40}", "true or false")
        await self._engine.rescan()
        return JSONResponse(
            describe_index(
                self._engine.repository,
                await self._engine.status(),
                await self._engine.broken(),
                only_ready=bool(only_ready),
            )
        )

    async def load(self, request: Request) -> Response:
        content = await self._content(request)
        await self._engine.load(request.path_params["model"], content.get("parameters") or {})
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        await self._content(request)
        try:
            await self._engine.unload(request.path_params["model"])
        except ResourceExhaustedError as exc:
            return _error(_CONFLICT, without_folders(exc))
        return Response(status_code=200)

    async def infer(self, request: Request) -> Response:
        async with hold_place(request, self._engine.admission) as share:
            return await self._infer(request, share)

    async def _infer(self, request: Request, share: Share) -> Response:
        body = await read_body(request, self._engine.profile.max_body_bytes, share)
        target = await self._find(request)
        header = request.headers.get(HEADER_LENGTH)
        json_bytes, strings = (
            parse_header_length(header, len(body)),
            max_strings(target.metadata.inputs, self._engine.profile),
        )
        self._check_json(json_bytes)
        decode = functools.partial(decode_request, body, header, target.metadata.inputs, max_strings=strings)
        asked = (
            await self._engine.call(decode)
            if json_bytes > LARGE_JSON_BYTES or is_long(len(body), is_plain=not strings)
            else decode()
        )
        response = await self._engine.infer(target, asked, share)
        encode = functools.partial(encode_response, response, asked)
        check_json_result(
            (tensor.array for tensor in response.outputs if not asked.wants_binary(tensor.name)), self._engine.profile
        )
        is_large = any(
            is_long(bytes_of(tensor.array), is_plain=tensor.datatype != "BYTES" and asked.wants_binary(tensor.name))
            for tensor in response.outputs
        )
        parts, length = await self._engine.call(encode) if is_large else encode()
        headers = {} if length is None else {HEADER_LENGTH: str(length)}
        media = JSON if length is None else BINARY
        body = b"".join(parts)
        encoding = _chosen_encoding(request.headers.get("accept-encoding", ""), length is not None)
        if encoding:
            headers["Content-Encoding"] = encoding
            body = await self._engine.call(_pack, body, encoding)
        share.keep_result(len(body), is_written=True)
        return Response(body, headers=headers, media_type=media)

    async def _find(self, request: Request) -> Target:
        return await self._engine.find(request.path_params["model"], request.path_params.get("version", ""))

    async def _content(self, request: Request) -> dict[str, Any]:
        """Return the JSON object of a request that need not have one."""
        body = await read_body(request, LARGE_JSON_BYTES)
        content = parse_json(body) if body.strip() else {}
        if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict | None):
            raise InvalidInputError("a body, or parameters of it, that is not a JSON object")
        return content

    def _check_json(self, size: int) -> None:
        """Refuse JSON whose values might take twenty times its bytes."""
        most = self._engine.profile.max_json_bytes
        if size > most:
            raise HTTPException(_TOO_LARGE, f"{size} bytes of JSON; allowed: {most}. Send tensors as binary data.")


def _pack(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)


def _chosen_encoding(accepted: str, is_binary: bool) -> str | None:
    """Return how to pack an answer: tensors only for who names one way, not for who sends what every HTTP library sends."""
    words = [
        word.strip().lower()
        for word in accepted.split(",")
        if word.strip() and not _NOT_WANTED.search(word.replace(" ", "").lower())
    ]
    names = [word.partition(";")[0].strip() for word in words]
    known = [name for name in names if name in ("gzip", "deflate")]
    return known[0] if known and (len(names) == 1 or not is_binary) else None


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, dict(headers or {}))


async def _refuse(request: Request, exc: Exception) -> Response:
    status, text, headers = (
        (exc.status_code, exc.detail, exc.headers) if isinstance(exc, HTTPException) else (500, str(exc), None)
    )
    if status in (404, 405):
        text = f"{request.method} {request.url.path}: {text}"
    return _error(status, text, headers)


async def _tell(request: Request, exc: Exception) -> Response:
    status = status_of(exc) if isinstance(exc, GenAIRayError) else 500
    return _error(
        status, without_folders(exc), {"Retry-After": str(RETRY_AFTER_S)} if status in (_BUSY, _UNAVAILABLE) else None
    )


async def _gone(request: Request, exc: Exception) -> Response:
    return _error(_GONE, "the client closed the connection")


async def _fail(request: Request, exc: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return _error(500, f"the server failed: {type(exc).__name__}")
