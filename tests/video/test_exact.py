"""Segments equal a sequential decode; results keep every frame, time, tag and packet; bytes do not vary."""

import av
import numpy as np
import pytest

from genai_ray import errors
from genai_ray.video import Encoding, SegmentWriter, decode_segment, join_segments, plan_video, validate_encoding
from tests.video.clips import CLIPS, NUM_FRAMES, make, write, write_cut


def sequential(path):
    with av.open(str(path)) as box:
        return [frame.pts for frame in box.decode(video=0)]


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


@pytest.mark.parametrize("name", CLIPS)
def test_segments_together_are_the_sequential_decode(name, tmp_path):
    path = make(name, tmp_path)
    expected = sequential(path)
    if name == "avi_b_frames":
        expected.sort()  # AVI has no presentation times: frames come in order, and the times made up for them do not
    whole = {frame.pts: frame.frame for segment in plan_video(path).segments for frame in decode_segment(plan_video(path), segment)}
    for segment_frames in (3, 7, 16, NUM_FRAMES):
        plan = plan_video(path, segment_frames=segment_frames)
        assert plan.truncated is None
        assert list(plan.pts) == expected
        frames = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
        assert [frame.pts for frame in frames] == expected
        assert [frame.index for frame in frames] == list(range(len(expected)))
        assert all(np.array_equal(frame.frame, whole[frame.pts]) for frame in frames)


def audio_of(path):
    with av.open(str(path)) as box:
        tracks = {stream.index: [] for stream in box.streams.audio}
        starts = {}
        for packet in box.demux(*box.streams.audio) if tracks else ():
            if packet.size:
                data = bytes(packet)
                # A transport stream puts a header of 7 bytes (ADTS) before the audio packet proper.
                tracks[packet.stream_index].append(data[7:] if box.format.name == "mpegts" else data)
                starts.setdefault(packet.stream_index, packet.pts * packet.time_base)
    return list(tracks.values()), list(starts.values())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", CLIPS)
def test_results_keep_frames_times_tags_and_sound(name, suffix, tmp_path):
    source, output = make(name, tmp_path), tmp_path / f"out{suffix}"
    plan, notes = enhance(source, output, segment_frames=16)
    assert notes == ()
    with av.open(str(output)) as box:
        stream = box.streams.video[0]
        frames = list(box.decode(stream))
        codec, base = stream.codec_context, plan.info.time_base
        assert {(frame.width, frame.height) for frame in frames} == {(plan.info.width * 2, plan.info.height * 2)}
        assert stream.sample_aspect_ratio in (None, plan.info.sample_aspect_ratio)
        assert frames[0].rotation == plan.info.rotation
        assert (codec.colorspace, codec.color_range) == (plan.info.colour.matrix, plan.info.colour.range)
        times = [frame.pts * frame.time_base for frame in frames]
    limit = 0 if suffix == ".mp4" or base.denominator == 1000 else 0.0005
    drift = [abs((b - times[0]) - (a - plan.pts[0]) * base) for a, b in zip(plan.pts, times, strict=True)]
    assert max(drift) <= 2 * limit
    (before, starts), (after, new_starts) = audio_of(source), audio_of(output)
    assert after == before
    for a, b in zip(starts, new_starts, strict=True):
        assert abs((a - plan.pts[0] * base) - (b - times[0])) <= 0.002


def test_two_runs_give_the_same_bytes(tmp_path):
    source = make("b_frames", tmp_path)
    for name in ("one.mkv", "two.mkv", "one.mp4", "two.mp4"):
        enhance(source, tmp_path / name, segment_frames=10)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


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
        (Encoding(codec="libx266"), ".mp4"),
        (Encoding(preset="quick"), ".mp4"),
        (Encoding(crf=52), ".mp4"),
        (Encoding(threads=0), ".mp4"),
    ):
        with pytest.raises(errors.ConfigError):
            validate_encoding(encoding, suffix)


def test_a_failed_segment_leaves_no_file(tmp_path):
    plan = plan_video(make("plain", tmp_path))
    part = tmp_path / "a.nut"
    with pytest.raises(errors.InvalidInputError, match="uint8"), SegmentWriter(part, info=plan.info, size=(96, 64), encoding=Encoding()) as writer:
        writer.write(np.zeros((64, 96, 3), np.float32), 0)
    assert not part.exists()
