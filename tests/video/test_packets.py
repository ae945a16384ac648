"""A packet is not a frame: the plan has what a decoder shows, and segments together are that."""

import itertools
import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.enhance.job.steps import write_result
from genai_ray.video import Encoding, SegmentWriter, decode_frames, decode_segment, plan_video
from genai_ray.video.colour import to_rgb
from genai_ray.video.reading.packets import Kind, PacketReader, decode_times
from tests.video.clips import NUM_FRAMES, write
from tests.video.fields import write_fields
from tests.video.identity import decode, identity

FIELDS = ["frame"] * 5 + ["fields"] * 12 + ["frame", "fields"] * 4


def check(path, *, is_counted=False):
    """Hold a plan against one sequential decode: as many frames, in the same order, with the same pictures; return
    it."""
    frames = decode(path)
    plan = plan_video(path, segment_frames=7)
    assert plan.truncated is None
    assert len(plan.pts) == len(frames)
    assert all(before < after for before, after in itertools.pairwise(plan.pts))
    if not is_counted:
        assert list(plan.decoded_pts) == [frame.pts for frame in frames]
    got = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    assert [frame.pts for frame in got] == list(plan.pts)
    for frame, wanted in zip(got, frames, strict=True):
        assert np.array_equal(frame.frame, to_rgb(wanted, plan.info.colour))
    chosen = [frame.pts for frame in decode_frames(plan, range(1, len(plan.pts), 3))]
    assert chosen == list(plan.pts[1::3])
    return plan


def packets_of(path):
    with av.open(str(path)) as box:
        return [packet for packet in box.demux(video=0) if packet.size]


def remux(path, output, change):
    """Copy packets into another file: ``change(packet, number)`` gives those that take its place."""
    with av.open(str(path)) as box, av.open(str(output), "w") as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        for number, packet in enumerate(packet for packet in box.demux(video=0) if packet.size):
            for other in change(packet, number):
                other.time_base, other.stream = packet.time_base, copy
                sink.mux(other)
    return output


def packet_like(packet, data, is_keyframe=False):
    other = av.Packet(data)
    other.pts, other.dts, other.duration, other.is_keyframe = packet.pts, packet.dts, packet.duration, is_keyframe
    return other


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_two_fields_are_one_frame(suffix, tmp_path):
    """Packets of single fields, and frames among them."""
    path = write_fields(tmp_path / f"a{suffix}", FIELDS)
    assert len(packets_of(path)) > len(FIELDS)
    plan = check(path)
    assert len(plan.pts) == len(FIELDS)
    assert {round((after - before) * plan.info.time_base * 1000) for before, after in itertools.pairwise(plan.pts)} == {
        40
    }
    assert round(plan.duration * plan.info.time_base * 1000) == 40
    assert plan.num_frames_from_header in (None, len(FIELDS))
    with av.open(str(path)) as box:
        reader = PacketReader(box.streams.video[0])
        kinds = [reader.read(bytes(packet)) for packet in packets_of(path)]
    assert (kinds.count(Kind.FRAME), kinds.count(Kind.UNKNOWN)) == (len(FIELDS), 0)  # planning decodes nothing


def test_pictures_that_are_hidden_are_no_frames(tmp_path):
    """As VP8's alternate reference pictures: a packet before another of the same time, which only later pictures refer
    to."""

    def hide(packet, number):
        hidden = [packet_like(packet, bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])] if number % 6 == 5 else []
        return [*hidden, packet]

    source = write(tmp_path / "a.webm", codec="libvpx", tracks=0, options={"g": "15", "auto-alt-ref": "0"})
    path = remux(source, tmp_path / "b.webm", hide)
    assert len(packets_of(path)) == NUM_FRAMES + NUM_FRAMES // 6
    assert len(check(path).pts) == NUM_FRAMES
    with av.open(str(path)) as box:
        reader = PacketReader(box.streams.video[0])
    assert Kind.UNKNOWN not in {reader.read(bytes(packet)) for packet in packets_of(path)}  # planning decodes nothing


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".ts", "libx264"), (".mp4", "libx264"), (".mkv", "libx265")]
)
def test_packets_without_a_picture_are_no_frames(suffix, codec, tmp_path):
    """Of a delimiter, or of padding: FFmpeg's H.264 decoder calls them invalid, and players go on."""
    units = [b"\x09\xf0", b"\x0c\xff\xff\x80"] if codec == "libx264" else [b"\x46\x01\x50", b"\x4c\x01\xff\x80"]
    source = write(tmp_path / f"a{suffix}", codec=codec, tracks=0, options={"g": "10"})

    def add(packet, number):
        unit = units[number % 2]
        other = packet_like(packet, (b"\0\0\0\1" if suffix == ".ts" else b"\0\0\0" + bytes([len(unit)])) + unit)
        other.dts, other.duration = packet.dts if suffix == ".mkv" else packet.dts - 1, 0
        return [other, packet] if number in (0, 5, 20, 29, 39) else [packet]

    plan = plan_video(remux(source, tmp_path / f"b{suffix}", add), segment_frames=7)
    frames = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    assert [frame.pts for frame in frames] == list(plan.pts)
    for frame, wanted in zip(frames, decode(source), strict=True):
        assert np.array_equal(frame.frame, to_rgb(wanted, plan.info.colour))


def test_hidden_pictures_in_a_frames_packet_are_found_undecoded(tmp_path):
    """As VP9's are: a packet of several pictures ends with an index of their sizes."""
    path = write(tmp_path / "a.webm", codec="libvpx-vp9", tracks=0)
    first, shown = (bytes(packet) for packet in packets_of(path)[1:3])
    hidden, marker = bytes([first[0] & ~2]) + first[1:], bytes([0xC0 | 1 << 3 | 1])
    index = marker + len(hidden).to_bytes(2, "little") + len(shown).to_bytes(2, "little") + marker
    with av.open(str(path)) as box:
        reader = PacketReader(box.streams.video[0])
    assert reader.read(shown) is Kind.FRAME
    assert reader.read(hidden) is Kind.HIDDEN
    assert reader.read(hidden + shown + index) is Kind.FRAME
    assert reader.read(first + shown + index) is Kind.UNKNOWN


def not_coded(data):
    """Make an MPEG-4 picture one whose vop_coded is 0: the one before it is shown on. At 25 frames a second its time
    takes 5 bits."""
    start = data.index(b"\0\0\1\xb6") + 4
    bits = "".join(f"{byte:08b}" for byte in data[start : start + 4])
    head = bits[: bits.index("0", 2) + 8] + "00"
    head += "1" * (-len(head) % 8)
    return b"\0\0\1\xb6" + int(head, 2).to_bytes(len(head) // 8)


@pytest.mark.parametrize(("suffix", "bf"), [(".avi", 0), (".mp4", 0), (".mkv", 0), (".avi", 2)])
def test_pictures_that_are_not_coded_are_no_frames(suffix, bf, tmp_path):
    source = write(tmp_path / f"a{suffix}", codec="mpeg4", tracks=0, options={"g": "12", "bf": str(bf)})
    kinds = [bytes(packet)[bytes(packet).find(b"\0\0\1\xb6") + 4] >> 6 for packet in packets_of(source)]
    gone = [number for number, kind in enumerate(kinds) if kind == 1 and number % 5 == 4]
    path = remux(
        source,
        tmp_path / f"b{suffix}",
        lambda packet, number: [packet_like(packet, not_coded(bytes(packet))) if number in gone else packet],
    )
    plan = check(path, is_counted=suffix == ".avi" and bf > 0)
    assert 0 < len(plan.pts) < NUM_FRAMES
    if not bf:
        assert set(gone) - {NUM_FRAMES - 1} <= set(range(NUM_FRAMES)) - {
            round(pts * plan.info.time_base * 25) for pts in plan.pts
        }


def find_box(data, name, start=0):
    at = data.index(name, start) - 4
    return at, at + int.from_bytes(data[at : at + 4])


def set_edits(path, entries):
    """Replace the edit list of a file of one track whose index stands at its end: (duration in movie units, media time)
    each."""
    data = bytearray(path.read_bytes())
    table = struct.pack(">II", 0, len(entries)) + b"".join(
        struct.pack(">Iihh", span, time, 1, 0) for span, time in entries
    )
    edits = struct.pack(">I4sI4s", 16 + len(table), b"edts", 8 + len(table), b"elst") + table
    start, end = find_box(data, b"edts")
    data[start:end] = edits
    for name in (b"moov", b"trak"):
        at, stop = find_box(data, name)
        data[at : at + 4] = (stop - at + len(edits) - (end - start)).to_bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize(
    "entries",
    [
        [(800, 0)],
        [(500, 300 * 128 // 10)],
        [(400, 0), (400, 8 * 512)],
        [(400, 0), (480, 16 * 512)],
        [(320, -1), (800, 5 * 512)],
    ],
    ids=["the end is hidden", "start and end are hidden", "a part twice", "a part is hidden", "it begins later"],
)
def test_edit_lists_say_what_is_shown(entries, bf, tmp_path):
    path = write(tmp_path / "a.mp4", tracks=0, options={"g": "10", "bf": bf})
    with av.open(str(path)) as box:
        assert box.streams.video[0].time_base == Fraction(1, 12800)
    delay = 1024 * (bf != "0")
    plan = check(set_edits(path, [(span, time + delay if time >= 0 else time) for span, time in entries]))
    shown = sum(span for span, time in entries if time >= 0) / 40
    assert abs(len(plan.pts) - shown) <= len(entries)
    assert plan.num_frames_from_header is None or plan.num_frames_from_header <= NUM_FRAMES * 2


@pytest.mark.parametrize("bf", ["0", "2"])
def test_frames_of_one_time_keep_their_order(bf, tmp_path):
    """Two and three frames in a millisecond, as a container that rounds has them."""
    source = write(tmp_path / "a.mp4", tracks=0, options={"g": "10", "bf": bf})

    def gather(packet, number):
        packet.pts = packet.pts // (3 * 512) * (3 * 512)
        packet.dts -= 4 * 512
        return [packet]

    path = remux(source, tmp_path / "b.mkv", gather)
    plan = check(path)
    assert plan.info.time_base == Fraction(1, 3000)
    assert list(plan.pts) == [frame // 3 * 360 + frame % 3 for frame in range(NUM_FRAMES)]
    assert plan.duration == 120
    parts = []
    for segment in plan.segments:
        parts.append(tmp_path / f"{segment.index}.nut")
        with SegmentWriter(parts[-1], info=plan.info, size=(96, 64), encoding=Encoding(preset="ultrafast")) as writer:
            for frame in decode_segment(plan, segment):
                writer.write(frame.frame, frame.pts)
    for suffix, step in ((".mp4", Fraction(1, 3000)), (".mkv", Fraction(1, 1000))):
        write_result(plan, parts, [segment.stop - segment.start for segment in plan.segments], tmp_path / f"c{suffix}")
        result = plan_video(tmp_path / f"c{suffix}")
        shown = [pts * result.info.time_base for pts in result.pts]
        assert shown == [frame // 3 * Fraction(3, 25) + frame % 3 * step for frame in range(NUM_FRAMES)]


def test_joined_recordings_are_refused_with_advice(tmp_path):
    """Times begin again, at the same times as the first ones or between them."""
    first = write(tmp_path / "a.ts", tracks=0, options={"g": "10"})
    second = write(tmp_path / "b.ts", tracks=0, options={"g": "10"}, pts=range(5, 35), rate=24)
    for one, other in ((first, first), (first, second)):
        path = tmp_path / "c.ts"
        path.write_bytes(one.read_bytes() + other.read_bytes())
        with pytest.raises(
            errors.VideoError,
            match=rf"c\.ts: times go back from \d\.\d+ s to \d\.\d+ s at frame {NUM_FRAMES}.*ffmpeg -i",
        ):
            plan_video(path)


def set_duration(data, name, value):
    """Overwrite Matroska's duration, or that of FLV's onMetaData: a float64 after its name."""
    at = data.index(name) + len(name)
    return data[:at] + struct.pack(">d", value) + data[at + 8 :]


@pytest.mark.parametrize(
    ("suffix", "name", "value"), [(".mkv", b"\x44\x89\x88", 10_000.0), (".flv", b"\0\x08duration\0", 10.0)]
)
def test_a_header_that_lies_about_the_duration(suffix, name, value, tmp_path):
    """What is whole is whole; what is cut is cut, whatever the header says."""
    path = write(tmp_path / f"a{suffix}", tracks=0)
    whole = set_duration(path.read_bytes(), name, value)
    path.write_bytes(whole)
    assert len(check(path).pts) == NUM_FRAMES
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert plan_video(path).truncated


def test_a_fragmented_file_that_lies_about_its_duration(tmp_path):
    source, path = write(tmp_path / "a.mkv", tracks=0, options={"g": "10"}), tmp_path / "b.mp4"
    with (
        av.open(str(source)) as box,
        av.open(str(path), "w", options={"movflags": "+frag_keyframe+empty_moov"}) as sink,
    ):
        copy = sink.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(video=0):
            if packet.size:
                packet.stream = copy
                sink.mux(packet)
    data = bytearray(path.read_bytes())
    at = data.index(b"mvhd") + 4
    data[at + 16 : at + 20] = (10_000).to_bytes(4)
    path.write_bytes(data)
    assert len(check(path).pts) == NUM_FRAMES


def test_a_frame_that_was_not_planned_is_no_truncation(tmp_path):
    """A plan that does not fit is an error, whatever is allowed: else what follows would be lost without a word."""
    plan = plan_video(write(tmp_path / "a.mkv", tracks=0))
    pts = (*plan.pts[:3], plan.pts[3] - 7, *plan.pts[3:])
    wrong = replace(plan, pts=pts, decoded_pts=pts)
    with pytest.raises(errors.VideoError, match=r"frame 3 has pts 120; allowed: the planned pts 113.*ffmpeg -i"):
        list(decode_segment(wrong, wrong.segments[0], allow_truncated=True))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_interlaced_frames_are_told_without_decoding(codec, tmp_path):
    """Most interlaced video has both fields in one packet; x264 codes macroblocks of both kinds."""
    options = {
        "libx264": {"x264-params": "tff=1"},
        "libx265": {"x265-params": "log-level=error"},
        "mpeg2video": {"flags": "+ildct+ilme"},
    }[codec]
    path = write(tmp_path / "a.ts", codec=codec, tracks=0, options=options)
    with av.open(str(path)) as box:
        reader = PacketReader(box.streams.video[0])
        assert all(reader.read(bytes(packet)) is Kind.FRAME for packet in box.demux(video=0) if packet.size)
    check(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_like_packets_without_a_frame_loses_no_frame(codec, tmp_path):
    """Planning decodes such a file; what does not decode is planned all the same, and is an error in its place."""
    path = write(tmp_path / "a.mkv", codec=codec, tracks=0, options={"bf": "0"})
    data = path.read_bytes()
    for packet in packets_of(path)[20:23]:
        data = data.replace(bytes(packet), b"\xff" * packet.size)
    path.write_bytes(data)
    plan = plan_video(path)
    assert len(plan.pts) == NUM_FRAMES
    with pytest.raises(errors.VideoError, match=rf"a\.mkv: .*20 of {NUM_FRAMES} frames decode|frame 20 has pts"):
        list(decode_segment(plan, plan.segments[0]))


def test_a_damaged_picture_with_error_minus_one_is_one_frame(tmp_path):
    """FFmpeg's old decoders do, and the system calls that an operation which is not permitted."""
    source = write(tmp_path / "a.avi", codec="msmpeg4", tracks=0)
    damage = b"\xff\xee\xdd\x01" * 10
    path = remux(
        source, tmp_path / "b.mkv", lambda packet, number: [packet_like(packet, damage) if number == 7 else packet]
    )
    decoded = decode_times(str(path))
    assert (len(decoded.shown), len(decoded.failed)) == (NUM_FRAMES - 1, 1)


def test_pictures_before_the_first_time_are_no_frames(tmp_path):
    """``ffmpeg -ss ... -c copy`` cuts an open group of pictures so that Matroska has no time for its first pictures,
    which do not decode."""
    options = {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:log-level=error"}
    whole = write(tmp_path / "a.mkv", codec="libx265", options=options, tracks=0)
    path, keys, first = tmp_path / "b.mkv", 0, 0
    with (
        av.open(str(whole)) as source,
        av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled"}) as sink,
    ):
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if keys < 2 or not packet.size:
                continue
            first = packet.pts if packet.is_keyframe and keys == 2 else first
            packet.pts, packet.dts = packet.pts - first, packet.dts - first
            packet.stream = stream
            sink.mux_one(packet)
    timeless = sum(packet.pts is None for packet in packets_of(path))
    assert timeless > 0
    assert check(path).skipped == timeless


def test_a_file_without_an_index_is_decoded(tmp_path):
    """FFmpeg finds no key frames of VC-2 in Matroska."""
    path = write(tmp_path / "a.mkv", codec="vc2", tracks=0, options={"b": "20000000"})
    with av.open(str(path)) as box, pytest.raises(av.FFmpegError):
        box.seek(800, stream=box.streams.video[0])
    check(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_raw_dv_has_its_rate_and_its_timecode(suffix, tmp_path):
    """FFmpeg gives 60,000 frames a second as its average rate, which timecode tracks cannot hold."""
    path, rate = tmp_path / "a.dv", Fraction(30000, 1001)
    with av.open(str(path), "w") as sink:
        sink.metadata["timecode"] = "01:02:03:04"
        video, sound = sink.add_stream("dvvideo", rate=rate), sink.add_stream("pcm_s16le", rate=48000, layout="stereo")
        video.width, video.height, video.pix_fmt = 720, 480, "yuv411p"
        for index in range(9):
            picture = av.VideoFrame.from_ndarray(np.full((480, 720), 60 + index, np.uint8), format="gray")
            picture.pts, picture.time_base = index, 1 / rate
            sink.mux(video.encode(picture.reformat(format="yuv411p")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1602), np.int16), format="s16", layout="stereo")
            silence.rate, silence.pts, silence.time_base = 48000, index * 1602, Fraction(1, 48000)
            sink.mux(sound.encode(silence))
        sink.mux(video.encode(None))
    output = tmp_path / f"b{suffix}"
    plan, _ = identity(path, output, Encoding(preset="ultrafast"), segment_frames=4)
    assert plan.info.average_rate == rate
    assert len(plan_video(output).pts) == len(plan.pts)
    with av.open(str(output)) as box:
        kept = {**box.metadata, **{key: value for one in box.streams for key, value in one.metadata.items()}}
    assert {key.lower(): value for key, value in kept.items()}["timecode"]
