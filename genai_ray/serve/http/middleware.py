"""What every request over HTTP passes: hosts and origins, the token, the access log, and the count of answers."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.origins import explain_refusal
from genai_ray.serve.http.routes import HEADER_LENGTH

__all__ = ["Middleware", "bears_token"]

_UNAUTHORIZED, _FORBIDDEN, _CLOSED = 401, 403, 499
_HEALTH = ("/v2/health/live", "/v2/health/ready")
"""What is told whatever the Host: load balancers and probes name what they like, and what they hear is no secret."""
_EXPOSED = (
    HEADER_LENGTH,
    "Retry-After",
    "x-request-id",
    "Location",
    "Content-Disposition",
    "Server-Timing",
    "X-Model",
    "X-Backend",
    "X-Precision",
)
"""Headers of answers that a page of an allowed origin may read."""


def bears_token(authorization: str, token_sha256: str | None) -> bool:
    """Tell whether a request bears the token.

    Args:
        authorization: Value of its header, or metadata, ``authorization``; empty where there is none.
        token_sha256: sha256 of the token, hexadecimal; None where none is needed.

    Returns:
        Whether it may pass.
    """
    if token_sha256 is None:
        return True
    scheme, _, token = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        hashlib.sha256(token.strip().encode()).hexdigest(), token_sha256
    )


class Middleware:
    """An ASGI application around another one.

    Args:
        app: The other one.
        engine: Has the options, and counts.
        open_paths: What is told without a token.
    """

    def __init__(self, app: ASGIApp, engine: Engine, open_paths: Collection[str]) -> None:
        self._engine, self._profile, self._open_paths = engine, engine.profile, open_paths
        self._inner, self._app = app, self._checked
        if origins := engine.profile.cors_origins:
            # Around the check: a page must be able to read a refusal, and asks whether it may call before it shows a token.
            self._app = CORSMiddleware(
                self._checked, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
            )
        self._log = _AccessLog(Path(engine.profile.access_log)) if engine.profile.access_log else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it.

        Args:
            scope: As ASGI has it.
            receive: As ASGI has it.
            send: As ASGI has it.
        """
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        began, headers = time.perf_counter(), Headers(scope=scope)
        seen: dict[str, int] = {"status": _CLOSED, "bytes": 0}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            seen["bytes"] += len(message.get("body", b""))
            await send(message)

        refusal = "" if scope["path"] in _HEALTH else explain_refusal(scope["method"], headers, self._profile)
        try:
            if refusal:
                await JSONResponse({"error": refusal}, _FORBIDDEN)(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        finally:
            self._engine.statistics.note_response("http", str(seen["status"]))
            if self._log is not None:
                self._log.write(
                    {
                        "time": time.time(),
                        "request_id": headers.get("x-request-id", ""),
                        "client": (scope.get("client") or [""])[0],
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": seen["status"],
                        "received_bytes": int(length)
                        if (length := headers.get("content-length", "")).isdigit()
                        else None,
                        "sent_bytes": seen["bytes"],
                        "ms": round((time.perf_counter() - began) * 1000, 3),
                    }
                )

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._open_paths or bears_token(
            Headers(scope=scope).get("authorization", ""), self._profile.token_sha256
        ):
            await self._inner(scope, receive, send)
            return
        refusal = JSONResponse(
            {"error": "no token, or a wrong one; send Authorization: Bearer TOKEN"},
            _UNAUTHORIZED,
            {"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send)


class _AccessLog:
    """One line of JSON a request; replicas of one node write to one file, each line in one piece."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)

    def write(self, fields: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(fields) + "\n").encode())
