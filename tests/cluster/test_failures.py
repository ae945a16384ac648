"""What the cache does when its own process, a session's or a machine's answers end: real SIGKILL and SIGSTOP on a real
Ray."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from genai_ray import InferenceSession, ModelCache, errors
from genai_ray.cluster import SessionRequest, cache_names, disconnect, open_session, session_actor
from genai_ray.cluster.messages import LoadRequest
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.cluster.truth import is_reported, report, wait_until_true
from tests.processes import is_alive, wait_until
from tests.rays import connect_tests

pytestmark = pytest.mark.cluster

MODEL, OTHER, THIRD = "websr-x2-s", "websr-x2-m", "websr-x2-l"
KEPT = ("name", "floor_bytes", "pinned", "predicted_bytes", "placed_on", "load_s")


@pytest.fixture
def cache(ray_session, request):
    with ending(ModelCache(2_000_000_000, name=request.node.name)) as cache:
        yield cache


@pytest.fixture
def expected(frames):
    with InferenceSession(MODEL) as local:
        return local.infer(frames)


def session_names():
    return sorted(
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("session:")
    )


def kill_cache(cache):
    """Kill the cache actor's process, and wait until the one that takes its place has the truth; returns what was known
    before."""
    before, name = cache.status(), f"cache:{cache.name}"
    restarts = report(name)["NumRestarts"]
    os.kill(before.pid, signal.SIGKILL)
    wait_until_true(cache, lambda: is_reported(name, restarts))
    return before


def test_a_killed_cache_comes_back_with_its_sessions(cache, frames, expected):
    session = cache.get_session(MODEL)
    session.infer(frames)
    cache.load_model(OTHER, memory_bytes=300_000_000)
    cache.pin(OTHER)
    names = session_names()
    before = kill_cache(cache)
    after = cache.status()
    assert after.pid != before.pid
    assert session_names() == names
    assert [entry.state for entry in after.models] == ["ready", "ready"]
    assert after.budget_bytes == before.budget_bytes == 2_000_000_000
    by_id = {entry.model_id: entry for entry in after.models}
    for entry in before.models:
        found = by_id[entry.model_id]
        assert found.bytes == pytest.approx(entry.bytes, rel=0.05)  # a process takes a little more with every call
        assert [getattr(found, name) for name in KEPT] == [getattr(entry, name) for name in KEPT]
        assert found.session["pid"] == entry.session["pid"]
    assert (after.loads, after.adoptions) == (0, 2)
    assert np.array_equal(session.infer(frames), expected)
    with pytest.raises(errors.ResourceExhaustedError, match="pinned"):
        cache.evict(OTHER)
    began_s = time.monotonic()
    cache.evict(MODEL)
    assert time.monotonic() - began_s < 15  # the session does not wait for what the dead cache had asked it
    with pytest.raises(errors.ConfigError, match=r"5000.*2000000000"):
        ModelCache(5000, name=cache.name)


def test_a_load_survives_the_cache_that_began_it(cache, frames, expected):
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.load_model, MODEL)
        wait_until(lambda: len(session_names()) == 1)
        os.kill(cache.status().pid, signal.SIGKILL)
        loading.result(60)
    assert cache.loaded_models() == [MODEL]
    assert len(session_names()) == 1
    assert np.array_equal(cache.get_session(MODEL).infer(frames), expected)


def test_a_restarted_cache_serves_others_beside_a_silent_session(cache, frames, expected):
    """Whose it is, and what it takes, only the silent one can tell: what is to be loaded waits for that, what is loaded
    does not."""
    cache.load_model(MODEL)
    cache.load_model(OTHER)
    silent = next(entry for entry in cache.status().models if entry.model_id == OTHER).session["pid"]
    restarts = report(f"cache:{cache.name}")["NumRestarts"]
    os.kill(silent, signal.SIGSTOP)
    try:
        os.kill(report(f"cache:{cache.name}")["Pid"], signal.SIGKILL)
        wait_until(lambda: is_reported(f"cache:{cache.name}", restarts))
        client = ModelCache(name=cache.name, deadline_s=60.0)
        with ThreadPoolExecutor(2) as pool:
            loading, knowing = pool.submit(client.load_model, THIRD), pool.submit(client.memory_usage)
            session = open_session(client, SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32))
            assert np.array_equal(session.infer(frames), expected)
            assert not knowing.done()  # while not all is known
            assert not loading.done()
            assert len(session_names()) == 2
            os.kill(silent, signal.SIGCONT)
            loading.result(60)
            assert knowing.result(60)[0] > 0
    finally:
        os.kill(silent, signal.SIGCONT)
    wait_until(lambda: set(cache.loaded_models()) == {MODEL, OTHER, THIRD})
    assert cache.status().adoptions == 2


def test_a_session_retiring_while_the_cache_dies_holds_its_bytes(cache):
    cache.load_model(MODEL, memory_bytes=300_000_000)
    (entry,) = cache.status().models
    assert ray.get(ray.get_actor(entry.name, namespace="genai_ray").try_retire.remote(entry.name, None))
    os.kill(cache.status().pid, signal.SIGKILL)
    wait_until(lambda: cache.memory_usage()[0] == 0)
    assert not is_alive(entry.session["pid"])
    assert session_names() == []
    assert cache.status().adoptions == 0


def test_a_retirement_that_was_taken_back_ends_no_later_one(ray_session):
    class Brief(session_actor.SessionActor):
        def __init__(self, *given):
            session_actor.RETIRED_FOR_S = 3.0
            super().__init__(*given)

    remote = ray.remote(concurrency_groups=session_actor.CONCURRENCY_GROUPS, num_cpus=0)(Brief)
    asked = LoadRequest(SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32))
    session = remote.remote("no cache", asked, 0, 0, None)
    name = ray.get(session.describe.remote()).name
    assert ray.get(session.try_retire.remote(name, None))
    time.sleep(1.5)  # so that the first one is over well before the second
    ray.get(session.revive.remote(name))
    began_s = time.monotonic()
    assert ray.get(session.try_retire.remote(name, None))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(session.watch.remote(name))  # which nothing but its end ends
    assert time.monotonic() - began_s >= 3.0


def test_the_death_of_an_idle_session_is_noticed(cache):
    cache.load_model(MODEL)
    (name,) = session_names()
    os.kill(cache.status().models[0].session["pid"], signal.SIGKILL)
    wait_until_true(cache, lambda: is_reported(name, 0))
    assert cache.memory_usage()[0] == 0
    assert cache.loaded_models() == []


def test_no_request_is_lost_while_cache_and_session_are_killed(cache, frames, expected):
    cache.load_model(MODEL)
    over = threading.Event()

    def ask():
        answers = 0
        while not over.is_set():
            assert np.array_equal(cache.get_session(MODEL).infer(frames), expected)
            answers += 1
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for _ in range(2):
                os.kill(cache.status().pid, signal.SIGKILL)
                os.kill(cache.get_session(MODEL).status()["pid"], signal.SIGKILL)
                cache.get_session(MODEL).infer(frames)
        finally:
            over.set()
        assert all(request.result(120) > 0 for request in asking)
    wait_until(lambda: len(session_names()) == 1)


def test_a_request_ends_at_its_deadline(cache, frames, expected):
    patient = cache.get_session(MODEL)
    hasty = ModelCache(name=cache.name, deadline_s=1.0).get_session(MODEL)
    pid = patient.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.DeadlineExceededError, match=f"{MODEL}.*1 s"):
            hasty.infer(frames)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert np.array_equal(patient.infer(frames), expected)


def test_a_silent_cache_is_told_and_shut_down(ray_session):
    cache = ModelCache(1_000_000_000, name="silent", deadline_s=60)
    cache.load_model(MODEL)
    os.kill(cache.status().pid, signal.SIGSTOP)
    with pytest.raises(errors.DeadlineExceededError, match=r"silent.*open.*1 s"):
        ModelCache(name="silent", deadline_s=1.0)
    cache.shutdown()
    wait_until(lambda: session_names() == [])


def test_a_silent_session_is_replaced(cache, frames, expected):
    session = cache.get_session(MODEL)
    pid = session.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert np.array_equal(session.infer(frames), expected)
    assert session.status()["pid"] != pid


def test_a_deadline_is_positive(ray_session):
    with pytest.raises(errors.ConfigError, match="deadline_s=0"):
        ModelCache(1_000_000_000, name="hasty", deadline_s=0)


def test_the_ledger_holds_while_a_model_in_use_is_evicted(cache, frames, expected):
    session = cache.get_session(MODEL)
    over = threading.Event()

    def ask():
        while not over.is_set():
            assert np.array_equal(session.infer(frames), expected)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for _ in range(5):
                wait_until(lambda: cache.loaded_models() == [MODEL])
                cache.evict(MODEL)
        finally:
            over.set()
        asking.result(60)
    session.infer(frames)
    (entry,) = cache.status().models
    assert cache.memory_usage()[0] == entry.bytes > 0
    wait_until(lambda: len(session_names()) == 1)


def test_a_pinned_model_is_pinned_again_after_its_process_died(cache, frames, expected):
    session = cache.get_session(MODEL)
    cache.pin(MODEL)
    os.kill(session.status()["pid"], signal.SIGKILL)
    assert np.array_equal(session.infer(frames), expected)
    (entry,) = cache.status().models
    assert entry.pinned
    cache.unpin(MODEL)
    os.kill(session.status()["pid"], signal.SIGKILL)
    assert np.array_equal(session.infer(frames), expected)
    assert not cache.status().models[0].pinned


def test_a_pin_of_a_dead_session_leaves_the_cache_open(cache):
    cache.load_model(MODEL)
    os.kill(cache.get_session(MODEL).status()["pid"], signal.SIGKILL)
    with contextlib.suppress(errors.ModelNotFoundError):  # where its death was noticed before
        cache.pin(MODEL)
    wait_until(lambda: cache.loaded_models() == [])


def test_nothing_that_is_left_starts_another_ray(ray_session, frames):
    """Ray starts a cluster at the next call of whoever still has a handle: the thread of a lease, or of a job that has
    ended."""
    cache = ModelCache(2_000_000_000, name="left")
    lease = cache.lease([MODEL])
    lease.sessions[0].infer(frames)
    disconnect()
    ray.shutdown()
    try:
        for call in (
            lambda: lease.sessions[0].infer(frames),
            lambda: cache.prefetch([OTHER]),
            cache.status,
            lambda: cache.lease([OTHER]),
        ):
            with pytest.raises(errors.CacheClosedError, match="Ray is not running any more"):
                call()
        lease.release()
        cache.shutdown()
        assert not ray.is_initialized()
    finally:
        connect_tests()


def test_a_client_with_its_own_ray_ends_its_cache_with_its_block(ray_session, frames):
    disconnect()
    ray.shutdown()
    try:
        with ModelCache(1_000_000_000, name="own") as own:
            assert own.is_embedded
            own.load_model(MODEL)
            with ModelCache(1_000_000_000, name="guest") as guest:
                guest.load_model(MODEL)
            with ModelCache(name="own") as second:
                assert not second.is_embedded
                closed = second.get_session(MODEL)
            session = ModelCache(name="own").get_session(MODEL)
            endpoint = ModelCache(name="guest").get_session(MODEL)
            assert own.loaded_models() == [MODEL]
            expected = session.infer(frames)
        for ended in (closed, session):
            with pytest.raises(errors.CacheClosedError):
                ended.infer(frames)
        assert np.array_equal(endpoint.infer(frames), expected)
        assert cache_names() == ["guest"]
        wait_until(lambda: len(session_names()) == 1)
    finally:
        ModelCache(name="guest").shutdown()
        connect_tests()
