"""Frames of another dtype, and raw tensors, need a variant of the model: it is reserved before it is loaded, or the
variants take turns. In ONNX Runtime on a CPU all variants share the model."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from genai_ray import InferenceSession, SessionLimits, errors
from genai_ray.session.variants import Variants
from tests.cluster.test_copies import SIDE, WEIGHT_BYTES, calls_of, expect
from tests.session.test_any_model import open_session, save_upscaler


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    return expect(tmp_path_factory.mktemp("heavy"))


def test_all_variants_share_one_copy_of_the_model(heavy):
    path, expected = heavy
    asked = []

    def reserve(num_bytes):
        asked.append(num_bytes)
        return True

    with InferenceSession(path, limits=SessionLimits(max_frame=(SIDE, SIDE), reserve=reserve)) as session:
        session.warmup()
        assert not asked
        warm = session.memory_bytes
        assert warm > WEIGHT_BYTES
        for name, call in calls_of(session).items():
            assert np.array_equal(call(), expected[name])
        assert session._variants.kinds == ("uint8", "uint16", "float32", "raw")
        assert len(asked) == 3
        assert sum(asked) < WEIGHT_BYTES / 2
        assert session.memory_bytes - warm < WEIGHT_BYTES / 2


def test_raw_tensors_keep_the_batch_of_the_file(tmp_path):
    """The shared session takes any number of frames; the model's own tensors have the shape that its file says."""
    path = save_upscaler(tmp_path / "one.onnx", batch=1)
    with open_session(path) as session:
        assert session.spec.batchable
        frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
        session.run_batch = 3
        assert np.array_equal(session.infer(frames)[1], session.infer(frames[1]))
        assert session.run({"x": np.ones((1, 3, 20, 30), np.float32)})["y"].shape == (1, 3, 60, 90)
        with pytest.raises(errors.InvalidInputError, match=r"\(1, 3, any, any\)"):
            session.run({"x": np.ones((2, 3, 20, 30), np.float32)})


@pytest.mark.slow
def test_a_variant_with_its_own_weights_is_asked_for_first(tmp_path):
    """In OpenVINO."""
    path, expected = expect(tmp_path, ("uint16",), backend="openvino")
    asked = []
    limits = SessionLimits(max_frame=(SIDE, SIDE), reserve=lambda num_bytes: not asked.append(num_bytes))
    with InferenceSession(path, backend="openvino", limits=limits) as session:
        session.warmup()
        before = len(asked)
        assert np.array_equal(calls_of(session)["uint16"](), expected["uint16"])
        assert max(asked[before:]) > WEIGHT_BYTES


def run_alone(function, *args):
    """Call a function in a process of its own: what other tests left in this one, or free meanwhile, would be
    counted."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(function, *args).result()


def use_variants_in_turn(path, expected):
    with InferenceSession(path, limits=SessionLimits(max_frame=(SIDE, SIDE), reserve=lambda _: False)) as session:
        session.warmup()
        warm = session.memory_bytes
        calls = calls_of(session)
        for name in ("uint16", "raw", "uint8"):
            assert np.array_equal(calls[name](), expected[name])
            assert session._variants.kinds == (name,)
        assert session.memory_bytes - warm < WEIGHT_BYTES / 2
        with ThreadPoolExecutor(4) as pool:
            found = [(name, pool.submit(calls[name])) for name in [*calls] * 2]
            assert all(np.array_equal(future.result(60), expected[name]) for name, future in found)
        assert session.memory_bytes - warm < WEIGHT_BYTES / 2


@pytest.mark.slow
def test_variants_take_turns_if_there_is_no_room(heavy):
    run_alone(use_variants_in_turn, *heavy)


def use_variants_within_a_limit(path, expected):
    with InferenceSession(path, limits=SessionLimits(max_frame=(SIDE, SIDE))) as session:
        session.warmup()
        limit = session.memory_bytes + WEIGHT_BYTES // 2
    with InferenceSession(path, limits=SessionLimits(max_frame=(SIDE, SIDE), max_bytes=limit)) as session:
        session.warmup()
        for name, call in calls_of(session).items():
            assert np.array_equal(call(), expected[name])
            assert session.memory_bytes <= limit


@pytest.mark.slow
def test_the_limit_of_a_session_alone_is_kept_to(heavy):
    run_alone(use_variants_within_a_limit, *heavy)


class Runtime:
    def close(self):
        self.is_closed = True


def test_nobody_uses_what_is_closed_and_whoever_waits_ends():
    variants = Variants(lambda *_: Runtime(), lambda _: False)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with variants.use("uint8", int) as runtime:
            entered.set()
            leave.wait()
            return hasattr(runtime, "is_closed")

    def use(kind):
        with variants.use(kind, int) as runtime:
            return hasattr(runtime, "is_closed")

    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(hold)
        entered.wait()
        others = [pool.submit(use, kind) for kind in ("uint16", "uint8")]
        assert not any(other.done() for other in others)
        leave.set()
        assert not any(future.result(60) for future in (held, *others))
        entered.clear()
        leave.clear()
        held = pool.submit(hold)
        entered.wait()
        waiting = pool.submit(use, "raw")
        variants.close()
        with pytest.raises(errors.InferenceError, match="closed"):
            waiting.result(60)
        leave.set()
        held.result(60)
