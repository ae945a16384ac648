"""OpenVINO keeps ONNX Runtime's promises bit for bit on every catalog model, and refuses what it computes wrongly."""

import functools
import os
import subprocess
import sys
import threading

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from genai_ray import (
    Encoding,
    EnhanceOptions,
    InferenceSession,
    ModelBackend,
    ModelCache,
    ModelCatalog,
    ModelPrecision,
    SessionLimits,
    enhance_videos,
    errors,
)
from genai_ray.backends import RuntimeOptions, open_runtime
from genai_ray.backends.openvino import MAX_SHAPES
from genai_ray.graph import fuse_frames, read_model
from genai_ray.session import precision as precisions
from genai_ray.session.runs import pad_frames
from tests.caches import ending
from tests.processes import foreign_files
from tests.session.test_variants import run_alone
from tests.video.clips import NUM_FRAMES, write

CATALOG = ModelCatalog.default()
RUN = [model_id for model_id in CATALOG.ids() if ModelBackend.OPENVINO in CATALOG.get(model_id).backends]
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
SLOW_MODELS = {
    *("esrgan-2x", "esrgan-4x", "realesr-animevideov3-x2", "realesr-animevideov3-x4", "waifu2x-x2"),
    *("realcugan-x2", "realesrgan-x4plus", "realesrgan-x4plus-anime"),
}
LONGEST_MODELS = {"realesrgan-x4plus", "realesrgan-x4plus-anime"}
LIKE_OTHERS = {"esrgan-4x", "ffdnet", "realcugan-x2", "realesr-animevideov3-x4", "selfie-segmentation", "websr-x2-m"}
"""In BF16: others of the same operators run every time."""
CASES = [
    pytest.param(
        model_id,
        precision,
        marks=[pytest.mark.slow] * is_slow
        + [pytest.mark.longest]
        * (model_id in LONGEST_MODELS or (precision is ModelPrecision.BF16 and model_id in LIKE_OTHERS)),
    )
    for precision in (ModelPrecision.FP32, ModelPrecision.BF16)
    for model_id in RUN
    for is_slow in [model_id in SLOW_MODELS or precision is not ModelPrecision.FP32]
]
openvino = functools.partial(InferenceSession, backend=ModelBackend.OPENVINO)


def test_every_packaged_model_runs():
    assert RUN == PACKAGED


@pytest.mark.slow
@pytest.mark.parametrize(("model_id", "precision"), CASES)
def test_promises_hold_bit_for_bit(model_id, precision):
    """The same in every run, with one thread and with two; batches equal single frames, and tiles the whole frame."""
    if precision is ModelPrecision.BF16 and not HAS_BF16:
        pytest.skip("this processor has no BF16")
    spec = CATALOG.get(model_id)
    pairs = spec.task == "interpolation"
    step = np.lcm(spec.tile_stride, spec.size_multiple)
    tile = 2 * (spec.receptive_field_px or 0) + 16 * spec.tile_stride
    edge = spec.edge_px
    whole_px = (25, 34) if edge else (75, 98)
    untiled = SessionLimits(tile_size_px=0 if spec.tiles is None else None)
    height, width = (-(-size // step) * step for size in ((tile + 9, tile + 9) if spec.is_tileable else whole_px))
    pictures = np.random.default_rng(1).integers(0, 256, (2 + pairs, height, width, 3), np.uint8)
    try:
        one = openvino(model_id, precision=precision, threads=1, limits=untiled)
    except errors.ModelLoadError as exc:
        if precision is not ModelPrecision.BF16 or "agrees with fp32 by only" not in str(exc):
            raise
        pytest.skip(str(exc))
    with one as session:
        whole = session.infer(pictures)
        assert session.runtime_calls == 2
        assert np.array_equal(session.infer(pictures), whole)
        single = [session.infer(pictures[i : i + 2])[0] if pairs else session.infer(pictures[i]) for i in range(2)]
        assert np.array_equal(np.stack(single), whole)
        status = session.status()
    assert (status["backend"], status["precision"], status["computes_in"]) == ("openvino", precision, precision)
    assert status["precision_db"] == "inf" or status["precision_db"] >= (80 if precision is ModelPrecision.FP32 else 40)
    with openvino(model_id, precision=precision, threads=2, limits=untiled) as session:
        assert np.array_equal(session.infer(pictures), whole)
        if spec.is_tileable:
            assert np.array_equal(session.infer(pictures[0]), whole[0])
    if spec.is_tileable:
        with openvino(model_id, precision=precision, threads=1, limits=SessionLimits(tile_size_px=tile)) as session:
            assert np.array_equal(session.infer(pictures[0]), whole[0])
            assert session.runtime_calls > 2
    if spec.batchable:
        runtime = open_runtime(
            fuse_frames(read_model(CATALOG.path(model_id)), spec, "uint8").SerializeToString(),
            RuntimeOptions(backend=ModelBackend.OPENVINO, precision=precision),
        )
        padded = pad_frames(pictures, height + 2 * edge, width + 2 * edge, edge)
        feeds = {"frames0": padded[:-1], "frames1": padded[1:]} if pairs else {"frames": padded}
        feeds |= {name: np.full((), param.default, np.float32) for name, param in spec.params.items()}
        if height % spec.size_multiple == 0 and width % spec.size_multiple == 0:
            rows, columns = (slice(edge * spec.scale, (edge + size) * spec.scale) for size in (height, width))
            assert np.array_equal(runtime.run(feeds)["output"][:, rows, columns], whole)
        runtime.close()


def test_all_dtypes_and_raw_tensors_agree_with_onnx_runtime(frames):
    kinds = {"uint8": frames, "uint16": frames.astype(np.uint16) * 257, "float32": frames.astype(np.float32) / 255}
    raw = {"input": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32) / 255}
    with openvino("websr-x2-s") as session, InferenceSession("websr-x2-s") as reference:
        for name, given in kinds.items():
            found, expected = session.infer(given).astype(float), reference.infer(given).astype(float)
            assert np.abs(found - expected).max() <= {"uint8": 1, "uint16": 2, "float32": 1e-5}[name]
        assert np.abs(session.run(raw)["output"] - reference.run(raw)["output"]).max() < 1e-5


def test_a_model_of_a_fixed_size_runs(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 48, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "fixed.onnx"
    )
    picture = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    with openvino(tmp_path / "fixed.onnx") as session, InferenceSession(tmp_path / "fixed.onnx") as reference:
        assert np.array_equal(session.infer(picture), reference.infer(picture))
        assert session.runtime_calls > 1


def scan():
    """A running memory of the row before: OpenVINO gives the row itself, from the second on, without an error."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s", "v", "s1", "y1")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["v"], ["s1"]), helper.make_node("Identity", ["s"], ["y1"])],
        "b",
        rows[:2],
        rows[2:],
    )
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2], keepdims=0),
        helper.make_node(
            "Scan",
            ["mean", "x"],
            ["last", "y"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[2],
            scan_output_axes=[2],
        ),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_with_a_loop_is_refused(tmp_path):
    onnx.save(scan(), tmp_path / "scan.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with InferenceSession(tmp_path / "scan.onnx") as session:
        assert np.array_equal(session.infer(picture)[1:], picture[:-1])
    with pytest.raises(errors.ModelLoadError, match=r"scan.* control flow \(TensorIterator\).* Use backend onnx"):
        openvino(tmp_path / "scan.onnx")


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    """No model without control flow is known that OpenVINO computes wrongly, so the limit is raised for this test."""
    monkeypatch.setattr(precisions, "MIN_FP32_DB", 250.0)
    with pytest.raises(
        errors.ModelLoadError,
        match=r"websr-x2-s in fp32 on OpenVINO agrees with fp32 by only 1\d\d\.\d dB; allowed: at least 250 dB",
    ):
        openvino("websr-x2-s")


def test_a_model_without_frames_is_refused(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "any.onnx"
    )
    with pytest.raises(errors.ConfigError, match="not an image model"):
        openvino(tmp_path / "any.onnx")


def test_a_precision_that_the_processor_lacks_is_refused():
    abilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in (ModelPrecision.BF16, ModelPrecision.FP16):
        if precision.name in abilities:
            with openvino("websr-x2-s", precision=precision) as session:
                assert session.computes_in == precision.value
        else:
            with pytest.raises(
                errors.BackendUnavailableError, match=f"'{precision.value}' of OpenVINO on .*; allowed: fp32"
            ):
                openvino("websr-x2-s", precision=precision)
    with pytest.raises(errors.ConfigError, match="'int8' of backend 'openvino'; allowed: fp32 or fp16 or bf16"):
        openvino("websr-x2-s", precision=ModelPrecision.INT8)


def test_shapes_take_turns_if_there_is_no_room():
    spec = CATALOG.get("websr-x2-s")
    model = fuse_frames(read_model(CATALOG.path(spec.model_id)), spec, "uint8").SerializeToString()
    asked, may = [], [True]

    def may_compile(shapes):
        asked.append(shapes["frames"])
        return may[0]

    runtime = open_runtime(model, RuntimeOptions(backend=ModelBackend.OPENVINO, may_compile=may_compile))
    sizes = [(1, 16 + n, 24, 3) for n in range(MAX_SHAPES + 1)]
    for size in (*sizes, sizes[-1], sizes[1]):  # the first was dropped, the others stay
        runtime.run({"frames": np.zeros(size, np.uint8)})
    assert asked == sizes[1:]
    assert len(runtime._compiled) == MAX_SHAPES
    may[0] = False
    runtime.run({"frames": np.zeros(sizes[0], np.uint8)})
    assert [*runtime._compiled] == [(sizes[0],)]
    runtime.close()


def test_a_shape_without_room_waits_for_the_runs_of_others():
    spec = CATALOG.get("websr-x2-s")
    model = fuse_frames(read_model(CATALOG.path(spec.model_id)), spec, "uint8").SerializeToString()
    runtime = open_runtime(model, RuntimeOptions(backend=ModelBackend.OPENVINO, may_compile=lambda _: False))
    first, second = (np.zeros((1, side, 24, 3), np.uint8) for side in (16, 20))
    with runtime._use({"frames": first}):
        thread = threading.Thread(target=runtime.run, args=({"frames": second},))
        thread.start()
        with runtime._changed:
            assert runtime._changed.wait_for(lambda: not runtime._compiled, 30)
        assert thread.is_alive()
    thread.join(60)
    assert [*runtime._compiled] == [((1, 20, 24, 3),)]
    runtime.close()


def reserve_further_shapes():
    reserved = []

    def reserve(num_bytes):
        reserved.append(num_bytes)
        return True

    limits = SessionLimits(max_frame=(144, 176), reserve=reserve)
    with openvino("waifu2x-x2", threads=1, limits=limits) as session:
        session.warmup()
        assert not reserved
        warm = session.memory_bytes
        for _ in range(3):
            session.infer(np.zeros((2, 144, 176, 3), np.uint8))
        assert session.memory_bytes < 1.1 * warm
        session.infer(np.zeros((100, 120, 3), np.uint8))
        (asked,) = reserved
        assert session.memory_bytes - warm < asked < 2 * warm


@pytest.mark.slow
def test_a_session_reserves_further_shapes_and_nothing_else():
    run_alone(reserve_further_shapes)


@pytest.mark.slow
def test_a_job_and_the_cache_compute_with_it(ray_session, tmp_path):
    source = write(tmp_path / "in.mkv", tracks=0)
    options = EnhanceOptions(backend=ModelBackend.OPENVINO, encoding=Encoding(codec="ffv1"), cache_name="job")
    with ending(ModelCache(2_000_000_000, name="job")):  # else its session stays for the tests that count sessions
        report = enhance_videos(source, tmp_path / "out.mkv", models=["websr-x2-s"], options=options)
    (use,) = report.models
    assert (use.backend, use.precision, use.device) == ("openvino", "fp32", "cpu")
    (row,) = report.videos
    assert row.frames == NUM_FRAMES
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
    with ending(ModelCache(2_000_000_000, name="openvino")) as cache, openvino("websr-x2-s") as alone:
        cache.load_model("websr-x2-s", ModelBackend.OPENVINO, max_frame=(40, 56))
        session = cache.get_session("websr-x2-s")
        assert np.array_equal(session.infer(frames), alone.infer(frames))
        (entry,) = cache.status().models
        assert (entry.backend, entry.precision) == ("openvino", "fp32")
        assert np.array_equal(session.infer(frames[:, :24]), alone.infer(frames[:, :24]))
        (grown,) = cache.status().models
        assert grown.bytes > entry.bytes  # a further shape is reserved


IMPORTED = """
import sys
import numpy as np
import genai_ray
from genai_ray import InferenceSession, ModelBackend
with InferenceSession("websr-x2-s") as session:
    session.infer(np.zeros((16, 16, 3), np.uint8))
assert "openvino" not in sys.modules
with InferenceSession("websr-x2-s", backend=ModelBackend.OPENVINO) as session:
    session.infer(np.zeros((16, 16, 3), np.uint8))
assert "openvino" in sys.modules
assert sys.modules["openvino_telemetry"] is None
"""

MISSING = """
import sys
from genai_ray import InferenceSession, ModelBackend, errors
sys.modules["openvino"] = None
try:
    InferenceSession("websr-x2-s", backend=ModelBackend.OPENVINO)
except errors.BackendUnavailableError as exc:
    print(exc)
"""


def run_python(code, home):
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # its telemetry spares CI
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_it_is_imported_only_when_used_and_sends_nothing_home(tmp_path):
    run_python(IMPORTED, tmp_path)
    assert foreign_files(tmp_path) == []


def test_a_missing_package_is_said_with_its_command(tmp_path):
    assert "pip install 'genai-ray[openvino]'" in run_python(MISSING, tmp_path)
