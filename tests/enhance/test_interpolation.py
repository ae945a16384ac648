"""Frames between frames: the whole path on made clips, and how good they are on a real one."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from genai_ray import EnhanceOptions, InferenceSession, QualityValidator, enhance_videos
from genai_ray.video import Encoding, decode_segment, plan_video
from tests.enhance.moving import decode, frames_of, luma_of, pan, write_frames
from tests.scenes.test_similarity import CUTS_OF_BIKES
from tests.video.clips import write
from tests.video.matrix import make

LOSSLESS = Encoding(codec="ffv1")
CUT, STILL = 8, 13
"""In the clip below: the last frame before its cut, and the first of three equal frames."""


def db(a, b):
    return QualityValidator(a).validate(b).psnr


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.concatenate([pan(CUT + 1), pan(8, scene=1)])
    frames = np.insert(frames, STILL, frames[[STILL, STILL]], axis=0)
    path = tmp_path_factory.mktemp("moving") / "a.mkv"
    pts = [7, 48, 90, 131, 150, *(173 + 41 * i for i in range(len(frames) - 5))]  # of Matroska's own unit, and not even
    return write_frames(path, frames, pts=pts, base=Fraction(1, 1000), options={"g": "1"})


def enhance(source, output, **options):
    report = enhance_videos(
        source, output, models="rife", options=EnhanceOptions(encoding=LOSSLESS, overwrite=True, **options)
    )
    return report, *frames_of(output)


@pytest.fixture(scope="module")
def doubled(ray_session, clip):
    return enhance(clip, clip.with_name("doubled.mkv"))


def test_twice_the_frames_at_exact_times(doubled, clip):
    (report, times, frames), (source_times, source) = doubled, frames_of(clip)
    assert (report.frames, report.videos[0].frames_expected, len(frames)) == (38, 38, 38)
    assert report.frames_inferred == 18 - 1 - 2  # pairs, without the cut and the two equal ones
    assert times[::2] == source_times
    assert all(
        abs(middle - (a + b) / 2) <= Fraction(1, 1000)
        for middle, (a, b) in zip(times[1::2], pairwise(source_times), strict=False)
    )
    assert min(map(db, frames[::2], source)) > 35
    off = np.abs(luma_of(clip.with_name("doubled.mkv"))[::2].astype(int) - luma_of(clip))
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.001  # colours that RGB does not have


def test_between_two_frames_is_what_the_model_makes_of_them(doubled, clip):
    frames, (_, source) = doubled[2], frames_of(clip)
    with InferenceSession("rife") as session:
        wanted = session.infer(source)
    for index in range(18):
        if index == CUT or STILL <= index < STILL + 2:
            assert np.array_equal(frames[2 * index + 1], frames[2 * index]), index
        else:
            assert db(wanted[index], frames[2 * index + 1]) > 35, index
            assert db(wanted[index], source[index]) < 40, index
    assert np.array_equal(frames[-1], frames[-2])


@pytest.mark.parametrize("segment_frames", [1, 2, 5, pytest.param(16, marks=pytest.mark.slow)])
def test_the_number_of_segments_changes_no_frame(doubled, clip, tmp_path, segment_frames):
    report, times, frames = enhance(clip, tmp_path / "b.mkv", segment_frames=segment_frames, batch_size=3)
    assert report.segments == -(-19 // segment_frames)
    assert times == doubled[1]
    assert np.array_equal(frames, doubled[2])


def test_a_threshold_of_zero_blends_over_cuts(doubled, clip, tmp_path):
    _, _, frames = enhance(clip, tmp_path / "b.mkv", scene_threshold=0.0)
    different = {index for index in range(38) if not np.array_equal(frames[index], doubled[2][index])}
    assert different == {2 * CUT + 1}


def test_sixty_frames_a_second_from_twenty_five(ray_session, tmp_path):
    source = write(tmp_path / "a.mp4", pts=list(range(10)))
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast", crf=1), fps=Fraction(60), segment_frames=4)
    report = enhance_videos(source, tmp_path / "b.mp4", models="rife", options=options)
    times, _ = frames_of(tmp_path / "b.mp4")
    assert times == [Fraction(index, 60) for index in range(24)]
    assert (report.frames, report.frames_inferred) == (
        24,
        24 - 2 - 2,
    )  # every fifth is one of the source; the last one is held
    sounds = []
    for path in (source, tmp_path / "b.mp4"):
        with av.open(str(path)) as box:
            video = box.streams.video[0]
            assert video.duration * video.time_base == Fraction(10, 25)
            sounds.append([bytes(packet) for packet in box.demux(box.streams.audio[0]) if packet.size])
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) > 20


def test_mp4_times_are_exact_from_a_late_start_at_an_odd_rate(ray_session, tmp_path):
    rate = Fraction(30000, 1001)
    source = write_frames(tmp_path / "a.mp4", pan(5), pts=[9, 10, 11, 14, 15], rate=rate, codec="libx264")
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), factor=3)
    report = enhance_videos(source, tmp_path / "b.mp4", models="rife", options=options)
    assert not any("milliseconds" in note for note in report.videos[0].notes)
    times, own = frames_of(tmp_path / "b.mp4")[0], frames_of(source)[0]
    assert own[0] > Fraction(1, 4)
    assert len({later - earlier for earlier, later in pairwise(own)}) > 1
    bounds = [*own, own[-1] + 1 / rate]
    assert times == [
        earlier + (later - earlier) * Fraction(step, 3) for earlier, later in pairwise(bounds) for step in range(3)
    ]


def test_a_segment_between_two_frames_of_the_result_is_left_out(ray_session, tmp_path):
    """Three frames within three milliseconds, and one a second later: at a constant rate nothing is shown of the two in
    the middle."""
    source = write_frames(tmp_path / "a.mkv", pan(4), pts=[0, 1, 2, 1000], base=Fraction(1, 1000), options={"g": "1"})
    report, times, frames = enhance(source, tmp_path / "b.mkv", fps=Fraction(10), segment_frames=1)
    assert (report.segments, report.frames) == (4, len(times))
    assert times[:11] == [Fraction(index, 10) for index in range(11)]
    with InferenceSession("rife") as session:
        made = session.infer(frames_of(source)[1][2:], {"timestep": 98 / 998})[0]
    assert db(made, frames[1]) > 35


def test_ten_bits_and_alpha_are_kept_between_frames(ray_session, tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuva420p10le"
        for index, picture in enumerate(pan(3)):
            rgba = np.concatenate([picture, np.full((64, 96, 1), 60 * index, np.uint8)], axis=-1)
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p10le")
            frame.pts = index
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    enhance(source, tmp_path / "b.mkv", segment_frames=2)
    plan = plan_video(tmp_path / "b.mkv")
    frames = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    assert plan.info.pix_fmt == "yuva420p10le"
    assert [round(float(frame.alpha.mean()) / 257) for frame in frames] == [0, 30, 60, 90, 120, 120]
    assert len(np.unique(frames[1].frame)) > 256


def test_four_times_the_frames_move_evenly(ray_session, tmp_path):
    source = write_frames(tmp_path / "a.mkv", pan(6, size=(192, 128), step=(8, 4)))
    _, times, frames = enhance(source, tmp_path / "b.mkv", factor=4, batch_size=2)
    assert times == [Fraction(index * 10, 1000) for index in range(24)]
    between = pan(24, size=(192, 128), step=(2, 1))  # the same picture, a quarter of the way at a time
    middle = slice(32, -32)
    for index in range(20):
        blend = frames[index // 4 * 4 : index // 4 * 4 + 5 : 4].mean(0).round().astype(np.uint8)
        true = between[index][middle, middle]
        if index % 4:
            assert db(true, frames[index][middle, middle]) > db(true, blend[middle, middle]) + 3, index


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("segment_frames", "batch_size"), [pytest.param(19, 8, marks=SLOW), (4, 3), pytest.param(3, 1, marks=SLOW)]
)
def test_frames_are_added_in_the_middle_of_a_chain(ray_session, clip, tmp_path, segment_frames, batch_size):
    """Noise is removed first, frames are added to what that gives, and all of them are enlarged."""
    options = EnhanceOptions(
        encoding=LOSSLESS, params={"sigma": 0.02}, segment_frames=segment_frames, batch_size=batch_size, factor=3
    )
    report = enhance_videos(clip, tmp_path / "b.mkv", models=["ffdnet", "rife", "websr-x2-s"], options=options)
    _, frames = frames_of(tmp_path / "b.mkv")
    with (
        InferenceSession("ffdnet") as denoise,
        InferenceSession("rife") as between,
        InferenceSession("websr-x2-s") as enlarge,
    ):
        clean = denoise.infer(frames_of(clip)[1], {"sigma": 0.02})
        wanted = np.repeat(clean, 3, axis=0)
        for step in (1, 2):
            made = between.infer(clean, {"timestep": step / 3})
            for index in set(range(18)) - {CUT, STILL, STILL + 1}:
                wanted[3 * index + step] = made[index]
        wanted = enlarge.infer(wanted)
    assert (report.frames, frames.shape) == (57, (57, 128, 192, 3))
    assert min(map(db, wanted, frames)) > 35
    assert np.array_equal(frames[3 * CUT], frames[3 * CUT + 2])
    assert not np.array_equal(frames[0], frames[1])


DIFFICULT = [
    "h264-mp4-b-frames",
    "h264-mp4-single-key",
    "h264-mkv-variable-rate",
    "h264-avi-b-frames",
    "hevc-mkv-open-gop",
    "hevc-ts-open-gop",
    "hevc-mp4-hlg",
    "vp9-mp4-odd-size",
    "vp9-webm-alpha",
    "mpeg2-ps",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*DIFFICULT[:3], *(pytest.param(name, marks=pytest.mark.longest) for name in DIFFICULT[3:])]
)
def test_any_number_of_segments_gives_the_same_frames(ray_session, tmp_path, name):
    source = make(name, tmp_path)
    enhance(source, tmp_path / "one.mkv", segment_frames=100)
    enhance(source, tmp_path / "many.mkv", segment_frames=3, batch_size=2)
    plans = [plan_video(tmp_path / name) for name in ("one.mkv", "many.mkv")]
    assert plans[0].pts == plans[1].pts
    assert len(plans[0].pts) == 2 * len(plan_video(source).pts)
    for one, many in zip(decode(tmp_path / "one.mkv"), decode(tmp_path / "many.mkv"), strict=True):
        assert np.array_equal(one, many)


@pytest.mark.slow
@pytest.mark.longest
def test_real_footage_beats_blending_and_cuts_stay_cuts(ray_session, shared, tmp_path):
    """Every second frame of the clip is left out, made anew, and held against the true one."""
    _, true = frames_of(shared / "clips" / "bikes.mp4")
    source = write_frames(tmp_path / "half.mkv", true[::2], rate=Fraction(25, 2))
    report, _, frames = enhance(source, tmp_path / "whole.mkv")
    _, kept = frames_of(source)
    cuts = {cut // 2 for cut in CUTS_OF_BIKES}
    assert report.frames_inferred == len(kept) - 1 - len(cuts)
    for index in cuts:
        assert np.array_equal(frames[2 * index + 1], frames[2 * index])
    moving = [index for index in range(len(kept) - 1) if index not in cuts]
    made = [db(true[2 * index + 1], frames[2 * index + 1]) for index in moving]
    blended = [db(true[2 * index + 1], np.rint(kept[index : index + 2].mean(0)).astype(np.uint8)) for index in moving]
    print(f"interpolated {np.mean(made):.2f} dB, blended {np.mean(blended):.2f} dB")
    assert np.mean(made) > np.mean(blended) + 2
