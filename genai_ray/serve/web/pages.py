"""The web page at ``/``, three files of ``page/`` beside this module, and ``GET /v1/cache``, what its second view shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.bodies import Query
from genai_ray.serve.http.routes import JSON, Operation, ref

__all__ = ["page_operations"]

_FOLDER = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"

_FRESH_S = 0.8
"""A state of the cache is told again to whoever asks within this: it takes a question to every session."""

_DEVICE = ("device", "kind", "used_bytes", "free_bytes", "budget_bytes")
_SESSION = (
    "backend",
    "precision",
    "placed_on",
    "state",
    "bytes",
    "pinned",
    "leased",
    "hits",
    "queue",
    "idle_s",
    "load_s",
)


def page_operations(engine: Engine) -> list[Operation]:
    """Return the page's part of the table of routes.

    Args:
        engine: What knows the cache.

    Returns:
        The rows.
    """
    summary = "What the cluster's cache has: devices, sessions, bytes, hits."
    operations = [
        Operation("GET", "/v1/cache", _Cache(engine).tell, "cache", summary, {JSON: ref("Cache")}, errors=(400, 504))
    ]
    for path, (name, media_type) in _FILES.items():
        answer = {media_type: {"type": "string"}}
        operations.append(
            Operation(
                "GET", path, _file(_FOLDER / name, media_type), name, "A file of the web page.", answer, is_open=True
            )
        )
    return operations


def _file(path: Path, media_type: str) -> Any:
    content = path.read_bytes()
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return answer


class _Cache:
    """Tells the state of the cluster's cache in the names of the endpoint, whose files' paths are nobody's business."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._told: dict[str, Any] = {}
        self._told_s = float("-inf")

    async def tell(self, request: Request) -> Response:
        Query.of(request, once=())
        async with self._lock:
            if time.monotonic() - self._told_s > _FRESH_S:
                self._told = self._describe(await self._engine.status())
                self._told_s = time.monotonic()
        return JSONResponse(self._told, headers={"Cache-Control": "no-store"})

    def _describe(self, status: Mapping[str, Any]) -> dict[str, Any]:
        names = {source: model.name for model in self._engine.repository.models() for source in model.versions.values()}
        sessions = [
            {
                "model": names.get(entry["model_id"], PurePath(entry["model_id"]).name),
                **{name: entry[name] for name in _SESSION},
                "avg_latency_ms": entry["session"].get("avg_latency_ms"),
            }
            for entry in status["models"]
        ]
        counts = {name: status.get(name, 0) for name in ("loads", "evictions", "failures")}
        past = sum(int(figures.get("hits", 0)) for figures in status["history"].values())
        return {
            "used_bytes": status["used_bytes"],
            "budget_bytes": status["budget_bytes"],
            "policy": status["policy"],
            **counts,
            "hits": past + sum(int(entry["hits"]) for entry in status["models"]),
            "devices": [{name: device[name] for name in _DEVICE} for device in status["devices"]],
            "sessions": sessions,
        }
