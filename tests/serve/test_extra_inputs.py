"""Vectors and pictures as extra inputs over HTTP: the application of ``test_web`` with two models of a repository."""

import json

import numpy as np
import pytest

from genai_ray import InferenceSession, ModelCache
from tests.enhance.moving import frames_of
from tests.serve.test_web import application, ask, enhance, finish, form, image_of, refusal, submit
from tests.session.test_pictures import SUNSET, png, save_style, styled, text_of
from tests.session.test_vectors import WEIGHTS
from tests.session.test_vectors import save_style as save_vector
from tests.video.clips import write

PIXELS = np.random.default_rng(3).integers(0, 256, (24, 36, 3), np.uint8)
BODY = png(PIXELS)
TWICE = "param 'style' both in the query and as the file param.style; allowed: one of them"


@pytest.fixture(scope="module")
def app(ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_vector(folder / "weights.onnx", [1, 5])
    save_style(folder / "style.onnx")
    with application(tmp_path_factory.mktemp("videos"), folder) as one:
        one.models = folder
        yield one
    ModelCache(name="people").shutdown()


def both(*more):
    body, kind = form(('name="file"; filename="a b.png"', BODY), *more)
    return body, {"Content-Type": kind}


def part(picture, name="style"):
    return f'name="param.{name}"; filename="c.png"', picture


def test_a_vector_reaches_the_model(app):
    answer = enhance(app, f"model=weights&params=style={','.join(map(str, WEIGHTS))}", BODY)
    with InferenceSession(app.models / "weights.onnx") as session:
        assert np.array_equal(np.asarray(image_of(answer)), session.infer(PIXELS, {"style": WEIGHTS}))
    told = refusal(enhance(app, "model=weights&params=style=0,1", BODY), 400)
    assert "style=2 numbers; allowed: 5 numbers, each from 0 to 1" in told


def test_a_picture_of_a_form_reaches_the_model(app):
    body, headers = both(part(png(SUNSET)))
    answer = enhance(app, "model=style", body, **headers)
    assert np.abs(np.asarray(image_of(answer)).astype(int) - styled(PIXELS)).max() <= 1
    told = {model["name"]: model for model in json.loads(ask(app, "GET", "/v1/models")[1])["models"]}
    assert told["style"]["params"]["style"]["picture"]["width"] == 24


def test_a_picture_as_text_reaches_the_model(app):
    tensor = {"name": "frames", "datatype": "UINT8", "shape": [1, *PIXELS.shape], "data": PIXELS.ravel().tolist()}
    asked = {"inputs": [tensor], "parameters": {"frames": True, "style": text_of(SUNSET)}}
    status, body, _ = ask(app, "POST", "/v2/models/style/infer", json.dumps(asked).encode())
    assert status == 200, body
    (output,) = json.loads(body)["outputs"]
    found = np.array(output["data"]).reshape(output["shape"])
    assert np.abs(found[0] - styled(PIXELS).astype(int)).max() <= 1
    asked["parameters"]["style"] = "@/etc/hostname"
    told = refusal(ask(app, "POST", "/v2/models/style/infer", json.dumps(asked).encode()), 400)
    assert "param style=@hostname; allowed: a picture, which becomes 24x16" in told


@pytest.mark.parametrize(
    ("more", "query", "words"),
    [
        ([], "model=style", "no parameter 'style' for style.onnx; allowed: a picture, which becomes 24x16"),
        ([part(b"no picture")], "model=style", "10 bytes that are no picture"),
        ([part(b"")], "model=style", "of a picture; allowed: data:image"),
        ([part(png(np.zeros((4, 4, 4), np.uint8)))], "model=style", "transparent in places"),
        ([part(BODY, "other")], "model=style", "parameter 'other' for style.onnx; allowed: ['style']"),
        ([part(BODY)], "model=websr-x2-s", "parameter 'style' for websr-x2-s; allowed: none"),
        ([part(BODY)], "model=weights", "style=data:image/png"),
        ([part(BODY)], "model=style&params=style=1", TWICE),
        ([part(BODY)], "model=weights&params=style=0,0,0,0,1", TWICE),
        ([], "model=websr-x2-s&params=priority=3", "parameter 'priority' for websr-x2-s; allowed: none"),
        ([part(BODY), part(BODY)], "model=style", "a form with 3 files and 0 fields; allowed: one file"),
    ],
)
def test_wrong_forms_are_refused(app, more, query, words):
    body, headers = both(*more)
    told = refusal(enhance(app, query, body, **headers), 400)
    assert words in told


@pytest.mark.parametrize("query", ["model=style&params=style=1", "model=weights&params=style=0,0,0,0,1"])
def test_a_param_of_a_video_may_come_once(app, tmp_path, query):
    clip = write(tmp_path / "a.mkv", codec="ffv1", size=(36, 24), pts=[0, 1], tracks=0, pix_fmt="yuv444p")
    body, kind = form(('name="file"; filename="a.mkv"', clip.read_bytes()), part(BODY))
    assert TWICE in refusal(ask(app, "POST", f"/v1/videos?{query}", body, **{"Content-Type": kind}), 400)


def test_a_uri_brings_no_picture(app):
    kind = {"Content-Type": "multipart/form-data; boundary=a"}
    told = refusal(ask(app, "POST", "/v1/videos?model=style&uri=file:///a.mkv", b"", **kind), 400)
    assert "without its picture 'style'" in told


@pytest.mark.slow
def test_a_video_job_keeps_its_picture(app, tmp_path):
    clip = write(tmp_path / "a.mkv", codec="ffv1", size=(36, 24), pts=list(range(4)), tracks=0, pix_fmt="yuv444p")
    body, kind = form(('name="file"; filename="a.mkv"', clip.read_bytes()), part(png(SUNSET)))
    query = "model=style&format=mkv&codec=ffv1&check=off"
    job = finish(app, submit(app, query, body, **{"Content-Type": kind}))
    assert (job["state"], job["error"]) == ("done", None)
    status, result, _ = ask(app, "GET", job["links"]["result"])
    assert status == 200
    (tmp_path / "b.mkv").write_bytes(result)
    found, read = (frames_of(path)[1].astype(int) for path in (tmp_path / "b.mkv", clip))
    assert np.abs(found - styled(read)).mean() < 2 < np.abs(found - read).mean()
    without = refusal(ask(app, "POST", f"/v1/videos?{query}", clip.read_bytes()), 400)
    assert "without its picture 'style'" in without
    wrong, kind = form(('name="file"; filename="a.mkv"', clip.read_bytes()), part(b"no picture"))
    told = refusal(ask(app, "POST", f"/v1/videos?{query}", wrong, **{"Content-Type": kind}), 400)
    assert "no picture" in told
