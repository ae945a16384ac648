"""Tensors as the Open Inference Protocol sends them, to and from numpy: JSON, raw bytes, and the typed lists of gRPC.

Every size is checked before anything is allocated for it, so that no request takes more than a few times its own bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError
from genai_ray.serve.engine.inference import DATATYPES, Tensor

__all__ = [
    "BINARY_ONLY",
    "MAX_ELEMENTS",
    "MAX_RANK",
    "check_datatype",
    "check_shape",
    "from_binary",
    "from_contents",
    "from_json",
    "to_binary",
    "to_contents",
    "to_json",
]

Array = npt.NDArray[Any]

MAX_RANK = 32
"""Most axes of a tensor."""

MAX_ELEMENTS = 2**40
"""Most elements of a tensor, by its shape."""

_TOGETHER = 1 << 14
"""Elements of a list that are copied at once: no other thread runs meanwhile."""

BINARY_ONLY = ("FP16", "BF16")
"""Datatypes that neither JSON nor the typed lists of gRPC can hold."""


def check_datatype(name: str, datatype: object) -> str:
    """Check the datatype of an input as the client sent it.

    Args:
        name: Name of the input, for the error.
        datatype: The value that was sent.

    Returns:
        A key of ``DATATYPES``.

    Raises:
        InvalidInputError: If it is none.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InvalidInputError(f"input {name!r}: datatype {str(datatype)[:40]!r}", ", ".join(DATATYPES))
    return datatype


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Check the shape of an input as the client sent it.

    Args:
        name: Name of the input, for the error.
        shape: The value that was sent.

    Returns:
        The shape.

    Raises:
        InvalidInputError: If it is not a list of integers, one is negative, or there are too many axes or elements.
    """
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InvalidInputError(f"input {name!r}: shape is not a list of integers", do='Send "shape": [N, ...].')
    if any(size < 0 for size in shape):
        raise InvalidInputError(
            f"input {name!r}: shape {shape[:MAX_RANK]} has a negative size", "0 or more along every axis"
        )
    if len(shape) > MAX_RANK:
        raise InvalidInputError(f"input {name!r}: {len(shape)} axes", f"at most {MAX_RANK}")
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:  # without zeros: numpy cannot hold (0, 2**62) either
        raise InvalidInputError(
            f"input {name!r}: shape with more elements than any tensor has", f"at most {MAX_ELEMENTS}"
        )
    return tuple(shape)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """Read a tensor from JSON: a flat row-major list, or lists nested as in the shape.

    Args:
        name: Name of the input, for errors.
        datatype: A key of ``DATATYPES``.
        shape: Its checked shape.
        data: The JSON value.

    Returns:
        The array.

    Raises:
        InvalidInputError: If JSON cannot hold the datatype, or number, nesting, type or range of the elements is wrong.
    """
    if datatype in BINARY_ONLY:
        raise InvalidInputError(
            f"input {name!r}: {datatype} as JSON", "binary data", "Use the binary tensor data extension."
        )
    if not isinstance(data, list):
        raise InvalidInputError(f"input {name!r}: data is not a list")
    flat = _flatten(name, shape, data)
    count = math.prod(shape)
    if len(flat) != count:
        raise InvalidInputError(
            f"input {name!r}: {len(flat)} elements of data", f"{count}, the product of shape {list(shape)}"
        )
    _check_elements(name, datatype, flat)
    if datatype == "BYTES":
        try:
            return _objects([text.encode() for text in flat]).reshape(shape)
        except UnicodeEncodeError as exc:
            raise InvalidInputError(f"input {name!r}: a string that is not Unicode text: {exc.reason}") from exc
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, DATATYPES[datatype])
    except OverflowError as exc:
        raise InvalidInputError(f"input {name!r}: a number outside the range of {datatype}") from exc
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(
            f"input {name!r}: a number outside the range of {datatype}", do="Use binary data for infinities and NaN."
        )
    return array.reshape(shape)


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Read a tensor from its bytes: little-endian, row-major, no padding.

    Args:
        name: Name of the input, for errors.
        datatype: A key of ``DATATYPES``.
        shape: Its checked shape.
        data: Exactly its bytes.

    Returns:
        A read-only view of the same memory; for BYTES an array of ``bytes``.

    Raises:
        InvalidInputError: If the shape needs another number of bytes, or a BOOL is neither 0 nor 1.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(_split_strings(name, count, data)).reshape(shape)
    dtype = DATATYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise InvalidInputError(
            f"unexpected size for input {name!r}: {len(data)} bytes",
            f"{count * dtype.itemsize} for {datatype} {list(shape)}",
        )
    if datatype == "BOOL" and np.any(np.frombuffer(data, np.uint8) > 1):
        raise InvalidInputError(f"input {name!r}: a BOOL byte that is neither 0 nor 1")
    return np.frombuffer(data, dtype).reshape(shape)


def from_contents(name: str, datatype: str, shape: tuple[int, ...], values: Sequence[Any]) -> Array:
    """Read a tensor from a typed list of gRPC, whose numbers may have more bits than the datatype.

    Args:
        name: Name of the input, for errors.
        datatype: A key of ``DATATYPES`` that is not in ``BINARY_ONLY``.
        shape: Its checked shape.
        values: Its elements, flat and row-major.

    Returns:
        The array.

    Raises:
        InvalidInputError: If the shape needs another number of elements, or one is outside the range of the datatype.
    """
    if len(values) != math.prod(shape):
        raise InvalidInputError(
            f"input {name!r}: {len(values)} elements of contents",
            f"{math.prod(shape)}, the product of shape {list(shape)}",
        )
    array = np.empty(len(values), DATATYPES[datatype])
    try:
        _fill(array, values)
    except OverflowError as exc:
        raise InvalidInputError(f"input {name!r}: a number outside the range of {datatype}") from exc
    return array.reshape(shape)


def to_contents(tensor: Tensor) -> Iterator[list[Any]]:
    """Write a tensor for a typed list of gRPC, in parts.

    Args:
        tensor: A tensor whose datatype is not in ``BINARY_ONLY``.

    Yields:
        Its elements, flat and row-major; ``bytes`` for BYTES.
    """
    flat = tensor.array.reshape(-1)
    for start in range(0, flat.size, _TOGETHER):
        part = flat[start : start + _TOGETHER].tolist()
        yield list(map(_to_bytes, part)) if tensor.datatype == "BYTES" else part


def to_json(tensor: Tensor) -> list[Any]:
    """Write a tensor for JSON.

    Args:
        tensor: Any tensor.

    Returns:
        Its elements, flat and row-major.

    Raises:
        InvalidInputError: If JSON cannot hold it: FP16, BF16, NaN, infinity, bytes that are not UTF-8.
    """
    do = 'Ask for this output with "parameters": {"binary_data": true}.'
    if tensor.datatype in BINARY_ONLY:
        raise InvalidInputError(f"output {tensor.name!r}: {tensor.datatype} as JSON", "binary data", do)
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [item.decode() if isinstance(item, bytes) else str(item) for item in flat.tolist()]
        except UnicodeDecodeError as exc:
            raise InvalidInputError(
                f"output {tensor.name!r}: bytes that are not UTF-8 text", "binary data", do
            ) from exc
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise InvalidInputError(
            f"output {tensor.name!r} has NaN or infinite values, which JSON cannot hold", "binary data", do
        )
    return list(flat.tolist())


def to_binary(tensor: Tensor) -> bytes | memoryview:
    """Write a tensor as bytes: little-endian, row-major, no padding.

    Args:
        tensor: Any tensor.

    Returns:
        The bytes; a view of the array if it is contiguous.
    """
    if tensor.datatype == "BYTES":
        data = bytearray()
        for item in tensor.array.reshape(-1):
            text = _to_bytes(item)
            data += struct.pack("<I", len(text)) + text
        return memoryview(data)
    array = np.ascontiguousarray(tensor.array, DATATYPES[tensor.datatype])
    return array.reshape(-1).view(np.uint8).data


def _to_bytes(item: object) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    if not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            raise InvalidInputError(
                f"input {name!r}: data is not nested to shape {list(shape)}",
                "a flat list, or lists nested to the shape",
            )
        level = [element for item in level for element in item]
    return level


def _check_elements(name: str, datatype: str, flat: list[Any]) -> None:
    kinds: dict[str, set[type]] = {"BOOL": {bool}, "BYTES": {str}, "FP32": {int, float}, "FP64": {int, float}}
    allowed = kinds.get(datatype, {int})
    wrong = set(map(type, flat)) - allowed
    if wrong:
        json_names = {"NoneType": "null", "dict": "object"}
        words = " and ".join(sorted(json_names.get(kind.__name__, kind.__name__) for kind in wrong))
        taken = " or ".join(sorted(kind.__name__ for kind in allowed))
        raise InvalidInputError(f"input {name!r}: data of {datatype} holds {words}", taken)


def _split_strings(name: str, count: int, data: memoryview) -> list[bytes]:
    wrong = f"unexpected size for input {name!r}: {len(data)} bytes of BYTES"
    if count * 4 > len(data):
        raise InvalidInputError(wrong, f"{count} elements, each a length of four bytes and that many more")
    strings = []
    position = 0
    for _ in range(count):
        if position + 4 > len(data):
            raise InvalidInputError(wrong, f"{count} elements; the bytes end before")
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + length > len(data):
            raise InvalidInputError(wrong, f"{count} elements; one says that it has {length} bytes")
        strings.append(bytes(data[position : position + length]))
        position += length
    if position != len(data):
        raise InvalidInputError(wrong, f"{count} elements, which take {position}")
    return strings


def _objects(items: list[bytes]) -> Array:
    array = np.empty(len(items), object)
    _fill(array, items)
    return array


def _fill(array: Array, values: Sequence[Any]) -> None:
    for start in range(0, len(values), _TOGETHER):
        array[start : start + _TOGETHER] = values[start : start + _TOGETHER]
