"""Many videos as one job: bad ones, running it again, manifests, names, and what is refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job import job
from genai_ray.enhance.job.clip_outcome import MARKER
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.files import sweep_folders
from genai_ray.tables import ResultTable
from genai_ray.video import Encoding, plan_video
from tests.processes import ROOT, descendants, is_alive, kill, start, wait_until
from tests.video.clips import write

FAST = Encoding(preset="ultrafast", crf=30)
OPTIONS = EnhanceOptions(encoding=FAST)
MODEL = "websr-x2-s"


def rows_of(folder):
    return {Path(row["output"]).name: row for row in pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()}


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mkv", "below/c.mp4")):
        write(folder / name, pts=list(range(5 + number)), tracks=0)
    (folder / "notes.txt").write_text("no video")
    (tmp_path / "out").mkdir()
    return folder


def test_a_bad_file_is_reported_and_the_others_are_done(ray_session, clips, tmp_path):
    (clips / "bad.mp4").write_bytes(b"no video" * 100)
    out = tmp_path / "out"
    report = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (report.clips, report.clips_failed, report.clips_skipped, report.frames) == (4, 1, 0, 18)
    assert names_in(out) == ["a.mp4", "b.mkv", "below/c.mp4", "results.parquet"]
    (bad,) = [video for video in report.videos if video.status == "failed"]
    assert (Path(bad.source).name, bad.error_class) == ("bad.mp4", "VideoError")
    rows = rows_of(out)
    assert {name: (row["status"], row["frames"]) for name, row in rows.items()} == {
        "a.mp4": ("done", 5),
        "b.mkv": ("done", 6),
        "c.mp4": ("done", 7),
        "bad.mp4": ("failed", None),
    }
    assert "not a video" in rows["bad.mp4"]["error"]
    assert (rows["a.mp4"]["backend"], rows["a.mp4"]["precision"], rows["a.mp4"]["device_kind"]) == (
        "onnx",
        "fp32",
        "cpu",
    )
    assert rows["a.mp4"]["seconds"] > 0
    assert 0 <= rows["a.mp4"]["share_outside_rgb"] < 0.5

    before = {name: (out / name).stat().st_mtime_ns for name in ("a.mp4", "b.mkv", "below/c.mp4")}
    write(clips / "bad.mp4", pts=list(range(9)), tracks=0)  # mended
    write(clips / "b.mkv", pts=list(range(8)), tracks=0)  # changed
    again = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (again.clips_failed, again.clips_skipped) == (0, 2)
    after = {name: (out / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == ["b.mkv"]
    assert {name: row["frames"] for name, row in rows_of(out).items()} == {
        "a.mp4": 5,
        "b.mkv": 8,
        "c.mp4": 7,
        "bad.mp4": 9,
    }


def test_a_job_that_is_done_starts_nothing(ray_session, clips, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    rows = rows_of(out)
    with monkeypatch.context() as patch:
        patch.setattr(job, "ModelCache", lambda *_, **__: pytest.fail("a cache was started"))
        again = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (again.clips, again.clips_skipped, again.frames, again.outputs) == (3, 3, first.frames, first.outputs)
    assert {video.status for video in again.videos} == {"skipped"}
    assert rows_of(out) == rows
    (out / "b.mkv").unlink()
    mended = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (mended.clips_skipped, mended.clips_failed) == (2, 0)
    assert (out / "b.mkv").exists()


def test_only_files_that_no_job_made_are_refused(ray_session, clips, tmp_path):
    out = tmp_path / "out"
    (out / "a.mp4").write_bytes(b"precious")
    report = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert [Path(video.source).name for video in report.videos if video.status == "failed"] == ["a.mp4"]
    assert "--overwrite" in report.videos[0].error
    assert (out / "a.mp4").read_bytes() == b"precious"
    other = EnhanceOptions(
        encoding=Encoding(preset="ultrafast", crf=40)
    )  # other results are wanted now: its own files may go
    report = enhance_videos(clips, out, models=MODEL, options=other)
    assert (report.clips_failed, report.clips_skipped, report.frames) == (1, 0, 13)
    assert (out / "a.mp4").read_bytes() == b"precious"


def test_fail_fast_ends_the_job_with_the_first_error(ray_session, clips, tmp_path):
    (clips / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(errors.VideoError, match=r"a\.mp4: not a video"):
        enhance_videos(clips, tmp_path / "out", models=MODEL, options=EnhanceOptions(encoding=FAST, fail_fast=True))
    assert rows_of(tmp_path / "out")["a.mp4"]["status"] == "failed"


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_manifest_says_what_becomes_of_each(ray_session, clips, tmp_path, kind):
    manifest, out = tmp_path / f"list{kind}", tmp_path / "out"
    table = pa.table(
        {
            "uri": ["clips/a.mp4", str(clips / "b.mkv"), str(clips / "below" / "c.mp4")],
            "output": ["first/one.mkv", None, str(tmp_path / "elsewhere.mp4")],
            "codec": ["ffv1", None, None],
            "preset": [None, "ultrafast", "ultrafast"],
            "param.sigma": [0.0, None, 0.2],
        }
    )
    (pyarrow.csv.write_csv if kind == ".csv" else pyarrow.parquet.write_table)(table, manifest)
    report = enhance_videos(manifest, out, models="ffdnet")
    assert [video.error for video in report.videos] == ["", "", ""]
    assert names_in(out) == ["b.mkv", "first/one.mkv", "results.parquet"]
    assert (tmp_path / "elsewhere.mp4").exists()
    assert [Path(path).name for path in report.outputs] == ["one.mkv", "b.mkv", "elsewhere.mp4"]
    assert enhance_videos(manifest, out, models="ffdnet").clips_skipped == 3


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_manifest_says_how_many_frames_become_of_each(ray_session, clips, tmp_path, kind):
    manifest, out = tmp_path / f"list{kind}", tmp_path / "out"
    uris = ["clips/a.mp4", str(clips / "b.mkv"), str(clips / "below" / "c.mp4")]
    table = pa.table({"uri": uris, "factor": [3, None, None], "fps": [None, "60000/1001", None]})
    (pyarrow.csv.write_csv if kind == ".csv" else pyarrow.parquet.write_table)(table, manifest)
    frames = [len(plan_video(uri if Path(uri).is_absolute() else str(tmp_path / uri)).pts) for uri in uris]
    report = enhance_videos(manifest, out, models="rife", options=OPTIONS)
    rates = [3, Fraction(60000, 1001) / 25, 2]
    assert [video.frames for video in report.videos] == [
        math.ceil(count * rate) for count, rate in zip(frames, rates, strict=True)
    ]


@pytest.mark.parametrize(
    ("column", "value", "words"), [("fps", "fast", "60000/1001"), ("background", "green", "#00b140")]
)
def test_a_manifest_with_unknown_words_is_refused_at_once(clips, tmp_path, column, value, words):
    pyarrow.csv.write_csv(pa.table({"uri": ["clips/a.mp4"], column: [value]}), tmp_path / "list.csv")
    with pytest.raises(errors.ConfigError, match=words):
        enhance_videos(tmp_path / "list.csv", tmp_path / "out", models="rife")


def test_names_follow_a_template(clips, tmp_path):
    options = EnhanceOptions(name="{index:03d}-{stem}-x2{suffix}")
    targets = resolve_targets([clips], tmp_path / "out", options)
    assert [Path(target.output).name for target in targets] == ["000-a-x2.mp4", "001-b-x2.mkv", "002-c-x2.mp4"]
    (target,) = resolve_targets([str(clips / "*.mkv")], tmp_path / "out", EnhanceOptions())
    assert target.output == str(tmp_path / "out" / "b.mkv")
    below = resolve_targets([str(clips / "**" / "*.mp4")], tmp_path / "out", EnhanceOptions())
    assert [target.output for target in below] == [str(tmp_path / "out" / name) for name in ("a.mp4", "below/c.mp4")]


def test_what_an_earlier_job_left_is_no_input(clips, tmp_path):
    wanted = [str(clips / name) for name in ("a.mp4", "b.mkv", "below/c.mp4")]
    (clips / "out" / "b.mkv.genai-ray").mkdir(parents=True)
    (clips / "below" / "d.mp4.genai-ray").mkdir()
    for left in ("out/a.mp4", "out/b.mkv.genai-ray/000000-0.nut", "below/d.mp4.genai-ray/000000-0.nut"):
        (clips / left).write_bytes(b"0")
    for inputs in (clips, clips / "**"):
        targets = resolve_targets(
            [inputs if inputs == clips else str(inputs / "*.m*")], clips / "out", EnhanceOptions()
        )
        assert [target.source for target in targets] == wanted
    with pytest.raises(errors.VideoError, match="results of an earlier job"):
        resolve_targets([str(clips / "out" / "*.mp4")], clips / "out", EnhanceOptions())


def test_a_name_that_is_no_utf8_harms_nobody(ray_session, clips, tmp_path):
    strange, out = os.fsdecode(b"caf\xe9.mp4"), tmp_path / "out"
    (clips / "a.mp4").rename(clips / strange)
    report = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (report.clips_failed, report.frames) == (0, 18)
    assert {name: row["status"] for name, row in rows_of(out).items()} == {
        "caf\\udce9.mp4": "done",
        "b.mkv": "done",
        "c.mp4": "done",
    }
    assert names_in(out) == ["b.mkv", "below/c.mp4", strange, "results.parquet"]
    assert enhance_videos(clips, out, models=MODEL, options=OPTIONS).clips_skipped == 3


def test_two_jobs_that_write_one_table_keep_each_others_rows(tmp_path):
    one, two = (
        ResultTable(str(tmp_path / "results.parquet"), {"output": "string", "frames": "int64"}, "output")
        for _ in range(2)
    )
    one.add([{"output": "a", "frames": 1}])
    two.add([{"output": "b", "frames": 2}, {"output": "a", "frames": 3}])
    one.add([{"output": "c", "frames": 4}])
    assert sorted((row["output"], row["frames"]) for row in pyarrow.parquet.read_table(one.place).to_pylist()) == [
        ("a", 1),
        ("b", 2),
        ("c", 4),
    ]


def test_rows_that_could_not_be_written_are_not_there_twice(tmp_path):
    table = ResultTable(str(tmp_path / "out" / "results.parquet"), {"output": "string"}, "output")
    with pytest.raises(errors.VideoError, match=r"results\.parquet"):
        table.add([{"output": "a"}])
    (tmp_path / "out").mkdir()
    table.add([{"output": "a"}, {"output": "b"}])
    assert pyarrow.parquet.read_table(table.place).column("output").to_pylist() == ["a", "b"]


def write_list(manifest, **columns):
    pyarrow.csv.write_csv(pa.table(columns), manifest)
    return manifest


@pytest.mark.parametrize(
    ("make", "options", "kind", "words"),
    [
        (lambda t: [t / "clips"], {"name": "{title}"}, errors.ConfigError, "{folder}, {stem}"),
        (lambda t: [t / "clips"], {"name": "{stem"}, errors.ConfigError, "template"),
        (lambda t: [t / "clips"], {"name": "same.mp4"}, errors.ConfigError, "two inputs for"),
        (lambda t: [t / "clips"], {"name": "{stem}.avi"}, errors.ConfigError, ".mp4, .mkv"),
        (lambda t: [t / "clips" / "*.webm"], {}, errors.VideoError, "no video matches"),
        (lambda t: [t / "out"], {}, errors.VideoError, "no video matches"),
        (
            lambda t: [(t / "clips").rename(t / "out" / "below").parent],
            {"name": "{stem}-x2.mp4"},
            errors.ConfigError,
            "is the input folder",
        ),
        (lambda t: [write_list(t / "l.csv", path=["a.mp4"])], {}, errors.ConfigError, "column uri"),
        (
            lambda t: [write_list(t / "l.csv", uri=["a.mp4"], model=["rife"])],
            {},
            errors.ConfigError,
            "columns ['model']",
        ),
        (lambda t: [write_list(t / "l.csv", uri=["clips/a.mp4", ""])], {}, errors.ConfigError, "row 1 has no uri"),
        (lambda t: [write_list(t / "l.csv", uri=["clips/a.mp4"], codec=["h266"])], {}, errors.ConfigError, "h266"),
        (
            lambda t: [write_list(t / "l.csv", uri=["clips/a.mp4", "clips/b.mkv"], output=["x.mp4", "./x.mp4"])],
            {},
            errors.ConfigError,
            "two inputs for",
        ),
        (
            lambda t: [write_list(t / "l.csv", uri=["clips/a.mp4"], output=["../clips/a.mp4"])],
            {},
            errors.ConfigError,
            "is an input",
        ),
        (lambda t: ["teleport://a/b.mp4"], {}, errors.ConfigError, "teleport"),
    ],
)
def test_what_is_refused_at_the_start(clips, tmp_path, make, options, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        resolve_targets(make(tmp_path), tmp_path / "out", EnhanceOptions(**options))


def test_a_preset_may_look_like_a_number(clips, tmp_path):
    manifest = write_list(tmp_path / "l.csv", uri=["clips/a.mp4"], codec=["av1"], preset=[12])
    (target,) = resolve_targets([manifest], tmp_path / "out", EnhanceOptions())
    assert target.options(EnhanceOptions()).encoding.preset == "12"


def test_only_half_written_tables_of_killed_jobs_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    table = ResultTable(str(tmp_path / "results.parquet"), {"a": "string"}, "a")
    here = f"{os.uname().nodename}-{os.stat('/proc/self/ns/pid').st_ino}"
    theirs = [
        tmp_path / f".results-{where}.partial" for where in (f"{here}-{os.getpid()}-0a", f"{here}0-{dead.pid}-0a")
    ]
    for path in (*theirs, tmp_path / f".results-{here}-{dead.pid}-0a.partial"):
        path.touch()
    table.add([{"a": "b"}])
    assert sorted(tmp_path.iterdir()) == sorted([*theirs, tmp_path / "results.parquet"])


_TOO_LONG = """
import resource, signal
from genai_ray.tables import ResultTable
table = ResultTable("memory://results.parquet", {"a": "string"}, "a")
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
table.add([{"a": str(number)} for number in range(10_000)])
"""
"""Is killed while it writes."""


def test_a_half_written_table_for_a_store_is_removed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _TOO_LONG], check=False, env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=ROOT
    )
    assert done.returncode == -signal.SIGXFSZ
    assert len(list(tmp_path.iterdir())) == 1
    sweep_folders(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_result_published_but_not_recorded_is_known_again(ray_session, clips, tmp_path, monkeypatch):
    """As after a kill between the two: the marker in the work folder says whose the file is."""
    from genai_ray.enhance.job import results

    out = tmp_path / "out"
    monkeypatch.setattr(results.Results, "flush", lambda self: None)
    enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert not (out / "results.parquet").exists()
    assert (out / "a.mp4.genai-ray" / MARKER).exists()
    monkeypatch.undo()
    report = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (report.clips_skipped, report.clips_failed) == (3, 0)
    assert names_in(out) == ["a.mp4", "b.mkv", "below/c.mp4", "results.parquet"]
    assert {row["status"] for row in rows_of(out).values()} == {"done"}


@pytest.mark.cluster
def test_a_killed_job_of_many_goes_on(ray_session, command, tmp_path):
    """It goes on in another Ray than it began in."""
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    out.mkdir()
    for number in range(12):
        write(clips / f"{number:02d}.mkv", pts=list(range(20)), tracks=0)
    words = [
        "enhance",
        clips,
        "-o",
        out,
        "--model",
        MODEL,
        "--encoder-preset",
        "ultrafast",
        "--segment-frames",
        8,
        "--json",
    ]
    job = start(*words)
    wait_until(lambda: len(list(out.glob("*.mkv"))) >= 3, job)
    children = descendants(job.pid)
    kill(job.pid)
    job.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mkv")}
    done = command(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (done.returncode, report["clips_failed"], report["frames"]) == (0, 0, 240)
    assert report["clips_skipped"] >= len(kept)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert names_in(out) == [*sorted(f"{number:02d}.mkv" for number in range(12)), "results.parquet"]
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


@pytest.mark.cluster
def test_exit_codes_failures_and_progress_lines(ray_session, command, tmp_path):
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    out.mkdir()
    write(clips / "a.mkv", size=(640, 360), pts=list(range(300)), tracks=0)
    (clips / "bad.mkv").write_bytes(b"no video" * 100)
    words = ["enhance", clips, "-o", out, "--model", "waifu2x-x2", "--encoder-preset", "ultrafast"]
    job = start(*words)
    first = job.stderr.readline()
    os.killpg(job.pid, signal.SIGINT)
    _, told = job.communicate()
    assert first.startswith(("starting:", "planning:", "enhancing:"))
    assert " of 2 videos" in first
    assert job.returncode == 130
    assert "results.parquet; the same job goes on from there" in told
    assert command("enhance", clips / "bad.mkv", clips / "bad.mkv", "-o", out, "--model", MODEL).returncode == 2
    (clips / "a.mkv").write_bytes(b"no video" * 50)
    words[words.index("waifu2x-x2")] = MODEL
    assert command(*words).returncode == 1
    done = command(*words, "--max-failures", 2)
    assert done.returncode == 0
    assert "bad.mkv" in "".join(done.stdout.split())  # lines are folded
