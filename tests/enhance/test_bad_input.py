"""Bad files among good ones in one job, and a disk that is full: each is named, others are unharmed, nothing is
half-published."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job.scheduler import Scheduler
from genai_ray.video import Encoding
from tests.servers import serving
from tests.video.clips import NUM_FRAMES, write, write_cut
from tests.video.test_bad_input import spoil, write_changing

OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=10)


@pytest.mark.slow
def test_bad_files_are_named_and_harm_no_other(ray_session, tmp_path):
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    out.mkdir()
    (clips / "empty.mkv").write_bytes(b"")
    write_cut(clips / "cut.mp4")
    spoil(write(clips / "damaged.mp4", tracks=0, size=(320, 240)), 25)
    write_changing(clips / "changing.ts")
    unknown = write(clips / "unknown.mkv", tracks=0)
    unknown.write_bytes(unknown.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    (clips / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\nfirst.mkv\n#EXT-X-ENDLIST\n")
    write(clips / "first.mkv", tracks=0)
    write(clips / "last.mp4")
    away = tmp_path / "away"
    away.mkdir()
    write(away / "away.mkv", tracks=0, size=(640, 360), codec="ffv1", pix_fmt="yuv444p", pts=list(range(60)))
    with serving(away, breaks_at=3 * 1024**2) as (address, _):
        names = [
            "first.mkv",
            "empty.mkv",
            "cut.mp4",
            "damaged.mp4",
            "changing.ts",
            "unknown.mkv",
            "none.mkv",
            "list.m3u8",
            f"{address}/away.mkv",
            "last.mp4",
        ]
        manifest = clips / "list.csv"
        pyarrow.csv.write_csv(pa.table({"uri": names}), manifest)
        report = enhance_videos(manifest, out, models="websr-x2-s", options=OPTIONS)
    found = {Path(video.source).name: (video.status, video.error) for video in report.videos}
    wanted = {
        "empty.mkv": "empty",
        "cut.mp4": f"of {NUM_FRAMES} frames",
        "damaged.mp4": "is damaged",
        "changing.ts": f"frame {NUM_FRAMES} at",
        "unknown.mkv": "unsupported video codec",
        "none.mkv": "no such file",
        "list.m3u8": "pass --any-format",
        "away.mkv": "reading at byte",
    }
    for name, words in wanted.items():
        status, error = found.pop(name)
        assert (status, name in error, words in error) == ("failed", True, True), (name, error)
    assert {name: status for name, (status, _) in found.items()} == {"first.mkv": "done", "last.mp4": "done"}
    assert sorted(path.name for path in out.iterdir() if not path.is_dir()) == [
        "first.mkv",
        "last.mp4",
        "results.parquet",
    ]
    left = [path for path in out.rglob("*") if path.is_file() and path.parent != out]
    assert {path.suffix for path in left} <= {
        ".nut"
    }  # what was finished of the damaged and the changing one, for when they are mended


def test_of_several_errors_the_first_in_the_video_is_told(ray_session, tmp_path, monkeypatch):
    write_changing(tmp_path / "changing.ts")
    fail, end, held, failed = Scheduler._fail, Scheduler._end, [], []

    def end_with_the_last_first(self, clip):
        if not clip.in_flight:
            for step, error in sorted(held, key=lambda one: -one[0].index):
                failed.append(step.index)
                fail(self, step, error)
            held.clear()
        return end(self, clip)

    monkeypatch.setattr(Scheduler, "_fail", lambda self, step, error: held.append((step, error)))
    monkeypatch.setattr(Scheduler, "_end", end_with_the_last_first)
    with pytest.raises(errors.VideoError, match=f"frame {NUM_FRAMES} at"):
        enhance_videos(
            tmp_path / "changing.ts",
            tmp_path / "a.mkv",
            models="websr-x2-s",
            options=replace(OPTIONS, segment_frames=20),
        )
    assert len(failed) > 1
    assert failed == sorted(failed, reverse=True)


def test_a_disk_that_is_full_and_then_is_not(ray_session, tmp_path):
    place, source = tmp_path / "small", write(tmp_path / "a.mkv", tracks=0, size=(320, 240), pts=list(range(20)))
    place.mkdir()
    options = EnhanceOptions(encoding=Encoding(codec="ffv1"), segment_frames=10)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)], check=False, capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        with pytest.raises(errors.VideoError, match=r"b\.mkv\.genai-ray: .*No space left"):
            enhance_videos(source, place / "b.mkv", models="websr-x2-s", options=options)
        assert [path for path in place.rglob("*") if path.is_file()] == []
        subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
        assert enhance_videos(source, place / "b.mkv", models="websr-x2-s", options=options).frames == 20
        assert [path.name for path in place.iterdir()] == ["b.mkv"]
    finally:
        subprocess.run(["umount", str(place)], check=True)
