"""Real-ESRGAN and Real-CUGAN: what their catalog entries promise, on small pieces of real frames."""

import numpy as np
import pytest

from genai_ray import (
    Encoding,
    EnhanceOptions,
    InferenceSession,
    ModelCatalog,
    SessionLimits,
    VideoReader,
    enhance_videos,
    errors,
)
from genai_ray.catalog import dump_spec
from genai_ray.session import can_tile, describe_seams
from tests.enhance.moving import frames_of, write_frames

CATALOG = ModelCatalog.default()
RRDB = ("realesrgan-x4plus", "realesrgan-x4plus-anime")


@pytest.fixture(scope="module")
def picture(samples):
    with VideoReader(samples / "bigbuckbunny-360p.mp4") as video:
        return video.frame_at(3.0).frame


@pytest.mark.parametrize("model_id", [pytest.param(RRDB[0], marks=pytest.mark.slow), RRDB[1]])
def test_frames_are_reflected_by_10_px_as_published(model_id, picture):
    frame = np.ascontiguousarray(picture[100:112, 200:216])
    padded = np.pad(frame, [(10, 10), (10, 10), (0, 0)], mode="reflect").astype(np.float32) / 255
    with InferenceSession(model_id) as session:
        (raw,) = session.run({"input": padded.transpose(2, 0, 1)[np.newaxis]})["output"]
        values = 255 * np.clip(raw[:, 40:-40, 40:-40], 0, 1).transpose(1, 2, 0)
        found = session.infer(frame)
    assert found.shape == (48, 64, 3)
    assert np.abs(found - values).max() <= 0.51
    enlarged = found.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(enlarged - frame).mean() < 8  # it is the same scene, with invented detail


def whole(model_id, folder):
    """The same model without tiles."""
    path = folder / f"{model_id}.onnx"
    path.write_bytes(CATALOG.path(model_id).read_bytes())
    spec = CATALOG.get(model_id).model_copy(update={"tiles": None})
    path.with_suffix(".yaml").write_text(dump_spec(spec))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_id",
    [pytest.param(one, marks=[pytest.mark.longest] * (one == "realesrgan-x4plus")) for one in RRDB],
)
def test_the_halo_costs_less_than_the_catalog_says(model_id, picture, tmp_path):
    """A strip of a real frame that is cut into two tiles; both have their whole halo at the cut."""
    spec = CATALOG.get(model_id)
    strip = np.ascontiguousarray(picture[160:176, 100:500]).astype(np.float32) / 255
    with InferenceSession(whole(model_id, tmp_path)) as session:
        exact = session.infer(strip)
        assert (session.runtime_calls, session.notes) == (1, ())
    results = []
    for threads in (1, 2):
        with InferenceSession(model_id, threads=threads) as session:
            results.append(session.infer(strip))
            assert session.runtime_calls == 2
            assert f"halo of {spec.tiles.halo_px} px" in session.notes[0]
    assert np.array_equal(*results)
    levels = 255 * np.abs(results[0] - exact).max()
    print(f"{model_id}: {levels:.3f} levels")
    assert 0 < levels <= spec.tiles.error_levels


@pytest.mark.slow
def test_a_job_is_the_same_for_any_number_of_workers(ray_session, picture, tmp_path):
    frames = np.stack([np.ascontiguousarray(picture[y : y + 16, 200:224]) for y in (80, 84, 88, 92)])
    write_frames(tmp_path / "in.mkv", frames, codec="ffv1")
    found = []
    for segment_frames in (4, 1):  # one task, and four
        options = EnhanceOptions(segment_frames=segment_frames, encoding=Encoding(codec="ffv1"))
        out = tmp_path / f"{segment_frames}.mkv"
        report = enhance_videos(tmp_path / "in.mkv", out, models=RRDB[0], options=options)
        assert report.videos[0].frames == 4
        found.append(frames_of(out)[1])
    assert np.array_equal(*found)


def test_real_cugan_is_never_tiled_and_refused_if_too_large(picture):
    spec = CATALOG.get("realcugan-x2")
    assert not can_tile(spec)
    assert describe_seams(spec, (2160, 3840)) is None
    with InferenceSession(spec.model_id, limits=SessionLimits(max_bytes=400_000_000)) as session:
        assert session.tile_size_px is None
        assert session.infer(picture[:90, :120]).shape == (180, 240, 3)
        assert session.runtime_calls == 1
        words = r"a frame of 1920x1080 needs \d+ bytes in realcugan-x2, which sees the whole frame and cannot be tiled"
        with pytest.raises(errors.ResourceExhaustedError, match=words):
            session.infer(np.zeros((1080, 1920, 3), np.uint8))
    with pytest.raises(errors.ConfigError, match=r"tiles of 256 px for realcugan-x2, which .* sees the whole frame"):
        InferenceSession(spec.model_id, limits=SessionLimits(tile_size_px=256))


@pytest.mark.parametrize("size", [(21, 35), (7, 3)])
def test_real_cugan_takes_odd_and_small_frames(picture, size):
    with InferenceSession("realcugan-x2") as session:
        found = session.infer(picture[100 : 100 + size[0], 200 : 200 + size[1]])
    assert found.shape == (2 * size[0], 2 * size[1], 3)
