"""Metrics against the numbers of independent libraries, and what they refuse.

The expected numbers were computed with scikit-image, BasicSR's formula, pytorch_msssim and libvmaf's own command.
"""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from skimage import data

import genai_ray
from genai_ray import errors
from genai_ray.quality import (
    VMAF_MODELS,
    ms_ssim,
    ms_ssim_per_channel,
    psnr,
    psnr_per_channel,
    ssim,
    ssim_per_channel,
    vmaf,
    vmaf_of_clips,
    vmaf_per_frame,
)
from tests.quality.test_validator import vectors


@pytest.fixture(scope="module")
def pairs():
    reference, distorted, brighter = vectors()
    assert hashlib.sha256(reference.tobytes()).hexdigest().startswith("6fc3a075b9e6601a")
    assert hashlib.sha256(distorted.tobytes()).hexdigest().startswith("931c4e6f79be9e0e")
    photo = data.astronaut()
    wide = photo.astype(int)
    mean = (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) >> 2
    boxes = mean.repeat(2, 0).repeat(2, 1).astype(np.uint8)
    assert hashlib.sha256(boxes.tobytes()).hexdigest().startswith("2e928bad2eda25e0")
    return [(reference, distorted), (reference, brighter), (photo, boxes)]


def green(picture):
    return np.ascontiguousarray(picture[..., 1])


EXPECTED = {
    "psnr rgb": (psnr, {}, (31.69709975, 34.15151839, 28.03580018)),
    "psnr y": (psnr, {"channels": "y"}, (37.75886394, 35.47349632, 29.55711273)),
    "psnr y crop": (psnr, {"channels": "y", "crop_border_px": 4}, (37.75898026, 35.47343491, 29.50058835)),
    "ssim rgb": (ssim, {}, (0.85094179, 0.99852544, 0.90967911)),
    "ssim y": (ssim, {"channels": "y"}, (0.91946677, 0.99930321, 0.92400996)),
    "ms-ssim rgb": (ms_ssim, {}, (0.99084809, 0.99990028, 0.99568793)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_metrics_equal_independent_libraries(pairs, name):
    metric, options, expected = EXPECTED[name]
    assert [metric(*pair, **options) for pair in pairs] == pytest.approx(expected, abs=1e-6)


def test_one_plane_is_measured_as_it_is(pairs):
    planes = [(green(a), green(b)) for a, b in pairs]
    assert [ssim(*pair) for pair in planes] == pytest.approx((0.85721381, 0.99852165, 0.91458030), abs=1e-6)
    assert [ms_ssim(*pair) for pair in planes] == pytest.approx((0.99132922, 0.99989986, 0.99593257), abs=1e-6)


def test_channels_by_themselves(pairs):
    reference, candidate = pairs[2]
    expected = [ssim(reference[..., c].copy(), candidate[..., c].copy()) for c in range(3)]
    assert ssim_per_channel(reference, candidate) == pytest.approx(expected)
    expected = [psnr(reference[..., c], candidate[..., c]) for c in range(3)]
    assert psnr_per_channel(reference, candidate) == pytest.approx(expected)
    channels = [ms_ssim_per_channel(*pair) for pair in pairs]
    assert [each[1] for each in channels] == pytest.approx((0.99132922, 0.99989986, 0.99593257), abs=1e-6)
    assert [np.mean(each) for each in channels] == pytest.approx([ms_ssim(*pair) for pair in pairs])
    assert ms_ssim_per_channel(green(reference), green(candidate)) == pytest.approx(channels[2][1:2])


def test_a_batch_is_the_mean_of_its_pictures(pairs):
    reference, candidate = pairs[0]
    batch = np.stack([reference, reference]), np.stack([candidate, reference])
    assert ssim(*batch) == pytest.approx((ssim(reference, candidate) + 1) / 2)
    assert ms_ssim(*batch) == pytest.approx((ms_ssim(reference, candidate) + 1) / 2)


def test_the_range_follows_the_dtype_or_the_caller(pairs):
    reference, candidate = pairs[0]
    as_float = [picture.astype(np.float32) / 255 for picture in (reference, candidate)]
    deep = [picture.astype(np.uint16) * 257 for picture in (reference, candidate)]
    wide = [picture.astype(np.float64) for picture in (reference, candidate)]
    for metric in (psnr, ssim, ms_ssim):
        expected = metric(reference, candidate)
        assert metric(*deep) == pytest.approx(expected)
        assert metric(*as_float) == pytest.approx(expected, rel=1e-5)
        assert metric(*wide, data_range=255.0) == pytest.approx(expected)
        with pytest.raises(errors.InvalidInputError, match="data_range"):
            metric(*wide)
        with pytest.raises(errors.InvalidInputError, match="above 0"):
            metric(*wide, data_range=0.0)


def test_odd_sides_are_measured():
    random = np.random.default_rng(5)
    reference = random.integers(0, 256, (161, 175, 3), np.uint8)
    assert ms_ssim(reference, reference) == pytest.approx(1.0)
    noisy = np.clip(reference.astype(int) + random.integers(-20, 21, reference.shape), 0, 255).astype(np.uint8)
    assert 0.9 < ms_ssim(reference, noisy) < 1.0


def test_vmaf_equals_libvmaf(pairs):
    planes = [(green(a), green(b)) for a, b in pairs]
    assert [vmaf(*pair) for pair in planes] == pytest.approx((92.916389, 97.422906, 78.311023), abs=1e-3)
    assert vmaf(*planes[2], model="vmaf_v0.6.1neg") == pytest.approx(77.192756, abs=1e-3)
    assert vmaf(*planes[2], model="vmaf_v1.0.16_3d0h") == pytest.approx(77.127223, abs=1e-3)


@pytest.mark.parametrize("model", VMAF_MODELS)
def test_every_model_of_vmaf_is_there(pairs, model):
    reference, candidate = pairs[2]
    assert 0 < vmaf(reference[:256, :256].copy(), candidate[:256, :256].copy(), model=model) <= 100


def test_vmaf_of_each_frame_of_a_deep_clip(pairs):
    reference, candidate = pairs[2]
    clips = np.stack([reference] * 2).astype(np.uint16) * 257, np.stack([reference, candidate]).astype(np.uint16) * 257
    equal, worse = vmaf_per_frame(*clips)
    assert equal > 95 > worse > 70


def test_vmaf_without_its_extra_says_what_to_install(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(errors.BackendUnavailableError, match=r"genai-ray\[vmaf\]"):
        vmaf(*pairs[0])


def test_what_libvmaf_refuses_is_said_in_its_words(pairs):
    reference = pairs[2][0][:32]
    with pytest.raises(errors.QualityError, match="libvmaf ERROR"):
        vmaf(reference, reference, model="vmaf_v1.0.16_3d0h")


BLACK = np.zeros((32, 32, 3), np.uint8)


def test_an_error_of_a_clip_reaches_the_caller_of_vmaf():
    def break_off():
        yield BLACK
        raise ZeroDivisionError("a clip that breaks off")

    with pytest.raises(ZeroDivisionError, match="breaks off"):
        vmaf_of_clips(iter([BLACK] * 2), break_off())


INTERRUPTED = """
import itertools, os, signal
import numpy as np
from genai_ray.quality import vmaf_of_clips

def interrupt():
    for index in itertools.count():
        if index == 5:
            os.kill(os.getpid(), signal.SIGINT)
        yield np.zeros((32, 32, 3), np.uint8)

try:
    vmaf_of_clips(interrupt(), itertools.repeat(np.zeros((32, 32, 3), np.uint8)))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_ends_ffmpeg_and_its_writers():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


REFUSED = {
    "sizes": (ssim, BLACK, BLACK[:, :16], {}, errors.QualityError, "equal shape"),
    "dtypes": (ssim, BLACK, BLACK.astype(np.uint16), {}, errors.QualityError, "equal shape and dtype"),
    "lengths": (vmaf, np.stack([BLACK] * 2), np.stack([BLACK] * 3), {}, errors.QualityError, "equal shape"),
    "empty": (ms_ssim, BLACK[:0], BLACK[:0], {}, errors.QualityError, "empty"),
    "NaN": (
        ssim,
        np.full((16, 16), np.nan, np.float32),
        np.zeros((16, 16), np.float32),
        {},
        errors.QualityError,
        "NaN",
    ),
    "small for SSIM": (ssim, BLACK[:10], BLACK[:10], {}, errors.QualityError, "32x10 for SSIM"),
    "small for MS-SSIM": (ms_ssim, BLACK, BLACK, {}, errors.QualityError, "at least 161 px"),
    "small for VMAF": (vmaf, BLACK[:8], BLACK[:8], {}, errors.QualityError, "at least 17 px"),
    "border": (psnr, BLACK, BLACK, {"crop_border_px": 16}, errors.QualityError, "at least one pixel"),
    "negative border": (psnr, BLACK, BLACK, {"crop_border_px": -1}, errors.InvalidInputError, "0 or more"),
    "channels": (psnr, BLACK, BLACK, {"channels": "yuv"}, errors.InvalidInputError, "'rgb' or 'y'"),
    "luma of grey": (ssim, BLACK[..., 0], BLACK[..., 0], {"channels": "y"}, errors.InvalidInputError, "RGB"),
    "axes": (ssim, BLACK[..., :2], BLACK[..., :2], {}, errors.InvalidInputError, "C = 1 or 3"),
    "no array": (ssim, [[0]], [[0]], {}, errors.InvalidInputError, "numpy array"),
    "booleans": (psnr, BLACK > 0, BLACK > 0, {}, errors.InvalidInputError, "bool"),
    "model": (vmaf, BLACK, BLACK, {"model": "vmaf"}, errors.InvalidInputError, "vmaf_v0.6.1"),
    "float for VMAF": (vmaf, BLACK / np.float32(255), BLACK / np.float32(255), {}, errors.InvalidInputError, "uint8"),
    "no channels": (psnr_per_channel, BLACK[..., 0], BLACK[..., 0], {}, errors.InvalidInputError, "C"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused(name):
    metric, reference, candidate, options, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        metric(reference, candidate, **options)


def test_compare_measures_everything_and_names_its_definition(pairs):
    reference, candidate = pairs[2]
    result = genai_ray.compare(reference, candidate)
    assert result.missing == {}
    assert (result.psnr, result.psnr_y) == pytest.approx((28.03580018, 29.55711273), abs=1e-6)
    assert (result.ssim, result.ms_ssim) == pytest.approx((0.90967911, 0.99568793), abs=1e-6)
    assert "28.04" in result.to_table()
    assert "SSIM, Wang 2004" in result.to_table()
    assert repr(result).startswith("Comparison(psnr=28.04")
    assert "<td>0.9097</td>" in result._repr_html_()


def test_compare_says_what_it_could_not_measure():
    result = genai_ray.compare(BLACK[..., :1], BLACK[..., :1])
    assert result.psnr == float("inf")
    assert result.ssim == 1.0
    assert result.ms_ssim is None
    assert "161 px" in result.missing["ms_ssim"]
    assert "RGB" in result.missing["psnr_y"]
    assert "161 px" in result.to_table()
