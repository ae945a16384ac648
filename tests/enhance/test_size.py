"""The size of a result: how it is asked for, what follows, and that pictures are those of FFmpeg's own scale filter."""

import csv
import math
from dataclasses import replace
from fractions import Fraction

import av
import av.filter
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from genai_ray import Background, EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.plan.size import FrameSizes, ResultSize, find_input_size, plan_sizes
from genai_ray.enhance.segment.resize import add_bars, fit_alpha, fit_frame, reduce_frames
from genai_ray.types import Fit
from genai_ray.video import DecodedFrame, Encoding, plan_video, resample
from tests.enhance.moving import decode, pan, write_frames
from tests.enhance.test_checks import FAULTS, save_model
from tests.video.clips import write
from tests.video.matrix import make

H264 = Encoding(codec="libx264", preset="ultrafast")


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    """Properties of a video of 96x64."""
    return plan_video(write(tmp_path_factory.mktemp("info") / "a.mkv", tracks=0, pts=[0, 1])).info


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A model that gives back what it gets."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "g", ends[:1], ends[1:])
    path = tmp_path_factory.mktemp("identity") / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# --- how it is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, None),
        ({"size": "1920x1080"}, ResultSize(1920, 1080)),
        ({"size": " 64x48 ", "fit": "pad"}, ResultSize(64, 48, fit=Fit.PAD)),
        ({"height": 1080}, ResultSize(height=1080)),
        ({"width": np.int64(1920)}, ResultSize(1920)),
        ({"scale": 1.5}, ResultSize(scale=Fraction(3, 2))),
        ({"scale": "3/2"}, ResultSize(scale=Fraction(3, 2))),
        ({"scale": 0.1}, ResultSize(scale=Fraction(1, 10))),
        ({"input_height": 540}, ResultSize(input_height=540)),
        ({"input_height": 540, "height": 1080}, ResultSize(height=1080, input_height=540)),
    ],
)
def test_sizes_are_read(options, asked):
    assert EnhanceOptions(**options).result_size == asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "1920"}, "size '1920'; allowed: WIDTHxHEIGHT in pixels, such as 1920x1080"),
        ({"size": "-1920x1080"}, "allowed: WIDTHxHEIGHT"),
        ({"size": "1920x1080.5"}, "allowed: WIDTHxHEIGHT"),
        ({"size": "0x1080"}, "width 0; allowed: from 1 to 65535 pixels"),
        ({"size": "1920x65536"}, "height 65536; allowed: from 1 to 65535 pixels"),
        ({"height": 0}, "height 0; allowed: from 1"),
        ({"width": -2}, "width -2; allowed: from 1"),
        ({"height": 1080.5}, "height=1080.5; allowed: a whole number or None"),
        ({"height": True}, "height=True; allowed: a whole number or None"),
        ({"input_height": 0}, "input height 0; allowed: from 1"),
        ({"scale": 0}, "scale 0; allowed: above 0, up to 64"),
        ({"scale": "-1.5"}, "scale -1.5; allowed: above 0"),
        ({"scale": 65}, "scale 65; allowed: above 0, up to 64"),
        ({"scale": "nan"}, "scale 'nan'; allowed: a number or a fraction"),
        ({"scale": "1/0"}, "scale '1/0'; allowed: a number or a fraction"),
        ({"scale": "1e-999999999"}, "scale '1e-999999999'; allowed: a number or a fraction"),
        ({"fps": "1e999999999"}, "fps 1e999999999; allowed: a number or a fraction"),
        ({"size": "64x48", "height": 48}, "size and height; allowed: one of them"),
        ({"width": 64, "height": 48}, "width and height; allowed: one of them"),
        ({"scale": 2, "height": 48}, "height and scale; allowed: one of them"),
        ({"fit": "pad"}, "fit 'pad' without a size"),
        ({"fit": "crop", "height": 48}, "fit 'crop' without a size"),
        ({"fit": "zoom", "size": "64x48"}, "fit='zoom'; allowed: inside, pad, crop, stretch"),
        ({"height": 1081}, "a result of 1081 pixels; allowed: even sides: libx264 stores chroma"),
        ({"size": "1919x1081"}, "a result of 1919 by 1081 pixels; allowed: even sides"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options, words, tmp_path):
    with pytest.raises(errors.ConfigError) as caught:
        enhance_videos("missing.mp4", tmp_path / "b.mp4", models="websr-x2-s", options=EnhanceOptions(**options))
    assert words in str(caught.value)


# --- which sizes follow ---------------------------------------------------------------------------------------------


def planned(info, enlarged=2, encoding=H264, **asked):
    return plan_sizes(info, enlarged, EnhanceOptions(**asked).result_size, encoding)


@pytest.mark.parametrize(
    ("source", "asked", "given", "made", "picture", "result"),
    [
        ((640, 360), {}, (640, 360), (1280, 720), (1280, 720), (1280, 720)),
        ((640, 360), {"height": 1080}, (640, 360), (1280, 720), (1920, 1080), (1920, 1080)),
        ((640, 360), {"height": 720}, (640, 360), (1280, 720), (1280, 720), (1280, 720)),
        ((640, 360), {"width": 854}, (640, 360), (1280, 720), (854, 480), (854, 480)),
        ((640, 360), {"scale": 1.5}, (640, 360), (1280, 720), (960, 540), (960, 540)),
        ((853, 480), {"scale": 1.5}, (853, 480), (1706, 960), (1280, 720), (1280, 720)),
        ((640, 360), {"size": "1000x1000"}, (640, 360), (1280, 720), (1000, 562), (1000, 562)),
        ((640, 360), {"size": "1000x1000", "fit": "pad"}, (640, 360), (1280, 720), (1000, 562), (1000, 1000)),
        ((640, 360), {"size": "1000x1000", "fit": "crop"}, (640, 360), (1280, 720), (1778, 1000), (1000, 1000)),
        ((640, 360), {"size": "1000x1000", "fit": "stretch"}, (640, 360), (1280, 720), (1000, 1000), (1000, 1000)),
        ((360, 640), {"size": "1920x1080", "fit": "pad"}, (360, 640), (720, 1280), (608, 1080), (1920, 1080)),
        ((360, 640), {"size": "1920x1080", "fit": "crop"}, (360, 640), (720, 1280), (1920, 3413), (1920, 1080)),
        ((1920, 1080), {"input_height": 540}, (960, 540), (1920, 1080), (1920, 1080), (1920, 1080)),
        ((1921, 1080), {"input_height": 720}, (1280, 720), (2560, 1440), (2560, 1440), (2560, 1440)),
        ((1921, 1080), {"input_height": 1080}, (1921, 1080), (3842, 2160), (3842, 2160), (3842, 2160)),
        ((1920, 1080), {"input_height": 540, "scale": 2}, (960, 540), (1920, 1080), (3840, 2160), (3840, 2160)),
    ],
)
def test_sizes_follow_from_what_is_asked(info, source, asked, given, made, picture, result):
    sizes = planned(replace(info, width=source[0], height=source[1]), **asked)
    assert (sizes.given, sizes.made, sizes.picture, sizes.result) == (given, made, picture, result)


def test_pixels_become_square_and_sides_are_those_that_are_shown(info):
    dvd = replace(info, width=720, height=576, sample_aspect_ratio=Fraction(16, 15))
    assert planned(dvd, height=1080) == FrameSizes(
        (720, 576), (1440, 1152), (1440, 1080), (1440, 1080), Fraction(1), is_asked=True
    )
    assert planned(dvd, size="1920x1080", fit="pad").picture == (1440, 1080)
    assert planned(dvd, size="1920x1080", fit="crop").picture == (1920, 1440)
    kept = planned(dvd, scale=1.5)
    assert (kept.result, kept.sample_aspect_ratio) == ((1080, 864), Fraction(16, 15))
    assert planned(dvd, input_height=288).sample_aspect_ratio == Fraction(16, 15)
    phone = replace(info, width=1920, height=1080, rotation=-90)  # shown as 1080x1920
    for rotation in (90, -90, 270):
        sizes = planned(replace(phone, rotation=rotation), size="720x1280")
        assert (sizes.picture, sizes.result) == ((1280, 720), (1280, 720))
    assert planned(phone, height=960, input_height=480) == FrameSizes(
        (480, 270), (960, 540), (960, 540), (960, 540), Fraction(1), is_asked=True
    )
    assert planned(replace(phone, rotation=180), height=540).result == (960, 540)
    both = replace(phone, sample_aspect_ratio=Fraction(2))  # stored pixels are twice as wide as high: shown 1080x3840
    assert planned(both, height=1920).result == (1920, 540)


def test_odd_sides_are_refused_only_where_chroma_needs_even_ones(info):
    ffv1, png = Encoding(codec="ffv1"), Encoding(codec="png")
    assert planned(info, encoding=png, size="33x17", fit="stretch").result == (33, 17)
    assert planned(replace(info, pix_fmt="yuv444p"), encoding=ffv1, height=33).result == (50, 33)
    assert planned(info, encoding=png, height=33).result == (50, 33)
    assert planned(info, encoding=ffv1, width=50).result == (50, 34)
    for encoding, options in (
        (ffv1, {"height": 33}),
        (H264, {"size": "33x18", "fit": "pad"}),
        (Encoding(codec="prores_ks"), {"size": "33x18", "fit": "crop"}),
        (Encoding(codec="libvpx-vp9"), {"width": 33}),
    ):
        with pytest.raises(errors.ConfigError, match=r"33.* pixels; allowed: even sides"):
            planned(info, encoding=encoding, **options)
    with pytest.raises(errors.ConfigError, match="a result of 33 pixels; allowed: even sides"):
        planned(info, enlarged=1, input_height=33)
    assert planned(replace(info, width=97), enlarged=1, input_height=64).result == (97, 64)  # nothing is reduced
    assert plan_sizes(info, 1, None, H264).result == (96, 64)
    assert plan_sizes(replace(info, width=97), 1, None, H264).result == (97, 64)  # 4:4:4, as without any option


def test_frames_are_only_reduced_before_the_model(info):
    with pytest.raises(errors.ConfigError, match="input height 65 for frames of 96x64; allowed: up to 64"):
        find_input_size(info, ResultSize(input_height=65))
    turned = replace(info, rotation=90)  # shown as 64x96
    assert find_input_size(turned, ResultSize(input_height=48)) == (48, 32)
    with pytest.raises(errors.ConfigError, match="input height 97 for frames of 64x96; allowed: up to 96"):
        find_input_size(turned, ResultSize(input_height=97))


@settings(deadline=None)
@given(
    source=st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    box=st.tuples(st.integers(8, 2000), st.integers(8, 2000)),
    aspect=st.fractions(Fraction(1, 2), 2, max_denominator=50),
    rotation=st.sampled_from([0, 90, 180, 270, -90]),
    fit=st.sampled_from(list(Fit)),
)
def test_every_fit_keeps_its_promise(info, source, box, aspect, rotation, fit):
    video = replace(info, width=source[0], height=source[1], sample_aspect_ratio=aspect, rotation=rotation)
    width, height = box[0] * 2, box[1] * 2
    sizes = planned(video, size=f"{width}x{height}", fit=fit)
    turned = rotation % 180 == 90
    picture, result = (size[::-1] if turned else size for size in (sizes.picture, sizes.result))
    shape = Fraction(source[1], source[0]) / aspect if turned else Fraction(*source) * aspect
    if fit is Fit.STRETCH:
        assert picture == result == (width, height)
        return
    grain = 1 if fit is Fit.CROP else 2
    assert abs(picture[0] - picture[1] * shape) <= grain * max(1, shape) or min(picture) == grain
    if fit is Fit.CROP:
        assert result == (width, height)
        assert picture[0] >= width
        assert picture[1] >= height
        assert picture[0] == width or picture[1] == height
    else:
        assert result == (picture if fit is Fit.INSIDE else (width, height))
        assert picture[0] <= width
        assert picture[1] <= height
        assert picture[0] == width or picture[1] == height


# --- the pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(144, 96), (240, 150), (60, 40), (97, 31), (64, 96)])
def test_each_channel_is_resampled_by_lanczos(size):
    """Pillow has the same kernel, three lobes and as much wider as it reduces; at edges it does something else."""
    frame = pan(1)[0]
    across, down = (
        max(4 * have // want, 4) if have > want else 4 * want // have + 1
        for have, want in zip((96, 64), size, strict=True)
    )
    for pixels, channels in ((frame, 3), (frame[..., :1], 1), (frame.astype(np.uint16) * 257, 3)):
        got = resample(pixels, size)
        assert (got.dtype, got.shape) == (np.uint16, (size[1], size[0], channels))
        for at in range(channels):
            plane = Image.fromarray(pixels[..., at].astype(np.float32) * (257 if pixels.dtype == np.uint8 else 1))
            wanted = np.clip(np.asarray(plane.resize(size, Image.Resampling.LANCZOS)), 0, 65535)
            inner = np.abs(got[..., at] - wanted)[down:-down, across:-across]
            assert inner.max() < 257 / 2  # half a level of 8 bits


def lanczos(plane, size):
    """The filter by its definition, in float64, with repeated edges."""
    for axis, want in ((1, size[0]), (0, size[1])):
        have = plane.shape[axis]
        wide = max(have / want, 1)
        centres = (np.arange(want) + 0.5) * have / want - 0.5
        at = np.arange(math.floor(-3 * wide) - 1, have + math.ceil(3 * wide) + 1)
        x = (at[None] - centres[:, None]) / wide
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        plane = np.moveaxis(np.tensordot(weights, np.take(plane, at.clip(0, have - 1), axis=axis), (1, axis)), 0, axis)
    return plane.clip(0, 65535)


@pytest.mark.parametrize("size", [(144, 96), (120, 80), (60, 40), (97, 31), (288, 192)])
def test_hard_edges_are_resampled_by_lanczos_up_to_the_border(size):
    """White on black at random: what overshoots black or white between the two passes is neither cut nor wrapped."""
    frame = (np.random.default_rng(3).random((64, 96, 1)) > 0.5).astype(np.uint8) * np.uint8(255)
    wanted = lanczos(frame[..., 0] * 257.0, size)
    assert np.abs(resample(frame, size)[..., 0] - wanted).max() <= 2  # of 65,535


def test_black_and_white_stay_and_so_does_the_same_size():
    for value in (0, 255):
        frame = np.full((48, 64, 3), value, np.uint8)
        assert (resample(frame, (96, 80)) == value * 257).all()
        assert (resample(frame, (33, 17)) == value * 257).all()
    frame = pan(1)[0]
    assert np.array_equal(resample(frame, (96, 64)), frame.astype(np.uint16) * 257)


def test_frames_alpha_and_masks_get_the_same_place(info):
    sizes = planned(info, size="100x100", fit="pad")
    frame, alpha = np.full((128, 192, 3), 200, np.uint8), np.full((64, 96, 1), 255, np.uint8)
    picture = np.concatenate([fit_frame(frame, sizes), fit_alpha(alpha, sizes)], axis=-1)
    assert (picture.shape, picture.dtype) == ((66, 100, 4), np.uint16)
    whole = add_bars(picture, sizes)
    assert whole.shape == (100, 100, 4)
    assert (whole[16:82] == picture).all()
    assert not whole[:16].any()
    assert not whole[82:].any()
    cut = planned(info, size="40x100", fit="crop")
    ramp = np.repeat(np.arange(192, dtype=np.uint8)[None, :, None], 128, axis=0)
    assert cut.picture == (150, 100)
    part = fit_frame(ramp, cut)
    assert part.shape == (100, 40, 1)
    assert part.flags.c_contiguous
    whole = resample(ramp, (150, 100))[:, 55:95].astype(int)
    assert np.abs(part - whole).max() <= 1  # places are computed in floating point
    same = planned(info, size="192x128")
    assert fit_frame(frame, same) is frame
    assert add_bars(frame, same) is frame


def test_what_models_get_keeps_its_depth(info):
    sizes = planned(info, input_height=32)
    for kind, peak in ((np.uint8, 255), (np.uint16, 65535)):
        frame = DecodedFrame(0, 0, np.full((64, 96, 3), peak, kind), np.zeros((64, 96, 1), kind))
        (reduced,) = reduce_frames(iter([frame]), sizes)
        assert (reduced.frame.shape, reduced.frame.dtype, reduced.frame.min()) == ((32, 48, 3), kind, peak)
        assert reduced.alpha is frame.alpha
        assert next(reduce_frames(iter([frame]), planned(info))) is frame


def filtered(path, words):
    """Return the luma of frames that have passed filters of FFmpeg, and their times in seconds."""
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        graph = av.filter.Graph()
        last = graph.add_buffer(template=stream)
        for name, _, arguments in (word.partition("=") for word in words):
            step = graph.add(name, arguments)
            last.link_to(step)
            last = step
        sink = graph.add("buffersink")
        last.link_to(sink)
        graph.configure()
        found = []
        for frame in box.decode(stream):
            # A tagged frame in a graph without tags would be converted to another colour space.
            frame.colorspace = frame.color_primaries = frame.color_trc = 2
            frame.color_range = 0
            graph.push(frame)
            found.append(graph.pull())
        return [frame.pts * frame.time_base for frame in found], np.stack([luma(frame) for frame in found])


def luma(frame):
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width].astype(int)


LANCZOS = "flags=lanczos+accurate_rnd"
WAYS = {
    "scale": ({"scale": "1.5"}, [f"scale=144:96:{LANCZOS}"]),
    "smaller": ({"scale": "3/4"}, [f"scale=72:48:{LANCZOS}"]),
    "height": ({"height": 96}, [f"scale=144:96:{LANCZOS}"]),
    "inside": ({"size": "144x144"}, [f"scale=144:96:{LANCZOS}"]),
    "pad": ({"size": "144x144", "fit": "pad"}, [f"scale=144:96:{LANCZOS}", "pad=144:144:0:24"]),
    "crop": ({"size": "72x96", "fit": "crop"}, [f"scale=144:96:{LANCZOS}", "crop=72:96:36:0"]),
    "stretch": ({"size": "100x100", "fit": "stretch"}, [f"scale=100:100:{LANCZOS}"]),
    "input": ({"input_height": 32, "height": 96}, [f"scale=48:32:{LANCZOS}", f"scale=144:96:{LANCZOS}"]),
    "deep": ({"height": 96}, [f"scale=144:96:{LANCZOS}"]),
    "turned": ({"height": 144}, [f"scale=144:96:{LANCZOS}"]),
    "wide": ({"height": 96}, [f"scale=210:96:{LANCZOS}"]),
}


@pytest.mark.cluster
@pytest.mark.slow
def test_pictures_are_those_of_the_scale_filter(ray_session, identity, tmp_path):
    """One job of a table: each way to ask, 8 and 10 bits, a rotated picture, pixels that are not square."""
    clips = {  # their colours lie inside the gamut of RGB
        "plain": "h264-mp4-b-frames",
        "deep": "hevc-mp4-hlg",
        "turned": "h264-mov-rotated",
        "wide": "h264-mp4-aspect",
    }
    sources = {}
    for name, clip in clips.items():
        made = make(clip, tmp_path)
        sources[name] = made.rename(made.with_stem(name))
    columns = ("uri", "output", "size", "width", "height", "scale", "fit", "input_height")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for name, (options, _) in WAYS.items():
            suffix = ".mov" if name == "turned" else ".mkv"
            table.writerow({"uri": sources.get(name, sources["plain"]).name, "output": f"{name}{suffix}", **options})
    job = EnhanceOptions(encoding=Encoding(codec="libx264", preset="ultrafast", crf=0), segment_frames=24)
    report = enhance_videos(tmp_path / "list.csv", tmp_path / "out", models=identity, options=job)
    assert [video.error for video in report.videos] == [""] * len(WAYS)
    worst = {}
    for video, (name, (_, filters)) in zip(report.videos, WAYS.items(), strict=True):
        times, wanted = filtered(video.source, filters)
        got_times, got = filtered(video.output, [])
        assert got.shape == wanted.shape, name
        moved = got_times[0] - times[0]  # Matroska has no times below zero, and the sound of MP4 begins there
        assert all(abs(b - a - moved) <= Fraction(1, 1000) for a, b in zip(times, got_times, strict=True)), name
        worst[name] = np.abs(got - wanted).max() / (4 if name == "deep" else 1)
        result, colour = plan_video(video.output).info, plan_video(video.source).info.colour
        assert (result.colour.matrix, result.colour.transfer) == (colour.matrix, colour.transfer)
        assert (result.sample_aspect_ratio, result.pix_fmt) == (1, "yuv420p10le" if name == "deep" else "yuv420p")
        assert result.rotation == (90 if name == "turned" else 0)
    assert worst.pop("deep") <= 2  # levels of 8 bits; at 10 bits crf 0 of x264 is not lossless
    assert max(worst.values()) <= 1, worst
    by_name = dict(zip(WAYS, report.videos, strict=True))
    assert by_name["pad"].size_made == (96, 64)
    assert by_name["pad"].size_out == (144, 144)
    assert by_name["pad"].notes[:1] == (
        "size: the chain makes 96x64; it is resampled to 144x96, with black bars up to 144x144",
    )
    assert "size: the chain makes 96x64; it is resampled to 144x96, and cut to 72x96" in by_name["crop"].notes
    assert "input: 96x64 is reduced to 48x32 before the first model" in by_name["input"].notes
    assert "pixels: square; those of the source are 16:11" in by_name["wide"].notes
    turned_note = "size: the chain makes 96x64; it is resampled to 144x96, as stored: players turn it by 90 degrees"
    assert turned_note in by_name["turned"].notes


@pytest.mark.cluster
@pytest.mark.slow
def test_all_kinds_of_models_and_strict_checks(ray_session, tmp_path):
    """Added frames, an enlargement, a mask that becomes alpha; what models make is checked before it is resampled."""
    source = write_frames(tmp_path / "a.mkv", pan(6, size=(160, 96)))
    job = EnhanceOptions(
        encoding=Encoding(codec="ffv1"),
        size="200x200",
        fit="pad",
        input_height=64,
        background=Background(kind="alpha"),
        check="strict",
    )
    models = ["rife", "websr-x2-s", "selfie-segmentation"]
    report = enhance_videos(source, tmp_path / "b.mkv", models=models, options=job)
    (video,) = report.videos
    assert (video.size_made, video.size_out, video.frames) == ((212, 128), (200, 200), 12)
    assert (report.frames_checked, report.segments_recomputed) == (7, 0)  # the last one is shown twice
    frames, alpha = decode(tmp_path / "b.mkv")
    assert frames.shape == (12, 200, 200, 3)
    assert frames.dtype == np.uint8
    assert alpha[:, 40:160].any()
    assert not alpha[:, :40].any()
    assert not alpha[:, 160:].any()
    assert frames[:, :30].max() <= 1  # at the edge, chroma of the picture reaches into the bar
    save_model(tmp_path / "black.onnx", FAULTS["black"])
    bright = write_frames(tmp_path / "bright.mkv", pan(4) // 4 + np.uint8(180))
    wrong = EnhanceOptions(encoding=Encoding(codec="ffv1"), height=96)
    with pytest.raises(errors.QualityError, match="colour_shift is "):
        enhance_videos(bright, tmp_path / "c.mkv", models=tmp_path / "black.onnx", options=wrong)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.mkv", {"size": "20000x20000", "fit": "pad"}, "libx264 does not support pictures of 20000x20000"),
        ("a.mkv", {"input_height": 65}, "input height 65 for frames of 96x64; allowed: up to 64"),
        (
            "a.mkv",
            {"codec": "av1", "size": "16400x64", "fit": "pad"},
            "libsvtav1 does not support pictures of 16400x64",
        ),
    ],
)
def test_what_a_video_or_an_encoder_lacks_is_refused(name, options, words, tmp_path):
    source = write(tmp_path / name, tracks=0, pts=[0, 1])
    codec = options.pop("codec", "libx264")
    job = EnhanceOptions(encoding=Encoding(codec=codec), **options)
    with pytest.raises(errors.ConfigError) as caught:
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=job)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
