"""Small ONNX models for the endpoint's tests, written when they are needed."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


def write(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def value(name, datatype, shape):
    return helper.make_tensor_value_info(name, ELEMENTS[datatype], shape)


def identity(path, datatype, shape=("rows", "columns")):
    write(
        path, [helper.make_node("Identity", ["x"], ["y"])], [value("x", datatype, shape)], [value("y", datatype, shape)]
    )


def add_sub(path):
    """Two inputs, two outputs, the first axis free."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    write(
        path,
        nodes,
        [value(n, "FP32", ("n", 4)) for n in ("a", "b")],
        [value(n, "FP32", ("n", 4)) for n in ("sum", "difference")],
    )


def add_number(path, number):
    constant = numpy_helper.from_array(np.float32(number), "number")
    write(
        path,
        [helper.make_node("Add", ["x", "number"], ["y"])],
        [value("x", "FP32", ("n",))],
        [value("y", "FP32", ("n",))],
        [constant],
    )


def logarithm(path):
    """Gives NaN for negative numbers."""
    write(path, [helper.make_node("Log", ["x"], ["y"])], [value("x", "FP32", ("n",))], [value("y", "FP32", ("n",))])


def total(path):
    """One output that has no axis."""
    write(
        path,
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [value("x", "FP32", ("n",))],
        [value("y", "FP32", ())],
    )


def square(path):
    """Rows of ``x`` times its columns, n * n numbers, added up; and ``shift``, whose shape is fixed, is added."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["columns"]),
        helper.make_node("MatMul", ["x", "columns"], ["products"]),
        helper.make_node("ReduceSum", ["products"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "shift"], ["y"]),
    ]
    write(path, nodes, [value("x", "FP32", ("n", "k")), value("shift", "FP32", (1,))], [value("y", "FP32", (1,))])


def count_up(path):
    """Counts to 10,000 for each number of ``x``, on one thread, and adds ``shift``, whose shape is fixed: a small body
    that is computed for long."""
    step = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["goes_on_still"]),
            helper.make_node("Add", ["so_far", "one"], ["by_now"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            value("so_far", "FP32", (1,)),
        ],
        [helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []), value("by_now", "FP32", (1,))],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    nodes = [
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Mul", ["size", "each"], ["steps"]),
        helper.make_node("Loop", ["steps", "", "none"], ["counted"], body=step),
        helper.make_node("Add", ["counted", "shift"], ["y"]),
    ]
    constants = [
        helper.make_tensor("each", TensorProto.INT64, [], [10_000]),
        helper.make_tensor("none", TensorProto.FLOAT, [1], [0.0]),
    ]
    write(
        path, nodes, [value("x", "FP32", ("n",)), value("shift", "FP32", (1,))], [value("y", "FP32", (1,))], constants
    )


def write_repository(folder):
    """One model of each datatype, and some that are special."""
    for datatype in ELEMENTS:
        identity(folder / f"identity-{datatype.lower()}.onnx", datatype)
    add_sub(folder / "add-sub.onnx")
    add_sub(folder / "merged.onnx")
    (folder / "merged.serve.yaml").write_text("max_batch_size: 8\nbatch_wait_timeout_s: 1.0\n")
    add_sub(folder / "pinned.onnx")
    (folder / "pinned.serve.yaml").write_text("pin: true\n")
    add_sub(folder / "patient.onnx")
    (folder / "patient.serve.yaml").write_text("max_batch_size: 1000\nbatch_wait_timeout_s: 5.0\n")
    logarithm(folder / "logarithm.onnx")
    total(folder / "total.onnx")
    for version in (1, 2):
        add_number(folder / "versioned" / str(version) / "model.onnx", version)
    (folder / "broken.onnx").write_bytes(b"not a model at all")
