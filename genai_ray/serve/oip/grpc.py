"""The protocol over gRPC: the service that Ray Serve's gRPC ingress registers, and its methods.

Requests and responses pass Ray Serve as bytes: bytes are picklable, and only the replica that answers parses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from genai_ray import __version__
from genai_ray.errors import GenAIRayError, InvalidInputError
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.limits import LARGE_JSON_BYTES, bytes_of, is_long, max_strings
from genai_ray.serve.http.errors import status_of, without_folders
from genai_ray.serve.oip.grpc_health import REFLECTION, HealthServicer, Reply
from genai_ray.serve.oip.messages import (
    HEALTH,
    METHODS,
    SERVICE,
    STREAM,
    count_typed_bytes,
    is_answered_raw,
    mark_final,
    message_class,
    read_request,
    write_response,
)
from genai_ray.serve.oip.metadata import (
    describe_config,
    describe_index,
    describe_model,
    describe_server,
    describe_statistics,
)

__all__ = ["InferenceServicer", "Reply", "add_inference_service"]

Result = TypeVar("Result")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OPEN = ("ServerLive", "ServerReady")
"""Methods that need no token."""
_STREAM_AHEAD = 8
"""Most requests of one stream that are computed at the same time."""
_sending: ContextVar[contextlib.ExitStack | None] = ContextVar("sending", default=None)
"""Closed when the response to the call that this task serves has been sent."""


class _InStream(NamedTuple):
    """The place of one request in its stream."""

    sent: contextlib.ExitStack
    """Closed when the response has been sent."""
    turn: asyncio.Event | None
    """Set when there is room for the response before this one; None for the first."""
    has_room: asyncio.Event
    """Set when there is room for this response, or none is needed."""


def add_inference_service(servicer: Any, server: Any) -> None:
    """Register the service, as Ray Serve's ``grpc_servicer_functions`` names it.

    Args:
        servicer: Has a method for each of the service's.
        server: The gRPC server.
    """
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    handlers[STREAM] = grpc.stream_stream_rpc_method_handler(getattr(servicer, STREAM))
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(servicer.Check),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch),
    }
    for service, methods in ((SERVICE, handlers), (HEALTH, health)):
        registered = grpc.method_handlers_generic_handler(service, methods)
        server.add_generic_rpc_handlers((registered,))
        _hold_until_sent(registered)
    reflection = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(servicer.ServerReflectionInfo)}
    for service in REFLECTION:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, reflection),))


def _hold_until_sent(service: Any) -> None:
    """Wrap the unary methods of a registered service; Ray Serve has replaced our handlers by its own by now."""
    service._method_handlers = {
        name: handler
        if handler.request_streaming or handler.response_streaming
        else handler._replace(unary_unary=_until_sent(handler.unary_unary))
        for name, handler in service._method_handlers.items()
    }


def _until_sent(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Keep what a method holds until gRPC has sent its response, or the client has gone."""

    async def answer(request: Any, grpc_context: Any) -> Any:
        stack = contextlib.ExitStack()
        grpc_context.add_done_callback(lambda _: stack.close())
        _sending.set(stack)
        return await method(request, grpc_context)

    return answer


def _method(handler: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, bytes, Any], Awaitable[Reply]]:
    """Make a method that Ray Serve can call of a handler.

    A handler takes a message, ``ModelInfer`` bytes; it returns bytes, or the content of the response as JSON has it.
    """
    name = handler.__name__
    request_class, response_class = (message_class(word) for word in METHODS[name])

    async def answer(self: Any, request: bytes, grpc_context: Any) -> Reply:
        if not self.admit(grpc_context, is_open=name in _OPEN):
            return Reply(b"")
        try:
            content = await handler(self, request if name == "ModelInfer" else _parse(request_class, request))
        except (DecodeError, GenAIRayError) as exc:
            self.refuse(grpc_context, *_status_and_text(exc))
            return Reply(b"")
        self.engine.statistics.note_response("grpc", "OK")
        if isinstance(content, dict):
            content = json_format.ParseDict(content, response_class(), ignore_unknown_fields=True).SerializeToString()
        return Reply(content)

    answer.__name__ = name
    answer.__doc__ = f"""{handler.__doc__}

        Args:
            request: A serialised ``{name}Request``.
            grpc_context: Ray Serve's picklable context of the call; an error is set as its status.

        Returns:
            A serialised ``{name}Response``; empty after an error.
        """
    return answer


def _parse(kind: type[Any], data: bytes) -> Any:
    """Parse a request that carries no tensors."""
    if len(data) > LARGE_JSON_BYTES:
        raise InvalidInputError(f"a request of {len(data)} bytes", f"{LARGE_JSON_BYTES} for one without tensors")
    return kind.FromString(data)


def _status_and_text(exc: DecodeError | GenAIRayError) -> tuple[grpc.StatusCode, str]:
    if isinstance(exc, GenAIRayError):
        return _CODES[status_of(exc)], without_folders(exc)
    return grpc.StatusCode.INVALID_ARGUMENT, f"not a message of this call: {exc}"


class InferenceServicer(HealthServicer):
    """The methods of the inference service, under the names by which Ray Serve finds them.

    Args:
        engine: Computes requests.
        statistics: Returns the figures of all replicas.
        is_allowed: Tells whether a peer may call, by its address as gRPC writes it.
    """

    def __init__(
        self, engine: Engine, statistics: Callable[[], Awaitable[Any]], is_allowed: Callable[[str], bool]
    ) -> None:
        super().__init__(engine, is_allowed)
        self.statistics = statistics

    @_method
    async def ServerLive(self, request: Any) -> dict[str, Any]:
        """Tell that the server is alive."""
        return {"live": True}

    @_method
    async def ServerReady(self, request: Any) -> dict[str, Any]:
        """Tell whether requests are taken."""
        return {"ready": self.engine.cache.is_open}

    @_method
    async def ModelReady(self, request: Any) -> dict[str, Any]:
        """Tell whether a model is loaded and warm."""
        return {"ready": await self.engine.is_ready(await self.engine.find(request.name, request.version))}

    @_method
    async def ServerMetadata(self, request: Any) -> dict[str, Any]:
        """Describe the server."""
        return describe_server(__version__)

    @_method
    async def ModelMetadata(self, request: Any) -> dict[str, Any]:
        """Describe the inputs and outputs of a model."""
        return describe_model(await self.engine.find(request.name, request.version))

    @_method
    async def ModelConfig(self, request: Any) -> dict[str, Any]:
        """Describe how a model is served."""
        return {"config": describe_config(await self.engine.find(request.name, request.version))}

    @_method
    async def ModelStatistics(self, request: Any) -> dict[str, Any]:
        """Return the statistics of one model, or of all models."""
        target = await self.engine.find(request.name, request.version) if request.name else None
        return describe_statistics(self.engine.repository, await self.statistics(), await self.engine.status(), target)

    @_method
    async def RepositoryIndex(self, request: Any) -> dict[str, Any]:
        """List the models and their states, after another look at the model repository."""
        await self.engine.rescan()
        status = await self.engine.status()
        broken = await self.engine.broken()
        return {"models": describe_index(self.engine.repository, status, broken, only_ready=request.ready)}

    @_method
    async def RepositoryModelLoad(self, request: Any) -> dict[str, Any]:
        """Load a model."""
        await self.engine.load(request.model_name, request.parameters)
        return {}

    @_method
    async def RepositoryModelUnload(self, request: Any) -> dict[str, Any]:
        """Evict a model."""
        await self.engine.unload(request.model_name)
        return {}

    @_method
    async def ModelInfer(self, request: bytes) -> bytes:
        """Run one request; the model is loaded if necessary."""
        return await self._infer(request, message_class("ModelInferRequest")())

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:
        """Run the requests of a stream as they come, several at the same time; responses keep their order.

        A request that fails gets a response with its error; the stream goes on.

        Args:
            requests: Serialised ``ModelInferRequest``s.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            A serialised ``ModelStreamInferResponse`` for each request.
        """
        if not self.admit(grpc_context):
            return
        answers: asyncio.Queue[tuple[asyncio.Task[Reply], _InStream] | None] = asyncio.Queue(_STREAM_AHEAD)

        async def read() -> None:
            turn = None
            try:
                async for request in requests:
                    place = _InStream(contextlib.ExitStack(), turn, asyncio.Event())
                    answer = asyncio.create_task(self._answer_one(request, place))
                    turn = place.has_room
                    try:
                        await answers.put((answer, place))
                    except asyncio.CancelledError:
                        _drop(answer, place)
                        raise
            finally:  # also if the stream of requests breaks off: those that came are answered
                await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while (item := await answers.get()) is not None:
                answer, place = item
                with place.sent:  # gRPC asks for the next response when it has sent this one
                    yield await answer
            await asyncio.wait([reading])
            if not reading.cancelled() and (broken := reading.exception()) is not None:
                text = f"the stream of requests broke off: {type(broken).__name__}"
                self.refuse(grpc_context, grpc.StatusCode.CANCELLED, text)
        finally:  # also if the client has gone
            reading.cancel()
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    _drop(*left)

    async def _answer_one(self, data: bytes, place: _InStream) -> Reply:
        """Answer one request of a stream."""
        request = message_class("ModelInferRequest")()
        try:
            answer = await self._infer(data, request, place)
        except (DecodeError, GenAIRayError) as exc:
            code, text = _status_and_text(exc)
            self.engine.statistics.note_response("grpc", code.name)
            refusal = message_class("ModelStreamInferResponse")(
                error_message=f"[{code.name}] {text}", infer_response={"id": request.id}
            )
            mark_final(refusal.infer_response, request)
            return Reply(refusal.SerializeToString())
        finally:
            place.has_room.set()  # the next request waits for it
        self.engine.statistics.note_response("grpc", "OK")
        return Reply(answer)

    async def _infer(self, data: bytes, request: Any, in_stream: _InStream | None = None) -> bytes:
        """Parse a request into an empty message, run it, and write the response; what takes long runs on a thread."""
        profile = self.engine.profile
        with contextlib.ExitStack() as place:
            share = place.enter_context(self.engine.admission.place())
            until_sent = _sending.get()
            if in_stream is not None:
                share.turn = in_stream.turn
                share.has_room = in_stream.has_room
                until_sent = in_stream.sent
            (until_sent or place).callback(share.give_back_result)
            share.take(len(data))
            typed_bytes = count_typed_bytes(data)
            if typed_bytes > profile.max_json_bytes:
                raise InvalidInputError(
                    f"{typed_bytes} bytes of a request beside raw_input_contents",
                    f"{profile.max_json_bytes}",
                    "Send tensors as raw_input_contents.",
                )
            is_large = typed_bytes > LARGE_JSON_BYTES or is_long(len(data), is_plain=True)
            await self._run(is_large, functools.partial(request.ParseFromString, data))
            target = await self.engine.find(request.model_name, request.model_version)
            strings = max_strings(target.metadata.inputs, profile)
            is_large = is_large or is_long(len(data), is_plain=not strings)
            asked = await self._run(is_large, functools.partial(read_request, request, max_strings=strings))
            response = await self.engine.infer(target, asked, share)
            is_raw = is_answered_raw(request, response)
            result_bytes = sum(bytes_of(tensor.array) for tensor in response.outputs)
            if result_bytes > profile.max_json_bytes and not is_raw:
                raise InvalidInputError(
                    f"inputs whose result has {result_bytes} bytes in typed contents",
                    f"{profile.max_json_bytes}",
                    "Send raw_input_contents: their result comes raw.",
                )
            is_plain = is_raw and all(tensor.datatype != "BYTES" for tensor in response.outputs)
            is_streamed = in_stream is not None
            write = functools.partial(write_response, response, request, is_raw=is_raw, is_streamed=is_streamed)
            written = await self._run(is_long(result_bytes, is_plain=is_plain), write)
            share.keep_result(len(written), is_written=True)
            return written

    async def _run(self, is_large: bool, function: Callable[[], Result]) -> Result:
        return await self.engine.call(function) if is_large else function()


def _drop(answer: asyncio.Task[Reply], place: _InStream) -> None:
    answer.cancel()
    place.has_room.set()
    place.sent.close()
