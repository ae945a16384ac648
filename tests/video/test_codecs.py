"""Every encoder of a result; more than 8 bits and HDR tags from end to end; what is refused at the start."""

import json
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.video import (
    Encoding,
    SegmentWriter,
    choose_pixel_format,
    decode_segment,
    plan_video,
    scale_alpha,
    validate_encoding,
)
from genai_ray.video.codecs import CODECS
from tests.processes import ROOT
from tests.video.clips import NUM_FRAMES, write
from tests.video.identity import decode, identity, planes

PQ, HLG = (9, 1, 9, 16), (9, 1, 9, 18)


def planes_of(path):
    return [planes(frame) for frame in decode(path)]


PRESETS = {"h264": "ultrafast", "hevc": "ultrafast", "av1": "12", "vp9": "8"}


def chroma_db(before, after, peak):
    error = np.mean(
        [
            np.mean((a - b) ** 2)
            for one, two in zip(before, after, strict=True)
            for a, b in zip(one[1:], two[1:], strict=True)
        ]
    )
    return 10 * np.log10(peak**2 / error) if error else np.inf


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [
        ("h264", ".mp4", "yuv420p"),
        ("h264", ".mkv", "yuv420p10le"),
        ("hevc", ".mp4", "yuv420p10le"),
        ("hevc", ".mkv", "yuv420p"),
        ("av1", ".mp4", "yuv420p"),
        ("av1", ".webm", "yuv420p10le"),
        ("vp9", ".webm", "yuv420p"),
        ("ffv1", ".mkv", "yuv420p"),
        ("ffv1", ".mkv", "yuv420p10le"),
        ("prores", ".mov", "yuv422p10le"),
    ],
)
def test_every_encoder_keeps_frames_times_and_depth(codec, suffix, pix_fmt, tmp_path):
    source = write(tmp_path / "a.mkv", codec="ffv1", pix_fmt=pix_fmt, tracks=0, colour=(1, 1, 1, 1))
    plan, _ = identity(source, tmp_path / f"b{suffix}", Encoding(codec=codec, preset=PRESETS.get(codec)))
    result = plan_video(tmp_path / f"b{suffix}")
    assert [float(t * result.info.time_base) for t in result.pts] == pytest.approx(
        [float(t * plan.info.time_base) for t in plan.pts], abs=0.001
    )
    assert (len(result.pts), result.info.pix_fmt) == (NUM_FRAMES, pix_fmt)
    assert (result.info.colour.matrix, result.info.colour.range) == (1, 1)
    luma = np.mean(
        [np.abs(a[0] - b[0]).mean() for a, b in zip(planes_of(source), planes_of(tmp_path / f"b{suffix}"), strict=True)]
    )
    assert luma < 4 * 2 ** (result.info.bit_depth - 8)


@pytest.mark.parametrize("colour", [PQ, HLG, (1, 1, 1, 1), (9, 2, 9, 16)])
def test_ten_bits_and_their_tags_come_back(colour, tmp_path):
    source = tmp_path / "a.mkv"
    y, x = np.mgrid[0:64, 0:96]
    with av.open(str(source), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        cc = stream.codec_context
        cc.colorspace, cc.color_range, cc.color_primaries, cc.color_trc = colour
        for index in range(5):
            frame = av.VideoFrame(96, 64, "yuv420p10le")
            values = 300 + 3 * x + index + y, 500 + x[::2, ::2] // 2, 520 - y[::2, ::2] // 2
            for plane, value in zip(frame.planes, values, strict=True):
                padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                padded[:, : plane.width] = value
                plane.update(padded)
            frame.pts = index
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    plan, _ = identity(source, tmp_path / "b.mkv", Encoding(codec="ffv1"))
    assert plan.info.bit_depth == 10
    assert next(decode_segment(plan, plan.segments[0])).frame.dtype == np.uint16
    result = plan_video(tmp_path / "b.mkv").info
    assert (result.pix_fmt, result.colour) == ("yuv420p10le", plan.info.colour)
    assert (result.colour.matrix, result.colour.range, result.colour.primaries, result.colour.transfer) == colour
    before, after = planes_of(source), planes_of(tmp_path / "b.mkv")
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(before, after, strict=True))
    assert chroma_db(before, after, 1023) >= 60


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [
        (Encoding(codec="prores"), ".mp4"),
        (Encoding(codec="vp9"), ".mov"),
        (Encoding(codec="prores", bit_depth=8), ".mov"),
        (Encoding(codec="png", bit_depth=10), ".png"),
        (Encoding(codec="ffv1"), ".png"),
        (Encoding(bit_depth=12), ".mp4"),
        (Encoding(options={"no_such_option": "1"}), ".mp4"),
        (Encoding(options={"preset": "quick"}), ".mp4"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused_at_the_start(encoding, suffix):
    with pytest.raises(errors.ConfigError):
        validate_encoding(encoding, suffix)


def test_pixel_formats_follow_size_and_depth():
    assert choose_pixel_format(Encoding(), (97, 64), "yuv420p") == "yuv444p"
    assert choose_pixel_format(Encoding(bit_depth=8), (96, 64), "yuv420p10le") == "yuv420p"
    assert choose_pixel_format(Encoding(bit_depth=10), (96, 64), "yuv420p") == "yuv420p10le"
    assert choose_pixel_format(Encoding(), (96, 64), "yuv422p12le") == "yuv420p10le"
    assert choose_pixel_format(Encoding(codec="ffv1"), (96, 64), "yuv422p12le") == "yuv422p10le"
    assert choose_pixel_format(Encoding(codec="prores"), (96, 64), "rgba", has_alpha=True) == "yuva444p10le"
    with pytest.raises(errors.ConfigError, match="even sizes"):
        choose_pixel_format(Encoding(codec="av1"), (97, 64), "yuv420p")
    with pytest.raises(errors.ConfigError, match=r"alpha with libx264.*ffv1"):
        choose_pixel_format(Encoding(), (96, 64), "rgba", has_alpha=True)


@pytest.mark.parametrize("codec", CODECS)
def test_a_depth_that_this_build_lacks_is_refused(codec):
    """Whether the formats of the table open is the build's to say: each of them does, or says that it does not."""
    for pix_fmt, bits in (("yuv420p", 8), ("yuv420p10le", 10)):
        if pix_fmt not in CODECS[codec].formats.get("420", ()) or pix_fmt in {
            str(f.name) for f in av.Codec(codec, "w").video_formats or ()
        }:
            continue
        with pytest.raises(errors.ConfigError, match=f"{codec} with {pix_fmt}, which this build of it lacks"):
            validate_encoding(Encoding(codec=codec, bit_depth=bits), CODECS[codec].suffixes[-1])
        with pytest.raises(errors.ConfigError, match=f"{codec} with {pix_fmt}, which this build of it lacks"):
            choose_pixel_format(Encoding(codec=codec, bit_depth=bits), (96, 64), "yuv420p")


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("h264", ".mp4"),
        ("hevc", ".mp4"),
        ("av1", ".mp4"),
        ("av1", ".webm"),
        ("ffv1", ".mkv"),
        ("prores", ".mov"),
        ("prores", ".mkv"),
    ],
)
def test_every_encoder_keeps_the_tags_of_hdr(codec, suffix, tmp_path):
    source, result = tmp_path / "a.mkv", tmp_path / f"b{suffix}"
    write(source, codec="ffv1", pix_fmt="yuv420p10le", tracks=0, colour=PQ)
    identity(source, result, Encoding(codec=codec, preset=PRESETS.get(codec)))
    colour = plan_video(result).info.colour
    assert (colour.matrix, colour.range, colour.primaries, colour.transfer) == PQ


def test_a_writer_refuses_a_size_that_the_encoder_has_not(tmp_path):
    plan = plan_video(write(tmp_path / "a.mkv", codec="ffv1", tracks=0))
    with pytest.raises(errors.ConfigError, match=r"97x64.*even sizes"):
        SegmentWriter(tmp_path / "a.nut", info=plan.info, size=(97, 64), encoding=Encoding(codec="av1"))
    assert not (tmp_path / "a.nut").exists()


def write_alpha(path, codec, pix_fmt, options):
    """Six frames of grey with an alpha that moves."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        y, x = np.mgrid[0:64, 0:96]
        for index in range(6):
            rgba = np.stack([np.full_like(x, 120), 60 + y, 60 + x, (x * 2 + y + 9 * index) % 256], axis=-1).astype(
                np.uint8
            )
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(
                format=pix_fmt, dst_color_range="MPEG", dst_colorspace="ITU709"
            )
            frame.pts = index
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "options", "source", "target", "most"),
    [
        ("ffv1", "yuva420p", {}, "a.mkv", "b.mkv", 0),
        ("qtrle", "argb", {}, "a.mov", "b.mkv", 0),
        ("prores_ks", "yuva444p10le", {"profile": "4444"}, "a.mov", "b.mov", 1 / 255),
        ("libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "8", "b": "0"}, "a.webm", "b.webm", 8 / 255),
    ],
)
def test_alpha_comes_back(codec, pix_fmt, options, source, target, most, tmp_path):
    plan, _ = identity(
        write_alpha(tmp_path / source, codec, pix_fmt, options),
        tmp_path / target,
        Encoding(codec="ffv1" if target == "b.mkv" else None if target == "b.webm" else "prores"),
    )
    assert plan.info.has_alpha
    result = plan_video(tmp_path / target)
    assert result.info.has_alpha
    before, after = ([frame for part in p.segments for frame in decode_segment(p, part)] for p in (plan, result))
    assert len(before) == len(after) == 6
    for one, two in zip(before, after, strict=True):
        assert one.alpha.dtype == one.frame.dtype
        shares = [f.alpha / np.iinfo(f.alpha.dtype).max for f in (one, two)]
        assert shares[0].std() > 0.2
        assert np.abs(shares[0] - shares[1]).mean() <= most


def test_alpha_is_refused_where_it_cannot_be():
    for encoding, suffix in ((Encoding(), ".mp4"), (Encoding(codec="vp9"), ".mp4"), (Encoding(codec="hevc"), ".mkv")):
        with pytest.raises(errors.ConfigError, match="alpha"):
            validate_encoding(encoding, suffix, has_alpha=True)


def test_alpha_takes_the_size_of_the_result():
    alpha = np.full((4, 6, 1), 40000, np.uint16)
    assert scale_alpha(alpha, (6, 4)) is alpha
    assert scale_alpha(alpha, (12, 8)).shape == (8, 12, 1)
    assert np.unique(scale_alpha(alpha, (12, 8))) == pytest.approx(40000, abs=1)
    assert np.unique(scale_alpha(alpha.astype(np.uint8), (12, 8))) == alpha[0, 0, 0].astype(np.uint8)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("hevc", ".mp4"), ("hevc", ".mkv"), ("av1", ".mp4"), ("av1", ".webm")]
)
def test_static_hdr_metadata_comes_back(codec, suffix, tmp_path):
    source = tmp_path / "a.mkv"
    options = {
        "x265-params": (
            "log-level=none:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
            ":max-cll=1000,400"
        )
    }
    write(source, codec="libx265", pix_fmt="yuv420p10le", tracks=0, colour=PQ, options=options, pts=[0, 1, 2])
    hdr = identity(source, tmp_path / f"b{suffix}", Encoding(codec=codec, preset=PRESETS.get(codec)))[0].info.hdr
    assert [float(value) for value in hdr.primaries] == [0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329]
    assert (hdr.luminance, hdr.light_level) == ((Fraction(5, 1000), Fraction(1000)), (1000, 400))
    result = plan_video(tmp_path / f"b{suffix}").info.hdr
    assert result.light_level == hdr.light_level
    exact = 1e-9 if codec != "av1" else 2**-13  # AV1 stores binary fractions
    assert [float(value) for value in result.primaries + result.luminance] == pytest.approx(
        [float(v) for v in hdr.primaries + hdr.luminance], abs=exact
    )


@pytest.mark.parametrize("location", ["left", "topleft", "center"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_chroma_stays_where_it_lies(location, codec, tmp_path):
    """A ramp of chroma, read at the luma column that it is said to lie at, is its own value; read half a pixel off it
    is not."""
    source = tmp_path / "a.mkv"
    # With frames of both directions x265 takes the decode time of a single frame from memory that nothing was written
    # to.
    extra = {"x265-params": "log-level=none:lossless=1:bframes=0"} if codec == "libx265" else {"qp": "0"}
    with av.open(str(source), "w") as sink:
        stream = sink.add_stream(codec, rate=25, options={"chroma_sample_location": location} | extra)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        frame = av.VideoFrame(96, 64, "yuv420p")
        for plane, values in zip(
            frame.planes,
            (np.full((64, 96), 128), np.tile(80 + 2 * np.arange(48), (32, 1)), np.full((32, 48), 128)),
            strict=True,
        ):
            padded = np.zeros((plane.height, plane.line_size), np.uint8)
            padded[:, : plane.width] = values
            plane.update(padded)
        frame.pts = 0
        sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    plan, _ = identity(source, tmp_path / "b.mkv", Encoding(codec="h264", crf=0))
    assert plan.info.colour.chroma_location == location
    assert plan_video(tmp_path / "b.mkv").info.colour.chroma_location == location
    rgb = next(decode_segment(plan, plan.segments[0])).frame.astype(float)
    cb = 128 + 224 * (-0.1687 * rgb[..., 0] - 0.3313 * rgb[..., 1] + 0.5 * rgb[..., 2]) / 255
    ramp = 80 + np.arange(96) - (0.5 if location == "center" else 0.0)
    assert np.abs(cb[32, 8:80] - ramp[8:80]).mean() < 0.3
    (before,), (after,) = planes_of(source), planes_of(tmp_path / "b.mkv")
    assert np.array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() <= 1


def test_no_encoder_changes_the_scheduling(tmp_path):
    """SVT-AV1 gives itself real-time priority if it runs as root: then Ray's processes beside it starve."""
    source = write(tmp_path / "a.mkv", tracks=0, options={"g": "10"})
    program = """
import os, sys
from pathlib import Path
from genai_ray.video import Encoding
from tests.video.test_codecs import identity
before = os.sched_getscheduler(0)
identity(Path(sys.argv[1]), Path(sys.argv[2]), Encoding(codec="libsvtav1", preset="12"), segment_frames=10)
assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {before}
"""
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "b.mp4")]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks"])
def test_every_encoder_gives_the_same_bytes_again(codec, tmp_path):
    source = write(tmp_path / "a.mkv", tracks=1, options={"g": "10"})
    encoding = Encoding(codec=codec, preset={"libsvtav1": "12", "libvpx-vp9": "8"}.get(codec))
    suffix = CODECS[codec].suffixes[-1]
    for name in ("one", "two", "three"):
        identity(source, tmp_path / f"{name}{suffix}", encoding, segment_frames=10)
    bytes_of = [(tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two", "three")]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


COPIES = """
import json, sys
from pathlib import Path
from genai_ray.video import Encoding
from tests.video.identity import identity
for source, target, codec, options in json.loads(sys.argv[1]):
    identity(Path(source), Path(target), Encoding(codec=codec), **options)
"""


def copy_in_filled_memory(fill, copies):
    """Decode and encode again, (source, target, codec, options) each, in a process whose memory glibc fills with what
    it is told."""
    said = json.dumps([(str(source), str(target), codec, options) for source, target, codec, options in copies])
    environment = os.environ | {"MALLOC_PERTURB_": str(fill)}
    done = subprocess.run(
        [sys.executable, "-c", COPIES, said], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path):
    """x265 reads memory that nothing was written to in pictures of one row or column of blocks."""
    sources = {
        size: write(tmp_path / f"{size}.mkv", tracks=0, options={"g": "10"}, size=size)
        for size in ((96, 64), (352, 32), (64, 128))
    }
    fills = (0, 85, 170)
    for fill in fills:
        copy_in_filled_memory(
            fill,
            [
                (source, tmp_path / f"{size} {fill}.mp4", "libx265", {"segment_frames": 10})
                for size, source in sources.items()
            ],
        )
    for size in sources:
        assert len({(tmp_path / f"{size} {fill}.mp4").read_bytes() for fill in fills}) == 1, size


def test_a_segment_of_few_frames_is_always_written(tmp_path):
    """x265 takes the decode times of one frame or two from memory that nothing was written to: filled so, they are
    after the frames' own."""
    written = {
        (codec, count): tmp_path / f"{codec} {count}{CODECS[codec].suffixes[0]}"
        for codec in CODECS
        if codec not in ("png", "mjpeg")
        for count in (1, 2)
    }
    sources = {
        count: write(tmp_path / f"{count}.mkv", codec="ffv1", tracks=0, pts=[40, 80][:count]) for count in (1, 2)
    }
    copy_in_filled_memory(1, [(sources[count], target, codec, {}) for (codec, count), target in written.items()])
    assert {what: len(plan_video(target).pts) for what, target in written.items()} == {
        (codec, count): count for codec, count in written
    }


def test_options_of_a_list_are_joined_and_others_replaced(tmp_path):
    """A user's x265-params must not undo what keeps x265's bytes the same."""
    source = write(tmp_path / "a.mkv", codec="ffv1", tracks=0, pts=list(range(12)))
    identity(
        source,
        tmp_path / "b.mkv",
        Encoding(codec="hevc", preset="ultrafast", options={"x265-params": "keyint=4:min-keyint=4", "crf": "30"}),
        segment_frames=12,
    )
    with av.open(str(tmp_path / "b.mkv")) as box:
        told = bytes(box.streams.video[0].codec_context.extradata).decode("latin-1")
        keys = [packet.is_keyframe for packet in box.demux(video=0) if packet.size]
    assert sum(keys) == 3
    assert "frame-threads=1" in told
    assert "crf=30.0" in told
