"""Loads that fail, hang or take more than was said, and inputs that end the runtime: real processes, real signals."""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import ray
from onnx import helper

from genai_ray import ModelCache, errors
from genai_ray.cluster import CacheOptions, SessionRequest, open_session
from genai_ray.types import ModelBackend, ModelPrecision
from tests.processes import wait_until

pytestmark = pytest.mark.cluster

MODEL, OTHER = "websr-x2-s", "websr-x2-m"
SLOW_TO_LOAD = SessionRequest(
    MODEL, ModelBackend.ONNX, ModelPrecision.FP32, max_frame=(720, 1280), max_batch=1, tile_size_px=0
)
"""Its warm-up computes for so long that a signal arrives while it loads."""


@pytest.fixture
def make_cache(ray_session, request):
    caches = []

    def make(budget=2_000_000_000, **options):
        caches.append(ModelCache(budget, name=f"{request.node.name} {len(caches)}", **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.shutdown()


@contextlib.contextmanager
def signalling(number, most):
    """Send a signal to every session process as it appears, ``most`` times; gives the ids of those that got one."""
    over, hit = threading.Event(), []

    def watch():
        while not over.is_set() and len(hit) < most:
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["name"].startswith("session:") and len(hit) < most:
                    with contextlib.suppress(ray.exceptions.RayError, ValueError):
                        pid = ray.get(ray.get_actor(**actor).describe.remote(), timeout=1).started.pid
                        if pid not in hit:
                            os.kill(pid, number)
                            hit.append(pid)
            over.wait(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join()
        for pid in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_the_reason_of_a_load_that_fails_three_times_is_kept(make_cache, frames):
    cache = make_cache(6_000_000_000)
    request = dataclasses.replace(SLOW_TO_LOAD, max_frame=(1620, 2880))  # so slow that none of the three is missed
    session = open_session(cache, request)
    with (
        signalling(signal.SIGKILL, 3) as hit,
        pytest.raises(errors.ResourceExhaustedError, match=f"{MODEL} ended while it loaded"),
    ):
        session.touch()
    assert len(hit) == 3
    with (
        signalling(signal.SIGKILL, 1) as hit,
        pytest.raises(errors.ResourceExhaustedError, match=r"ended while it loaded.*failed before.*load_model"),
    ):
        session.touch()
    assert not hit  # nothing was tried again
    assert [entry.model_id for entry in cache.status().failing] == [MODEL]
    assert cache.memory_usage()[0] == 0
    cache.get_session(OTHER).infer(frames)
    cache.load_model(request)
    assert cache.get_session(MODEL).infer(frames).shape == (3, 98, 122, 3)
    assert cache.status().failing == ()


@pytest.mark.longest
def test_a_load_that_hangs_is_ended_and_tried_again(make_cache, frames):
    cache = make_cache(options=CacheOptions(load_within_s=4.0))
    with signalling(signal.SIGSTOP, 1) as hit:
        assert open_session(cache, SLOW_TO_LOAD).infer(frames).shape == (3, 98, 122, 3)
    assert len(hit) == 1
    assert cache.get_session(MODEL).status()["pid"] not in hit


def test_bytes_that_are_too_few_are_corrected_and_said_once(make_cache, caplog):
    cache = make_cache()
    with caplog.at_level(logging.WARNING, logger="genai_ray"):
        for _ in range(2):
            cache.load_model(MODEL, memory_bytes=5_000_000)
    (entry,) = cache.status().models
    assert entry.floor_bytes == 5_000_000
    assert entry.bytes > 60_000_000
    (record,) = [record for record in caplog.records if "more than memory_bytes=5000000" in record.getMessage()]
    assert int(record.getMessage().split()[2]) == pytest.approx(entry.bytes, rel=0.05)


def test_senseless_bytes_and_budgets_are_refused(make_cache):
    cache = make_cache(50_000_000)
    with pytest.raises(errors.ResourceExhaustedError, match=r"50000000 bytes, the most that one session"):
        cache.load_model(MODEL)
    with pytest.raises(errors.ModelNotFoundError):
        cache.get_session("no-such-model")
    for budget in (0, -1):
        with pytest.raises(errors.ConfigError, match=f"max_memory_bytes={budget}"):
            ModelCache(budget, name="senseless")
    assert cache.memory_usage() == (0, 50_000_000)


@pytest.fixture
def dividing(tmp_path) -> Path:
    """A model whose runtime is ended by a legal input: the smallest integer over -1 is more than the processor can
    hold."""
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n"]) for name in ("x", "d", "y")]
    graph = helper.make_graph([helper.make_node("Div", ["x", "d"], ["y"])], "dividing", values[:2], values[2:])
    path = tmp_path / "dividing.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path)
    return path


def test_an_input_that_crashes_the_runtime_harms_nobody_else(make_cache, dividing):
    cache = make_cache()
    session = cache.get_session(dividing)
    numbers = np.arange(1, 9)
    poison = {"x": np.full(8, np.iinfo(np.int64).min), "d": np.full(8, -1)}
    over = threading.Event()

    def ask(divisor):
        answers = 0
        while not over.is_set():
            assert np.array_equal(session.run({"x": numbers * divisor, "d": np.full(8, divisor)})["y"], numbers)
            answers += 1
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, divisor) for divisor in (1, 2, 3, 4)]
        try:
            with pytest.raises(
                errors.InferenceError, match=r"3 sessions of .*dividing.onnx died of one request.*ends the runtime"
            ):
                session.run(poison)
        finally:
            over.set()
        assert all(one.result(120) > 0 for one in asking)
    assert np.array_equal(session.run({"x": numbers, "d": np.ones(8, np.int64)})["y"], numbers)
    wait_until(lambda: len(cache.status().models) == 1)
    assert [key.alone for key in cache._router._routes] == [""]
    assert cache.status().failing == ()


def test_a_session_the_cache_ends_does_not_blame_its_request(make_cache):
    """As one that dies with its node: only a process that ends by itself may have died of what it computed."""
    # So many frames that they are still computed when this process looks, however late.
    cache, frames = make_cache(), np.zeros((64, 240, 320, 3), np.uint8)
    session = cache.get_session("websr-x2-l")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(session.infer, frames)
        for _ in range(4):
            wait_until(lambda: asking.done() or [entry.queue for entry in cache.status().models] == [1])
            assert not asking.done(), asking.result()
            name = cache.status().models[0].name
            ray.kill(ray.get_actor(name, namespace="genai_ray"))
            wait_until(lambda name=name: name not in [entry.name for entry in cache.status().models])
        assert asking.result(120).shape == (64, 480, 640, 3)
