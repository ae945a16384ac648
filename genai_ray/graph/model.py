"""Reads a model, tells facts about it such as its memory, and makes small edits."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from genai_ray.errors import ModelLoadError
from genai_ray.graph.shapes import infer_shapes

__all__ = [
    "Graph",
    "GraphTensor",
    "activation_bytes",
    "broken_rule",
    "element_name",
    "free_batch",
    "graph_inputs",
    "graph_tensors",
    "graphs_of",
    "has_outside_weights",
    "is_quantized",
    "put_in_order",
    "read_model",
    "read_weights",
    "sort_nodes",
    "walk_nodes",
    "weight_bytes",
]

_SMALL_BYTES = 1024
"""Tensors of other files up to this size are read with the graph: they hold sizes and scales."""

Graph = onnx.ModelProto
"""An ONNX model."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output, as the graph declares it."""

    name: str
    """Its name."""
    element: str
    """ONNX's name of the element type, such as ``FLOAT``; empty if it is not a tensor, or not declared."""
    shape: tuple[int, ...] | None
    """Sizes of the axes, -1 for a free axis; None if not declared."""


def read_model(path: Path) -> Graph:
    """Read an ONNX file; only a runtime can tell whether the model is valid.

    Args:
        path: The file. Large weights in other files are not read: see ``read_weights``.

    Returns:
        The model; its nodes are sorted so that every tensor is computed before it is read.

    Raises:
        ModelLoadError: If the file cannot be read, or is not ONNX.
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
    """Sort the nodes of a model, and read its small tensors from other files, in place.

    Args:
        model: The model; changed.
        path: Its file; the others lie beside it.

    Raises:
        ModelLoadError: If another file is missing or too short, or the graph has a cycle.
    """
    _read_tensors([tensor for tensor in _outside(model) if _length_of(tensor) <= _SMALL_BYTES], path)
    sort_nodes(model)


def read_weights(model: Graph, path: Path) -> None:
    """Read the weights of a model from other files, in place.

    Args:
        model: Result of ``read_model``; changed.
        path: Its file; the others lie beside it.

    Raises:
        ModelLoadError: If a file is missing or too short.
    """
    _read_tensors(list(_outside(model)), path)


def is_quantized(model: Graph) -> bool:
    """Tell whether a model computes in INT8, at least in part.

    Args:
        model: Any model.

    Returns:
        Whether it has ``QuantizeLinear``, which stands before what a runtime computes in INT8.
    """
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def has_outside_weights(model: Graph) -> bool:
    """Tell whether weights of a model are in other files.

    Args:
        model: Any model.

    Returns:
        Whether a runtime needs the folder of the model's file.
    """
    return any(True for _ in _outside(model))


def broken_rule(path: Path) -> str | None:
    """Return the first error that ONNX's checker finds in a file; runtimes accept many files that it refuses.

    Args:
        path: An ONNX file.

    Returns:
        The error's text; None if there is no error.
    """
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as exc:
        return _first_line(exc)
    return None


def walk_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk over the nodes of a graph and of its inner graphs: branches and bodies of loops.

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
    """Walk over the inner graphs of a node: branches and bodies of loops.

    Args:
        node: Any node.

    Yields:
        Each graph, but not the inner graphs of its nodes.
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
    except (onnx.checker.ValidationError, OSError, OverflowError, ValueError) as exc:
        raise ModelLoadError(f"the weights of {path} cannot be read: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def graph_inputs(model: Graph) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must feed: those that are not initialisers.

    Args:
        model: Any model.

    Returns:
        The inputs in the graph's order.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def graph_tensors(model: Graph) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Return the declared inputs and outputs of a graph.

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
    """Return ONNX's name of an element type.

    Args:
        kind: ONNX's number of the type, or numpy's dtype.

    Returns:
        A name such as ``FLOAT``; empty for an undefined type.
    """
    number = kind if isinstance(kind, int) else helper.np_dtype_to_tensor_dtype(kind)
    return onnx.TensorProto.DataType.Name(number) if number else ""


def free_batch(model: Graph) -> Graph:
    """Free a batch axis that is fixed at 1, on every input and output; only a run can tell whether results stay right.

    Args:
        model: Any model; not changed.

    Returns:
        A copy whose first axes of 1 may have any size.
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
    """Sort nodes so that every tensor is computed before it is read, in place; some converters leave them unsorted.

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
        order.append(heapq.heappop(ready))  # the smallest index: sorted nodes keep their order
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
    """Return the names that a node reads, including those that its inner graphs read from outside."""
    names = set(node.input)
    for graph in graphs_of(node):
        inner = list(walk_nodes(graph))
        made = {name for one in inner for name in one.output} | {value.name for value in graph.input}
        names |= {name for one in inner for name in one.input} - made
    return names


def weight_bytes(model: Graph) -> int:
    """Sum up the initialisers.

    Args:
        model: Any model.

    Returns:
        Bytes of weights as stored.
    """
    return sum(int(np.prod(tensor.dims)) * _item_bytes(tensor.data_type) for tensor in model.graph.initializer)


def activation_bytes(model: Graph, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Predict the peak of the bytes of all tensors that live at the same time in one run.

    A tensor lives from the node that computes it to the last node that reads it, in the graph's order.

    Args:
        model: Any model.
        shapes: Shape of each input that is not a scalar, by name.

    Returns:
        Bytes at the peak, including inputs and outputs; tensors whose shape cannot be inferred do not count.
    """
    fixed = Graph()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in graph_inputs(fixed):
        if value.name in shapes:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name]]
            value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    for value in fixed.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(fixed)
    sizes = {value.name: _value_bytes(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    last = {name: index for index, node in enumerate(inferred.node) for name in node.input}
    last |= {value.name: len(inferred.node) for value in inferred.output}
    live = {value.name for value in graph_inputs(fixed)}
    peak = 0
    for index, node in enumerate(inferred.node):
        live |= set(node.output)
        peak = max(peak, sum(sizes.get(name, 0) for name in live))
        live = {name for name in live if last.get(name, -1) > index}
    return peak


def _value_bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    return int(np.prod(dims)) * _item_bytes(tensor.elem_type) if all(dims) else 0


def _item_bytes(kind: int) -> int:
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 0
    return helper.tensor_dtype_to_np_dtype(kind).itemsize
