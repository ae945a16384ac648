"""Reading a model, and small facts and edits of it."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from genai_ray.errors import ModelLoadError

__all__ = [
    "Graph",
    "GraphTensor",
    "broken_rule",
    "element_name",
    "free_batch",
    "graph_inputs",
    "graph_tensors",
    "graphs_of",
    "has_outside_weights",
    "put_in_order",
    "read_model",
    "read_weights",
    "sort_nodes",
    "walk_nodes",
]

_SMALL_BYTES = 1024
"""Tensors of other files up to this size are read with the graph: they say sizes and scales."""

Graph = onnx.ModelProto
"""A model as ONNX has it."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """What a graph declares of one of its inputs or outputs."""

    name: str
    """Its name."""
    element: str
    """ONNX's word for the type of its elements, such as ``FLOAT``; empty for what is no tensor, or where the graph does not say."""
    shape: tuple[int, ...] | None
    """Sizes of the axes, -1 where free; None where the graph does not say."""


def read_model(path: Path) -> Graph:
    """Read an ONNX file; whether it is a good model, only a runtime can tell.

    Args:
        path: The file. Large weights that lie in other files are not read: see ``read_weights``.

    Returns:
        The model, its nodes in an order in which every tensor is made before it is read.

    Raises:
        ModelLoadError: If it cannot be read, or is not ONNX.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as exc:
        raise ModelLoadError(f"{path} is not a usable ONNX file: {_first_line(exc)}") from exc
    if not model.graph.node and not model.graph.output:
        raise ModelLoadError(f"{path} is not a usable ONNX file: it has no nodes")
    put_in_order(model, path)
    return model


def put_in_order(model: Graph, path: Path) -> None:
    """Bring a model as it was read into the form that everything here takes: nodes sorted, small tensors of other files read, in place.

    Args:
        model: The model; changed.
        path: Its file; others lie beside it.

    Raises:
        ModelLoadError: If another file is missing or too short, or the graph has a cycle.
    """
    _read_tensors([tensor for tensor in _outside(model) if _length_of(tensor) <= _SMALL_BYTES], path)
    sort_nodes(model)


def read_weights(model: Graph, path: Path) -> None:
    """Read the weights that lie in other files, in place.

    Args:
        model: What ``read_model`` gave; changed.
        path: Its file; the others lie beside it.

    Raises:
        ModelLoadError: If one is missing or too short.
    """
    _read_tensors(list(_outside(model)), path)


def has_outside_weights(model: Graph) -> bool:
    """Tell whether weights of a model lie in other files and are not in it.

    Args:
        model: Any model.

    Returns:
        Whether a runtime needs the folder of its file.
    """
    return any(True for _ in _outside(model))


def broken_rule(path: Path) -> str | None:
    """Return what ONNX's own checker says against a file; runtimes take many that it refuses.

    Args:
        path: An ONNX file.

    Returns:
        Its words; None where it has none.
    """
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as exc:
        return _first_line(exc)
    return None


def walk_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk over the nodes of a graph and of the graphs within them: branches and bodies of loops.

    Args:
        graph: Any graph.

    Yields:
        Every node.
    """
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            yield from walk_nodes(inner)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Walk over the graphs within a node: branches and bodies of loops.

    Args:
        node: Any node.

    Yields:
        Each graph, not those within it.
    """
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _outside(model: Graph) -> Iterator[onnx.TensorProto]:
    held = (attribute.t for node in walk_nodes(model.graph) for attribute in node.attribute if attribute.HasField("t"))
    yield from (tensor for tensor in (*model.graph.initializer, *held) if uses_external_data(tensor))


def _length_of(tensor: onnx.TensorProto) -> float:
    lengths = [entry.value for entry in tensor.external_data if entry.key == "length" and entry.value.isdecimal()]
    return int(lengths[-1]) if lengths else math.inf


def _read_tensors(tensors: Sequence[onnx.TensorProto], path: Path) -> None:
    try:
        for tensor in tensors:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (onnx.checker.ValidationError, OSError, ValueError) as exc:
        raise ModelLoadError(f"the weights of {path} cannot be read: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def graph_inputs(model: Graph) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller feeds: those that are not initialisers.

    Args:
        model: Any model.

    Returns:
        The inputs in the graph's order.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def graph_tensors(model: Graph) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Return what a graph declares of its inputs and outputs.

    Args:
        model: Any model.

    Returns:
        (inputs, outputs) in the graph's order.
    """
    return tuple(map(_describe, graph_inputs(model))), tuple(map(_describe, model.graph.output))


def _describe(value: onnx.ValueInfoProto) -> GraphTensor:
    if not value.type.HasField("tensor_type"):
        return GraphTensor(value.name, "", None)
    kind = value.type.tensor_type
    shape = (
        tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        if kind.HasField("shape")
        else None
    )
    return GraphTensor(value.name, element_name(kind.elem_type), shape)


def element_name(kind: int | np.dtype[Any]) -> str:
    """Return ONNX's word for a type of elements.

    Args:
        kind: ONNX's number of it, or numpy's type.

    Returns:
        Such as ``FLOAT``; empty where there is none.
    """
    number = kind if isinstance(kind, int) else onnx.helper.np_dtype_to_tensor_dtype(kind)
    return onnx.TensorProto.DataType.Name(number) if number else ""


def free_batch(model: Graph) -> Graph:
    """Free a batch axis that is fixed at 1, on every input and output; whether results stay right, only a run can tell.

    Args:
        model: Any model; not changed.

    Returns:
        A copy whose first axes of 1 may be any N.
    """
    freed = Graph()
    freed.CopyFrom(model)
    for value in (*graph_inputs(freed), *freed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[0].dim_value == 1:
            dims[0].Clear()
            dims[0].dim_param = "frames"
    del freed.graph.value_info[:]
    return freed


def sort_nodes(model: Graph) -> None:
    """Put nodes into an order in which every tensor is made before it is read, in place; converters leave some out of order.

    Args:
        model: The model; changed.

    Raises:
        ModelLoadError: If the graph has a cycle.
    """
    maker = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
    needs = [{maker[name] for name in _read_by(node) if name in maker} for node in model.graph.node]
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for index, needed in enumerate(needs):
        for made in needed:
            readers[made].append(index)
    ready = [index for index, needed in enumerate(needs) if not needed]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))  # the first of them: what is sorted stays as it is
        for index in readers[order[-1]]:
            needs[index].discard(order[-1])
            if not needs[index]:
                heapq.heappush(ready, index)
    if len(order) < len(needs):
        raise ModelLoadError("the graph has a cycle")
    if order != list(range(len(needs))):
        nodes = [model.graph.node[index] for index in order]
        sorted_graph = onnx.GraphProto(node=nodes)
        del model.graph.node[:]
        model.graph.node.extend(sorted_graph.node)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those that graphs within it read from outside included."""
    names = set(node.input)
    for graph in graphs_of(node):
        inner = list(walk_nodes(graph))
        made = {name for one in inner for name in one.output} | {value.name for value in graph.input}
        names |= {name for one in inner for name in one.input} - made
    return names
