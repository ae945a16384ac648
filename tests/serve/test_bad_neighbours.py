"""A bad file of a model repository harms itself alone, and a file that changes is obeyed by the session that is
loaded."""

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx import helper
from ray.util.placement_group import placement_group_table

from genai_ray import ModelCache, errors
from genai_ray.catalog import ServeProfile
from genai_ray.confine import call_confined
from genai_ray.inspection import records
from genai_ray.serve.engine import repository as repository_module
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.preload import Preload
from genai_ray.serve.engine.repository import Repository
from tests.processes import wait_until
from tests.serve.models import add_number, value, write
from tests.serve.test_repository import models  # noqa: F401 - a fixture
from tests.serve.test_web import application, ask
from tests.servers import listing

WRONG_OPTIONS = {
    "unknown-field": "max_batch: 4\n",
    "no-yaml": "max_batch_size: [4\n",
    "deep": "max_batch_size: " + "[" * 5000 + "]" * 5000 + "\n",
    "no-date": "max_batch_size: 2024-13-45\n",
    "bytes": b"\xff\xfe\x00\x00",
    "list": "- 1\n",
}


def infer(app, name, data=(1,), tensor="x"):
    body = json.dumps(
        {"inputs": [{"name": tensor, "datatype": "FP32", "shape": [len(data)], "data": list(data)}]}
    ).encode()
    status, told, _ = ask(app, "POST", f"/v2/models/{name}/infer", body)
    return json.loads(told)["outputs"][0]["data"] if status == 200 else (status, json.loads(told)["error"])


def index(app):
    status, told, _ = ask(app, "POST", "/v2/repository/index", b"")
    assert status == 200, told
    return {(entry["name"], entry["version"]): (entry["state"], entry["reason"]) for entry in json.loads(told)}


def test_wrong_options_are_the_trouble_of_their_model_alone(models):  # noqa: F811
    for name, text in WRONG_OPTIONS.items():
        add_number(models / f"{name}.onnx", 1)
        (models / f"{name}.serve.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    repository = Repository(models, ())
    assert repository.get("one").serving.max_batch_size == 4
    for name in WRONG_OPTIONS:
        fault = repository.get(name).fault
        assert fault is not None, name
        assert f"{name}.serve.yaml" in str(errors.ModelLoadError(*fault))


def test_what_two_files_or_a_name_leave_unclear_is_said(models):  # noqa: F811
    add_number(models / "one" / "1" / "model.onnx", 5)
    add_number(models / "stats.onnx", 5)
    repository = Repository(models, ())
    assert repository.get("one").source().endswith("one/1/model.onnx")
    assert "one.onnx is left out" in repository.get("one").note
    assert "/v2/models/stats/versions/" in repository.get("stats").note
    assert repository.get("many").note == ""


def test_odd_files_and_listings_harm_no_other_model(models):  # noqa: F811
    (models / "one.yaml").symlink_to("one.yaml")  # a link to itself has no state
    assert "Too many levels" in Repository(models, ()).get("one").stamp()
    odd = ("a%2Fb", "c%2F" + "9" * 5000 + "%2Fmodel.onnx", "d%2F1%2F2%2Fmodel.onnx")
    names = ("one.onnx", "with%20space.onnx", "locked.onnx", *odd)
    (models / "index.html").write_text("".join(f'<a href="{name}">{name}</a>' for name in names))
    with listing(models.parent, locked="/models/locked.onnx") as (address, _):
        repository = Repository(f"{address}/models", ())
        assert [model.name for model in repository.models()] == ["locked", "one", "with space"]
        assert "403" in repository.get("locked").stamp()
        assert "403" not in repository.get("one").stamp()


def test_a_name_that_nobody_knows_has_nothing_looked_at_again(models, ray_session, monkeypatch):  # noqa: F811
    async def story():
        engine = Engine(ServeProfile(name="test"), ModelCache(name="people"), Repository(models, ("websr-x2-s",)))
        threads, scans = [], []
        call, rescan = engine.call, engine.repository.rescan
        monkeypatch.setattr(engine, "call", lambda function, *args: threads.append(function) or call(function, *args))
        monkeypatch.setattr(engine.repository, "rescan", lambda: scans.append(1) or rescan())
        for name, version in (("nobody", ""), ("one", "7")):
            with pytest.raises(errors.ModelNotFoundError):
                await engine.find(name, version)
        assert scans == []
        await engine.find("websr-x2-s")
        threads.clear()
        await engine.find("websr-x2-s")  # a model of the catalog has no state that a disk is asked for
        assert threads == []
        await engine.find("one")
        (models / "one.onnx").unlink()
        with pytest.raises(errors.ModelNotFoundError):
            await engine.find("one")
        assert scans == [1]

    asyncio.run(story())


def test_the_index_survives_a_file_without_a_state(models, ray_session, monkeypatch):  # noqa: F811
    for name in ("bad", "hangs"):
        (models / f"{name}.onnx").write_text("no model")
    find_facts, ends = repository_module.find_facts, threading.Event()

    async def story():
        engine = Engine(
            ServeProfile(name="test", request_timeout_s=0.5), ModelCache(name="people"), Repository(models, ())
        )
        for name in ("bad", "hangs"):
            with pytest.raises(errors.ModelLoadError):
                await engine.find(name, within_s=60)
        monkeypatch.setattr(
            repository_module, "find_facts", lambda place: ends.wait(60) if "hangs" in str(place) else find_facts(place)
        )
        assert {path.rpartition("/")[2] for path in await engine.broken()} == {"bad.onnx", "hangs.onnx"}
        (models / "bad.onnx").write_text("still no model")
        assert {path.rpartition("/")[2] for path in await engine.broken()} == {"hangs.onnx"}
        ends.set()

    asyncio.run(story())


@pytest.mark.slow
def test_bad_files_harm_no_other_model(models, ray_session):  # noqa: F811
    (models / "bad.serve.yaml").write_text("max_batch: 4\n")
    add_number(models / "bad.onnx", 1)
    add_number(models / "deep.onnx", 1)
    (models / "deep.yaml").write_text("model_id: " + "[" * 5000 + "]" * 5000 + "\n")
    add_number(models / "foo.onnx", 2)
    (models / "foo.yaml").write_text("services:\n  web:\n    image: nginx\n")
    add_number(models / "typo.onnx", 2)
    (models / "typo.yaml").write_text(f"model_id: typo\nfile: {models / 'typo.onnx'}\nscal: 2\n")
    with application(models.parent / "videos", models) as app:
        assert infer(app, "one") == [2]
        assert infer(app, "foo") == [3]
        for name, words in (("bad", "max_batch"), ("deep", "deep.yaml"), ("typo", "scal")):
            status, told = infer(app, name)
            assert (status, words in told) == (503, True), told
            assert str(models) not in told
        told = index(app)
        assert told["one", "1"][0] == "READY"
        assert {
            name: words in told[name, "1"][1]
            for name, words in (("bad", "max_batch"), ("deep", "deep.yaml"), ("typo", "scal"))
        } == {
            "bad": True,
            "deep": True,
            "typo": True,
        }
        assert str(models) not in str(told)
        assert ask(app, "POST", "/v2/repository/models/one/load", b"{}")[0] == 200
        assert ask(app, "POST", "/v2/repository/models/bad/load", b"{}")[0] == 503
        status, told, _ = ask(app, "GET", "/v1/models")
        assert status == 200
        assert {model["name"] for model in json.loads(told)["models"] if "error" in model} >= {"bad", "deep", "typo"}
        (models / "bad.serve.yaml").unlink()
        (models / "deep.yaml").unlink()
        assert {index(app)[name, "1"] for name in ("bad", "deep")} == {
            ("UNAVAILABLE", "not loaded; its first request loads it")
        }
        assert infer(app, "bad") == [2]
    ModelCache(name="people").shutdown()


def test_the_memory_of_an_inspection_counts_in_ray(models, ray_session, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "_known", {})

    def held():
        groups = placement_group_table().values()
        return [group["bundles"][0]["memory"] for group in groups if group["state"] == "CREATED"]

    def inspect(function, *args, max_bytes, within_s):
        assert held() == [max_bytes]
        inspected.append(max_bytes)
        return call_confined(function, *args, max_bytes=max_bytes, within_s=within_s)

    async def story():
        engine = Engine(ServeProfile(name="test"), ModelCache(name="people"), Repository(models, ()))
        assert (await engine.find("one", within_s=60)).metadata.inputs
        assert inspected[0] > records.BASE_BYTES
        await asyncio.to_thread(wait_until, lambda: held() == [])
        monkeypatch.setattr(records, "BASE_BYTES", 10**15)
        add_number(models / "huge.onnx", 78)
        await engine.rescan()
        with pytest.raises(errors.ResourceExhaustedError, match=r"Ray's memory of this node\. Save a spec"):
            await engine.find("huge", within_s=60)

    inspected = []
    monkeypatch.setattr(records, "call_confined", inspect)
    asyncio.run(story())


@pytest.mark.slow
def test_a_slow_disk_holds_no_other_request(models, ray_session, monkeypatch):  # noqa: F811
    def hang(place):
        if "many" in str(place):
            hangs.set()
            ends.wait(60)
        return find_facts(place)

    find_facts, hangs, ends = repository_module.find_facts, threading.Event(), threading.Event()
    with application(models.parent / "videos", models) as app, ThreadPoolExecutor(1) as pool:
        assert infer(app, "many") == [11]
        assert infer(app, "one") == [2]
        monkeypatch.setattr(repository_module, "find_facts", hang)
        waiting = pool.submit(infer, app, "many")
        assert hangs.wait(60)
        assert infer(app, "one") == [2]
        assert not waiting.done()
        ends.set()
        assert waiting.result() == [11]
        shutil.rmtree(models / "many" / "10")
        assert infer(app, "many") == [3]
        assert infer(app, "many/versions/10")[0] == 404
        shutil.rmtree(models / "many")
        assert infer(app, "many")[0] == 404
    ModelCache(name="people").shutdown()


@pytest.mark.slow
def test_a_model_that_is_replaced_is_served_anew(models, ray_session):  # noqa: F811
    def load(name):
        assert ask(app, "POST", f"/v2/repository/models/{name}/load", b"{}")[0] == 200

    add_number(models / "kept.onnx", 1)
    with application(models.parent / "videos", models) as app, ModelCache(name="people") as cache:
        assert [infer(app, name) for name in ("one", "kept")] == [[2]] * 2
        cache.pin(models / "kept.onnx")
        for name in ("one", "kept"):
            add_number(models / f"{name}.onnx", 20)
            load(name)
            assert infer(app, name) == [21]
        assert {entry.pinned for entry in cache.status().models if entry.model_id.endswith("kept.onnx")} == {True}
        write(
            models / "one.onnx",
            [helper.make_node("Neg", ["other"], ["y"])],
            [value("other", "FP32", ("n",))],
            [value("y", "FP32", ("n",))],
        )
        assert infer(app, "one", tensor="other") == [-1]  # without a load
        status, told = infer(app, "one")
        assert (status, "missing inputs ['other']" in told) == (400, True)
        write(
            models / "one.onnx",
            [helper.make_node("Abs", ["third"], ["y"])],
            [value("third", "FP32", ("n",))],
            [value("y", "FP32", ("n",))],
        )
        load("one")
        assert infer(app, "one", [-3], "third") == [3]


@pytest.mark.slow
def test_a_model_that_is_kept_is_replaced_and_kept_on(models, ray_session):  # noqa: F811
    def kept():
        return [
            entry.digest for entry in cache.status().models if entry.model_id.endswith("kept.onnx") and entry.leased
        ]

    add_number(models / "kept.onnx", 1)
    (models / "kept.serve.yaml").write_text("min_replicas: 1\n")
    with application(models.parent / "videos", models) as app, ModelCache(name="people") as cache:
        standing = [
            Preload(ModelCache(name="people")) for _ in range(2)
        ]  # the endpoint's own process has one, and each replica
        for each in standing:
            each.update(Repository(models, ()).models())
        (before,) = kept()
        add_number(models / "kept.onnx", 20)
        assert ask(app, "POST", "/v2/repository/models/kept/load", b"{}")[0] == 200
        assert infer(app, "kept") == [21]
        add_number(models / "kept.onnx", 30)
        assert infer(app, "kept") == [31]  # without a load
        wait_until(lambda: len(kept()) == 1 and cache.status().leases == len(standing))
        assert kept() != [before]
        with cache.lease([models / "kept.onnx"]):
            add_number(models / "kept.onnx", 40)
            status, told = infer(app, "kept")
            assert (status, "leased by a job" in told) == (503, True)
        assert infer(app, "kept") == [41]
        wait_until(lambda: cache.status().leases == len(standing))
        for each in standing:
            each.release()
        assert kept() == []
    ModelCache(name="people").shutdown()
