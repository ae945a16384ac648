"""Ray's own killer of processes takes sessions when a node runs short of memory: nobody's request is lost."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from genai_ray import InferenceSession, ModelCache
from tests.caches import ending
from tests.nodes import Nodes
from tests.processes import is_alive, wait_until
from tests.rays import without_ray

pytestmark = pytest.mark.cluster

MODELS = ["websr-x2-s", "websr-x2-m", "websr-x2-l"]
BALLAST = "import time; held = b'x' * {num_bytes}; print('held', flush=True); time.sleep(600)"
SHARE = 0.2
"""Of the machine's memory: what is free above what is used now before Ray begins to kill."""


@pytest.fixture
def alone():
    """What the tests' own Ray holds would be free again while the test runs."""
    with without_ray():
        yield


@pytest.mark.usefixtures("alone")
def test_no_request_is_lost_when_ray_kills_for_memory(monkeypatch, frames):
    info = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    }
    used = 1 - info["MemAvailable"] / info["MemTotal"]
    if used > 0.6:
        pytest.skip("too little memory is free here to use up a fifth of it")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{used + SHARE:.3f}")
    with InferenceSession(MODELS[0]) as local:
        expected = local.infer(frames)
    over = threading.Event()

    def ask(session):
        answers = 0
        while not over.is_set():
            assert np.array_equal(session.infer(frames), expected)
            answers += 1
        return answers

    with Nodes(), ending(ModelCache(name="short of memory", deadline_s=120)) as cache, ThreadPoolExecutor(2) as pool:
        for model in MODELS:
            cache.load_model(model)
        pids = [entry.session["pid"] for entry in cache.status().models]
        asking = [pool.submit(ask, cache.get_session(MODELS[0])) for _ in range(2)]
        code = BALLAST.format(num_bytes=int((SHARE + 0.02) * info["MemTotal"]))
        ballast = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            try:
                wait_until(lambda: not all(is_alive(pid) for pid in pids))
                killed_s = time.monotonic()
            finally:
                ballast.kill()
                ballast.communicate()
            wait_until(lambda: cache.get_session(MODELS[0]).status()["pid"] > 0)
            wait_until(lambda: cache.memory_usage()[0] == sum(entry.bytes for entry in cache.status().models))
            assert time.monotonic() - killed_s < 60
        finally:
            over.set()  # else the pool waits for them for ever
        assert all(one.result(60) > 0 for one in asking)
