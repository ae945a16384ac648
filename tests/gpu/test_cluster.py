"""Sessions of the cache on a real GPU: what is reserved, what NVML sees, what an eviction gives back."""

import numpy as np
import pytest

from genai_ray import ModelCache
from genai_ray.backends.gpu import read_gpu
from tests.processes import wait_until

pytestmark = pytest.mark.gpu

MB = 1_000_000
MODELS = ("websr-x2-m", "realesr-animevideov3-x2")


@pytest.fixture
def cache(ray_session):
    with ModelCache(name="gpu tests") as cache:
        yield cache
        cache.shutdown()


def test_two_sessions_are_reserved_measured_and_evicted(cache, figures):
    before = read_gpu("0").used_bytes
    frame = np.full((360, 640, 3), 128, np.uint8)
    for model in MODELS:
        cache.load_model(model, device="cuda", max_frame=(360, 640))
        assert cache.get_session(model, device="cuda").infer(frame).shape == (720, 1280, 3)
    status = cache.status()
    seen = read_gpu("0").used_bytes - before
    reserved = sum(entry.bytes for entry in status.models)
    told = sum(entry.session["memory_bytes"] for entry in status.models)
    figures["cache"] = {"reserved": reserved, "told": told, "seen": seen}
    assert {entry.session["device"] for entry in status.models} == {"cuda:0"}
    assert told == pytest.approx(seen, rel=0.1, abs=60 * MB)
    assert seen <= reserved
    cache.evict(MODELS[0])
    left = next(entry for entry in status.models if entry.model_id == MODELS[1]).session["memory_bytes"]
    wait_until(lambda: read_gpu("0").used_bytes - before <= 1.1 * left + 60 * MB)
    cache.evict(MODELS[1])
    wait_until(lambda: read_gpu("0").used_bytes - before <= 60 * MB)
    assert cache.loaded_models() == []


def test_given_bytes_of_a_gpu_are_kept_to(cache):
    cache.load_model(MODELS[1], device="cuda", max_frame=(1080, 1920), memory_bytes=1_500 * MB)
    (entry,) = cache.status().models
    assert entry.session["memory_bytes"] <= 1_500 * MB == entry.floor_bytes
    frame = np.full((1080, 1920, 3), 128, np.uint8)
    assert cache.get_session(MODELS[1], device="cuda").infer(frame).shape == (2160, 3840, 3)
