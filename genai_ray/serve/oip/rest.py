"""The protocol over HTTP: its rows of the route table, and their handlers.

Bodies are parsed whatever their Content-Type, since tritonclient sends none.
"""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genai_ray import __version__
from genai_ray.errors import InvalidInputError, ResourceExhaustedError
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.limits import LARGE_JSON_BYTES, Share, bytes_of, check_json_result, is_long, max_strings
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.http.bodies import hold_place, read_body
from genai_ray.serve.http.errors import error_response
from genai_ray.serve.http.routes import BINARY, FILE, HEADER_LENGTH, JSON, Operation, Schema, ref
from genai_ray.serve.oip.metadata import (
    describe_config,
    describe_index,
    describe_model,
    describe_server,
    describe_statistics,
)
from genai_ray.serve.oip.requests import decode_request, encode_response, parse_header_length, parse_json

__all__ = ["protocol_operations"]

_TOO_LARGE = 413
_CONFLICT = 409
_UNAVAILABLE = 503
_NOT_WANTED = re.compile(r";q=0(\.0*)?$")
_BODY_ERRORS = (400, 413, 415)
_MODEL_ERRORS = (404, 504)

_get = functools.partial(Operation, "GET")
_post = functools.partial(Operation, "POST", is_body_needed=False)


def protocol_operations(engine: Engine, statistics: Callable[[], Awaitable[Statistics]]) -> list[Operation]:
    """Return the protocol's rows of the route table.

    Args:
        engine: Computes.
        statistics: Gives the figures of all replicas, by name and version.

    Returns:
        The rows.
    """
    api = _Api(engine, statistics)
    model = "/v2/models/{model}"
    stored = "/v2/repository/models/{model}"
    errors = (*_BODY_ERRORS, *_MODEL_ERRORS)
    return [
        _get("/v2", api.server, "server", "What the server is.", _json("ServerMetadata")),
        _get("/v2/", api.server, "server_with_slash", "What the server is.", _json("ServerMetadata")),
        _get("/v2/health/live", api.live, "live", "Whether the server lives.", _json("Live"), is_open=True),
        _get(
            "/v2/health/ready", api.server_ready, "ready", "Whether requests are taken.", _json("Ready"), is_open=True
        ),
        _get(
            "/v2/models/stats",
            api.stats,
            "all_statistics",
            "What all models computed.",
            _json("Statistics"),
            errors=(504,),
        ),
        *_model_operations(model, "", api),
        *_model_operations(model + "/versions/{version}", "_version", api),
        _post(
            "/v2/repository/index",
            api.index,
            "index",
            "Every model with its state; scans the model repository again.",
            _json("RepositoryIndex"),
            errors=(*_BODY_ERRORS, 504),
            body=_json("IndexRequest"),
        ),
        _post(f"{stored}/load", api.load, "load", "Load a model.", errors=errors, body=_json("LoadRequest")),
        _post(
            f"{stored}/unload",
            api.unload,
            "unload",
            "Evict a model once its running requests are done.",
            errors=(*errors, _CONFLICT),
            body=_json("UnloadRequest"),
        ),
    ]


def _model_operations(base: str, suffix: str, api: _Api) -> list[Operation]:
    """Return the rows of one model: of its highest version, or of a named one."""
    length: dict[str, Schema] = {
        HEADER_LENGTH: {"type": "integer", "minimum": 0, "description": "Bytes of the JSON that binary tensors follow."}
    }
    rows = (
        ("", api.metadata, "model", "What a model takes and gives.", "ModelMetadata"),
        ("/ready", api.ready, "model_ready", "Whether it is loaded and warm.", "ModelReady"),
        ("/config", api.config, "model_config", "How it is served.", "ModelConfig"),
        ("/stats", api.stats, "statistics", "What it computed.", "Statistics"),
    )
    return [
        *(
            _get(base + path, handler, name + suffix, summary, _json(schema), errors=_MODEL_ERRORS)
            for path, handler, name, summary, schema in rows
        ),
        Operation(
            "POST",
            f"{base}/infer",
            api.infer,
            f"infer{suffix}",
            "Compute; loads the model if it is not loaded.",
            _json("InferResponse") | {BINARY: FILE},
            errors=(*_BODY_ERRORS, *_MODEL_ERRORS, 429),
            headers=length,
            answer_headers=length,
            body=_json("InferRequest") | {BINARY: FILE},
        ),
    ]


def _json(schema: str) -> dict[str, Schema]:
    return {JSON: ref(schema)}


class _Api:
    """The handlers."""

    def __init__(self, engine: Engine, statistics: Callable[[], Awaitable[Statistics]]) -> None:
        self._engine = engine
        self._statistics = statistics

    async def server(self, request: Request) -> Response:
        return JSONResponse(describe_server(__version__))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def server_ready(self, request: Request) -> Response:
        if self._engine.cache.is_open:
            return JSONResponse({"ready": True})
        return error_response(_UNAVAILABLE, "the model cache was shut down; a new replica replaces this one")

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(describe_model(await self._find(request)))

    async def config(self, request: Request) -> Response:
        return JSONResponse(describe_config(await self._find(request)))

    async def ready(self, request: Request) -> Response:
        target = await self._find(request)
        if await self._engine.is_ready(target):
            return JSONResponse({"name": target.model.name, "ready": True})
        return error_response(_UNAVAILABLE, f"model {target.model.name!r} is not loaded; its first request loads it")

    async def stats(self, request: Request) -> Response:
        target = await self._find(request) if "model" in request.path_params else None
        figures = await self._statistics()
        return JSONResponse(describe_statistics(self._engine.repository, figures, await self._engine.status(), target))

    async def index(self, request: Request) -> Response:
        content = await self._content(request)
        only_ready = content.get("ready")
        if not isinstance(only_ready, bool | None):
            raise InvalidInputError(f"ready: {only_ready!r:.40}", "true or false")
        await self._engine.rescan()
        status = await self._engine.status()
        broken = await self._engine.broken()
        return JSONResponse(describe_index(self._engine.repository, status, broken, only_ready=bool(only_ready)))

    async def load(self, request: Request) -> Response:
        content = await self._content(request)
        await self._engine.load(request.path_params["model"], content.get("parameters") or {})
        return Response()

    async def unload(self, request: Request) -> Response:
        await self._content(request)
        try:
            await self._engine.unload(request.path_params["model"])
        except ResourceExhaustedError as exc:
            return error_response(_CONFLICT, exc)
        return Response()

    async def infer(self, request: Request) -> Response:
        async with hold_place(request, self._engine.admission) as share:
            return await self._infer(request, share)

    async def _infer(self, request: Request, share: Share) -> Response:
        engine = self._engine
        profile = engine.profile
        body = await read_body(request, profile.max_body_bytes, share)
        target = await self._find(request)
        header = request.headers.get(HEADER_LENGTH)
        json_bytes = parse_header_length(header, len(body))
        if json_bytes > profile.max_json_bytes:  # its values may take twenty times its bytes
            text = f"{json_bytes} bytes of JSON; allowed: {profile.max_json_bytes}. Send tensors as binary data."
            raise HTTPException(_TOO_LARGE, text)
        strings = max_strings(target.metadata.inputs, profile)
        decode = functools.partial(decode_request, body, header, target.metadata.inputs, max_strings=strings)
        is_large = json_bytes > LARGE_JSON_BYTES or is_long(len(body), is_plain=not strings)
        asked = await engine.call(decode) if is_large else decode()
        response = await engine.infer(target, asked, share)
        check_json_result((tensor.array for tensor in response.outputs if not asked.wants_binary(tensor.name)), profile)
        encode = functools.partial(encode_response, response, asked)
        is_large = any(
            is_long(bytes_of(tensor.array), is_plain=tensor.datatype != "BYTES" and asked.wants_binary(tensor.name))
            for tensor in response.outputs
        )
        parts, length = await engine.call(encode) if is_large else encode()
        headers = {} if length is None else {HEADER_LENGTH: str(length)}
        result = b"".join(parts)
        encoding = _chosen_encoding(request.headers.get("accept-encoding", ""), length is not None)
        if encoding:
            headers["Content-Encoding"] = encoding
            result = await engine.call(_pack, result, encoding)
        share.keep_result(len(result), is_written=True)
        return Response(result, headers=headers, media_type=JSON if length is None else BINARY)

    async def _find(self, request: Request) -> Target:
        return await self._engine.find(request.path_params["model"], request.path_params.get("version", ""))

    async def _content(self, request: Request) -> dict[str, Any]:
        """Return the JSON object of a body that may be empty."""
        body = await read_body(request, LARGE_JSON_BYTES)
        content = parse_json(body) if body.strip() else {}
        if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict | None):
            raise InvalidInputError("the body, or parameters in it, is not a JSON object")
        return content


def _pack(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)


def _chosen_encoding(accepted: str, is_binary: bool) -> str | None:
    """Return how to compress a response. Binary tensors are compressed only if exactly one encoding is accepted."""
    words = [word.strip().lower() for word in accepted.split(",") if word.strip()]
    names = [word.partition(";")[0].strip() for word in words if not _NOT_WANTED.search(word.replace(" ", ""))]
    known = [name for name in names if name in ("gzip", "deflate")]
    return known[0] if known and (len(names) == 1 or not is_binary) else None
