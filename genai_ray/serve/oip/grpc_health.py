"""What probes and tools ask over gRPC: health as Kubernetes asks for it, and which services and messages there are."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from genai_ray.serve.oip.messages import HEALTH, POOL, SERVICE, message_class

__all__ = ["REFLECTION", "Probes", "Reply"]

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both names of the one service; their messages are the same."""

_WATCH_EVERY_S = 1.0
_MOST_WATCHERS = 64
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_TOO_LONG = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """A message that is bytes already, in the shape that Ray Serve asks messages for theirs."""

    data: bytes
    """The message."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return the bytes of the message.

        Returns:
            They.
        """
        return self.data


class Probes(ABC):
    """The methods of ``grpc.health.v1.Health`` and of reflection, under the names by which Ray Serve finds them."""

    def __init__(self) -> None:
        self._watchers = 0
        self._reflection = ReflectionServicer((SERVICE, HEALTH, *REFLECTION), POOL)

    @property
    @abstractmethod
    def is_serving(self) -> bool:
        """Whether requests are taken."""

    @abstractmethod
    def admit(self, grpc_context: Any, *, is_open: bool = False) -> bool:
        """Tell whether a call may be answered; see ``Rpc.admit``.

        Args:
            grpc_context: Ray Serve's context of the call.
            is_open: Whether it is answered without a token.

        Returns:
            Whether it may.
        """

    @abstractmethod
    def refuse(self, grpc_context: Any, code: grpc.StatusCode, text: str) -> bool:
        """Set the status of a call that is not answered.

        Args:
            grpc_context: Ray Serve's context of the call.
            code: The status.
            text: Why.

        Returns:
            False.
        """

    async def Check(self, request: bytes, grpc_context: Any) -> Reply:  # noqa: N802 - the protocol's name
        """Tell whether a service takes requests; nobody needs a token for that.

        Args:
            request: A serialised ``HealthCheckRequest``.
            grpc_context: Ray Serve's picklable context of the call.

        Returns:
            A serialised ``HealthCheckResponse``.
        """
        if not self.admit(grpc_context, is_open=True):
            return Reply(b"")
        status = self._status_of(request)
        if status == _SERVICE_UNKNOWN:
            self.refuse(
                grpc_context,
                grpc.StatusCode.NOT_FOUND,
                f"no such service; there is {SERVICE}, and the empty name for all",
            )
            return Reply(b"")
        return _write_status(status)

    async def Watch(self, request: bytes, grpc_context: Any) -> AsyncIterator[Reply]:  # noqa: N802 - the protocol's name
        """Tell whether a service takes requests, and again when that changes.

        Args:
            request: A serialised ``HealthCheckRequest``.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            Serialised ``HealthCheckResponse``s.
        """
        if not self.admit(grpc_context, is_open=True):
            return
        if self._watchers >= _MOST_WATCHERS:
            self.refuse(
                grpc_context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{_MOST_WATCHERS} watch the health of this replica already",
            )
            return
        self._watchers += 1
        try:
            told = None
            while True:
                status = self._status_of(request)
                if status != told:
                    yield _write_status(status)
                    told = status
                await asyncio.sleep(_WATCH_EVERY_S)
        finally:
            self._watchers -= 1

    async def ServerReflectionInfo(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:  # noqa: N802 - the protocol's name
        """Tell which services there are, and their messages.

        Args:
            requests: Serialised ``ServerReflectionRequest``s.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            A serialised ``ServerReflectionResponse`` for each.
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
            service = message_class("HealthCheckRequest").FromString(request[:_TOO_LONG]).service
        except DecodeError:
            return _SERVICE_UNKNOWN
        if service not in ("", SERVICE):
            return _SERVICE_UNKNOWN
        return _SERVING if self.is_serving else _NOT_SERVING


async def _parse_each(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(request)


def _write_status(status: int) -> Reply:
    return Reply(message_class("HealthCheckResponse")(status=status).SerializeToString())
