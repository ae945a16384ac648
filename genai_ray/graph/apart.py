"""Puts the weights of a graph into one file beside it, which a runtime maps into memory instead of copying it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from genai_ray.errors import ModelLoadError
from genai_ray.files import open_below
from genai_ray.graph.header import all_tensors
from genai_ray.graph.model import Graph

__all__ = ["WeightsPlan", "copy_weights", "plan_weights", "refer_to_weights"]

_ALIGNED_BYTES = 4096
"""A tensor begins at a multiple of this, as ONNX advises for files that are mapped."""

_CHUNK_BYTES = 1 << 20

_MOST_DIGITS = 18
"""Longer numbers are no places in a file."""

_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.BOOL: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.FLOAT: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.DOUBLE: 64,
}
"""Bits of an element in a file, by ONNX's number of the type."""

_Place = tuple[str, int, int]
"""File, first byte, number of bytes."""


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """Where the tensors of a graph that lie in files go in one new file."""

    offsets: dict[_Place, int]
    """First byte in the new file of each place that tensors have now; in the order of the new file."""
    num_bytes: int
    """Bytes of the new file; 0 if all weights are in the graph."""


def plan_weights(models: Sequence[Graph]) -> WeightsPlan:
    """Find the tensors that lie in files, and not in the graphs themselves, and plan one file for them.

    Args:
        models: Results of ``read_header``, or made of one.

    Returns:
        The plan; tensors of the same place share it.

    Raises:
        ModelLoadError: If a tensor has no place in a file, or not that of its type and shape.
    """
    offsets: dict[_Place, int] = {}
    end = 0
    tensors = (tensor for model in models for tensor in all_tensors(model.graph))
    for tensor in filter(uses_external_data, tensors):
        place = _place_of(tensor)
        if place not in offsets:
            offsets[place] = end + -end % _ALIGNED_BYTES
            end = offsets[place] + place[2]
    return WeightsPlan(offsets, end)


def copy_weights(plan: WeightsPlan, source: Path, target: BinaryIO) -> None:
    """Copy tensors into one file.

    Args:
        plan: Result of ``plan_weights``.
        source: The file of the model; the others lie in its folder.
        target: The new file, empty.

    Raises:
        ModelLoadError: If a file is too short.
        VideoError: If another file is missing, or outside of the folder.
        OSError: If reading or writing fails.
    """
    for place, offset in plan.offsets.items():
        target.write(bytes(offset - target.tell()))
        _copy(source, place, target)


def refer_to_weights(model: Graph, plan: WeightsPlan, name: str) -> None:
    """Make a graph refer to the file of its weights.

    Args:
        model: One of the graphs of ``plan_weights``; changed.
        plan: Its result.
        name: Name of the file, in the folder of the graph's file.
    """
    for tensor in filter(uses_external_data, all_tensors(model.graph)):
        place = _place_of(tensor)
        del tensor.external_data[:]
        for key, value in (("location", name), ("offset", plan.offsets[place]), ("length", place[2])):
            tensor.external_data.add(key=key, value=str(value))


def _place_of(tensor: TensorProto) -> _Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    bits = _BITS.get(tensor.data_type, 0)
    length = (math.prod(tensor.dims) * bits + 7) // 8
    numbers = (entries.get("offset", "0"), entries.get("length", str(length)))
    location = entries.get("location", "")
    are_numbers = all(text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS for text in numbers)
    is_alone = len(entries) == len(tensor.external_data)  # runtimes differ in which of two they take
    if not (location and "\0" not in location and are_numbers and is_alone):
        raise ModelLoadError(f"tensor {tensor.name!r} has no place in a file")
    if not bits or min(tensor.dims, default=1) < 1 or int(numbers[1]) != length:
        kind = f"{list(tensor.dims)} of type {tensor.data_type}"
        raise ModelLoadError(f"tensor {tensor.name!r}, {kind}, has {numbers[1]} bytes in a file")
    return location, int(numbers[0]), length


def _copy(source: Path, place: _Place, target: BinaryIO) -> None:
    location, offset, left = place
    folder = source.parent.absolute()
    is_own = location == source.name  # it may be a link to another folder
    with source.open("rb") if is_own else open_below((folder / location).as_uri(), (folder.as_uri(),)) as file:
        file.seek(offset)
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ModelLoadError(f"{location} is too short", f"{offset + place[2]} bytes")
            target.write(chunk)
            left -= len(chunk)
