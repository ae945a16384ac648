"""What is shown is what is kept: mirrored and turned pictures, unknown side data, grey and palettes, colour matrices,
the stream that is the video."""

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from genai_ray.video import Encoding, decode_segment, describe_losses, plan_video
from tests.video.clips import NUM_FRAMES, write
from tests.video.identity import decode, identity

LOSSLESS = Encoding(codec="h264", preset="ultrafast", crf=0)


def set_matrix(path, corners):
    """Overwrite the display matrix of a file's first track: (a, b, c, d) of x' = ax + cy, y' = bx + dy."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    a, b, c, d = (int(value * 65536) for value in corners)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def show(path):
    """Turn and mirror the first picture of a file as a player does, by its matrix alone."""
    frame = decode(path)[0]
    matrix = next(
        (bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"),
        struct.pack("=9i", 1, 0, 0, 0, 1, 0, 0, 0, 1),
    )
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    picture = frame.to_ndarray(format="rgb24")
    if a == 0:  # x' depends on y
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "corners", [corners for x, y in itertools.product((1, -1), repeat=2) for corners in ((x, 0, 0, y), (0, x, y, 0))]
)
def test_every_way_of_turning_and_mirroring_is_shown_as_before(corners, suffix, tmp_path):
    source = set_matrix(write(tmp_path / "a.mov", tracks=0, pts=[0, 1], options={"crf": "0"}), corners)
    plan, _ = identity(source, tmp_path / f"b{suffix}", LOSSLESS)
    assert plan.info.is_mirrored == (corners[0] * corners[3] - corners[1] * corners[2] < 0)
    before, after = show(source).astype(int), show(tmp_path / f"b{suffix}").astype(int)
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 3


def test_side_data_that_nobody_has_a_name_for_is_passed_over(tmp_path):
    """A JPEG stream with Exif, whose orientation FFmpeg makes a display matrix of."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x02\0\0\0\0\0\0"  # 2: mirrored
    source = write(tmp_path / "a.mkv", codec="mjpeg", pix_fmt="yuvj420p", tracks=0, pts=[0, 1, 2])
    with av.open(str(source)) as box, av.open(str(tmp_path / "b.mkv"), "w") as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(video=0):
            if packet.size:
                data = bytes(packet)
                other = av.Packet(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + data[2:])
                other.pts, other.dts, other.time_base, other.is_keyframe, other.stream = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    True,
                    copy,
                )
                sink.mux(other)
    plain, plan = plan_video(source), plan_video(tmp_path / "b.mkv")
    assert (len(plan.pts), plan.info.is_mirrored) == (3, True)
    for before, after in zip(
        decode_segment(plain, plain.segments[0]), decode_segment(plan, plan.segments[0]), strict=True
    ):
        assert np.array_equal(before.frame, after.frame[:, ::-1])


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [*[("png", name) for name in ("gray", "monob", "ya8", "gray16be", "pal8", "rgb24")], ("qtrle", "gray")],
)
def test_pictures_without_colour_get_a_matrix_that_players_know(codec, pix_fmt, tmp_path):
    source = tmp_path / "a.mov"
    grey = np.tile(np.arange(0, 192, 2, dtype=np.uint8), (64, 1))
    with av.open(str(source), "w", options={"strict": "-2"}) as sink:
        stream = sink.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        for index in range(3):
            frame = (
                av.VideoFrame(96, 64, "pal8")
                if pix_fmt == "pal8"
                else av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=pix_fmt)
            )
            if pix_fmt == "pal8":
                frame = av.VideoFrame.from_ndarray(
                    (grey, np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(256, 4)), format="pal8"
                )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    plan, _ = identity(source, tmp_path / "b.mp4", LOSSLESS)
    assert plan.info.colour.matrix == 6
    with av.open(str(tmp_path / "b.mp4")) as box:
        frame = next(box.decode(video=0))
        assert (box.streams.video[0].codec_context.colorspace, frame.format.name.replace("j", "")) == (
            6,
            "yuv420p" if "16" not in pix_fmt else "yuv420p10le",
        )
        shown = frame.reformat(format="rgb24", src_color_range=int(frame.color_range)).to_ndarray()
    if pix_fmt != "monob":  # which is dithered
        assert np.abs(shown.astype(int) - grey[..., None]).mean() < 2.5


@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv444p", 8), ("yuv444p10le", 10)])
def test_ycgco_has_its_colours_and_others_are_said(pix_fmt, bits, tmp_path):
    path, peak = tmp_path / "a.mkv", 2**bits - 1
    red, green, blue = (np.full((64, 96), value) for value in (0.8, 0.3, 0.1))
    values = (green / 2 + (red + blue) / 4, green / 2 - (red + blue) / 4 + 0.5, (red - blue) / 2 + 0.5)
    for matrix in (8, 14):
        with av.open(str(path), "w") as sink:
            stream = sink.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2
            frame = av.VideoFrame(96, 64, pix_fmt)
            for plane, value in zip(frame.planes, values, strict=True):
                numbers = np.zeros((64, plane.line_size // (1 + (bits > 8))), np.uint8 if bits == 8 else np.uint16)
                numbers[:, :96] = np.rint(value * peak)
                plane.update(numbers.tobytes())
            frame.pts, frame.colorspace, frame.color_range = 0, matrix, 2
            sink.mux(stream.encode(frame))
            sink.mux(stream.encode(None))
        plan, _ = identity(
            path, tmp_path / "b.mp4", LOSSLESS if bits == 8 else Encoding(codec="hevc", preset="ultrafast", crf=4)
        )
        assert plan.info.colour.matrix == 6
        words = {
            8: "YCgCo colour: stored and tagged as BT.601",
            14: "colours of matrix 14 (ITU-T H.273) were read as BT.601, which differs",
        }[matrix]
        assert words in list(describe_losses(plan.info, LOSSLESS, (96, 64)))
        if matrix == 8:
            result = plan_video(tmp_path / "b.mp4")
            assert result.info.colour.matrix == 6
            shown = next(decode_segment(result, result.segments[0])).frame
            assert np.allclose(shown / np.iinfo(shown.dtype).max, (0.8, 0.3, 0.1), atol=0.02)


def join_streams(target, *sources):
    """Put the videos of files beside each other: (path, disposition) each."""
    boxes = [av.open(str(path)) for path, _ in sources]
    with av.open(str(target), "w") as sink:
        copies = [sink.add_stream_from_template(box.streams.video[0]) for box in boxes]
        for copy, (_, disposition) in zip(copies, sources, strict=True):
            copy.disposition = disposition
        packets = [(number, packet) for number, box in enumerate(boxes) for packet in box.demux(video=0) if packet.size]
        for number, packet in packets:
            packet.stream = copies[number]
            sink.mux(packet)
    for box in boxes:
        box.close()
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_video_is_the_default_stream_then_the_largest(suffix, tmp_path):
    small = write(tmp_path / "small.mkv", size=(32, 32), tracks=0, pts=[0, 1, 2])
    large = write(tmp_path / "large.mkv", size=(96, 64), tracks=0)
    other = write(tmp_path / "other.mkv", size=(96, 64), tracks=0, pts=[0, 1])
    default, none, checked = Disposition.default, Disposition(0), 0
    for sources, wanted in (
        ([(small, none), (large, default)], NUM_FRAMES),
        ([(small, default), (large, none)], 3),
        ([(small, none), (large, none), (other, none)], NUM_FRAMES),
        ([(small, default), (other, default), (large, default)], 2),
    ):
        path = join_streams(tmp_path / f"a{suffix}", *sources)
        with av.open(str(path)) as box:
            marked = [bool(stream.disposition & default) for stream in box.streams.video]
        if marked != [disposition is default for _, disposition in sources]:
            continue  # a muxer that marks one of its own accord
        plan, notes = identity(path, tmp_path / f"b{suffix}", LOSSLESS)
        checked += 1
        assert len(plan.pts) == wanted
        with av.open(str(path)) as box:
            main = next(
                i for i, s in enumerate(box.streams.video) if (s.width, s.height) == (plan.info.width, plan.info.height)
            )
        assert notes[: len(sources) - 1] == tuple(
            f"video stream {number} was left out: only stream {main} is enhanced"
            for number in range(len(sources))
            if number != main
        )
    assert checked >= 3


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_last_row_of_deep_rgb_with_alpha_is_read(bits, tmp_path):
    """FFmpeg's own conversion leaves a part of it as the memory happened to be."""
    path = tmp_path / "a.mkv"
    random = np.random.default_rng(bits)
    with av.open(path, "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, f"gbrap{bits}le"
        frame = av.VideoFrame(96, 64, stream.pix_fmt)
        planes = random.integers(0, 2**bits, (4, 64, 96), np.uint16)
        for plane, values in zip(frame.planes, planes, strict=True):
            plane.update(np.pad(values, ((0, 0), (0, plane.line_size // 2 - 96))).tobytes())
        frame.pts = 0
        sink.mux(stream.encode(frame))
        sink.mux(stream.encode())
    plan = plan_video(path)
    green, blue, red = planes[:3]
    expected = np.rint(np.stack([red, green, blue], axis=-1).astype(np.float32) / (2**bits - 1) * 65535)
    (shown,) = decode_segment(plan, plan.segments[0])
    assert np.abs(shown.frame.astype(int) - expected.astype(int)).max() <= 1
