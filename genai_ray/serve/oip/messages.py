"""The protobuf messages of the protocol, and requests and responses from and to them.

``inference.proto`` and ``health.proto`` define the messages; ``inference.binpb`` holds their compiled descriptors. They
are loaded into a pool of their own: generated modules would claim the package ``inference`` for the whole process, and
clash with those of a client.
"""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from genai_ray.errors import InvalidInputError
from genai_ray.serve.engine.inference import InferRequest, InferResponse, RequestedOutput, Tensor
from genai_ray.serve.oip.requests import MAX_TENSORS, check_strings, missing_extension
from genai_ray.serve.oip.tensors import (
    BINARY_ONLY,
    check_datatype,
    check_shape,
    from_binary,
    from_contents,
    to_binary,
    to_contents,
)

__all__ = [
    "HEALTH",
    "METHODS",
    "POOL",
    "SERVICE",
    "STREAM",
    "count_typed_bytes",
    "is_answered_raw",
    "mark_final",
    "message_class",
    "read_request",
    "write_response",
]

SERVICE = "inference.GRPCInferenceService"
"""Full name of the inference service."""

HEALTH = "grpc.health.v1.Health"
"""Full name of the health service."""

STREAM = "ModelStreamInfer"
"""The one streaming method: ``ModelInferRequest`` in, ``ModelStreamInferResponse`` out."""


def _load_descriptors() -> tuple[descriptor_pool.DescriptorPool, list[str]]:
    """Return a pool with the descriptors of both files, and the names of the files."""
    data = resources.files(__package__).joinpath("inference.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    names = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
        names.append(file.name)
    return pool, names


POOL, _FILES = _load_descriptors()
"""Descriptors of both services and their messages."""

METHODS = {
    method.name: (method.input_type.name, method.output_type.name)
    for method in POOL.FindServiceByName(SERVICE).methods
    if method.name != STREAM
}
"""Message names of request and response, by method of the inference service that takes one request."""

_CLASSES = {
    name.rpartition(".")[2]: kind for name, kind in message_factory.GetMessageClassesForFiles(_FILES, POOL).items()
}
_MAX_FIELDS = 4 * MAX_TENSORS
_RAW_FIELD = 7
_DELIMITED = 2
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
_ASKS_FOR_FINAL = "triton_enable_empty_final_response"


def message_class(name: str) -> type[Any]:
    """Return the class of a message.

    Args:
        name: Name of the message, without its package.

    Returns:
        A protobuf class.
    """
    return _CLASSES[name]


def count_typed_bytes(data: bytes) -> int:
    """Count the bytes of a serialised ``ModelInferRequest`` without raw tensors: parsing may multiply them by twenty.

    Args:
        data: What the client sent; it need not be such a message.

    Returns:
        The number of bytes.

    Raises:
        InvalidInputError: If the message has more fields than a request may have inputs, outputs and parameters.
    """
    size = len(data)
    position = 0
    fields = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 != _DELIMITED:  # not a field of this message: all that follows counts
            break
        length, position = _read_varint(data, position)
        if tag >> 3 == _RAW_FIELD:
            size -= max(min(length, len(data) - position), 0)
        position += length
        fields += 1
        if fields > _MAX_FIELDS:
            raise InvalidInputError(
                f"a request with more than {_MAX_FIELDS} inputs, outputs and parameters",
                f"at most {MAX_TENSORS} inputs and outputs",
            )
    return size


def read_request(message: Any, *, max_strings: int) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Args:
        message: The message.
        max_strings: Most BYTES elements in ``raw_input_contents``.

    Returns:
        The request.

    Raises:
        InvalidInputError: If anything in the message is wrong.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInputError(
            f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs",
            "one for each input, in their order, or none at all",
        )
    _check_entries(message)
    if raw:
        strings = (entry for entry in message.inputs if entry.datatype == "BYTES")
        check_strings(sum(math.prod(check_shape(entry.name, list(entry.shape))) for entry in strings), max_strings)
    inputs = tuple(
        _read_tensor(entry, memoryview(raw[index]) if raw else None) for index, entry in enumerate(message.inputs)
    )
    outputs = tuple(RequestedOutput(output.name, True) for output in message.outputs) or None
    parameters = {name: _value_of(value) for name, value in message.parameters.items()}
    return InferRequest(inputs, outputs, message.id or None, parameters, True)


def is_answered_raw(message: Any, response: InferResponse) -> bool:
    """Tell whether outputs go out as ``raw_output_contents``.

    Args:
        message: The request; its inputs came raw or as typed lists.
        response: What was computed.

    Returns:
        True if the inputs came raw, there were none, or an output's datatype has no typed list.
    """
    is_asked = bool(message.raw_input_contents) or not message.inputs
    return is_asked or any(tensor.datatype in BINARY_ONLY for tensor in response.outputs)


def write_response(response: InferResponse, request: Any, *, is_raw: bool, is_streamed: bool) -> bytes:
    """Write a response.

    Args:
        response: What was computed.
        request: The ``ModelInferRequest`` that it answers.
        is_raw: Whether outputs go into ``raw_output_contents``; else they go into typed lists.
        is_streamed: Whether it goes into a stream.

    Returns:
        A serialised ``ModelInferResponse``, or ``ModelStreamInferResponse`` of a stream.
    """
    message = message_class("ModelStreamInferResponse")()
    answer = message.infer_response
    answer.model_name = response.model_name
    answer.model_version = response.model_version
    answer.id = request.id
    if is_streamed:
        mark_final(answer, request)
    for tensor in response.outputs:
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        if is_raw:
            answer.raw_output_contents.append(bytes(to_binary(tensor)))
            continue
        values = getattr(output.contents, _CONTENTS[tensor.datatype])
        for part in to_contents(tensor):
            values.extend(part)
    written: bytes = (message if is_streamed else answer).SerializeToString()
    return written


def mark_final(response: Any, request: Any) -> None:
    """Mark the only response to a request of a stream as its final one, if the request asks for that mark.

    Args:
        response: A ``ModelInferResponse``; changed.
        request: The ``ModelInferRequest``.
    """
    if request.parameters.get(_ASKS_FOR_FINAL) is not None and request.parameters[_ASKS_FOR_FINAL].bool_param:
        response.parameters["triton_final_response"].bool_param = True


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    number = 0
    shift = 0
    while position < len(data):
        byte = data[position]
        number |= (byte & 127) << shift
        position += 1
        shift += 7
        if byte < 128 or shift > 63:
            break
    return number, position


def _check_entries(message: Any) -> None:
    for kind, entries in (("inputs", message.inputs), ("outputs", message.outputs)):
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names) or not all(names):
            raise InvalidInputError(f"{kind} {names!s:.80}", "every one with a name of its own")
        if any("shared_memory_region" in entry.parameters for entry in entries):
            raise missing_extension(f"{kind} in shared memory", "data in the request", "shared memory")
    if any("classification" in output.parameters for output in message.outputs):
        raise missing_extension("an output as classification", "tensors", "classification")


def _read_tensor(entry: Any, raw: memoryview | None) -> Tensor:
    name = entry.name
    datatype = check_datatype(name, entry.datatype)
    shape = check_shape(name, list(entry.shape))
    if raw is not None:
        if entry.HasField("contents"):
            raise InvalidInputError(f"input {name!r} with both contents and raw_input_contents", "one of them")
        return Tensor(name, datatype, from_binary(name, datatype, shape, raw))
    if datatype in BINARY_ONLY:
        raise InvalidInputError(f"input {name!r}: {datatype} in contents", "raw_input_contents")
    allowed = _CONTENTS[datatype]
    set_fields = [field.name for field, _ in entry.contents.ListFields()]
    if set_fields not in ([], [allowed]):
        raise InvalidInputError(f"input {name!r}: {datatype} in {set_fields}", allowed)
    return Tensor(name, datatype, from_contents(name, datatype, shape, getattr(entry.contents, allowed)))


def _value_of(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else ""
