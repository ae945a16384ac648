"""The document at ``/openapi.json``: OpenAPI 3.1, made of the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from genai_ray.catalog import ServeProfile
from genai_ray.serve.http.routes import JSON, Operation, Schema, ref
from genai_ray.serve.oip.schemas import ERROR, SCHEMAS

__all__ = ["describe_api"]

_PARAMETERS: dict[str, Schema] = {
    "model": {
        "type": "string",
        "pattern": "^[^/]+$",
        "description": "Name of the model; POST /v2/repository/index lists them.",
    },
    "version": {"type": "string", "pattern": "^[0-9]+$"},
    "job_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}
"""Of paths."""

_ALWAYS = (403, 500, 503)
"""Any operation may be asked for by a stranger, may fail, and HAProxy may find no replica that answers."""

_WHEN = {
    206: "A part, as Range asks.",
    400: "The request does not fit the interface or the model.",
    401: "No token, or a wrong one.",
    403: "A Host that is not allowed, or a page of an origin that is not.",
    404: "No such model, version or job.",
    409: "The state of the model or of the job does not allow it.",
    413: "The body, also unpacked, is too large.",
    415: "Another Content-Encoding than gzip or deflate.",
    416: "No such part.",
    429: "Too many requests, of this model or altogether, too many bytes of theirs, or too many jobs, at this moment.",
    500: "The server, or the runtime on this input, failed.",
    503: "Loading, without room, not usable (the reason is told), or ending.",
    504: "Not done in time.",
    507: "The disk is full.",
}
_WAITS = (429, 503)
_FILES = (206,)


def describe_api(operations: Iterable[Operation], version: str, profile: ServeProfile) -> dict[str, Any]:
    """Return the document.

    Args:
        operations: The table of routes.
        version: Of the package.
        profile: Options: whether a token is asked for, and how large a body may be.

    Returns:
        Fit for JSON.
    """
    paths: dict[str, dict[str, Any]] = {}
    has_token = profile.token_sha256 is not None
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, has_token)
    components: dict[str, Any] = {"schemas": SCHEMAS}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    limits = f"A body may have {profile.max_body_bytes} bytes, packed and unpacked; one with a video {profile.people.max_video_bytes}."
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "genai_ray",
            "version": version,
            "description": f"The Open Inference Protocol v2 for machines, pictures and videos for people. {limits} Whoever answers GET answers HEAD.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def _describe(operation: Operation, has_token: bool) -> dict[str, Any]:
    is_closed = has_token and not operation.is_open
    names = re.findall(r"{(\w+)}", operation.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]} for name in names]
    parameters += [
        {"name": name, "in": "query", "required": name in operation.needed, "schema": schema}
        for name, schema in operation.query.items()
    ]
    parameters += [{"name": name, "in": "header", "schema": schema} for name, schema in operation.headers.items()]
    responses = {str(operation.status): _success(operation)}
    for status in sorted({*operation.errors, *_ALWAYS, *((401,) if is_closed else ())}):
        responses[str(status)] = _success(operation, _WHEN[status]) if status in _FILES else _failure(status)
    told: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary, "responses": responses}
    if parameters:
        told["parameters"] = parameters
    if operation.body:
        told["requestBody"] = {"required": operation.is_body_needed, "content": _content(operation.body)}
    if is_closed:
        told["security"] = [{"token": []}]
    return told


def _success(operation: Operation, words: str = "") -> dict[str, Any]:
    told: dict[str, Any] = {"description": words or HTTPStatus(operation.status).phrase}
    if operation.answers:
        told["content"] = _content(operation.answers)
    if operation.answer_headers:
        told["headers"] = {name: {"schema": schema} for name, schema in operation.answer_headers.items()}
    return told


def _failure(status: int) -> dict[str, Any]:
    told: dict[str, Any] = {"description": _WHEN[status], "content": _content({JSON: ref(ERROR)})}
    if status in _WAITS:
        told["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 0}}}
    return told


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}
