"""The web page at ``/``, which are the files in ``page/``, and ``GET /v1/cache``, which its second view shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genai_ray.cluster import CacheStatus
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.queries import Query, parse_query
from genai_ray.serve.http.routes import COUNT, FILE, JSON, NAME, TEXT, Operation, Schema, list_of, record, ref

__all__ = ["SCHEMAS", "page_operations"]

_FOLDER = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in ("page.js", "parts.js", "compare.js", "cache.js")},
    "/sample.webp": ("sample.webp", "image/webp"),
    "/sample.mp4": ("sample.mp4", "video/mp4"),
}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)

_FRESH_S = 0.8
"""Seconds for which one state of the cache is reused: to read it, every session is asked."""

_FLAG: Schema = {"type": "boolean"}
_OR_NONE: Schema = {"type": ["number", "null"], "minimum": 0}
_TOTALS = dict.fromkeys(("used_bytes", "budget_bytes", "loads", "evictions", "failures"), COUNT) | {"policy": NAME}
_DEVICE: dict[str, Schema] = {
    "device": NAME,
    "kind": TEXT,
    "used_bytes": COUNT,
    "free_bytes": {"type": "integer"},
    "budget_bytes": COUNT,
}
_SESSION: dict[str, Schema] = {
    **dict.fromkeys(("backend", "precision", "state"), NAME),
    "placed_on": {"type": ["string", "null"]},
    **dict.fromkeys(("bytes", "hits", "queue"), COUNT),
    **dict.fromkeys(("pinned", "leased"), _FLAG),
    "idle_s": {"type": "number"},
    "load_s": _OR_NONE,
}
"""What is copied from the ``CacheStatus``, from each of its devices and from each of its sessions."""

SCHEMAS: dict[str, Schema] = {
    "Cache": record(
        **_TOTALS,
        hits=COUNT,
        devices=list_of(record(**_DEVICE)),
        sessions=list_of(record(**_SESSION, model=NAME, avg_latency_ms=_OR_NONE)),
    )
}
"""Schema of ``GET /v1/cache``."""


def page_operations(engine: Engine) -> list[Operation]:
    """Return the rows of the route table for the page.

    Args:
        engine: Knows the cache.

    Returns:
        The rows.
    """
    summary = "Devices, sessions, bytes and hits of the cluster's model cache."
    cache = Operation(
        "GET", "/v1/cache", _Cache(engine).describe, "cache", summary, {JSON: ref("Cache")}, errors=(400, 504)
    )
    return [cache, *(_file_operation(path, name, media_type) for path, (name, media_type) in _FILES.items())]


def _file_operation(path: str, name: str, media_type: str) -> Operation:
    content = (_FOLDER / name).read_bytes()
    schema = TEXT if media_type.startswith("text/") else FILE
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return Operation("GET", path, answer, name, "A file of the web page.", {media_type: schema}, is_open=True)


class _Cache:
    """Describes the cache with the endpoint's names of models, never with the paths of their files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._known: dict[str, Any] = {}
        self._known_s = float("-inf")

    async def describe(self, request: Request) -> Response:
        parse_query(request, Query)
        async with self._lock:
            if time.monotonic() - self._known_s > _FRESH_S:
                self._known = self._describe(await self._engine.status())
                self._known_s = time.monotonic()
        return JSONResponse(self._known, headers={"Cache-Control": "no-store"})

    def _describe(self, status: CacheStatus) -> dict[str, Any]:
        names = {source: model.name for model in self._engine.repository.models() for source in model.versions.values()}
        sessions = [
            {
                "model": names.get(entry.model_id, PurePath(entry.model_id).name),
                **_pick(entry, _SESSION),
                "avg_latency_ms": entry.session.get("avg_latency_ms"),
            }
            for entry in status.models
        ]
        past = sum(int(figures.get("hits", 0)) for figures in status.history.values())
        return {
            **_pick(status, _TOTALS),
            "hits": past + sum(entry.hits for entry in status.models),
            "devices": [_pick(device, _DEVICE) for device in status.devices],
            "sessions": sessions,
        }


def _pick(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
