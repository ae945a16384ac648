"""``VideoReader``: by index and by time, the frames that decoding the whole file gives."""

import av
import numpy as np
import pytest

from genai_ray import VideoReader, errors
from genai_ray.video import decode_segment, plan_video
from tests.video.clips import NUM_FRAMES, write

UNEVEN = [index + index // 3 * 2 for index in range(NUM_FRAMES)]
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "12"}


def edited(path):
    """Cut a clip with B-frames between two key frames by an edit list, as phones do."""
    source = write(path.with_name("uncut.mp4"), options=B_FRAMES, tracks=0)
    with av.open(str(source)) as box, av.open(str(path), "w") as sink:
        stream = box.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        for packet in box.demux(stream):
            if packet.size:
                shift = int(0.2 / packet.time_base)
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = copy
                sink.mux(packet)
    return path


def everything(path):
    plan = plan_video(path)
    return plan, [frame for segment in plan.segments for frame in decode_segment(plan, segment)]


@pytest.fixture(params=["plain", "uneven", "b-frames", "edit list", "ten bits", "alpha", "no index"])
def clip(request, tmp_path):
    if request.param == "edit list":
        return edited(tmp_path / "edited.mp4")
    if request.param == "alpha":
        return write(tmp_path / "a.mkv", codec="ffv1", pix_fmt="yuva420p", tracks=0)
    if request.param == "ten bits":
        return write(tmp_path / "a.mkv", codec="libx265", pix_fmt="yuv420p10le", tracks=0)
    if request.param == "no index":
        return write(tmp_path / "a.ts", options=B_FRAMES)
    options = B_FRAMES if request.param == "b-frames" else {"g": "5"}
    return write(tmp_path / "a.mp4", options=options, pts=UNEVEN if request.param == "uneven" else None)


def same(found, decoded, plan):
    assert (found.index, found.pts) == (decoded.index, plan.pts[decoded.index])
    assert found.pts_seconds == float(found.pts * plan.info.time_base)
    assert np.array_equal(found.frame, decoded.frame)
    assert (found.alpha is None) == (decoded.alpha is None)
    assert found.alpha is None or np.array_equal(found.alpha, decoded.alpha)


def test_frames_come_by_index_in_any_order(clip):
    plan, frames = everything(clip)
    with VideoReader(clip) as video:
        assert len(video) == len(frames)
        assert video.info == plan.info
        for found, decoded in zip(video, frames, strict=True):
            same(found, decoded, plan)
        order = [*range(len(frames)), *np.random.default_rng(0).permutation(len(frames))[:15], -1, -len(frames)]
        for index in order:
            same(video[index], frames[index], plan)


def test_slices_are_stacked_as_python_slices(clip):
    _, frames = everything(clip)
    with VideoReader(clip) as video:
        for chosen in (
            slice(3, 9),
            slice(-4, None),
            slice(None, None, 7),
            slice(20, 4, -3),
            slice(30, 9999),
            slice(5, 5),
        ):
            found = video[chosen]
            wanted = frames[chosen]
            assert found.indices.tolist() == [frame.index for frame in wanted]
            assert found.pts.tolist() == [frame.pts for frame in wanted]
            assert len(found) == len(found.frames) == len(found.pts_seconds) == len(wanted)
            assert found.frames.dtype == frames[0].frame.dtype
            assert found.frames.shape[1:] == frames[0].frame.shape
            assert all(np.array_equal(one, two.frame) for one, two in zip(found.frames, wanted, strict=True))
            assert (found.alpha is None) == (frames[0].alpha is None)
            if found.alpha is not None:
                assert all(np.array_equal(one, two.alpha) for one, two in zip(found.alpha, wanted, strict=True))


def test_frames_come_by_the_time_at_which_they_are_shown(clip):
    plan, frames = everything(clip)
    times = [float(pts * plan.info.time_base) for pts in plan.pts]
    with VideoReader(clip) as video:
        assert video.begin_seconds == times[0]
        assert video.end_seconds == float((plan.pts[-1] + plan.duration) * plan.info.time_base)
        for index in (0, 1, 7, 20, len(frames) - 1):
            assert video.frame_at(times[index]).index == index
            after = times[index + 1] if index + 1 < len(times) else video.end_seconds
            assert video.frame_at((times[index] + after) / 2).index == index
        assert video.frame_at(np.nextafter(video.end_seconds, 0)).index == len(frames) - 1
        assert video.frames_between(times[5], times[9]).indices.tolist() == [5, 6, 7, 8]
        between = (times[5] + times[6]) / 2
        assert video.frames_between(between, np.nextafter(times[9], 1e9)).indices.tolist() == [5, 6, 7, 8, 9]
        assert len(video.frames_between(times[3], times[3])) == 0
        assert len(video.frames_between(video.begin_seconds, video.end_seconds)) == len(frames)


def test_what_is_out_of_range_is_refused_with_the_range(tmp_path):
    clip = write(tmp_path / "a.mp4")
    with VideoReader(clip) as video:
        with pytest.raises(errors.FrameNotFoundError, match=r"a\.mp4: no frame 40; allowed: -40 to 39, of 40 frames"):
            video[40]
        with pytest.raises(IndexError, match="no frame -41"):
            video[-41]
        for seconds in (-0.01, video.end_seconds, float("nan")):
            with pytest.raises(errors.FrameNotFoundError, match=r"no frame at .* s; allowed: 0\.0 s to before 1\.6 s"):
                video.frame_at(seconds)
        for start_s, stop_s in ((-1, 1), (0, 2), (1, 0.5), (float("nan"), 1)):
            with pytest.raises(errors.FrameNotFoundError, match=r"no frames between .*within 0\.0 s and 1\.6 s"):
                video.frames_between(start_s, stop_s)
        with pytest.raises(TypeError):
            video["first"]
    with pytest.raises(errors.VideoError, match=r"no-such\.mp4"):
        VideoReader(tmp_path / "no-such.mp4")


def test_a_closed_reader_says_so(tmp_path):
    with VideoReader(write(tmp_path / "a.mp4")) as video:
        frames = iter(video)
        next(frames)
        assert video[3].index == 3
    video.close()
    for use in (lambda: video[0], lambda: video[:2], lambda: next(frames), lambda: next(iter(video))):
        with pytest.raises(errors.VideoError, match="this reader is closed"):
            use()
    assert len(video) == NUM_FRAMES


def test_a_frame_that_does_not_decode_harms_no_other(tmp_path):
    path = write(tmp_path / "a.mov", codec="png", pix_fmt="rgb24", tracks=0)
    with av.open(str(path)) as box:
        packet = next(
            packet
            for packet in box.demux(video=0)
            if packet.pts == packet.time_base.denominator * 20 // 25 // packet.time_base.numerator
        )
        damaged = bytes(packet)
    path.write_bytes(path.read_bytes().replace(damaged, damaged[:8] + bytes(len(damaged) - 8)))
    with VideoReader(path) as video:
        assert video[19].index == 19
        with pytest.raises(errors.VideoError, match=r"a\.mov"):
            video[20]
        assert [video[index].index for index in (21, 19, 22)] == [21, 19, 22]


def test_real_clips_are_read_exactly(samples, shared):
    for path in (
        samples / "bigbuckbunny-360p.mp4",
        shared / "clips/carphone_pristine.mp4",
        shared / "clips/iscc-demo.mkv",
    ):
        plan = plan_video(path)
        middle = len(plan.pts) // 2
        with VideoReader(path) as video:
            decoded = next(decode_segment(plan, plan.segments[-1]))
            same(video[decoded.index], decoded, plan)
            same(video.frame_at(float(decoded.pts * plan.info.time_base)), decoded, plan)
            assert video[middle : middle + 3].pts.tolist() == list(plan.pts[middle : middle + 3])
            assert np.array_equal(video[middle].frame, video[middle : middle + 1].frames[0])
