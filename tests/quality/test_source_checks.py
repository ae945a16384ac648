"""Validation without a reference: every detector finds its planted fault, and passes results of packaged models."""

import dataclasses

import numpy as np
import pytest

from genai_ray import InferenceSession, QualityValidator, SessionLimits, VideoReader, errors
from genai_ray.frames import build_table
from genai_ray.quality import SourceChecks, reduce_frame
from genai_ray.types import ModelTask


@pytest.fixture(scope="module")
def clip(samples):
    """Five frames of the packaged clip, 320 x 180 of them, and what websr-x2-s makes of these in tiles."""
    with VideoReader(samples / "bigbuckbunny-360p.mp4") as video:
        source = np.ascontiguousarray(video[60:65].frames[:, 90:270, 160:480])
    with InferenceSession("websr-x2-s", limits=SessionLimits(tile_size_px=96)) as session:
        output = session.infer(source)
        rows, columns = session.tile_lines(180, 320)
    return SourceChecks(frames=source, seam_rows_px=rows, seam_columns_px=columns), output


def plant(output, change, index=2):
    faulty = output.copy()
    faulty[index] = np.clip(np.rint(change(output[index].astype(np.float64))), 0, 255)
    return faulty


def brighten_tile(frame):
    frame[:, 320:] += 40
    return frame


def make_tiles(checks, output):
    """Return the rows and columns of a tile in the middle of a result."""
    scale = output.shape[1] // checks.frames.shape[1]
    rows, columns = ([0, *lines] for lines in (checks.seam_rows_px, checks.seam_columns_px))
    return slice(rows[1] * scale, None), slice(columns[1] * scale, columns[2] * scale)


FAULTS = {
    "black": (lambda frame: frame * 0, "consistency_db"),
    "of another scene": (lambda frame: frame[::-1, ::-1], "consistency_db"),
    "flat": (lambda frame: np.broadcast_to(frame.mean(axis=(0, 1)), frame.shape), "contrast"),
    "brighter": (lambda frame: frame + 20, "colour_shift"),
    "of exchanged channels": (lambda frame: frame[..., ::-1], "colour_shift"),
    "overexposed": (lambda frame: frame * 4, "clipped"),
    "flashing": (lambda frame: frame * 0.85, "flicker"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_frame_is_found(clip, name):
    checks, output = clip
    change, measure = FAULTS[name]
    result = QualityValidator(None, source=checks).validate(plant(output, change))
    assert not result.passed
    (found,) = [text for text in result.failures if text.startswith(measure)]
    assert "of 5 frames 1 fail" in found
    assert "in frame 2;" in found


def test_the_seam_of_a_tile_is_found_on_its_line_only(clip):
    checks, output = clip
    assert 160 in checks.seam_columns_px  # column 320 of the result
    faulty = plant(output, brighten_tile)
    result = QualityValidator(None, source=checks).validate(faulty)
    assert any(text.startswith("seam") for text in result.failures)
    elsewhere = dataclasses.replace(checks, seam_rows_px=(), seam_columns_px=(120,))
    assert QualityValidator(None, source=elsewhere).validate(faulty).seam < checks.max_seam


def test_one_tile_alone_is_found(clip):
    checks, output = clip
    rows, columns = make_tiles(checks, output)
    faulty = output.astype(np.int16)
    faulty[:, rows, columns] += 40
    result = QualityValidator(None, source=checks).validate(np.clip(faulty, 0, 255).astype(np.uint8))
    (found,) = [text for text in result.failures if text.startswith("seam")]
    assert "of 5 frames 5 fail" in found


@pytest.mark.parametrize("edge_px", [64, 65])
def test_a_hard_edge_of_the_picture_is_no_seam(edge_px):
    source = np.full((96, 128, 3), 30, np.uint8)
    source[:, edge_px:] = 230
    with InferenceSession("websr-x2-s") as session:
        output = session.infer(source)
    checks = SourceChecks(frames=source, seam_columns_px=(64,))
    assert QualityValidator(None, source=checks).validate(output).passed
    faulty = output.astype(np.int16)
    faulty[:, 128:] -= 80
    result = QualityValidator(None, source=checks).validate(np.clip(faulty, 0, 255).astype(np.uint8))
    assert any(text.startswith("seam") for text in result.failures)


@pytest.mark.parametrize("to", ["full range", "limited range"])
def test_a_clip_of_another_range_is_found(clip, to):
    checks, output = clip
    values = (output - 16.0) * 255 / 219 if to == "full range" else output * 219 / 255 + 16.0
    result = QualityValidator(None, source=checks).validate(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    assert any(text.startswith("contrast") and "of 5 frames 5 fail" in text for text in result.failures)


@pytest.mark.parametrize(("level", "end"), [(2, 0), (253, 255)])
def test_a_fade_is_not_clipped(level, end):
    source = np.full((2, 64, 64, 3), level, np.uint8)
    result = QualityValidator(None, source=source).validate(np.full_like(source, end))
    assert (result.passed, result.clipped) == (True, 0.0)
    source[:, :, 32:] = 128  # here an end of the range is wrong
    assert QualityValidator(None, source=source).validate(np.full_like(source, end)).clipped == 0.5


@pytest.mark.parametrize(("height", "width"), [(48, 48), (128, 192)])
@pytest.mark.parametrize("spread", [0, 12])
def test_clean_denoising_of_a_picture_of_low_contrast_passes(height, width, spread):
    clean = np.linspace(100, 100 + spread, width)[:, None] * np.ones((height, width, 3))
    rng = np.random.default_rng(5)
    noisy = [np.clip(np.rint(clean + rng.normal(0, 25, clean.shape)), 0, 255) for _ in range(8)]
    checks = SourceChecks(frames=np.array(noisy, np.uint8), task=ModelTask.DENOISING)
    result = QualityValidator(None, source=checks).validate(np.rint(np.array([clean] * 8)).astype(np.uint8))
    assert result.passed, result.failures


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5])
def test_values_that_are_no_pixels_are_found(clip, value):
    checks, output = clip
    frames = checks.frames.astype(np.float32) / 255
    faulty = output.astype(np.float32) / 255
    assert QualityValidator(None, source=frames).validate(faulty).passed
    faulty[3, 7, 9, 1] = value
    result = QualityValidator(None, source=frames).validate(faulty)
    assert (result.passed, result.num_invalid) == (False, 1)
    assert "1 values of frame 3 are NaN, infinite or outside [0, 1], of 5 frames 1 fail" in result.failures


def test_a_clean_clip_passes_with_every_measure(clip):
    checks, output = clip
    assert checks.seam_rows_px
    assert checks.seam_columns_px
    result = QualityValidator(None, source=checks).validate(output)
    assert (result.passed, result.failures, result.num_frames) == (True, (), 5)
    assert (result.psnr, result.score, result.ssim, result.num_invalid) == (None, None, None, 0)
    assert 30 < result.consistency_db < 60
    assert 0.95 < result.contrast < 1.05
    assert 0 <= result.colour_shift < 0.01
    assert result.flicker < 0.01
    assert result.seam < 0.02


@pytest.mark.parametrize("model", ["ffdnet", "zero-dce", "waifu2x-x2"])
def test_clean_results_of_other_tasks_pass(clip, model):
    frames = np.ascontiguousarray(clip[0].frames[:3, :96, :128])
    with InferenceSession(model) as session:
        checks = SourceChecks(frames=frames, task=session.spec.task)
        result = QualityValidator(None, source=checks).validate(session.infer(frames))
    assert result.passed, result.failures
    assert (result.consistency_db is None) == (result.flicker is None) == (model == "zero-dce")
    assert result.clipped is not None


@pytest.mark.parametrize("task", ["background-removal", "interpolation", "other"])
def test_masks_and_new_frames_are_searched_for_invalid_values(task):
    masks = np.random.default_rng(3).random((2, 8, 8, 1), np.float32)
    checks = SourceChecks(task=task)
    assert QualityValidator(None, source=checks).validate(masks).passed
    masks[1, 2, 2] = np.nan
    assert QualityValidator(None, source=checks).validate(masks).num_invalid == 1
    with pytest.raises(errors.QualityError, match=f"nothing to measure for the task {task} and uint8"):
        QualityValidator(None, source=checks).validate(np.zeros((3, 8, 8, 1), np.uint8))


def test_a_cut_is_no_flicker(shared):
    with VideoReader(shared / "clips" / "bikes.mp4") as video:
        source = video[27:33].frames  # a scene ends with frame 29
    assert np.abs(source[3].mean() - source[2].mean()) > 1
    with InferenceSession("websr-x2-s") as session:
        output = session.infer(source)
    clean = QualityValidator(None, source=source).validate(output)
    assert clean.passed, clean.failures
    brighter = np.clip(output.astype(np.int16) + 12, 0, 255).astype(np.uint8)
    checks = SourceChecks(frames=source, max_colour_shift=0.1)
    since_the_cut = np.concatenate([output[:3], brighter[3:]])
    result = QualityValidator(None, source=checks).validate(since_the_cut)
    assert result.passed, result.failures
    in_one_frame = np.concatenate([output[:3], brighter[3:4], output[4:]])
    (found,) = QualityValidator(None, source=checks).validate(in_one_frame).failures
    assert found.startswith("flicker")


def test_a_table_brings_its_source_along(clip):
    checks, output = clip
    table = build_table(checks.frames, video="a.mp4", frame_index=range(5), pts=range(5), time_base="1/25")
    batch = {"frame": checks.frames, "output": output}
    expected = QualityValidator(None, source=checks.frames).validate(output)
    from genai_ray.frames import append_results

    results = append_results(table, [output[:2], output[2:]], [1.0] * 5)
    assert QualityValidator(None).validate(results) == expected
    assert QualityValidator(None).validate(batch) == expected
    assert QualityValidator(None, source=table).validate(results) == expected
    with pytest.raises(errors.QualityError, match="nothing to compare"):
        QualityValidator(None).validate(output)


@pytest.mark.slow
def test_whole_videos_are_compared(clip, samples, tmp_path):
    small, large = (samples / f"bigbuckbunny-{lines}p.mp4" for lines in (360, 720))
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(small.read_bytes())
    result = QualityValidator(small, 30.0, source=small).validate(copy)
    assert (result.passed, result.psnr, result.num_frames) == (True, float("inf"), 132)
    link = tmp_path / "link.mp4"
    link.symlink_to(small)
    for name, validator in (("reference", QualityValidator(small)), ("source", QualityValidator(None, source=small))):
        for same in (small, str(link)):
            with pytest.raises(errors.QualityError, match=f"the result is the {name} itself"):
                validator.validate(same)
    with pytest.raises(errors.QualityError, match="equal shape"):
        QualityValidator(small).validate(large)
    with pytest.raises(errors.QualityError, match="more frames"):
        QualityValidator(None, source=small).validate(clip[1])


def test_reduction_is_the_mean():
    frame = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert np.allclose(reduce_frame(frame, 2), frame.reshape(1, 2, 2, 2, 3).mean(axis=(1, 3)))
    with pytest.raises(errors.QualityError, match="multiples"):
        reduce_frame(frame, 3)


FRAME = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SourceChecks(max_seam=float("nan")), errors.QualityError, "max_seam"),
        (lambda: SourceChecks(seam_rows_px=(0,)), errors.QualityError, "no seam"),
        (lambda: SourceChecks(task="sharpening"), errors.InvalidInputError, "sharpening"),
        (lambda: QualityValidator(None, ssim=0.9), errors.QualityError, "without a reference"),
        (lambda: QualityValidator(FRAME, ssim=1.1), errors.QualityError, "at most 1"),
        (lambda: QualityValidator(FRAME, vmaf=float("inf")), errors.QualityError, "vmaf"),
        (lambda: QualityValidator(None, source=FRAME).validate(FRAME[:15]), errors.QualityError, "whole multiple"),
        (lambda: QualityValidator(None, source=FRAME).validate(FRAME.astype(np.uint16)), errors.QualityError, "dtype"),
        (lambda: QualityValidator(None, source=FRAME).validate(FRAME[None, :0]), errors.InvalidInputError, "0, 16"),
        (lambda: QualityValidator(None, source=FRAME).validate(FRAME[None][:0]), errors.QualityError, "more frames"),
        (lambda: QualityValidator(None, source=FRAME).validate(FRAME[0]), errors.InvalidInputError, "N, H, W"),
        (lambda: QualityValidator(None, source=FRAME).validate(7), errors.InvalidInputError, "int"),
        (
            lambda: QualityValidator(None, source=SourceChecks(task="other")).validate(FRAME[None][:0]),
            errors.QualityError,
            "without frames",
        ),
        (
            lambda: QualityValidator(None, source=np.full((4, 4, 3), np.nan, np.float32)).validate(
                np.zeros((4, 4, 3), np.float32)
            ),
            errors.InvalidInputError,
            "source with NaN",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
