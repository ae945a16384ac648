"""How far a job is: stages, one definition of speed, and a time left that does not jump."""

import itertools

import pytest

from genai_ray import EnhanceOptions, enhance_videos
from genai_ray.enhance.job.report import SPEED_AFTER_S, ProgressMeter
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.segment.segment import SegmentResult
from genai_ray.video import Encoding
from tests.video.clips import write


class Planned:
    """What the meter needs of a plan."""

    frames = 1000
    frames_reused = 0
    todo = (0,)
    notes = ("audio stream 1 is encoded",)
    target = ClipTarget("a.mkv", "b.mov", "b.mov.genai-ray")


def test_notes_of_plans_are_told_once():
    meter = ProgressMeter(2)
    assert meter.read(0).notes == ()
    meter.add_plan(Planned())
    meter.add_plan(Planned())
    assert meter.read(0).notes == ("a.mkv: audio stream 1 is encoded",) * 2
    assert meter.read(0).notes == ()


def test_the_time_left_does_not_jump_with_batches():
    now = 0.0
    meter = ProgressMeter(1, clock=lambda: now)
    meter.add_plan(Planned())
    ends = []
    for tick in range(1, 200):
        now = 100.0 + tick / 2
        made = tick // 4 * 20  # 10 frames a second in bursts of 20
        progress = meter.read(made)
        assert progress.stage == ("joining" if made >= 1000 else "enhancing")
        if progress.seconds_left is not None:
            ends.append(now + progress.seconds_left)
    assert len(ends) > 150
    later = ends[20:]
    assert max(later) - min(later) < 12  # of 100 s; the raw estimate moves by 60
    assert all(abs(after - before) < 1.0 for before, after in itertools.pairwise(later))


def test_speed_counts_from_the_first_decoded_frame():
    now = 50.0
    meter = ProgressMeter(1, clock=lambda: now)
    assert (meter.read(0).stage, meter.read(0).fps) == ("planning", 0.0)
    meter.add_plan(Planned())
    now = 60.0
    assert meter.read(10).seconds_left is None
    meter.add_segment(SegmentResult(100, 100, started_at=55.0))
    now = 65.0
    assert meter.read(0).fps == 10.0
    meter.add_segment(SegmentResult(100, 100, started_at=45.0))  # another worker began before
    assert meter.read(0).fps == 10.0
    assert meter.read(0).frames_done == 200
    now = 65.0 + SPEED_AFTER_S
    assert meter.read(300).seconds_left > 0


def test_speed_before_the_first_segment_is_that_between_readings():
    now = 50.0
    meter = ProgressMeter(1, clock=lambda: now)
    meter.add_plan(Planned())
    assert meter.read(64).fps == 0.0
    now = 54.0
    assert meter.read(72).fps == 2.0


@pytest.mark.slow
def test_a_job_tells_its_stages_in_order_and_one_speed(ray_session, tmp_path):
    source = write(tmp_path / "a.mp4", tracks=0)
    told = []
    report = enhance_videos(
        source,
        tmp_path / "b.mp4",
        models="websr-x2-s",
        options=EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=16),
        on_progress=told.append,
    )
    stages = [stage for stage, _ in itertools.groupby(progress.stage for progress in told)]
    assert stages[:2] == ["planning", "starting"]
    assert set(stages[2:]) <= {"enhancing", "joining"}
    assert stages[-1] == "joining"
    assert all(progress.frames_total == 40 for progress in told if progress.stage == "enhancing")
    assert told[-1].fps > 0
    assert report.fps > 0
