"""The path to a GPU through ONNX Runtime's own CUDA provider, on a machine that has none: ``fake_gpu.c`` plays the
driver. Kernels compute nothing, so that only copies have right results; bytes, options and errors are the real ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from genai_ray.backends.gpu import WORKSPACE_BYTES, count_gpus
from tests.processes import ROOT

PROVIDER = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
SOURCE = Path(__file__).with_name("fake_gpu.c")
LIBRARIES = (
    *("libcublas.so.13", "libcublasLt.so.13", "libcuda.so.1", "libcudart.so.13", "libcurand.so.10"),
    *("libcudnn.so.9", "libnvidia-ml.so.1"),
)

pytestmark = pytest.mark.skipif(
    count_gpus() > 0 or not (PROVIDER.exists() and shutil.which("cc") and shutil.which("nm")),
    reason="needs ONNX Runtime's CUDA provider, a C compiler, and no GPU",
)

BEGIN = """
import ctypes, json, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto
from genai_ray import InferenceSession, SessionLimits, errors
from genai_ray.backends import RuntimeOptions
from genai_ray.backends.gpu import LEAST_ARENA_BYTES, WORKSPACE_BYTES, arena_limit, read_gpu
from genai_ray.backends.onnx_runtime import OnnxRuntimeSession
from onnx import helper
from tests.session.test_any_model import save, value

MB = 1_000_000
WEIGHTS = 3 * MB
nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Gather", ["w", "i"], ["g"])]
inputs = [value("x", ["n"]), value("i", [1], TensorProto.INT64)]
weights = {"w": np.ones(WEIGHTS // 4, np.float32)}
path = save(Path(sys.argv[1]), nodes, inputs, [value("y", ["n"]), value("g", [1])], weights)

def feeds(size):
    return {"x": np.arange(size, dtype=np.float32), "i": np.zeros(1, np.int64)}

def used(gpu="0"):
    return read_gpu(gpu).used_bytes

told = {}
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """A folder with all libraries, each of them the same file."""
    folder = tmp_path_factory.mktemp("libraries")
    source = SOURCE.read_text()
    wanted = subprocess.run(
        ["nm", "-D", "--undefined-only", PROVIDER], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[1].partition("@")[0] for line in wanted.splitlines()}
    missing = sorted(name for name in names if re.match("_*cu", name) and not re.search(rf"\b{name}\(", source))
    idle = folder / "idle.c"
    idle.write_text(source + "".join(f"long {name}(void) {{ return 0; }}\n" for name in missing))
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", folder / LIBRARIES[0], idle], check=True)
    for name in LIBRARIES[1:]:
        (folder / name).symlink_to(LIBRARIES[0])
    return folder


@pytest.fixture
def compute(libraries, tmp_path):
    """Run code in a process that sees the GPU; return what it tells."""

    environment = {"LD_LIBRARY_PATH": str(libraries), "XDG_CACHE_HOME": str(tmp_path), "RAY_ADDRESS": "local"}

    def call(code, **said):
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + code + "\nprint(json.dumps(told))", tmp_path / "model.onnx"],
            cwd=ROOT,
            env=os.environ | environment | said,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}

    return call


@pytest.mark.parametrize("said", [{}, {"FAKE_GPU_HIDES_PROCESSES": "1"}], ids=["process", "difference"])
def test_a_session_tells_the_bytes_of_the_gpu(compute, said):
    told = compute(
        """
with InferenceSession(path) as session:
    told["device"], told["context"] = session.device, session._memory.context_bytes
    told["loaded"] = session.memory_bytes, used()
    told["same"] = bool(np.array_equal(session.run(feeds(MB))["y"], feeds(MB)["x"]))
    session._memory.measure()
    told["run"] = session.memory_bytes, used()
told["closed"] = used()
""",
        **said,
    )
    assert (told["device"], told["context"], told["same"]) == ("cuda:0", 300_000_000, True)
    assert told["loaded"][0] == told["loaded"][1] >= 303_000_000
    assert told["run"][0] == told["run"][1] >= told["loaded"][0] + 8_000_000  # input and output
    assert told["closed"] == 300_000_000
    assert told["stderr"] == ""


def test_weights_and_tensors_keep_to_what_is_reserved(compute):
    told = compute("""
reserved = 300 * MB + WEIGHTS + WORKSPACE_BYTES + LEAST_ARENA_BYTES
limit = arena_limit(reserved, context_bytes=300 * MB, weight_bytes=WEIGHTS)
runtime = OnnxRuntimeSession(path, RuntimeOptions(device="cuda", max_bytes=limit))
told["options"] = runtime._session.get_provider_options()["CUDAExecutionProvider"]
told["limit"] = limit
for size in (1_900_000, 3 * MB):
    try:
        runtime.run(feeds(size))
    except errors.ResourceExhaustedError as exc:
        told["error"] = str(exc)
    told[str(size)] = used()
""")
    options = told["options"]
    assert options["gpu_mem_limit"] == str(told["limit"])
    assert (options["use_tf32"], options["arena_extend_strategy"]) == ("0", "kSameAsRequested")
    assert 300_000_000 + 3_000_000 + 15_200_000 <= told["1900000"] <= 300_000_000 + told["limit"]
    assert told["3000000"] <= 300_000_000 + told["limit"]
    assert "a run needs more memory than ONNX Runtime may take" in told["error"]


def test_frames_of_two_dtypes_have_a_copy_of_the_model_each(compute):
    """Small copies, too: each has a workspace of its own beside its arena."""
    told = compute("""
resize = [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")]
scales = {"s": np.array([1, 1, 2, 2], np.float32)}
shapes = [value("x", ["n", 3, "h", "w"])], [value("y", ["n", 3, "p", "q"])]
model = save(path.with_name("twice.onnx"), resize, *shapes, scales)
asked = []

def reserve(num_bytes):
    asked.append(num_bytes)
    return True

limits = SessionLimits(max_frame=(64, 64), device_bytes=600 * MB, reserve=reserve)
with InferenceSession(model, limits=limits) as session:
    session.warmup()
    told["shapes"] = [session.infer(np.zeros((64, 64, 3), kind)).shape for kind in (np.uint8, np.float32)]
    told["asked"], told["taken"] = asked, used() - session._warm_bytes
""")
    assert told["shapes"] == [[128, 128, 3]] * 2
    (asked,) = told["asked"]
    assert told["taken"] <= asked


def test_a_full_gpu_is_a_lack_of_bytes(compute):
    told = compute(
        """
for size in (1000, 4 * MB):
    try:
        runtime = OnnxRuntimeSession(path, RuntimeOptions(device="cuda"))
        told[str(size)] = len(runtime.run(feeds(size))["y"])
    except errors.ResourceExhaustedError as exc:
        told["error"] = str(exc)
    runtime.close()
""",
        FAKE_GPU_BYTES="320000000",
    )
    assert told["1000"] == 1000
    assert "a run needs more memory than ONNX Runtime may take" in told["error"]


def test_runs_go_through_page_locked_memory_of_cuda(compute):
    told = compute("""
host_bytes = ctypes.CDLL("libcudart.so.13").fake_gpu_host_bytes
runtime = OnnxRuntimeSession(path, RuntimeOptions(device="cuda:0"))
told["before"] = host_bytes()
into = {"y": np.empty(MB, np.float32), "g": np.empty(1, np.float32)}
runtime.run(feeds(MB), into)
told["same"] = bool(np.array_equal(into["y"], feeds(MB)["x"]))
told["during"] = host_bytes() - told["before"]
runtime.close()
told["after"] = host_bytes() - told["before"]
""")
    assert told["same"]
    assert 8_000_000 <= told["during"] <= 8_001_000
    assert told["after"] == 0


@pytest.mark.cluster
def test_a_cache_counts_the_bytes_of_a_gpu(compute, tmp_path):
    told = compute(
        """
import time
from genai_ray import ModelCache

with ModelCache() as cache:
    told["devices"] = [(device.kind, device.budget_bytes) for device in cache.status().devices]
    told["loads"] = []
    for memory_bytes in (None, None, 700 * MB):
        cache.load_model(path, memory_bytes=memory_bytes)
        (entry,) = cache.status().models
        session = cache.get_session(path, device="cuda")
        is_same = bool(np.array_equal(session.run(feeds(MB))["y"], feeds(MB)["x"]))
        told["loads"].append((entry.bytes, entry.session["memory_bytes"], used(), entry.session["device"], is_same))
        cache.evict(path)
        while used():
            time.sleep(0.02)
    told["left"] = cache.memory_usage()[0]
""",
        FAKE_GPU_STATE=str(tmp_path / "gpu"),
    )
    assert told["devices"][1] == ["Fake GPU", 7_600_000_000]
    for reserved, taken, seen, device, is_same in told["loads"]:
        assert 303_000_000 <= taken <= seen <= reserved
        assert (device, is_same) == ("cuda:0", True)
    first, again, given = (load[0] for load in told["loads"])
    assert first == again == told["loads"][0][1] + WORKSPACE_BYTES
    assert given == 700_000_000
    assert told["left"] == 0


@pytest.mark.cluster
@pytest.mark.parametrize("visible", ["", "1,0", "GPU-1,GPU-0"])
def test_each_session_has_the_gpu_that_it_was_given(compute, tmp_path, visible):
    """Two sessions that do not fit on one GPU, whatever CUDA and Ray call it."""
    chosen = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    told = compute(
        """
import shutil
from genai_ray import ModelCache

other = path.with_name("other.onnx")
shutil.copy(path, other)
with ModelCache() as cache:
    told["kinds"] = [device.kind for device in cache.status().devices]
    for model in (path, other):
        cache.load_model(model, memory_bytes=5000 * MB)
        cache.get_session(model, device="cuda").run(feeds(MB))
    told["sessions"] = [
        (entry.placed_on.partition("/gpu")[2], entry.session["visible_gpus"], entry.session["memory_bytes"])
        for entry in cache.status().models
    ]
    told["seen"] = {gpu: used(gpu) for gpu in ("0", "1")}
""",
        FAKE_GPU_STATE=str(tmp_path / "gpu"),
        FAKE_GPU_COUNT="2",
        **chosen,
    )
    assert told["kinds"] == ["cpu", "Fake GPU", "Fake GPU"]
    names = visible.split(",") if visible else ["0", "1"]
    assert sorted(place for place, _, _ in told["sessions"]) == sorted(names)
    for place, seen_there, taken in told["sessions"]:
        assert seen_there == place
        assert told["seen"][place[-1]] == taken


def test_a_gpu_without_cudnn_is_not_chosen(compute, libraries):
    """The provider loads without it, and fails at the first convolution."""
    (libraries / "libcudnn.so.9").unlink()
    told = compute("""
try:
    InferenceSession(path, device="cuda")
except errors.BackendUnavailableError as exc:
    told["error"] = str(exc)
with InferenceSession(path) as session:
    told["device"] = session.device
""")
    assert "libcudnn.so.9" in told["error"]
    assert "pip install 'genai-ray[cuda]'" in told["error"]
    assert told["device"] == "cpu"
