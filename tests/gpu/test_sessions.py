"""Sessions on a real GPU: results against the CPU's, bytes against NVML's, TensorRT's engines."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from genai_ray import InferenceSession, ModelBackend, ModelCatalog, ModelPrecision, SessionLimits, errors
from genai_ray.backends import execution
from genai_ray.backends.gpu import LEAST_ARENA_BYTES, WORKSPACE_BYTES, read_gpu
from genai_ray.backends.providers import TENSORRT
from genai_ray.files import cache_folder
from genai_ray.quality import psnr
from genai_ray.session import calibration_frames
from tests.gpu.conftest import DEVICE

pytestmark = pytest.mark.gpu

CATALOG = ModelCatalog.default()
MODELS = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]
FRAMES = np.round(calibration_frames(128)[:, :96] * 255).astype(np.uint8)
LEAST_DB = {ModelPrecision.FP32: 60.0, ModelPrecision.FP16: 40.0}
"""Sums in another order change a rounded level here and there: 60 dB is one level in fifteen values."""
MB = 1_000_000


@pytest.fixture(scope="module")
def expected():
    """The CPU's results, in FP32."""
    results = {}
    for model_id in MODELS:
        with InferenceSession(model_id, device="cpu") as session:
            results[model_id] = session.infer(FRAMES)
    return results


@pytest.mark.parametrize("precision", LEAST_DB)
@pytest.mark.parametrize("model_id", MODELS)
def test_every_model_agrees_with_the_cpu(model_id, precision, expected, figures):
    with InferenceSession(model_id, precision=precision, device=DEVICE) as session:
        assert session.device == DEVICE
        result = session.infer(FRAMES)
        session.warmup()
        began_at = time.perf_counter()
        for _ in range(5):
            session.infer(FRAMES)
        seconds = (time.perf_counter() - began_at) / 5
        agreement_db = psnr(expected[model_id], result)
        figures.setdefault("sessions", []).append(
            {
                "model": model_id,
                "precision": precision.value,
                "agreement_db": min(agreement_db, 999),
                "ms_per_call": 1000 * seconds,
                "memory_bytes": session.memory_bytes,
                "context_bytes": session._memory.context_bytes,
            }
        )
    assert agreement_db >= LEAST_DB[precision]


def run_alone(function, *args):
    """Call a function in a process of its own, which has no CUDA context yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def measure_bytes(model_id, max_frame):
    before = read_gpu("0").used_bytes
    with InferenceSession(model_id, device=DEVICE, limits=SessionLimits(max_frame=max_frame)) as session:
        session.warmup()
        return session.memory_bytes, read_gpu("0").used_bytes - before, session._memory._meter.is_by_process


@pytest.mark.parametrize("model_id", ["websr-x2-s", "realesr-animevideov3-x2", "realesrgan-x4plus"])
def test_bytes_are_those_that_nvml_sees(model_id, figures):
    told, seen, is_by_process = run_alone(measure_bytes, model_id, (360, 640))
    figures.setdefault("bytes", []).append(
        {"model": model_id, "told": told, "seen": seen, "is_by_process": is_by_process}
    )
    assert told == pytest.approx(seen, rel=0.1, abs=30 * MB)


def limit_arena(model_id):
    """Return bytes of a free session, and of one that is limited to what the first one reserves."""
    limits = SessionLimits(max_frame=(360, 640))
    with InferenceSession(model_id, device=DEVICE, limits=limits) as session:
        session.warmup()
        free_bytes, context_bytes = session.memory_bytes, session._memory.context_bytes
    reserved = free_bytes + WORKSPACE_BYTES
    with InferenceSession(
        model_id, device=DEVICE, limits=SessionLimits(max_frame=(360, 640), device_bytes=reserved)
    ) as session:
        session.warmup()
        limited_bytes = session.memory_bytes
    least = context_bytes + WORKSPACE_BYTES + 2 * LEAST_ARENA_BYTES
    try:
        with InferenceSession(
            model_id, device=DEVICE, limits=SessionLimits(max_frame=(360, 640), device_bytes=least)
        ) as session:
            session.warmup()
    except errors.ResourceExhaustedError as exc:
        return free_bytes, reserved, limited_bytes, str(exc)
    return free_bytes, reserved, limited_bytes, ""


def test_the_arena_keeps_to_what_is_reserved(figures):
    free_bytes, reserved, limited_bytes, refusal = run_alone(limit_arena, "realesr-animevideov3-x2")
    figures["arena"] = {"free": free_bytes, "reserved": reserved, "limited": limited_bytes}
    assert limited_bytes <= reserved
    assert refusal


def test_host_blocks_and_plain_runs_give_the_same_bits():
    with InferenceSession("websr-x2-m", device=DEVICE) as session, session._variants.use("uint8", int) as runtime:
        plain = runtime.run({"frames": FRAMES})["output"]
        staged = np.empty_like(plain)
        runtime.run({"frames": FRAMES}, {"output": staged})
        assert np.array_equal(plain, staged)


def test_two_sessions_beside_each_other(expected):
    models = ["websr-x2-m", "esrgan-2x"]
    sessions = [InferenceSession(model_id, device=DEVICE) for model_id in models]
    try:
        alone = [session.infer(FRAMES) for session in sessions]
        with ThreadPoolExecutor(4) as pool:
            runs = [(number, pool.submit(sessions[number].infer, FRAMES)) for _ in range(20) for number in (0, 1)]
            for number, run in runs:
                assert psnr(alone[number], run.result()) >= LEAST_DB[ModelPrecision.FP32]
                assert psnr(expected[models[number]], run.result()) >= LEAST_DB[ModelPrecision.FP32]
    finally:
        for session in sessions:
            session.close()


def test_tiles_give_nearly_the_whole_frame():
    """On a GPU the algorithm of a convolution depends on its shape, so that bits may differ."""
    frame = np.tile(FRAMES[0], (6, 8, 1))
    whole, tiled = (
        InferenceSession("websr-x2-m", device=DEVICE, limits=SessionLimits(tile_size_px=size)) for size in (0, 200)
    )
    with whole, tiled:
        assert psnr(whole.infer(frame), tiled.infer(frame)) >= LEAST_DB[ModelPrecision.FP32]


def test_exhaustive_search_computes_the_same(expected):
    limits = SessionLimits(is_exhaustive=True, max_frame=FRAMES.shape[1:3])
    with InferenceSession("websr-x2-l", device=DEVICE, limits=limits) as session:
        session.warmup()
        assert psnr(expected["websr-x2-l"], session.infer(FRAMES)) >= LEAST_DB[ModelPrecision.FP32]


@pytest.fixture
def tensorrt():
    missing = execution._missing_library(TENSORRT)
    if missing and "GENAI_RAY_NEEDS_TENSORRT" not in os.environ:
        pytest.skip(f"TensorRT is not installed: {missing}")


def load_engine(model_id, precision):
    """Return the seconds of a load with its first run, the result, and the engines that are kept."""
    began_at = time.perf_counter()
    limits = SessionLimits(max_frame=FRAMES.shape[1:3])
    with InferenceSession(
        model_id, backend=ModelBackend.TENSORRT, precision=precision, device=DEVICE, limits=limits
    ) as session:
        result = session.infer(FRAMES)
    seconds = time.perf_counter() - began_at
    engines = (cache_folder() / "tensorrt").glob("engines-*/*.engine")
    return seconds, result, {str(path): path.stat().st_mtime_ns for path in engines}


def test_engines_of_tensorrt_are_used_again(tensorrt, expected, figures):
    for precision, least_db in LEAST_DB.items():
        first_s, result, built = run_alone(load_engine, "websr-x2-m", precision)
        again_s, repeated, kept = run_alone(load_engine, "websr-x2-m", precision)
        figures[f"tensorrt_{precision.value}"] = {"build_s": first_s, "reload_s": again_s}
        assert built
        assert kept == built
        assert np.array_equal(result, repeated)
        # TensorRT chooses other algorithms than cuDNN
        assert psnr(expected["websr-x2-m"], result) >= min(least_db, 50)
