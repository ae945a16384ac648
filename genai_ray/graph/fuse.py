"""Frames inside the graph: cast, scale, transpose, the model, clamp, round, cast, transpose, all in one model.

4x fewer bytes go in and come out than as float tensors, and no numpy pass over a frame is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from genai_ray.catalog import ModelSpec, TensorSpec
from genai_ray.errors import ModelLoadError
from genai_ray.graph.model import Graph, free_batch, graph_inputs
from genai_ray.types import ModelTask, full_range

__all__ = ["fuse_frames"]

_PREFIX = "genai_ray."
_ANTIALIAS_OPSET = 18


def fuse_frames(model: Graph, spec: ModelSpec, dtype: npt.DTypeLike) -> Graph:
    """Wrap a model so that it takes and gives frames of the contract.

    Args:
        model: The model as its file has it; not changed.
        spec: Its image inputs and output, params and sizes.
        dtype: uint8, uint16 or float32.

    Returns:
        A model with the input ``frames`` [N, H, W, 3] (``frames0`` and ``frames1`` for interpolation), one scalar float32
        input [] for each param under its own name, and the output ``output`` [N, s*H, s*W, C], all of ``dtype``.

    Raises:
        ModelLoadError: If the graph has inputs that are neither images nor params, or is not what the spec says.
        InvalidInputError: If the dtype is none of the frame contract's.
    """
    peak = full_range(dtype)
    fused = free_batch(model) if spec.batchable else Graph()
    if not spec.batchable:
        fused.CopyFrom(model)
    if spec.is_fixed_size:
        fused = _raise_opset(fused)
    builder = _Builder(fused, spec, np.dtype(dtype), peak)
    builder.build()
    onnx.checker.check_model(fused)
    return fused


class _Builder:
    """Writes the nodes before and after a model; nodes are gathered in order, so that the result stays sorted."""

    def __init__(self, model: Graph, spec: ModelSpec, dtype: np.dtype[Any], peak: float) -> None:
        self.model, self.spec, self.peak = model, spec, peak
        self.kind = helper.np_dtype_to_tensor_dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.count = 0

    def build(self) -> None:
        graph, spec = self.model.graph, self.spec
        values = {value.name: value for value in graph_inputs(self.model)}
        names = list(values)
        images = [tensor.name or names[index] for index, tensor in enumerate(spec.inputs)]
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
            self._before(end, name, tensor)
        for name in spec.params:
            self._param(name, values[name], ends[0])
        output = self._make_way(output)
        before, self.nodes = self.nodes, []
        channels = self._after(output, spec.outputs[0], ends[0])
        body = list(graph.node)
        del graph.node[:]
        graph.node.extend([*before, *body, *self.nodes])
        self._declare(ends, channels)

    def _make_way(self, output: str) -> str:
        """Rename the model's own tensors that are called as the fused graph's ends are; return the output's name after that."""
        graph, taken = self.model.graph, {"frames", "frames0", "frames1", "output"}
        inner = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
        renamed = {name: f"{_PREFIX}model.{name}" for name in taken & inner}
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for tensor in graph.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        return renamed.get(output, output)

    def _declare(self, ends: list[str], channels: int) -> None:
        graph = self.model.graph
        first = "frames" if self.spec.batchable else 1
        inputs = [helper.make_tensor_value_info(end, self.kind, [first, "height", "width", 3]) for end in ends]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in self.spec.params]
        result = helper.make_tensor_value_info("output", self.kind, [first, "out_height", "out_width", channels])
        for field, values in ((graph.input, inputs), (graph.output, [result])):
            del field[:]
            field.extend(values)
        del graph.value_info[:]

    def _before(self, end: str, name: str, tensor: TensorSpec) -> None:
        low, high = tensor.value_range
        value = self._node("Cast", end, to=TensorProto.FLOAT) if self.kind != TensorProto.FLOAT else end
        if tensor.layout == "nchw" or tensor.height is not None or tensor.channels == 1:
            value = self._node("Transpose", value, perm=[0, 3, 1, 2])
        if tensor.channels == 1:
            value = self._node("Reshape", value, self._fold(value, 1))
        if tensor.height is not None:
            value = self._node("Resize", value, "", "", self._sizes(value, tensor.height, tensor.width or tensor.height), mode="linear", antialias=1)
        # One multiplication and one addition do the range and the normalisation together.
        gain = np.float64((high - low) / self.peak) / np.asarray(tensor.std or 1.0, np.float64)
        shift = (low - np.asarray(tensor.mean or 0.0, np.float64)) / np.asarray(tensor.std or 1.0, np.float64)
        shape = (1, -1, 1, 1)
        if np.any(gain != 1):
            value = self._node("Mul", value, self._constant(np.atleast_1d(gain).reshape(shape).astype(np.float32)))
        if np.any(shift != 0):
            value = self._node("Add", value, self._constant(np.atleast_1d(shift).reshape(shape).astype(np.float32)))
        if tensor.layout == "nhwc" and tensor.height is not None:
            value = self._node("Transpose", value, perm=[0, 2, 3, 1])
        self._rename_input(name, value)

    def _param(self, name: str, value: onnx.ValueInfoProto, frames: str) -> None:
        """Spread a scalar to the shape that the graph wants; a leading free axis gets one value for each frame."""
        dims = value.type.tensor_type.shape.dim
        if not dims:
            return
        shape = self._constant(np.array([dim.dim_value or 1 for dim in dims], np.int64))
        if self.spec.batchable and not dims[0].dim_value:
            count = self._node("Shape", frames, start=0, end=1)
            rest = self._constant(np.array([dim.dim_value or 1 for dim in dims][1:], np.int64))
            shape = self._node("Concat", count, rest, axis=0)
        self._rename_input(name, self._node("Expand", name, shape))

    def _after(self, output: str, tensor: TensorSpec, frames: str) -> int:
        low, high = tensor.value_range
        value = output
        is_mask = self.spec.task is ModelTask.BACKGROUND_REMOVAL
        if tensor.height is not None:
            if tensor.layout == "nhwc":
                value = self._node("Transpose", value, perm=[0, 3, 1, 2])
            size = self._node("Shape", frames, start=1, end=3)
            value = self._node("Resize", value, "", "", self._node("Concat", self._node("Shape", value, start=0, end=2), size, axis=0), mode="linear")
        if low != 0:
            value = self._node("Sub", value, self._constant(np.float32(low)))
        if self.peak != high - low:
            value = self._node("Mul", value, self._constant(np.float32(self.peak / (high - low))))
        value = self._node("Clip", value, self._constant(np.float32(0)), self._constant(np.float32(self.peak)))
        if self.kind != TensorProto.FLOAT:
            value = self._node("Cast", self._node("Round", value), to=self.kind)
        if tensor.channels == 1 and not is_mask:
            value = self._node("Reshape", value, self._fold(value, 3))
        if tensor.layout == "nchw" or tensor.height is not None or (tensor.channels == 1 and not is_mask):
            value = self._node("Transpose", value, perm=[0, 2, 3, 1])
        self._node("Identity", value, output="output")
        return 1 if is_mask else 3

    def _fold(self, value: str, channels: int) -> str:
        """Shape that moves the three colours into the batch (channels=1) or back out of it (channels=3)."""
        size = self._node("Shape", value, start=2, end=4)
        return self._node("Concat", self._constant(np.array([-1, channels], np.int64)), size, axis=0)

    def _sizes(self, value: str, height: int, width: int) -> str:
        return self._node("Concat", self._node("Shape", value, start=0, end=2), self._constant(np.array([height, width], np.int64)), axis=0)

    def _constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        self.count += 1
        name = f"{_PREFIX}constant{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        result = output or f"{_PREFIX}{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], name=f"{_PREFIX}node{self.count}", **attributes))
        return result

    def _rename_input(self, name: str, value: str) -> None:
        for node in self.model.graph.node:
            for index, used in enumerate(node.input):
                if used == name:
                    node.input[index] = value


def _raise_opset(model: Graph) -> Graph:
    """Bring a model to the operator set in which Resize can filter what it makes smaller."""
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if version >= _ANTIALIAS_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _ANTIALIAS_OPSET)
    except (RuntimeError, ValueError) as exc:
        raise ModelLoadError(f"the model's operator set {version} cannot be raised to {_ANTIALIAS_OPSET}: {exc}") from exc
