"""Files that are damaged, lie, change half-way or end too early: an error that names file and place, or the frames that
are there; never a shift."""

import subprocess

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.enhance.job.steps import write_result
from genai_ray.video import Encoding, SegmentWriter, decode_segment, join_segments, plan_video, validate_encoding
from genai_ray.video.codecs import CODECS
from tests.video.clips import NUM_FRAMES, write


def decode_all(plan, **options):
    return [frame for segment in plan.segments for frame in decode_segment(plan, segment, **options)]


def packets_of(path):
    with av.open(str(path)) as box:
        return [packet for packet in box.demux(video=0) if packet.size]


def spoil(path, number):
    """Overwrite 40 bytes in the middle of one packet."""
    data, packet = bytearray(path.read_bytes()), packets_of(path)[number]
    start = data.find(bytes(packet)[:64]) + packet.size // 3
    data[start : start + 40] = np.random.default_rng(1).integers(0, 256, 40, np.uint8).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mp4", {}),
        ("libx264", ".mkv", {}),
        ("mpeg4", ".avi", {}),
        ("mpeg2video", ".ts", {}),
        ("libsvtav1", ".mp4", {"preset": "12"}),
    ],
)
def test_damage_in_the_middle_is_named_with_its_place(codec, suffix, options, tmp_path):
    path = spoil(
        write(tmp_path / f"a{suffix}", codec=codec, tracks=0, options=options, size=(320, 240)), NUM_FRAMES // 2
    )
    plan = plan_video(path, segment_frames=10)
    with pytest.raises(
        errors.VideoError,
        match=rf"a\{suffix}: (frame \d+ at \d\.\d+ s is damaged|reading failed).* of {NUM_FRAMES} frames decode"
        r".*--allow-truncated \(allow_truncated=True of EnhanceOptions or decode_segment\)",
    ):
        decode_all(plan)


def test_damage_that_is_allowed_shifts_nothing(tmp_path):
    """The decoder patches a damaged frame; every frame keeps its time."""
    plan = plan_video(spoil(write(tmp_path / "a.mp4", tracks=0, size=(320, 240)), 20), segment_frames=10)
    assert [frame.pts for frame in decode_all(plan, allow_truncated=True)] == list(plan.pts)


def test_frames_missing_in_the_middle_are_never_closed_up(tmp_path):
    plan = plan_video(write(tmp_path / "a.mkv", tracks=0), segment_frames=10)
    parts, counts = [], []
    for segment in plan.segments:
        parts.append(tmp_path / f"{segment.index}.nut")
        frames = list(decode_segment(plan, segment))[: 4 if segment.index == 1 else None]
        with SegmentWriter(parts[-1], info=plan.info, size=(96, 64), encoding=Encoding(preset="ultrafast")) as writer:
            for frame in frames:
                writer.write(frame.frame, frame.pts)
        counts.append(len(frames))
    with pytest.raises(
        errors.VideoError, match=r"a\.mkv: frames 17 to 26, from 0\.680 s, do not decode, and later ones do"
    ):
        write_result(plan, parts, counts, tmp_path / "b.mkv")
    assert not (tmp_path / "b.mkv").exists()
    ends = [*counts[:2], 0]
    write_result(plan, parts, ends, tmp_path / "b.mkv")
    assert list(plan_video(tmp_path / "b.mkv").pts) == list(plan.pts[: sum(ends)])


def test_a_file_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as sink:
        stream = sink.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sink.start_encoding()
    with pytest.raises(errors.VideoError, match=r"a\.mkv: (no frames|not a video)"):
        plan_video(tmp_path / "a.mkv")


@pytest.mark.parametrize(
    ("content", "found", "do"),
    [
        (b"\0\0\0\x20ftypisom" + bytes(20) + b"\0\0\2\0mdat" + b"x" * 99, r"cut before its index \(moov\)", "repair"),
        (b"\n<!DOCTYPE html>\n<html><body>403</body></html>", "but a web page", "Download the video itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "but a pointer of Git LFS", "git lfs pull"),
        (b'{"error": "access denied"}', "but text", ""),
        (bytes(5000), "but zeros", "Copy or download it again"),
        (b"PK\3\4" + b"x" * 99, "but an archive", "Unpack it first"),
        (b"II*\0" + b"\x08\0\0\0" + bytes(99), "but a picture", "convert it"),
        (bytes(range(1, 256)) * 9, "or damaged at its begin", "Copy or download it again"),
    ],
)
def test_what_is_no_video_is_told_by_what_it_is(content, found, do, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(errors.VideoError, match=rf"a\.mp4: .*{found}.*; allowed: MP4, MOV, .*{do}"):
        plan_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(("promise", "is_cut"), [(NUM_FRAMES + 59, True), (10, False), (0, False)])
def test_a_header_that_lies_about_frames(promise, is_cut, tmp_path):
    path = write(tmp_path / "a.avi", codec="mpeg4", tracks=0)
    data = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        start = data.find(tag) + offset
        assert int.from_bytes(data[start : start + 4], "little") == NUM_FRAMES
        data[start : start + 4] = promise.to_bytes(4, "little")
    path.write_bytes(data)
    plan = plan_video(path)
    assert len(plan.pts) == len(decode_all(plan)) == NUM_FRAMES
    assert bool(plan.truncated) == is_cut


def remux(path, output, change):
    """Copy packets into another file, each changed by ``change(packet, number)``."""
    with av.open(str(path)) as box, av.open(str(output), "w", options={"strict": "-2"}) as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        for number, packet in enumerate(p for p in box.demux(video=0) if p.size):
            change(packet, number)
            packet.stream = copy
            sink.mux(packet)
    return output


def test_times_that_go_back(tmp_path):
    """Every packet is a picture of its own, and the second half of them says that it comes between those of the
    first."""
    source = write(tmp_path / "a.mkv", codec="ffv1", tracks=0)

    def turn_back(packet, number):
        packet.pts = number * 80 if number < NUM_FRAMES // 2 else (number - NUM_FRAMES // 2) * 80 + 40
        packet.dts = number

    with pytest.raises(errors.VideoError, match=r"b\.mkv: times go back from 1\.520 s to 0\.040 s at frame 20"):
        plan_video(remux(source, tmp_path / "b.mkv", turn_back))

    def begin_late(packet, number):
        packet.pts = number * 80 + (NUM_FRAMES * 80 if number < NUM_FRAMES // 2 else 0)
        packet.dts = number

    with pytest.raises(
        errors.VideoError, match=r"d\.mkv: times go back from 4\.720 s to 1\.600 s at frame 20"
    ):  # none of them is left out
        plan_video(remux(source, tmp_path / "d.mkv", begin_late))

    def double(packet, number):
        packet.pts = packet.dts = number // 2 * 80

    plan = plan_video(remux(source, tmp_path / "c.mkv", double))
    assert list(plan.pts) == [number // 2 * 160 + number % 2 for number in range(NUM_FRAMES)]  # in half milliseconds


def write_changing(path):
    """Write NUM_FRAMES frames of 96x64, and as many of 128x64 behind them, in one stream."""
    parts = [
        write(path.with_name(f"{width}.ts"), tracks=0, size=(width, 64), options={"bf": "0"}) for width in (96, 128)
    ]
    with av.open(str(path), "w") as sink:
        copy = None
        for half, part in enumerate(parts):
            with av.open(str(part)) as box:
                copy = copy or sink.add_stream_from_template(box.streams.video[0])
                for packet in box.demux(video=0):
                    if packet.size:
                        packet.pts += half * 200000
                        packet.dts += half * 200000
                        packet.stream = copy
                        sink.mux(packet)
    for part in parts:
        part.unlink()
    return path


def test_a_stream_that_changes_its_size_half_way(tmp_path):
    path = write_changing(tmp_path / "a.ts")
    plan = plan_video(path, segment_frames=20)
    assert len(plan.pts) == 2 * NUM_FRAMES
    with pytest.raises(errors.VideoError, match=rf"a\.ts: frame {NUM_FRAMES} at \d\.\d+ s is 128x64.*96x64 throughout"):
        decode_all(plan)


def test_a_codec_that_nobody_knows(tmp_path):
    path = write(tmp_path / "a.mkv", tracks=0)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(errors.VideoError, match=r"unsupported video codec in .*a\.mkv"):
        plan_video(path)


def test_an_encoder_that_is_not_in_this_build(monkeypatch):
    assert "libaom-av1" not in av.codecs_available
    monkeypatch.setitem(CODECS, "libaom-av1", CODECS["libsvtav1"])
    with pytest.raises(errors.ConfigError, match=r"libaom-av1.*this build of FFmpeg lacks.*libsvtav1"):
        validate_encoding(Encoding(codec="libaom-av1"), ".mp4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_between_two_key_frames(codec, tmp_path):
    whole = write(
        tmp_path / "a.ts", codec=codec, tracks=0, options={"g": "10", "bf": "2", "sc_threshold": "1000000000"}
    )
    first = packets_of(whole)[4].pos
    (tmp_path / "b.ts").write_bytes(whole.read_bytes()[: 188 * 2] + whole.read_bytes()[first // 188 * 188 :])
    plan = plan_video(tmp_path / "b.ts", segment_frames=7)
    frames = decode_all(plan)
    assert [frame.pts for frame in frames] == list(plan.pts)
    assert 0 < plan.skipped < 12
    assert plan.truncated is None
    pictures = {frame.pts: frame.frame for frame in decode_all(plan_video(whole))}
    assert all(np.array_equal(frame.frame, pictures[frame.pts]) for frame in frames)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)], check=False, capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_no_half_file(small_disk, tmp_path):
    plan = plan_video(write(tmp_path / "a.mkv", tracks=0, size=(320, 240)))
    part, whole = small_disk / "0.nut", tmp_path / "0.nut"
    noise = np.random.default_rng(0)

    def encode(path):
        with SegmentWriter(path, info=plan.info, size=(320, 240), encoding=Encoding(codec="ffv1")) as writer:
            for pts in plan.pts:
                writer.write(noise.integers(0, 256, (240, 320, 3), np.uint8), pts)

    with pytest.raises(errors.VideoError, match=f"{small_disk}: .*No space left"):
        encode(part)
    assert list(small_disk.iterdir()) == []
    encode(whole)
    with pytest.raises(errors.VideoError, match=rf"a\.mkv: writing its result in {small_disk} failed: No space left"):
        join_segments(plan, [whole], [NUM_FRAMES], small_disk / "b.mkv")
    assert list(small_disk.iterdir()) == []
    encoded = tmp_path / "1.nut"
    with SegmentWriter(encoded, info=plan.info, size=(320, 240), encoding=Encoding(codec="png")) as writer:
        for pts in plan.pts:
            writer.write(noise.integers(0, 256, (240, 320, 3), np.uint8), pts)
    for output in (small_disk / "frames" / "%d.png", small_disk / "b.parquet"):
        with pytest.raises(errors.VideoError, match=r"No space left"):
            write_result(plan, [encoded], [NUM_FRAMES], output)
        assert list(small_disk.iterdir()) == []
