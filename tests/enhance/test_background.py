"""The background: what is put in its place, and where alpha can go."""

import numpy as np
import pytest
from PIL import Image

from genai_ray import EnhanceOptions, InferenceSession, enhance_videos, errors
from genai_ray.enhance import Background, parse_background
from genai_ray.enhance.plan.background import compose
from genai_ray.video import Encoding
from tests.enhance.moving import decode, frames_of, write_frames


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("alpha", Background(kind="alpha")),
        ("mask", Background(kind="mask")),
        ("blur", Background(kind="blur")),
        ("blur:12", Background(kind="blur", radius_px=12)),
        ("#ff8000", Background(colour=(255, 128, 0))),
        ("00b140", Background()),
    ],
)
def test_metadata_for_backgrounds(word, wanted):
    assert parse_background(word) == wanted


@pytest.mark.parametrize(
    "word", ["", "green", "blur:", "blur:0", "blur:501", "blur:-3", "#ff80", "#ff80000", "alpha:3"]
)
def test_other_words_are_refused(word):
    with pytest.raises(errors.ConfigError, match="#00b140"):
        parse_background(word)


@pytest.fixture(params=[np.uint8, np.uint16], ids=["uint8", "uint16"])
def subject(request):
    """A white square before a dark picture; the mask is soft at one side. Read-only, as Ray's arrays are."""
    peak = np.iinfo(request.param).max
    frame = np.full((48, 64, 3), peak // 5, request.param)
    mask = np.zeros((48, 64, 1), request.param)
    frame[16:32, 24:40] = peak
    mask[16:32, 24:40] = peak
    mask[16:32, 22:24] = peak // 2
    for array in (frame, mask):
        array.flags.writeable = False
    return frame, mask, peak


def test_a_colour_behind_the_subject(subject):
    frame, mask, peak = subject
    result = compose(frame, mask, Background(colour=(255, 0, 51)))
    assert result.dtype == frame.dtype
    assert np.array_equal(result[16:32, 24:40], frame[16:32, 24:40])
    assert result[0, 0].tolist() == [peak, 0, peak // 5]
    half = peak // 2 / peak
    assert (
        np.abs(result[20, 22].astype(float) - (frame[20, 22] * half + np.array([peak, 0, peak / 5]) * (1 - half))).max()
        <= 0.51
    )


def test_the_mask_as_a_picture_and_as_alpha(subject):
    frame, mask, _ = subject
    assert np.array_equal(compose(frame, mask, Background(kind="mask")), np.repeat(mask, 3, axis=-1))
    assert np.array_equal(compose(frame, mask, Background(kind="alpha")), frame)


@pytest.mark.parametrize("radius", [None, 1, 3, 9, 100])
def test_no_light_of_the_subject_gets_into_the_blur(subject, radius):
    frame, mask, peak = subject
    result = compose(frame, mask, Background(kind="blur", radius_px=radius))
    assert np.array_equal(result[16:32, 24:40], frame[16:32, 24:40])
    outside = np.broadcast_to(mask == 0, frame.shape)
    assert np.abs(result[outside].astype(float) - peak // 5).max() < peak / 100


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (61, 49)])
def test_detail_behind_the_subject_is_blurred_at_any_size(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    result = compose(noise, np.zeros((size[1], size[0], 1), np.uint8), Background(kind="blur", radius_px=6))
    assert result.shape == noise.shape
    if min(size) > 6:
        assert result.std() < noise.std() / 8
        assert abs(float(result.mean()) - noise.mean()) < 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory, samples):
    return write_frames(
        tmp_path_factory.mktemp("clip") / "a.mkv", frames_of(samples / "bigbuckbunny-360p.mp4")[1][:6, ::4, ::4]
    )


@pytest.fixture(scope="module")
def masks(clip):
    frames = decode(clip)[0]
    with InferenceSession("selfie-segmentation") as session:
        return session.infer(frames)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "suffix", "apart"), [("ffv1", ".mkv", 0), ("prores", ".mov", 3), ("vp9", ".webm", 12)]
)
def test_alpha_goes_where_it_can(ray_session, clip, masks, tmp_path, codec, suffix, apart):
    encoding = Encoding(codec=codec, crf=8 if codec == "vp9" else None)
    options = EnhanceOptions(encoding=encoding, background=Background(kind="alpha"), segment_frames=4)
    enhance_videos(clip, tmp_path / f"b{suffix}", models="selfie-segmentation", options=options)
    frames, alpha = decode(tmp_path / f"b{suffix}")
    source = decode(clip)[0]
    if frames.dtype == np.uint16:
        frames, alpha = frames // 257, alpha // 257
    assert np.abs(alpha.astype(int) - masks).mean() <= apart / 4
    assert np.percentile(np.abs(alpha.astype(int) - masks), 99) <= apart
    assert np.abs(frames.astype(int) - source).mean() < 6
    assert alpha.std() > 20


def test_alpha_in_a_folder_of_pictures(ray_session, clip, masks, tmp_path):
    options = EnhanceOptions(background=Background(kind="alpha"))
    enhance_videos(clip, tmp_path / "frames" / "%04d.png", models="selfie-segmentation", options=options)
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "frames").glob("*.png"))]
    assert np.array_equal(np.stack(pictures)[..., 3:], masks)
    assert np.array_equal(np.stack(pictures)[..., :3], decode(clip)[0])


@pytest.mark.parametrize(
    ("codec", "suffix", "words"),
    [("libx264", ".mp4", "alpha with libx264"), ("ffv1", ".mp4", "in .mp4"), ("vp9", ".mp4", "alpha with vp9 in .mp4")],
)
def test_alpha_that_the_encoder_lacks_is_refused_at_once(clip, tmp_path, codec, suffix, words):
    options = EnhanceOptions(encoding=Encoding(codec=codec), background=Background(kind="alpha"))
    with pytest.raises(errors.ConfigError, match=words):
        enhance_videos(clip, tmp_path / f"b{suffix}", models="selfie-segmentation", options=options)
    assert list(tmp_path.iterdir()) == []


def test_a_background_without_a_model_that_removes_it_is_refused(clip, tmp_path):
    with pytest.raises(errors.ConfigError, match="selfie-segmentation"):
        enhance_videos(
            clip, tmp_path / "b.mkv", models="websr-x2-s", options=EnhanceOptions(background=Background(kind="blur"))
        )


@pytest.mark.slow
def test_masks_belong_to_the_frames_that_are_written(ray_session, clip, tmp_path):
    """Enlarged and with frames between: the mask is found in the result's own frames."""
    options = EnhanceOptions(
        encoding=Encoding(codec="ffv1"), background=Background(kind="mask"), segment_frames=4, batch_size=3
    )
    enhance_videos(clip, tmp_path / "b.mkv", models=["websr-x2-s", "rife", "selfie-segmentation"], options=options)
    frames, alpha = decode(tmp_path / "b.mkv")
    with (
        InferenceSession("websr-x2-s") as enlarge,
        InferenceSession("rife") as between,
        InferenceSession("selfie-segmentation") as find,
    ):
        large = enlarge.infer(decode(clip)[0])
        wanted = find.infer(np.repeat(large, 2, axis=0))
        wanted[1:-1:2] = find.infer(between.infer(large))
    assert alpha is None
    assert frames.shape == (12, 180, 320, 3)
    assert np.abs(frames.astype(int) - wanted).max() <= 2


def test_a_person_in_a_car(ray_session, shared, tmp_path):
    source = write_frames(tmp_path / "a.mkv", frames_of(shared / "clips" / "carphone_pristine.mp4")[1][60:66])
    for background in (Background(kind="alpha"), Background(kind="blur")):
        options = EnhanceOptions(encoding=Encoding(codec="ffv1"), background=background)
        enhance_videos(source, tmp_path / f"{background.kind}.mkv", models="selfie-segmentation", options=options)
    frames, alpha = decode(tmp_path / "alpha.mkv")
    blurred, _ = decode(tmp_path / "blur.mkv")
    face, window = np.s_[:, 50:100, 65:105], np.s_[:, :40, 130:]
    assert alpha[face].mean() > 250
    assert alpha[window].mean() < 5
    assert np.abs(blurred[face].astype(int) - frames[face]).mean() < 1
    assert (
        np.abs(np.diff(blurred[window].astype(int), axis=2)).mean()
        < np.abs(np.diff(frames[window].astype(int), axis=2)).mean() / 2
    )
