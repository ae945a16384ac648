"""The runtime's contract: devices said aloud, outputs written in place, its errors as ours, conversion that is
measured."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import InferenceSession, ModelBackend, ModelCatalog, ModelPrecision, errors
from genai_ray.backends import RuntimeOptions, open_runtime, resolve_device
from genai_ray.backends.onnx_runtime import to_fp16
from genai_ray.graph import fuse_frames, read_model

CATALOG = ModelCatalog.default()
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]


@pytest.fixture(params=[ModelBackend.ONNX, ModelBackend.OPENVINO])
def options(request):
    return RuntimeOptions(backend=request.param)


@pytest.fixture
def runtime(options):
    spec = CATALOG.get("websr-x2-s")
    model = fuse_frames(read_model(CATALOG.path(spec.model_id)), spec, "uint8").SerializeToString()
    runtime = open_runtime(model, options)
    yield runtime
    runtime.close()


def product(path=None):
    """Return a model of one product of matrices, whose shapes only a run can check; also saved to the path."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
        for name, axes in (("a", "nm"), ("b", "kl"), ("y", "nl"))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "g", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if path is not None:
        onnx.save(model, path)
    return model.SerializeToString()


def test_a_runtime_describes_its_tensors_and_device(runtime):
    (frames,) = runtime.inputs
    (output,) = runtime.outputs
    assert (frames.name, frames.dtype, frames.shape) == ("frames", np.uint8, (None, None, None, 3))
    assert (output.name, output.dtype, output.shape) == ("output", np.uint8, (None, None, None, 3))
    assert (runtime.device, runtime.computes_in) == ("cpu", "fp32")


def test_every_output_comes_back_if_no_array_is_given(options, tmp_path):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 4), np.float32)
    product(tmp_path / "product.onnx")
    for model in (product(), tmp_path / "product.onnx"):
        runtime = open_runtime(model, options)
        assert np.array_equal(runtime.run({"a": a, "b": b})["y"], a @ b)
        runtime.close()


def test_what_a_run_refuses_and_what_cannot_be_loaded(options, tmp_path):
    runtime = open_runtime(product(), options)
    with pytest.raises((errors.InvalidInputError, errors.InferenceError), match=r"(?i)dimension"):
        runtime.run({"a": np.ones((2, 3), np.float32), "b": np.ones((4, 5), np.float32)})
    runtime.close()
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    for model, name in ((b"not a model", "the model"), (tmp_path / "broken.onnx", r"broken\.onnx")):
        with pytest.raises(errors.ModelLoadError, match=name):
            open_runtime(model, options)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"], domain="of")], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(errors.ModelLoadError, match="Unheard"):
        open_runtime(model.SerializeToString(), options)


def test_weights_beside_the_model_are_found(options, tmp_path):
    weights = numpy_helper.from_array(np.arange(4096, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = (tmp_path / "model.onnx").read_bytes()
    assert len(outside) < 1000
    runtime = open_runtime(outside, replace(options, folder=tmp_path))
    assert np.array_equal(runtime.run({"x": np.ones(4096, np.float32)})["y"], np.arange(1, 4097, dtype=np.float32))
    runtime.close()


def test_runs_of_several_threads_and_shapes_do_not_mix(options):
    """Ten shapes: more than OpenVINO keeps."""
    spec = CATALOG.get("websr-x2-s")
    model = fuse_frames(read_model(CATALOG.path(spec.model_id)), spec, "uint8").SerializeToString()
    pictures = [np.random.default_rng(n).integers(0, 256, (1, 24 + n, 32, 3), np.uint8) for n in range(10)]
    runtime = open_runtime(model, replace(options, num_runs=2))
    with ThreadPoolExecutor(4) as pool:
        found = [
            *pool.map(lambda picture: runtime.run({"frames": picture})["output"], [*pictures * 3, *pictures[::-1]])
        ]
    for picture, outputs in zip(
        pictures, zip(found[:10], found[10:20], found[20:30], found[:29:-1], strict=True), strict=True
    ):
        alone = open_runtime(model, options)
        expected = alone.run({"frames": picture})["output"]
        alone.close()
        assert all(np.array_equal(output, expected) for output in outputs)
    runtime.close()


def test_results_are_written_where_the_caller_wants_them(runtime, frames):
    read_only = frames.copy()
    read_only.flags.writeable = False
    out = np.zeros((3, 98, 122, 3), np.uint8)
    given = runtime.run({"frames": read_only}, {"output": out})
    assert given["output"] is out
    assert np.array_equal(out, runtime.run({"frames": frames})["output"])


def test_wrong_feeds_are_named(runtime, frames):
    with pytest.raises(errors.InvalidInputError, match="exactly"):
        runtime.run({"picture": frames})
    with pytest.raises(errors.InvalidInputError, match="float32"):
        runtime.run({"frames": frames.astype(np.float32)})
    with pytest.raises(errors.InvalidInputError, match="shape"):
        runtime.run({"frames": frames[..., :1]})


def test_a_closed_runtime_says_so(runtime, frames):
    runtime.close()
    runtime.close()
    with pytest.raises(errors.InferenceError, match="closed"):
        runtime.run({"frames": frames})


def test_devices_that_are_not_there_are_refused_by_name():
    for device, words in (("cuda", "GPU"), ("cuda:0", "GPU")):
        with pytest.raises(errors.BackendUnavailableError, match=words):
            InferenceSession("websr-x2-s", device=device)
    for device in ("tpu", "cuda:x", ""):
        with pytest.raises(errors.ConfigError, match="device"):
            resolve_device(device, ModelBackend.ONNX)
    for backend in (ModelBackend.TENSORRT, ModelBackend.COREML, ModelBackend.DIRECTML):
        with pytest.raises(errors.BackendUnavailableError):
            InferenceSession("websr-x2-s", backend=backend)
    with pytest.raises(errors.BackendUnavailableError, match="auto or cpu"):
        InferenceSession("websr-x2-s", backend=ModelBackend.OPENVINO, device="cuda")


def test_auto_says_once_what_it_chose(caplog):
    from genai_ray.backends.execution import choose_device

    choose_device.cache_clear()
    with caplog.at_level(logging.INFO, "genai_ray"):
        for _ in range(2):
            assert resolve_device("auto", ModelBackend.ONNX) == "cpu"
    assert sum("chose cpu" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    "model_id",
    [pytest.param(model_id, marks=pytest.mark.slow) if "x4plus" in model_id else model_id for model_id in PACKAGED],
)
def test_fp16_agrees_with_fp32_by_at_least_40_db(model_id, frames):
    with InferenceSession(model_id, precision=ModelPrecision.FP16) as session:
        status = session.status()
        assert status["precision_db"] == "inf" or status["precision_db"] >= 40
        assert (status["precision"], status["weights_in"], status["computes_in"]) == ("fp16", "fp16", "fp32")
        assert session.infer(frames[:, :8, :8] if "x4plus" in model_id else frames).dtype == np.uint8


def test_weights_get_smaller_and_the_model_is_not_touched():
    model = read_model(CATALOG.path("waifu2x-x2"))
    before = model.SerializeToString()
    assert to_fp16(model).ByteSize() < 0.6 * len(before)
    assert model.SerializeToString() == before


def test_a_model_that_does_not_convert_says_so(tmp_path):
    """A quantized model: QuantizeLinear of operator set 17 takes no fp16."""
    weights = [
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (("s", 1 / 255, np.float32), ("z", 0, np.uint8))
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = tmp_path / "quantized.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with InferenceSession(path) as session:
        assert session.infer(np.full((16, 16, 3), 7, np.uint8)).min() == 7
    with pytest.raises(errors.ModelLoadError, match="fp16"):
        InferenceSession(path, precision=ModelPrecision.FP16)


@pytest.mark.parametrize("precision", [ModelPrecision.INT8, ModelPrecision.BF16])
def test_precisions_that_this_backend_cannot_hold(precision):
    with pytest.raises(errors.ConfigError, match="fp32 or fp16"):
        InferenceSession("websr-x2-s", precision=precision)
