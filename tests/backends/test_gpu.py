"""What of the path to a GPU needs no GPU: bytes of the device, options of providers, names of engines, host memory."""

import mmap
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from genai_ray import ModelBackend, ModelCatalog, errors
from genai_ray.backends import RuntimeOptions, execution, open_runtime
from genai_ray.backends.cuda import Block, HostBlocks, allocate_pageable
from genai_ray.backends.gpu import (
    LEAST_ARENA_BYTES,
    WORKSPACE_BYTES,
    GpuMeter,
    GpuState,
    arena_limit,
    count_gpus,
    name_gpu,
    visible_gpus,
)
from genai_ray.backends.onnx_runtime import OnnxRuntimeSession, _run_errors, to_fp16
from genai_ray.backends.providers import (
    CPU,
    CUDA,
    FP32_OPERATORS,
    NOT_FOR_TENSORRT,
    TENSORRT,
    EngineFacts,
    cuda_options,
    engine_folders,
    heavy_on_cpu,
    tensorrt_options,
)
from genai_ray.graph import fuse_frames, read_model

CATALOG = ModelCatalog.default()
MB = 1_000_000
LIBRARIES = Path(ort.__file__).parent / "capi"


class Table:
    """What NVML says, in the order of the questions; the last answer stays. None: the driver does not answer."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def __call__(self, gpu):
        assert gpu == "GPU-1"
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise errors.BackendUnavailableError("NVML: Driver Not Loaded")
        used_bytes, processes = answer
        return GpuState("NVIDIA L4", 24_000 * MB, used_bytes, processes)


def test_bytes_of_a_process_are_those_that_the_driver_tells():
    others = {7: 900 * MB}
    meter = GpuMeter(
        "GPU-1",
        42,
        Table((900, others), (1300, others | {42: 400 * MB}), (5, {42: 700 * MB}), (5, {42: 600 * MB}), None),
    )
    assert (meter.measure(), meter.is_by_process) == (400 * MB, True)
    assert [meter.added_bytes for _ in range(2)] == [700 * MB, 600 * MB]


def test_a_driver_that_fails_leaves_the_last_figure(caplog):
    meter = GpuMeter("GPU-1", 42, Table((0, {}), (9, {42: 400 * MB}), None))
    meter.measure()
    assert meter.added_bytes == 400 * MB
    assert "Driver Not Loaded; the last figure counts" in caplog.text
    with pytest.raises(errors.BackendUnavailableError):
        GpuMeter("GPU-1", 42, Table(None))


def test_what_a_process_took_before_is_not_counted():
    meter = GpuMeter("GPU-1", 42, Table((500, {42: 500}), (700, {42: 700}), (900, {42: 900})))
    assert (meter.measure(), meter.added_bytes) == (200, 400)


@pytest.mark.parametrize("listed", [{}, {7: 900 * MB}, {42: None}, {42: 300 * MB}])
def test_without_bytes_by_process_the_difference_counts(listed):
    """In a container the driver lists no process, or another one by the same number; on Windows it tells no bytes."""
    meter = GpuMeter("GPU-1", 42, Table((1000 * MB, listed), (1400 * MB, listed), (9000 * MB, listed)))
    assert (meter.measure(), meter.is_by_process) == (400 * MB, False)
    assert meter.added_bytes == 400 * MB  # others may have come meanwhile
    assert meter.measure() == 8000 * MB


def test_memory_that_others_gave_back_is_not_negative():
    meter = GpuMeter("GPU-1", 42, Table((1000 * MB, {}), (900 * MB, {})))
    assert meter.measure() == 0


def test_weights_and_arena_get_what_context_and_workspace_leave():
    assert arena_limit(2_000 * MB, context_bytes=450 * MB, weight_bytes=50 * MB) == 1_550 * MB - WORKSPACE_BYTES
    least = 500 * MB + WORKSPACE_BYTES + LEAST_ARENA_BYTES
    assert arena_limit(least, context_bytes=450 * MB, weight_bytes=50 * MB) == 50 * MB + LEAST_ARENA_BYTES
    with pytest.raises(
        errors.ResourceExhaustedError, match=f"allowed: {least} or more: 450000000 for the CUDA context"
    ):
        arena_limit(least - 1, context_bytes=450 * MB, weight_bytes=50 * MB)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("2, 0", ("2", "0")),
        ("-1", ()),
        ("1,7,0", ("1",)),  # as in CUDA, what comes after a wrong word is hidden
        ("GPU-8a5b,MIG-1", ("GPU-8a5b", "MIG-1")),
        ("NoDevFiles", ()),
    ],
)
def test_gpus_have_the_numbers_that_cuda_gives_them(chosen, expected):
    assert visible_gpus(chosen, 3) == expected


@pytest.mark.skipif(bool(count_gpus()), reason="this machine has a GPU")
def test_no_gpu_is_an_error_and_never_the_cpu(monkeypatch):
    with pytest.raises(errors.BackendUnavailableError, match="NVML"):
        name_gpu("cuda:0")
    for backend, provider in ((ModelBackend.ONNX, CUDA), (ModelBackend.TENSORRT, TENSORRT)):
        with pytest.raises(errors.BackendUnavailableError, match=f"{provider} cannot be used .* no NVIDIA GPU"):
            open_runtime(CATALOG.path("websr-x2-s"), RuntimeOptions(backend=backend, device="cuda"))
        with pytest.raises(errors.BackendUnavailableError, match="no NVIDIA GPU"):
            execution.open_gpu(backend, "cuda:1")


def test_options_of_cuda():
    options = cuda_options(1, arena_bytes=1234)
    assert options == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",
        "gpu_mem_limit": "1234",
    }
    assert "gpu_mem_limit" not in cuda_options(0)
    assert cuda_options(0, is_exhaustive=True)["cudnn_conv_algo_search"] == "EXHAUSTIVE"


def test_options_of_tensorrt(tmp_path):
    plain = tensorrt_options(0, is_fp16=False)
    assert plain["trt_fp16_enable"] == "0"
    assert not [name for name in plain if "cache" in name or "workspace" in name]
    assert plain["trt_op_types_to_exclude"].split(",") == sorted(NOT_FOR_TENSORRT)
    kept = tensorrt_options(2, is_fp16=True, arena_bytes=99, folders=(tmp_path / "a", tmp_path / "b"))
    assert set(FP32_OPERATORS) < set(kept["trt_op_types_to_exclude"].split(","))
    assert {
        name: kept[name] for name in kept if "cache" in name or name in ("device_id", "trt_max_workspace_size")
    } == {
        "device_id": "2",
        "trt_max_workspace_size": "99",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "a"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "b"),
    }


def test_the_installed_providers_know_these_options(tmp_path):
    """ONNX Runtime refuses unknown options only on a machine with a GPU."""
    folders = (tmp_path, tmp_path)
    for library, options in (
        ("cuda", cuda_options(0, arena_bytes=1)),
        ("tensorrt", tensorrt_options(0, is_fp16=True, arena_bytes=1, folders=folders)),
    ):
        path = LIBRARIES / f"libonnxruntime_providers_{library}.so"
        if not path.exists():
            pytest.skip("this build of ONNX Runtime has no providers for GPUs")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            assert [name for name in options if content.find(name.encode()) < 0] == []


FACTS = EngineFacts(
    model="ab", gpu="NVIDIA L4", driver="580", tensorrt="101400", onnxruntime="1.31", precision="fp16", shapes="4"
)


def test_an_engine_is_found_by_all_that_it_depends_on(tmp_path):
    assert engine_folders(tmp_path, FACTS) == engine_folders(tmp_path, replace(FACTS))
    seen = {engine_folders(tmp_path, FACTS)[0]}
    for field in fields(EngineFacts):
        other = ("Exp",) if field.name == "excluded" else "other"
        seen.add(engine_folders(tmp_path, replace(FACTS, **{field.name: other}))[0])
    assert len(seen) == 1 + len(fields(EngineFacts))
    # words do not run into each other
    moved = replace(FACTS, driver=f"{FACTS.driver}{FACTS.tensorrt}", tensorrt="")
    assert engine_folders(tmp_path, moved)[0] not in seen


def test_models_on_one_kind_of_gpu_share_timings(tmp_path):
    timings = engine_folders(tmp_path, FACTS)[1]
    assert engine_folders(tmp_path, replace(FACTS, model="other", precision="fp32", shapes="9"))[1] == timings
    for name in ("gpu", "driver", "tensorrt"):
        assert engine_folders(tmp_path, replace(FACTS, **{name: "other"}))[1] != timings


def test_engines_are_kept_only_where_nobody_else_may_write(tmp_path, caplog):
    folders = engine_folders(tmp_path / "own", FACTS)
    assert execution._keep(*folders) == folders
    assert all(folder.is_dir() for folder in folders)
    folders[0].chmod(0o777)
    assert execution._keep(*folders) is None
    (tmp_path / "file").write_text("")
    assert execution._keep(*engine_folders(tmp_path / "file", FACTS)) is None
    assert caplog.text.count("engines of TensorRT are not kept") == 2


def test_a_gpu_session_that_would_compute_on_the_cpu_is_refused():
    assert heavy_on_cpu([(CUDA, "Conv"), (CPU, "Shape"), (CPU, "Gather")]) == []
    assert heavy_on_cpu([(CPU, "MatMul"), (CPU, "Conv"), (CUDA, "Conv"), (CPU, "Conv")]) == ["Conv", "MatMul"]
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(CATALOG.path("websr-x2-s")), settings, providers=[CPU])
    with pytest.raises(errors.BackendUnavailableError, match=rf"Conv.* on the CPU; allowed: all on {CUDA}"):
        execution.check_placement(CUDA, session.get_provider_graph_assignment_info())


def build_runs(blocks):
    spec = CATALOG.get("websr-x2-s")
    model = fuse_frames(read_model(CATALOG.path(spec.model_id)), spec, "uint8").SerializeToString()
    return OnnxRuntimeSession(model, RuntimeOptions(), blocks)


class Counted:
    """Counts blocks."""

    def __init__(self):
        self.counts = Counter()

    def __call__(self, num_bytes):
        self.counts["allocated"] += 1

        def free():
            self.counts["freed"] += 1

        return Block(allocate_pageable(num_bytes).memory, free)


def test_runs_through_host_blocks_give_the_same_bits():
    """Of several threads and sizes, of arrays that are read-only or not contiguous."""
    allocate = Counted()
    direct, staged = build_runs(None), build_runs(HostBlocks(allocate))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (1 + n % 2, 24 + 3 * n, 30, 3), np.uint8)[:, ::-1] for n in range(8)]
    for picture in pictures:
        picture.flags.writeable = False

    def run(runtime, picture):
        contiguous = picture if runtime is staged else np.ascontiguousarray(picture)
        wide = np.zeros((len(picture), 2 * picture.shape[1], 70, 3), np.uint8)
        out = wide[:, :, 5:65] if runtime is staged else np.zeros((len(picture), 2 * picture.shape[1], 60, 3), np.uint8)
        assert runtime.run({"frames": contiguous}, {"output": out})["output"] is out
        assert not wide[:, :, :5].any()
        assert not wide[:, :, 65:].any()
        return np.ascontiguousarray(out)

    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda picture: run(staged, picture), pictures * 3)]
    expected = [run(direct, picture) for picture in pictures]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected * 3, strict=True))
    assert np.array_equal(staged.run({"frames": np.ascontiguousarray(pictures[0])})["output"], expected[0])
    direct.close()
    staged.close()
    staged.close()
    assert allocate.counts["allocated"] == allocate.counts["freed"] > 0


def test_host_blocks_are_used_again():
    allocate = Counted()
    blocks = HostBlocks(allocate)
    kinds = [(np.dtype(np.uint8), (3, 5)), (np.dtype(np.float32), ()), (np.dtype(np.uint16), (0, 4))]
    with blocks.take(kinds) as (first, second, third):
        assert (first.shape, second.dtype, third.shape) == ((3, 5), np.float32, (0, 4))
        first[:], second[...] = 7, 0.5
        assert (first.min(), float(second)) == (7, 0.5)
    for size in (100, 10_000, 50, 10_000):
        with blocks.take([(np.dtype(np.uint8), (size,))]) as (array,):
            assert array.shape == (size,)
    assert allocate.counts == {"allocated": 2, "freed": 1}  # one that was too small is replaced
    with blocks.take(kinds), blocks.take(kinds):
        assert allocate.counts["allocated"] == 3
        blocks.close()
        assert allocate.counts["freed"] == 1  # those in use stay
    assert allocate.counts == {"allocated": 3, "freed": 3}


def open_in_arena(folder, weight_bytes):
    """Open a model of two tensors of the size of its input, and of weights that the environment's arena reserves."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else the weights are folded
    for name in ("use_env_allocators", "use_device_allocator_for_initializers", "disable_prepacking"):
        settings.add_session_config_entry(f"session.{name}", "1")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    weights = [
        numpy_helper.from_array(np.ones(weight_bytes // 4, np.float32), "w"),
        helper.make_tensor("i", 7, [], [0]),
    ]
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Gather", ["w", "i"], ["g"])]
    nodes.append(helper.make_node("Add", ["e", "g"], ["y"]))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return ort.InferenceSession(str(path), settings, providers=[CPU])


def test_the_limit_of_an_arena_counts_weights(tmp_path):
    """ONNX Runtime's arena on a CPU is that of a GPU. With more weights than its limit it has none."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(4 * MB, 1, -1, -1))
    words = "a run needs more memory than ONNX Runtime may take"
    small = np.zeros(50_000, np.float32)
    for weight_bytes, too_large in ((3 * MB, 300_000), (4000, 1_200_000), (6 * MB, None)):
        session = open_in_arena(tmp_path, weight_bytes)
        assert session.run(None, {"x": small})[0].shape == small.shape
        if too_large is None:
            assert session.run(None, {"x": np.zeros(5 * MB, np.float32)})[0].shape == (5 * MB,)
        else:
            with pytest.raises(errors.ResourceExhaustedError, match=words), _run_errors():
                session.run(None, {"x": np.zeros(too_large, np.float32)})
        del session  # and its weights


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&handle);",
        "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)",
    ],
)
def test_no_memory_of_a_gpu_is_a_lack_of_bytes(words):
    with pytest.raises(errors.ResourceExhaustedError, match=re.escape(words)), _run_errors():
        raise ort_errors.Fail(f"[ONNXRuntimeError] : 1 : FAIL : {words}")


def test_sums_and_powers_stay_in_fp32_on_a_gpu():
    model = read_model(CATALOG.path("realcugan-x2"))
    kinds = {node.op_type for node in model.graph.node} & set(FP32_OPERATORS)
    assert kinds
    converted = to_fp16(model, FP32_OPERATORS)
    produced_by = {name: node.op_type for node in converted.graph.node for name in node.output}
    for node in converted.graph.node:
        if node.op_type in kinds:
            assert produced_by[node.input[0]] == "Cast"
    frames = np.random.default_rng(0).random((1, 3, 40, 40), np.float32)
    results = []
    for one in (model, converted):
        runtime = open_runtime(one.SerializeToString())
        results.append(runtime.run({runtime.inputs[0].name: frames})[runtime.outputs[0].name])
        runtime.close()
    assert np.abs(results[0] - results[1]).max() < 0.02
