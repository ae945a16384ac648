"""Infers the shapes of a model's tensors for given inputs, also where the graph computes sizes from other sizes.

ONNX's own inference knows only some of the operators that graphs compute sizes with; a net that pads its input to a
multiple (``Shape``, ``Mod``, ``Pad``) would have no shapes from there on, and seem to take no memory.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from genai_ray.errors import ModelLoadError

__all__ = ["infer_shapes"]

_OF_SIZES = frozenset(
    re.findall(
        r"\w+",
        "Abs Add Cast Ceil Concat Div Equal Floor Gather Greater Identity Less Max Min Mod Mul Neg Not Range Reshape "
        "Slice Squeeze Sub Unsqueeze Where",
    )
)
"""Operators that compute sizes; only those whose inputs are all known sizes are evaluated."""

_MOST_SIZES = 64
"""Most values of a tensor of sizes."""

_Array = npt.NDArray[np.generic]


def infer_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    """Infer the shapes of all tensors.

    Args:
        model: A model whose inputs have fixed shapes; not changed.

    Returns:
        Its graph with the shapes; nodes that only compute sizes may be gone, and tensors whose size depends on the
        values of pictures have none.

    Raises:
        ModelLoadError: If ONNX does not know an operator; the runtime may.
    """
    inferred = _infer(model)
    while True:
        sizes = _find_sizes(inferred)
        if not sizes:
            return inferred.graph
        kept = [node for node in inferred.graph.node if not set(node.output) & sizes.keys()]
        del inferred.graph.node[:]
        inferred.graph.node.extend(kept)
        inferred.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in sizes.items())
        del inferred.graph.value_info[:]
        inferred = _infer(inferred)


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as exc:
        raise ModelLoadError(f"ONNX cannot infer the shapes of the model: {exc}") from exc


def _find_sizes(model: onnx.ModelProto) -> dict[str, _Array]:
    """Return the tensors of sizes that can be computed now; none if all shapes are known already."""
    graph = model.graph
    shapes = {value.name: _shape_of(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    if all(shapes.get(name) is not None for node in graph.node for name in node.output if name):
        return {}
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if not uses_external_data(tensor) and np.prod(tensor.dims) <= _MOST_SIZES
    }
    found: dict[str, _Array] = {}
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            found[node.output[0]] = np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            if np.prod(node.attribute[0].t.dims) <= _MOST_SIZES:
                known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in _OF_SIZES and all(name in known or name in found for name in node.input if name):
            found |= _evaluate(node, model, known | found)
    is_last = {value.name for value in graph.output}
    return {name: array for name, array in found.items() if name not in is_last}


def _evaluate(node: onnx.NodeProto, model: onnx.ModelProto, known: dict[str, _Array]) -> dict[str, _Array]:
    """Compute a node from values that are known; nothing if the evaluator cannot."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - few models need it

    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "sizes", inputs, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        results = ReferenceEvaluator(alone).run(None, {value.name: known[value.name] for value in inputs})
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return {}
    return {name: array for name, array in zip(node.output, results, strict=True) if array.size <= _MOST_SIZES}


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None
