"""Reads a model's graph without its weights: each large tensor is only a reference to its bytes in the file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from genai_ray.errors import ModelLoadError
from genai_ray.files import describe_error
from genai_ray.graph.model import Graph, put_in_order

__all__ = ["WHOLE_FILE_BYTES", "all_tensors", "external_files", "read_header"]

MAX_HEADER_BYTES = 64 * 1024**2
"""Most bytes of a graph without its large tensors; the largest public models have a few MB."""

WHOLE_FILE_BYTES = 4 * 1024**2
"""A file up to this size is read whole: leaving out weights would save nothing."""

_LARGE_TENSOR_BYTES = 1024
"""Tensors up to this size stay in the graph: shapes, scales and others that shape inference needs."""

_MAX_DEPTH = 64

# Numbers of fields in onnx.proto: which fields of a message lead to tensors, and which of a tensor are its data.
_LEADS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_RAW_DATA = 9
_FLOAT_DATA = 4
_DOUBLE_DATA = 10
_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5


def read_header(path: Path) -> Graph:
    """Read a model without its weights: tensors of more than 1 KiB become external data in the model's own file.

    It only checks that the file holds a graph; the runtime checks the rest.

    Args:
        path: The file.

    Returns:
        The model; a runtime can run it if it looks for external data in the file's folder.

    Raises:
        ModelLoadError: If the file cannot be read, is not ONNX, or has a cycle, or if its graph alone has more than
            ``MAX_HEADER_BYTES``.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts = [file.read()] if size <= WHOLE_FILE_BYTES else _Reader(file, path.name).message("model", 0, size, 0)
        model = Graph.FromString(b"".join(parts))
    except (DecodeError, OSError) as exc:
        raise ModelLoadError(f"{path} is not a usable ONNX file: {describe_error(exc)}") from exc
    if not (model.graph.node or model.graph.output):
        raise ModelLoadError(f"{path} is not a usable ONNX file: no graph")
    put_in_order(model, path)
    return model


def external_files(model: Graph) -> list[str]:
    """Return the files that hold data of a model.

    Args:
        model: Any model.

    Returns:
        Sorted paths relative to the model's folder, without duplicates.
    """
    return sorted(
        {
            entry.value
            for tensor in all_tensors(model.graph)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Walk over the tensors of a graph and of its inner graphs.

    Args:
        graph: Any graph.

    Yields:
        Initialisers, and tensors that are attributes of nodes.
    """
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from all_tensors(inner)


class _Reader:
    """Copies a serialised model field by field, and skips the data of large tensors."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._kept = 0

    def message(self, kind: str, start: int, stop: int, depth: int) -> list[bytes]:
        """Return the parts of a message that may hold large tensors."""
        if depth > _MAX_DEPTH:
            raise DecodeError(f"more than {_MAX_DEPTH} graphs inside each other")
        parts = []
        leads = _LEADS[kind]
        for number, wire, field_start, begin, end in self._fields(start, stop):
            inner = leads.get(number) if wire == _BYTES and end - begin > _LARGE_TENSOR_BYTES else None
            if inner is None:
                parts.append(self._bytes(field_start, end))
                continue
            content = b"".join(
                self._tensor(begin, end) if inner == "tensor" else self.message(inner, begin, end, depth + 1)
            )
            parts += [_key(number, _BYTES), _varint(len(content)), content]
        return parts

    def _tensor(self, start: int, stop: int) -> list[bytes]:
        parts = []
        elements = 0
        data = []
        for number, wire, field_start, begin, end in self._fields(start, stop):
            if number == 2 and wire == _VARINT:  # the element type
                elements = self._bytes(begin, end)[0]
            if (
                wire == _BYTES
                and end - begin > _LARGE_TENSOR_BYTES
                and number in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA)
            ):
                data.append((number, begin, end))
            else:
                parts.append(self._bytes(field_start, end))
        wanted = {_RAW_DATA: elements, _FLOAT_DATA: onnx.TensorProto.FLOAT, _DOUBLE_DATA: onnx.TensorProto.DOUBLE}
        if len(data) != 1 or wanted[data[0][0]] != elements:
            for number, begin, end in data:
                parts += [_key(number, _BYTES), _varint(end - begin), self._bytes(begin, end)]
            return parts
        _, begin, end = data[0]
        place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", self._name), ("offset", begin), ("length", end - begin)):
            place.external_data.add(key=key, value=str(value))
        return [*parts, place.SerializeToString()]

    def _fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (number, wire type, start, start of the content, end) of each field."""
        position = start
        while position < stop:
            tag, begin = self._number(position, stop)
            wire = tag & 7
            if wire == _VARINT:
                end = self._number(begin, stop)[1]
            elif wire == _BYTES:
                length, begin = self._number(begin, stop)
                end = begin + length
            elif wire in (_FIXED32, _FIXED64):
                end = begin + (4 if wire == _FIXED32 else 8)
            else:
                raise DecodeError(f"no field begins at byte {position}")
            if end > stop or tag >> 3 == 0:
                raise DecodeError(f"the field at byte {position} has no end")
            yield tag >> 3, wire, position, begin, end
            position = end

    def _number(self, position: int, stop: int) -> tuple[int, int]:
        self._file.seek(position)
        value = 0
        for index, byte in enumerate(self._file.read(min(10, stop - position))):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, position + index + 1
        raise DecodeError(f"no number at byte {position}")

    def _bytes(self, start: int, stop: int) -> bytes:
        self._kept += stop - start
        if self._kept > MAX_HEADER_BYTES:
            raise DecodeError(f"the graph has more than {MAX_HEADER_BYTES} bytes without its large tensors")
        self._file.seek(start)
        return self._file.read(stop - start)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    count = max(1, math.ceil(value.bit_length() / 7))
    return bytes((value >> 7 * index & 0x7F) | (0x80 if index < count - 1 else 0) for index in range(count))
