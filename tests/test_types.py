"""Values that every module shares."""

import math
from fractions import Fraction

import pytest
from pydantic import ValidationError

from genai_ray import (
    Background,
    CacheOptions,
    Encoding,
    FrameSelection,
    InferenceSession,
    ModelBackend,
    ModelCache,
    SessionLimits,
    errors,
)
from genai_ray.catalog import JobProfile, ServeProfile
from genai_ray.cluster.messages import SessionRequest
from genai_ray.enhance import EnhanceOptions, enhance_videos
from genai_ray.types import parse_bytes


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        (1, 1),
        ("4096", 4096),
        ("2GB", 2 * 1000**3),
        ("512MiB", 512 * 1024**2),
        (" 1.5 gib ", 3 * 1024**3 // 2),
        ("1kB", 1000),
        ("1 TiB", 1024**4),
        ("7b", 7),
    ],
)
def test_bytes_are_read_with_units(size, num_bytes):
    assert parse_bytes(size) == num_bytes


@pytest.mark.parametrize("size", [0, -1, "0MB", "", "GB", "2 apples", "2G", "-2GB", "1e9", True, "nan", "2GB of RAM"])
def test_what_is_no_number_of_bytes_is_refused(size):
    with pytest.raises(errors.ConfigError, match=r"^--max-memory="):
        parse_bytes(size, "--max-memory")


def test_every_budget_may_have_a_unit(tmp_path, samples):
    assert JobProfile(name="a", max_memory_bytes="2GiB").max_memory_bytes == 2 * 1024**3
    assert ServeProfile(name="a").override(max_memory_bytes="2GB").max_memory_bytes == 2 * 1000**3
    with pytest.raises(ValidationError, match="2GB or 512MiB"):
        JobProfile(name="a", max_memory_bytes="much")
    with pytest.raises(errors.ConfigError, match="2GB or 512MiB"):
        ModelCache("much")
    with pytest.raises(errors.ConfigError, match="2GB or 512MiB"):
        enhance_videos(
            samples / "bigbuckbunny-360p.mp4",
            tmp_path / "b.mp4",
            models="websr-x2-s",
            options=EnhanceOptions(max_memory_bytes="much"),
        )


def test_words_and_numbers_are_taken_as_what_they_mean():
    options = EnhanceOptions(backend="openvino", precision="bf16", background="blur:7", fps="60000/1001", batch_size=2)
    assert options.backend is ModelBackend.OPENVINO
    assert options.background == Background(kind="blur", radius_px=7)
    assert options.fps == Fraction(60000, 1001)
    assert EnhanceOptions(fps=59.94).fps == Fraction("59.94")
    assert CacheOptions(policy="gdsf").policy.value == "gdsf"
    with InferenceSession("websr-x2-s", backend="onnx", precision="fp32") as session:
        assert session.backend is ModelBackend.ONNX


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EnhanceOptions(backend="onyx"), "backend='onyx'; allowed: onnx, openvino"),
        (lambda: EnhanceOptions(precision=32), "precision=32; allowed: fp32"),
        (lambda: EnhanceOptions(background="blurred"), "background 'blurred'; allowed: alpha"),
        (lambda: EnhanceOptions(background=7), "background=7; allowed: a Background"),
        (lambda: EnhanceOptions(fps="fast"), "fps fast; allowed: a number or a fraction"),
        (lambda: EnhanceOptions(encoding="hevc"), "encoding='hevc'; allowed: an Encoding"),
        (lambda: EnhanceOptions(params=15), "params=15; allowed: numbers by name"),
        (lambda: EnhanceOptions(batch_size="8"), "batch_size='8'; allowed: a whole number"),
        (lambda: EnhanceOptions(factor=2.5), "factor=2.5; allowed: a whole number or None"),
        (lambda: EnhanceOptions(overwrite="no"), "overwrite='no'; allowed: True or False"),
        (lambda: EnhanceOptions(segment_frames=None), "segment_frames=None; allowed: a whole number"),
        (lambda: EnhanceOptions(crf=18), "crf= of EnhanceOptions; allowed: encoding=Encoding(crf=...)"),
        (
            lambda: EnhanceOptions(radius_px=3),
            "radius_px= of EnhanceOptions; allowed: background=Background(",
        ),
        (lambda: EnhanceOptions(seize="1x1"), "seize= of EnhanceOptions. Did you mean size?"),
        (lambda: Encoding(zzz=1), "zzz= of Encoding; allowed: bit_depth, codec, crf, "),
        (lambda: CacheOptions(min_stay=1), "min_stay= of CacheOptions. Did you mean min_stay_s?"),
        (lambda: SessionLimits(tile_px=1), "tile_px= of SessionLimits. Did you mean tile_size_px?"),
        (lambda: SessionRequest("m", "onnx", "fp32", zzz=1), "zzz= of SessionRequest; allowed: backend, "),
        (lambda: EnhanceOptions(duration=-1), "duration -1; allowed: from 0"),
        (lambda: EnhanceOptions(start=3, end=2), "end 2 s of a piece from 3 s; allowed: an end after its start"),
        (lambda: EnhanceOptions(size="0x2"), "width 0; allowed: from 1 to"),
        (lambda: EnhanceOptions(audio="loud"), "audio 'loud'; allowed: auto"),
        (lambda: EnhanceOptions(replicas=0), "replicas=0; allowed: 1 or more"),
        (lambda: EnhanceOptions(batch_size=0), "batch_size=0; allowed: 1 or more"),
        (lambda: EnhanceOptions(segment_frames=0), "segment_frames=0; allowed: 1 or more"),
        (lambda: EnhanceOptions(factor=1), "factor=1; allowed: from 2 to 16"),
        (lambda: EnhanceOptions(slow_motion=17), "slow_motion=17; allowed: from 2 to 16"),
        (lambda: EnhanceOptions(fps=0), "0 frames per second; allowed: above 0, up to 1000"),
        (lambda: EnhanceOptions(fps=1001), "1001 frames per second; allowed: above 0, up to 1000"),
        (lambda: EnhanceOptions(scene_threshold=math.nan), "scene_threshold=nan; allowed: from 0 to 1"),
        (lambda: EnhanceOptions(tile_size_px=-1), "tile_size_px=-1; allowed: 0 or more"),
        (lambda: EnhanceOptions(min_quality_db=39), "a least quality of 39 dB; allowed: from 40, below"),
        (lambda: EnhanceOptions(min_quality_db=50), "a least quality of 50 dB with backend 'onnx'"),
        (lambda: EnhanceOptions(precision="auto"), "precision 'auto' of backend 'onnx'; allowed: backend 'auto'"),
        (lambda: EnhanceOptions(device="tpu"), "device 'tpu'; allowed: auto, cpu, cuda or cuda:INDEX"),
        (lambda: EnhanceOptions(deinterlace="off", field_order="top"), "field order 'top' with deinterlace 'off'"),
        (lambda: Encoding(codec="h266"), "codec 'h266'; allowed: libx264, "),
        (lambda: Encoding(crf=64), "crf=64; allowed: from 0 to 63"),
        (lambda: Encoding(codec="h264", crf=52), "crf 52; allowed: from 0 to 51"),
        (lambda: Encoding(codec="ffv1", crf=5), "crf 5; allowed: no crf: ffv1 has none"),
        (lambda: Encoding(codec="av1", preset="fast"), "preset 'fast'; allowed: 13, 12"),
        (lambda: Encoding(threads=0), "threads=0; allowed: 1 or more"),
        (lambda: Encoding(image_quality=101), "image_quality=101; allowed: from 1 to 100"),
        (lambda: Encoding(bit_depth=7), "bit_depth=7; allowed: from 8 to 16"),
        (lambda: Encoding(crf=20, max_size="5MB"), "crf and max_size; allowed: one of them"),
        (lambda: Encoding(options={"x264-params": 5}), "options={'x264-params': 5}; allowed: text by name"),
        (lambda: SessionLimits(max_batch=0), "max_batch=0; allowed: 1 or more"),
        (lambda: SessionLimits(max_frame=(0, 64)), "max_frame=(0, 64); allowed: (height, width), whole numbers"),
        (lambda: SessionLimits(max_frame=()), "max_frame=(); allowed: (height, width), whole numbers"),
        (lambda: SessionLimits(max_frame=64), "max_frame=64; allowed: (height, width), whole numbers"),
        (lambda: SessionLimits(max_frame=(64,)), "max_frame=(64,); allowed: (height, width), whole numbers"),
        (lambda: CacheOptions(spare_processes=2), "spare_processes=2; allowed: from 0 to 1"),
        (lambda: CacheOptions(min_stay_s=-1), "min_stay_s=-1; allowed: 0 or more"),
        (lambda: EnhanceOptions(max_memory_bytes="much"), "max_memory_bytes"),
        (lambda: Background(kind="x"), "background kind 'x'; allowed: alpha, blur, colour, mask"),
        (lambda: Background(colour=(1, 2, 300)), "background colour (1, 2, 300); allowed: (red, green, blue), "),
        (lambda: Background(kind="blur", radius_px=0), "background radius_px=0; allowed: 1 to"),
        (lambda: Encoding(crf="18"), "crf='18'; allowed: a number or None"),
        (lambda: SessionLimits(max_bytes="1GB"), "max_bytes='1GB'; allowed: a whole number or None"),
        (lambda: FrameSelection(every=True), "every=True; allowed: a whole number"),
        (lambda: CacheOptions(min_stay_s="5"), "min_stay_s='5'; allowed: a number"),
        (lambda: InferenceSession("websr-x2-s", backend="tf"), "backend='tf'; allowed: onnx"),
    ],
)
def test_what_an_option_cannot_be_is_said_when_it_is_made(make, words):
    with pytest.raises(errors.ConfigError) as told:
        make()
    assert str(told.value).startswith(words)
