"""The small parts of the cache that need no Ray: remembered bytes, routes, devices, options, the order of a session's
runs."""

import functools
import json
import logging
import subprocess
import sys
import threading
from collections import Counter

import pytest

from genai_ray import SessionLimits, errors
from genai_ray.backends.gpu import count_gpus
from genai_ray.cluster.cache.measured_sizes import SizeMemory, shape_bucket, sizes_file
from genai_ray.cluster.cache.session_actors import fuller_gpus
from genai_ray.cluster.client.router import REFRESH_S, Route
from genai_ray.cluster.devices import CPU, Started, _probe_gpus, allowed_kinds, device_of
from genai_ray.cluster.messages import Acquired, LoadRequest, Replica, SessionRequest, key_of
from genai_ray.cluster.placement import Device
from genai_ray.cluster.served import HOT_QUEUE, Served, open_growing
from genai_ray.inspection import find_model
from genai_ray.session import predict_bytes
from genai_ray.session.runs import RunPool
from genai_ray.types import ModelBackend, ModelPrecision
from tests.processes import ROOT


def request(**options):
    return SessionRequest("websr-x2-s", ModelBackend.ONNX, ModelPrecision.FP32, **options)


def test_measured_bytes_replace_predictions_and_are_remembered(tmp_path):
    path = tmp_path / "folder" / "sizes.json"
    sizes = SizeMemory(path)
    sizes.remember_process(CPU, 70_000_000)
    assert sizes.expected("hash", request(), CPU, 30_000_000) == 100_000_000
    sizes.remember("hash", request(), CPU, 111)
    sizes.remember("hash", request(), CPU, 99)  # it differs from load to load, and the most counts
    again = SizeMemory(path)
    assert again.expected("hash", request(), CPU, 30_000_000) == 111
    assert again.expected("hash", request(), "L4", 30_000_000) > 30_000_000
    assert again.expected("other", request(), CPU, 30_000_000) == 100_000_000
    assert again.expected("hash", request(max_frame=(720, 1280)), CPU, 5) == 70_000_005
    assert list(path.parent.iterdir()) == [path]


def test_shapes_that_take_about_the_same_share_a_bucket():
    assert shape_bucket(request(max_frame=(700, 1270))) == shape_bucket(request(max_frame=(704, 1280)))
    assert shape_bucket(request(max_frame=(700, 1270))) != shape_bucket(request(max_frame=(705, 1280)))
    assert (
        len(
            {
                shape_bucket(request(**options))
                for options in ({}, {"max_batch": 2}, {"tile_size_px": 0}, {"floor_bytes": 5})
            }
        )
        == 4
    )


def test_a_memory_that_cannot_be_read_or_written_is_done_without(tmp_path, caplog):
    path = tmp_path / "sizes.json"
    for text in ("no json", json.dumps(["a", "list"]), json.dumps({"a": None})):
        path.write_text(text)
        with caplog.at_level(logging.WARNING, logger="genai_ray"):
            sizes = SizeMemory(path)
        assert "cannot be read" in caplog.records[-1].getMessage()
    sizes = SizeMemory(tmp_path / "sizes.json" / "below a file.json")
    sizes.remember("hash", request(), CPU, 111)
    assert sizes.expected("hash", request(), CPU, 5) == 111
    assert sizes_file().name == "session_bytes.json"


def test_clients_prefer_their_own_node_and_the_shorter_queue():
    near, far, long = Replica("near", 1, "here"), Replica("far", 2, "there"), Replica("long", 3, "there", queue=9)
    assert {Route(Acquired((near, far), 0, None), "here").pick() for _ in range(50)} == {("near", 1)}
    busy = Replica("near", 1, "here", queue=HOT_QUEUE)
    assert ("far", 2) in {Route(Acquired((busy, far), 0, None), "here").pick() for _ in range(200)}
    chosen = Counter(Route(Acquired((far, long), 0, None), "here").pick()[0] for _ in range(1000))
    assert chosen["far"] > 5 * chosen["long"] > 0
    route = Route(Acquired((near, far), 0, None), "here")
    route.forget("near")
    assert route.pick() == ("far", 2)
    assert not route.knows("near")
    route.update(None)
    route.update(Acquired((long,), 0, None))
    assert route.pick() == ("long", 3)
    route.forget("long")
    assert route.pick() is None


def test_a_route_is_asked_for_anew_once_in_a_while(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("genai_ray.cluster.client.router.time.monotonic", lambda: clock[0])
    route = Route(Acquired((Replica("a", 1, "here"),), 0, None), "here")
    assert not route.is_due()
    clock[0] += REFRESH_S
    assert [route.is_due(), route.is_due()] == [True, False]


def test_gpus_are_meant_wherever_there_is_one():
    cpu, gpu, other = (
        Device("n/cpu", "n", CPU, 1, 1),
        Device("n/gpu0", "n", "NVIDIA L4", 1, 1),
        Device("n/gpu1", "n", "NVIDIA A10G", 1, 1),
    )
    onnx = ModelBackend.ONNX
    assert allowed_kinds([cpu], "auto", onnx) == {CPU}
    assert allowed_kinds([cpu, gpu], "auto", onnx) == {"NVIDIA L4"}
    assert allowed_kinds([cpu, gpu, other], "cuda", onnx, ("l4", "H100")) == {"NVIDIA L4"}
    assert allowed_kinds([cpu, gpu], "cpu", onnx) == {CPU}
    assert allowed_kinds([cpu, gpu], "auto", ModelBackend.OPENVINO) == {CPU}
    with pytest.raises(errors.BackendUnavailableError, match="no node of this cluster has an NVIDIA GPU"):
        allowed_kinds([cpu], "cuda", onnx)
    with pytest.raises(errors.ConfigError, match="device 'tpu'"):
        allowed_kinds([cpu], "tpu", onnx)
    with pytest.raises(errors.ConfigError, match="device kind"):
        allowed_kinds([cpu], "cpu", onnx, (" ",))
    assert device_of(Started("n", None, 1, 1), [cpu, gpu]) == "n/cpu"
    assert device_of(Started("n", "0", 1, 1), [cpu, gpu]) == "n/gpu0"
    assert device_of(Started("n", "5", 1, 1), [cpu, gpu]) is None


def test_only_gpus_that_ray_would_take_before_are_filled():
    """Ray takes the fullest GPU of a node that has room; a node with one GPU, and memory, need no fillers."""
    gpus = [Device(f"n/gpu{number}", "n", "NVIDIA L4", 100, 100) for number in range(3)]
    assert fuller_gpus(gpus[0], 10, {gpus[0]: 100}) == []
    memory = Device("n/cpu", "n", CPU, 100, 100)
    assert fuller_gpus(memory, 10, {memory: 50}) == []
    assert fuller_gpus(gpus[0], 10, dict.fromkeys(gpus, 100)) == []
    assert fuller_gpus(gpus[2], 10, dict.fromkeys(gpus, 100)) == gpus[:2]
    free = dict(zip(gpus, (90, 40, 70), strict=True))
    assert fuller_gpus(gpus[0], 10, free) == [gpus[1], gpus[2]]
    assert fuller_gpus(gpus[0], 60, free) == [gpus[2]]  # the other has no room for it


def test_a_session_that_outgrows_its_bytes_asks_for_more_first():
    asked, tried = [], []

    def open_with(need, limit, served):
        def attempt():
            tried.append(served.reserved_bytes)
            if served.reserved_bytes < need:
                raise errors.ResourceExhaustedError("warm-up")
            return "session"

        return open_growing(served, attempt, lambda num_bytes: asked.append(num_bytes) or num_bytes <= limit)

    served = Served("a", LoadRequest(request()), 100)
    assert open_with(200, 10_000, served) == "session"
    assert (tried, asked, served.reserved_bytes) == ([100, 150, 225], [150, 225], 225)
    for need, limit, left in ((200, 150, 150), (10_000, 10_000, 505)):  # no room, and never enough
        served = Served("a", LoadRequest(request()), 100)
        with pytest.raises(errors.ResourceExhaustedError, match="warm-up"):
            open_with(need, limit, served)
        assert served.reserved_bytes == left


def test_gpus_that_only_ray_counts_take_no_sessions(caplog, monkeypatch):
    if count_gpus():
        pytest.skip("this machine has a GPU")
    for chosen in ("", "0,1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert _probe_gpus(2) == []
    assert caplog.text.count("Ray counts 2 GPUs on this node and NVML finds 0") == 2


def test_requests_with_kinds_or_alone_have_their_own_entries():
    keys = {
        key_of(one) for one in (request(), request(device_kinds=("L4",)), request(device="cpu"), request(_alone="x"))
    }
    assert len(keys) == 4
    assert key_of(request(max_frame=(4, 4))) == key_of(request())


def test_online_runs_overtake_those_that_wait():
    pool, done, gate, begun = RunPool(1), [], threading.Event(), threading.Event()

    def first():
        begun.set()
        gate.wait()

    pool.submit(first, is_online=False)
    begun.wait()
    for number in range(3):
        pool.submit(done.append, f"batch {number}", is_online=False)
    cancelled = pool.submit(done.append, "cancelled", is_online=True)
    assert cancelled.cancel()
    pool.submit(done.append, "online", is_online=True)
    failed = pool.submit(lambda: 1 / 0, is_online=False)
    gate.set()
    pool.close()
    pool.close()
    assert done == ["online", "batch 0", "batch 1", "batch 2"]
    with pytest.raises(ZeroDivisionError):
        failed.result()
    with pytest.raises(errors.InferenceError, match="closed"):
        pool.submit(first, is_online=True)


def memory_bytes_alone(model):
    """Return what a warm session adds to a process that does nothing else."""
    program = f"""
from genai_ray.session import InferenceSession, SessionLimits
with InferenceSession({model!r}, threads=2, limits=SessionLimits(max_frame=(144, 176))) as session:
    session.warmup()
    print(session.memory_bytes)
"""
    return int(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["websr-x2-s", "waifu2x-x2", "esrgan-2x"])
def test_bytes_are_predicted_from_the_file(model):
    spec, path = find_model(model)
    limits = SessionLimits(max_frame=(144, 176))
    predict = functools.partial(
        predict_bytes, path, spec, backend=ModelBackend.ONNX, precision=ModelPrecision.FP32, threads=2
    )
    predicted = predict(limits=limits)
    larger = predict(limits=SessionLimits(max_frame=(240, 256)))
    assert predicted < larger
    assert memory_bytes_alone(model) == pytest.approx(predicted, rel=0.4, abs=10_000_000)
