"""Every encoder of a result; more than 8 bits and HDR tags from end to end; what is refused at the start."""

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.video import Encoding, SegmentWriter, choose_pixel_format, decode_segment, join_segments, plan_video, validate_encoding
from genai_ray.video.codecs import CODECS
from tests.video.clips import NUM_FRAMES, write

PQ, HLG = (9, 1, 9, 16), (9, 1, 9, 18)


def identity(source, output, encoding):
    validate_encoding(encoding, output.suffix)
    plan = plan_video(source, segment_frames=16)
    parts = []
    for segment in plan.segments:
        parts.append(output.with_name(f"{segment.index}.nut"))
        with SegmentWriter(parts[-1], info=plan.info, size=(plan.info.width, plan.info.height), encoding=encoding) as writer:
            for frame in decode_segment(plan, segment):
                writer.write(frame.frame, frame.pts)
    join_segments(plan, parts, [s.stop - s.start for s in plan.segments], output)
    return plan


def planes(path):
    with av.open(str(path)) as box:
        frames = list(box.decode(video=0))
    kind = np.uint16 if frames[0].format.components[0].bits > 8 else np.uint8
    return [[np.frombuffer(p, kind).reshape(p.height, -1)[:, : p.width].astype(int) for p in frame.planes] for frame in frames]


PRESETS = {"h264": "ultrafast", "hevc": "ultrafast", "av1": "12", "vp9": "8"}


def chroma_db(before, after, peak):
    error = np.mean([np.mean((a - b) ** 2) for one, two in zip(before, after, strict=True) for a, b in zip(one[1:], two[1:], strict=True)])
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
    plan = identity(source, tmp_path / f"b{suffix}", Encoding(codec=codec, preset=PRESETS.get(codec)))
    result = plan_video(tmp_path / f"b{suffix}")
    assert [float(t * result.info.time_base) for t in result.pts] == pytest.approx([float(t * plan.info.time_base) for t in plan.pts], abs=0.001)
    assert (len(result.pts), result.info.pix_fmt) == (NUM_FRAMES, pix_fmt)
    assert (result.info.colour.matrix, result.info.colour.range) == (1, 1)
    luma = np.mean([np.abs(a[0] - b[0]).mean() for a, b in zip(planes(source), planes(tmp_path / f"b{suffix}"), strict=True)])
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
    plan = identity(source, tmp_path / "b.mkv", Encoding(codec="ffv1"))
    assert plan.info.bit_depth == 10
    assert next(decode_segment(plan, plan.segments[0])).frame.dtype == np.uint16
    result = plan_video(tmp_path / "b.mkv").info
    assert (result.pix_fmt, result.colour) == ("yuv420p10le", plan.info.colour)
    assert (result.colour.matrix, result.colour.range, result.colour.primaries, result.colour.transfer) == colour
    before, after = planes(source), planes(tmp_path / "b.mkv")
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(before, after, strict=True))
    assert chroma_db(before, after, 1023) >= 60


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [
        (Encoding(codec="prores"), ".mp4"),
        (Encoding(codec="vp9"), ".mov"),
        (Encoding(codec="ffv1", crf=10), ".mkv"),
        (Encoding(codec="prores", bit_depth=8), ".mov"),
        (Encoding(bit_depth=12), ".mp4"),
        (Encoding(options={"no_such_option": "1"}), ".mp4"),
        (Encoding(options={"preset": "quick"}), ".mp4"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused_at_the_start(encoding, suffix):
    with pytest.raises(errors.ConfigError):
        validate_encoding(encoding, suffix)


def test_pixel_formats_follow_size_and_depth():
    assert choose_pixel_format(Encoding(), (97, 64), 8) == "yuv444p"
    assert choose_pixel_format(Encoding(bit_depth=8), (96, 64), 10) == "yuv420p"
    assert choose_pixel_format(Encoding(bit_depth=10), (96, 64), 8) == "yuv420p10le"
    with pytest.raises(errors.ConfigError, match="even sizes"):
        choose_pixel_format(Encoding(codec="av1"), (97, 64), 8)


@pytest.mark.parametrize("codec", CODECS)
def test_a_depth_that_this_build_lacks_is_refused(codec):
    """Whether the formats of the table open is the build's to say: each of them does, or says that it does not."""
    for pix_fmt, bits in (("yuv420p", 8), ("yuv420p10le", 10)):
        if pix_fmt not in CODECS[codec].even or pix_fmt in {str(f.name) for f in av.Codec(codec, "w").video_formats or ()}:
            continue
        with pytest.raises(errors.ConfigError, match=f"{codec}.*{pix_fmt}"):
            choose_pixel_format(Encoding(codec=codec), (96, 64), bits)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("h264", ".mp4"), ("hevc", ".mp4"), ("av1", ".mp4"), ("av1", ".webm"), ("ffv1", ".mkv"), ("prores", ".mov"), ("prores", ".mkv")],
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
