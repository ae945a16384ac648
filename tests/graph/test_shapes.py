"""Shapes of graphs that compute sizes, and the memory that follows from them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import ModelCatalog
from genai_ray.graph import activation_bytes, fuse_frames, read_model
from genai_ray.graph.shapes import infer_shapes

CATALOG = ModelCatalog.default()
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def build(nodes, inputs, outputs, **weights):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pad_to_even():
    """It pads height and width to even numbers, then halves them by a convolution."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["size"]),
        helper.make_node("Mod", ["size", "two"], ["extra"]),
        helper.make_node("Concat", ["zeros", "extra"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "k"], ["y"], strides=[2, 2]),
        helper.make_node("Shape", ["y"], ["later"]),
        helper.make_node("ConstantOfShape", ["later"], ["blank"]),
        helper.make_node("Add", ["y", "blank"], ["z"]),
    ]
    ends = [value("x", [1, 3, "h", "w"])], [value("z", [1, 3, "h2", "w2"])]
    numbers = {"two": np.array([2]), "four": np.array([4]), "zeros": np.zeros(6, np.int64)}
    return build(nodes, *ends, **numbers, k=np.ones((3, 3, 2, 2), np.float32))


def test_sizes_that_the_graph_computes_are_known():
    model = pad_to_even()
    before = model.SerializeToString()
    padded, small = 3 * 12 * 20 * 4, 3 * 6 * 10 * 4
    assert activation_bytes(model, {"x": (1, 3, 11, 19)}) == max(3 * 11 * 19 * 4 + padded, padded + small)
    assert model.SerializeToString() == before


def test_sizes_that_depend_on_the_picture_stay_unknown():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Shape", ["places"], ["count"]),
        helper.make_node("ConstantOfShape", ["count"], ["y"]),
    ]
    model = build(nodes, [value("x", [1, 3, 4, 5])], [value("y", None)])
    found = {each.name for each in infer_shapes(model).value_info if each.type.tensor_type.shape.dim}
    assert "y" not in found


@pytest.mark.parametrize("model_id", PACKAGED)
def test_every_tensor_of_a_packaged_model_has_a_shape(model_id):
    spec = CATALOG.get(model_id)
    fused = fuse_frames(read_model(CATALOG.path(model_id)), spec, np.uint8)
    for end in fused.graph.input:
        if end.name.startswith("frames"):
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in (1, 64, 96, 3)]
            end.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    for end in fused.graph.output:
        end.type.tensor_type.ClearField("shape")
    graph = infer_shapes(fused)
    known = {
        each.name
        for each in (*graph.value_info, *graph.output)
        if all(dim.HasField("dim_value") for dim in each.type.tensor_type.shape.dim)
    }
    assert {name for node in graph.node for name in node.output} <= known
