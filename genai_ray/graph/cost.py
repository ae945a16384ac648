"""Bytes that a model will take, from its graph alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from genai_ray.graph.model import Graph, graph_inputs

__all__ = ["activation_bytes", "weight_bytes"]


def weight_bytes(model: Graph) -> int:
    """Add up the initialisers.

    Args:
        model: Any model.

    Returns:
        Bytes of weights as stored.
    """
    return sum(int(np.prod(tensor.dims)) * _item_bytes(tensor.data_type) for tensor in model.graph.initializer)


def activation_bytes(model: Graph, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Predict the most bytes of tensors that live at the same time in one run.

    A tensor lives from the node that makes it to the last node that reads it, in the graph's order.

    Args:
        model: Any model.
        shapes: Shape of each input that is not a scalar, by name.

    Returns:
        Bytes at the peak, inputs and outputs included; tensors whose shape cannot be inferred count as nothing.
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
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
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
    return (
        0
        if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
        else helper.tensor_dtype_to_np_dtype(kind).itemsize
    )
