"""Frames inside the graph, batch axes freed, and bytes foretold, on real models and on small graphs made here."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import ModelCatalog, errors
from genai_ray.catalog import ModelSpec, TensorSpec
from genai_ray.graph import (
    activation_bytes,
    free_batch,
    fuse_frames,
    graph_inputs,
    read_model,
    sort_nodes,
    weight_bytes,
)
from genai_ray.types import ModelTask

CATALOG = ModelCatalog.default()
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]
CASES = [pytest.param(name, marks=pytest.mark.slow) if name == "realesrgan-x4plus" else name for name in PACKAGED]
BATCHABLE = [name for name in PACKAGED if CATALOG.get(name).batchable and name != "realesrgan-x4plus"]
"""Not the largest of two nets of one kind."""


def start(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds_for(model, count, size=(64, 96)):
    """Random tensors of the model's own shapes; free axes get the batch, then height and width."""
    generator, feeds = np.random.default_rng(count), {}
    for value in graph_inputs(model):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value for dim in dims]
        if dims and (not shape[0] or shape[0] == 1):
            shape[0] = count
        free = iter(size)
        shape = [length or next(free) for length in shape]
        feeds[value.name] = generator.random(shape, dtype=np.float32)
    return feeds


@pytest.mark.parametrize("model_id", BATCHABLE)
def test_a_freed_batch_of_two_equals_two_runs(model_id):
    model = free_batch(read_model(CATALOG.path(model_id)))
    session, feeds = start(model), feeds_for(model, 2, (8, 12) if "x4plus" in model_id else (64, 96))
    both = session.run(None, feeds)[0]
    for index in (0, 1):
        one = session.run(
            None, {name: array[index : index + 1] if array.ndim else array for name, array in feeds.items()}
        )[0]
        assert np.array_equal(both[index : index + 1], one)


def test_freeing_changes_neither_the_model_nor_its_results():
    model = read_model(CATALOG.path("rife"))
    before = model.SerializeToString()
    freed = free_batch(model)
    assert model.SerializeToString() == before
    feeds = feeds_for(model, 1)
    assert np.array_equal(start(model).run(None, feeds)[0], start(freed).run(None, feeds)[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("model_id", CASES)
def test_ends_of_the_fused_graph(model_id, dtype):
    spec = CATALOG.get(model_id)
    session = start(fuse_frames(read_model(CATALOG.path(model_id)), spec, dtype))
    names = ["frames0", "frames1"] if spec.task is ModelTask.INTERPOLATION else ["frames"]
    kind = {"float32": "float"}.get(dtype, dtype)
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    assert set(inputs) == {*names, *spec.params}
    for name in names:
        assert inputs[name][0] == f"tensor({kind})"
        assert inputs[name][1][3] == 3
    assert all(inputs[name] == ("tensor(float)", []) for name in spec.params)
    (output,) = session.get_outputs()
    assert (output.name, output.type) == ("output", f"tensor({kind})")


def small(nodes, inputs, outputs, weights=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def image(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, ["n", 3, "h", "w"])


SPEC = ModelSpec(
    model_id="tiny", task=ModelTask.DENOISING, file="/tiny.onnx", inputs=(TensorSpec(),), outputs=(TensorSpec(),)
)


def test_a_model_may_use_our_names_for_its_own_tensors():
    nodes = [helper.make_node("Neg", ["x"], ["frames"]), helper.make_node("Neg", ["frames"], ["output"])]
    fused = fuse_frames(small(nodes, [image("x")], [image("output")]), SPEC, "uint8")
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    assert np.array_equal(start(fused).run(None, {"frames": frames})[0], frames)


def test_values_are_clamped_then_rounded_to_nearest():
    gain, shift = (
        numpy_helper.from_array(np.float32(value), name) for name, value in (("gain", 2.0), ("shift", -0.498))
    )
    nodes = [helper.make_node("Mul", ["x", "gain"], ["m"]), helper.make_node("Add", ["m", "shift"], ["y"])]
    session = start(fuse_frames(small(nodes, [image("x")], [image("y")], [gain, shift]), SPEC, "uint8"))
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = np.rint(np.clip(frames.astype(np.float64) * 2 - 0.498 * 255, 0, 255)).astype(np.uint8)
    assert np.array_equal(session.run(None, {"frames": frames})[0], expected)


def test_graphs_that_the_spec_does_not_describe_are_refused():
    nodes = [helper.make_node("Add", ["x", "more"], ["y"])]
    with pytest.raises(errors.ModelLoadError, match="more"):
        fuse_frames(small(nodes, [image("x"), image("more")], [image("y")]), SPEC, "uint8")
    with pytest.raises(errors.InvalidInputError, match="float64"):
        fuse_frames(small([helper.make_node("Neg", ["x"], ["y"])], [image("x")], [image("y")]), SPEC, "float64")


def test_bytes_at_the_peak_are_those_that_live_together():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = small(nodes, [image("x")], [image("y")])
    tensor = 3 * 10 * 20 * 4
    assert activation_bytes(model, {"x": (1, 3, 10, 20)}) == 3 * tensor  # a, b and y: x has gone by then
    assert activation_bytes(model, {"x": (2, 3, 10, 20)}) == 6 * tensor


def test_weights_are_added_up():
    model = read_model(CATALOG.path("websr-x2-l"))
    assert weight_bytes(model) == sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def test_nodes_out_of_order_are_sorted_and_cycles_refused():
    nodes = [helper.make_node("Exp", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    model = small(nodes, [image("x")], [image("y")])
    sort_nodes(model)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Neg", "Exp"]
    circle = small(
        [helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Neg", ["a"], ["y"])], [image("x")], [image("y")]
    )
    with pytest.raises(errors.ModelLoadError, match="cycle"):
        sort_nodes(circle)
