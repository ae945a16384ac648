"""A bad file of a model repository harms itself alone, and a file that changes is obeyed by the session that is loaded."""

import json
import shutil
import time

import pytest

from genai_ray import ModelCache, errors
from genai_ray.serve.repository import Repository
from tests.serve.models import add_number, identity, value, write
from tests.serve.test_people import application, ask
from tests.serve.test_repository import models  # noqa: F401 - a fixture

WRONG_OPTIONS = {
    "unknown-field": "max_batch: 4\n",
    "no-yaml": "max_batch_size: [4\n",
    "deep": "max_batch_size: " + "[" * 5000 + "]" * 5000 + "\n",
    "no-date": "max_batch_size: 2024-13-45\n",
    "bytes": b"\xff\xfe\x00\x00",
    "list": "- 1\n",
}


def infer(app, name, data=(1,), tensor="x"):
    body = json.dumps({"inputs": [{"name": tensor, "datatype": "FP32", "shape": [len(data)], "data": list(data)}]}).encode()
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
        assert {name: words in told[name, "1"][1] for name, words in (("bad", "max_batch"), ("deep", "deep.yaml"), ("typo", "scal"))} == {
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
        assert {index(app)[name, "1"] for name in ("bad", "deep")} == {("UNAVAILABLE", "not loaded; its first request loads it")}
        assert infer(app, "bad") == [2]
    ModelCache(name="people").shutdown()


def test_a_version_that_is_gone_gives_way_to_the_one_before_at_once(models, ray_session):  # noqa: F811
    with application(models.parent / "videos", models) as app:
        assert infer(app, "many") == [11]
        shutil.rmtree(models / "many" / "10")
        assert infer(app, "many") == [3]
        assert infer(app, "many/versions/10")[0] == 404
        shutil.rmtree(models / "many")
        assert infer(app, "many")[0] == 404
        assert infer(app, "one") == [2]
    ModelCache(name="people").shutdown()


@pytest.mark.parametrize("is_loaded_again", [True, False])
def test_a_model_that_is_replaced_is_served_anew(models, ray_session, is_loaded_again):  # noqa: F811
    (models / "kept.serve.yaml").write_text("pin: true\n")
    add_number(models / "kept.onnx", 1)
    with application(models.parent / "videos", models) as app, ModelCache(name="people") as cache:
        for name in ("one", "kept"):
            assert infer(app, name) == [2]
        cache.pin(models / "kept.onnx")
        for name in ("one", "kept"):
            add_number(models / f"{name}.onnx", 20)
            if is_loaded_again:
                assert ask(app, "POST", f"/v2/repository/models/{name}/load", b"{}")[0] == 200
            assert infer(app, name) == [21]
        assert {entry["pinned"] for entry in cache.status()["models"] if entry["model_id"].endswith("kept.onnx")} == {True}
        identity(models / "one.onnx", "FP32", ("n",))
        renamed = [value("other", "FP32", ("n",))], [value("y", "FP32", ("n",))]
        from onnx import helper

        write(models / "one.onnx", [helper.make_node("Neg", ["other"], ["y"])], *renamed)
        if is_loaded_again:
            assert ask(app, "POST", "/v2/repository/models/one/load", b"{}")[0] == 200
        assert infer(app, "one", tensor="other") == [-1]
        status, told = infer(app, "one")
        assert (status, "missing inputs ['other']" in told) == (400, True)


def test_a_slow_disk_holds_no_other_request(models, ray_session, monkeypatch):  # noqa: F811
    """Files are looked at on threads: one that hangs delays those who ask for it."""
    from genai_ray.serve import repository as module

    def slowly(place):
        if "many" in str(place):
            time.sleep(3.0)
        return find_facts(place)

    find_facts = module.find_facts
    with application(models.parent / "videos", models) as app:
        assert infer(app, "one") == [2]
        monkeypatch.setattr(module, "find_facts", slowly)
        import threading

        slow = threading.Thread(target=infer, args=(app, "many"))
        slow.start()
        time.sleep(0.5)
        began_s = time.monotonic()
        assert infer(app, "one") == [2]
        assert time.monotonic() - began_s < 2.0
        slow.join()
    ModelCache(name="people").shutdown()
