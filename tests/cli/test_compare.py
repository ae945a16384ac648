"""``genai-ray compare``: frames of a video through several models."""

import base64
import io
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from genai_ray import InferenceSession, VideoReader, errors, psnr
from genai_ray.cli.choices import ShownTask
from genai_ray.enhance import EnhanceOptions
from genai_ray.evaluation.degrade import enlarge, shrink
from genai_ray.trials import try_models
from genai_ray.trials.run import SHOWN_TASKS
from tests.video.clips import write


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "a b.mp4", tracks=0)


@pytest.mark.slow
def test_the_sheet_the_page_and_the_table(clip, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("compare", clip, "--models", "websr-x2-s,esrgan-4x", "--at", "0.2s,1")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    head, *lines, sheet, page = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["websr-x2-s", "x2"], ["esrgan-4x", "x4"]]
    assert "self-test" in head
    assert all(line.count(" dB") == 2 for line in lines)
    assert (sheet, page) == ("a b-compare/sheet.png", "a b-compare/page.html")
    with Image.open(tmp_path / sheet) as picture:
        assert (picture.format, picture.width > 3 * 320, picture.height > 2 * 100) == ("PNG", True, True)
        assert len(np.unique(np.asarray(picture))) > 100
    check_page((tmp_path / page).read_text())
    again = command(*words)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    told = command("compare", clip, "--models", "websr-x2-s", "--at", "0.2s", "-y", "-q", "--json").stdout
    (model,) = json.loads(told)["models"]
    assert model["model_id"] == "websr-x2-s"
    assert model["seconds_per_frame"] > 0 < model["expected_s"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b-compare"]


def check_page(text):
    """It holds every picture itself, and a slider for each frame."""
    assert not re.search(r"(src|href)=|https?://|@import", text)
    assert text.count('type="range"') == 2
    assert text.count("<select>") == 4
    rows = json.loads(re.search(r"const pictures = (.*?);</script>", text)[1])
    assert [len(row) for row in rows] == [3, 3]
    for row in rows:
        sizes = [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size for address in row]
        assert sizes == [(384, 256), (192, 128), (384, 256)]


@pytest.mark.slow
def test_measurements_are_those_of_the_models(clip):
    trials = try_models(clip, ["websr-x2-s", "ffdnet"], at_s=[0.5], options=EnhanceOptions(params={"sigma": 15}))
    larger, cleaner = trials.models
    with VideoReader(clip) as video, InferenceSession("websr-x2-s") as session:
        frame = video.frame_at(0.5).frame
        assert np.array_equal(trials.frames[0], frame)
        assert np.array_equal(larger.results[0], session.infer(frame[np.newaxis])[0])
        small = shrink(frame, 2)
        assert larger.self_test_db == psnr(frame, session.infer(small[np.newaxis])[0])
        assert larger.baseline_db == psnr(frame, enlarge(small, 2))
    assert cleaner.results[0].shape == frame.shape
    assert cleaner.self_test_db > cleaner.baseline_db + 2  # noise of sigma 15: 24.6 dB
    assert cleaner.baseline_db == pytest.approx(24.6, abs=1.0)


def test_a_frame_is_shrunk_by_means_and_enlarged_bicubically():
    frame = np.arange(4 * 6 * 3, dtype=np.uint16).reshape(4, 6, 3) * 100
    small = shrink(frame, 2)
    assert small.shape == (2, 3, 3)
    assert small[0, 0, 0] == np.rint(frame[:2, :2, 0].mean())
    large = enlarge(np.full((2, 3, 3), 65535, np.uint16), 4)
    assert (large.shape, large.dtype, large.min()) == ((8, 12, 3), np.uint16, 65535)
    assert enlarge(frame, 1) is frame


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--at", "soon"], "3s,10.5s"),
        (["--at", "99s"], "no frame at 99.0 s"),
        (["--models", "rife"], "models for upscaling, denoising, low-light"),
        (["--models", ","], "no model to compare"),
        (["--models", "websr-x2-s", "--param", "sigma"], "NAME=VALUE"),
        (["--task", "interpolation"], "low-light"),
    ],
)
def test_what_cannot_be_compared(clip, tmp_path, command, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    done = command("compare", clip, *options)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tasks_that_are_offered_are_those_that_can_be_shown():
    assert [*ShownTask] == [*SHOWN_TASKS]


def test_outputs_are_refused_before_anything_is_measured(clip, tmp_path, command, monkeypatch):
    monkeypatch.setattr("genai_ray.trials.run._try_model", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    (tmp_path / "a" / "page.html").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sheet.png").touch()
    for folder, words in (("file", "cannot be written"), ("a", "is a folder"), ("b", "pass --overwrite")):
        done = command("compare", clip, "-o", tmp_path / folder)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_flat_frames_have_infinite_psnr_and_json_says_so(tmp_path, command):
    clip = tmp_path / "grey.mkv"
    with av.open(str(clip), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for _ in range(4):
            grey = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 128, np.uint8), format="rgb24")
            sink.mux(stream.encode(grey.reformat(format="bgr0")))
        sink.mux(stream.encode(None))
    done = command("compare", clip, "--models", "websr-x2-s", "--at", "0", "-o", tmp_path / "out", "--json", "-q")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert told["models"][0]["baseline_db"] == "inf"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["page.html", "sheet.png"]


def test_more_than_fits_into_memory_is_refused(clip, monkeypatch):
    monkeypatch.setattr("genai_ray.trials.run.MAX_BYTES", 10_000_000)
    with pytest.raises(
        errors.ConfigError, match=r"through 1 model take [\d.]+ MB; allowed: at most 10 MB. Compare fewer"
    ):
        try_models(clip, ["websr-x2-s"], at_s=[0.1] * 300)


def test_a_param_that_no_model_has_is_refused(clip):
    with pytest.raises(errors.ConfigError, match="sigma"):
        try_models(clip, ["websr-x2-s"], options=EnhanceOptions(params={"sigma": 15}))
