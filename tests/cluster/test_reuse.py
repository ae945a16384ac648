"""A process serves one session after the other: whose frames come out, what it holds, and when it is ended instead."""

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import ray
from onnx import helper

from genai_ray import CacheOptions, InferenceSession, ModelCache, errors
from genai_ray.catalog import ModelCatalog, dump_spec
from genai_ray.cluster import SessionRequest, open_session, served, session_actor
from genai_ray.cluster.client.connection import cache_names
from genai_ray.cluster.messages import Caller, LoadRequest, RetentionInfo, Retired
from genai_ray.inspection import find_model
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.cluster.truth import held_by_ray, is_true
from tests.processes import is_alive, rss_anon, wait_until

pytestmark = pytest.mark.cluster

MODELS = ["websr-x2-s", "websr-x2-m", "websr-x2-l"]
SHARE = 400_000_000
"""Two sessions of this size have room."""
SLOW_TO_LOAD = SessionRequest(
    MODELS[2], ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=SHARE, max_frame=(720, 1280), max_batch=1
)
"""Its warm-up computes for so long that a signal arrives while it loads."""


@pytest.fixture(scope="module", autouse=True)
def _alone(ray_session):
    """End the caches that other files have left in the tests' Ray: what Ray holds is compared with one cache."""
    for name in cache_names():
        ModelCache(name=name).shutdown()
    wait_until(lambda: held_by_ray() == pytest.approx((0, 0), abs=1e5))


@pytest.fixture
def cache(ray_session, request):
    options = CacheOptions(min_stay_s=0.0)
    with ending(ModelCache(1_000_000_000, name=request.node.name, options=options)) as cache:
        yield cache


@pytest.fixture
def expected(frames):
    """The frames of a fresh session of each model, which is in no cache."""
    found = {}
    for model in MODELS:
        with InferenceSession(model) as local:
            found[model] = local.infer(frames)
    assert not np.array_equal(found[MODELS[0]], found[MODELS[1]])
    return found


def entry_of(cache, model):
    return next(entry for entry in cache.status().models if entry.model_id == model)


def load(cache, *models):
    for model in models:
        cache.load_model(model, memory_bytes=SHARE)


def session_of(cache, model):
    return open_session(cache, SessionRequest(model, ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=SHARE))


def take_over(cache, **options):
    """Load models in turn until one takes over the process of another; return both, as the cache sees them."""
    for number in range(12):
        before = cache.status()
        cache.load_model(MODELS[number % 3], **options)
        after = cache.status()
        if after.reuses > before.reuses:
            entry = entry_of(cache, MODELS[number % 3])
            return next(old for old in before.models if old.actor == entry.actor), entry
    return pytest.fail("no load has taken over a process")


def test_a_process_serves_the_next_session_with_the_same_bits(cache, frames, expected):
    load(cache, *MODELS[:2])
    stale = session_of(cache, MODELS[0])
    assert np.array_equal(stale.infer(frames), expected[MODELS[0]])
    cache.get_session(MODELS[1]).infer(frames)
    first = entry_of(cache, MODELS[0])
    load(cache, MODELS[2])
    third = entry_of(cache, MODELS[2])
    assert (third.session["pid"], third.actor) == (first.session["pid"], first.actor)
    assert third.name != first.name
    assert third.predicted_bytes == first.predicted_bytes >= third.bytes >= SHARE
    assert cache.loaded_models() == [MODELS[1], MODELS[2]]
    assert np.array_equal(session_of(cache, MODELS[2]).infer(frames), expected[MODELS[2]])
    assert np.array_equal(stale.infer(frames), expected[MODELS[0]])
    assert stale.status()["model_id"] == MODELS[0]
    status = cache.status()
    assert (status.loads, status.reuses, status.evictions, status.failures) == (4, 2, 2, 0)


def test_openvino_has_processes_of_its_own(cache, frames):
    load(cache, *MODELS[:2])
    cache.load_model(MODELS[2], ModelBackend.OPENVINO, memory_bytes=SHARE)
    session = cache.get_session(MODELS[2], ModelBackend.OPENVINO, ModelPrecision.FP32)
    with InferenceSession(MODELS[2], backend=ModelBackend.OPENVINO) as local:
        assert np.array_equal(session.infer(frames), local.infer(frames))
    session_of(cache, MODELS[1]).touch()
    load(cache, MODELS[0])
    assert set(cache.loaded_models()) == set(MODELS[:2])
    assert (cache.status().evictions, cache.status().reuses) == (2, 0)


def test_the_ledger_is_true_when_a_process_is_used_again(cache):
    """The second session takes less than Ray holds for its process."""
    load(cache, *MODELS[:2])
    old, new = take_over(cache, memory_bytes=SHARE * 3 // 4)
    assert old.predicted_bytes == new.predicted_bytes == SHARE
    assert SHARE * 3 // 4 <= new.bytes < SHARE
    wait_until(lambda: is_true(cache))
    cache.evict(new.model_id)
    wait_until(lambda: is_true(cache))


def test_no_client_ever_gets_the_frames_of_another_model(cache, frames, expected):
    """Three clients, each of a model of its own, in room for two: sessions come and go under their requests."""
    load(cache, MODELS[0])
    over, beyond = threading.Event(), []

    def look():
        while not over.is_set():
            status = cache.status()
            held = sum(entry.predicted_bytes for entry in status.models)
            taken = sum(entry.bytes for entry in status.models)
            if not taken == status.used_bytes <= status.budget_bytes or held_by_ray()[0] > status.budget_bytes:
                beyond.append((taken, held, held_by_ray(), status))

    def ask(model):
        client = ModelCache(name=cache.name)
        session = session_of(client, model)
        for _ in range(6):
            assert np.array_equal(session.infer(frames), expected[model])

    with ThreadPoolExecutor(4) as pool:
        looking = pool.submit(look)
        try:
            list(pool.map(ask, MODELS))
        finally:
            over.set()
        looking.result()
    assert beyond == []
    status = cache.status()
    assert status.reuses > 0
    assert status.failures == 0
    wait_until(lambda: is_true(cache))


def test_memory_is_given_back_before_the_next_session_loads(cache, frames):
    load(cache, MODELS[0])
    small = rss_anon(entry_of(cache, MODELS[0]).session["pid"])
    cache.evict(MODELS[0])
    cache.load_model(SLOW_TO_LOAD)
    load(cache, MODELS[1])
    large = entry_of(cache, MODELS[2]).session["pid"]
    peak = rss_anon(large)
    load(cache, MODELS[0])
    assert entry_of(cache, MODELS[0]).session["pid"] == large
    process = cache.status().process_bytes["cpu"]
    kept = session_actor.KEPT_SHARE * process + served.GROWTH_BYTES
    assert rss_anon(large) < small + kept + 10_000_000 < peak


@pytest.fixture
def reshaping(tmp_path) -> Path:
    """A model in which the runtime fails for inputs of other than two numbers."""
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2, 1])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 1])
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "reshaping", [x], [y], [shape])
    path = tmp_path / "reshaping.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path)
    return path


def test_a_process_whose_runtime_has_failed_is_ended(cache, reshaping):
    load(cache, reshaping, MODELS[1])
    session = session_of(cache, str(reshaping))
    assert session.run({"x": np.ones(2, np.float32)})["y"].shape == (2, 1)
    with pytest.raises(errors.InferenceError):
        session.run({"x": np.ones(3, np.float32)})
    pid = session.status()["pid"]
    session_of(cache, MODELS[1]).touch()
    load(cache, MODELS[0])
    assert entry_of(cache, MODELS[0]).session["pid"] != pid
    assert not is_alive(pid)
    assert cache.status().reuses == 0


def test_a_used_process_that_dies_loading_loses_no_request(cache, frames, expected):
    load(cache, *MODELS[:2])
    first = entry_of(cache, MODELS[0])
    actor = ray.get_actor(first.actor, namespace="genai_ray")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.load_model, SLOW_TO_LOAD)
        wait_until(lambda: ray.get(actor.describe.remote()).name != first.name)
        os.kill(first.session["pid"], signal.SIGKILL)
        loading.result(120)
    assert entry_of(cache, MODELS[2]).session["pid"] != first.session["pid"]
    assert np.array_equal(cache.get_session(MODELS[2]).infer(frames), expected[MODELS[2]])
    status = cache.status()
    assert (status.reuses, status.failures, status.failing) == (0, 0, ())


def test_a_cache_that_dies_finds_what_the_process_serves(cache, frames, expected):
    load(cache, *MODELS[:2])
    first = entry_of(cache, MODELS[0])
    actor = ray.get_actor(first.actor, namespace="genai_ray")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.load_model, SLOW_TO_LOAD)
        wait_until(lambda: ray.get(actor.describe.remote()).name != first.name)
        os.kill(cache.status().pid, signal.SIGKILL)
        loading.result(120)
    assert entry_of(cache, MODELS[2]).actor == first.actor
    assert {entry.model_id for entry in cache.status().models} == set(MODELS[1:])
    assert np.array_equal(cache.get_session(MODELS[2]).infer(frames), expected[MODELS[2]])


def test_a_process_that_does_not_answer_is_ended(cache, frames, expected):
    load(cache, *MODELS[:2])
    pid = entry_of(cache, MODELS[0]).session["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        load(cache, MODELS[2])
        assert np.array_equal(cache.get_session(MODELS[2]).infer(frames), expected[MODELS[2]])
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)
    assert cache.status().reuses == 0


class FewLoads(session_actor.SessionActor):
    """A process that may load three sessions."""

    def __init__(self, *given):
        session_actor.MAX_LOADS = 3
        super().__init__(*given)


SMALL = LoadRequest(SessionRequest(MODELS[0], ModelBackend.ONNX, ModelPrecision.FP32))


@pytest.fixture
def start(ray_session):
    """Starts the process of a session that belongs to no cache."""
    actors = []

    def start(kind=session_actor.SessionActor, asked=SMALL):
        remote = ray.remote(concurrency_groups=session_actor.CONCURRENCY_GROUPS, num_cpus=0)(kind)
        actors.append(remote.remote("no cache", asked, 0, 0, None))
        return actors[-1], asked

    yield start
    for actor in actors:
        ray.kill(actor)


def close(actor):
    """Retire and close what a process serves; return the bytes that it keeps, if it may serve another session."""
    name = ray.get(actor.describe.remote()).name
    assert ray.get(actor.try_retire.remote(name, None))
    return ray.get(actor.close.remote(name))


def test_a_process_that_has_loaded_often_serves_no_other_session(start):
    actor, asked = start(kind=FewLoads)
    for number in range(3):
        ray.get(actor.load.remote())
        assert (close(actor) is not None) == (number < 2)
        ray.get(actor.reopen.remote(f"session {number}", asked, 0, 0))


class Hoarding(session_actor.SessionActor):
    """A process in which something keeps 20 MB whatever is closed, as a library of a runtime may."""

    def __init__(self, *given):
        super().__init__(*given)
        self._hoard = np.ones(20_000_000, np.uint8)


def test_a_process_that_holds_memory_serves_no_other_session(start):
    for kind in (session_actor.SessionActor, Hoarding):
        actor, _ = start(kind=kind)
        ray.get(actor.load.remote())
        kept = close(actor)
        assert (kept is not None) == (kind is not Hoarding)
        found = ray.get(actor.describe.remote())
        assert kept in (None, found.measured_bytes)
        assert found.measured_bytes == pytest.approx(rss_anon(found.started.pid), abs=5_000_000)


def test_only_what_says_nothing_of_the_process_may_fail_in_it(start, frames):
    for window, is_fit in (((0, 9), True), (("first", "last"), False)):  # a bug of ours is as good as any
        actor, _ = start()
        ray.get(actor.load.remote())
        caller = Caller(ray.get(actor.describe.remote()).name)
        with pytest.raises(errors.InvalidInputError):
            ray.get(actor.infer.remote(caller, frames[..., :2]))
        if is_fit:
            ray.get(actor.infer.remote(caller, frames, None, window))
        else:
            with pytest.raises(TypeError):
                ray.get(actor.infer.remote(caller, frames, None, window))
        assert (close(actor) is not None) == is_fit


def test_a_frame_too_large_says_nothing_of_the_process(start):
    request = SessionRequest(
        MODELS[0], ModelBackend.ONNX, ModelPrecision.FP32, floor_bytes=SHARE, max_frame=(64, 64), tile_size_px=0
    )
    actor, _ = start(asked=LoadRequest(request))
    ray.get(actor.load.remote())
    caller = Caller(ray.get(actor.describe.remote()).name)
    with pytest.raises(errors.ResourceExhaustedError, match="cannot be tiled"):
        ray.get(actor.infer.remote(caller, np.zeros((2160, 3840, 3), np.uint8)))
    assert close(actor) is not None


@pytest.mark.slow
def test_what_is_reserved_covers_a_process_used_often(ray_session, tmp_path, frames):
    spec, file = find_model(MODELS[2])
    paths = [str(tmp_path / f"{name}.onnx") for name in "ab"]
    for path in paths:
        shutil.copyfile(file, path)
        Path(path).with_suffix(".yaml").write_text(dump_spec(spec))
    with ending(ModelCache(1_000_000_000, name="one")) as cache:
        cache.load_model(paths[0])
        one, _ = cache.memory_usage()
    with ending(ModelCache(3 * one // 2, name="again", options=CacheOptions(min_stay_s=0.0))) as cache:
        pids = set()
        for number in range(16):
            session = cache.get_session(paths[number % 2])
            session.infer(frames)
            pid = session.status()["pid"]
            pids.add(pid)
            wait_until(lambda path=paths[number % 2], pid=pid: rss_anon(pid) <= entry_of(cache, path).bytes)
        assert cache.status().reuses >= 8  # a process that has grown too much is ended
        assert len(pids) <= 16 - cache.status().reuses


def test_a_spec_that_was_edited_is_read_again(start, frames, tmp_path, monkeypatch):
    class OwnModels(session_actor.SessionActor):
        def __init__(self, *given):
            os.environ["GENAI_RAY_MODELS"] = str(tmp_path)
            super().__init__(*given)

    monkeypatch.setenv("GENAI_RAY_MODELS", str(tmp_path))
    spec, file = find_model(MODELS[0])
    mine = spec.model_copy(update={"model_id": "mine", "presets": (), "aliases": (), "file": "mine.onnx"})
    shutil.copyfile(file, tmp_path / "mine.onnx")
    (output,) = mine.outputs
    asked = LoadRequest(SessionRequest("mine", ModelBackend.ONNX, ModelPrecision.FP32))
    seen, actor = [], None
    for most in (1.0, 2.0):
        changed = mine.model_copy(update={"outputs": (output.model_copy(update={"value_range": (0.0, most)}),)})
        (tmp_path / "mine.yaml").write_text(dump_spec(changed))
        ModelCatalog.forget()
        with InferenceSession("mine") as local:
            expected = local.infer(frames)
        if actor is None:
            actor, _ = start(OwnModels, asked)
        else:
            close(actor)
            ray.get(actor.reopen.remote("second", asked, 0, 0))
        ray.get(actor.load.remote())
        name = ray.get(actor.describe.remote()).name
        seen.append(ray.get(actor.infer.remote(Caller(name), frames)))
        assert np.array_equal(seen[-1], expected)
    assert not np.array_equal(*seen)
    monkeypatch.undo()
    ModelCatalog.forget()


def test_calls_for_an_earlier_session_reach_no_later_one(start, frames):
    actor, asked = start()
    ray.get(actor.load.remote())
    old = ray.get(actor.describe.remote()).name
    with pytest.raises(errors.InferenceError, match="still serves"):
        ray.get(actor.reopen.remote("new", asked, 0, 0))
    assert ray.get(actor.close.remote(old)) is None  # it is not retired
    watching = actor.watch.remote(old)
    assert close(actor)
    ray.get(actor.revive.remote(old))
    for call in (actor.infer.remote(Caller(old), frames), actor.status.remote(old)):
        assert isinstance(ray.get(call), Retired)
    ray.get(actor.reopen.remote("new", asked, 1000, 10))
    assert not ray.get(watching)
    ray.get(actor.load.remote())
    for call in (
        actor.infer.remote(Caller(old), frames),
        actor.run.remote(Caller(old), {}),
        actor.touch.remote(old, False),
        actor.status.remote(old),
    ):
        assert isinstance(ray.get(call), Retired)
    assert not ray.get(actor.try_retire.remote(old, None))
    assert ray.get(actor.close.remote(old)) is None
    ray.get(actor.set_retention.remote(old, RetentionInfo(is_pinned=True)))
    assert ray.get(actor.infer.remote(Caller("new", tag="tag"), frames)).shape == (3, 98, 122, 3)
    assert [ray.get(actor.progress.remote(name, "tag")) for name in (old, "new")] == [0, 3]
    found = ray.get(actor.describe.remote())
    assert (found.name, found.retired, found.retention) == ("new", False, RetentionInfo())
    assert (found.predecessor, found.reserved_bytes, found.inherited_bytes) == (old, 1000, 10)
