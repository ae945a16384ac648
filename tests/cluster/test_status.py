"""What a cache shows of itself: status, Prometheus, and bytes that agree with the operating system's."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from onnx import helper, numpy_helper

from genai_ray import ModelCache
from genai_ray.cluster import SessionRequest, open_session
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.nodes import Nodes
from tests.processes import rss_anon, rss_watched, wait_until
from tests.serve.models import add_number, value, write

pytestmark = pytest.mark.cluster

MODEL, OTHER, HEAVY = "websr-x2-s", "websr-x2-m", "waifu2x-x2"


@pytest.fixture
def cache(ray_session, request):
    with ending(ModelCache(4_000_000_000, name=request.node.name)) as cache:
        yield cache


def metrics(cache):
    """Read what Prometheus would, and return the values of our series of this cache by name and model."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with urllib.request.urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
    ) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        name, _, rest = line.partition("{")
        if name.startswith("ray_genai_ray_") and f'cache="{cache.name}"' in rest:
            labels, _, value = rest.rpartition("} ")
            model = next(
                (label.partition("=")[2].strip('"') for label in labels.split(",") if label.startswith("model=")), ""
            )
            found[name.removeprefix("ray_genai_ray_"), model] = float(value)
    return found


@pytest.fixture
def joined():
    """A cache on a cluster that was joined: the embedded Ray has no agent that would serve metrics."""
    with Nodes(serves_metrics=True), ending(ModelCache(2_000_000_000, name="joined")) as cache:
        yield cache


def in_prometheus(text):
    """Return how a name stands in a series: what is not ASCII as Python writes it, and each backslash twice."""
    return text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\")


def check_that_names_beyond_ascii_are_told(path):
    """A model and a cache with such names; it is loaded and evicted twice."""
    add_number(path, 1)
    with ending(ModelCache(1_000_000_000, name="café")) as cache:
        for _ in range(2):
            cache.load_model(path)
            assert cache.get_session(path).run({"x": np.ones(1, np.float32)})["y"] == [2]
            assert cache.loaded_models() == [str(path)]
            cache.evict(path)
        assert cache.memory_usage()[0] == 0
        told = SimpleNamespace(name=in_prometheus(cache.name))
        wait_until(lambda: metrics(told).get(("evictions_total", in_prometheus(str(path)))) == 2)
        assert metrics(told)["loads_total", in_prometheus(str(path))] == 2


def test_status_and_metrics_say_the_same(joined, frames, tmp_path):
    cache = joined
    cache.load_model(MODEL)
    session = cache.get_session(MODEL)
    for _ in range(5):
        session.infer(frames)
    cache.load_model(OTHER)
    cache.evict(OTHER)
    status = cache.status()
    (entry,) = status.models
    assert (entry.model_id, entry.state, entry.replicas, entry.queue, status.evictions) == (
        MODEL,
        "ready",
        1,
        0,
        1,
    )
    assert entry.hits >= 6
    assert entry.load_s > 0
    assert entry.age_s >= entry.idle_s >= 0
    assert set(status.history) == {MODEL, OTHER}
    assert status.history[OTHER]["evictions"] == 1
    assert 0 < status.history[OTHER]["age_at_eviction_s"] < 60
    (device,) = status.devices
    assert device.used_bytes == status.used_bytes == entry.bytes
    assert 40_000_000 < status.process_bytes["cpu"] < 120_000_000
    wait_until(lambda: metrics(cache).get(("hits_total", MODEL), 0) >= entry.hits)
    wait_until(lambda: metrics(cache).get(("used_bytes", "")) == pytest.approx(device.used_bytes, rel=0.05))
    seen = metrics(cache)
    assert seen["loads_total", MODEL] == seen["loads_total", OTHER] == 1
    assert seen["evictions_total", OTHER] == 1
    assert seen["budget_bytes", ""] == device.budget_bytes
    assert seen["load_seconds_count", MODEL] == 1
    assert seen["age_at_eviction_seconds_count", OTHER] == 1
    check_that_names_beyond_ascii_are_told(tmp_path / "modèle 模型 🎞.onnx")


@pytest.mark.parametrize("size", [(144, 176), pytest.param((480, 640), marks=pytest.mark.longest)], ids=str)
@pytest.mark.parametrize(
    "model",
    [
        "websr-x2-s",
        "esrgan-2x",
        *(pytest.param(one, marks=pytest.mark.longest) for one in ("websr-x2-l", "waifu2x-x2", "rife")),
    ],
)
def test_recorded_bytes_are_those_of_the_operating_system(cache, model, size):
    """What is recorded is a peak, of the moments at which the cache looked: a batch and its result count while they are
    there."""
    session = open_session(cache, SessionRequest(model, ModelBackend.ONNX, ModelPrecision.FP32, max_frame=size))
    session.touch()
    (loaded,) = cache.status().models
    pid = loaded.session["pid"]
    assert loaded.bytes == pytest.approx(rss_anon(pid), rel=0.1)
    frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
    with rss_watched(pid) as most:
        for _ in range(3):
            session.infer(frames)
        (after,) = cache.status().models
    assert 0.9 * rss_anon(pid) < after.bytes < 1.1 * most[0]
    assert loaded.bytes > 0.8 * after.bytes
    assert loaded.predicted_bytes == pytest.approx(after.bytes, rel=0.25)


def test_a_hundred_requests_take_no_more_than_was_reserved(cache):
    """A process grows with its first calls; that is reserved when it has loaded, so no device stands over its budget
    until somebody looks."""
    session = open_session(cache, SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32))
    session.touch()
    (loaded,) = cache.status().models
    frame = np.zeros((32, 32, 3), np.uint8)
    with ThreadPoolExecutor(8) as clients:
        for _ in clients.map(lambda _: session.infer(frame), range(100)):
            pass
    assert rss_anon(loaded.session["pid"]) <= loaded.bytes


def test_every_load_of_a_model_takes_the_same_bytes(cache, tmp_path):
    """Copies of weights that were read and freed go back to the system, also those in the heap of the thread that
    loads."""
    side, path = 1800, tmp_path / "matmul.onnx"
    weights = numpy_helper.from_array(np.ones((side, side), np.float32), "w")
    write(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", "FP32", (1, side))],
        [value("y", "FP32", (1, side))],
        [weights],
    )
    taken = []
    for _ in range(6):
        cache.load_model(path)
        taken.append(cache.memory_usage()[0])
        cache.evict(path)
    assert max(taken) - min(taken) < path.stat().st_size / 4
