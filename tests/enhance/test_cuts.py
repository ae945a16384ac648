"""How cuts are found is planned, and found cuts do not depend on segments, workers or interruptions."""

from dataclasses import replace

import numpy as np
import pytest

from genai_ray import EnhanceOptions, ModelCache, enhance_videos
from genai_ray.enhance.job.clip_plan import examine_clip, name_segments, open_clip, plan_timeline
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.steps import run_segment
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.cuts import MOST_SHARE, plan_cuts, predict_share
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.video import Encoding
from tests.enhance.moving import frames_of, pan, write_frames
from tests.rays import ray_of, without_ray

LAST = 20
"""The last frame before the cut of the clip below."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.concatenate([pan(LAST + 1), pan(20, scene=1)])
    return write_frames(tmp_path_factory.mktemp("cut") / "a cut.mkv", frames, options={"g": "7"})


def planned(clip, size=(96, 64), *, is_gpu=False, models="rife", **options):
    """Plan how cuts are found, for frames of another size than the clip has."""
    job = EnhanceOptions(**options)
    specs = check_models(models, job)
    timeline, sizes, _ = plan_timeline(str(clip), specs, job, ".mp4")
    sizes = replace(sizes, given=size)
    timeline, notes = plan_cuts(timeline, specs, job, sizes, is_gpu=is_gpu)
    return timeline.scene_threshold, notes, predict_share(timeline, specs, sizes) if timeline.adds_frames else None


def test_the_detector_is_chosen_by_its_share(clip):
    threshold, (note,), share = planned(clip)
    assert (threshold, share > MOST_SHARE) == (0.3, True)
    assert note == (
        "cuts: where neighbours are less similar than 0.3, without TransNetV2: it would take longer than adding frames"
    )
    _, (note,), share = planned(clip, (320, 176))
    assert (note.endswith(f"it would take {share:.0%} of the time of adding frames"), share < 1) == (True, True)
    threshold, (note,), share = planned(clip, (1920, 1080))
    assert (threshold, share < MOST_SHARE) == (None, True)
    assert note == "cuts: TransNetV2 finds them, also fades and dissolves"
    threshold, (note,), _ = planned(clip, (1920, 1080), is_gpu=True)
    assert (threshold, note.endswith("frames are added on a GPU")) == (0.3, True)
    enlarged = planned(clip, (480, 272), models=["websr-x2-s", "rife"], factor=4)
    assert (enlarged[0], enlarged[2]) == (None, pytest.approx(planned(clip, (960, 544), factor=4)[2]))
    assert planned(clip, models="websr-x2-s") == (0.3, (), None)


def test_what_is_asked_for_counts(clip):
    assert planned(clip, scene_detector="transnetv2")[:2] == (None, ())
    assert planned(clip, (1920, 1080), scene_detector="threshold")[:2] == (0.3, ())
    assert planned(clip, (1920, 1080), scene_threshold=0.2)[:2] == (0.2, ())
    assert planned(clip, (1920, 1080), scene_threshold=0)[:2] == (0, ())
    assert planned(clip, scene_detector="threshold", scene_threshold=0.1)[:2] == (0.1, ())


def test_the_choice_is_part_of_the_plan(clip, tmp_path):
    options = EnhanceOptions(scene_detector="transnetv2", segment_frames=10)
    specs = check_models("rife", options)
    (target,) = resolve_targets(clip, tmp_path / "b.mkv", options)
    found = name_segments(examine_clip(target, specs, options), specs, node_kind(is_gpu=False))
    assert found.timeline.scene_threshold is None
    assert found.segment_bytes >= 600_000_000


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_segments_and_resuming_change_nothing(clip, tmp_path):
    """With a piece, another size and strict checks; the cut is where it is."""
    options = EnhanceOptions(
        encoding=Encoding(codec="ffv1"),
        scene_detector="transnetv2",
        start="f4",
        end="f38",
        size="64x48",
        fit="crop",
        check="strict",
        segment_frames=7,
    )
    with without_ray():
        with ray_of(1):
            enhance_videos(clip, tmp_path / "one.mkv", models="rife", options=options)
            enhance_videos(clip, tmp_path / "long.mkv", models="rife", options=replace(options, segment_frames=100))
        with ray_of(4):  # some segments are there, and four workers make the others
            specs = check_models("rife", options)
            (target,) = resolve_targets(clip, tmp_path / "again.mkv", options)
            kind = node_kind(is_gpu=False)
            with ModelCache() as cache:
                plan = open_clip(examine_clip(target, specs, options), specs, kind)
                with cache.lease(plan.requests):
                    job = JobContext(specs, plan.requests, plan.options, cache, "begun", kind)
                    for index in (0, 2):
                        run_segment(plan, index, job)
            report = enhance_videos(clip, tmp_path / "again.mkv", models="rife", options=options)
            assert (report.segments_reused, report.segments) == (2, 5)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "again.mkv").read_bytes()
    _, frames = frames_of(tmp_path / "one.mkv")
    _, other = frames_of(tmp_path / "long.mkv")
    assert np.array_equal(frames, other)
    held = [index for index in range(33) if np.array_equal(frames[2 * index], frames[2 * index + 1])]
    assert held == [LAST - 4]
