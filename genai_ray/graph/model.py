"""Reading a model, and small facts and edits of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from genai_ray.errors import ModelLoadError

__all__ = ["Graph", "GraphTensor", "free_batch", "graph_inputs", "graph_tensors", "read_model", "sort_nodes"]

Graph = onnx.ModelProto
"""A model as ONNX has it."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """What a graph declares of one of its inputs or outputs."""

    name: str
    """Its name."""
    element: str
    """ONNX's word for the type of its elements, such as ``FLOAT``; empty for what is no tensor."""
    shape: tuple[int, ...] | None
    """Sizes of the axes, -1 where free; None where the graph does not say."""


def read_model(path: Path) -> Graph:
    """Read and check an ONNX file.

    Args:
        path: The file; external data is looked for beside it.

    Returns:
        The model.

    Raises:
        ModelLoadError: If it cannot be read, is not ONNX, or breaks ONNX's rules.
    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as exc:
        lines = str(exc).strip().splitlines()
        raise ModelLoadError(f"{path} is not a usable ONNX file: {lines[0] if lines else type(exc).__name__}") from exc
    if not model.graph.node:
        raise ModelLoadError(f"{path} is not a usable ONNX file: it has no nodes")
    return model


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
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim) if kind.HasField("shape") else None
    return GraphTensor(value.name, onnx.TensorProto.DataType.Name(kind.elem_type), shape)


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
    waiting, known = (
        list(model.graph.node),
        {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""},
    )
    made = {name for node in waiting for name in node.output}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in node.input)]
        if not ready:
            raise ModelLoadError("the graph has a cycle")
        known |= {name for node in ready for name in node.output}
        ordered += ready
        waiting = [node for node in waiting if not all(name in known for name in node.output)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
