"""Pictures and video jobs over HTTP, on a real cache: the same application as the replicas', served from this
process."""

import asyncio
import contextlib
import fcntl
import functools
import http.client
import http.server
import io
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import ray
import uvicorn
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from genai_ray import EnhanceOptions, InferenceSession, ModelCache, enhance_videos, verify_video
from genai_ray.catalog import ServeProfile, WebOptions
from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.serve.deployment.app import build_app, list_operations
from genai_ray.serve.deployment.ports import find_free_ports
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.http.bodies import on_disk, save_file
from genai_ray.serve.web.video_jobs import VideoDesk, resume_videos
from genai_ray.serve.web.videos import check_uri
from genai_ray.video import Encoding, encode_png16
from tests.processes import DEADLINE_S, descendants, is_alive, kill, title, wait_until
from tests.serve.conftest import serve
from tests.serve.contract import check_answer
from tests.video.clips import write, write_cut
from tests.video.test_images import saved

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (9, 13, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


@contextlib.contextmanager
def application(folder, repository=None, limits=(), **people):
    """Serve the application from a thread of this process."""
    (port,) = find_free_ports(1)
    profile = ServeProfile(
        name="test",
        cache="people",
        people=WebOptions(videos_folder=str(folder), **people),
        max_body_bytes=4_000_000,
        **dict(limits),
    )
    engine = Engine(profile, ModelCache(name="people", is_online=True, deadline_s=60.0), Repository(repository))

    async def none():
        return engine.statistics

    server = uvicorn.Server(
        uvicorn.Config(
            build_app(list_operations(engine, none)), port=port, log_level="error", timeout_graceful_shutdown=5
        )
    )
    thread = threading.Thread(target=functools.partial(asyncio.run, server.serve()))
    thread.start()
    wait_until(lambda: server.started)
    desk = VideoDesk(profile.people)
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", folder=folder, desk=desk, profile=profile, engine=engine)
    finally:
        server.should_exit = True
        thread.join()
        with contextlib.suppress(ValueError):  # it goes by itself when it has nothing to look after
            ray.kill(ray.get_actor(desk.actor_name, namespace="genai_ray"))


@pytest.fixture(scope="module")
def app(ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    clips = tmp_path_factory.mktemp("clips")
    with application(folder, max_video_bytes=3_000_000, allowed_uris=(clips.as_uri(),)) as one:
        one.clips = clips
        yield one
    ModelCache(name="people").shutdown()


def ask(app, method, path, body=None, **headers):
    """Return (status, body, headers) of an answer; errors are answers too."""
    request = urllib.request.Request(app.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            answer = response.status, response.read(), response.headers
    except urllib.error.HTTPError as exc:
        answer = exc.code, exc.read(), exc.headers
    check_answer(app.url, method, path, (answer[0], answer[2], answer[1]))
    return answer


def enhance(app, query, body, **headers):
    return ask(app, "POST", f"/v1/enhance?{query}", body, **headers)


def image_of(answer):
    status, body, _ = answer
    assert status == 200, body
    return Image.open(io.BytesIO(body))


def refusal(answer, status):
    assert answer[0] == status, answer[:2]
    told = json.loads(answer[1])
    assert set(told) == {"error"}
    return told["error"]


def form(*parts):
    """Write a form by hand."""
    boundary = uuid.uuid4().hex
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.fixture(scope="module")
def local():
    with InferenceSession("websr-x2-s") as session:
        yield session


def test_a_picture_comes_back_enhanced_as_a_local_session_does(app, local):
    status, body, headers = enhance(app, "model=websr-x2-s", saved(Image.fromarray(PIXELS)))
    assert (status, headers["Content-Type"], headers["X-Model"], headers["X-Backend"]) == (
        200,
        "image/png",
        "websr-x2-s",
        "onnx",
    )
    assert "infer;dur=" in headers["Server-Timing"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), local.infer(PIXELS))


def test_a_form_is_the_same_as_a_body(app):
    picture = saved(Image.fromarray(PIXELS))
    body, kind = form(('name="file"; filename="a.png"', picture))
    assert (
        enhance(app, "model=websr-x2-s", body, **{"Content-Type": kind})[1]
        == enhance(app, "model=websr-x2-s", picture)[1]
    )


def test_16_bits_alpha_and_profile_pass_the_model(app, local):
    deep = RNG.integers(0, 65536, (16, 24, 4), np.uint16)
    written = enhance(app, "model=websr-x2-s", encode_png16(deep))[1]
    from genai_ray.video import decode_png16

    result = decode_png16(written, 10**6)
    assert np.array_equal(result[..., :3], local.infer(deep[..., :3].copy()))
    alpha = local.infer(np.repeat(deep[..., 3:], 3, axis=2))
    assert np.array_equal(result[..., 3], np.rint(alpha.mean(axis=2)).astype(np.uint16))


def test_alpha_that_is_the_same_everywhere_stays_so(app):
    opaque = Image.fromarray(np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]))
    result = image_of(enhance(app, "model=websr-x2-s", saved(opaque)))
    assert (result.mode, result.getchannel("A").getextrema()) == ("RGBA", (255, 255))
    assert image_of(enhance(app, "model=websr-x2-s&format=jpeg", saved(opaque))).mode == "RGB"  # nothing is lost
    opaque.putpixel((0, 0), (0, 0, 0, 254))
    assert "alpha as jpeg" in refusal(enhance(app, "model=websr-x2-s&format=jpeg", saved(opaque)), 400)


@pytest.mark.slow
def test_a_denoiser_leaves_alpha_alone_and_takes_params(app):
    alpha = RNG.integers(0, 256, PIXELS.shape[:2], np.uint8)
    body = saved(Image.fromarray(np.dstack([PIXELS, alpha])))
    weak, strong = (image_of(enhance(app, f"model=ffdnet&params=sigma={sigma}", body)) for sigma in (0.01, 0.2))
    assert np.array_equal(np.asarray(weak)[..., 3], alpha)
    assert not np.array_equal(np.asarray(weak), np.asarray(strong))


def test_format_quality_and_greyness(app):
    grey = saved(Image.fromarray(PIXELS).convert("L"), "JPEG")
    result = image_of(enhance(app, "model=websr-x2-s", grey))
    assert (result.format, result.mode, result.size) == ("JPEG", "L", (104, 72))
    small, large = (enhance(app, f"model=websr-x2-s&format=webp&image_quality={quality}", grey) for quality in (5, 95))
    assert small[2]["Content-Type"] == "image/webp"
    assert len(small[1]) < len(large[1])


def test_a_background_becomes_alpha(app):
    picture = saved(Image.fromarray(np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))), "JPEG")
    result = image_of(enhance(app, "model=selfie-segmentation", picture))
    assert (result.format, result.mode, result.size) == ("PNG", "RGBA", (208, 144))
    low, high = result.getchannel("A").getextrema()
    assert low < high
    assert "alpha as jpeg" in refusal(enhance(app, "model=selfie-segmentation&format=jpeg", picture), 400)


PICTURE = saved(Image.fromarray(PIXELS))


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("model=websr-x2-z", PICTURE, 404, "Did you mean websr-x2-"),
        ("", PICTURE, 400, "a query without model"),
        ("model=", PICTURE, 400, "a query without model"),
        ("model=websr-x2-s&model=websr-x2-m", PICTURE, 400, "'model' twice"),
        ("model=websr-x2-s&size=3", PICTURE, 400, "'size' in the query; allowed: format, image_quality, model, params"),
        ("model=websr-x2-s&params=sigma", PICTURE, 400, "NAME=NUMBER"),
        ("model=websr-x2-s&params=sigma=nan", PICTURE, 400, "NAME=NUMBER"),
        ("model=ffdnet&params=0.1", PICTURE, 400, "NAME=NUMBER"),
        ("model=ffdnet&params==0.1", PICTURE, 400, "NAME=NUMBER"),
        ("model=ffdnet&params=sigma=0.1,0.2", PICTURE, 400, "sigma"),
        ("model=ffdnet&params=sigma=0.1,,0.2", PICTURE, 400, "NAME=NUMBER"),
        ("model=ffdnet&params=sigma=0.1,sigma=0.2", PICTURE, 400, "each name once"),
        ("model=ffdnet&params=sigma=@weights.npy", PICTURE, 400, "'sigma=@weights.npy'; allowed: NAME=NUMBER"),
        ("model=websr-x2-s&params=sigma=1", PICTURE, 400, "'sigma' for websr-x2-s"),
        ("model=ffdnet&params=sigma=0.7", PICTURE, 400, "1 to 75 of 255"),
        ("model=websr-x2-s&format=gif", PICTURE, 400, "format='gif'; allowed: 'png', 'jpeg' or 'webp'"),
        ("model=websr-x2-s&format=jpeg&image_quality=high", PICTURE, 400, "a valid integer"),
        ("model=websr-x2-s&image_quality=50", PICTURE, 400, "quality for png"),
        ("model=rife", PICTURE, 400, "rife (interpolation) for one picture"),
        ("model=../../etc/passwd", PICTURE, 404, "no model"),
        ("model=websr-x2-s", b"not a picture", 400, "no picture"),
        ("model=websr-x2-s", b"", 400, "an empty body"),
        ("model=websr-x2-s", bytes(4_000_001), 413, "4000001 bytes; allowed: 4000000"),
    ],
)
def test_bad_pictures_and_queries_are_told_so(app, query, body, status, words):
    assert words in refusal(enhance(app, query, body), status)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "a form with 0 files"),
        ((('name="a"', b"text"),), "a form with 0 files and 1 fields"),
        ((('name="a"; filename="a"', PICTURE), ('name="b"; filename="b"', PICTURE)), "a form with 2 files"),
    ],
)
def test_forms_that_are_none(app, parts, words):
    body, kind = form(*parts)
    assert words in refusal(enhance(app, "model=websr-x2-s", body, **{"Content-Type": kind}), 400)
    assert "broken" in refusal(
        enhance(app, "model=websr-x2-s", PICTURE, **{"Content-Type": "multipart/form-data"}), 400
    )
    assert "broken" in refusal(
        enhance(app, "model=websr-x2-s", body[:20], **{"Content-Type": "multipart/form-data; boundary=x"}), 400
    )


def test_pictures_over_the_limits(ray_session, tmp_path):
    with application(tmp_path, max_image_pixels=2000, max_result_pixels=7000) as strict:
        assert "a result of 104x72" in refusal(enhance(strict, "model=websr-x2-s", PICTURE), 400)
        assert "a picture of 50x41; allowed: 2000 pixels" in refusal(
            enhance(strict, "model=websr-x2-s", saved(Image.new("RGB", (50, 41)))), 400
        )


def test_a_result_of_too_many_bytes_is_spoken_of_as_a_picture(ray_session, tmp_path):
    with application(tmp_path, limits={"max_output_bytes": PIXELS.size * 4}) as strict:
        assert image_of(enhance(strict, "model=websr-x2-s", PICTURE)).size == (104, 72)
        deep = encode_png16(RNG.integers(0, 65536, (*PIXELS.shape[:2], 4), np.uint16))
        words = f"a result of 104x72 with 16 bits and alpha, {PIXELS.size * 16} bytes; allowed: {PIXELS.size * 4} bytes"
        assert words in refusal(enhance(strict, "model=websr-x2-s", deep), 400)


def test_pictures_wait_for_room_and_are_all_answered(ray_session, tmp_path):
    height, width = PIXELS.shape[:2]
    with (
        application(tmp_path, limits={"max_output_bytes": PIXELS.size * 4}, max_image_pixels=height * width) as strict,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda _: enhance(strict, "model=websr-x2-s", PICTURE), range(32)))
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, body, _ in answers}) == 1


def test_a_picture_that_is_not_done_in_time_is_told_so(ray_session, tmp_path):
    with application(tmp_path, limits={"request_timeout_s": 0.01}) as hasty:
        large = saved(Image.effect_noise((2000, 1500), 50), "JPEG")
        answers = []

        def is_known():
            """The first request may be late for the model's file already, which is read all the same."""
            answers.append(enhance(hasty, "model=websr-x2-s", large))
            return answers[-1][0] != 503

        wait_until(is_known)
        assert "a picture was not decoded within 0.01 s" in refusal(answers[-1], 504)


def test_wrong_methods_and_paths(app):
    assert "Method Not Allowed" in refusal(ask(app, "GET", "/v1/enhance"), 405)
    assert "Method Not Allowed" in refusal(ask(app, "PUT", "/v1/videos/" + "0" * 32), 405)
    assert "Not Found" in refusal(ask(app, "GET", "/v1/enhance/more"), 404)
    assert "Not Found" in refusal(ask(app, "GET", "/page.html"), 404)


def test_models_and_cache_are_told(app):
    told = {model["name"]: model for model in json.loads(ask(app, "GET", "/v1/models")[1])["models"]}
    assert told["ffdnet"]["params"]["sigma"]["maximum"] > 0
    takes = {name: (model["takes_pictures"], model["takes_videos"]) for name, model in told.items()}
    assert (takes["websr-x2-s"], takes["rife"]) == ((True, True), (False, True))
    assert (told["websr-x2-s"]["presets"], told["websr-x2-m"]["presets"]) == (["fast"], [])
    enhance(app, "model=websr-x2-s", PICTURE)
    wait_until(
        lambda: any(
            one["model"] == "websr-x2-s" and one["hits"]
            for one in json.loads(ask(app, "GET", "/v1/cache")[1])["sessions"]
        )
    )
    cache = json.loads(ask(app, "GET", "/v1/cache")[1])
    assert 0 < cache["used_bytes"] <= cache["budget_bytes"]
    assert cache["hits"] >= cache["loads"] >= 1
    assert cache["devices"][0]["kind"] == "cpu"
    ModelCache(name="people").evict("websr-x2-s")
    wait_until(lambda: json.loads(ask(app, "GET", "/v1/cache")[1])["evictions"] > cache["evictions"])
    assert json.loads(ask(app, "GET", "/v1/cache")[1])["hits"] >= cache["hits"]


# --- videos ---------------------------------------------------------------------------------------------------------


def submit(app, query, body=None, **headers):
    status, told, answered = ask(app, "POST", f"/v1/videos?{query}", b"" if body is None else body, **headers)
    assert status == 202, told
    job = json.loads(told)
    assert answered["Location"] == job["links"]["self"] == f"/v1/videos/{job['id']}"
    return job["id"]


def look(app, job_id):
    status, told, _ = ask(app, "GET", f"/v1/videos/{job_id}")
    assert status == 200, told
    return json.loads(told)


def finish(app, job_id):
    wait_until(lambda: look(app, job_id)["state"] not in ("queued", "running"))
    return look(app, job_id)


def files_of(app, job_id):
    return sorted(path.name for path in (app.folder / job_id).iterdir())


@pytest.fixture(scope="module")
def clip(app):
    return write(app.clips / "a.mkv", size=(96, 64), pts=list(range(24)))


@pytest.mark.slow
def test_a_video_is_enhanced_as_by_hand(app, clip, tmp_path):
    job_id = submit(
        app, "model=ffdnet&model=websr-x2-s&params=sigma=0.05&format=mkv&name=my%20clip.mkv", clip.read_bytes()
    )
    job = finish(app, job_id)
    assert (job["state"], job["error"], job["name"], job["models"]) == (
        "done",
        None,
        "my clip.mkv",
        ["ffdnet", "websr-x2-s"],
    )
    assert (job["report"]["frames"], job["frames_done"], job["report"]["size_out"]) == (24, 24, [192, 128])
    assert str(app.folder) not in json.dumps(job)
    status, result, headers = ask(app, "GET", job["links"]["result"])
    assert (status, headers["Content-Type"]) == (200, "video/x-matroska")
    assert "my%20clip-websr-x2-s.mkv" in headers["Content-Disposition"]
    enhance_videos(
        clip,
        tmp_path / "b.mkv",
        models=["ffdnet", "websr-x2-s"],
        options=EnhanceOptions(params={"sigma": 0.05}, cache_name="people"),
    )
    assert result == (tmp_path / "b.mkv").read_bytes()
    status, part, _ = ask(app, "GET", job["links"]["result"], Range="bytes=10-19")
    assert (status, part) == (206, result[10:20])
    assert "Range" in refusal(ask(app, "GET", job["links"]["result"], Range="bytes=ten-"), 400)
    beyond = ask(app, "GET", job["links"]["result"], Range=f"bytes={len(result)}-")
    assert f"{len(result)} bytes" in refusal(beyond, 416)
    assert beyond[2]["Content-Range"] == f"bytes */{len(result)}"
    assert ask(app, "HEAD", job["links"]["result"])[2]["Content-Length"] == str(len(result))
    assert files_of(app, job_id) == ["job.json", "result.mkv"]
    assert json.loads(ask(app, "DELETE", f"/v1/videos/{job_id}")[1]) == {"id": job_id, "state": "removed"}
    assert "no video job" in refusal(ask(app, "GET", f"/v1/videos/{job_id}"), 404)
    assert not (app.folder / job_id).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "options", "frames", "name"),
    [
        ("start=0.2&duration=f10", {"start": "0:00.2", "duration": "f10"}, 10, "clip-websr-x2-s.mkv"),
        ("preview=true", {"preview": True}, 24, "clip-websr-x2-s.preview.mkv"),
        (
            "size=100x100&fit=crop&input_height=32&deinterlace=field&field_order=bottom",
            {"size": "100x100", "fit": "crop", "input_height": 32, "deinterlace": "field", "field_order": "bottom"},
            48,
            "clip-websr-x2-s.mkv",
        ),
        (
            "max_size=60kB&codec=hevc",
            {"encoding": Encoding(codec="hevc", max_size=60_000)},
            24,
            "clip-websr-x2-s.mkv",
        ),
    ],
)
def test_a_piece_is_enhanced_as_by_hand(app, clip, tmp_path, query, options, frames, name):
    job = finish(app, submit(app, f"model=websr-x2-s&format=mkv&name=clip.mkv&{query}", clip.read_bytes()))
    assert (job["error"], job["report"]["frames"]) == (None, frames)
    assert job["report"]["begins_s"] == (0.2 if "start" in options else 0)
    _, result, headers = ask(app, "GET", job["links"]["result"])
    assert name in headers["Content-Disposition"]
    options = EnhanceOptions(cache_name="people", **options)
    report = enhance_videos(clip, tmp_path / "b.mkv", models="websr-x2-s", options=options)
    assert result == Path(report.outputs[0]).read_bytes()


@pytest.mark.slow
def test_a_form_may_carry_the_video_and_its_name(app, clip):
    body, kind = form(('name="file"; filename="../holiday.mkv"', clip.read_bytes()))
    job = finish(app, submit(app, "model=websr-x2-s", body, **{"Content-Type": kind}))
    assert (job["state"], job["name"], job["report"]["frames_checked"]) == ("done", "holiday.mkv", 24)


def test_checks_are_as_asked(app, clip):
    job = finish(app, submit(app, "model=websr-x2-s&check=off", clip.read_bytes()))
    assert (job["state"], job["report"]["frames_checked"], job["report"]["segments_recomputed"]) == ("done", 0, 0)
    assert "record" not in job["links"]
    assert "only check=strict makes one" in refusal(ask(app, "GET", f"/v1/videos/{job['id']}/record"), 409)


@pytest.mark.slow
def test_a_strict_job_serves_its_record(app, clip, tmp_path):
    job = finish(app, submit(app, "model=websr-x2-s&check=strict&name=my%20clip.mkv", clip.read_bytes()))
    names = []
    for kind, place in (("result", "b.mp4"), ("record", "b.mp4.record.json")):
        status, content, headers = ask(app, "GET", job["links"][kind])
        assert status == 200
        names.append(headers["Content-Disposition"].partition("my%20clip")[2])
        (tmp_path / place).write_bytes(content)
    assert names == ["-websr-x2-s.mp4", "-websr-x2-s.mp4.record.json"]
    report = verify_video(tmp_path / "b.mp4", clip, sample="100%")
    assert (report.failures, report.is_exact) == ((), True)
    assert files_of(app, job["id"]) == ["job.json", "result.mp4", "result.mp4.record.json"]
    assert "no video job" in refusal(ask(app, "GET", f"/v1/videos/{'0' * 32}/record"), 404)


@pytest.mark.slow
def test_a_job_is_cancelled(app):
    source = write(app.clips / "long.mkv", size=(320, 180), pts=list(range(400)))
    job_id = submit(app, "model=websr-x2-l", source.read_bytes())
    wait_until(lambda: look(app, job_id)["frames_done"] > 0)
    job = json.loads(ask(app, "DELETE", f"/v1/videos/{job_id}")[1])
    assert (job["state"], look(app, job_id)["state"]) == ("cancelled", "cancelled")
    assert "it is cancelled" in refusal(ask(app, "GET", f"/v1/videos/{job_id}/result"), 409)
    wait_until(lambda: files_of(app, job_id) == ["job.json"])


@pytest.mark.slow
def test_jobs_that_wait_are_cancelled_too_and_there_are_so_many(ray_session, tmp_path):
    source = write(tmp_path / "long.mkv", size=(320, 180), pts=list(range(400))).read_bytes()
    with application(tmp_path / "videos", max_videos=2, videos_at_once=1) as strict:
        first, second = (submit(strict, "model=websr-x2-l", source) for _ in range(2))
        answer = ask(strict, "POST", "/v1/videos?model=websr-x2-l", source)
        assert "2 videos are being sent, wait or run" in refusal(answer, 429)
        assert answer[2]["Retry-After"]
        assert look(strict, second)["state"] == "queued"
        for job_id in (second, first):
            assert json.loads(ask(strict, "DELETE", f"/v1/videos/{job_id}")[1])["state"] == "cancelled"
            wait_until(lambda job_id=job_id: files_of(strict, job_id) == ["job.json"])
        assert sorted(path.name for path in strict.folder.glob("*/")) == sorted([first, second])


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("model=websr-x2-s", b"not a video", 400, "not a supported video"),
        ("model=websr-x2-s", PLAYLIST, 400, "not a supported video"),
        ("model=websr-x2-s", b"ffconcat version 1.0\nfile /etc/hostname\n", 400, "not a supported video"),
        ("model=websr-x2-s", b"", 400, "an empty body"),
        ("model=websr-x2-s", bytes(3_000_001), 413, "3000001 bytes; allowed: 3000000"),
        ("model=websr-x2-s&format=exe", b"x", 400, "format='exe'; allowed: 'mp4', 'mkv', 'mov' or 'webm'"),
        ("model=websr-x2-s&check=on", b"x", 400, "check='on'; allowed: 'default', 'strict' or 'off'"),
        ("model=websr-x2-z", b"x", 404, "no model 'websr-x2-z'"),
        ("model=websr-x2-s&params=sigma=1", b"x", 400, "param 'sigma'"),
        ("model=websr-x2-s&start=noon", b"x", 400, "start 'noon'; allowed: seconds such as 90"),
        ("model=websr-x2-s&start=5&end=3", b"x", 400, "an end after its start"),
        ("model=websr-x2-s&end=5&duration=3", b"x", 400, "one of them"),
        ("model=websr-x2-s&preview=true&end=3", b"x", 400, "one of them"),
        ("model=websr-x2-s&preview=maybe", b"x", 400, "preview='maybe'"),
        ("model=websr-x2-s&size=big", b"x", 400, "size 'big'; allowed: WIDTHxHEIGHT"),
        ("model=websr-x2-s&height=0", b"x", 400, "height 0; allowed: from 1"),
        ("model=websr-x2-s&height=1081", b"x", 400, "even sides"),
        ("model=websr-x2-s&width=64&scale=2", b"x", 400, "one of them"),
        ("model=websr-x2-s&size=64x64&fit=zoom", b"x", 400, "fit='zoom'"),
        ("model=websr-x2-s&input_height=tall", b"x", 400, "input_height='tall'"),
        ("model=websr-x2-s&deinterlace=bob", b"x", 400, "deinterlace='bob'"),
        ("model=websr-x2-s&deinterlace=off&field_order=top", b"x", 400, "field order 'top' with deinterlace 'off'"),
        ("model=websr-x2-s&max_size=big", b"x", 400, "max_size=big; allowed: bytes as a whole number"),
        ("model=websr-x2-s&video_bitrate=4MB", b"x", 400, "such as 4M or 4000k"),
        ("model=websr-x2-s&crf=20&max_size=1MB", b"x", 400, "crf and max_size; allowed: one of them"),
        ("model=websr-x2-s&crf=nan", b"x", 400, "crf=nan; allowed: from 0 to 63"),
        ("model=websr-x2-s&codec=h264_vaapi", b"x", 400, "codec 'h264_vaapi', which"),
        ("model=websr-x2-s&codec=png", b"x", 400, "png in .mp4"),
        ("model=ffdnet&params=sigma=0.1,0.2", b"x", 400, "param sigma=2 numbers"),
        ("model=ffdnet&params=sigma=@weights.npy", b"x", 400, "allowed: NAME=NUMBER"),
        ("model=rife&scene_detector=eyes", b"x", 400, "scene_detector='eyes'"),
        ("model=rife&scene_threshold=2", b"x", 400, "scene_threshold="),
        ("model=rife&scene_threshold=0.2&scene_detector=transnetv2", b"x", 400, "one of them: a threshold"),
        ("", b"x", 400, "a query without model"),
        ("model=websr-x2-s&uri=http://127.0.0.1:1/a.mp4", b"", 400, "below a prefix"),
        ("model=websr-x2-s&uri={clips}/a.mp4", b"x", 400, "a body and a uri"),
    ],
)
def test_bad_videos_are_refused_and_leave_nothing(app, query, body, status, words):
    before = set(app.folder.glob("[!.]*"))
    assert words in refusal(ask(app, "POST", f"/v1/videos?{query.format(clips=app.clips.as_uri())}", body), status)
    assert set(app.folder.glob("[!.]*")) == before


def test_an_upload_that_breaks_off_leaves_nothing(app):
    before = set(app.folder.glob("[!.]*"))
    with socket.create_connection(("127.0.0.1", int(app.url.rpartition(":")[2]))) as line:
        line.sendall(b"POST /v1/videos?model=websr-x2-s HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nsome")
        wait_until(lambda: set(app.folder.glob("[!.]*")) != before)
    wait_until(lambda: set(app.folder.glob("[!.]*")) == before)


def fill_disk():
    with open("/dev/full", "wb") as full:
        full.write(b"x")


def test_a_full_disk_is_507(ray_session, tmp_path):
    (tmp_path / "sent").symlink_to("/dev/full")

    async def receive():
        return {"type": "http.request", "body": bytes(100_000), "more_body": False}

    async def save():
        await save_file(Request({"type": "http", "method": "POST", "headers": []}, receive), 200_000, tmp_path / "sent")

    with pytest.raises(HTTPException, match="no room for this file") as refused:
        asyncio.run(save())
    assert refused.value.status_code == 507
    for call in (fill_disk, lambda: ray.get(ray.remote(num_cpus=0)(fill_disk).remote())):
        with pytest.raises(HTTPException, match="no room for this file"), on_disk():
            call()
    with pytest.raises(FileNotFoundError), on_disk():
        (tmp_path / "none").read_bytes()


def test_a_video_that_breaks_off_fails_its_job(app, tmp_path):
    job = finish(app, submit(app, "model=websr-x2-s&name=cut.mp4", write_cut(tmp_path / "cut.mp4").read_bytes()))
    assert job["state"] == "failed"
    assert "cut.mp4 is truncated" in job["error"]
    assert str(app.folder) not in job["error"]
    assert job["error"] in refusal(ask(app, "GET", f"/v1/videos/{job['id']}/result"), 409)
    assert files_of(app, job["id"]) == ["job.json"]


def test_allowed_prefixes_are_uris():
    with pytest.raises(ConfigError, match=r"allowed_uris\.0"):
        ServeProfile(name="a").override(people={"allowed_uris": ["/srv/clips"]})


def test_ids_that_are_none(app):
    for job_id in ("0" * 32, "..%2F..", "x", "0" * 31):
        refusal(ask(app, "GET", f"/v1/videos/{job_id}"), 404)
        refusal(ask(app, "DELETE", f"/v1/videos/{job_id}"), 404)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("model=websr-x2-s&fps=60", "without a model that adds frames"),
        ("model=rife&fps=often", "fps 'often'"),
        ("model=rife&fps=1e999999999", "fps '1e999999999'"),
        ("model=rife&fps=60/0", "fps 60/0"),
        ("model=rife&fps=0", "0 frames per second"),
        ("model=rife&factor=3&fps=60", "factor 3 and fps 60"),
        ("model=rife&factor=0", "factor"),
        ("model=websr-x2-s&background=blur", "without a model that removes it"),
        ("model=selfie-segmentation&background=purple", "background 'purple'"),
        (
            "model=selfie-segmentation&background=alpha",
            "with format=mp4, whose encoder stores no alpha; allowed: format=webm",
        ),
    ],
)
def test_options_that_no_model_uses_are_refused_at_once(app, clip, query, text):
    assert text in refusal(ask(app, "POST", f"/v1/videos?{query}", clip.read_bytes()), 400)


def test_a_subject_in_front_of_nothing_in_webm(app, clip):
    query = "model=selfie-segmentation&background=alpha&format=webm&duration=f2"
    job = finish(app, submit(app, query, clip.read_bytes()))
    assert (job["state"], job["error"], job["report"]["frames"]) == ("done", None, 2)


@pytest.mark.slow
def test_a_video_is_fetched_from_an_allowed_folder(app, clip):
    job = finish(app, submit(app, f"model=websr-x2-s&uri={clip.as_uri()}"))
    assert (job["state"], job["name"], job["report"]["frames"]) == ("done", "a.mkv", 24)
    job = finish(app, submit(app, f"model=websr-x2-s&uri={clip.with_name('none.mkv').as_uri()}"))
    assert job["state"] == "failed"
    assert job["error"].endswith("none.mkv: no such file")


@pytest.mark.slow
def test_any_name_of_a_file_is_fetched_as_its_uri_says(app, clip):
    folder = app.clips / "Best of #2"
    folder.mkdir()
    for name in ("a b é.mkv", "50%25?.mkv"):
        (folder / name).write_bytes(clip.read_bytes())
        job = finish(app, submit(app, f"model=websr-x2-s&uri={quote((folder / name).as_uri(), safe='')}"))
        assert (job["state"], job["error"]) == ("done", None)


@pytest.mark.slow
def test_a_folder_of_jobs_is_one_server_s_at_a_time(ray_session, clip, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    with application(folder) as app, (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answer = ask(app, "POST", "/v1/videos?model=websr-x2-s", clip.read_bytes())
        assert "another server looks after" in refusal(answer, 503)
        assert answer[2]["Retry-After"]
        assert list(folder.glob("*/")) == []
        fcntl.flock(other, fcntl.LOCK_UN)
        assert finish(app, submit(app, "model=websr-x2-s", clip.read_bytes()))["state"] == "done"
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Redirecting(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/in/moved"):
            self.send_response(302)
            self.send_header("Location", "/out/a.mkv")
            self.end_headers()
        else:
            super().do_GET()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_video_is_fetched_over_http_without_redirects(ray_session, clip, tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mkv").write_bytes(clip.read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Redirecting, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with application(tmp_path / "videos", allowed_uris=(f"{base}/in",), max_video_bytes=clip.stat().st_size) as app:
            assert finish(app, submit(app, f"model=websr-x2-s&uri={base}/in/a.mkv"))["state"] == "done"
            assert (
                "not a supported video"
                in finish(app, submit(app, f"model=websr-x2-s&uri={base}/in/moved.mkv"))["error"]
            )
            assert "no such file" in finish(app, submit(app, f"model=websr-x2-s&uri={base}/in/none.mkv"))["error"]
            refusal(ask(app, "POST", f"/v1/videos?model=websr-x2-s&uri={base}/out/a.mkv"), 400)
            (tmp_path / "in" / "b.mkv").write_bytes(clip.read_bytes() + b"1")
            assert "more than" in finish(app, submit(app, f"model=websr-x2-s&uri={base}/in/b.mkv"))["error"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/clipsx/a.mp4",
        "s3://bucket/clips/../secret.mp4",
        "s3://bucket/clips/%2e%2e/secret.mp4",
        "s3://bucket/clips/%252e%252e/secret.mp4",
        "s3://bucket/clips/a.zip::file:///etc/passwd",
        "S3://bucket/clips/a.mp4",
        "simplecache::s3://bucket/clips/a.mp4",
        "https://good.example@evil.example/in/a.mp4",
        "https://good.example.evil.example/in/a.mp4",
        "https://good.example/in\\..\\a.mp4",
        "https://good.example/in/a\n.mp4",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
    ],
)
def test_uris_that_are_not_below_an_allowed_prefix(uri):
    with pytest.raises(InvalidInputError, match="below a prefix"):
        check_uri(uri, ("s3://bucket/clips", "https://good.example/in/"))
    with pytest.raises(InvalidInputError, match="none on this server"):
        check_uri("s3://bucket/clips/a.mp4", ())


def test_uris_that_are(tmp_path):
    for uri in (
        "s3://bucket/clips/a.mp4",
        "s3://bucket/clips/b/..c.mp4",
        "https://good.example/in/a.mp4?version=..%2F3",
    ):
        check_uri(uri, ("s3://bucket/clips", "https://good.example/in/"))
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    check_uri((tmp_path / "in" / "a.mp4").as_uri(), ((tmp_path / "in").as_uri(),))
    with pytest.raises(InvalidInputError, match="outside the allowed folders"):
        check_uri((tmp_path / "in" / "link.mp4").as_uri(), ((tmp_path / "in").as_uri(),))


def test_no_sign_in_the_uri_of_a_file_hides_where_it_leads(tmp_path):
    inside = tmp_path / "in"
    (inside / "Best of #2").mkdir(parents=True)
    (tmp_path / "secret.mkv").write_bytes(b"x")
    (inside / "50%23.mkv").symlink_to(tmp_path / "secret.mkv")
    for uri in (f"{inside.as_uri()}/Best of #2/../../secret.mkv", f"{inside.as_uri()}/a?/../../secret.mkv"):
        with pytest.raises(InvalidInputError, match="%3F and %23"):
            check_uri(uri, (inside.as_uri(),))
    for uri in ((inside / "50%23.mkv").as_uri(), f"{inside.as_uri()}/50%2523.mkv"):
        with pytest.raises(InvalidInputError, match="outside the allowed folders"):
            check_uri(uri, (inside.as_uri(),))
    check_uri((inside / "Best of #2" / "a.mkv").as_uri(), (inside.as_uri(),))


def test_a_broken_upload_is_cleared_away_and_another_one_is_not(tmp_path):
    from genai_ray.serve.web.video_jobs import _is_orphan

    (tmp_path / "sent.partial").write_bytes(b"x")
    now_s = time.time()
    assert not _is_orphan(tmp_path, now_s)
    assert _is_orphan(tmp_path, now_s + 3700)
    os.utime(tmp_path / "sent.partial", (now_s + 3600, now_s + 3600))  # it still comes
    assert not _is_orphan(tmp_path, now_s + 3700)
    (tmp_path / "job.json").write_text("{}")
    assert not _is_orphan(tmp_path, now_s + 9999)
    assert not _is_orphan(tmp_path / "gone", now_s)


@pytest.mark.slow
def test_jobs_are_forgotten_after_a_while_and_their_actor_ends(ray_session, clip, tmp_path):
    with application(tmp_path / "videos", keep_videos_s=1.0) as app:
        job_id = submit(app, "model=websr-x2-s", clip.read_bytes())
        wait_until(lambda: ask(app, "GET", f"/v1/videos/{job_id}")[0] == 404)
        wait_until(lambda: list(app.folder.glob("*/")) == [])
        wait_until(
            lambda: app.desk.actor_name not in {one["name"] for one in ray.util.list_named_actors(all_namespaces=True)}
        )
        assert finish(app, submit(app, "model=websr-x2-s", clip.read_bytes()))["state"] == "done"


def begun(app, data, length):
    """Begin to send a video of so many bytes, and return when its folder is there."""
    before = set(app.folder.glob("*/"))
    one = socket.create_connection(("127.0.0.1", int(app.url.rpartition(":")[2])), timeout=DEADLINE_S)
    head = f"POST /v1/videos?model=websr-x2-s HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    one.sendall(head.encode() + data)
    wait_until(lambda: set(app.folder.glob("*/")) - before)
    return one


@pytest.mark.slow
def test_videos_count_from_their_first_byte_to_their_removal(ray_session, clip, tmp_path):
    video = clip.read_bytes()
    size = len(video)
    limits = {"max_video_bytes": size, "max_videos_bytes": 3 * size - 1}
    with application(tmp_path / "videos", max_videos=2, keep_videos=2, **limits) as app:
        sending = [begun(app, video[:10], size) for _ in range(2)]
        answer = ask(app, "POST", "/v1/videos?model=websr-x2-s", video)
        assert "2 videos are being sent, wait or run; allowed: 2" in refusal(answer, 429)
        assert answer[2]["Retry-After"]
        sending.pop().close()  # it is not counted any more
        answers = []
        wait_until(
            lambda: (
                answers.append(ask(app, "POST", "/v1/videos?model=websr-x2-s&format=mkv", video))
                or answers[-1][0] != 429
            )
        )
        assert answers[-1][0] == 202, answers[-1][1]
        jobs = [json.loads(answers[-1][1])["id"]]
        sending[0].sendall(video[10:])
        assert sending[0].recv(12) == b"HTTP/1.1 202"
        sending[0].close()
        wait_until(lambda: len(list(app.folder.glob("*/result.*"))) == 2)
        finish(app, jobs[0])
        for _ in range(2):
            jobs.append(submit(app, "model=websr-x2-s&format=mkv", video))
            assert finish(app, jobs[-1])["state"] == "done"
        wait_until(lambda: ask(app, "GET", f"/v1/videos/{jobs[0]}")[0] == 404)
        assert [look(app, job_id)["state"] for job_id in jobs[1:]] == ["done", "done"]
        wait_until(lambda: sorted(path.name for path in app.folder.glob("*/")) == sorted(jobs[1:]))
    with application(tmp_path / "bytes", keep_videos_bytes=1, **limits) as app:
        sending = [begun(app, video[:10], size) for _ in range(2)]
        words = f"a video of up to {size} bytes beside {2 * size} of those that are being sent, wait or run; "
        words += f"allowed: {3 * size - 1} together"
        assert words in refusal(ask(app, "POST", "/v1/videos?model=websr-x2-s", video), 429)
        for one in sending:
            one.close()
        wait_until(lambda: not list(app.folder.glob("*/")))
        jobs = [submit(app, "model=websr-x2-s&format=mkv", video) for _ in range(2)]
        wait_until(lambda: sorted(ask(app, "GET", f"/v1/videos/{job_id}")[0] for job_id in jobs) == [200, 404])
    with pytest.raises(ValueError, match="max_videos_bytes=1 is less than max_video_bytes=2"):
        WebOptions(max_video_bytes=2, max_videos_bytes=1)


def killed(words, most=99):
    """Kill processes of the embedded Ray by their title."""
    found = [pid for pid in descendants(os.getpid()) if words in title(pid)][:most]
    for pid in found:
        kill(pid)
    return found


@pytest.mark.cluster
def test_jobs_go_on_when_their_actor_and_their_task_are_killed(ray_session, tmp_path):
    source = write(tmp_path / "long.mkv", size=(160, 90), pts=list(range(400)), options={"g": "10"})
    with application(tmp_path / "videos", videos_at_once=1) as app:
        job_id, second = (submit(app, "model=websr-x2-s&format=mkv", source.read_bytes()) for _ in range(2))
        segments = app.folder / job_id / "result.mkv.genai-ray"
        wait_until(lambda: any(segments.glob("*.nut")))
        assert killed("ray::VideoJobs")
        wait_until(lambda: look(app, job_id)["state"] == "running")
        ask(app, "DELETE", f"/v1/videos/{second}")
        wait_until(lambda: look(app, job_id)["stage"] == "enhancing")
        assert len(killed("ray::VideoRunner")) == 1
        job = finish(app, job_id)
        assert (job["state"], job["report"]["frames"]) == ("done", 400)
        assert job["report"]["segments_reused"] >= 1
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=EnhanceOptions(cache_name="people"))
        assert ask(app, "GET", job["links"]["result"])[1] == (tmp_path / "b.mkv").read_bytes()


@pytest.mark.cluster
@pytest.mark.longest
def test_a_job_outlives_the_replicas_and_then_the_server(tmp_path):
    short, long = (
        write(tmp_path / f"{n}.mkv", size=(160, 90), pts=list(range(n)), options={"g": "10"}).read_bytes()
        for n in (300, 900)
    )
    profile = tmp_path / "own.yaml"
    profile.write_text(f"name: own\nmodels: [websr-x2-l]\npeople: {{videos_folder: {tmp_path / 'videos'}}}\n")
    served = serve("--profile", profile)
    app = SimpleNamespace(url=f"http://{served.http}", folder=tmp_path / "videos")
    try:
        job_id = submit(app, "model=websr-x2-l", short)
        wait_until(lambda: look(app, job_id)["state"] == "running")
        replicas = [
            pid for pid in descendants(served.process.pid) if "ServeReplica" in title(pid) and "Ingress" in title(pid)
        ]
        assert len(replicas) == 2
        for pid in replicas:
            kill(pid)
        wait_until(lambda: not any(is_alive(pid) for pid in replicas))
        wait_until(lambda: answers(app, job_id))
        job = finish(app, job_id)
        assert (job["state"], job["report"]["frames"]) == ("done", 300)

        job_id = submit(app, "model=websr-x2-l", long)
        wait_until(lambda: any((app.folder / job_id / "result.mp4.genai-ray").glob("*.nut")))
        children = descendants(served.process.pid)
        kill(served.process.pid)
        wait_until(lambda: not any(is_alive(pid) for pid in children))
        assert not (app.folder / job_id / "result.mp4").exists()
        served = serve("--profile", profile)
        app.url = f"http://{served.http}"
        wait_until(
            lambda: json.loads((app.folder / job_id / "job.json").read_text())["state"] == "done"
        )  # nobody has asked for it
        job = look(app, job_id)
        assert job["report"]["frames"] == 900
        assert job["report"]["segments_reused"] >= 1
    finally:
        served.end()


def answers(app, job_id):
    """Tell whether the endpoint answers again: new replicas come within seconds of the death of all."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(app, "GET", f"/v1/videos/{job_id}")[0] == 200
    return False


def test_nothing_is_started_where_no_job_was(ray_session, tmp_path):
    resume_videos(WebOptions(videos_folder=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
