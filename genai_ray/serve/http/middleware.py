"""What every request and response passes: Host and Origin, the token, counts, the access log, sending in pieces.

A browser lets a page of any origin send simple requests to this machine. A page whose name was made to point here (DNS
rebinding) can also read the responses. Such a request names the page's own host or origin. Other clients send no such
headers, and are let through.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genai_ray.catalog import ServeProfile
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.routes import Operation

__all__ = ["UNTIL_SENT", "Middleware", "UntilSent", "bears_token", "explain_refusal"]

_log = logging.getLogger(__name__)

UNTIL_SENT = "genai_ray.until_sent"
"""Name, in a request's scope, of an ``ExitStack`` that is closed when the response is sent, or the client is gone."""
PIECE_BYTES = 256 * 1024
PIECE_WITHIN_S = 30.0
"""Most seconds to send a piece. A client that reads less than 8 KiB a second would hold its result for ever."""

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_CLIENT_GONE = 499
_HEALTH = ("/v2/health/live", "/v2/health/ready")
"""Answered whatever the Host: probes name what they like, and health is no secret."""
_EXPOSED = ("Retry-After", "x-request-id", "Content-Disposition")
"""Headers, beside those of the route table, that a page of an allowed origin may read."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@,\s]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_DOTLESS = re.compile(r"[a-z][a-z0-9_-]*")
_ORIGIN = re.compile(r"(https?)://([^/@\s]+)", re.IGNORECASE)
_PORTS = {"http": ":80", "https": ":443"}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_SITES = ("same-origin", "none")
"""``Sec-Fetch-Site`` of this endpoint's page, or of no page, such as an address that a person typed."""


class Middleware:
    """The ASGI application around all routes.

    Args:
        app: The inner application.
        engine: Has the options and the counts.
        operations: The route table: which paths need no token, and which headers a page may read.
    """

    def __init__(self, app: ASGIApp, engine: Engine, operations: Collection[Operation]) -> None:
        self._engine = engine
        self._profile = engine.profile
        self._open_paths = {operation.path for operation in operations if operation.is_open}
        self._inner = app
        self._app: ASGIApp = self._check_token
        if origins := engine.profile.cors_origins:
            exposed = sorted({*_EXPOSED, *(name for operation in operations for name in operation.answer_headers)})
            # CORS comes before the token: a page sends a preflight without one, and must be able to read a 401.
            self._app = CORSMiddleware(
                self._check_token, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
            )
        self._access_log = _AccessLog(Path(engine.profile.access_log)) if engine.profile.access_log else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it.

        Args:
            scope: As in ASGI.
            receive: As in ASGI.
            send: As in ASGI.
        """
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        status = _CLIENT_GONE
        sent_bytes = 0

        async def watched(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        refusal = "" if scope["path"] in _HEALTH else explain_refusal(scope["method"], headers, self._profile)
        try:
            if refusal:
                await JSONResponse({"error": refusal}, _FORBIDDEN)(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        finally:
            self._engine.statistics.note_response("http", str(status))
            if self._access_log is not None:
                self._access_log.write(
                    {
                        "time": time.time(),
                        "request_id": headers.get("x-request-id", ""),
                        "client": (scope.get("client") or [""])[0],
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "received_bytes": int(size) if (size := headers.get("content-length", "")).isdigit() else None,
                        "sent_bytes": sent_bytes,
                        "ms": round((time.perf_counter() - began) * 1000, 3),
                    }
                )

    async def _check_token(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._inner
        authorization = Headers(scope=scope).get("authorization", "")
        if scope["path"] not in self._open_paths and not bears_token(authorization, self._profile.token_sha256):
            text = "no token, or a wrong one; send Authorization: Bearer TOKEN"
            app = JSONResponse({"error": text}, _UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


class UntilSent:
    """An ASGI application that sends each response in pieces, and keeps its ``UNTIL_SENT`` stack open meanwhile.

    Args:
        app: The inner application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Args:
            scope: As in ASGI.
            receive: As in ASGI.
            send: As in ASGI.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(PIECE_WITHIN_S):
                    await send(message)
            except TimeoutError as exc:
                raise _TooSlowError from exc

        async def in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await patiently(message)
                return
            view = memoryview(body)
            for start in range(0, len(view), PIECE_BYTES):
                await patiently({**message, "body": view[start : start + PIECE_BYTES], "more_body": True})
            # The server accepts a message when the last one is gone, so this one returns when all pieces are gone.
            await patiently({**message, "body": b""})

        with contextlib.ExitStack() as stack:
            scope[UNTIL_SENT] = stack
            try:
                await self._app(scope, receive, in_pieces)
            except _TooSlowError:  # the rest of the response is dropped, and the server closes the connection
                _log.warning("a client read less than %d bytes of its response in %g s", PIECE_BYTES, PIECE_WITHIN_S)


class _TooSlowError(Exception):
    """A client does not read its response."""


class _AccessLog:
    """One line of JSON for each request. Replicas of one node write to one file, each line in one piece."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)

    def write(self, fields: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(fields) + "\n").encode())


def bears_token(authorization: str, token_sha256: str | None) -> bool:
    """Tell whether a request bears the token.

    Args:
        authorization: Value of the header, or of the metadata, ``authorization``; empty if there is none.
        token_sha256: sha256 of the token, hexadecimal; None if no token is needed.

    Returns:
        Whether it may pass.
    """
    if token_sha256 is None:
        return True
    scheme, _, token = authorization.partition(" ")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(digest, token_sha256)


def explain_refusal(method: str, headers: Headers, profile: ServeProfile) -> str:
    """Say why the Host or the Origin of a request is not allowed.

    Args:
        method: Method of the request.
        headers: Headers of the request.
        profile: Options: where the endpoint listens, and which hosts and origins are allowed.

    Returns:
        A sentence; empty if the request is allowed.
    """
    for host in headers.getlist("host"):
        if host and not _is_allowed(host, profile):
            allowed = ", ".join(_list_allowed(profile))
            return f"Host {host[:100]!r}; allowed: {allowed}. Allow another one with --allowed-host NAME."
    if method in _SAFE_METHODS:
        return ""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none").lower()
    is_named = "*" in profile.cors_origins or origin in profile.cors_origins
    is_own = site in _OWN_SITES if origin is None else _is_same(origin, headers.get("host", ""))
    if is_own or is_named:
        return ""
    page = f"a page of another site ({site})" if origin is None else f"a page of origin {origin[:100]!r}"
    return f"{page} for {method}; allowed: this endpoint's own page. Allow another one with --cors-origin ORIGIN."


def _is_allowed(host: str, profile: ServeProfile) -> bool:
    found = _HOST.fullmatch(host)
    if "*" in profile.allowed_hosts or found is None:
        return found is not None
    name = _plain(found[1])
    for allowed in map(_plain, profile.allowed_hosts):
        if name == allowed or (allowed.startswith(".") and name.endswith(allowed) and name != allowed):
            return True
    address = _address(name)
    if name in ("localhost", _plain(profile.host)) or (address is not None and address.is_loopback):
        return True
    # An address, or a name without a dot, is never looked up in an attacker's DNS.
    return not _listens_on_loopback(profile) and (address is not None or _DOTLESS.fullmatch(name) is not None)


def _list_allowed(profile: ServeProfile) -> Iterable[str]:
    network = () if _listens_on_loopback(profile) else ("addresses", "names without a dot")
    return dict.fromkeys(("localhost", "127.0.0.1", "[::1]", profile.host, *network, *profile.allowed_hosts))


def _listens_on_loopback(profile: ServeProfile) -> bool:
    address = _address(_plain(profile.host))
    return profile.host == "localhost" or (address is not None and address.is_loopback)


def _is_same(origin: str, host: str) -> bool:
    """Tell whether an origin is this endpoint's own; a proxy in front of it may speak TLS."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    port = _PORTS[found[1].lower()]
    return found[2].lower().removesuffix(port) == host.lower().removesuffix(port)


def _plain(name: str) -> str:
    return name.lower().strip("[]").removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
