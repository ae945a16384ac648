"""The protocol over gRPC: what Ray Serve's gRPC ingress registers, and the answers.

Requests and responses pass Ray Serve as bytes: they are picklable, and parsed only in the replica that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from genai_ray import __version__
from genai_ray.errors import GenAIRayError, InvalidInputError
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.error_text import without_folders
from genai_ray.serve.engine.inference import DATATYPES, InferRequest, InferResponse, RequestedOutput, Tensor
from genai_ray.serve.engine.limits import LARGE_JSON_BYTES, bytes_of, is_long, max_strings
from genai_ray.serve.http.middleware import bears_token
from genai_ray.serve.oip.grpc_health import REFLECTION, Probes, Reply
from genai_ray.serve.oip.messages import HEALTH, METHODS, SERVICE, STREAM, count_typed_bytes, message_class
from genai_ray.serve.oip.metadata import (
    describe_config,
    describe_index,
    describe_model,
    describe_server,
    describe_statistics,
)
from genai_ray.serve.oip.requests import check_strings
from genai_ray.serve.oip.rest import status_of
from genai_ray.serve.oip.tensors import check_shape, from_binary, from_contents, to_binary, to_contents

__all__ = ["Reply", "Rpc", "add_inference_service"]

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
"""What is told without a token."""
_STREAM_AHEAD = 8
"""Requests of one stream that are computed at the same time, at the most."""
_DETAILS_BYTES = 4096
_sending: ContextVar[contextlib.ExitStack | None] = ContextVar("sending", default=None)
"""What is closed when the answer of the call that this task serves has been sent."""
_WANTS_FINAL = "triton_enable_empty_final_response"
_RAW_ONLY = ("FP16", "BF16")
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class _InStream(NamedTuple):
    """The place of one request in its stream."""

    sent: contextlib.ExitStack
    """What is closed when its answer has been sent."""
    turn: asyncio.Event | None
    """Set when there is room for the answer before it; None for the first."""
    has_room: asyncio.Event
    """Set when there is room for its own, or none is needed."""


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
        _count_until_sent(registered)
    for service in REFLECTION:
        methods = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(servicer.ServerReflectionInfo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def _count_until_sent(service: Any) -> None:
    """Have what unary calls hold be held until it is sent; by now Ray Serve has put its own handlers in the place of ours."""
    service._method_handlers = {
        name: handler
        if handler.request_streaming or handler.response_streaming
        else handler._replace(unary_unary=_until_sent(handler.unary_unary))
        for name, handler in service._method_handlers.items()
    }


def _until_sent(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Let what a method holds be held until gRPC has sent its answer, or the client has gone."""

    async def answer(request: Any, grpc_context: Any) -> Any:
        stack = contextlib.ExitStack()
        grpc_context.add_done_callback(lambda _: stack.close())
        _sending.set(stack)
        return await method(request, grpc_context)

    return answer


def _method(handler: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, bytes, Any], Awaitable[Reply]]:
    """Make a method that Ray Serve can call of one that takes a message, but bytes for ``ModelInfer``, and returns bytes, or content as JSON has it."""
    name = handler.__name__
    request_class, response_class = (message_class(word) for word in METHODS[name])

    async def answer(self: Any, request: bytes, grpc_context: Any) -> Reply:
        if not self.admit(grpc_context, is_open=name in _OPEN):
            return Reply(b"")
        try:
            content = await handler(self, request if name == "ModelInfer" else _parse(request_class, request))
        except (DecodeError, GenAIRayError) as exc:
            self.refuse(grpc_context, *_fault_of(exc))
            return Reply(b"")
        self.engine.tally.note_response("grpc", "OK")
        if isinstance(content, dict):
            content = json_format.ParseDict(content, response_class(), ignore_unknown_fields=True).SerializeToString()
        return Reply(content)

    answer.__name__ = name
    answer.__doc__ = f"""{handler.__doc__}

        Args:
            request: A serialised ``{name}Request``.
            grpc_context: Ray Serve's picklable context of the call; an error is set as its status.

        Returns:
            A serialised ``{name}Response``; empty where there is an error.
        """
    return answer


def _fault_of(exc: DecodeError | GenAIRayError) -> tuple[grpc.StatusCode, str]:
    if isinstance(exc, GenAIRayError):
        return _CODES[status_of(exc)], without_folders(exc)
    return grpc.StatusCode.INVALID_ARGUMENT, f"not a message of this call: {exc}"


class Rpc(Probes):
    """The service's methods, under the names by which Ray Serve finds them.

    Args:
        engine: What answers.
        statistics: Gives the figures of all replicas, by name and version.
        is_allowed: Tells by a peer's address, as gRPC writes it, whether it may call.
    """

    def __init__(
        self, engine: Engine, statistics: Callable[[], Awaitable[Any]], is_allowed: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self.engine, self.statistics, self.is_allowed = engine, statistics, is_allowed

    @property
    def is_serving(self) -> bool:
        """Whether requests are taken."""
        return self.engine.cache.is_open

    def admit(self, grpc_context: Any, *, is_open: bool = False) -> bool:
        """Tell whether a call may be answered; one that may not has its status set.

        Args:
            grpc_context: Ray Serve's context of the call.
            is_open: Whether it is answered without a token.

        Returns:
            Whether it may.
        """
        if not self.is_allowed(grpc_context.peer()):
            return self.refuse(
                grpc_context, grpc.StatusCode.PERMISSION_DENIED, "this endpoint is for its own machine only"
            )
        authorization = dict(grpc_context.invocation_metadata()).get("authorization", "")
        if is_open or bears_token(authorization, self.engine.profile.token_sha256):
            return True
        return self.refuse(
            grpc_context,
            grpc.StatusCode.UNAUTHENTICATED,
            "no token, or a wrong one; send the metadata authorization: Bearer TOKEN",
        )

    def refuse(self, grpc_context: Any, code: grpc.StatusCode, text: str) -> bool:
        """Set the status of a call that is not answered.

        Args:
            grpc_context: Ray Serve's context of the call.
            code: The status.
            text: Why.

        Returns:
            False.
        """
        self.engine.tally.note_response("grpc", code.name)
        grpc_context.set_code(code)
        grpc_context.set_details(_cut(text))
        return False

    @_method
    async def ServerLive(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell that the server lives."""
        return {"live": True}

    @_method
    async def ServerReady(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell whether requests are taken."""
        return {"ready": self.engine.cache.is_open}

    @_method
    async def ModelReady(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell whether a model is loaded and warm."""
        return {"ready": await self.engine.is_ready(await self.engine.find(request.name, request.version))}

    @_method
    async def ServerMetadata(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell what the server is."""
        return describe_server(__version__)

    @_method
    async def ModelMetadata(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell what a model takes and gives."""
        return describe_model(await self.engine.find(request.name, request.version))

    @_method
    async def ModelConfig(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell how a model is served."""
        return {"config": describe_config(await self.engine.find(request.name, request.version))}

    @_method
    async def ModelStatistics(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell what has been computed, by one model or by all."""
        target = await self.engine.find(request.name, request.version) if request.name else None
        return describe_statistics(self.engine.repository, await self.statistics(), await self.engine.status(), target)

    @_method
    async def RepositoryIndex(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Tell which models there are, and their states."""
        await self.engine.rescan()
        return {
            "models": describe_index(
                self.engine.repository, await self.engine.status(), await self.engine.broken(), only_ready=request.ready
            )
        }

    @_method
    async def RepositoryModelLoad(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Load a model."""
        await self.engine.load(request.model_name, request.parameters)
        return {}

    @_method
    async def RepositoryModelUnload(self, request: Any) -> dict[str, Any]:  # noqa: N802
        """Evict a model."""
        await self.engine.unload(request.model_name)
        return {}

    @_method
    async def ModelInfer(self, request: bytes) -> bytes:  # noqa: N802
        """Compute."""
        return await self._infer(request, message_class("ModelInferRequest")())

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:  # noqa: N802
        """Compute requests as they come, some of them at the same time; answers keep their order, and one that fails does not end the others.

        Args:
            requests: Serialised ``ModelInferRequest``s.
            grpc_context: Ray Serve's picklable context of the call.

        Yields:
            A serialised ``ModelStreamInferResponse`` for each.
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
            finally:  # also if the requests break off: what has come is answered
                await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while (item := await answers.get()) is not None:
                answer, place = item
                with place.sent:  # gRPC goes on when it has sent this one
                    yield await answer
            await asyncio.wait([reading])
            if not reading.cancelled() and (broken := reading.exception()) is not None:
                self.refuse(
                    grpc_context,
                    grpc.StatusCode.CANCELLED,
                    f"the requests of the stream broke off: {type(broken).__name__}",
                )
        finally:  # whoever asked may have gone
            reading.cancel()
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    _drop(*left)

    async def _answer_one(self, data: bytes, place: _InStream) -> Reply:
        request = message_class("ModelInferRequest")()
        try:
            answer = await self._infer(data, request, place)
        except (DecodeError, GenAIRayError) as exc:
            code, text = _fault_of(exc)
            self.engine.tally.note_response("grpc", code.name)
            refusal = message_class("ModelStreamInferResponse")(
                error_message=f"[{code.name}] {text}", infer_response={"id": request.id}
            )
            _mark_final(refusal.infer_response, request)
            return Reply(refusal.SerializeToString())
        finally:
            place.has_room.set()  # whatever becomes of it
        self.engine.tally.note_response("grpc", "OK")
        return Reply(answer)

    async def _infer(self, data: bytes, request: Any, in_stream: _InStream | None = None) -> bytes:
        """Parse a request into an empty message, compute it, and write the answer: one of a stream if it has a place there."""
        with contextlib.ExitStack() as place:
            share = place.enter_context(self.engine.admission.place())
            if in_stream is not None:
                share.turn, share.has_room = in_stream.turn, in_stream.has_room
            until_sent = _sending.get() if in_stream is None else in_stream.sent
            (until_sent or place).callback(share.give_back_result)
            share.take(len(data))
            typed, most = count_typed_bytes(data), self.engine.profile.max_json_bytes
            if typed > most:
                raise InvalidInputError(
                    f"{typed} bytes of a request beside raw_input_contents",
                    f"{most}",
                    "Send tensors as raw_input_contents.",
                )
            is_large = typed > LARGE_JSON_BYTES or is_long(len(data), is_plain=True)
            await self._run(is_large, functools.partial(request.ParseFromString, data))
            target = await self.engine.find(request.model_name, request.model_version)
            strings = max_strings(target.facts.inputs, self.engine.profile)
            is_large = is_large or is_long(len(data), is_plain=not strings)
            asked = await self._run(is_large, functools.partial(read_request, request, max_strings=strings))
            answer = await self.engine.infer(target, asked, share)
            is_raw = (
                bool(request.raw_input_contents)
                or not request.inputs
                or any(tensor.datatype in _RAW_ONLY for tensor in answer.outputs)
            )
            size = sum(bytes_of(tensor.array) for tensor in answer.outputs)
            if size > most and not is_raw:
                raise InvalidInputError(
                    f"inputs whose result has {size} bytes in typed contents",
                    f"{most}",
                    "Send raw_input_contents: their result comes raw.",
                )
            is_large = is_long(size, is_plain=is_raw and all(tensor.datatype != "BYTES" for tensor in answer.outputs))
            write = functools.partial(_write_answer, answer, request, is_raw=is_raw, is_streamed=in_stream is not None)
            written = await self._run(is_large, write)
            share.keep_result(len(written), is_written=True)
            return written

    async def _run(self, is_large: bool, function: Callable[[], Result]) -> Result:
        return await self.engine.call(function) if is_large else function()


def _drop(answer: asyncio.Task[Reply], place: _InStream) -> None:
    answer.cancel()
    place.has_room.set()
    place.sent.close()


def _cut(text: str) -> str:
    """Shorten what goes into a trailer: it is percent-encoded there, and a client takes 8 KiB of them by default."""
    while len(quote(text)) > _DETAILS_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


def _parse(kind: type[Any], data: bytes) -> Any:
    """Parse a request that carries no tensors."""
    if len(data) > LARGE_JSON_BYTES:
        raise InvalidInputError(f"a request of {len(data)} bytes", f"{LARGE_JSON_BYTES} for one without tensors")
    return kind.FromString(data)


def _mark_final(response: Any, request: Any) -> None:
    """Say that nothing more comes for a request of a stream, if it asks for that; every request has one answer."""
    if request.parameters.get(_WANTS_FINAL) is not None and request.parameters[_WANTS_FINAL].bool_param:
        response.parameters["triton_final_response"].bool_param = True


def _write_answer(answer: InferResponse, request: Any, *, is_raw: bool, is_streamed: bool) -> bytes:
    message = message_class("ModelStreamInferResponse")()
    response = message.infer_response
    response.model_name, response.model_version, response.id = answer.model_name, answer.model_version, request.id
    if is_streamed:
        _mark_final(response, request)
    for tensor in answer.outputs:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        if is_raw:
            response.raw_output_contents.append(bytes(to_binary(tensor)))
        else:
            values = getattr(output.contents, _CONTENTS[tensor.datatype])
            for part in to_contents(tensor):
                values.extend(part)
    written: bytes = (message if is_streamed else response).SerializeToString()
    return written


def read_request(message: Any, *, max_strings: int) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Args:
        message: The message.
        max_strings: Most elements of BYTES in ``raw_input_contents``.

    Returns:
        The request.

    Raises:
        InvalidInputError: Whatever is wrong in it.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInputError(
            f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs",
            "one for each input, in their order, or none at all",
        )
    for kind, entries in (("inputs", message.inputs), ("outputs", message.outputs)):
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names) or not all(names):
            raise InvalidInputError(f"{kind} {names!s:.80}", "every one with a name of its own")
        if any("shared_memory_region" in entry.parameters for entry in entries):
            raise InvalidInputError(
                f"{kind} in shared memory", "data in the request", "This server has no shared memory extension."
            )
    if any("classification" in output.parameters for output in message.outputs):
        raise InvalidInputError(
            "an output as classification", "tensors", "This server has no classification extension."
        )
    if raw:
        check_strings(
            sum(
                math.prod(check_shape(entry.name, list(entry.shape)))
                for entry in message.inputs
                if entry.datatype == "BYTES"
            ),
            max_strings,
        )
    inputs = tuple(
        _read_tensor(entry, memoryview(raw[index]) if raw else None) for index, entry in enumerate(message.inputs)
    )
    outputs = tuple(RequestedOutput(output.name, True) for output in message.outputs) or None
    return InferRequest(
        inputs,
        outputs,
        message.id or None,
        {name: _value_of(value) for name, value in message.parameters.items()},
        True,
    )


def _read_tensor(entry: Any, raw: memoryview | None) -> Tensor:
    name, datatype = entry.name, entry.datatype
    if datatype not in DATATYPES:
        raise InvalidInputError(f"input {name!r}: datatype {datatype[:40]!r}", ", ".join(DATATYPES))
    shape = check_shape(name, list(entry.shape))
    if raw is not None:
        if entry.HasField("contents"):
            raise InvalidInputError(f"input {name!r} with both contents and raw_input_contents", "one of them")
        return Tensor(name, datatype, from_binary(name, datatype, shape, raw))
    if datatype in _RAW_ONLY:
        raise InvalidInputError(f"input {name!r}: {datatype} in contents", "raw_input_contents")
    values = getattr(entry.contents, _CONTENTS[datatype])
    set_fields = [field.name for field, _ in entry.contents.ListFields()]
    if set_fields not in ([], [_CONTENTS[datatype]]):
        raise InvalidInputError(f"input {name!r}: {datatype} in {set_fields}", _CONTENTS[datatype])
    return Tensor(name, datatype, from_contents(name, datatype, shape, values))


def _value_of(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else ""
