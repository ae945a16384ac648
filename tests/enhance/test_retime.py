"""Times of results: exact, whatever the source's times and the rate that is asked for."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.enhance.plan.timeline import RATE_TOLERANCE, Moment, retime
from genai_ray.errors import ConfigError
from genai_ray.video import Segment, plan_video
from tests.enhance.moving import pan, write_frames

BASES = [Fraction(1, 25), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 12800)]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return plan_video(write_frames(tmp_path_factory.mktemp("plan") / "a.mkv", pan(3)))


def plan_of(template, base, deltas, first, cuts):
    pts = [first]
    for delta in deltas[:-1]:
        pts.append(pts[-1] + delta)
    bounds = sorted({0, len(pts), *(cut % len(pts) for cut in cuts)})
    segments = tuple(Segment(index, a, b) for index, (a, b) in enumerate(pairwise(bounds)))
    rate = len(pts) / (sum(deltas) * base)
    info = replace(template.info, time_base=base, average_rate=rate)
    return replace(template, info=info, pts=tuple(pts), duration=deltas[-1], segments=segments)


PLANS = {
    "base": st.sampled_from(BASES),
    "deltas": st.lists(st.integers(1, 2000), min_size=1, max_size=40),
    "first": st.integers(-5000, 100000),
    "cuts": st.lists(st.integers(0, 1000), max_size=5),
}


def check(timeline):
    plan, result = timeline.plan, timeline.result
    base, unit = plan.info.time_base, result.info.time_base
    assert [moment.pts for index in range(len(plan.segments)) for moment in timeline.moments(index)] == list(result.pts)
    assert all(a < b for a, b in pairwise(result.pts))
    assert result.pts[0] * unit == plan.pts[0] * base
    assert (result.pts[-1] + result.duration) * unit == (plan.pts[-1] + plan.duration) * base
    for segment in plan.segments:
        assert timeline.range_to_decode(segment.index) == replace(segment, stop=min(segment.stop + 1, len(plan.pts)))
        for moment in timeline.moments(segment.index):
            assert segment.start <= moment.left < segment.stop
            assert 0 <= moment.timestep < 1
            if moment.left + 1 < len(plan.pts):
                left, right = plan.pts[moment.left] * base, plan.pts[moment.left + 1] * base
                assert left + moment.timestep * (right - left) == moment.pts * unit


@settings(deadline=None, max_examples=50)
@given(**PLANS, factor=st.integers(2, 8))
def test_a_factor_cuts_the_time_of_each_frame_evenly(template, base, deltas, first, cuts, factor):
    timeline = retime(plan_of(template, base, deltas, first, cuts), factor=factor)
    check(timeline)
    assert len(timeline.result.pts) == factor * len(deltas)
    assert {time * base for time in timeline.plan.pts} <= {
        p * timeline.result.info.time_base for p in timeline.result.pts
    }
    steps = [timeline.moments(index) for index in range(len(timeline.plan.segments))]
    assert {moment.timestep for moments in steps for moment in moments if moment.left + 1 < len(deltas)} <= {
        Fraction(k, factor) for k in range(factor)
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    **PLANS,
    fps=st.sampled_from([Fraction(60), Fraction(60000, 1001), Fraction(120), Fraction("59.94"), Fraction(1000)]),
)
def test_a_rate_is_constant_and_exact(template, base, deltas, first, cuts, fps):
    plan = plan_of(template, base, deltas, first, cuts)
    if plan.info.average_rate > fps * (1 + RATE_TOLERANCE):
        with pytest.raises(ConfigError, match="as many as it has"):
            retime(plan, fps=fps)
        return
    timeline = retime(plan, fps=fps)
    check(timeline)
    unit = timeline.result.info.time_base
    assert {(b - a) * unit for a, b in pairwise(timeline.result.pts)} <= {1 / fps}
    assert 0 < timeline.result.duration * unit <= 1 / fps
    assert timeline.result.info.average_rate == fps


def test_no_more_frames_is_the_plan_itself(template):
    timeline = retime(template)
    assert timeline.result is timeline.plan
    assert timeline.range_to_decode(0) == template.segments[0]
    assert timeline.moments(0) == [Moment(pts, index, Fraction(0)) for index, pts in enumerate(template.pts)]


def test_a_time_base_that_no_container_has_is_refused(template):
    info = replace(template.info, time_base=Fraction(1, 10**9), average_rate=Fraction(25))
    with pytest.raises(ConfigError, match="time base"):
        retime(replace(template, info=info, pts=(0, 39_999_999, 80_000_001), duration=40_000_000), factor=7)
