"""Noise, darkness and still pictures on real frames, from file to file."""

from itertools import pairwise

import numpy as np
import pytest

from genai_ray import EnhanceOptions, InferenceSession, QualityValidator, enhance_videos, errors
from genai_ray.video import Encoding
from tests.enhance.moving import frames_of, luma_of, write_frames
from tests.video.clips import NUM_FRAMES, write_cut

LOSSLESS = Encoding(codec="ffv1")


@pytest.fixture(scope="module")
def true(samples):
    """Six frames of the sample clip, (6, 180, 320, 3)."""
    return frames_of(samples / "bigbuckbunny-360p.mp4")[1][:6, ::2, ::2]


def db(a, b):
    return QualityValidator(a).validate(b).psnr


def enhance(frames, folder, model, **options):
    write_frames(folder / "a.mkv", frames, pix_fmt="yuv444p")  # so that noise in colours stays as it is
    report = enhance_videos(
        folder / "a.mkv", folder / "b.mkv", models=model, options=EnhanceOptions(encoding=LOSSLESS, **options)
    )
    return report, frames_of(folder / "a.mkv")[1], frames_of(folder / "b.mkv")[1]


@pytest.mark.parametrize(("deviation", "gain_db"), [pytest.param(15, 4, marks=pytest.mark.slow), (25, 6)])
def test_noise_goes(ray_session, true, tmp_path, deviation, gain_db):
    noise = np.random.default_rng(0).normal(0, deviation, true.shape)
    report, noisy, clean = enhance(
        np.clip(np.rint(true + noise), 0, 255).astype(np.uint8), tmp_path, "ffdnet", params={"sigma": deviation / 255}
    )
    assert (report.frames, report.frames_inferred) == (6, 6)
    gains = [db(a, b) - db(a, c) for a, b, c in zip(true, clean, noisy, strict=True)]
    assert min(gains) > gain_db


def test_a_dark_clip_gets_bright(ray_session, true, tmp_path):
    _, dark, bright = enhance(np.rint(true * 0.15).astype(np.uint8), tmp_path, "zero-dce")
    assert dark.mean() < 20
    assert 90 < bright.mean() < 180
    assert min(db(a, b) - db(a, c) for a, b, c in zip(true, bright, dark, strict=True)) > 1
    with InferenceSession("zero-dce") as session:
        assert min(map(db, session.infer(dark), bright)) > 40


@pytest.mark.parametrize("segment_frames", [6, 4])
def test_a_frame_equal_to_the_last_one_is_not_computed_again(ray_session, true, tmp_path, segment_frames):
    still = true[[0, 0, 0, 1, 2, 2]]
    report, _, large = enhance(still, tmp_path, ["ffdnet", "websr-x2-s"], segment_frames=segment_frames)
    assert (report.frames, large.shape) == (6, (6, 360, 640, 3))
    assert report.frames_inferred == 2 * 3
    assert [np.array_equal(a, b) for a, b in pairwise(large)] == [True, True, False, False, True]


def test_frames_are_added_as_far_as_a_truncated_clip_goes(ray_session, tmp_path):
    cut = write_cut(tmp_path / "cut.mp4")
    with pytest.raises(errors.VideoError, match="allow-truncated"):
        enhance_videos(cut, tmp_path / "b.mkv", models="rife")
    report = enhance_videos(
        cut,
        tmp_path / "b.mkv",
        models="rife",
        options=EnhanceOptions(encoding=LOSSLESS, allow_truncated=True, segment_frames=8),
    )
    (video,) = report.videos
    assert (video.frames % 2, video.frames_expected) == (0, 2 * NUM_FRAMES)
    assert 20 < video.frames < video.frames_expected
    frames = luma_of(tmp_path / "b.mkv")
    assert len(frames) == video.frames
    assert np.array_equal(frames[-1], frames[-2])  # held: what follows is not there
    assert not np.array_equal(frames[-2], frames[-3])
