"""Finished segments, and what else lies in a work folder, that are not what was written."""

import os
from pathlib import Path

import pytest

from genai_ray import EnhanceOptions, ModelCache, enhance_videos
from genai_ray.catalog import ModelCatalog
from genai_ray.enhance.job.clip_outcome import MARKER, read_marker
from genai_ray.enhance.job.clip_plan import examine_clip, open_clip
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.steps import run_segment
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.video import Encoding
from tests.video.clips import NUM_FRAMES, write

MODEL = "websr-x2-s"
KIND = node_kind(is_gpu=False)


def flip(data):
    """Change one bit in the middle: such a file opens, and holds its frames."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = [
    flip,
    lambda data: data[: len(data) // 2],
    lambda data: data[:-1],
    lambda data: b"",
    lambda data: os.urandom(len(data)),
    lambda data: data + b"\0",
]
"""What becomes of the first segments; those after them stay whole."""


def finish_segments(source, output, options):
    """Finish all segments of a job, as one that was killed before it joined them; returns their files in order."""
    (target,) = resolve_targets([source], output, options)
    specs = (ModelCatalog.default().get(MODEL),)
    planned = open_clip(examine_clip(target, specs, options), specs, KIND)
    with ModelCache(2_000_000_000, name="damage") as cache:
        job = JobContext(specs, (), options, cache, "damage", KIND)
        for segment in planned.timeline.plan.segments:
            run_segment(planned, segment.index, job)
    return sorted(Path(target.work_dir.removeprefix("local://")).glob("*.nut"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "local://"])
def test_damaged_segments_are_computed_again(ray_session, tmp_path, scheme):
    source, options = (
        write(tmp_path / "a.mkv", options={"g": "5"}),
        EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=5),
    )
    enhance_videos(source, tmp_path / "undisturbed.mkv", models=MODEL, options=options)
    output = f"{scheme}{tmp_path}/b.mkv"
    found = finish_segments(source, output, options)
    assert len(found) == NUM_FRAMES // 5 > len(DAMAGES) + 1
    for path, damage in zip(found, DAMAGES, strict=False):
        path.write_bytes(damage(path.read_bytes()))
    swapped, kept = found[len(DAMAGES)], found[len(DAMAGES) + 1 :]
    swapped.write_bytes(kept[0].read_bytes())  # whole, but another one
    report = enhance_videos(source, output, models=MODEL, options=options)
    assert (report.segments, report.segments_reused) == (len(found), len(kept))
    assert any(
        f"{len(DAMAGES) + 1} finished segments" in note and "computed again" in note for note in report.videos[0].notes
    )
    assert (tmp_path / "b.mkv").read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.mkv", "b.mkv", "undisturbed.mkv"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"key": 1}', b'{"report": {"dance": 1}, "key": "", "size": 1, "stamp": ""}', b"\xff\x00"],
)
def test_a_marker_that_cannot_be_read_is_none(tmp_path, content):
    (target,) = resolve_targets([tmp_path / "a.mkv"], tmp_path / "b.mkv", EnhanceOptions())
    Path(target.work_dir).mkdir()
    (Path(target.work_dir) / MARKER).write_bytes(content)
    assert read_marker(target) is None
