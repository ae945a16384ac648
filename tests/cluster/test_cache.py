"""``ModelCache`` on a real Ray: budget, exact LRU, single flight, deaths, ends."""

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from genai_ray import BatchInference, InferenceSession, ModelCache, errors
from genai_ray.cluster import connect
from tests.caches import ending

MODELS = ["websr-x2-s", "websr-x2-m", "websr-x2-l"]


@pytest.fixture
def cache(ray_session, request):
    with ending(ModelCache(1_000_000_000, name=request.node.name)) as cache:
        yield cache


def test_least_recently_used_goes_first(cache, frames):
    for model in MODELS[:2]:
        cache.load_model(model, memory_bytes=400_000_000)
    cache.get_session(MODELS[0]).infer(frames)
    cache.load_model(MODELS[2], memory_bytes=400_000_000)
    assert cache.loaded_models() == [MODELS[0], MODELS[2]]
    used, budget = cache.memory_usage()
    assert 800_000_000 <= used <= budget == 1_000_000_000
    with pytest.raises(errors.ResourceExhaustedError, match="1000000000"):
        cache.load_model(MODELS[1], memory_bytes=2_000_000_000)
    cache.pin(MODELS[0])
    cache.load_model(MODELS[1], memory_bytes=400_000_000)
    assert cache.loaded_models() == [MODELS[0], MODELS[1]]
    with pytest.raises(errors.ResourceExhaustedError, match="pinned"):
        cache.evict(MODELS[0])
    assert cache.evict_lru() == MODELS[1]


def test_concurrent_first_requests_load_once(cache, frames):
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda _: cache.get_session("websr-x2-s").infer(frames), range(8)))
    assert cache.status().loads == 1
    with InferenceSession("websr-x2-s") as local:
        expected = local.infer(frames)
    assert all(np.array_equal(output, expected) for output in outputs)


def test_a_killed_session_is_replaced_unnoticed(cache, frames):
    session = cache.get_session("websr-x2-s")
    before = session.infer(frames)
    os.kill(session.status()["pid"], signal.SIGKILL)
    assert np.array_equal(session.infer(frames), before)


@pytest.mark.slow
def test_an_evicted_session_is_loaded_again_unnoticed(cache, frames):
    session = cache.get_session("websr-x2-s")
    before = session.infer(frames)
    cache.evict("websr-x2-s")
    assert cache.loaded_models() == []
    assert np.array_equal(session.infer(frames), before)


def test_errors_come_out_as_themselves(cache, frames):
    session = cache.get_session("websr-x2-s")
    with pytest.raises(errors.InvalidInputError, match="params"):
        session.infer(frames, {"sigma": 1.0})
    with pytest.raises(errors.ModelNotFoundError, match="websr-x2-s"):
        cache.load_model("websr-x2")
    with pytest.raises(errors.ModelNotFoundError, match="not loaded"):
        cache.evict("rife")
    with pytest.raises(errors.ConfigError, match="more than 0"):
        cache.load_model("rife", memory_bytes=0)
    with pytest.raises(errors.ConfigError, match="max_batch=0"):
        cache.load_model("rife", max_batch=0)


def test_two_budgets_of_one_name_are_refused(cache):
    with pytest.raises(errors.ConfigError, match=r"5000.*1000000000"):
        ModelCache(5000, name=cache.name)
    assert ModelCache(name=cache.name).memory_usage()[1] == 1_000_000_000


def test_leaving_the_block_ends_only_this_client(cache, frames):
    mine = cache.get_session("websr-x2-s")
    before, pid = mine.infer(frames), mine.status()["pid"]
    with ModelCache(name=cache.name) as guest, pickle.loads(pickle.dumps(guest)) as twin:
        session = guest.get_session("websr-x2-s")
        assert not guest.is_embedded
        assert np.array_equal(twin.get_session("websr-x2-s").infer(frames), before)
    for call in (
        lambda: session.infer(frames),
        guest.loaded_models,
        twin.status,
        lambda: guest.load_model("websr-x2-m"),
    ):
        with pytest.raises(errors.CacheClosedError, match=r"this client of cache .* was closed"):
            call()
    assert np.array_equal(mine.infer(frames), before)
    assert mine.status()["pid"] == pid
    assert cache.loaded_models() == ["websr-x2-s"]
    guest.shutdown()  # also by a client that was closed: this is for all
    with pytest.raises(errors.CacheClosedError, match="was shut down or died"):
        cache.loaded_models()


def test_a_client_travels(cache, frames):
    cache.load_model("websr-x2-s")
    assert pickle.loads(pickle.dumps(cache)).loaded_models() == ["websr-x2-s"]

    @ray.remote(num_cpus=0)
    def infer(client, batch):
        return client.get_session("websr-x2-s").infer(batch)

    assert ray.get(infer.remote(cache, frames)).shape == (3, 98, 122, 3)


def test_shutdown_leaves_nothing_and_handles_say_so(ray_session, frames):
    others = {entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)}
    cache = ModelCache(1_000_000_000, name="short")
    session = cache.get_session("websr-x2-s")
    cache.shutdown()
    cache.shutdown()
    with pytest.raises(errors.CacheClosedError):
        cache.loaded_models()
    with pytest.raises(errors.CacheClosedError):
        session.infer(frames)
    names = {entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)}
    assert "cache:short" not in names
    assert not any(name.startswith("session:websr-x2-s") for name in names - others)


def test_batches_of_several_shapes_come_back_in_order(cache, frames):
    pictures = [frames[0], frames[1][:20, :30], frames[2]]
    results = BatchInference("websr-x2-s", batch_size=2).process_batch(cache, pictures)
    assert [result.frame_index for result in results] == [0, 1, 2]
    assert [result.output.shape for result in results] == [(98, 122, 3), (40, 60, 3), (98, 122, 3)]
    assert all(result.latency_ms > 0 for result in results)
    with pytest.raises(errors.InvalidInputError, match="no frames"):
        BatchInference("websr-x2-s").process_batch(cache, [])


@pytest.mark.slow
def test_a_batch_for_a_loaded_model_does_not_ask_the_cache(cache, frames):
    client, batch = ModelCache(name=cache.name, deadline_s=20.0), BatchInference("websr-x2-s", batch_size=2)
    with pytest.raises(AttributeError):
        client.deadline_s = 1.0  # it would not reach the sessions that the client has given out
    first, pid = batch.process_batch(client, list(frames)), cache.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        again = batch.process_batch(client, list(frames))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert all(np.array_equal(one.output, other.output) for one, other in zip(first, again, strict=True))
    with ending(ModelCache(1_000_000_000, name="another")) as another:
        batch.process_batch(another, list(frames))
        assert another.loaded_models() == ["websr-x2-s"]


def test_the_address_of_another_cluster_is_refused(ray_session):
    own = ray.get_runtime_context().gcs_address
    for address in (own, f"127.0.0.1:{own.rpartition(':')[2]}", "auto", None):
        assert connect(address) is False
    for address in ("ray://127.0.0.1:10001", "127.0.0.1:9"):
        with pytest.raises(errors.ConfigError, match=f"address {address}, as this process is connected to .* already"):
            connect(address)
