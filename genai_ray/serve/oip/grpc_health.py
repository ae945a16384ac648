"""Who may call over gRPC; and what probes and tools ask: the standard health service, and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.middleware import bears_token
from genai_ray.serve.oip.messages import HEALTH, POOL, SERVICE, message_class

__all__ = ["REFLECTION", "HealthServicer", "Reply"]

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both names of the reflection service; their messages are the same."""

_WATCH_EVERY_S = 1.0
_MAX_WATCHERS = 64
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_MAX_REQUEST_BYTES = 4096
_MAX_DETAILS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """A message that is serialised already, with the method by which Ray Serve serialises messages."""

    data: bytes
    """The serialised message."""

    def SerializeToString(self) -> bytes:
        """Return the bytes of the message.

        Returns:
            ``data``.
        """
        return self.data


class HealthServicer:
    """Admission of calls, and the methods of health and reflection, under the names by which Ray Serve finds them.

    Args:
        engine: Computes requests; has the options, and counts responses.
        is_allowed: Tells whether a peer may call, by its address as gRPC writes it.
    """

    def __init__(self, engine: Engine, is_allowed: Callable[[str], bool]) -> None:
        self.engine = engine
        self.is_allowed = is_allowed
        self._watchers = 0
        self._reflection = ReflectionServicer((SERVICE, HEALTH, *REFLECTION), POOL)

    def admit(self, grpc_context: Any, *, is_open: bool = False) -> bool:
        """Check whether a call may be answered, and set its status if not.

        Args:
            grpc_context: Ray Serve's context of the call.
            is_open: Whether the call needs no token.

        Returns:
            Whether the call may be answered.
        """
        if not self.is_allowed(grpc_context.peer()):
            self.refuse(grpc_context, grpc.StatusCode.PERMISSION_DENIED, "this endpoint is for its own machine only")
            return False
        authorization = dict(grpc_context.invocation_metadata()).get("authorization", "")
        if is_open or bears_token(authorization, self.engine.profile.token_sha256):
            return True
        self.refuse(
            grpc_context,
            grpc.StatusCode.UNAUTHENTICATED,
            "no token, or a wrong one; send the metadata authorization: Bearer TOKEN",
        )
        return False

    def refuse(self, grpc_context: Any, code: grpc.StatusCode, text: str) -> None:
        """Set the status of a call that is refused or failed.

        Args:
            grpc_context: Ray Serve's context of the call.
            code: The status.
            text: Why.
        """
        self.engine.statistics.note_response("grpc", code.name)
        # A trailer carries the text, percent-encoded; clients take 8 KiB of trailers by default.
        while len(quote(text)) > _MAX_DETAILS_BYTES:
            text = text[: len(text) * 3 // 4]
        grpc_context.set_code(code)
        grpc_context.set_details(text)

    async def Check(self, request: bytes, grpc_context: Any) -> Reply:
        """Tell whether a service takes requests; no token is needed.

        Args:
            request: A serialised ``HealthCheckRequest``.
            grpc_context: Ray Serve's picklable context of the call.

        Returns:
            A serialised ``HealthCheckResponse``; empty if the call is refused.
        """
        if not self.admit(grpc_context, is_open=True):
            return Reply(b"")
        status = self._status_of(request)
        if status == _SERVICE_UNKNOWN:
            self.refuse(
                grpc_context,
                grpc.StatusCode.NOT_FOUND,
                f"no such service; allowed: {SERVICE}, or an empty name for all services",
            )
            return Reply(b"")
        return _write_status(status)

    async def Watch(self, request: bytes, grpc_context: Any) -> AsyncIterator[Reply]:
        """Tell whether a service takes requests, and again whenever that changes.

        Args:
            request: A serialised ``HealthCheckRequest``.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            Serialised ``HealthCheckResponse``s.
        """
        if not self.admit(grpc_context, is_open=True):
            return
        if self._watchers >= _MAX_WATCHERS:
            self.refuse(
                grpc_context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{_MAX_WATCHERS} calls watch the health of this replica already",
            )
            return
        self._watchers += 1
        try:
            sent = None
            while True:
                status = self._status_of(request)
                if status != sent:
                    yield _write_status(status)
                    sent = status
                await asyncio.sleep(_WATCH_EVERY_S)
        finally:
            self._watchers -= 1

    async def ServerReflectionInfo(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:
        """Describe the services and their messages.

        Args:
            requests: Serialised ``ServerReflectionRequest``s.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            A serialised ``ServerReflectionResponse`` for each request.
        """
        if not self.admit(grpc_context):
            return
        try:
            async for answer in self._reflection.ServerReflectionInfo(_parse_each(requests), None):
                yield Reply(answer.SerializeToString())
        except DecodeError as exc:
            self.refuse(grpc_context, grpc.StatusCode.INVALID_ARGUMENT, f"not a message of this call: {exc}")

    def _status_of(self, request: bytes) -> int:
        try:
            service = message_class("HealthCheckRequest").FromString(request[:_MAX_REQUEST_BYTES]).service
        except DecodeError:
            return _SERVICE_UNKNOWN
        if service not in ("", SERVICE):
            return _SERVICE_UNKNOWN
        return _SERVING if self.engine.cache.is_open else _NOT_SERVING


async def _parse_each(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(request)


def _write_status(status: int) -> Reply:
    return Reply(message_class("HealthCheckResponse")(status=status).SerializeToString())
