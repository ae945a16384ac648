"""Leases, prefetching, classes and the guard against churn, on a real Ray."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from genai_ray import ModelCache, errors
from genai_ray.cluster import CacheOptions, SessionRequest, open_session
from genai_ray.cluster.cache import CacheCalls
from genai_ray.cluster.cache.eviction import STAY_LOADS
from genai_ray.cluster.client.lease import RELEASE_WITHIN_S
from genai_ray.cluster.client.requests import build_load_request, to_request
from genai_ray.cluster.messages import LeaseRequest
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import keep_at_work
from tests.processes import ROOT, wait_until

pytestmark = pytest.mark.cluster

A, B, C, D = "websr-x2-s", "websr-x2-m", "websr-x2-l", "esrgan-2x"
SHARE = 400_000_000
"""More than any of them was seen to take: esrgan-2x 170 to 325 MB."""


@pytest.fixture
def make_cache(ray_session, request):
    caches = []

    def make(budget, **options):
        caches.append(ModelCache(budget, name=f"{request.node.name} {len(caches)}", **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.shutdown()


def of(model, num_bytes=SHARE):
    return SessionRequest(model, ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=num_bytes)


def ready(cache):
    return {entry.model_id for entry in cache.status().models if entry.state == "ready"}


def test_two_chains_in_room_for_three_models_take_turns(make_cache, frames):
    cache = make_cache(3 * SHARE, options=CacheOptions(min_stay_s=0))
    rounds = 4

    def work(chain):
        for _ in range(rounds):
            with cache.lease([of(model) for model in chain]) as lease:
                for _ in range(3):
                    passed = frames
                    for session in lease.sessions:
                        passed = session.infer(passed)
                assert passed.shape == (3, 196, 244, 3)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, chain) for chain in ((A, B), (C, D))]:
            job.result(240)
    loads = {model: counts["loads"] for model, counts in cache.status().history.items()}
    assert set(loads) == {A, B, C, D}
    assert max(loads.values()) <= rounds


def test_chains_that_run_once_load_nothing_more_than_twice(make_cache, frames):
    cache = make_cache(3 * SHARE)
    start = threading.Barrier(2)

    def work(chain):
        start.wait()
        with cache.lease([of(model) for model in chain]) as lease:
            for _ in range(5):
                lease.sessions[1].infer(lease.sessions[0].infer(frames))

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, chain) for chain in ((A, B), (C, D))]:
            job.result(240)
    assert all(counts["loads"] <= 2 for counts in cache.status().history.values())


def test_what_is_leased_stays_and_what_cannot_be_leased_says_so(make_cache):
    cache = make_cache(2 * SHARE)
    with cache.lease([of(A), of(B)]):
        assert all(entry.leased for entry in cache.status().models)
        with pytest.raises(errors.ResourceExhaustedError, match="leased by a job"):
            cache.evict(A)
        assert cache.evict_lru() is None
        hasty = ModelCache(name=cache.name, deadline_s=2.0)
        with pytest.raises(errors.ResourceExhaustedError, match="in use, pinned or leased"):
            hasty.load_model(C, memory_bytes=SHARE)
        with pytest.raises(errors.ResourceExhaustedError, match="in use, pinned or leased"):
            hasty.lease([of(C), of(D)])
        with pytest.raises(
            errors.ResourceExhaustedError, match=rf"{3 * SHARE} bytes together.*{2 * SHARE} bytes, the budget"
        ):
            cache.lease([of(A), of(B), of(C)])
    with pytest.raises(errors.ConfigError, match="at least one model"):
        cache.lease([])
    with pytest.raises(errors.ConfigError, match="replicas=0"):
        cache.lease([A], replicas=0)
    with pytest.raises(errors.ModelNotFoundError):
        cache.lease([A, "no-such-model"])
    cache.load_model(C, memory_bytes=SHARE)
    assert C in cache.loaded_models()


def test_a_lease_that_waits_keeps_nobody_from_what_fits(make_cache):
    cache = make_cache(2 * SHARE)
    other = cache.lease([of(C)])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.lease, [of(A), of(B)])
        wait_until(lambda: cache.status().waiting)
        hasty = ModelCache(name=cache.name, deadline_s=60.0)
        open_session(hasty, of(A)).touch()
        assert not waiting.done()
        other.release()
        waiting.result(120).release()
    assert ready(cache) == {A, B}


def test_a_closed_client_waits_for_nothing_and_leaves_nothing(make_cache):
    cache = make_cache(2 * SHARE)
    other, client = cache.lease([of(C)]), ModelCache(name=cache.name)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.lease, [of(A), of(B)])
        wait_until(lambda: cache.status().waiting)
        client.close()
        with pytest.raises(errors.CacheClosedError, match=r"this client of cache .* was closed"):
            waiting.result(60)
    with pytest.raises(errors.CacheClosedError, match=r"this client of cache .* was closed"):
        open_session(client, of(A)).touch()
    wait_until(lambda: not cache.status().waiting)
    other.release()
    with cache.lease([of(D)]):
        assert ready(cache) == {C, D}
    assert cache.status().leases == 0
    late = ModelCache(name=cache.name)
    held = late.lease([of(D)])
    late.close()
    held.leave()
    assert not held._thread.is_alive()  # nobody calls Ray, which may be shut down now


def test_a_lease_ends_with_its_client_while_its_models_load(make_cache):
    cache = make_cache(2 * SHARE)
    client = ModelCache(name=cache.name)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.lease, [of(A)])
        wait_until(lambda: cache.status().leases)
        client.close()
        with pytest.raises(errors.CacheClosedError, match=r"this client of cache .* was closed"):
            waiting.result(60)
    wait_until(lambda: not cache.status().leases)


def test_a_repeated_lease_call_is_not_a_second_lease(make_cache):
    cache = make_cache(2 * SHARE)
    other, (request, spec) = cache.lease([of(C), of(D)]), to_request(of(A))
    asked = LeaseRequest(
        "lease:repeated", (build_load_request(request, spec, is_explicit=False, is_online=False, within_s=60.0),)
    )
    answers = [cache._connection.send(CacheCalls.lease, asked, 60.0) for _ in range(2)]
    wait_until(lambda: cache.status().waiting)
    other.release()
    assert ray.get(answers) == [None, None]
    assert cache.status().leases == 1


HOLDER = """
import sys, time, ray
from genai_ray import ModelCache
cache = ModelCache(name=sys.argv[1], address=sys.argv[2])
lease = cache.lease(["websr-x2-s"])
print("held", flush=True)
time.sleep(600)
"""


def test_the_lease_of_a_dead_holder_ends(make_cache):
    cache = make_cache(2 * SHARE)
    address = ray.get_runtime_context().gcs_address
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, cache.name, address], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert cache.status().models[0].leased
    finally:
        holder.kill()
        holder.communicate()
    wait_until(lambda: not cache.status().models[0].leased)
    cache.evict(A)


def test_a_lease_is_given_back_at_once_also_to_a_silent_cache(make_cache):
    cache = make_cache(2 * SHARE, deadline_s=60.0)
    lease, pid = cache.lease([of(A)]), cache.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        lease.release()
        assert (
            time.monotonic() - began_s < 3 * RELEASE_WITHIN_S
        )  # nor is the thread waited for that tells that this holder lives
        lease.release()
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not cache.status().models[0].leased)
    assert cache.status().leases == 0


def test_a_lease_survives_the_cache(make_cache):
    cache = make_cache(2 * SHARE)
    with cache.lease([of(A), of(B)]):
        os.kill(cache.status().pid, signal.SIGKILL)
        wait_until(lambda: {entry.model_id for entry in cache.status().models if entry.leased} == {A, B})
        assert cache.evict_lru() is None
    assert cache.evict_lru() in (A, B)


def test_what_is_prefetched_is_ready_when_the_first_model_ends(make_cache, frames):
    cache = make_cache(2 * SHARE)
    first = cache.get_session(A)
    over, began = threading.Event(), []

    def work():
        while not over.is_set():
            states = {entry.model_id: entry.state for entry in cache.status().models}
            first.infer(frames)
            began.append(states.get(B))

    def of_second():
        return next((entry for entry in cache.status().models if entry.model_id == B), None)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            cache.prefetch([B])
            wait_until(lambda: working.done() or "ready" in began)
        finally:
            over.set()
        working.result(60)
    assert began.count("loading") > 1  # of these the last one but one began and ended while the second model was loaded
    before = of_second()
    assert (before.state, before.hits, before.queue) == ("ready", 0, 0)
    assert cache.status().loads == 2
    cache.get_session(B).infer(frames)
    after = of_second()
    assert (after.name, after.session["pid"]) == (before.name, before.session["pid"])
    assert after.hits > 0
    assert cache.status().loads == 2
    assert cache.status().waiting == ()
    with pytest.raises(errors.ModelNotFoundError):
        cache.prefetch(["no-such-model"])


@pytest.mark.slow
def test_models_used_in_turn_do_not_thrash(make_cache, frames):
    """Three models in room for two, as the cache is when nothing is said: each stays twice as long as its load took."""
    cache = make_cache(2 * SHARE)
    load_s, evictions, began_s = {}, {}, time.monotonic()
    for session in itertools.cycle([open_session(cache, of(model)) for model in (A, B, C)]):
        session.infer(frames)
        status = cache.status()
        for model, counts in status.history.items():
            if counts.get("evictions", 0) > evictions.get(model, 0):
                evictions[model] = counts["evictions"]
                most_s = CacheOptions().min_stay_s
                assert counts["age_at_eviction_s"] > min(STAY_LOADS * load_s[model], most_s) - 0.01  # it is rounded
        load_s = {entry.model_id: entry.load_s for entry in status.models if entry.state == "ready"}
        if sum(evictions.values()) >= 4 and time.monotonic() - began_s > 5:
            break
    assert status.failures == 0
    cache.load_model(A, memory_bytes=SHARE)
    cache.pin(A)
    for other in (B, C, B):  # an explicit load waits for nothing
        cache.load_model(other, memory_bytes=SHARE)
        assert ready(cache) == {A, other}


def test_the_guard_can_be_turned_off_and_options_are_checked(make_cache, frames):
    cache = make_cache(2 * SHARE, options=CacheOptions(min_stay_s=0))
    for session in itertools.islice(itertools.cycle([open_session(cache, of(model)) for model in (A, B, C)]), 6):
        session.infer(frames)
    assert cache.status().loads == 6
    with pytest.raises(errors.ConfigError, match=r"min_stay_s=5.*min_stay_s=0"):
        ModelCache(name=cache.name, options=CacheOptions())
    for wrong in (
        {"policy": "mru"},
        {"min_stay_s": -1},
        {"idle_release_s": 0},
        {"load_within_s": 0},
        {"replicas_per_device": 0},
        {"replicas_per_device": 1.5},
        {"spare_processes": 2},
        {"spare_processes": True},
    ):
        with pytest.raises(errors.ConfigError, match=str(next(iter(wrong.values())))):
            CacheOptions(**wrong)


def test_gdsf_keeps_the_model_that_is_dear_to_load(make_cache, frames):
    cache = make_cache(2 * SHARE, options=CacheOptions(policy="gdsf", min_stay_s=0))
    dear = open_session(
        cache, SessionRequest("waifu2x-x2", ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=SHARE, tile_size_px=128)
    )
    dear.infer(frames)
    for session in itertools.islice(itertools.cycle([open_session(cache, of(model)) for model in (A, B)]), 4):
        session.infer(frames)
    assert cache.status().policy == "gdsf"
    assert "waifu2x-x2" in cache.loaded_models()
    assert cache.status().history["waifu2x-x2"]["loads"] == 1


def test_an_online_request_overtakes_a_queue_of_batches(make_cache, frames):
    cache = make_cache(2 * SHARE)
    online = ModelCache(name=cache.name, is_online=True).get_session(C)
    batch = cache.get_session(C)
    done = []  # in the order in which answers arrive, however late this process looks

    def submit(session, name, batch_frames):
        asked = session.submit(batch_frames)
        asked.ref.future().add_done_callback(lambda _: done.append(name))
        return asked

    # Each batch computes for much longer than a request travels.
    batches = [submit(batch, "batch", np.zeros((4, 240, 320, 3), np.uint8)) for _ in range(24)]
    batches[0].result()
    asked = submit(online, "online", frames)
    before = len(done)
    asked.result()
    wait_until(lambda: "online" in done)  # a callback may run after the one who waits
    assert done.index("online") - before <= 6  # those whose runs were in progress, and what ended while it travelled
    for one in batches:
        one.result()


def test_idle_sessions_are_released_where_that_is_asked_for(make_cache, frames):
    cache = make_cache(2 * SHARE, options=CacheOptions(idle_release_s=3.0))
    cache.get_session(A).infer(frames)
    cache.load_model(B)
    cache.pin(B)
    wait_until(lambda: ready(cache) == {B})


def test_evict_waits_for_running_calls_until_its_deadline(make_cache):
    cache = make_cache(2_000_000_000)
    session = open_session(
        cache, SessionRequest("waifu2x-x2", ModelBackend.ONNX, ModelPrecision.FP32, tile_size_px=128)
    )
    session.touch()
    pending = keep_at_work(cache, session, np.zeros((1, 240, 320, 3), np.uint8))
    with pytest.raises(errors.ResourceExhaustedError, match="at work"):
        cache._connection.call(
            CacheCalls.evict, "waifu2x-x2", 0.5
        )  # by the deadline of the cache: a client's may end before it hears of that
    for one in pending[:-3]:
        one.result()
    cache.evict("waifu2x-x2")
    assert cache.loaded_models() == []
    assert all(one.result().shape == (1, 480, 640, 3) for one in pending)
    assert cache.status().loads == 1


def test_evictions_of_one_model_at_the_same_time_end_together(make_cache):
    cache = make_cache(2_000_000_000)
    session = open_session(cache, SessionRequest("websr-x2-l", ModelBackend.ONNX, ModelPrecision.FP32))
    session.touch()
    pending = keep_at_work(cache, session, np.zeros((3, 240, 320, 3), np.uint8))
    with ThreadPoolExecutor(3) as pool:
        for gone in [pool.submit(ModelCache(name=cache.name).evict, "websr-x2-l") for _ in range(3)]:
            gone.result(60)
    assert cache.loaded_models() == []
    assert all(one.result().shape == (3, 480, 640, 3) for one in pending)
    assert cache.status().evictions == 1


@pytest.mark.longest
def test_a_silent_session_that_must_go_keeps_nobody_else_waiting(make_cache, frames):
    """What finds room beside what the other one makes is loaded and leased meanwhile."""
    cache = make_cache(1_000_000_000, options=CacheOptions(min_stay_s=0))
    for model in (A, B):
        cache.load_model(model, memory_bytes=350_000_000)
    cache.get_session(B).infer(frames)
    pid = next(entry.session["pid"] for entry in cache.status().models if entry.model_id == A)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(ModelCache(name=cache.name).load_model, C, memory_bytes=500_000_000)
        wait_until(lambda: cache._connection.call(CacheCalls.find, C) is not None)
        cache.load_model("ffdnet", memory_bytes=130_000_000)
        with cache.lease([B]) as lease:
            assert lease.sessions[0].infer(frames).shape == (3, 98, 122, 3)
        assert not large.done()
        large.result(120)
    assert ready(cache) == {B, C, "ffdnet"}
