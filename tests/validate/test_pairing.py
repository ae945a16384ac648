"""Frames of two clips pair by their times: rounded, of another rate, dropped, doubled."""

from fractions import Fraction

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.validate import validate_videos
from genai_ray.validate.pairing import pair_times
from tests.validate.test_validate import FRAMES

MS = Fraction(1, 1000)


def times(count, rate, unit=None):
    """Seconds of frames at a constant rate, rounded to a unit as containers do."""
    exact = [index / Fraction(rate) for index in range(count)]
    return [float(time if unit is None else round(time / unit) * unit) for time in exact]


def write(path, frames, pts, time_base):
    """Write frames without loss at given times; Matroska rounds them to milliseconds."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        stream.codec_context.time_base = time_base
        for pixels, time in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, time_base
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return str(path)


NTSC = Fraction(30000, 1001)
ROUNDED = {
    "milliseconds": (times(9000, NTSC), times(9000, NTSC, MS), MS),
    "hundredths, 60 per second": (times(900, 60), times(900, 60, Fraction(1, 100)), Fraction(1, 100)),
    "960 per second in milliseconds": (times(900, 960), times(900, 960, MS), MS),
    "29.97, four hours": (times(400_000, NTSC), times(400_000, "29.97"), Fraction(1, 90000)),
    "23.98, half an hour": (times(43_000, Fraction(24000, 1001)), times(43_000, "23.98", MS), MS),
    "both rounded": (times(900, NTSC, MS), times(900, NTSC, Fraction(1, 600)), MS + Fraction(1, 600)),
}


@pytest.mark.parametrize(("first", "second", "unit"), ROUNDED.values(), ids=ROUNDED)
def test_rounded_times_pair_one_by_one(first, second, unit):
    found = pair_times(first, second, unit_s=float(unit))
    assert (found.reference, found.candidate) == ((), ())
    assert found.most_apart_s == pytest.approx(np.abs(np.subtract(first, second)).max())


@pytest.mark.parametrize("seed", range(5))
def test_varying_gaps_pair_whatever_is_dropped_and_doubled(seed):
    """The reference has gaps of 7 to 200 ms, and a short one among long ones; the candidate is rounded to 1 ms."""
    random = np.random.default_rng(seed)
    first = np.cumsum(random.uniform(0.007, 0.2, 300)) - 0.007
    first -= first[0]
    dropped = sorted(random.choice(np.arange(1, 299), 7, replace=False).tolist())
    second = np.delete(first, dropped)
    after = sorted(random.choice(np.arange(1, 280), 4, replace=False).tolist())
    doubled = np.sort(np.concatenate([second, [(second[at] + second[at + 1]) / 2 for at in after]]))
    found = pair_times(first.tolist(), np.round(second, 3).tolist(), unit_s=0.001)
    assert (list(found.reference), found.candidate) == (dropped, ())
    found = pair_times(second.tolist(), np.round(doubled, 3).tolist(), unit_s=0.001)
    assert found.reference == ()
    assert list(found.candidate) == [at + 1 + number for number, at in enumerate(after)]


def test_other_rates_do_not_pair():
    """Also those that are as many frames, and hardly differ in the gap of a frame."""
    for reference, candidate in ((25, 24), (24, Fraction(24000, 1001)), (50, 25), (30, 25)):
        first = times(500, reference, MS)
        found = pair_times(first, times(500, candidate, MS), unit_s=0.002)
        assert found.count > 0, (reference, candidate)
    assert pair_times(times(9, 25), times(9, 24), unit_s=0.0).count == 16


def test_missing_first_frames_are_told_from_missing_last_ones():
    first = times(20, 25, MS)
    moved = [time - first[2] for time in first[2:]]
    # At a constant rate only the files' own clocks can tell.
    assert pair_times(first, moved, unit_s=0.001, begins_apart_s=0.08).reference == (0, 1)
    assert pair_times(first, moved, unit_s=0.001).reference == (18, 19)
    varying = [0.0, 0.04, 0.1, 0.12, 0.2, 0.35, 0.36]
    assert pair_times(varying, [time - 0.04 for time in varying[1:]], unit_s=0.0).reference == (0,)
    assert pair_times([time - 0.04 for time in varying[1:]], varying, unit_s=0.0).candidate == (0,)


def test_single_frames_pair():
    assert pair_times([0.0], [0.0], unit_s=0.0).count == 0
    assert pair_times([0.0], [0.0, 0.04], unit_s=0.0).candidate == (1,)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ([*range(7), *range(8, 24)], r"23 frames .* 1 have no partner: frame 7 \(0\.234 s\) of .*one\.nut"),
        ([0, 1, 2, 2.5, *range(3, 24)], r"25 frames .* 1 have no partner: frame 3 \(0\.083 s\) of .*two\.mkv"),
        (
            [0, 1.5, *range(3, 11), *range(17, 24)],
            r"9 have no partner: frames 1 \(0\.033 s\), 2 \(0\.067 s\), 11 \(0\.367 s\), .* and 3 more of .*two\.mkv",
        ),
    ],
    ids=["dropped", "doubled", "several"],
)
def test_an_error_names_the_frames_without_a_partner(tmp_path, kept, told):
    """The reference in units of 1/30000 s, the candidate in milliseconds."""
    one = write(tmp_path / "one.nut", FRAMES, [1001 * index for index in range(24)], Fraction(1, 30000))
    frames = FRAMES[[int(index) for index in kept]]
    two = write(tmp_path / "two.mkv", frames, [round(index * 1001 / 30) for index in kept], MS)
    with pytest.raises(errors.QualityError, match=told):
        validate_videos(one, two)


def test_a_rounded_rate_pairs_and_is_said(tmp_path):
    """A rate of 23.98 for 24000/1001, in units so small that rounding explains none of it."""
    one = write(tmp_path / "one.nut", FRAMES, [1001 * 10 * index for index in range(24)], Fraction(1, 240_000))
    two = write(tmp_path / "two.nut", FRAMES, [1000 * index for index in range(24)], Fraction(1, 23_980))
    report = validate_videos(one, two, metrics=["psnr"])
    assert report.candidates[0].per_frame["psnr"].tolist() == [np.inf] * 24
    (note,) = report.candidates[0].notes
    assert note.startswith("frame rates differ: its frames are up to 0.159 ms from those of the reference, and ")
