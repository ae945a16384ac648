"""``InferenceSession`` on real models: shapes, dtypes, tiling bit for bit, errors."""

import multiprocessing
import os
import threading
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from genai_ray import InferenceSession, ModelCatalog, ModelPrecision, SessionLimits, errors
from genai_ray.session.runs import run_frames
from tests.serve.models import add_sub, identity, square

CATALOG = ModelCatalog.default()
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]
PRODUCTS_ROWS = 5000
PRODUCTS_BYTES = 4 * PRODUCTS_ROWS**2
HEAVY = {"realesrgan-x4plus", "realesrgan-x4plus-anime"}
"""They take 0.3 and 0.1 ms a pixel, of frames extended by 20 px: they get smaller frames."""
CASES = [pytest.param(name, marks=pytest.mark.slow) if name == "realesrgan-x4plus" else name for name in PACKAGED]
TILEABLE = [model_id for model_id in PACKAGED if CATALOG.get(model_id).is_tileable]


@pytest.mark.parametrize("model_id", CASES)
def test_shape_law_and_batch_equals_single_frames(model_id, frames):
    spec = CATALOG.get(model_id)
    if model_id in HEAVY:
        frames = frames[:, :5, :7]
    height, width = frames.shape[1:3]
    with InferenceSession(model_id) as session:
        out = session.infer(frames)
        pairs = spec.task == "interpolation"
        channels = 1 if spec.task == "background-removal" else 3
        assert out.shape == (3 - pairs, height * spec.scale, width * spec.scale, channels)
        assert out.dtype == np.uint8
        single = [session.infer(frames[i : i + 2])[0] if pairs else session.infer(frames[i]) for i in range(3 - pairs)]
        assert np.array_equal(out, np.stack(single))


@pytest.mark.parametrize("model_id", TILEABLE)
@pytest.mark.parametrize("size", [(149, 171), pytest.param((150, 173), marks=[pytest.mark.slow, pytest.mark.longest])])
def test_tiled_equals_untiled_bit_for_bit(model_id, size):
    spec = CATALOG.get(model_id)
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    tile = 2 * spec.receptive_field_px + 16 * spec.tile_stride
    with InferenceSession(model_id, limits=SessionLimits(tile_size_px=0)) as whole:
        expected = whole.infer(picture)
        assert whole.runtime_calls == 1
    with InferenceSession(model_id, limits=SessionLimits(tile_size_px=tile)) as tiled:
        assert np.array_equal(tiled.infer(picture), expected)
        assert tiled.runtime_calls > 4


def test_a_lone_frame_is_cut_for_idle_cores_only():
    picture = np.random.default_rng(1).integers(0, 256, (144, 176, 3), np.uint8)
    with InferenceSession("websr-x2-s", threads=2) as session:
        alone = session.infer(picture)
        assert session.runtime_calls == 2
        release = threading.Event()
        other = session._pool.submit(release.wait, is_online=False)
        assert np.array_equal(session.infer(picture), alone)
        assert session.runtime_calls == 3
        release.set()
        other.result()
        session.infer(picture)
        assert session.runtime_calls == 5


@pytest.mark.parametrize(("model_id", "layout"), [("websr-x2-s", "nchw"), ("esrgan-2x", "nhwc")])
def test_fused_frames_equal_numpy_before_and_after(model_id, layout, frames):
    bare = ort.InferenceSession(CATALOG.path(model_id), providers=["CPUExecutionProvider"])
    tensor = frames.astype(np.float32)
    if layout == "nchw":
        tensor = np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)) / 255
    raw = bare.run(None, {bare.get_inputs()[0].name: tensor})[0]
    values = raw.transpose(0, 2, 3, 1) * 255 if layout == "nchw" else raw
    expected = np.rint(np.clip(values, 0, 255)).astype(np.int16)
    with InferenceSession(model_id) as session:
        difference = np.abs(session.infer(frames) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-3


def test_dtypes_agree(frames):
    with InferenceSession("websr-x2-s") as session:
        eight = session.infer(frames)
        sixteen = session.infer(frames.astype(np.uint16) * 257)
        floats = session.infer(frames.astype(np.float32) / 255)
    assert sixteen.dtype == np.uint16
    assert floats.dtype == np.float32
    assert np.abs(sixteen / 257 - eight).max() < 0.51
    assert np.abs(floats * 255 - eight).max() < 0.51


def test_raw_run_has_the_models_own_names_and_range(frames):
    tensor = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    with InferenceSession("websr-x2-s") as session:
        assert session.run({"input": tensor})["output"].shape == (3, 3, 98, 122)
        with pytest.raises(errors.InvalidInputError, match="exactly"):
            session.run({"picture": tensor})


def test_ffdnet_takes_sigma_and_denoises():
    clean = np.full((64, 64, 3), 0.5, np.float32)
    noisy = np.clip(clean + np.random.default_rng(2).normal(0, 0.1, clean.shape), 0, 1).astype(np.float32)
    with InferenceSession("ffdnet") as session:
        out = session.infer(noisy, params={"sigma": 0.1})
        assert np.square(out - clean).mean() < 0.2 * np.square(noisy - clean).mean()
        assert np.array_equal(
            session.infer(noisy, params={"sigma": 15}), session.infer(noisy, params={"sigma": 15 / 255})
        )
        for refused in (0.9, 76, -1, np.nan):
            with pytest.raises(errors.InvalidInputError, match=r"sigma=.* from 0 to 0\.294, or 1 to 75 of 255"):
                session.infer(noisy, params={"sigma": refused})
        with pytest.raises(errors.InvalidInputError, match="strength"):
            session.infer(noisy, params={"strength": 1.0})


def test_fp16_is_gated_and_says_what_it_computes_in():
    with InferenceSession("rife", precision=ModelPrecision.FP16) as session:
        status = session.status()
    assert status["precision_db"] > 60
    assert (status["weights_in"], status["computes_in"]) == ("fp16", "fp32")


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int32), "dtype"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        (np.full((4, 4, 3), np.nan, np.float32), "nan"),
        (np.full((4, 4, 3), 1.5, np.float32), "1.5"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_bad_frames(picture, match):
    with InferenceSession("websr-x2-s") as session, pytest.raises(errors.InvalidInputError, match=match):
        session.infer(picture)


def test_missing_cuda_is_an_error_that_says_what_is_missing():
    if "cuda" in InferenceSession("websr-x2-s").device:
        pytest.skip("this machine has a GPU")
    with pytest.raises(errors.BackendUnavailableError, match=r"(?i)missing: .*"):
        InferenceSession("websr-x2-s", device="cuda")


def test_corrupt_file(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(errors.ModelLoadError, match=r"broken\.onnx"):
        InferenceSession(path)


@pytest.mark.slow
def test_warm_up_runs_raw_tensors_in_the_given_shapes(tmp_path):
    square(tmp_path / "square.onnx")
    identity(tmp_path / "words.onnx", "BYTES")
    taken = {}
    for rows in (1, PRODUCTS_ROWS):
        with InferenceSession(
            tmp_path / "square.onnx", limits=SessionLimits(warmup_shapes=((("x", (rows, 2)),), (("x", (1, 1)),)))
        ) as session:
            session.warmup()
            taken[rows] = session.memory_bytes
            assert session.runtime_calls == 0
            feeds = {"x": np.ones((rows, 2), np.float32), "shift": np.ones(1, np.float32)}
            assert session.run(feeds)["y"] == pytest.approx(2 * rows**2 + 1)
            assert session.memory_bytes - taken[rows] < PRODUCTS_BYTES / 4
    assert taken[PRODUCTS_ROWS] - taken[1] > 0.9 * PRODUCTS_BYTES
    with InferenceSession(tmp_path / "words.onnx", limits=SessionLimits(warmup_shapes=((("x", (1, 2)),),))) as session:
        session.warmup()
    for limits in (SessionLimits(max_bytes=1), SessionLimits(max_bytes=1, warmup_shapes=((("x", (1, 2)),),))):
        with (
            InferenceSession(tmp_path / "square.onnx", limits=limits) as session,
            pytest.raises(errors.ResourceExhaustedError, match=r"takes .* for runs of"),
        ):
            session.warmup()


def test_an_image_model_is_warmed_with_raw_tensors_too():
    with InferenceSession("websr-x2-s", limits=SessionLimits(warmup_shapes=((("input", (1, 3, 40, 52)),),))) as session:
        session.warmup()
        warm = session.memory_bytes
        session.run({"input": np.zeros((1, 3, 40, 52), np.float32)})
        assert session.memory_bytes - warm < 2_000_000
        assert session.infer(np.zeros((40, 52, 3), np.uint8)).shape == (80, 104, 3)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (3, 4), "z": (1,)}, r"unknown inputs \['z'\]; allowed: \['shift', 'x'\]"),
        ({"x": (3,)}, r"\[3\] for input 'x'; allowed: \[-1, -1\]"),
        ({"x": (3, -1)}, r"\[3, -1\] for input 'x'"),
        ({"x": (3, 0)}, r"\[3, 0\] for input 'x'"),
        ({"shift": (1,)}, r"without input 'x'; allowed: \[-1, -1\]"),
        ({"x": (3, 4), "shift": (2,)}, r"\[2\] for input 'shift'; allowed: \[1\]"),
    ],
)
def test_warmup_shapes_that_do_not_fit_are_named(tmp_path, shapes, words):
    square(tmp_path / "square.onnx")
    with InferenceSession(
        tmp_path / "square.onnx", limits=SessionLimits(warmup_shapes=(tuple(shapes.items()),))
    ) as session:
        with pytest.raises(errors.ModelLoadError, match=f"warmup_shapes .*{words}"):
            session.warmup()
        assert not session.warm


def test_warmup_shapes_that_the_model_fails_with_are_named(tmp_path):
    add_sub(tmp_path / "add-sub.onnx")
    limits = SessionLimits(warmup_shapes=((("a", (2, 4)), ("b", (3, 4))),))
    words = r"warmup_shapes \{'a': \(2, 4\), 'b': \(3, 4\)\}: ONNX Runtime"
    with (
        InferenceSession(tmp_path / "add-sub.onnx", limits=limits) as session,
        pytest.raises(errors.ModelLoadError, match=words),
    ):
        session.warmup()


def test_closed_session_refuses(frames):
    session = InferenceSession("websr-x2-s")
    session.close()
    session.close()
    with pytest.raises(errors.InferenceError, match="closed"):
        session.infer(frames)


def test_a_reservation_makes_tiles_and_is_kept_to():
    limits = SessionLimits(max_bytes=150_000_000, max_frame=(1080, 1920))
    with InferenceSession("websr-x2-l", limits=limits) as session:
        session.warmup()
        session.infer(np.zeros((1080, 1920, 3), np.uint8))
        assert session.tile_size_px < 512
        assert session.memory_bytes <= limits.max_bytes


@pytest.mark.parametrize("model_id", ["websr-x2-s", "ffdnet"])  # one with a stride of 2
def test_tiles_that_fill_batches_as_on_a_gpu_give_the_same_bits(model_id):
    frames = np.random.default_rng(0).integers(0, 256, (3, 230, 300, 3), np.uint8)
    whole, tiled = (InferenceSession(model_id, limits=SessionLimits(tile_size_px=size)) for size in (0, 160))
    with whole, tiled, tiled._variants.use("uint8", int) as runtime:
        expected = whole.infer(frames)
        plan = replace(tiled._plan(False), is_uniform=True, run_batch=4)
        tiles = plan.tiles(230, 300, 1)
        assert {tile.shape for tile in tiles} == {(160, 160)}
        out = np.zeros_like(expected)
        calls = run_frames(runtime, frames, tiled._extra_inputs({}), out, plan=plan, pool=tiled._pool)
        assert calls == -(-3 * len(tiles) // 4)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [ModelPrecision.FP32, ModelPrecision.FP16])
def test_a_session_keeps_to_its_bytes_in_any_precision(precision):
    with InferenceSession(
        "esrgan-4x", precision=precision, threads=2, limits=SessionLimits(max_bytes=460_000_000)
    ) as session:
        session.warmup()
        assert session.tile_size_px < 256


def test_a_fork_refuses_a_session_and_may_make_a_new_one(frames):
    with InferenceSession("websr-x2-s") as session:
        expected = session.infer(frames)
        fork = multiprocessing.get_context("fork")
        answers, end = fork.Pipe(duplex=False)
        child = fork.Process(target=_infer_in_a_fork, args=(session, frames, end))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, from Python 3.12 on
            child.start()
        assert answers.poll(60)
        refusal, result = answers.recv()
        child.join()
        assert refusal.startswith(
            f"a run in a fork of process {os.getpid()}, which opened the session. Open a session in this process"
        )
        np.testing.assert_array_equal(result, expected)


def _infer_in_a_fork(session, frames, end):
    try:
        session.infer(frames)
    except errors.InferenceError as exc:
        refusal = str(exc)
    session.close()
    with InferenceSession("websr-x2-s") as own:
        end.send((refusal, own.infer(frames)))
