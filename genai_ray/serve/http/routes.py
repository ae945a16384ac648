"""``Operation``: one row of the table of routes. Starlette's routes and the document at ``/openapi.json`` are both made of these rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["BINARY", "HEADER_LENGTH", "JSON", "Handler", "Operation", "Schema", "open_paths", "ref", "to_routes"]

Handler = Callable[[Request], Awaitable[Response]]
Schema = dict[str, Any]
"""A JSON Schema, 2020-12."""

JSON, BINARY = "application/json", "application/octet-stream"

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON."""


def ref(name: str) -> Schema:
    """Return a reference to a component of the document.

    Args:
        name: Its name in ``schemas.SCHEMAS``.

    Returns:
        The schema.
    """
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    """``GET``, ``POST`` or ``DELETE``; whoever answers GET answers HEAD as well."""
    path: str
    """As Starlette and OpenAPI both write it: ``/v2/models/{model}``."""
    handler: Handler
    """What answers."""
    name: str
    """``operationId``."""
    summary: str
    """One sentence."""
    answers: Mapping[str, Schema] = field(default_factory=dict)
    """What comes back, by media type; empty for an empty body."""
    status: int = 200
    """Of what comes back."""
    errors: tuple[int, ...] = ()
    """Other statuses that this operation gives, beside those that each one may."""
    query: Mapping[str, Schema] = field(default_factory=dict)
    """What may be in the query."""
    needed: tuple[str, ...] = ()
    """What of it must be there."""
    headers: Mapping[str, Schema] = field(default_factory=dict)
    """What of the request's headers counts."""
    answer_headers: Mapping[str, Schema] = field(default_factory=dict)
    """Headers of what comes back."""
    body: Mapping[str, Schema] = field(default_factory=dict)
    """What is taken as a body, by media type; the media type itself is not looked at, but for forms."""
    is_body_needed: bool = True
    """Whether a body must be there, where one is taken."""
    is_open: bool = False
    """Whether it is told without a token: what a load balancer looks at, and the page, which asks for the token."""


def to_routes(operations: Iterable[Operation]) -> list[Route]:
    """Return the routes of a table: one a path, which knows all of its methods, so that 405 can tell them.

    Args:
        operations: The table.

    Returns:
        The routes, in the order in which their paths come.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handler
    return [Route(path, _by_method(handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def open_paths(operations: Iterable[Operation]) -> frozenset[str]:
    """Return the paths that are told without a token.

    Args:
        operations: The table.

    Returns:
        The paths.
    """
    return frozenset(operation.path for operation in operations if operation.is_open)


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    if len(handlers) == 1:
        (handler,) = handlers.values()
        return handler

    async def answer(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return answer
