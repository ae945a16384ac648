"""Quality against seconds per frame: where the seconds come from, and where they are shown."""

import csv
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.validate import validate_videos
from genai_ray.validate.durations import find_duration
from tests.validate.test_validate import FRAMES, noisy, write


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several clips")
    paths = [write(folder / "reference.mkv", FRAMES)]
    paths += [write(folder / f"{name}.mkv", noisy(FRAMES, deviation)) for name, deviation in (("fast", 9), ("slow", 3))]
    return paths


def test_given_seconds_are_shown_everywhere(clips):
    reference, *candidates = clips
    report = validate_videos(reference, candidates, metrics=["psnr", "ssim"], seconds_per_frame=[0.01, 0.25])
    assert report.rows()[-1] == ("time to make it", "seconds per frame", ("0.01", "0.25"))
    told = json.loads(json.dumps(report.to_dict()))["candidates"]
    assert [(one["seconds_per_frame"], one["seconds_from"]) for one in told] == [(0.01, "given"), (0.25, "given")]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["seconds_per_frame"] for row in rows] == ["0.01"] * 24 + ["0.25"] * 24
    page = report.to_html()
    assert page.count("against seconds per frame</figcaption>") == 2
    assert "fast.mkv, 0.01 s, " in page
    figure = report.plot()
    curves, points = figure.axes[:2]
    assert (len(curves.get_lines()), points.get_xscale()) == (2, "log")
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in points.get_lines()]
    assert drawn == [(one.seconds_per_frame, one.quality("psnr")) for one in report.candidates]


def test_one_may_be_unknown_or_infinite(clips, tmp_path):
    reference, fast, _ = clips
    copy = write(tmp_path / "copy.mkv", FRAMES)
    report = validate_videos(reference, [fast, copy], metrics=["psnr"], seconds_per_frame=[None, 0.5])
    assert report.rows()[-1][2] == ("not known", "0.5")
    assert "infinite, or of unknown time" in report.to_html()
    report.plot()
    alone = validate_videos(reference, fast, metrics=["psnr"])
    assert not alone.has_durations
    assert [row[1] for row in alone.rows()] == ["of mean MSE", "mean of frames", "worst"]


@pytest.mark.parametrize("given", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_other_seconds_are_refused(clips, given):
    with pytest.raises(errors.InvalidInputError, match="seconds per frame"):
        validate_videos(clips[0], clips[1:], seconds_per_frame=given)


def test_what_enhance_wrote_is_found(ray_session, clips, tmp_path):
    """A folder has results.parquet; the JSON of a single job is kept under the name of its result."""
    options = EnhanceOptions()
    enhance_videos([clips[0], clips[1]], tmp_path / "many", models="websr-x2-s", options=options)
    seconds, told = find_duration(str(tmp_path / "many" / "fast.mkv"), 24)
    assert told == str(tmp_path / "many" / "results.parquet")
    assert 0 < seconds < 60
    single = tmp_path / "single.mkv"
    made = enhance_videos(clips[1], single, models="websr-x2-s", options=options)
    report = tmp_path / "single.mkv.report.json"
    report.write_text(json.dumps(made.to_dict()))
    assert find_duration(str(single), 24) == (pytest.approx(1 / made.fps), str(report))
    found = validate_videos(tmp_path / "many" / "reference.mkv", single, metrics=["psnr"])
    assert found.candidates[0].seconds_from == str(report)
    assert find_duration(str(single), 23)[1].endswith("its video has 24 frames, the candidate 23")
    # Made anew by the same command: the same bytes, and yet nobody knows how long these took.
    before = single.read_bytes()
    again = EnhanceOptions(overwrite=True)
    enhance_videos(clips[1], single, models="websr-x2-s", options=again)
    assert single.read_bytes() == before
    seconds, told = find_duration(str(single), 24)
    assert seconds is None
    assert told.startswith(f"{report} does not tell seconds per frame: it is of another file of this name: ")
    fast = tmp_path / "many" / "fast.mkv"
    os.utime(fast, ns=(0, fast.stat().st_mtime_ns + 1000))
    assert "another file of this name" in find_duration(str(fast), 24)[1]


def test_a_report_is_of_one_size_and_one_change(tmp_path):
    candidate, report = tmp_path / "a.mkv", tmp_path / "a.mkv.report.json"
    candidate.write_bytes(b"four")
    video = {"output": "a.mkv", "frames": 24, "size_bytes": 4, "stamp": str(candidate.stat().st_mtime_ns)}
    for changes, expected in (
        ({}, 0.5),
        ({"size_bytes": 5}, None),
        ({"stamp": "0"}, None),
        ({"size_bytes": None}, None),
        ({"stamp": ""}, None),
    ):
        report.write_text(json.dumps({"videos": [video | changes], "fps": 2.0}))
        assert find_duration(str(candidate), 24)[0] == expected


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"videos": [{}]}', "[" * 10**5, '{"videos": []}'])
def test_a_broken_report_is_told_and_not_believed(clips, tmp_path, content):
    candidate = write(tmp_path / "a b.mkv", noisy(FRAMES, 3))
    (tmp_path / "a b.mkv.report.json").write_text(content)
    report = validate_videos(clips[0], candidate, metrics=["psnr"])
    assert report.candidates[0].seconds_per_frame is None
    assert report.candidates[0].notes[0].startswith(f"{candidate}.report.json does not tell seconds per frame: it ")


@pytest.mark.parametrize(("frames", "fps"), [("1e999", "2.0"), ("24", "1e999"), ("24", "1e-320")])
def test_numbers_without_end_are_not_believed(tmp_path, frames, fps):
    (tmp_path / "a.mkv").write_bytes(b"")
    report = tmp_path / "a.mkv.report.json"
    file = f'"size_bytes": 0, "stamp": "{(tmp_path / "a.mkv").stat().st_mtime_ns}"'
    report.write_text(f'{{"videos": [{{"output": "a.mkv", "frames": {frames}, {file}}}], "fps": {fps}}}')
    seconds, why = find_duration(str(tmp_path / "a.mkv"), 24)
    assert seconds is None
    assert why.startswith(f"{report} does not tell seconds per frame: it ")


def test_a_name_without_room_for_the_suffix_is_no_error(tmp_path):
    candidate = tmp_path / f"{'a' * 246}.mkv"  # 250 bytes; file systems take 255
    candidate.write_bytes(b"")
    seconds, why = find_duration(str(candidate), 24)
    assert seconds is None
    assert why.startswith(f"{candidate}.report.json does not tell seconds per frame: it cannot be read")


def test_a_row_of_another_file_is_not_believed(clips, tmp_path):
    candidate = write(tmp_path / "a.mkv", noisy(FRAMES, 3))
    facts = (tmp_path / "a.mkv").stat()
    size = facts.st_size
    row = {"output": candidate, "status": "done", "frames": 24, "seconds": 12.0, "size": size, "segments_reused": 0}
    row |= {"stamp": str(facts.st_mtime_ns)}
    for changes, expected in (
        ({}, 0.5),
        ({"size": size + 1}, None),
        ({"stamp": "0"}, None),
        ({"frames": 23}, None),
        ({"segments_reused": 1}, None),
        ({"status": "failed"}, None),
    ):
        pyarrow.parquet.write_table(pa.Table.from_pylist([row | changes]), tmp_path / "results.parquet")
        assert find_duration(candidate, 24)[0] == expected


def test_the_command_takes_seconds(clips, command):
    done = command("validate", *clips, "--metrics", "psnr", "--seconds-per-frame", "0.5,-", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["candidates"]
    assert [one["seconds_per_frame"] for one in told] == [0.5, None]
    assert len(told[0]["worst_frames"]) == 2
    for wrong in ("0.5", "0.5,x", "0.5,0", "0.5,nan"):
        done = command("validate", *clips, "--seconds-per-frame", wrong)
        assert done.returncode == 2
        assert "one for each candidate" in " ".join(done.stderr.split())
