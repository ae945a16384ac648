"""Plans, colours, cuts and refusals of single videos; what holds for every kind of clip is in test_matrix."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from genai_ray import errors
from genai_ray.enhance.job.steps import write_result
from genai_ray.video import (
    Encoding,
    SegmentWriter,
    decode_segment,
    describe_losses,
    join_segments,
    plan_video,
    read_pictures,
    validate_encoding,
    write_pictures,
)
from genai_ray.video.colour import count_outside
from genai_ray.video.info import Colour
from tests.video.clips import NUM_FRAMES, write, write_cut
from tests.video.identity import identity


def enhance(path, output, *, segment_frames, scale=2):
    """What the engine does, with repetition for a model."""
    plan = plan_video(path, segment_frames=segment_frames)
    parts, counts = [], []
    for segment in plan.segments:
        part = output.with_name(f"{output.name}.{segment.index}.nut")
        size = (plan.info.width * scale, plan.info.height * scale)
        with SegmentWriter(part, info=plan.info, size=size, encoding=Encoding(preset="ultrafast")) as writer:
            for frame in decode_segment(plan, segment):
                writer.write(np.ascontiguousarray(frame.frame.repeat(scale, 0).repeat(scale, 1)), frame.pts)
        parts.append(part)
        counts.append(segment.stop - segment.start)
    return plan, join_segments(plan, parts, counts, output)


def test_two_runs_give_the_same_bytes(tmp_path):
    source = write(tmp_path / "a.mp4", options={"bf": "4", "b_strategy": "0", "g": "12"})
    for name in ("one.mkv", "two.mkv", "one.mp4", "two.mp4"):
        enhance(source, tmp_path / name, segment_frames=10)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_threads_decode_beside_each_other(tmp_path):
    plans = [
        plan_video(write(tmp_path / f"{name}.mkv", size=size, tracks=0))
        for name, size in (("a", (320, 180)), ("b", (96, 64)))
    ]
    wanted = [[frame.frame for frame in decode_segment(plan, plan.segments[0])] for plan in plans]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda plan: [frame.frame for frame in decode_segment(plan, plan.segments[0])], 4 * plans)
        )
    for index, frames in enumerate(found):
        assert all(map(np.array_equal, frames, wanted[index % 2]))
        assert len(frames) == NUM_FRAMES


def test_colours_that_rgb_has_not_are_counted(tmp_path):
    """Three quarters of frame 32 and none of the others: only one frame of 32 is looked at, the first among them."""
    path, outside = tmp_path / "a.mkv", (235, 16, 240)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 128, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame(96, 128, "yuv420p")
            for plane, inner, outer in zip(frame.planes, (120, 90, 180), outside, strict=True):
                values = np.full((plane.height, plane.line_size), inner, np.uint8)
                if index == 32:
                    values[plane.height // 4 :] = outer
                plane.update(values.tobytes())
            frame.pts = index
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    plan = plan_video(path, segment_frames=13)
    counts = {frame.index: frame.outside for segment in plan.segments for frame in decode_segment(plan, segment)}
    assert counts[0] == (0, counts[32][1])
    assert counts[32] == (3 * counts[32][1] // 4, 48 * 8)
    assert {counts[index] for index in range(40) if index % 32} == {(0, 0)}


@pytest.mark.parametrize(
    ("pix_fmt", "values", "is_outside"),
    [
        ("yuv444p10le", (480, 360, 720), False),
        ("yuv444p10le", (940, 512, 512), False),
        ("yuv444p10le", (960, 512, 512), True),
        ("yuv422p", (15, 128, 128), True),
        ("yuvj420p", (15, 128, 128), False),
    ],
)
def test_colours_that_rgb_has_not_are_told_by_depth_and_range(pix_fmt, values, is_outside):
    frame = av.VideoFrame(96, 64, pix_fmt)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(
            np.full(
                plane.buffer_size // (1 + ("10" in pix_fmt)), value, np.uint16 if "10" in pix_fmt else np.uint8
            ).tobytes()
        )
    outside, looked_at = count_outside(frame, Colour(1, 1 + ("j" in pix_fmt), 1, 1, False))
    assert looked_at > 0
    assert outside == is_outside * looked_at


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0:scenecut=0"}),
        (
            "libx265",
            {"x265-params": "open-gop=1:keyint=20:min-keyint=20:bframes=3:b-adapt=0:scenecut=0:log-level=error"},
        ),
    ],
)
def test_a_cut_before_an_open_gop_loses_unreferenced_frames(codec, options, suffix, tmp_path):
    """As ``ffmpeg -ss ... -c copy`` cuts: in MP4 an edit list hides those frames, elsewhere they are there and do not
    decode."""
    whole, cut = (
        write(tmp_path / f"whole{suffix}", codec=codec, options=options, pts=list(range(60)), tracks=0),
        tmp_path / f"cut{suffix}",
    )
    with av.open(str(whole)) as source, av.open(str(cut), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        keys = leading = first = 0
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if keys < 2 or not packet.size:
                continue
            first = packet.pts if packet.is_keyframe and keys == 2 else first
            leading += packet.pts < first
            packet.stream = stream
            sink.mux_one(packet)
    with av.open(str(cut)) as source:
        expected = [frame.pts for frame in source.decode(video=0)]
    assert leading or suffix == ".ts"  # where a demuxer of transport streams finds keys is its own affair
    plan = plan_video(cut, segment_frames=8)
    assert plan.truncated is None
    assert list(plan.pts) == expected
    assert [frame.pts for segment in plan.segments for frame in decode_segment(plan, segment)] == expected
    assert plan.skipped == (0 if suffix == ".mp4" else leading)


def test_few_keys_make_fewer_segments(tmp_path):
    path = write(tmp_path / "a.mp4", options={"g": "1000", "sc_threshold": "0"})
    many = plan_video(path, segment_frames=2)
    dropped = sum(segment.start for segment in many.segments)
    assert dropped <= NUM_FRAMES
    assert len(many.segments) >= 2


def test_colour_is_the_matrix_of_the_tag_and_comes_back(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        cc = stream.codec_context
        cc.colorspace, cc.color_range, cc.color_primaries, cc.color_trc = 1, 1, 1, 1
        for index in range(3):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, value in zip(frame.planes, (120, 90, 180), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = index
            frame.colorspace, frame.color_range = 1, 1
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    plan = plan_video(path)
    assert not plan.info.colour.assumed
    rgb = next(decode_segment(plan, plan.segments[0])).frame
    assert np.array_equal(np.unique(rgb.reshape(-1, 3), axis=0), [[214, 101, 41]])
    with SegmentWriter(tmp_path / "a.nut", info=plan.info, size=(64, 48), encoding=Encoding(crf=0)) as writer:
        for frame in decode_segment(plan, plan.segments[0]):
            writer.write(frame.frame, frame.pts)
    join_segments(plan, [tmp_path / "a.nut"], [3], tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as box:
        yuv = next(box.decode(video=0)).to_ndarray()
    luma, chroma = yuv[:48], yuv[48:].reshape(2, -1)
    assert [set(luma.ravel()), set(chroma[0]), set(chroma[1])] == [{120}, {90}, {180}]


@pytest.mark.parametrize(("height", "matrix"), [(576, 6), (720, 1)])
def test_untagged_colour_follows_the_height_and_is_said(height, matrix, tmp_path):
    plan = plan_video(write(tmp_path / "a.mp4", size=(64, height), pts=[0, 1], tracks=0))
    assert (plan.info.colour.matrix, plan.info.colour.assumed) == (matrix, True)


@pytest.mark.parametrize(("suffix", "share"), [(".mkv", 0.6), (".ts", 0.6), (".avi", 0.6)])
def test_a_file_that_ends_too_early_is_noticed(suffix, share, tmp_path):
    path = write(tmp_path / f"a{suffix}", codec="mpeg4", pts=list(range(100)), tracks=0)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) | 1])
    plan = plan_video(path)
    assert plan.truncated
    assert f"{len(plan.pts)}" in plan.truncated


def test_a_cut_mp4_says_how_many_frames_are_there(tmp_path):
    plan = plan_video(write_cut(tmp_path / "a.mp4"))
    assert plan.truncated
    assert f"of {NUM_FRAMES}" in plan.truncated
    decoded = [frame for segment in plan.segments for frame in decode_segment(plan, segment, allow_truncated=True)]
    assert 0 < len(decoded) < NUM_FRAMES


def test_settings_are_checked_at_the_start():
    validate_encoding(Encoding(), ".mp4")
    for encoding, suffix in (
        (Encoding(), ".avi"),
        (Encoding(preset="quick"), ".mp4"),
        (Encoding(crf=52), ".mp4"),
    ):
        with pytest.raises(errors.ConfigError):
            validate_encoding(encoding, suffix)


def test_a_failed_segment_leaves_no_file(tmp_path):
    plan = plan_video(write(tmp_path / "a.mp4"))
    part = tmp_path / "a.nut"
    with (
        pytest.raises(errors.InvalidInputError, match="uint8"),
        SegmentWriter(part, info=plan.info, size=(96, 64), encoding=Encoding()) as writer,
    ):
        writer.write(np.zeros((64, 96, 3), np.float32), 0)
    assert not part.exists()


def test_what_a_killed_join_left_is_replaced_and_gone(tmp_path):
    """Joins are killed while they write: their half files have hidden names, which the next join writes over."""
    source = write(tmp_path / "a.mkv", pts=list(range(6)), tracks=0)
    plan, part = plan_video(source), tmp_path / "0.nut"
    for encoding, output, left in (
        (Encoding(preset="ultrafast"), "b.mkv", ".b.mkv.partial.mkv"),
        (Encoding(codec="png"), "frames/%d.png", ".frames.partial/9.png"),
        (Encoding(codec="png"), "frames/%d.png", ".frames.old/9.png"),
    ):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_bytes(b"half")
        with SegmentWriter(part, info=plan.info, size=(96, 64), encoding=encoding) as writer:
            for frame in decode_segment(plan, plan.segments[0]):
                writer.write(frame.frame, frame.pts)
        join = write_pictures if encoding.codec == "png" else join_segments
        join(plan, [part], [6], tmp_path / output)
        part.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "frames"]
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"{number}.png" for number in range(1, 7)]


def test_a_part_that_lacks_frames_is_refused_and_nothing_appears(tmp_path):
    source = write(tmp_path / "a.mkv", pts=list(range(6)), tracks=0)
    plan, part = plan_video(source), tmp_path / "0.nut"
    with SegmentWriter(part, info=plan.info, size=(96, 64), encoding=Encoding(codec="png")) as writer:
        for frame in list(decode_segment(plan, plan.segments[0]))[:4]:
            writer.write(frame.frame, frame.pts)
    for act in (
        lambda: write_pictures(plan, [part], [6], tmp_path / "frames" / "%d.png"),
        lambda: list(read_pictures(plan, part, 6)),
        lambda: write_result(plan, [part], [6], tmp_path / "b.parquet"),
    ):
        with pytest.raises(errors.VideoError, match="holds 4 frames; allowed: 6"):
            act()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.nut", "a.mkv"]


def test_any_number_of_parts_is_joined_with_few_open_files(tmp_path):
    source = write(tmp_path / "a.mkv", tracks=0, options={"g": "1"})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    plan, parts = plan_video(source, segment_frames=1), []
    assert len(plan.segments) == NUM_FRAMES
    for segment in plan.segments:
        parts.append(tmp_path / f"{segment.index}.nut")
        with SegmentWriter(parts[-1], info=plan.info, size=(96, 64), encoding=Encoding(preset="ultrafast")) as writer:
            for frame in decode_segment(plan, segment):
                writer.write(frame.frame, frame.pts)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + NUM_FRAMES // 2, hard))
    try:
        join_segments(plan, parts, [1] * NUM_FRAMES, tmp_path / "b.mkv")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(plan_video(tmp_path / "b.mkv").pts) == NUM_FRAMES


def test_a_file_that_goes_away_is_no_truncated_one(tmp_path):
    source = write(tmp_path / "a.mkv", tracks=0, options={"g": "8"})
    plan = plan_video(source, segment_frames=8)
    source.unlink()
    with pytest.raises(errors.VideoError, match=r"a\.mkv: no such file"):
        list(decode_segment(plan, plan.segments[-1], allow_truncated=True))


def test_interlaced_sources_are_said(tmp_path):
    info = plan_video(write(tmp_path / "a.mkv", options={"x264-params": "tff=1"}, tracks=0)).info
    assert info.is_interlaced
    assert [note.split(":")[0] for note in describe_losses(info, Encoding(), (96, 64))] == ["interlaced source"]


def test_captions_within_the_stream_are_said(tmp_path):
    """CEA-608 captions (ATSC A/53, part 4) in an SEI message of every H.264 packet."""
    captions = bytes([0xB5, 0x00, 0x31]) + b"GA94" + bytes([3, 0x41, 0xFF, 0xFC, 0x94, 0x2C, 0xFF])
    message = b"\x00\x00\x00\x01\x06\x04" + bytes([len(captions)]) + captions + b"\x80"
    source = write(tmp_path / "a.ts", tracks=0)
    with av.open(str(source)) as box, av.open(str(tmp_path / "b.ts"), "w") as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(video=0):
            if packet.size:
                told = av.Packet(message + bytes(packet))
                told.pts, told.dts, told.time_base, told.is_keyframe, told.stream = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.is_keyframe,
                    copy,
                )
                sink.mux(told)
    info = plan_video(tmp_path / "b.ts").info
    assert list(describe_losses(info, Encoding(), (96, 64))) == ["closed captions in the video stream were left out"]


def add_video(source, target, picture, disposition):
    """Copy a clip and put a JPEG beside it, as a cover or as a second video."""
    with av.open(str(source)) as box, av.open(str(picture)) as other, av.open(str(target), "w") as sink:
        if disposition and target.suffix == ".mkv":
            sink.add_attachment("front.jpg", "image/jpeg", picture.read_bytes())
        copies = {stream: sink.add_stream_from_template(stream) for stream in box.streams}
        if not disposition or target.suffix == ".mp4":
            copies[other.streams[0]] = sink.add_stream_from_template(other.streams[0], opaque=True)
            copies[other.streams[0]].disposition = disposition
        for packet in (*other.demux(), *box.demux()):
            if packet.size and packet.stream in copies:
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return target


@pytest.mark.parametrize("target", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_covers_come_along_and_second_videos_are_said(source, target, tmp_path):
    clip, picture = write(tmp_path / "plain.mkv", tracks=0, pts=[0, 1, 2]), tmp_path / "cover.jpg"
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 32, "yuvj420p", Fraction(1, 25)
    picture.write_bytes(
        b"".join(
            bytes(packet) for packet in [*encoder.encode(av.VideoFrame(32, 32, "yuvj420p")), *encoder.encode(None)]
        )
    )
    covered = add_video(clip, tmp_path / f"a{source}", picture, Disposition.attached_pic)
    _, notes = identity(covered, tmp_path / f"b{target}", Encoding())
    with av.open(str(tmp_path / f"b{target}")) as box:
        covers = [stream for stream in box.streams.video if stream.disposition & Disposition.attached_pic]
        kept = [bytes(packet) for packet in (box.demux(covers) if covers else ()) if packet.size]
    if target == ".webm":
        assert notes == ("cover stream 1 was left out: webm cannot hold it (mjpeg)",)
    else:
        assert (notes, kept) == ((), [picture.read_bytes()])
    two = add_video(clip, tmp_path / "c.mp4", picture, Disposition(0))
    assert identity(two, tmp_path / f"d{target}", Encoding())[1] == (
        "video stream 1 was left out: only stream 0 is enhanced",
    )
