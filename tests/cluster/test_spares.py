"""A process that is ready before its session: who gets it, what it counts, and when there is another one."""

import os
import signal

import pytest

from genai_ray import CacheOptions, ModelCache
from tests.caches import ending
from tests.processes import is_alive, wait_until

pytestmark = pytest.mark.cluster

MODEL, OTHER = "websr-x2-s", "websr-x2-m"
BUDGET = 1_000_000_000
MOST_IDLE = 9
"""Ray keeps at most eight idle processes for the tests, and takes the oldest first."""


@pytest.fixture
def cache(ray_session, request):
    with ending(ModelCache(BUDGET, name=request.node.name, options=CacheOptions(spare_processes=1))) as cache:
        yield cache


def spare_of(cache):
    (device,) = cache.status().devices
    return device.spare_pid


def next_spare(cache, *before):
    wait_until(lambda: spare_of(cache) not in (None, *before))
    return spare_of(cache)


def test_the_spare_process_becomes_the_sessions(cache, frames):
    spare = next_spare(cache)
    seen = []
    while spare not in seen and len(seen) < MOST_IDLE:
        cache.get_session(MODEL).infer(frames)
        (entry,) = cache.status().models
        seen.append(entry.session["pid"])
        if entry.session["pid"] != spare:
            assert spare_of(cache) == spare  # an older idle process was taken: it is still to come
            cache.evict(MODEL)
    assert seen[-1] == spare
    following = next_spare(cache, spare)
    cache.get_session(OTHER).infer(frames)
    assert {entry.session["pid"] for entry in cache.status().models} == {spare, following}


def test_its_bytes_count(cache):
    (device,) = cache.status().devices
    assert device.spare_bytes > 0
    assert cache.memory_usage() == (0, BUDGET - device.spare_bytes)
    with ModelCache(BUDGET, name=cache.name) as joined:  # the budget that it was given
        assert joined.memory_usage() == cache.memory_usage()


def test_a_spare_process_that_ends_is_replaced(cache):
    spare = next_spare(cache)
    os.kill(spare, signal.SIGKILL)
    assert is_alive(next_spare(cache, spare))
