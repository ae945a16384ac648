"""Edit decision lists: timecodes, drop frame, and what has no timecode."""

from fractions import Fraction

import numpy as np
import pytest

from genai_ray import build_edl, errors
from genai_ray.scenes import list_scenes
from genai_ray.video import Timecode, plan_video
from tests.enhance.moving import write_frames

NTSC = Fraction(30000, 1001)


def scenes_of(path, cuts):
    return list_scenes(plan_video(path), cuts)


def clip(path, rate, count=60, **others):
    return write_frames(path, np.zeros((count, 16, 16, 3), np.uint8), rate=rate, **others)


@pytest.mark.parametrize(
    ("rate", "is_drop", "frame", "text"),
    [
        (30, True, 1799, "00:00:59;29"),  # SMPTE ST 12-1: numbers 0 and 1 of a minute are left out
        (30, True, 1800, "00:01:00;02"),
        (30, True, 17981, "00:09:59;29"),
        (30, True, 17982, "00:10:00;00"),  # but not of every tenth
        (30, True, 17982 + 1800, "00:11:00;02"),
        (30, True, 107892, "01:00:00;00"),
        (60, True, 3599, "00:00:59;59"),
        (60, True, 3600, "00:01:00;04"),
        (60, True, 215784, "01:00:00;00"),
        (30, False, 1800, "00:01:00:00"),
        (30, False, 107892, "00:59:56:12"),
        (24, False, 24 * 86400 + 25, "00:00:01:01"),  # a day begins again
        (30, True, 24 * 107892, "00:00:00;00"),
    ],
)
def test_timecodes_are_those_of_the_standard(rate, is_drop, frame, text):
    clock = Timecode(rate, is_drop)
    assert clock.write(frame) == text
    day = 24 * clock.count("01:00:00:00")
    assert clock.count(text) % day == frame % day
    assert clock.count("01:00:00") is None


def test_drop_frame_follows_the_clock():
    """In ten hours it is never four frames off; without dropping it would be 36 s."""
    clock = Timecode(30, True)
    for frame in range(0, 10 * 107892, 997):
        text = clock.write(frame)
        hours, minutes, seconds, frames = (int(text[at : at + 2]) for at in (0, 3, 6, 9))
        told = 3600 * hours + 60 * minutes + seconds + frames / 30
        assert abs(told - frame / NTSC) < 4 / 30
        assert clock.count(text) == frame


def test_a_list_has_an_event_for_each_scene(tmp_path):
    found = scenes_of(clip(tmp_path / "two\nscenes.mkv", NTSC), [29])
    assert build_edl(found).splitlines() == [
        "TITLE: two?scenes",
        "FCM: DROP FRAME",
        "",
        "001  AX       V     C        00:00:00;00 00:00:01;00 00:00:00;00 00:00:01;00",
        "* FROM CLIP NAME: two?scenes.mkv",
        "002  AX       V     C        00:00:01;00 00:00:02;00 00:00:01;00 00:00:02;00",
        "* FROM CLIP NAME: two?scenes.mkv",
    ]
    assert "FCM: NON-DROP FRAME\n" in build_edl(found, counting="non-drop")
    assert "00:00:01:00" in build_edl(found, counting="non-drop")


def test_timecodes_begin_at_that_of_the_file(shared):
    found = scenes_of(shared / "cases" / "video" / "tc.mov", [1])
    text = build_edl(found)
    assert "01:02:03:04 01:02:03:06 00:00:00:00 00:00:00:02" in text
    assert "FCM: NON-DROP FRAME" in text


@pytest.mark.parametrize("rate", [24, 25, 50, 60, Fraction(24000, 1001), Fraction(60000, 1001), NTSC])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_rates_of_rounded_times_are_known(tmp_path, rate, suffix):
    """Matroska rounds times to a millisecond, so that its average rate may be off."""
    codec = "ffv1" if suffix == ".mkv" else "libx264"
    text = build_edl(scenes_of(clip(tmp_path / f"a{suffix}", rate, codec=codec), [23]))
    mark = ";" if rate in (NTSC, Fraction(60000, 1001)) else ":"
    assert f"00:00:00{mark}24" in text or f"00:00:01{mark}00" in text
    assert ("FCM: DROP FRAME" in text) == (mark == ";")


def test_what_has_no_timecode_is_refused(tmp_path):
    uneven = clip(tmp_path / "vfr.mkv", 25, count=4, pts=[0, 40, 200, 240], base=Fraction(1, 1000))
    with pytest.raises(errors.ConfigError, match="an EDL of a variable frame rate; allowed: a constant one"):
        build_edl(scenes_of(uneven, [1]))
    with pytest.raises(errors.ConfigError, match="timecode at 25/2 frames per second"):
        build_edl(scenes_of(clip(tmp_path / "slow.mkv", Fraction(25, 2)), [1]))
    with pytest.raises(errors.ConfigError, match="drop-frame timecode at 25 frames per second"):
        build_edl(scenes_of(clip(tmp_path / "pal.mkv", 25), [1]), counting="drop")
    fast = scenes_of(clip(tmp_path / "fast.mp4", 120, codec="libx264"), [1])
    with pytest.raises(errors.ConfigError, match="timecode at 120 frames per second"):
        build_edl(fast)
