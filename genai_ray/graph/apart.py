"""Puts the weights of a graph into one file beside it, which a runtime maps into memory instead of copying it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from onnx.external_data_helper import uses_external_data

from genai_ray.errors import ModelLoadError
from genai_ray.files import open_below
from genai_ray.graph.header import all_tensors
from genai_ray.graph.model import Graph

__all__ = ["copy_weights", "refer_to_weights"]

_ALIGNED_BYTES = 4096
"""A tensor begins at a multiple of this, as ONNX advises for files that are mapped."""

_CHUNK_BYTES = 1 << 20


def copy_weights(model: Graph, source: Path, target: BinaryIO) -> int:
    """Copy the tensors that lie in files, and not in the graph itself, into one file.

    Args:
        model: Result of ``read_header``, or made of it; changed: its tensors have their places in the new file.
        source: The file that it was read from; the others lie in its folder.
        target: The new file, empty.

    Returns:
        Bytes of the new file; 0 if all weights are in the graph.

    Raises:
        ModelLoadError: If a tensor has no length, or its file is too short.
        VideoError: If another file is missing, or outside of the folder.
        OSError: If reading or writing fails.
    """
    places: dict[tuple[str, int, int], int] = {}
    for tensor in filter(uses_external_data, all_tensors(model.graph)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            place = (entries["location"], int(entries.get("offset", 0)), int(entries["length"]))
        except (KeyError, ValueError) as exc:
            raise ModelLoadError(f"tensor {tensor.name!r} has no place in a file") from exc
        if place not in places:
            target.write(bytes(-target.tell() % _ALIGNED_BYTES))
            places[place] = target.tell()
            _copy(source, place, target)
        del tensor.external_data[:]
        for key, value in (("location", place[0]), ("offset", places[place]), ("length", place[2])):
            tensor.external_data.add(key=key, value=str(value))
    return target.tell()


def refer_to_weights(model: Graph, name: str) -> None:
    """Make a graph refer to the file of its weights.

    Args:
        model: A graph after ``copy_weights``; changed.
        name: Name of the file, in the folder of the graph's file.
    """
    for tensor in filter(uses_external_data, all_tensors(model.graph)):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name


def _copy(source: Path, place: tuple[str, int, int], target: BinaryIO) -> None:
    location, offset, left = place
    folder = source.parent
    is_own = location == source.name  # it may be a link to another folder
    with source.open("rb") if is_own else open_below((folder / location).as_uri(), (folder.as_uri(),)) as file:
        file.seek(offset)
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ModelLoadError(f"{location} is too short", f"{offset + place[2]} bytes")
            target.write(chunk)
            left -= len(chunk)
