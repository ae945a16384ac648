"""An endpoint in a cluster whose cache others use: leases, pins, bytes that come back, classes and copies of a model's
options."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton

from genai_ray import ModelCache
from tests.nodes import LOGICAL_GPUS, Nodes
from tests.processes import DEADLINE_S, is_alive, wait_until
from tests.serve.conftest import serve
from tests.serve.models import add_number, count_up
from tests.serve.test_http import feed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
COUNT, LONG = 100, 300
"""Numbers that are counted for a second and for three, by one thread: others of this machine see what is at work
meanwhile."""
LINE = 14
"""Requests of different shapes, none of which is merged: each is a call of its own."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An endpoint that has joined a cluster with two logical GPUs, and its cache, from another process: this one."""
    folder = tmp_path_factory.mktemp("shared")
    add_number(folder / "one.onnx", 1)
    add_number(folder / "several.onnx", 2)
    count_up(folder / "slow.onnx")
    (folder / "later.onnx").symlink_to(folder / "slow.onnx")  # another name for the same session
    (folder / "several.serve.yaml").write_text("min_replicas: 2\nmax_replicas: 2\n")
    (folder / "slow.serve.yaml").write_text("request_class: online\n")
    (folder / "later.serve.yaml").write_text("request_class: batch\n")
    with Nodes() as nodes:
        nodes.add(num_gpus=2)
        with ModelCache(name="default", deadline_s=DEADLINE_S, options=LOGICAL_GPUS) as cache:
            address = nodes.cluster.address
            endpoint = serve(
                "--address", address, "--replicas", 1, "--model", "websr-x2-s", repository=folder, stays=True
            )
            yield endpoint, cache, folder
        endpoint.end()


def send(endpoint, path, body=b""):
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=DEADLINE_S)
    connection.request("POST", path, body)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def unload(endpoint, name):
    status, told = send(endpoint, f"/v2/repository/models/{name}/unload")
    return status, json.loads(told) if told else None


def infer(endpoint, name, **arrays):
    with triton.InferenceServerClient(endpoint.http, network_timeout=DEADLINE_S) as client:
        return client.infer(name, [feed(word, array, "FP32") for word, array in arrays.items()]).as_numpy("y").tolist()


def sessions(cache, path):
    return [entry for entry in cache.status().models if entry.model_id == str(path)]


def wait_for_queue(cache, path, least, asking):
    """Wait until so many requests of a model are at work; one that has failed is told, and so is that all have
    ended."""
    seen, since = [], time.monotonic()

    def is_long():
        ended = [one.result() for one in asking if one.done()]
        assert len(ended) < len(asking), (ended, seen)
        queue = sum(entry.queue for entry in sessions(cache, path))
        seen.append((round(time.monotonic() - since, 2), queue))
        return queue >= least

    wait_until(is_long)


def used_bytes(cache):
    """Bytes in use, which are those of the sessions that are there."""
    status = cache.status()
    assert status.used_bytes == sum(entry.bytes for entry in status.models)
    return status.used_bytes


def test_a_model_that_is_leased_or_pinned_is_not_unloaded(shared):
    endpoint, cache, folder = shared
    path = folder / "one.onnx"
    with cache.lease([path]):
        assert infer(endpoint, "one", x=np.ones(1, np.float32)) == [2.0]
        status, told = unload(endpoint, "one")
        assert (status, list(told)) == (409, ["error"])
        assert told["error"].startswith("one.onnx is leased by a job")  # no answer names folders of the server
        (leased,) = sessions(cache, path)
    cache.pin(path)
    status, told = unload(endpoint, "one")
    assert (status, list(told)) == (409, ["error"])
    assert told["error"].startswith("one.onnx is pinned")
    cache.unpin(path)
    (kept,) = sessions(cache, path)
    assert kept.name == leased.name
    assert infer(endpoint, "one", x=np.ones(1, np.float32)) == [2.0]
    assert unload(endpoint, "one") == (200, None)
    assert not sessions(cache, path)


def test_an_unload_frees_bytes_and_the_next_request_loads_again(shared):
    endpoint, cache, folder = shared
    path = folder / "slow.onnx"
    x, shift = np.ones(LONG, np.float32), np.ones(1, np.float32)
    wait_until(
        lambda: [entry.state for entry in sessions(cache, folder / "several.onnx")] == ["ready"] * 2
    )  # it is loaded unasked
    unload(endpoint, "slow")
    before, loads, pids = used_bytes(cache), cache.status().loads, []
    for _ in range(2):
        assert infer(endpoint, "slow", x=x[:1], shift=shift) == [10_001.0]
        (entry,) = sessions(cache, path)
        pids.append(entry.session["pid"])
        assert entry.bytes > 50_000_000
        assert used_bytes(cache) - before > entry.bytes / 2  # others grow a little meanwhile
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(infer, endpoint, "slow", x=x, shift=shift)
            wait_for_queue(cache, path, 1, [asking])
            assert unload(endpoint, "slow") == (200, None)  # when what is computed is done
            assert not sessions(cache, path)
            assert used_bytes(cache) - before < entry.bytes / 2
            wait_until(
                lambda: not is_alive(pids[-1])
            )  # on a node other than the cache's it is told dead some ms before it is
            assert asking.result() == [LONG * 10_000 + 1]
    assert pids[0] != pids[1]
    assert cache.status().loads == loads + 2


def test_a_model_is_on_as_many_devices_as_its_options_say(shared):
    endpoint, cache, folder = shared
    path = folder / "several.onnx"
    with triton.InferenceServerClient(endpoint.http, network_timeout=DEADLINE_S) as client:
        wait_until(
            lambda: len(client.get_inference_statistics("several")["model_stats"][0]["memory_usage"]) == 2,
            endpoint.process,
        )
        wait_until(lambda: all(entry.state == "ready" for entry in sessions(cache, path)), endpoint.process)
        assert client.is_model_ready("several")
        assert (
            client.get_inference_statistics("several")["model_stats"][0]["inference_count"] == 0
        )  # nobody has asked for it
    assert len({entry.placed_on for entry in sessions(cache, path)}) == 2
    status, told = unload(endpoint, "several")
    assert (status, "leased" in told["error"]) == (409, True)
    assert infer(endpoint, "several", x=np.ones(1, np.float32)) == [3.0]


def test_a_model_on_several_devices_is_replaced_on_all_of_them(shared):
    def states():
        return [(entry.state, entry.leased, entry.digest in old) for entry in sessions(cache, path)]

    endpoint, cache, folder = shared
    path, x = folder / "several.onnx", np.ones(1, np.float32)
    wait_until(lambda: [entry.state for entry in sessions(cache, path)] == ["ready"] * 2)
    old = {entry.digest for entry in sessions(cache, path)}
    add_number(path, 20)
    assert infer(endpoint, "several", x=x) == [21.0]
    wait_until(lambda: states() == [("ready", True, False)] * 2)
    assert infer(endpoint, "several", x=x) == [21.0]


def test_online_requests_overtake_batch_requests(shared):
    endpoint, cache, folder = shared
    with triton.InferenceServerClient(endpoint.http, network_timeout=DEADLINE_S) as client:
        classes = [
            client.get_model_config(name)["parameters"]["request_class"]["string_value"] for name in ("slow", "later")
        ]
    assert classes == ["online", "batch"]
    x, shift = np.ones(COUNT + LINE + 1, np.float32), np.ones(1, np.float32)
    finished, lock = [], threading.Lock()

    def ask(what, name, count):
        found = infer(endpoint, name, x=x[:count], shift=shift)
        with lock:
            finished.append(what)
        return found, [count * 10_000 + 1]

    infer(endpoint, "slow", x=x[:1], shift=shift)
    with ThreadPoolExecutor(LINE + 2) as pool:
        asking = [pool.submit(ask, "batch", "later", COUNT + number) for number in range(LINE)]
        wait_for_queue(cache, folder / "slow.onnx", LINE // 2 + 1, asking)
        asking += [
            pool.submit(ask, "last", "later", COUNT + LINE),
            pool.submit(ask, "online", "slow", COUNT + LINE + 1),
        ]
        answers = [one.result() for one in asking]
    assert finished.index("online") < LINE - 2, finished
    assert finished.index("last") > LINE - 2, finished
    for found, wanted in answers:
        assert found == wanted
