"""``genai-ray bench``: the rival is real, results are compared, and a wrong one does not win."""

import json
import math
import os
import sys

import av
import numpy as np
import pytest

from genai_ray import InferenceSession, ModelCatalog, VideoReader, errors
from genai_ray.bench import FULL, QUICK, BenchReport, Case, CaseResult, SideResult, plain_script
from genai_ray.bench import run as bench
from tests.processes import start
from tests.video.clips import NUM_FRAMES, write

PLAIN = SideResult("plain script", (10.0, 20.0, 15.0), (9.0, 8.0, 7.0))


def side(db=45.0, worst=40.0, fps=(20.0, 30.0, 60.0), **others):
    return SideResult("enhance", fps, (1.0, 2.0, 3.0), db, worst, "onnx fp32", **others)


def report_of(*sides, load=0.1):
    case = CaseResult("websr-x2-s 8x6", "websr-x2-s", (8, 6), 5, (PLAIN, *sides))
    return BenchReport("2026-11-30", {"processor": "cpu"}, 2, load, ("numpy=2",), {}, 3, (case,), 60.0)


def test_medians_and_gains_are_those_of_the_turns():
    report = report_of(side())
    assert report.cases[0].gain(side()) == [2.0, 1.5, 4.0]  # of the same turn, not of medians
    assert report.rows()[0] == ("websr-x2-s", "5 of 8x6", "plain script", "15.0", "", "8.0", "", "")
    assert report.rows()[1] == ("", "", "enhance", "30.0", "2.00", "2.0", "45.0", "onnx fp32")
    assert report.faults == ()
    assert all(len(row) == len(report.header) for row in report.rows())
    sides = json.loads(json.dumps(report.to_dict(), allow_nan=False))["cases"]["websr-x2-s 8x6"]["sides"]
    assert sides["enhance"]["gain"] == [2.0, 1.5, 4.0]
    assert sides["plain script"]["db"] is None


@pytest.mark.parametrize(
    ("db", "worst", "is_wrong"),
    [(30.0, 20.0, False), (29.9, 29.0, True), (45.0, 19.9, True), (math.inf, math.inf, False), (math.nan, 40.0, True)],
)
def test_a_fast_wrong_result_does_not_win(db, worst, is_wrong):
    found = side(db, worst)
    report = report_of(found)
    assert found.is_wrong is is_wrong
    assert bool(report.cases[0].gain(found)) is not is_wrong
    assert (report.rows()[1][4] == "") is is_wrong
    assert len(report.faults) == is_wrong
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_program_that_failed_has_no_figures():
    report = report_of(SideResult("other", failed="no library"), side())
    assert report.rows()[1][2:] == ("other", "", "", "", "", "failed")
    assert report.rows()[2][4] == "2.00"
    assert report.faults == ("websr-x2-s 8x6: other failed: no library",)


def test_without_the_plain_script_nothing_is_compared():
    case = CaseResult("a 8x6", "a", (8, 6), 5, (SideResult("plain script", failed="x"), side(None, None)))
    assert case.gain(case.sides[1]) == []
    assert not case.sides[1].is_wrong


@pytest.mark.parametrize(("load", "is_busy"), [(0.5, False), (0.51, True)])
def test_a_busy_machine_is_told(load, is_busy):
    assert report_of(load=load).is_busy is is_busy


def test_every_case_is_one_of_the_catalog_and_its_own():
    assert len({case.name for case in FULL}) == len(FULL)
    for case in (*FULL, *QUICK):
        spec = ModelCatalog.default().get(case.model)
        assert len(spec.inputs) == 1
        assert not spec.params
        assert (spec.inputs[0].layout, spec.inputs[0].value_range, spec.inputs[0].mean) == ("nchw", (0, 1), None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bench") / "clip.mkv", tracks=0)


def test_the_plain_script_makes_what_the_model_makes(clip, tmp_path, capsys):
    out = tmp_path / "out file.mkv"
    plain_script.main(str(clip), str(out), str(ModelCatalog.default().path("websr-x2-s")))
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == NUM_FRAMES  # five batches of 8
    assert told["fps"] > 0
    with InferenceSession("websr-x2-s") as session, VideoReader(clip) as source, VideoReader(out) as result:
        expected = session.infer(source[:8].frames)
        got = result[:8].frames
    assert got.shape == expected.shape == (8, 128, 192, 3)
    assert np.abs(got.astype(int) - expected).mean() < 6


def change(clip, path, change_frame):
    """Encode a clip again with some of its frames changed."""
    with av.open(str(clip)) as box, av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for at, frame in enumerate(box.decode(video=0)):
            changed = change_frame(at, frame.to_ndarray(format="rgb24"))
            if changed is not None:
                new = av.VideoFrame.from_ndarray(np.ascontiguousarray(changed), format="rgb24")
                new.pts, new.time_base = frame.pts, frame.time_base
                sink.mux(stream.encode(new.reformat(format="bgr0")))
        sink.mux(stream.encode(None))
    return path


def test_results_are_compared_frame_by_frame(clip, tmp_path):
    same = change(clip, tmp_path / "same.mkv", lambda at, frame: frame)
    black = change(clip, tmp_path / "black.mkv", lambda at, frame: frame * (at != 7))
    swapped = change(clip, tmp_path / "swapped.mkv", lambda at, frame: frame[..., ::-1])
    assert bench._agreement_db(same, same) == (math.inf, math.inf)
    whole, worst = bench._agreement_db(same, black)
    assert worst < 15 < whole
    assert side(whole, worst).is_wrong
    assert side(*bench._agreement_db(same, swapped)).is_wrong
    short = change(clip, tmp_path / "short.mkv", lambda at, frame: frame if at < 30 else None)
    with pytest.raises(errors.QualityError, match="more frames"):
        bench._agreement_db(same, short)


def test_a_clip_goes_there_and_back(tmp_path):
    bench._write_clip(Case("websr-x2-s", (64, 48), 140), tmp_path / "clip.mkv")
    with VideoReader(tmp_path / "clip.mkv") as video:
        assert len(video) == 140
        frames = video[:].frames.astype(int)
        assert frames.shape[1:] == (48, 64, 3)
        assert video[139].pts_seconds == pytest.approx(139 / 25, abs=0.001)
    differences = np.abs(frames[:132] - frames[139]).mean(axis=(1, 2, 3))
    assert differences[123] < min(differences[107], differences[7])  # of 132 frames: 139 is 123 again, not 7


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no such library')", "it ended with 1: no such library"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with -9: it said nothing"),
        ("print('hello')", "it ended with 0: it said nothing"),
    ],
)
def test_a_program_that_fails_is_told_with_its_words(program, words):
    with pytest.raises(errors.InferenceError, match=words):
        bench._run([sys.executable, "-c", program])


def test_a_program_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(bench, "WITHIN_S", 0.2)
    with pytest.raises(errors.InferenceError, match="more than"):
        bench._run([sys.executable, "-c", "import time; time.sleep(600)"])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (None, "openvino bf16"),
        ({"tunings": []}, "openvino bf16"),
        ([("onnx", "fp32", None), ("openvino", "bf16", 57.3)], "openvino bf16, 57 dB from fp32"),
        ([("onnx", "fp32", None), ("openvino", "fp32", "inf")], "openvino bf16"),
    ],
)
def test_what_auto_computes_with_is_told(choice, words):
    if isinstance(choice, list):
        tried = [dict(zip(("backend", "precision", "precision_db"), one, strict=True)) for one in choice]
        choice = {"tunings": [{"tried": tried}]}
    assert bench._describe_way({"backend": "openvino", "precision": "bf16"}, choice) == words


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing(tmp_path):
    process = start("bench", "--quick", env=os.environ | {"TMPDIR": str(tmp_path)})
    for line in process.stderr:
        if "enhance, run" in line:
            break
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert not list(tmp_path.glob("genai-ray-bench*"))
