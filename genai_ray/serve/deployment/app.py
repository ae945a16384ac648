"""The application: the route table of all rooms, and the ASGI application that is made of it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from genai_ray import __version__
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.http.errors import EXCEPTION_HANDLERS
from genai_ray.serve.http.metrics import CONTENT_TYPE, write_metrics
from genai_ray.serve.http.middleware import UntilSent
from genai_ray.serve.http.routes import JSON, TEXT, Operation, describe_api, to_routes
from genai_ray.serve.oip import rest
from genai_ray.serve.oip import schemas as protocol
from genai_ray.serve.web import pages, pictures, video_job, videos

__all__ = ["SCHEMAS", "build_app", "list_operations"]

SCHEMAS = protocol.SCHEMAS | pictures.SCHEMAS | video_job.SCHEMAS | pages.SCHEMAS
"""Every schema of ``/openapi.json`` but that of errors, by name."""


def list_operations(engine: Engine, statistics: Callable[[], Awaitable[Statistics]]) -> list[Operation]:
    """Return the route table: everything that is served over HTTP.

    Args:
        engine: Computes.
        statistics: Gives the figures of all replicas.

    Returns:
        The rows.
    """

    @functools.cache
    def describe() -> dict[str, Any]:
        return describe_api(operations, SCHEMAS, __version__, engine.profile)

    async def document(request: Request) -> Response:
        return JSONResponse(describe())

    async def metrics(request: Request) -> Response:
        text = write_metrics(await statistics(), await engine.status())
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    plain = {"text/plain": TEXT}
    operations = [
        *rest.protocol_operations(engine, statistics),
        *pages.page_operations(engine),
        *pictures.picture_operations(engine),
        *videos.video_operations(engine),
        Operation("GET", "/metrics", metrics, "metrics", "Figures for Prometheus.", plain, errors=(504,)),
        Operation(
            "GET", "/openapi.json", document, "openapi", "This document.", {JSON: {"type": "object"}}, is_open=True
        ),
    ]
    return operations


def build_app(
    operations: Iterable[Operation], lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None
) -> ASGIApp:
    """Build the ASGI application.

    Args:
        operations: The route table.
        lifespan: Runs beside the application as long as it lives.

    Returns:
        The application.
    """
    app = Starlette(routes=to_routes(operations), lifespan=lifespan, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False
    return UntilSent(app)
