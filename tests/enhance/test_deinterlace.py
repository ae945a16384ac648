"""Jobs over interlaced video: its options in a manifest, the frames of FFmpeg's filter, one worker against four, and a
job that was killed."""

import csv
import json
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job.records import options_of
from genai_ray.enhance.plan.fields import plan_fields
from genai_ray.types import Deinterlace
from genai_ray.video import Encoding, encode_png, plan_source
from tests.processes import descendants, is_alive, kill, start, wait_until
from tests.video.clips import write
from tests.video.fields import write_fields
from tests.video.test_deinterlace import FILM_RATE, TOP, VARIABLE, filtered, write_telecined

KINDS = ["fields", "fields", "frame", "frame", "fields", "fields", "frame", "fields"]


def luma(frame):
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(int)


def save_identity(path):
    """Save a model that gives back what it gets."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


ROWS = {
    "auto": {"uri": "mbaff 1.mkv"},
    "off": {"uri": "mbaff 1.mkv", "deinterlace": "off"},
    "field": {"uri": "mbaff 1.mkv", "deinterlace": "field", "field_order": "top", "start": "f4", "end": "0:01.19"},
    "variable": {"uri": "variable.mkv", "deinterlace": "field"},
    "plain": {"uri": "plain.mkv"},
    "mixed": {"uri": "mixed.mkv"},
    "film": {"uri": "film.mkv", "deinterlace": "ivtc"},
}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_manifest_says_what_is_deinterlaced(ray_session, tmp_path):
    """One job without a change of pixels: each way, a piece, a variable rate, frames of both kinds, and a file without
    an interlaced one."""
    write(tmp_path / "mbaff 1.mkv", size=(96, 64), tracks=1, options=TOP)
    write(tmp_path / "variable.mkv", tracks=0, options=TOP, pts=VARIABLE, rate=100)
    write(tmp_path / "plain.mkv", tracks=0)
    write_fields(tmp_path / "mixed.mkv", KINDS)
    write_telecined(tmp_path / "film.mkv")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("uri", "output", "deinterlace", "field_order", "start", "end"))
        table.writeheader()
        table.writerows({"output": f"{name}.mkv", **row} for name, row in ROWS.items())
    options = EnhanceOptions(encoding=Encoding(codec="ffv1"), segment_frames=6)
    model = save_identity(tmp_path / "identity.onnx")
    report = enhance_videos(tmp_path / "list.csv", tmp_path / "out", models=model, options=options)
    assert [video.error for video in report.videos] == [""] * len(ROWS)
    videos = dict(zip(ROWS, report.videos, strict=True))
    by_frame, by_field = (f"mode=send_{word}:deint=all:parity=" for word in ("frame", "field"))
    wanted = {
        "auto": filtered(tmp_path / "mbaff 1.mkv", by_frame + "auto"),
        "off": filtered(tmp_path / "mbaff 1.mkv"),
        "field": filtered(tmp_path / "mbaff 1.mkv", by_field + "tff")[8:60],
        "variable": filtered(tmp_path / "variable.mkv", by_field + "auto"),
        "plain": filtered(tmp_path / "plain.mkv"),
    }
    for name, pictures in wanted.items():
        result = filtered(videos[name].output)
        assert len(result) == len(pictures), name
        begins = pictures[0][0] if name == "field" else 0  # a piece begins at zero
        late = [abs(one - (two - begins)) for (one, *_), (two, *_) in zip(result, pictures, strict=True)]
        assert max(late[:-1]) <= Fraction(1, 1000), name
        off = [np.abs(luma(one) - luma(two)).mean() for (_, one, _), (_, two, _) in zip(result, pictures, strict=True)]
        assert max(off) < 0.5, name
    assert (
        "interlaced source: deinterlaced by bwdif, one frame for each; --deinterlace field makes one for each field"
        in (videos["auto"].notes)
    )
    assert "interlaced source: both fields of each frame were enhanced as one picture" in videos["off"].notes
    assert videos["film"].frames == 44  # of 54: ten times four of five, and four
    whole = [number / FILM_RATE for number in range(44)]
    assert max(abs(one - two) for (one, *_), two in zip(filtered(videos["film"].output), whole, strict=True)) <= (
        Fraction(1, 1000)
    )
    assert any(note.startswith("piece: frames 4 to 29 of 40, ") for note in videos["field"].notes)
    assert not any("interlaced" in note for note in videos["plain"].notes)
    assert "5 of 8 frames are flagged as interlaced: these were deinterlaced by bwdif" in videos["mixed"].notes


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_job_over_fields_goes_on_where_it_stopped(ray_session, command, tmp_path):
    """It goes on in another Ray than it began in."""
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(60)), options=TOP)
    words = ["--model", "websr-x2-m", "--encoder-preset", "ultrafast", "--segment-frames", 7, "--json"]
    words += ["--deinterlace", "field", "--field-order", "bottom", "--start", "f3"]
    assert command("enhance", source, "-o", tmp_path / "undisturbed.mkv", *words).returncode == 0
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *words)
    work = tmp_path / "b.mkv.genai-ray"
    wait_until(lambda: any(work.glob("*.nut")), job)
    children = descendants(job.pid)
    kill(job.pid)
    job.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    kept = len(list(work.glob("*.nut")))
    report = json.loads(command("enhance", source, "-o", output, *words).stdout)
    assert (report["frames"], report["segments_reused"]) == (114, kept)
    assert kept >= 1
    assert output.read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()


def test_pictures_are_not_deinterlaced(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(np.zeros((64, 96, 3), np.uint8)))
    plan = plan_source(str(path))
    assert plan_fields(plan, Deinterlace.AUTO, None, segment_frames=8) == (plan, ())
    with pytest.raises(
        errors.ConfigError, match=r"deinterlace 'field' of .*a\.png, which is no video; allowed: .*auto"
    ):
        plan_fields(plan, Deinterlace.FIELD, None, segment_frames=8)


def test_records_of_versions_that_did_not_deinterlace_still_hold():
    record = {"options": {"segment_frames": 6}, "backend": "onnx", "precision": "fp32"}
    assert options_of(record).deinterlace == "off"
    record["options"]["deinterlace"] = "field"
    assert options_of(record).deinterlace == "field"
