"""Computes the receptive-field radius of a graph: how far an output pixel sees, in input pixels.

Each tensor of image data has a spacing (input pixels per element, a fraction) and the reach of its elements to the left
and to the right in input pixels. A node adds its kernel's reach at its input's spacing. A graph with a node that mixes
the whole frame, or is not known here, has no radius.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import onnx

from genai_ray.graph.model import Graph, graph_inputs

__all__ = ["ReceptiveField", "receptive_field"]

_POINTWISE = frozenset(
    re.findall(
        r"\w+",
        "Abs Add Cast Ceil Clip Concat Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu "
        "Log Max Min Mul Neg PRelu Pow Relu Round Selu Sigmoid Sign Softplus Split Sqrt Sub Sum Tanh Where "
        "BatchNormalization Dropout Mod Expand Transpose Mish",
    )
)
_BORDER = frozenset(["Pad", "Slice"])
_KERNEL = frozenset(["Conv", "AveragePool", "MaxPool", "ConvTranspose"])


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Result of ``receptive_field``."""

    radius_px: int | None
    """Radius in input pixels; None for the whole frame or unknown."""
    stride: int
    """Tile origins must be multiples of it."""


@dataclass(frozen=True, slots=True)
class _Reach:
    spacing: Fraction
    left: Fraction
    right: Fraction

    def grow(self, left: Fraction, right: Fraction, spacing: Fraction | None = None) -> _Reach:
        return _Reach(spacing or self.spacing, self.left + left, self.right + right)


class _UnknownError(Exception):
    """A node that mixes the whole frame or is not known."""


def receptive_field(model: Graph) -> ReceptiveField:
    """Compute how far an output element sees.

    Args:
        model: A model of images.

    Returns:
        Radius and stride; no radius if the graph sees the whole frame or has an unknown node.
    """
    images = [value.name for value in graph_inputs(model) if len(value.type.tensor_type.shape.dim) == 4]
    start = _Reach(Fraction(1), Fraction(0), Fraction(0))
    # An input of single values, such as FFDNet's sigma, is not an image.
    reaches = {name: start for name in images if not _is_single(model, name)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    stride = Fraction(1)
    try:
        for node in model.graph.node:
            inputs = [reaches[name] for name in node.input if name in reaches]
            if node.op_type == "Constant":
                constants[node.output[0]] = node.attribute[0].t
            if not inputs or node.op_type == "Shape":
                continue
            reach = _pass(node, _merge(inputs), constants)
            stride = max(stride, reach.spacing)
            reaches |= dict.fromkeys(node.output, reach)
    except _UnknownError:
        return ReceptiveField(None, 1)
    ends = [reaches[value.name] for value in model.graph.output if value.name in reaches]
    if not ends:
        return ReceptiveField(None, 1)
    return ReceptiveField(math.ceil(max(max(end.left, end.right) for end in ends)), math.ceil(stride))


def _is_single(model: Graph, name: str) -> bool:
    value = next(value for value in model.graph.input if value.name == name)
    return all(dim.dim_value == 1 for dim in value.type.tensor_type.shape.dim)


def _merge(reaches: list[_Reach]) -> _Reach:
    if len({reach.spacing for reach in reaches}) > 1:
        raise _UnknownError
    return _Reach(reaches[0].spacing, max(r.left for r in reaches), max(r.right for r in reaches))


def _pass(node: onnx.NodeProto, reach: _Reach, constants: dict[str, onnx.TensorProto]) -> _Reach:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    step = reach.spacing
    if node.op_type in _POINTWISE or node.op_type in _BORDER:
        return reach
    if node.op_type in _KERNEL:
        return _pass_kernel(node, reach, constants, attributes)
    if node.op_type == "DepthToSpace":
        size = int(attributes["blocksize"])
        return _Reach(step / size, reach.left, reach.right)
    if node.op_type == "SpaceToDepth":
        size = int(attributes["blocksize"])
        return _Reach(step * size, reach.left, reach.right)  # tile origins at multiples of the stride keep cells whole
    if node.op_type in ("Resize", "Upsample"):
        return _pass_resize(node, reach, constants, attributes)
    raise _UnknownError


def _pass_kernel(
    node: onnx.NodeProto, reach: _Reach, constants: dict[str, onnx.TensorProto], attributes: dict[str, object]
) -> _Reach:
    weights = constants.get(node.input[1]) if len(node.input) > 1 else None
    kernel = attributes.get("kernel_shape") or (list(weights.dims[2:]) if weights is not None else None)
    if not isinstance(kernel, list):
        raise _UnknownError
    ones = [1] * len(kernel)
    strides, dilations = (_integers(attributes.get(name), ones) for name in ("strides", "dilations"))
    axis = max(range(len(kernel)), key=lambda i: kernel[i])
    span = (kernel[axis] - 1) * dilations[axis]
    stride = strides[axis]
    step = reach.spacing
    if node.op_type == "ConvTranspose":
        taps = -(-(span + 1) // stride)  # inputs of one output element
        return reach.grow(step * (taps - 1), step * (taps - 1), step / stride)
    # Valid convolutions see asymmetrically; a tile needs a symmetric halo.
    half = Fraction(span, 2)
    return reach.grow(step * half, step * half, step * stride)


def _integers(value: object, default: list[int]) -> list[int]:
    return value if isinstance(value, list) else default


def _pass_resize(
    node: onnx.NodeProto, reach: _Reach, constants: dict[str, onnx.TensorProto], attributes: dict[str, object]
) -> _Reach:
    # Upsample 7 has an attribute; Upsample 9 and Resize 10 have them second; Resize 11 has them third.
    scales = constants.get(node.input[min(len(node.input) - 1, 2)])
    factors = attributes.get("scales") or (
        onnx.numpy_helper.to_array(scales).tolist() if scales is not None and scales.dims else None
    )
    if not isinstance(factors, list) or not factors:
        raise _UnknownError
    factor = Fraction(float(factors[-1])).limit_denominator(64)
    sees_whole_frame = attributes.get("coordinate_transformation_mode") in (b"align_corners", b"tf_crop_and_resize")
    if factor <= 0 or sees_whole_frame:
        raise _UnknownError
    mode = attributes.get("mode", b"nearest")
    taps = {b"nearest": Fraction(0), b"linear": Fraction(1), b"cubic": Fraction(2)}.get(
        mode if isinstance(mode, bytes) else b""
    )
    if taps is None:
        raise _UnknownError
    widened = taps / factor if factor < 1 and attributes.get("antialias") else taps
    return reach.grow(reach.spacing * widened, reach.spacing * widened, reach.spacing / factor)
