"""Requests and responses of the Open Inference Protocol v2: JSON, and JSON followed by binary tensors.

Parsing is strict: anything wrong in a request is an ``InvalidInputError`` that names the place. Unknown fields are
ignored, as the protocol demands. The module is pure: bytes in, objects out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from genai_ray.errors import InvalidInputError
from genai_ray.serve.engine.inference import (
    DATATYPES,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
    TensorMetadata,
)
from genai_ray.serve.http.routes import HEADER_LENGTH
from genai_ray.serve.oip.tensors import check_datatype, check_shape, from_binary, from_json, to_binary, to_json

__all__ = [
    "MAX_TENSORS",
    "check_strings",
    "decode_request",
    "encode_response",
    "missing_extension",
    "parse_header_length",
    "parse_json",
]

MAX_TENSORS = 1024
"""Most inputs, and most outputs, of one request."""

_DIGITS = 19


def parse_json(body: bytes | memoryview) -> Any:
    """Parse JSON strictly.

    Args:
        body: UTF-8 text.

    Returns:
        The value.

    Raises:
        InvalidInputError: If it is not JSON, has NaN, Infinity or a far too long number, or is nested too deep.
    """
    try:
        return json.loads(bytes(body), parse_constant=_refuse_constant)
    except InvalidInputError:
        raise
    except RecursionError as exc:
        raise InvalidInputError("JSON that is nested too deep") from exc
    except ValueError as exc:
        raise InvalidInputError(f"not valid JSON: {exc}") from exc


def parse_header_length(text: str | None, body_bytes: int) -> int:
    """Return how many bytes of a body are JSON.

    Args:
        text: Value of the header ``HEADER_LENGTH``; None if it was not sent.
        body_bytes: Bytes of the body.

    Returns:
        Their number; that of the whole body if the header was not sent.

    Raises:
        InvalidInputError: If it is not a whole number, or larger than the body.
    """
    if text is None:
        return body_bytes
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise InvalidInputError(f"{HEADER_LENGTH}: {text[:40]!r}", "a whole number of bytes, 0 or more")
    size = int(text)
    if size > body_bytes:
        raise InvalidInputError(f"{HEADER_LENGTH}: {size}", f"at most {body_bytes}, the bytes of the body")
    return size


def check_strings(count: int, most: int | None) -> None:
    """Refuse too many strings before they are read: each takes about 60 bytes more than its own.

    Args:
        count: BYTES elements as binary data in one request, so far.
        most: Most of them; None for any number.

    Raises:
        InvalidInputError: If there are more.
    """
    if most is not None and count > most:
        raise InvalidInputError(f"{count} elements of BYTES as binary data", f"{most} in one request to this model")


def missing_extension(got: str, allowed: str, extension: str) -> InvalidInputError:
    """Return the error of a request that needs an extension of the protocol that this server lacks.

    Args:
        got: What is in the request.
        allowed: What the server takes instead.
        extension: Name of the extension.

    Returns:
        The error.
    """
    return InvalidInputError(got, allowed, f"This server has no {extension} extension.")


def decode_request(
    body: bytes,
    header_length: str | None = None,
    inputs: Sequence[TensorMetadata] = (),
    *,
    max_strings: int | None = None,
) -> InferRequest:
    """Read a request.

    Args:
        body: The uncompressed body.
        header_length: Value of the header ``HEADER_LENGTH``; None if it was not sent.
        inputs: Inputs of the model, for a raw request (header value 0).
        max_strings: Most BYTES elements as binary data; None for any number.

    Returns:
        The request; binary tensors are read-only views of the body.

    Raises:
        InvalidInputError: If anything in the request is wrong.
    """
    view = memoryview(body)
    size = parse_header_length(header_length, len(body))
    if header_length is not None and size == 0:
        return _decode_raw(view, inputs)
    content = parse_json(view[:size])
    if not isinstance(content, dict):
        raise InvalidInputError("a request that is not a JSON object")
    request_id = content.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInputError("an id that is not a string")
    parameters = _parse_parameters("the request", content)
    binary_default = _parse_flag("the request", parameters, "binary_data_output", False)
    tensors = _decode_inputs([] if content.get("inputs") is None else content["inputs"], view[size:], max_strings)
    outputs = _decode_outputs(content.get("outputs"), binary_default)
    return InferRequest(tensors, outputs, request_id, parameters, binary_default)


def encode_response(response: InferResponse, request: InferRequest) -> tuple[list[bytes | memoryview], int | None]:
    """Write a response.

    Args:
        response: What was computed.
        request: The request; it says which outputs are binary.

    Returns:
        (parts of the body, bytes of the JSON part; None if no binary tensor follows it).

    Raises:
        InvalidInputError: If JSON cannot hold an output that was not asked for as binary.
    """
    outputs = []
    tail = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.array.shape), "datatype": tensor.datatype}
        if request.wants_binary(tensor.name):
            data = to_binary(tensor)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = to_json(tensor)
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        content["id"] = response.id
    head = json.dumps(content | {"outputs": outputs}, allow_nan=False, separators=(",", ":")).encode()
    return [head, *tail], len(head) if tail else None


def _refuse_constant(word: str) -> float:
    raise InvalidInputError(f"{word} in JSON", "finite numbers", "Use binary data for infinities and NaN.")


def _parse_parameters(owner: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request or tensor, without those that are null."""
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInputError(f"parameters of {owner} are not a JSON object")
    parameters = {name: value for name, value in parameters.items() if value is not None}
    for name, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidInputError(f"parameter {name!r} of {owner} is not a string, number or boolean")
    return parameters


def _parse_flag(owner: str, parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter {name} of {owner}: {value!r}", "true or false")
    return value


def _parse_entries(kind: str, entries: object) -> list[dict[str, Any]]:
    """Check that each entry of ``inputs`` or ``outputs`` is an object with a name of its own."""
    if not isinstance(entries, list):
        raise InvalidInputError(f"{kind} is not a list", f"a list of objects, each one of the {kind}")
    if len(entries) > MAX_TENSORS:
        raise InvalidInputError(f"{len(entries)} {kind}", f"at most {MAX_TENSORS}")
    names = set()
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"one of the {kind} is not an object with a name")
        if name in names:
            raise InvalidInputError(f"{name!r} comes twice in {kind}", "every name once")
        names.add(name)
        if "shared_memory_region" in _parse_parameters(f"{name!r}", entry):
            raise missing_extension(f"{name!r} is in shared memory", "data in the request", "shared memory")
    return entries


def _decode_inputs(entries: object, tail: memoryview, max_strings: int | None) -> tuple[Tensor, ...]:
    tensors = []
    position = 0
    strings = 0
    for entry in _parse_entries("inputs", entries):
        name = entry["name"]
        datatype = check_datatype(name, entry.get("datatype"))
        shape = check_shape(name, entry.get("shape"))
        size = _parse_parameters(f"input {name!r}", entry).get("binary_data_size")
        if size is None:
            if "data" not in entry:
                raise InvalidInputError(f"input {name!r} without data", "data, or the parameter binary_data_size")
            tensors.append(Tensor(name, datatype, from_json(name, datatype, shape, entry["data"])))
            continue
        if "data" in entry:
            raise InvalidInputError(f"input {name!r} with both data and binary_data_size", "one of them")
        if type(size) is not int or size < 0 or size > len(tail) - position:
            raise InvalidInputError(
                f"input {name!r}: binary_data_size {str(size)[:40]}",
                f"a whole number up to the {len(tail) - position} bytes that follow",
            )
        if datatype == "BYTES":
            strings += math.prod(shape)
            check_strings(strings, max_strings)
        tensors.append(Tensor(name, datatype, from_binary(name, datatype, shape, tail[position : position + size])))
        position += size
    if position != len(tail):
        left = len(tail) - position
        raise InvalidInputError(f"unexpected additional input data for model: {left} bytes after the last input")
    return tuple(tensors)


def _decode_outputs(entries: object, binary_default: bool) -> tuple[RequestedOutput, ...] | None:
    if entries is None or entries == []:
        return None
    outputs = []
    for entry in _parse_entries("outputs", entries):
        owner = f"output {entry['name']!r}"
        parameters = _parse_parameters(owner, entry)
        if parameters.get("classification"):
            raise missing_extension(f"{owner} as classification", "tensors", "classification")
        outputs.append(RequestedOutput(entry["name"], _parse_flag(owner, parameters, "binary_data", binary_default)))
    return tuple(outputs)


def _decode_raw(body: memoryview, inputs: Sequence[TensorMetadata]) -> InferRequest:
    """Read a body that is one tensor without JSON: the batch is 1, and another free axis follows from the bytes."""
    if len(inputs) != 1:
        raise InvalidInputError(
            f"a raw request for a model with {len(inputs)} inputs",
            "a model with one input",
            "Send JSON with binary tensors.",
        )
    name = inputs[0].name
    datatype = inputs[0].datatype
    shape = list(inputs[0].shape)
    if datatype == "BYTES":
        shape = [1] * max(len(shape), 1)
        body = memoryview(len(body).to_bytes(4, "little") + bytes(body))
    else:
        free = [axis for axis, size in enumerate(shape) if size < 0]
        if len(free) == 2 and free[0] == 0:
            shape[0] = 1
            free = free[1:]
        if len(free) > 1:
            raise InvalidInputError(
                f"a raw request for input {name!r} of shape {list(inputs[0].shape)}",
                "at most one free axis beside the batch",
            )
        item_bytes = math.prod(size for size in shape if size >= 0) * DATATYPES[datatype].itemsize
        if free and (item_bytes == 0 or len(body) % item_bytes):
            words = f"unexpected size for input {name!r}: {len(body)} bytes"
            raise InvalidInputError(words, f"a multiple of {item_bytes}")
        if free:
            shape[free[0]] = len(body) // item_bytes
    tensor = Tensor(name, datatype, from_binary(name, datatype, tuple(shape), body))
    return InferRequest((tensor,), binary_default=True)
