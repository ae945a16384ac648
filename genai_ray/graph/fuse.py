"""Fuses frames into a model: cast, scale, transpose, the model, clamp, round, cast and transpose become one graph.

Inputs and outputs have a quarter of the bytes of float tensors, and numpy need not touch a frame. ``frame_ends`` builds
what is added as graphs of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from genai_ray.catalog import ModelSpec, ParamSpec, TensorSpec
from genai_ray.errors import ModelLoadError
from genai_ray.graph.model import Graph, free_batch, graph_inputs, graphs_of, walk_nodes
from genai_ray.types import ModelTask, full_range

__all__ = ["frame_ends", "fuse_frames"]

_PREFIX = "genai_ray."
_MODEL = "genai_ray.model"
"""Type and domain of the node that stands for a model between its ends."""
_ANTIALIAS_OPSET = 18
_ENDS_IR_VERSION = 8
_OLDEST_OPSET = 7
"""From this set on, Mul and Add broadcast; ONNX Runtime does not support older sets."""


def fuse_frames(model: Graph, spec: ModelSpec, dtype: npt.DTypeLike) -> Graph:
    """Wrap a model so that it takes and returns frames.

    Args:
        model: The model of the file; not changed.
        spec: Its image inputs and output, params and sizes.
        dtype: uint8, uint16 or float32.

    Returns:
        A model with the input ``frames`` [N, H, W, 3] (``frames0`` and ``frames1`` for interpolation), one float32
        input for each param under its own name, [] for a number, [size] for a vector and [H, W, 3] in [0, 1] for a
        picture, and the output ``output`` [N, s*H, s*W, C]; frames are of ``dtype``. Only a runtime can tell whether it
        runs.

    Raises:
        ModelLoadError: If the graph has inputs that are neither images nor params, differs from the spec, or has an
            operator set before 7.
        InvalidInputError: If the dtype is none of these.
    """
    peak = full_range(dtype)
    fused = free_batch(model) if spec.batchable else Graph()
    if not spec.batchable:
        fused.CopyFrom(model)
    _check_opset(fused, spec)
    if spec.is_resized:
        fused = _raise_opset(fused)
    builder = _Builder(fused, spec, np.dtype(dtype), peak)
    builder.build()
    return fused


def frame_ends(model: Graph, spec: ModelSpec, dtype: npt.DTypeLike) -> tuple[Graph, Graph]:
    """Build what ``fuse_frames`` adds to a model as graphs of their own, so that frames of any dtype share the model.

    Args:
        model: The model of the file; not changed. Its weights are not needed.
        spec: As for ``fuse_frames``.
        dtype: uint8, uint16 or float32.

    Returns:
        The graph before the model, from ``frames`` and params to one output for each input of the model, in its order;
        and the graph after it, from the model's output, its first input, to ``output``. If the second graph has an
        input ``frames``, or ``frames0``, it reads their size.

    Raises:
        ModelLoadError: As ``fuse_frames``.
        InvalidInputError: If the dtype is none of these.
    """
    _check_opset(model, spec)
    model = free_batch(model) if spec.batchable else model
    inputs = graph_inputs(model)
    names = [value.name for value in inputs], [value.name for value in model.graph.output]
    whole = helper.make_model(
        helper.make_graph([helper.make_node(_MODEL, *names, domain=_MODEL)], "frames", inputs, model.graph.output),
        opset_imports=[helper.make_opsetid("", _ANTIALIAS_OPSET), helper.make_opsetid(_MODEL, 1)],
        ir_version=_ENDS_IR_VERSION,
    )
    _Builder(whole, spec, np.dtype(dtype), full_range(dtype)).build()
    nodes = list(whole.graph.node)
    at = next(index for index, node in enumerate(nodes) if node.op_type == _MODEL)
    made = [f"{_PREFIX}input{index}" for index in range(len(inputs))]
    links = [helper.make_node("Identity", [name], [end]) for name, end in zip(nodes[at].input, made, strict=True)]
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(made, kinds, strict=True)]
    output = spec.outputs[0].name or names[1][0]
    position = names[1].index(output)
    result = helper.make_tensor_value_info(
        nodes[at].output[position], model.graph.output[position].type.tensor_type.elem_type, None
    )
    read = {name for node in nodes[at + 1 :] for name in node.input}
    frames = [value for value in whole.graph.input if value.name in read]
    return (
        _part_of(whole, [*nodes[:at], *links], list(whole.graph.input), outputs),
        _part_of(whole, nodes[at + 1 :], [result, *frames], list(whole.graph.output)),
    )


def _part_of(
    whole: Graph,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> Graph:
    """Make a graph of some nodes of another one, with the constants that they read."""
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in whole.graph.initializer if tensor.name in read]
    return helper.make_model(
        helper.make_graph(nodes, "frames", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", _ANTIALIAS_OPSET)],
        ir_version=_ENDS_IR_VERSION,
    )


def _check_opset(model: Graph, spec: ModelSpec) -> None:
    if _opset_of(model) < _OLDEST_OPSET:
        raise ModelLoadError(
            f"{spec.model_id} has operator set {_opset_of(model)}",
            f"{_OLDEST_OPSET} or later for frames",
            "Convert it, or use run().",
        )


class _Builder:
    """Adds nodes before and after a model, with operators of its operator set, in sorted order."""

    def __init__(self, model: Graph, spec: ModelSpec, dtype: np.dtype[Any], peak: float) -> None:
        self.model = model
        self.spec = spec
        self.peak = peak
        self.kind = helper.np_dtype_to_tensor_dtype(dtype)
        self.opset = _opset_of(model)
        self.nodes: list[onnx.NodeProto] = []
        self.count = 0

    def build(self) -> None:
        graph = self.model.graph
        spec = self.spec
        values = {value.name: value for value in graph_inputs(self.model)}
        names = list(values)
        images = [tensor.name or names[index] for index, tensor in enumerate(spec.inputs)]
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*values.values(), *graph.output)}
        outputs = [value.name for value in graph.output]
        output = spec.outputs[0].name or outputs[0]
        unknown = set(names) - set(images) - set(spec.params)
        if unknown or not set(images) <= set(names) or output not in outputs:
            raise ModelLoadError(
                f"{spec.model_id} has inputs {names} and outputs {outputs}",
                f"images {images}, params {sorted(spec.params)}, output {output!r}",
            )
        ends = ["frames"] if len(images) == 1 else [f"frames{index}" for index in range(len(images))]
        for end, name, tensor in zip(ends, images, spec.inputs, strict=True):
            self._before(end, name, tensor, kinds[name])
        for name in spec.params:
            self._param(name, values[name], ends[0])
        kind = kinds[output]
        output = self._make_way(output)
        before = self.nodes
        self.nodes = []
        if kind != TensorProto.FLOAT:
            output = self._node("Cast", output, to=TensorProto.FLOAT)
        channels = self._after(output, spec.outputs[0], ends[0])
        body = list(graph.node)
        del graph.node[:]
        graph.node.extend([*before, *body, *self.nodes])
        self._declare(ends, channels)

    def _make_way(self, output: str) -> str:
        """Rename the model's tensors whose names the fused inputs and outputs need; return the output's new name."""
        taken = {"frames", "frames0", "frames1", "output"}
        inner = {name for node in walk_nodes(self.model.graph) for name in node.output} | {
            tensor.name for tensor in self.model.graph.initializer
        }
        renamed = {name: f"{_PREFIX}model.{name}" for name in taken & inner}
        if renamed:
            _rename(self.model.graph, renamed)
        return renamed.get(output, output)

    def _declare(self, ends: list[str], channels: int) -> None:
        graph = self.model.graph
        first = "frames" if self.spec.batchable else 1
        inputs = [helper.make_tensor_value_info(end, self.kind, [first, "height", "width", 3]) for end in ends]
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape_of(name, param))
            for name, param in self.spec.params.items()
        ]
        result = helper.make_tensor_value_info("output", self.kind, [first, "out_height", "out_width", channels])
        for field, values in ((graph.input, inputs), (graph.output, [result])):
            del field[:]
            field.extend(values)
        del graph.value_info[:]

    def _before(self, end: str, name: str, tensor: TensorSpec, kind: int) -> None:
        is_resized = self.spec.is_resized
        value = self._node("Cast", end, to=TensorProto.FLOAT) if self.kind != TensorProto.FLOAT else end
        if tensor.layout == "nchw" or is_resized or tensor.channels == 1:
            value = self._node("Transpose", value, perm=[0, 3, 1, 2])
        if tensor.channels == 1:
            value = self._node("Reshape", value, self._fold(value, 1))
        if is_resized and tensor.height is not None:
            value = self._node(
                "Resize",
                value,
                "",
                "",
                self._sizes(value, tensor.height, tensor.width or tensor.height),
                mode="linear",
                antialias=1,
            )
        is_last = tensor.layout == "nhwc" and not (is_resized or tensor.channels == 1)
        value = self._normalise(value, tensor, self.peak, is_last=is_last)
        if tensor.layout == "nhwc" and (is_resized or tensor.channels == 1):
            value = self._node("Transpose", value, perm=[0, 2, 3, 1])
        if kind != TensorProto.FLOAT:
            value = self._node("Cast", value, to=kind)
        self._rename_input(name, value)

    def _normalise(self, value: str, tensor: TensorSpec, peak: float, *, is_last: bool) -> str:
        """Convert values from 0 to ``peak`` to those of a tensor; channels are its last axis, or the second."""
        low, high = tensor.value_range
        # One multiplication and one addition apply both the range and the normalisation.
        gain = np.float64((high - low) / peak) / np.asarray(tensor.std or 1.0, np.float64)
        shift = (low - np.asarray(tensor.mean or 0.0, np.float64)) / np.asarray(tensor.std or 1.0, np.float64)
        shape = (1, 1, 1, -1) if is_last else (1, -1, 1, 1)
        if np.any(gain != 1):
            value = self._node("Mul", value, self._constant(np.atleast_1d(gain).reshape(shape).astype(np.float32)))
        if np.any(shift != 0):
            value = self._node("Add", value, self._constant(np.atleast_1d(shift).reshape(shape).astype(np.float32)))
        return value

    def _picture(self, name: str, tensor: TensorSpec) -> str:
        """Convert a picture (H, W, 3) in [0, 1] to one row of a tensor."""
        shape = self._node("Concat", self._constant(np.array([1], np.int64)), self._axes(name, 0, 3), axis=0)
        value = self._node("Reshape", name, shape)
        if tensor.layout == "nchw":
            value = self._node("Transpose", value, perm=[0, 3, 1, 2])
        return self._normalise(value, tensor, 1.0, is_last=tensor.layout == "nhwc")

    def _param(self, name: str, value: onnx.ValueInfoProto, frames: str) -> None:
        """Bring a param to the shape of the graph's input; a free first axis gets one for each frame."""
        dims = value.type.tensor_type.shape.dim
        kind = value.type.tensor_type.elem_type
        picture = self.spec.params[name].picture
        if picture is not None:
            spread = self._picture(name, picture)
            if self.spec.batchable and not dims[0].dim_value:
                ones = self._constant(np.ones(3, np.int64))
                counts = self._node("Concat", self._axes(frames, 0, 1), ones, axis=0)
                spread = self._node("Tile", spread, counts)
            self._rename_input(name, spread if kind == TensorProto.FLOAT else self._node("Cast", spread, to=kind))
            return
        spread = name
        if self.spec.params[name].size is not None:
            spread = self._node(
                "Reshape", name, self._constant(np.array([dim.dim_value or 1 for dim in dims], np.int64))
            )
        if dims:
            sizes = np.array([dim.dim_value or 1 for dim in dims], np.int64)
            shape = self._constant(sizes)
            if self.spec.batchable and not dims[0].dim_value:
                count = self._axes(frames, 0, 1)
                shape = self._node("Concat", count, self._constant(sizes[1:]), axis=0) if len(dims) > 1 else count
            spread = self._spread(spread, shape, len(dims))
        if kind != TensorProto.FLOAT:
            spread = self._node("Cast", spread, to=kind)
        if spread != name:
            self._rename_input(name, spread)

    def _spread(self, scalar: str, shape: str, rank: int) -> str:
        if self.opset >= 8:  # Expand came with set 8
            return self._node("Expand", scalar, shape)
        return self._node("Tile", self._node("Reshape", scalar, self._constant(np.ones(rank, np.int64))), shape)

    def _after(self, output: str, tensor: TensorSpec, frames: str) -> int:
        low, high = tensor.value_range
        value = output
        is_mask = self.spec.task is ModelTask.BACKGROUND_REMOVAL
        is_resized = self.spec.is_resized
        if tensor.layout == "nhwc" and (is_resized or (tensor.channels == 1 and not is_mask)):
            value = self._node("Transpose", value, perm=[0, 3, 1, 2])
        if is_resized:
            size = self._axes(frames, 1, 3)
            value = self._node(
                "Resize", value, "", "", self._node("Concat", self._axes(value, 0, 2), size, axis=0), mode="linear"
            )
        if low != 0:
            value = self._node("Sub", value, self._constant(np.float32(low)))
        if self.peak != high - low:
            value = self._node("Mul", value, self._constant(np.float32(self.peak / (high - low))))
        value = self._clip(value)
        if self.kind != TensorProto.FLOAT:
            value = self._node("Cast", self._round(value), to=self.kind)
        if tensor.channels == 1 and not is_mask:
            value = self._node("Reshape", value, self._fold(value, 3))
        if tensor.layout == "nchw" or is_resized or (tensor.channels == 1 and not is_mask):
            value = self._node("Transpose", value, perm=[0, 2, 3, 1])
        self._node("Identity", value, output="output")
        return 1 if is_mask else 3

    def _clip(self, value: str) -> str:
        if self.opset < 11:  # limits are inputs since set 11
            return self._node("Clip", value, min=0.0, max=float(self.peak))
        return self._node("Clip", value, self._constant(np.float32(0)), self._constant(np.float32(self.peak)))

    def _round(self, value: str) -> str:
        if self.opset < 11:  # Round came with set 11; adding 2**23, a float32 without fraction bits, rounds as it does
            large = self._constant(np.float32(2**23))
            return self._node("Sub", self._node("Add", value, large), large)
        return self._node("Round", value)

    def _fold(self, value: str, channels: int) -> str:
        """Return a shape that moves the three colours into the batch (channels=1) or back (channels=3)."""
        return self._node("Concat", self._constant(np.array([-1, channels], np.int64)), self._axes(value, 2, 4), axis=0)

    def _sizes(self, value: str, height: int, width: int) -> str:
        return self._node(
            "Concat", self._axes(value, 0, 2), self._constant(np.array([height, width], np.int64)), axis=0
        )

    def _axes(self, value: str, start: int, stop: int) -> str:
        """Return the sizes of some axes of a tensor."""
        if self.opset < 15:  # Shape has start and end since set 15
            return self._node("Gather", self._node("Shape", value), self._constant(np.arange(start, stop)), axis=0)
        return self._node("Shape", value, start=start, end=stop)

    def _constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        self.count += 1
        name = f"{_PREFIX}constant{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        result = output or f"{_PREFIX}{kind.lower()}{self.count}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [result], name=f"{_PREFIX}node{self.count}", **attributes)
        )
        return result

    def _rename_input(self, name: str, value: str) -> None:
        for node in walk_nodes(self.model.graph):
            for index, used in enumerate(node.input):
                if used == name:
                    node.input[index] = value


def _shape_of(name: str, param: ParamSpec) -> list[int | str]:
    """Return the shape of a param's input."""
    if param.picture is not None:
        return [param.picture.height or f"{name}_height", param.picture.width or f"{name}_width", 3]
    return [] if param.size is None else [param.size]


def _opset_of(model: Graph) -> int:
    """Return the operator set of a model; if the file names none, the latest, which a runtime takes."""
    return next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        onnx.defs.onnx_opset_version(),
    )


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph and of its inner graphs, in place."""
    for node in walk_nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for one in (graph, *(inner for node in walk_nodes(graph) for inner in graphs_of(node))):
        for tensor in one.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for value in (*one.input, *one.output):
            value.name = names.get(value.name, value.name)


def _raise_opset(model: Graph) -> Graph:
    """Convert a model to the operator set in which Resize can antialias."""
    version = _opset_of(model)
    if version >= _ANTIALIAS_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _ANTIALIAS_OPSET)
    except (RuntimeError, ValueError) as exc:
        raise ModelLoadError(
            f"the model's operator set {version} cannot be raised to {_ANTIALIAS_OPSET}: {exc}"
        ) from exc
