"""Models of a repository that is a URI: listed, fetched when they are asked for, again when they change; and what goes
wrong there."""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import InferenceSession, ModelCache, errors
from genai_ray.catalog import ServeProfile, dump_spec
from genai_ray.files import list_files, mirror
from genai_ray.inspection import find_model
from genai_ray.serve.deployment.ports import find_free_ports
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.model_metadata import ModelMetadataCache, read_metadata
from genai_ray.serve.engine.preload import Preload
from genai_ray.serve.engine.repository import Repository
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.enhance.test_stores import bucket  # noqa: F401 - a fixture
from tests.serve.models import add_number, square, value
from tests.serve.models import write as write_model
from tests.serve.test_web import application, ask
from tests.servers import listing, serving

WEBSR = find_model("websr-x2-s")[1]


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "models"
    add_number(folder / "one.onnx", 1)
    (folder / "one.serve.yaml").write_text("max_batch_size: 4\n")
    for version in (2, 10):
        add_number(folder / "many" / str(version) / "model.onnx", version)
    add_number(folder / "many" / "draft" / "model.onnx", 0)
    add_number(folder / "with space.onnx", 5)
    (folder / "notes.txt").write_text("no model")
    return folder


@pytest.fixture(params=["folder", "http", "memory"])
def place(models, request):
    """The same models in a folder, on a server that lists its folders, and in a store without such pages."""
    if request.param == "folder":
        yield str(models)
    elif request.param == "http":
        with listing(models.parent) as (address, _):
            yield f"{address}/models/"
    else:
        import fsspec

        store = fsspec.filesystem("memory")
        store.put(str(models), "/models", recursive=True)
        yield "memory://models"
        store.rm("/models", recursive=True)


@pytest.mark.slow
def test_a_repository_of_any_kind_offers_the_same(place):
    repository = Repository(place, ())
    assert {model.name: list(model.versions) for model in repository.models()} == {
        "many": ["10", "2"],
        "one": ["1"],
        "with space": ["1"],
    }
    assert repository.get("many").latest == "10"
    assert repository.get("one").serving.max_batch_size == 4
    for name in ("one", "many", "with space"):
        facts = read_metadata(repository.get(name).source())
        assert [(fact.name, fact.datatype) for fact in facts.inputs] == [("x", "FP32")]
    with InferenceSession(repository.get("many").source("2")) as session:
        assert session.run({"x": np.ones(2, np.float32)})["y"].tolist() == [3, 3]


def test_what_is_fetched_is_kept_until_it_changes(models):
    with listing(models.parent) as (address, read):
        repository = Repository(f"{address}/models", ())
        assert read == ["/models/one.serve.yaml"]
        uri = repository.get("one").source()
        first = find_model(uri)[1]
        assert find_model(uri)[1] == first
        assert read.count("/models/one.onnx") == 1
        before = repository.get("one").stamp()
        shutil.copyfile(WEBSR, models / "one.onnx")
        add_number(models / "new.onnx", 1)
        repository.rescan()
        assert repository.get("one").stamp() != before
        assert repository.get("new").latest == "1"
        spec, second = find_model(uri)
        assert (spec.scale, spec.model_id) == (2, uri)
        assert second.read_bytes() == WEBSR.read_bytes()
        (models / "one.yaml").write_text(dump_spec(spec.model_copy(update={"description": "said by hand"})))
        assert find_model(uri)[0].description == "said by hand"
        (models / "new.onnx").unlink()
        repository.rescan()
        with pytest.raises(errors.ModelNotFoundError):
            repository.get("new")
    assert len(list(second.parents[1].iterdir())) == 2


def test_a_link_is_a_model_by_its_own_name(models, caplog):
    blob = models / "blobs" / "e3b0c442"
    add_number(blob, 3)
    (models / "linked.onnx").symlink_to(blob)
    (models / "same.onnx").symlink_to(models / "one.onnx")
    shutil.copy(models / "one.onnx", models / "LOUD.ONNX")
    shutil.copy(models / "one.onnx", os.fsencode(models) + b"/caf\xe9.onnx")
    repository = Repository(models, ())
    assert [model.name for model in repository.models()] == ["LOUD", "linked", "many", "one", "same", "with space"]
    assert "is left out" in caplog.text
    assert repository.get("same").source() == repository.get("one").source()
    for name in ("linked", "LOUD"):
        before = repository.get(name).stamp()
        facts = read_metadata(repository.get(name).source())
        assert [fact.name for fact in facts.inputs] == ["x"]
        square(blob if name == "linked" else models / "LOUD.ONNX")
        assert repository.get(name).stamp() != before


@pytest.mark.slow
def test_an_unload_is_of_all_versions_even_without_their_files(models, ray_session):
    with application(models.parent / "videos", models) as app, ending(ModelCache(name="people")) as cache:
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
        for version in (2, 10):
            status, told, _ = ask(app, "POST", f"/v2/models/many/versions/{version}/infer", body)
            assert (status, json.loads(told)["outputs"][0]["data"]) == (200, [1 + version])
        assert len([one for one in cache.loaded_models() if "/many/" in one]) == 2
        (models / "many" / "10" / "model.onnx").write_bytes(b"junk")
        (models / "many" / "2" / "model.onnx").unlink()
        assert ask(app, "POST", "/v2/repository/models/many/unload", b"")[0] == 200
        assert [one for one in cache.loaded_models() if "/many/" in one] == []


def test_a_store_that_fails_is_said_and_what_was_offered_stays(models):
    with listing(models.parent) as (address, _):
        repository = Repository(f"{address}/models", ())
        uri = repository.get("one").source()
        for wrong in ("nowhere", "models/one.onnx", "models/notes.txt"):
            with pytest.raises(errors.ConfigError, match=f"model repository {address}/{wrong}"):
                Repository(f"{address}/{wrong}", ())
        with pytest.raises(errors.ModelNotFoundError, match=r"no file .*gone\.onnx"):
            find_model(f"{address}/models/gone.onnx")
        (models / "one.serve.yaml").write_text("max_batch: 4\n")
        repository.rescan()
        assert f"{address}/models/one.serve.yaml: max_batch" in str(repository.get("one").fault)
        (models / "one.serve.yaml").write_text("max_batch_size: 4\n")
        repository.rescan()
    with pytest.raises(errors.ConfigError, match="listing failed"):
        repository.rescan()
    assert repository.get("one").serving.max_batch_size == 4
    with pytest.raises(errors.ModelLoadError, match="looking failed"):
        find_model(uri)
    for wrong, words in (
        ("nonsense://a/b", "Protocol not known: nonsense"),
        ("memory://nowhere", "no such file"),
        (str(models / "one.onnx"), "model repository"),
    ):
        with pytest.raises(errors.ConfigError, match=words):
            Repository(wrong, ())


def test_a_file_that_breaks_off_is_no_model(models):
    with serving(models, breaks_at=60) as (address, _), pytest.raises(errors.ModelLoadError, match=r"one\.onnx"):
        find_model(f"{address}/one.onnx")
    assert not [path for path in Path(models.parent, "cache").rglob("*") if path.is_file()]
    (models / "bad.onnx").write_bytes(b"not a model at all")
    with serving(models) as (address, _):
        assert mirror(f"{address}/nothing.onnx") is None
        with pytest.raises(errors.ModelLoadError, match="not a usable ONNX file"):
            find_model(f"{address}/bad.onnx")
    with pytest.raises(errors.VideoError, match="no such file"):
        list_files(str(models / "nowhere"), ("*",))


@pytest.mark.slow
def test_the_next_request_obeys_a_change_of_file_or_options(models, ray_session):
    def infer():
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
        return json.loads(ask(app, "POST", "/v2/models/one/infer", body)[1])

    with application(models.parent / "videos", models) as app:
        assert infer()["outputs"][0]["data"] == [2]
        (models / "one.serve.yaml").write_text("device_kinds: [no-such-kind]\n")
        assert ask(app, "POST", "/v2/repository/index", b"")[0] == 200
        assert "no device is there that will do, only of kind ['cpu']" in infer()["error"]
        status, told, _ = ask(app, "POST", "/v2/repository/models/one/load", b"{}")
        assert (status, "no device is there that will do" in json.loads(told)["error"]) == (503, True)
        (models / "one.serve.yaml").unlink()
        (models / "one.onnx").unlink()
        add_number(models / "one" / "1" / "model.onnx", 6)
        assert ask(app, "POST", "/v2/repository/index", b"")[0] == 200
        assert infer()["outputs"][0]["data"] == [7]
    ModelCache(name="people").shutdown()


@pytest.mark.slow
def test_a_model_is_warmed_with_the_shapes_of_its_options(models, ray_session):
    rows = 5000
    square(models / "one.onnx")
    square(models / "small.onnx")
    (models / "one.serve.yaml").write_text(f"warmup_shapes: [{{x: [{rows}, 2]}}, {{x: [1, 1], shift: [1]}}]\n")
    with application(models.parent / "videos", models) as app, ending(ModelCache(name="people")) as cache:

        def load(name):
            status, told, _ = ask(app, "POST", f"/v2/repository/models/{name}/load", b"{}")
            return status, json.loads(told)["error"] if told else ""

        assert [load("one"), load("small")] == [(200, "")] * 2
        large, small = (
            {Path(entry.model_id).stem: entry.bytes for entry in cache.status().models}[name]
            for name in ("one", "small")
        )
        assert large - small > 0.9 * 4 * rows**2
        assert ask(app, "POST", "/v2/repository/models/one/unload", b"")[0] == 200
        for shapes, words in (
            ("{z: [1]}", r"unknown inputs ['z']"),
            ("{x: [1]}", "[1] for input 'x'; allowed: [-1, -1]"),
        ):
            (models / "one.serve.yaml").write_text(f"warmup_shapes: [{shapes}]\n")
            status, told = load("one")
            assert (status, words in told) == (503, True), told
            body = json.dumps(
                {
                    "inputs": [
                        {"name": name, "datatype": "FP32", "shape": [1] * (2 - (name != "x")), "data": [1]}
                        for name in ("x", "shift")
                    ]
                }
            )
            status, told, _ = ask(app, "POST", "/v2/models/one/infer", body.encode())
            assert (status, words in json.loads(told)["error"]) == (503, True), told
        (models / "one.serve.yaml").write_text("warmup_shapes: [{x: [2, -2]}]\n")
        status, told = load("one")
        assert (status, "warmup_shapes.0.x.1: Input should be greater than 0" in told) == (503, True), told


@pytest.mark.slow
def test_index_and_ready_speak_of_the_requests_own_sessions(models, ray_session):
    """A batch job's session of the same model, in another precision or for another device, is none of them."""
    shutil.copyfile(WEBSR, models / "picture.onnx")
    options = models / "picture.serve.yaml"

    def told():
        index = {
            entry["name"]: entry["state"] for entry in json.loads(ask(app, "POST", "/v2/repository/index", b"")[1])
        }
        (stats,) = json.loads(ask(app, "GET", "/v2/models/picture/stats")[1])["model_stats"]
        return index["picture"], ask(app, "GET", "/v2/models/picture/ready")[0], len(stats["memory_usage"])

    with application(models.parent / "videos", models) as app, ending(ModelCache(name="people")) as cache:
        cache.load_model(models / "picture.onnx", precision=ModelPrecision.FP16, device="cpu")
        for text, wanted in (
            ("{}", ("UNAVAILABLE", 503, 0)),
            ("precision: fp16", ("UNAVAILABLE", 503, 0)),
            ("device: cpu", ("UNAVAILABLE", 503, 0)),
            ("precision: fp16\ndevice: cpu", ("READY", 200, 1)),
        ):
            options.write_text(text)
            assert told() == wanted, text


@pytest.mark.slow
def test_a_model_computes_in_openvino_and_says_so(models, ray_session):
    shutil.copyfile(WEBSR, models / "picture.onnx")
    for name in ("picture", "one"):
        (models / f"{name}.serve.yaml").write_text("backend: openvino\n")
    picture = np.random.default_rng(0).random((1, 3, 20, 28), dtype=np.float32)
    tensors = [("picture", "input", picture), ("one", "x", np.zeros(2, np.float32))]
    with application(models.parent / "videos", models) as app:
        answers = []
        for model, name, tensor in tensors:
            fields = {"name": name, "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel().tolist()}
            answers.append(ask(app, "POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [fields]}).encode()))
        config = json.loads(ask(app, "GET", "/v2/models/picture/config")[1])
    (status, body, _), (refused, reason, _) = answers
    assert status == 200, body
    (output,) = json.loads(body)["outputs"]
    with InferenceSession("websr-x2-s", backend=ModelBackend.OPENVINO) as session:
        expected = session.run({"input": picture})["output"]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)
    assert (config["backend"], config["parameters"]["backend"]["string_value"]) == ("openvino", "openvino")
    assert refused >= 400
    assert b"not an image model" in reason
    ModelCache(name="people").shutdown()


@pytest.mark.slow
def test_one_bad_request_fails_no_other_of_its_call(models, ray_session):
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
    write_model(models / "look.onnx", nodes, [value("x", "INT64", ("n",))], [value("y", "FP32", ("n",))], [table])
    (models / "look.serve.yaml").write_text("max_batch_size: 8\nbatch_wait_timeout_s: 2.0\n")

    def infer(index):
        body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [index]}]}).encode()
        return ask(app, "POST", "/v2/models/look/infer", body)

    with application(models.parent / "videos", models) as app, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(infer, (0, 1, 2, 99, 3, 0, 1, 2)))
    assert {status for status, _, _ in answers} == {200, 400}, answers
    assert [json.loads(body)["outputs"][0]["data"] for status, body, _ in answers if status == 200] == [
        [0],
        [1],
        [2],
        [3],
        [0],
        [1],
        [2],
    ]
    assert [status for status, _, _ in answers].index(400) == 3
    ModelCache(name="people").shutdown()


@pytest.mark.slow
def test_a_request_too_large_for_memory_fails_alone(models, ray_session):
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["size"], keepdims=1),
        helper.make_node("ConstantOfShape", ["size"], ["blank"]),
        helper.make_node("ReduceSum", ["blank"], ["zero"], keepdims=0),
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "zero"], ["y"]),
    ]
    write_model(models / "blank.onnx", nodes, [value("x", "INT64", ("n",))], [value("y", "FP32", ("n",))])
    (models / "blank.serve.yaml").write_text("max_batch_size: 4\nbatch_wait_timeout_s: 10.0\n")

    def infer(size):
        body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [size]}]}).encode()
        return ask(app, "POST", "/v2/models/blank/infer", body)

    with application(models.parent / "videos", models) as app, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(infer, (1, 2, 10**15, 3)))
        figures = app.engine.statistics.counts_of("blank", "1").to_json()
    assert [status for status, _, _ in answers] == [200, 200, 503, 200], answers
    assert "memory" in json.loads(answers[2][1])["error"]
    assert [json.loads(answers[index][1])["outputs"][0]["data"] for index in (0, 1, 3)] == [[1], [2], [3]]
    assert figures["execution_count"] == 3  # each of them alone, as the merged call failed
    ModelCache(name="people").shutdown()


def test_merged_requests_for_raw_tensors_count_once_each(models, ray_session):
    (models / "one.serve.yaml").write_text("max_batch_size: 4\nbatch_wait_timeout_s: 2.0\n")
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}).encode()
    with application(models.parent / "videos", models) as app, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(app, "POST", "/v2/models/one/infer", body), range(6)))
        figures = app.engine.statistics.counts_of("one", "1").to_json()
    assert [json.loads(answer)["outputs"][0]["data"] for _, answer, _ in answers] == [[2, 3]] * 6
    assert figures["inference_count"] == 6
    assert figures["execution_count"] < 6
    assert {figures["inference_stats"][part]["count"] for part in ("success", "queue", "compute_infer")} == {6}
    assert sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in figures["batch_stats"]) == 6


def test_a_file_is_looked_at_once_for_all_who_ask(models, ray_session, monkeypatch):
    looks = []

    def slowly(source, hold):
        looks.append(source)
        over.wait(60)
        return read_metadata(source, hold)

    over = threading.Event()
    monkeypatch.setattr("genai_ray.serve.engine.model_metadata.read_metadata", slowly)

    async def story():
        engine = Engine(
            ServeProfile(name="test", request_timeout_s=0.2), ModelCache(name="people"), Repository(models, ())
        )
        found = await asyncio.gather(*(engine.find("one") for _ in range(50)), return_exceptions=True)
        assert {type(error) for error in found} == {errors.ResourceExhaustedError}
        over.set()
        engine.profile = engine.profile.override(request_timeout_s=60)
        assert (await asyncio.gather(*(engine.find("one") for _ in range(50))))[0].metadata.spec.model_id

    asyncio.run(story())
    assert len(looks) == 1


@pytest.mark.slow
def test_what_is_to_be_there_is_brought_and_let_go(models, ray_session):
    def stays():
        return {Path(entry.model_id).name: (entry.pinned, entry.leased) for entry in cache.status().models}

    (models / "broken.onnx").write_bytes(b"no model")
    for name, options in (("broken", "preload: true"), ("one", "pin: true"), ("many", "min_replicas: 1")):
        (models / f"{name}.serve.yaml").write_text(options)
    with ending(ModelCache(2_000_000_000, name="standing")) as cache:
        standing = Preload(cache)
        with pytest.raises(errors.ModelLoadError, match="broken"):  # it keeps the others from nothing
            standing.update(Repository(models, ()).models())
        assert stays() == {"one.onnx": (True, False), "model.onnx": (False, True)}
        for name in ("broken", "one", "many"):
            (models / f"{name}.serve.yaml").unlink()
        standing.update(Repository(models, ()).models())
        assert stays() == {"one.onnx": (False, False), "model.onnx": (False, False)}


def test_a_failing_store_is_retried_and_a_broken_file_is_not(tmp_path):
    async def story():
        cache = ModelMetadataCache(asyncio.to_thread)
        for _ in range(2):
            with pytest.raises(errors.ModelLoadError, match="not a usable ONNX file"):
                await cache.get(str(broken), "1", 60.0)
        assert list(cache.broken()) == [str(broken)]
        add_number(broken, 3)
        with pytest.raises(errors.ModelLoadError, match="not a usable ONNX file"):
            await cache.get(str(broken), "1", 60.0)  # as it was: it is not read again
        assert (await cache.get(str(broken), "2", 60.0)).inputs
        with pytest.raises(errors.ModelLoadError):
            await cache.get(f"http://127.0.0.1:{find_free_ports(1)[0]}/a.onnx", "", 60.0)
        assert cache.broken() == {}

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    asyncio.run(story())


@pytest.mark.slow
def test_a_bucket_is_listed_anew_each_time(models, bucket):  # noqa: F811
    scheme, store, _ = bucket
    store.put(str(models), "bucket/models", recursive=True)
    repository = Repository(f"{scheme}://bucket/models", ())
    assert {model.name: list(model.versions) for model in repository.models()} == {
        "many": ["10", "2"],
        "one": ["1"],
        "with space": ["1"],
    }
    before = repository.get("one").stamp()
    store.put_file(str(models / "many" / "10" / "model.onnx"), "bucket/models/one.onnx")
    store.put_file(str(models / "many" / "2" / "model.onnx"), "bucket/models/later.onnx")
    store.rm_file("bucket/models/with space.onnx")
    repository.rescan()
    assert [model.name for model in repository.models()] == ["later", "many", "one"]
    assert repository.get("one").stamp() != before
    for name, wanted in (("one", 10), ("later", 2)):
        with InferenceSession(repository.get(name).source()) as session:
            assert session.run({"x": np.zeros(1, np.float32)})["y"].tolist() == [wanted]
    with pytest.raises(errors.ConfigError, match=f"model repository {scheme}://nowhere"):
        Repository(f"{scheme}://nowhere/models", ())


@pytest.mark.slow
def test_the_endpoint_serves_a_uri(models, ray_session):
    def infer(name):
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
        status, answer, _ = ask(app, "POST", f"/v2/models/{name}/infer", body)
        return json.loads(answer)["outputs"][0]["data"] if status == 200 else status

    def index():
        status, answer, _ = ask(app, "POST", "/v2/repository/index", b"")
        return (
            {entry["name"] for entry in json.loads(answer)} if status == 200 else (status, json.loads(answer)["error"])
        )

    with contextlib.ExitStack() as stack:
        with listing(models.parent) as (address, _):
            app = stack.enter_context(application(models.parent / "videos", f"{address}/models"))
            assert infer("many") == [11]
            assert infer("new") == 404
            add_number(models / "new.onnx", 7)
            assert {"many", "new"} <= index()
            assert infer("new") == [8]
        status, told = index()
        assert (status, "listing failed" in told) == (503, True)
        assert infer("new") == [8]
        assert infer("one") == 503
        assert ask(app, "POST", "/v2/repository/models/new/unload", b"")[0] == 200
        assert infer("new") == 503
    ModelCache(name="people").shutdown()
