"""``Operation``: one row of the route table. Starlette's routes and ``/openapi.json`` are both made of these rows.

Why not FastAPI (0.165, tried on three routes): it answers HEAD with 405, names one method in ``Allow``, accepts
repeated parameters and documents 422. It needs as many lines around it as it saves, and 55 us a request instead of 12.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from genai_ray.catalog import ServeProfile
from genai_ray.serve.http.queries import Query

__all__ = [
    "BINARY",
    "COUNT",
    "FILE",
    "HEADER_LENGTH",
    "JSON",
    "NAME",
    "TEXT",
    "Handler",
    "Operation",
    "Schema",
    "describe_api",
    "list_of",
    "map_of",
    "record",
    "ref",
    "to_routes",
]

Handler = Callable[[Request], Awaitable[Response]]
Schema = dict[str, Any]
"""A JSON Schema, 2020-12."""

JSON = "application/json"
BINARY = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON."""

FILE: Schema = {"type": "string", "format": "binary"}
NAME: Schema = {"type": "string", "minLength": 1}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}

_ERROR = "Error"
_PATH_PARAMETERS: dict[str, Schema] = {
    "model": {
        "type": "string",
        "pattern": "^[^/]+$",
        "description": "Name of the model; POST /v2/repository/index lists them.",
    },
    "version": {"type": "string", "pattern": "^[0-9]+$"},
    "job_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}
_ANY_OPERATION = (403, 500, 503)
"""Statuses of every operation: middleware may refuse it, it may fail, and HAProxy may find no replica."""
_DESCRIPTIONS = {
    206: "The part that Range asks for.",
    400: "The request does not fit the interface or the model.",
    401: "The token is missing or wrong.",
    403: "The Host, or the origin of the page, is not allowed.",
    404: "No such model, version or job.",
    409: "The state of the model or of the job does not allow it.",
    413: "The body is too large, packed or unpacked.",
    415: "Content-Encoding is neither gzip nor deflate.",
    416: "No such part.",
    429: "Too many requests, of this model or in all, too many of their bytes, or too many jobs at this moment.",
    500: "The server failed, or the runtime failed on this input.",
    503: "The model is loading, does not fit, or cannot be used (the error says why), or the server is stopping.",
    504: "Not done in time.",
    507: "The disk is full.",
}
_RETRIED = (429, 503)
_PARTIAL = 206


def ref(name: str) -> Schema:
    """Return a reference to a schema of the document.

    Args:
        name: Its name under ``components``.

    Returns:
        The schema.
    """
    return {"$ref": f"#/components/schemas/{name}"}


def record(optional: Mapping[str, Schema] | None = None, **fields: Schema) -> Schema:
    """Return the schema of an object that has these fields and no others.

    Args:
        optional: Fields that may be missing.
        fields: Fields that are always there.

    Returns:
        The schema.
    """
    return {
        "type": "object",
        "required": sorted(fields),
        "properties": {**fields, **(optional or {})},
        "additionalProperties": False,
    }


def list_of(items: Schema, **bounds: int) -> Schema:
    """Return the schema of an array.

    Args:
        items: Schema of each item.
        bounds: ``minItems`` or ``maxItems``.

    Returns:
        The schema.
    """
    return {"type": "array", "items": items, **bounds}


def map_of(values: Schema) -> Schema:
    """Return the schema of an object whose names are free.

    Args:
        values: Schema of each value.

    Returns:
        The schema.
    """
    return {"type": "object", "additionalProperties": values}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    """``GET``, ``POST`` or ``DELETE``; each GET route answers HEAD as well."""
    path: str
    """As Starlette and OpenAPI both write it: ``/v2/models/{model}``."""
    handler: Handler
    """The function that answers."""
    name: str
    """``operationId``."""
    summary: str
    """One sentence."""
    answers: Mapping[str, Schema] = field(default_factory=dict)
    """Schema of the response by media type; none for an empty body."""
    status: int = 200
    """Status of a success."""
    errors: tuple[int, ...] = ()
    """Other statuses of this operation, beside those of every operation."""
    query: type[Query] = Query
    """The query that it reads."""
    headers: Mapping[str, Schema] = field(default_factory=dict)
    """Schema of each request header that the operation reads."""
    answer_headers: Mapping[str, Schema] = field(default_factory=dict)
    """Schema of each response header."""
    body: Mapping[str, Schema] = field(default_factory=dict)
    """Schema of the request body by media type; only forms are recognized by their Content-Type."""
    is_body_needed: bool = True
    """Whether the body is required, if there is a schema of one."""
    is_open: bool = False
    """Whether it needs no token: what load balancers look at, and the page, which asks for the token."""


def to_routes(operations: Iterable[Operation]) -> list[Route]:
    """Return Starlette's routes: one for each path with all of its methods, so that 405 names them in ``Allow``.

    Args:
        operations: The table.

    Returns:
        The routes, in the order of their paths in the table.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handler
    return [Route(path, _by_method(handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def describe_api(
    operations: Iterable[Operation], schemas: Mapping[str, Schema], version: str, profile: ServeProfile
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    Args:
        operations: The table.
        schemas: Every schema that the table refers to, by name.
        version: Version of the package.
        profile: Options: whether a token is needed, and how large a body may be.

    Returns:
        The document, fit for JSON.
    """
    paths: dict[str, dict[str, Any]] = {}
    has_token = profile.token_sha256 is not None
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, has_token)
    components: dict[str, Any] = {"schemas": {**schemas, _ERROR: record(error=NAME)}}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    description = (
        "The Open Inference Protocol v2 for machines, pictures and videos for people. "
        f"A body may have {profile.max_body_bytes} bytes, packed and unpacked; "
        f"one with a video {profile.people.max_video_bytes}. Each GET route answers HEAD."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "genai_ray", "version": version, "description": description},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    async def answer(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return answer


def _describe(operation: Operation, has_token: bool) -> dict[str, Any]:
    is_closed = has_token and not operation.is_open
    names = re.findall(r"{(\w+)}", operation.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]} for name in names]
    query = operation.query.model_json_schema()
    for name, schema in query["properties"].items():
        schema.pop("title", None)
        schema.pop("default", None)
        parameters.append(
            {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": schema}
        )
    parameters += [{"name": name, "in": "header", "schema": schema} for name, schema in operation.headers.items()]
    responses = {str(operation.status): _success(operation, HTTPStatus(operation.status).phrase)}
    for status in sorted({*operation.errors, *_ANY_OPERATION, *((401,) if is_closed else ())}):
        words = _DESCRIPTIONS[status]
        responses[str(status)] = _success(operation, words) if status == _PARTIAL else _failure(status, words)
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary, "responses": responses}
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {"required": operation.is_body_needed, "content": _content(operation.body)}
    if is_closed:
        described["security"] = [{"token": []}]
    return described


def _success(operation: Operation, words: str) -> dict[str, Any]:
    described: dict[str, Any] = {"description": words}
    if operation.answers:
        described["content"] = _content(operation.answers)
    if operation.answer_headers:
        described["headers"] = {name: {"schema": schema} for name, schema in operation.answer_headers.items()}
    return described


def _failure(status: int, words: str) -> dict[str, Any]:
    described: dict[str, Any] = {"description": words, "content": _content({JSON: ref(_ERROR)})}
    if status in _RETRIED:
        described["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 0}}}
    return described


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}
