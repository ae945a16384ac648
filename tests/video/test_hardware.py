"""Encoders in hardware: refused with FFmpeg's reason if the machine lacks them, and options that they really have."""

import av
import pytest

from genai_ray import errors
from genai_ray.video import (
    Encoding,
    check_result,
    decode_segment,
    describe_losses,
    join_segments,
    list_hardware,
    measure_part,
    open_writer,
    plan_video,
    validate_encoding,
)
from genai_ray.video.codecs import CODECS
from genai_ray.video.encoding.hardware import HARDWARE_CODECS, HardwareCodec
from tests.video.clips import write

HERE = [name for name in HARDWARE_CODECS if name in av.codecs_available]
ABSENT = [name for name in HARDWARE_CODECS if name not in av.codecs_available]


def test_every_encoder_works_or_says_why_not():
    working, refused = list_hardware()
    assert sorted([*working, *refused]) == sorted(HERE)
    for name, reason in refused.items():
        assert len(reason) > len("DLL"), name
        with pytest.raises(errors.ConfigError) as caught:
            validate_encoding(Encoding(codec=name), HARDWARE_CODECS[name].suffixes[0])
        assert str(caught.value).startswith(f"codec '{name}', which does not work on this machine ({reason})")
    for name in working:
        validate_encoding(Encoding(codec=name), HARDWARE_CODECS[name].suffixes[0])


@pytest.mark.parametrize("name", ABSENT)
def test_an_encoder_that_the_build_lacks_is_refused(name):
    with pytest.raises(errors.ConfigError, match="this build of FFmpeg lacks; allowed: libx264"):
        validate_encoding(Encoding(codec=name), ".mp4")


@pytest.mark.parametrize("name", HERE)
def test_options_are_those_of_the_encoder(name):
    codec = HARDWARE_CODECS[name]
    known = av.CodecContext.create(name, "w").supported_options
    by_name = {option.name: option for option in (*known.generic, *known.private)}
    asked = [codec.options(preset, crf) for preset in (None, *codec.presets) for crf in (None, 0, codec.max_crf)]
    for options in (*asked, codec.options(None, None, 4_000_000)):
        for key, value in options.items():
            option = by_name[key]
            words = {choice.name for choice in option.choices}
            assert value in words or option.min <= float(value) <= option.max, (key, value)
    formats = {item.name for item in av.Codec(name, "w").video_formats or ()}
    assert {codec.inputs.get(pix_fmt, pix_fmt) for pix_fmt in codec.formats["420"]} <= formats
    assert codec.max_crf >= codec.crf > 0


def test_the_quality_of_videotoolbox_falls_as_the_factor_rises():
    codec = HARDWARE_CODECS["hevc_videotoolbox"]
    values = [int(codec.options(None, crf)["global_quality"]) for crf in (0, 22, 51)]
    assert values == [118 * 100, 118 * 57, 118 * 1]


@pytest.mark.parametrize(
    ("settings", "suffix", "words"),
    [
        ({"codec": "h264_nvenc", "max_size": "1MB"}, ".mp4", "max_size with h264_nvenc; allowed: libx264"),
        ({"codec": "h264_nvenc"}, ".webm", "h264_nvenc in .webm; allowed: .mp4"),
        ({"codec": "h264_nvenc", "preset": "medium"}, ".mp4", "preset 'medium'; allowed: p1, p2"),
        ({"codec": "h264_nvenc", "crf": 52}, ".mp4", "crf 52; allowed: from 0 to 51"),
        (
            {"codec": "h264_nvenc", "crf": 20, "video_bitrate": "4M"},
            ".mp4",
            "crf and video_bitrate; allowed: one of them",
        ),
        ({"codec": "h265_nvenc"}, ".mp4", "In hardware, if the machine has it: h264_nvenc"),
    ],
)
def test_what_makes_no_sense_is_refused_first(settings, suffix, words):
    if settings["codec"] in ABSENT:
        pytest.skip("this build lacks it, and says so first")
    with pytest.raises(errors.ConfigError) as caught:
        validate_encoding(Encoding(**settings), suffix)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "suffix", "words"),
    [
        ({"crf": 20, "video_bitrate": "4M"}, ".mp4", "crf and video_bitrate; allowed: one of them"),
        ({"crf": 20, "max_size": "4MB"}, ".mp4", "crf and max_size; allowed: one of them"),
        ({"video_bitrate": "4M", "max_size": "4MB"}, ".mp4", "video_bitrate and max_size; allowed: one of them"),
        ({"codec": "ffv1", "max_size": "4MB"}, ".mkv", "max_size with ffv1; allowed: libx264 or libx265"),
        ({"codec": "prores", "video_bitrate": "4M"}, ".mov", "video_bitrate with prores; allowed: libx264 or libx265"),
        (
            {"codec": "av1", "max_size": "4MB", "options": {"svtav1-params": "tune=0:crf=30"}},
            ".mp4",
            "max_size and encoder option 'crf'",
        ),
        ({"max_size": "4MB"}, ".webm", "max_size with libvpx-vp9; allowed: libsvtav1"),
        ({"max_size": "4MB"}, ".png", "max_size with png; allowed: an output with a bit rate"),
        (
            {"max_size": "4MB", "options": {"qp": "20"}},
            ".mp4",
            "max_size and encoder option 'qp'; allowed: one of them",
        ),
    ],
)
def test_contradictions_are_refused(settings, suffix, words):
    with pytest.raises(errors.ConfigError) as caught:
        validate_encoding(Encoding(**settings), suffix)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("video_bitrate", "4M", 4_000_000),
        ("video_bitrate", "4000k", 4_000_000),
        ("video_bitrate", "1.5m", 1_500_000),
        ("video_bitrate", 800_000, 800_000),
        ("max_size", "500MB", 500_000_000),
        ("max_size", "480MiB", 480 * 1024**2),
        ("max_size", 123, 123),
    ],
)
def test_rates_and_sizes_are_read(name, value, read):
    assert getattr(Encoding(**{name: value}), name) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("video_bitrate", value) for value in ("4MB", "-4M", "0", "", "4 4", "nan", "1e6", True, 4.5, 0)),
        *(("max_size", value) for value in ("big", "-1MB", "0", "", "5M5", True, 4.5, 0)),
    ],
)
def test_other_rates_and_sizes_are_refused(name, value):
    with pytest.raises(errors.ConfigError, match=name):
        Encoding(**{name: value})


@pytest.fixture
def stand_in(monkeypatch):
    """FFmpeg's encoder of MPEG-4 in the place of a chip: it is none of the encoders of results."""
    facts = HardwareCodec(
        suffixes=(".mp4",),
        formats={"420": ("yuv420p",)},
        max_crf=31,
        crf=5,
        quality={"qmin": "{}", "qmax": "{}"},
        rate={"b": "{}", "maxrate": "{}", "bufsize": "{}"},
    )
    monkeypatch.setitem(HARDWARE_CODECS, "mpeg4", facts)
    return "mpeg4"


def test_what_works_is_used_from_the_check_to_the_result(stand_in, tmp_path):
    plan = plan_video(write(tmp_path / "a.mp4"))
    size = (plan.info.width, plan.info.height)
    taken = []
    for settings in ({}, {"crf": 20}, {"video_bitrate": "2M"}, {"video_bitrate": "20k"}):
        encoding = Encoding(codec=stand_in, **settings)
        validate_encoding(encoding, ".mp4")
        assert check_result(plan, size, encoding, ".mp4") == ()
        with open_writer(tmp_path / "part.nut", info=plan.info, size=size, encoding=encoding) as writer:
            for frame in decode_segment(plan, plan.segments[0]):
                writer.write(frame.frame, frame.pts)
        taken.append(measure_part(tmp_path / "part.nut"))
        (told,) = describe_losses(plan.info, encoding, size)
        assert told == "encoded in hardware by mpeg4: the same job may give other bytes"
    assert taken[0] > taken[1]
    assert taken[2] > taken[3]
    assert join_segments(plan, [tmp_path / "part.nut"], [len(plan.pts)], tmp_path / "b.mp4") == ()
    assert plan_video(tmp_path / "b.mp4").pts == plan.pts
    assert stand_in in list_hardware()[0]
    with pytest.raises(errors.ConfigError, match="encoder option 'tuna'"):
        validate_encoding(Encoding(codec=stand_in, options={"tuna": "1"}), ".mp4")


def test_encoders_of_every_machine_are_not_in_hardware():
    assert not any(Encoding(codec=name).is_in_hardware for name in CODECS)
    assert all(Encoding(codec=name).is_in_hardware for name in HARDWARE_CODECS)
