"""PSNR against the reference vectors, and what is refused."""

import math

import numpy as np
import pytest

from genai_ray import QualityValidator, errors
from genai_ray.quality import psnr
from tests.video.clips import write


def triangle(t, p):
    t = t % (2 * p)
    return np.where(t > p, 2 * p - t, t)


def vectors():
    y, x, c = np.mgrid[0:256, 0:256, 0:3]
    a, b = triangle(x * (2 + c) + y, 97), triangle(y * (3 - c) + x // 2, 61)
    d = triangle((x * x + y * y * (c + 1)) // 64, 37)
    reference = ((2 * a + b + d) * 255 // 292).astype(np.int64)
    distorted = np.clip(reference + (7 * x + 13 * y + 17 * c) % 23 - 11, 0, 255)
    return reference.astype(np.uint8), distorted.astype(np.uint8), np.clip(reference + 5, 0, 255).astype(np.uint8)


def test_psnr_equals_independent_libraries():
    reference, distorted, plus5 = vectors()
    assert int(reference.sum()) == 25_077_122
    assert psnr(reference, distorted) == pytest.approx(31.69709975, abs=1e-6)
    assert psnr(reference, plus5) == pytest.approx(34.15151839, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equal_arrays_pass_with_full_score(dtype):
    reference = np.ones((4, 4, 3), dtype)
    result = QualityValidator(reference, 99.0).validate(reference.copy())
    assert (result.passed, result.psnr, result.score) == (True, math.inf, 1.0)


def test_score_is_psnr_over_100_and_threshold_decides():
    reference = np.full((8, 8, 3), 0.5, np.float32)
    result = QualityValidator(reference, 30.0).validate(reference + np.float32(0.1))
    assert not result.passed
    assert result.psnr == pytest.approx(20.0, abs=1e-4)
    assert result.score == pytest.approx(0.2, abs=1e-6)


def test_what_is_refused():
    reference = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(errors.QualityError, match=r"\(4, 5, 3\)"):
        QualityValidator(reference).validate(np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(errors.QualityError, match="uint16"):
        QualityValidator(reference).validate(reference.astype(np.uint16))
    with pytest.raises(errors.QualityError, match="threshold"):
        QualityValidator(reference, math.nan)
    with pytest.raises(errors.QualityError, match="empty"):
        QualityValidator(reference[:0])
    with pytest.raises(errors.InvalidInputError, match="int32"):
        QualityValidator(reference.astype(np.int32))
    with pytest.raises(errors.QualityError, match="NaN"):
        QualityValidator(np.full((2, 2), np.nan, np.float32)).validate(np.zeros((2, 2), np.float32))


def test_videos_that_do_not_belong_together_are_refused(tmp_path):
    """As many frames of one size, and yet shown at other times or of another light."""
    one = write(tmp_path / "one.mkv", tracks=0)
    faster = write(tmp_path / "faster.mkv", tracks=0, rate=30)
    bright = write(tmp_path / "bright.mkv", tracks=0, colour=(9, 1, 9, 16))
    rounded = write(tmp_path / "rounded.mp4", tracks=0)  # Matroska's milliseconds against exact times
    assert QualityValidator(one).validate(rounded).passed
    for validator, name in ((QualityValidator(one), "reference"), (QualityValidator(None, source=str(one)), "source")):
        with pytest.raises(errors.QualityError, match=f"40 frames span 1.3 s, those of the {name} 1.56 s"):
            validator.validate(faster)
        with pytest.raises(errors.QualityError, match=r"bright.mkv of HDR \(PQ\) for .*one.mkv of SDR"):
            validator.validate(bright)
    with pytest.raises(errors.VideoError, match="no such file"):
        QualityValidator(one).validate(str(tmp_path / "none.mkv"))


def test_several_metrics_each_with_its_threshold():
    reference, distorted, _ = vectors()
    validator = QualityValidator(reference, 30.0, ssim=0.9, ms_ssim=0.98, vmaf=50.0)
    result = validator.validate(distorted)
    assert not result.passed
    assert result.failures == ("ssim is 0.8509; allowed: at least 0.9",)
    assert (result.psnr, result.ssim, result.ms_ssim) == pytest.approx((31.69709975, 0.85094179, 0.99084809), abs=1e-6)
    assert 50 < result.vmaf < 100
    assert QualityValidator(reference, 30.0, ssim=0.85).validate(distorted).passed
    assert QualityValidator(reference, 32.0).validate(distorted).failures == ("psnr is 31.7; allowed: at least 32.0",)


def test_a_batch_is_measured_as_its_array():
    reference, distorted, _ = vectors()
    frames = np.stack([reference, reference]), np.stack([distorted, reference])
    validator = QualityValidator(frames[0], ssim=0.8, ms_ssim=0.8, vmaf=50.0)
    whole = validator.validate(frames[1])
    batch = validator.validate({"output": frames[1]})
    assert whole.num_frames == batch.num_frames == 2
    assert (batch.psnr, batch.ssim, batch.ms_ssim) == pytest.approx((whole.psnr, whole.ssim, whole.ms_ssim))
    assert batch.vmaf == whole.vmaf
    with pytest.raises(errors.QualityError, match="more frames than the result"):
        validator.validate({"output": frames[1][:1]})
