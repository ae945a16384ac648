"""The cache over several raylets: devices, exact reservations, replicas, nodes that come and go."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray._private import ray_constants
from ray.experimental import internal_kv

from genai_ray import InferenceSession, ModelCache, errors
from genai_ray.cluster import SessionRequest, open_session
from genai_ray.cluster.cache.loading import MAX_TRIES
from genai_ray.cluster.cache.session_actors import start_session
from genai_ray.cluster.cache.session_table import SessionRecord
from genai_ray.cluster.devices import CPU, GPU_UNITS
from genai_ray.cluster.messages import LoadRequest
from genai_ray.cluster.placement import Device
from genai_ray.cluster.runtime.replies import is_crash
from genai_ray.cluster.served import HOT_FOR_S, HOT_QUEUE
from genai_ray.enhance import EnhanceOptions, enhance_videos
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.cluster.truth import is_reported, is_true, report, wait_until_true
from tests.nodes import GPU_BYTES, LOGICAL_GPUS, NODE_BYTES
from tests.processes import wait_until
from tests.video.clips import write

pytestmark = pytest.mark.cluster

MODEL, OTHER, THIRD = "websr-x2-s", "websr-x2-m", "websr-x2-l"
REQUEST = SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32)


@pytest.fixture
def cache(nodes, request):
    with ending(ModelCache(name=request.node.name, options=LOGICAL_GPUS)) as cache:
        yield cache
    wait_until(
        lambda: (
            not [
                actor
                for actor in ray.util.list_named_actors(all_namespaces=True)
                if actor["name"].startswith("session:")
            ]
        )
    )
    nodes.clear()


@pytest.fixture
def expected(frames):
    with InferenceSession(MODEL) as local:
        return local.infer(frames)


def devices(cache):
    return {device.device: device for device in cache.status().devices}


def replicas(cache, model=MODEL):
    return [entry for entry in cache.status().models if entry.model_id == model and entry.state == "ready"]


def test_a_session_reserves_its_share_of_the_gpu(nodes, cache, frames, expected):
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    before = ray.available_resources()
    cache.load_model(MODEL, memory_bytes=300_000_001)
    (entry,) = replicas(cache)
    wait_until(lambda: before["GPU"] - ray.available_resources().get("GPU", 0) == pytest.approx(0.3001))
    assert ray.available_resources()["memory"] == before["memory"]
    device = devices(cache)[entry.placed_on]
    assert (device.kind, device.used_bytes, device.budget_bytes) == (
        "logical-gpu",
        300_000_001,
        int(0.95 * GPU_BYTES),
    )
    assert entry.session["gpu_ids"] == [entry.placed_on.rpartition("gpu")[2]]
    assert np.array_equal(cache.get_session(MODEL).infer(frames), expected)
    cache.load_model(OTHER, memory_bytes=500_000_000, device="cpu")
    (entry,) = replicas(cache, OTHER)
    assert devices(cache)[entry.placed_on].kind == "cpu"
    wait_until(lambda: before["memory"] - ray.available_resources()["memory"] == 500_000_000)
    with pytest.raises(errors.ResourceExhaustedError, match=r"2000000000 bytes.*950000000"):
        cache.load_model(THIRD, memory_bytes=2_000_000_000)


def test_a_process_on_a_logical_gpu_serves_the_next_session(nodes, cache, frames, expected):
    """What Ray reserved of the GPU stays what the ledger holds, whoever has the process."""
    nodes.add(num_gpus=1)
    wait_until(lambda: len(devices(cache)) == 3)

    def load(*models):
        for model in models:
            cache.load_model(model, memory_bytes=400_000_000)

    def is_used_again():
        load(OTHER, THIRD, MODEL)
        return cache.status().reuses > 0

    wait_until(is_used_again)
    (entry,) = replicas(cache)
    assert devices(cache)[entry.placed_on].kind == "logical-gpu"
    assert np.array_equal(cache.get_session(MODEL).infer(frames), expected)
    assert entry.session["gpu_ids"] == [entry.placed_on.rpartition("gpu")[2]]
    wait_until(lambda: is_true(cache))


def test_sessions_take_at_most_nine_tenths_of_a_nodes_memory(nodes):
    most = int(0.9 * NODE_BYTES)
    with ending(ModelCache(100 * NODE_BYTES, name="large")) as cache:
        wait_until(lambda: len(devices(cache)) == 1)
        (device,) = devices(cache).values()
        assert device.budget_bytes == most < ray.cluster_resources()["memory"] == NODE_BYTES
        with pytest.raises(errors.ResourceExhaustedError, match=f"{most + 1} bytes.*{most} bytes, the most"):
            cache.load_model(MODEL, memory_bytes=most + 1)
        for model in (MODEL, OTHER, THIRD):
            cache.load_model(model, memory_bytes=most // 2)
        assert cache.loaded_models() == [OTHER, THIRD]
        assert cache.memory_usage()[0] == most
        cache.evict(OTHER)
        cache.load_model(MODEL, memory_bytes=most // 2 + 1)  # one byte more than is left
        assert cache.loaded_models() == [MODEL]


def test_a_gpu_with_less_room_than_known_only_delays_a_load(nodes, cache):
    """So it is for a moment after the death of a session: Ray holds its share still, and goes elsewhere than it is
    meant to."""
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    holder = Holder.options(num_gpus=0.6).remote()
    assert ray.get(holder.gpus.remote(), timeout=60) == [0]
    cache.load_model(MODEL, memory_bytes=300_000_000)
    names = set()

    def num_tries():
        names.update(entry.name for entry in cache.status().models if entry.model_id == OTHER)
        return len(names)

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(cache.load_model, OTHER, memory_bytes=680_000_000)
        wait_until(lambda: num_tries() > MAX_TRIES + 1)
        ray.kill(holder)
        load.result(timeout=120)
    places = {entry.model_id: entry.placed_on.rpartition("/")[2] for entry in cache.status().models}
    assert places == {MODEL: "gpu0", OTHER: "gpu1"}


@pytest.mark.slow
def test_a_gpu_that_another_program_keeps_is_told_of(nodes):
    nodes.add(num_gpus=2)
    with ending(ModelCache(name="told", options=replace(LOGICAL_GPUS, load_within_s=5.0))) as cache:
        wait_until(lambda: len(devices(cache)) == 4)
        holder = Holder.options(num_gpus=0.6).remote()
        assert ray.get(holder.gpus.remote(), timeout=60) == [0]
        cache.load_model(MODEL, memory_bytes=300_000_000)
        with pytest.raises(
            errors.ResourceExhaustedError,
            match=r"gpu0'\] were free; allowed: .* See whether another program holds shares",
        ):
            cache.load_model(OTHER, memory_bytes=680_000_000)
        ray.kill(holder)
        assert cache.loaded_models() == [MODEL]
    nodes.clear()


@ray.remote(num_cpus=0)
class Holder:
    """Another program's actor."""

    def gpus(self):
        return ray.get_gpu_ids()


def loads_at_once(status):
    """Return the most loads that a device had at the same time, by device: each from its start to its end."""
    steps = defaultdict(list)
    for entry in status.models:
        end_s = -entry.age_s
        steps[entry.placed_on] += [(end_s - entry.load_s + 0.005, 1), (end_s, -1)]  # both are rounded to 1 ms
    return {device: max(itertools.accumulate(step for _, step in sorted(found))) for device, found in steps.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "most"),
    [("cpu", ("c", "p", "u", "cp", "pu", "cpu"), 2), ("logical-gpu", ("l", "o", "g", "i", "a", "gp"), 1)],
)
def test_few_sessions_are_loaded_at_once_and_the_others_wait(nodes, cache, kind, words, most):
    """Two on a node's CPU, one on a GPU, of six that are asked for together; a load takes longer than the start of the
    next process."""
    if kind != "cpu":
        nodes.add(num_gpus=2)
        wait_until(lambda: len(devices(cache)) == 4)
    wants = [
        SessionRequest(
            "waifu2x-x2",
            ModelBackend.ONNX,
            ModelPrecision.FP32,
            "auto",
            250_000_000,
            (240, 320),
            1,
            device_kinds=(word,),
        )
        for word in words
    ]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(cache.load_model, wants))
    status = cache.status()
    assert len(status.models) == status.loads == 6
    kinds = {name: device.kind for name, device in devices(cache).items()}
    assert {kinds[entry.placed_on] for entry in status.models} == {kind}
    assert max(loads_at_once(status).values()) <= most


class Starter:
    """An actor in the cache's place: sessions ask whoever started them for more."""

    def start(self, node, kind):
        record = SessionRecord(LoadRequest(SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32)))
        record.reserved_bytes = record.held_bytes = GPU_BYTES
        device = Device("any", node, kind, GPU_BYTES, GPU_BYTES, GPU_BYTES // GPU_UNITS)
        start_session(record, "of nobody", device)
        return record.handle


def test_a_process_sees_only_the_gpu_that_it_was_given(nodes, cache):
    nodes.add(num_gpus=1)
    wait_until(lambda: len(devices(cache)) == 3)
    cache.load_model(MODEL)
    cache.load_model(OTHER, device="cpu")
    seen = {
        entry.model_id: (entry.session["gpu_ids"], entry.session["visible_gpus"]) for entry in cache.status().models
    }
    assert seen == {
        MODEL: (["0"], ""),
        OTHER: ([], ""),
    }  # Ray only counts a logical GPU, so its sessions must not see a real one
    node = nodes.add(num_gpus=2).node_id  # what Ray calls a GPU here may be a real one
    starter = ray.remote(Starter).options(num_cpus=0).remote()
    handles, found = [], []
    try:
        for kind in (CPU, "any GPU", "any GPU"):
            handles.append(ray.get(starter.start.remote(node, kind), timeout=60))
            name = ray.get(handles[-1].describe.remote(), timeout=60).name
            status = ray.get(handles[-1].status.remote(name), timeout=60)
            found.append((status["gpu_ids"], status["visible_gpus"]))
    finally:
        for handle in (*handles, starter):
            ray.kill(handle)
    assert found == [([], ""), (["0"], "0"), (["1"], "1")]


def test_models_go_where_there_is_room_and_the_oldest_victim_is(nodes, cache, frames):
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    for model in (MODEL, OTHER):
        cache.load_model(model, memory_bytes=600_000_000)
    places = {entry.model_id: entry.placed_on for entry in cache.status().models}
    assert places[MODEL] != places[OTHER]
    cache.get_session(MODEL).infer(frames)
    cache.load_model(THIRD, memory_bytes=600_000_000)
    assert cache.loaded_models() == [MODEL, THIRD]
    assert replicas(cache, THIRD)[0].placed_on == places[OTHER]


@contextlib.contextmanager
def keeping_busy(cache, request):
    """Ask from 16 clients until the block ends; gives what each is left with."""
    big, over = np.zeros((4, 240, 320, 3), np.uint8), threading.Event()
    clients = [ModelCache(name=cache.name) for _ in range(16)]

    def ask(client):
        session = open_session(client, request)
        while not over.is_set():
            session.infer(big)
        return session

    with ThreadPoolExecutor(16) as pool:
        asking = [pool.submit(ask, client) for client in clients]
        try:
            yield asking
        finally:
            over.set()


def test_a_hot_model_gets_a_replica_and_loses_it_when_idle(nodes, cache, frames, expected):
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    with keeping_busy(cache, REQUEST) as asking:
        wait_until(lambda: len(replicas(cache)) == 2)
        wait_until(lambda: all(entry.queue > 0 for entry in replicas(cache)))
        assert len({entry.placed_on for entry in replicas(cache)}) == 2
    for one in asking:
        assert np.array_equal(one.result().infer(frames), expected)
    wait_until(lambda: cache.status().evictions == 1)
    assert len(replicas(cache)) == 1


@contextlib.contextmanager
def killing(node):
    """Kill every session process that starts on a node; gives their ids."""
    over, hit = threading.Event(), []

    def watch():
        while not over.wait(0.01):
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["name"].startswith("session:"):
                    with contextlib.suppress(ray.exceptions.RayError, ValueError, ProcessLookupError):
                        started = ray.get(ray.get_actor(**actor).describe.remote(), timeout=5).started
                        if started.node == node and started.pid not in hit:
                            hit.append(started.pid)
                            os.kill(started.pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join()


def test_a_failed_replica_does_not_make_its_model_failing(nodes, cache, frames, expected):
    cache.load_model(REQUEST)
    (home,) = {device.node for device in devices(cache).values()}
    bad = nodes.add().node_id
    with killing(bad) as hit, cache.lease([REQUEST], replicas=None) as lease:
        wait_until(lambda: cache.status().failures)
        assert cache.status().failing == ()
        good = nodes.add().node_id
        wait_until(
            lambda: (
                {devices(cache)[entry.placed_on].node for entry in replicas(cache) if entry.state == "ready"}
                == {home, good}
            )
        )
        assert len(hit) == 1
        for entry in replicas(cache):
            os.kill(entry.session["pid"], signal.SIGKILL)
        assert np.array_equal(lease.sessions[0].infer(frames), expected)


def test_a_hot_model_gets_no_more_replicas_than_it_may_have(nodes, cache):
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    seen = []

    def has_been_hot():
        entries = cache.status().models
        assert len(entries) <= 1, "a replica"
        if entries and entries[0].queue >= HOT_QUEUE:
            seen.append(time.monotonic())
        else:
            seen.clear()
        return bool(seen) and seen[-1] - seen[0] > 4 * HOT_FOR_S

    with keeping_busy(cache, replace(REQUEST, max_replicas=1)):
        wait_until(has_been_hot)
        cache.load_model(replace(REQUEST, max_replicas=2))  # whoever says it last is obeyed, also of what is loaded
        wait_until(lambda: len(replicas(cache)) == 2)


def test_a_hot_model_gets_its_replicas_per_device(nodes, frames, expected):
    nodes.add(num_gpus=1)
    with ending(ModelCache(name="dense", options=replace(LOGICAL_GPUS, replicas_per_device=2))) as cache:
        wait_until(lambda: len(devices(cache)) == 3)
        request = replace(REQUEST, device_kinds=("logical",))
        with keeping_busy(cache, request) as asking:
            wait_until(lambda: len(replicas(cache)) == 2)
            wait_until(lambda: all(entry.queue > 0 for entry in replicas(cache)))
            assert len({entry.placed_on for entry in replicas(cache)}) == 1
            nodes.add(num_gpus=1)
            wait_until(lambda: len(replicas(cache)) == 3)
            assert len({entry.placed_on for entry in replicas(cache)}) == 2
        for one in asking:
            assert np.array_equal(one.result().infer(frames), expected)
        wait_until(lambda: len(replicas(cache)) == 1)
    nodes.clear()


def test_a_job_is_on_every_device_and_takes_those_that_come(nodes, cache):
    nodes.add(num_gpus=1)
    wait_until(lambda: len(devices(cache)) == 3)
    with cache.lease([MODEL], replicas=None, device_kinds=["logical"]) as lease:
        wait_until(lambda: len(replicas(cache)) == 1)
        nodes.add(num_gpus=2)
        wait_until(lambda: len(replicas(cache)) == 3)
        assert len({entry.placed_on for entry in replicas(cache)}) == 3
        assert all(entry.leased for entry in replicas(cache))
        assert lease.sessions[0].infer(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 64, 64, 3)
    assert not any(entry.leased for entry in replicas(cache))


def test_a_video_is_enhanced_on_every_device_of_the_cluster(nodes, tmp_path):
    nodes.add(num_gpus=1)
    nodes.add(num_gpus=1)
    source = write(tmp_path / "source.mp4", tracks=0, options={"g": "4"}, pts=list(range(160)))  # 40 segments
    with ending(ModelCache(options=LOGICAL_GPUS)) as cache:
        wait_until(lambda: len(devices(cache)) == 5)
        results = []
        for name, count in (("one", 1), ("all", None)):
            options = EnhanceOptions(replicas=count, device_kinds=("logical",), segment_frames=4)
            with cache.lease([MODEL], replicas=count, device_kinds=["logical"]):
                wait_until(lambda count=count: len(replicas(cache)) == (count or 2))
                report = enhance_videos(source, tmp_path / f"{name}.mp4", models=MODEL, options=options)
            results.append((report.frames, (tmp_path / f"{name}.mp4").read_bytes()))
        assert results[0] == results[1]
        assert len({entry.placed_on for entry in replicas(cache)}) == 2
        assert all(entry.hits > 0 for entry in replicas(cache))
    nodes.clear()


def test_the_report_names_the_unlike_nodes_of_a_job(nodes, tmp_path):
    """A head without GPUs, and a node with one: which of them computed changes no byte."""
    nodes.add(num_gpus=1)
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(12):
        write(clips / f"{number:02d}.mp4", tracks=0, pts=list(range(20 + number)))
    found = {}
    with ending(ModelCache(options=LOGICAL_GPUS)) as cache:
        wait_until(lambda: len(devices(cache)) == 3)
        for name, words, count in (("cpu", ("cpu",), 1), ("all", ("cpu", "logical"), None)):
            out = tmp_path / name
            out.mkdir()
            options = EnhanceOptions(replicas=count, device_kinds=words, segment_frames=8)
            with cache.lease([MODEL], replicas=count, device_kinds=words):
                wait_until(
                    lambda words=words: (
                        len({devices(cache)[entry.placed_on].kind for entry in replicas(cache)}) >= len(words)
                    )
                )
                report = enhance_videos(clips, out, models=MODEL, options=options)
            assert (report.clips, report.clips_failed) == (12, 0)
            rows = pq.read_table(out / "results.parquet").to_pylist()
            found[name] = (
                [(out / f"{number:02d}.mp4").read_bytes() for number in range(12)],
                report.models[0].device_kind,
            )
            assert {kind for row in rows for kind in row["device_kind"].split("+")} <= set(found[name][1].split("+"))
    assert found["cpu"][0] == found["all"][0]
    assert (found["cpu"][1], found["all"][1]) == ("cpu", "cpu+logical-gpu")
    nodes.clear()


@contextlib.contextmanager
def in_use(cache, frames, expected, clients):
    """Ask from several threads until the block ends; every answer is right, and each thread has some."""
    over = threading.Event()

    def ask():
        session, answers = cache.get_session(MODEL), 0
        while not over.is_set():
            assert np.array_equal(session.infer(frames), expected)
            answers += 1
        return answers

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield
        finally:
            over.set()
        assert all(one.result(60) > 0 for one in asking)


def test_a_node_that_dies_takes_nothing_with_it_but_its_sessions(nodes, cache, frames, expected):
    first, second = nodes.add(num_gpus=1), nodes.add(num_gpus=1)
    wait_until(lambda: len(devices(cache)) == 5)
    cache.get_session(MODEL)
    node = devices(cache)[replicas(cache)[0].placed_on].node
    doomed = first if first.node_id == node else second
    actor = ray.get_actor(replicas(cache)[0].name, namespace="genai_ray")
    with in_use(cache, frames, expected, 4):
        nodes.remove(doomed)
        wait_until_true(cache, lambda: node not in {found["NodeID"] for found in ray.nodes() if found["Alive"]})
        cache.get_session(MODEL).infer(frames)
    assert node not in {device.node for device in cache.status().devices}
    with pytest.raises(ray.exceptions.ActorDiedError) as told:
        ray.get(actor.describe.remote())
    assert not is_crash(told.value)
    crashing = ray.get_actor(replicas(cache)[0].name, namespace="genai_ray")
    os.kill(replicas(cache)[0].session["pid"], signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError) as told:
        wait_until(lambda: ray.get(crashing.describe.remote()) is None)
    assert is_crash(told.value)


def test_deaths_of_sessions_and_cache_are_known_within_seconds(nodes, cache, frames, expected):
    nodes.add(num_gpus=2)
    wait_until(lambda: len(devices(cache)) == 4)
    cache.load_model(OTHER, device="cpu", memory_bytes=300_000_000)
    with in_use(cache, frames, expected, 2):
        wait_until(lambda: replicas(cache))
        for name in (replicas(cache)[0].name, replicas(cache, OTHER)[0].name, f"cache:{cache.name}"):
            before = report(name)
            os.kill(before["Pid"], signal.SIGKILL)
            wait_until_true(cache, lambda name=name, before=before: is_reported(name, before["NumRestarts"]))
            wait_until(lambda: replicas(cache))
    assert [len(replicas(cache, model)) for model in (MODEL, OTHER)] == [1, 0]


def demands():
    """What the autoscaler would read: the resources that were asked for."""
    found = internal_kv._internal_kv_get(ray_constants.AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    return json.loads(found) if found else []


def test_a_growing_cluster_is_asked_for_room(nodes, frames, expected):
    with ending(ModelCache(name="growing", options=replace(LOGICAL_GPUS, can_grow=True))) as cache:
        wait_until(lambda: len(devices(cache)) == 1)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(
                ModelCache(name="growing", deadline_s=8.0).load_model, OTHER, memory_bytes=2_000_000_000
            )
            wait_until(lambda: demands() == [{"memory": 2e9}])  # there is no GPU, nor can one come
            with pytest.raises(errors.ResourceExhaustedError):
                asking.result(60)
        wait_until(lambda: demands() == [])
        session = open_session(cache, SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32, device="cuda"))
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(session.infer, frames)
            wait_until(lambda: demands() == [{"GPU": 1.0}])
            assert "no node of this cluster has an NVIDIA GPU" in cache.status().waiting[0].reason
            nodes.add(num_gpus=1)
            assert np.array_equal(asking.result(60), expected)
        wait_until(lambda: demands() == [])
        hasty = ModelCache(name="growing", deadline_s=2.0)
        with pytest.raises(errors.ResourceExhaustedError, match=r"2000000000 bytes.*950000000"):
            hasty.load_model(OTHER, memory_bytes=2_000_000_000)
    nodes.clear()


def test_a_cluster_that_shrinks_and_grows_again(nodes, cache, frames, expected):
    wait_until(lambda: len(devices(cache)) == 1)
    assert cache.memory_usage()[1] == int(0.6 * NODE_BYTES)
    node = nodes.add(num_gpus=1)
    wait_until(lambda: cache.memory_usage()[1] == 2 * int(0.6 * NODE_BYTES) + int(0.95 * GPU_BYTES))
    session = open_session(cache, SessionRequest(MODEL, ModelBackend.ONNX, ModelPrecision.FP32, device="cuda"))
    assert np.array_equal(session.infer(frames), expected)
    nodes.remove(node)
    wait_until(lambda: cache.memory_usage() == (0, int(0.6 * NODE_BYTES)))
    with pytest.raises(errors.BackendUnavailableError, match="no node of this cluster has an NVIDIA GPU"):
        session.infer(frames)
    nodes.add(num_gpus=1)
    wait_until(lambda: len(devices(cache)) == 3)
    assert np.array_equal(session.infer(frames), expected)
