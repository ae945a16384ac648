"""How errors become HTTP responses: the status of each, the body ``{"error": text}``, and Starlette's handlers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

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

__all__ = ["EXCEPTION_HANDLERS", "STATUSES", "error_response", "status_of", "without_folders"]

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
"""The status of each error: the first row that fits. The last row is for models that cannot be loaded."""

_FOLDERS = re.compile(r"(?<![\w:/.])/(?!v[12]/)(?:[^/\n'\":;,()]+/)+(?=[^/\s])")
"""An absolute path without its last part; the routes of the endpoint, /v1/ and /v2/, are no paths."""

_RETRY_AFTER_S = "1"
_RETRIED = (429, 503)
_NO_ROUTE = (404, 405)
_CLIENT_GONE = 499


def status_of(error: GenAIRayError) -> int:
    """Return the HTTP status of an error.

    Args:
        error: Any error of this package.

    Returns:
        The status.
    """
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def error_response(status: int, error: object, headers: Mapping[str, str] | None = None) -> Response:
    """Build the response of an error; 429 and 503 say when to send the request again.

    Args:
        status: HTTP status.
        error: An error or its text; folders of this machine are removed from it.
        headers: Other headers.

    Returns:
        The response.
    """
    retry = {"Retry-After": _RETRY_AFTER_S} if status in _RETRIED else {}
    return JSONResponse({"error": without_folders(error)}, status, {**retry, **(headers or {})})


def without_folders(text: object) -> str:
    """Return a text for clients, who need not know the folders of this machine.

    Args:
        text: An error, or a text that may have absolute paths.

    Returns:
        The text with only the name of each file.
    """
    return _FOLDERS.sub("", str(text))


async def _handle(request: Request, exc: Exception) -> Response:
    if isinstance(exc, HTTPException):
        route = f"{request.method} {request.url.path}: " if exc.status_code in _NO_ROUTE else ""
        return JSONResponse({"error": route + exc.detail}, exc.status_code, exc.headers)
    if isinstance(exc, GenAIRayError):
        return error_response(status_of(exc), exc)
    if isinstance(exc, ClientDisconnect):
        return error_response(_CLIENT_GONE, "the client closed the connection")
    _log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return error_response(500, f"the server failed: {type(exc).__name__}")


EXCEPTION_HANDLERS = dict.fromkeys((HTTPException, GenAIRayError, ClientDisconnect, Exception), _handle)
"""What Starlette calls for each exception."""
