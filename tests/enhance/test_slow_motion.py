"""Slow motion: the frames of a factor in the times of the source, N times as long; with sound, texts and chapters."""

import functools
import subprocess
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray import EnhanceOptions, errors
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.job.segment_store import key_segments
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.plan.piece import parse_piece, take_piece
from genai_ray.enhance.plan.timeline import retime
from genai_ray.video import Encoding, plan_video
from genai_ray.video.joining.samples import Stretch, find_window
from genai_ray.video.track_options import AUDIO_WORDS
from tests.enhance.moving import frames_of, pan, write_frames
from tests.enhance.test_retime import PLANS, plan_of
from tests.enhance.test_sound import heard, likeness_db, make, merge, noise, result, shown
from tests.video.clips import write
from tests.video.matrix import make as make_clip

FAST = Encoding(preset="ultrafast")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return plan_video(write_frames(tmp_path_factory.mktemp("plan") / "a.mkv", pan(3)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Every clip is made once, when a test first asks for it."""
    folder = tmp_path_factory.mktemp("sound")
    return functools.cache(lambda name, *sounds, **words: make(folder / name, *sounds, **words))


# --- times ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(**PLANS, factor=st.integers(2, 16))
def test_frames_are_those_of_the_factor_and_times_are_longer(template, base, deltas, first, cuts, factor):
    plan = plan_of(template, base, deltas, first, cuts)
    slow, fast = retime(plan, factor=factor, is_slow=True), retime(plan, factor=factor)
    units = slow.result.info.time_base, fast.result.info.time_base
    assert [time * units[0] for time in slow.result.pts] == [factor * time * units[1] for time in fast.result.pts]
    assert slow.result.duration * units[0] == factor * fast.result.duration * units[1]
    assert slow.result.info.average_rate == plan.info.average_rate
    assert (slow.result.slow_motion, fast.result.slow_motion) == (factor, 1)
    for segment in plan.segments:
        made = [(moment.left, moment.timestep) for moment in slow.moments(segment.index)]
        assert made == [(moment.left, moment.timestep) for moment in fast.moments(segment.index)]
        assert slow.range_to_decode(segment.index) == fast.range_to_decode(segment.index)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", ["h264-mkv-variable-rate", "h264-mp4-late-start", "h264-ts"])
def test_times_of_a_file_are_exact_and_begin_at_zero(name, suffix, tmp_path):
    source = make_clip(name, tmp_path)
    plan = plan_video(source)
    _, notes = result(source, tmp_path / f"slow{suffix}", slow_motion=3, audio="none")
    times, _ = frames_of(tmp_path / f"slow{suffix}")
    bounds = [time * plan.info.time_base - plan.begins_s for time in (*plan.pts, plan.pts[-1] + plan.duration)]
    wanted = [3 * a + step * (b - a) for a, b in pairwise(bounds) for step in range(3)]
    late = times[0] - wanted[0]  # all tracks move together, by a multiple of the pictures' unit
    off = [abs(got - late - time) for got, time in zip(times, wanted, strict=True)]
    assert 0 <= late < Fraction(1, 25)
    assert max(off) <= (Fraction(1, 1000) if suffix == ".mkv" else 0)
    assert any("times begin at zero" in note for note in notes) == (plan.begins_s > 0)


def test_a_piece_is_of_the_source(tmp_path):
    source = write(tmp_path / "a.mkv", tracks=0)
    plan, _ = take_piece(plan_video(source), parse_piece("f10", "f20", None), segment_frames=4)
    timeline = retime(plan, factor=4, is_slow=True)
    base = timeline.result.info.time_base
    assert [time * base for time in timeline.result.pts] == [Fraction(index, 25) for index in range(40)]
    moments = [moment for index in range(len(plan.segments)) for moment in timeline.moments(index)]
    assert [moment.left for moment in moments] == [10 + index // 4 for index in range(40)]
    assert {moment.timestep for moment in moments[-4:]} == {0}


# --- sound ------------------------------------------------------------------------------------------------------------


def stretch(samples, times, rate, chunk=1024):
    """Stretch mono sound in float."""
    filtered = Stretch(times, "flt", "mono", rate)
    made = []
    for at in range(0, len(samples), chunk):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + chunk].copy(), format="flt", layout="mono")
        frame.rate = rate
        made += filtered.push(frame)
    return np.concatenate(made + filtered.end(), axis=1)[0]


@pytest.mark.parametrize("times", range(2, 17))
def test_stretched_sound_has_as_many_samples_as_it_should(times):
    for rate, count in ((8000, 1), (16000, 500), (44100, 4800), (48000, 12000)):
        assert len(stretch(noise(1, 48000)[0, :count], times, rate)) == times * count


@pytest.mark.parametrize("times", [2, 3, 4, 7])
def test_stretched_sound_stays_in_its_place(times):
    """The middle of a burst, which the filter alone plays half a window early for each time that it is longer."""
    rate = 48000
    sound = np.zeros(rate, np.float32)
    sound[20000:26000] = noise(1, rate)[0, :6000]
    powers = [sound.astype(np.float64) ** 2, stretch(sound, times, rate).astype(np.float64) ** 2]
    middles = [(power * np.arange(len(power))).sum() / power.sum() for power in powers]
    assert abs(middles[1] - times * middles[0]) < find_window(rate) / 4
    assert find_window(rate) / 2 * (times - 1) > find_window(rate) / 4  # that is what is made up for


@pytest.mark.parametrize(
    ("before", "codec", "after", "made"),
    [
        (".mkv", "flac", ".mkv", "FLAC"),
        (".mp4", "aac", ".mp4", "AAC"),
        (".mkv", "flac", ".mov", "ALAC"),
        (".mp4", "aac", ".webm", "Opus"),
    ],
)
def test_sound_is_as_long_as_the_pictures(before, codec, after, made, clip, tmp_path):
    source, output = clip(f"{codec}{before}", codec), tmp_path / f"b{after}"
    told, _ = result(source, output, slow_motion=4, audio="stretch")
    assert any(f"is encoded as {made}" in note and note.endswith(", 4 times as long") for note in told)
    got, starts = heard(output)
    whole = heard(source)[0].shape[1]
    slack = 0 if made in ("FLAC", "ALAC") else 1024
    assert abs(got.shape[1] - 4 * whole) <= slack
    assert abs(starts) <= Fraction(3, 100)
    assert len(plan_video(output).pts) == 120


def test_sound_is_that_of_ffmpegs_filter(clip, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    source, theirs, ours = clip("flac.mkv", "flac"), tmp_path / "a.mkv", tmp_path / "b.mkv"
    before = find_window(48000) // 2
    filters = f"adelay={before}S:all=1,apad=pad_len=8192,atempo=0.5,atempo=0.5"
    command = [ffmpeg, "-v", "error", "-i", str(source), "-map", "0:a", "-af", filters, "-c:a", "flac", str(theirs)]
    subprocess.run(command, check=True, timeout=60)
    result(source, ours, slow_motion=4, audio="stretch")
    wanted, got = heard(theirs)[0], heard(ours)[0]
    count = 4 * heard(source)[0].shape[1]
    assert got.shape[1] == count
    assert likeness_db(got, wanted[:, before : before + count]) > 60


def test_sound_of_a_piece_and_late_sound_stay_with_the_pictures(clip, tmp_path):
    result(clip("flac.mkv", "flac"), tmp_path / "b.mkv", slow_motion=2, audio="stretch", start="0.4", end="0.8")
    got, starts = heard(tmp_path / "b.mkv")
    assert (got.shape[1], starts) == (2 * 0.4 * 48000, 0)
    late = clip("late.mkv", "flac", start=0.5)
    result(late, tmp_path / "c.mkv", slow_motion=2, audio="stretch")
    got, starts = heard(tmp_path / "c.mkv")
    assert (got.shape[1], starts) == (2 * heard(late)[0].shape[1], 1)


def test_sound_is_left_out_unless_it_is_asked_for(clip, tmp_path):
    told, _ = result(clip("flac.mkv", "flac"), tmp_path / "b.mkv", slow_motion=2)
    assert told == ("audio stream 1 was left out: slow motion; --audio stretch makes it 2 times as long",)
    with av.open(str(tmp_path / "b.mkv")) as box:
        assert [stream.type for stream in box.streams] == ["video"]


# --- texts and chapters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [(".mkv", None), (".mp4", None), (".mkv", "0.2")])
def test_texts_and_chapters_are_as_long(suffix, start, clip, tmp_path):
    words = tmp_path / "a.srt"
    words.write_text("1\n00:00:00,100 --> 00:00:00,300\nun\n\n2\n00:00:00,400 --> 00:00:00,900\ndeux\n\n")
    languages = {"audio": iter(("eng",)), "subtitle": iter(("fra",)), "video": iter(("und",))}
    plain = merge(clip("plain.mkv", "aac"), words, languages)
    source = tmp_path / "chapters.mkv"
    with av.open(str(plain)) as box, av.open(str(source), "w") as sink:
        copies = {stream: sink.add_stream_from_template(stream) for stream in box.streams}
        sink.set_chapters([{"id": 1, "start": 100, "end": 800, "time_base": Fraction(1, 1000), "metadata": {}}])
        for packet in box.demux():
            if packet.size:
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    output = tmp_path / f"b{suffix}"
    result(source, output, slow_motion=3, start=start)
    late = 200 if start else 0
    wanted = [("un", max(100 - late, 0) * 3, (300 - late) * 3), ("deux", (400 - late) * 3, (900 - late) * 3)]
    assert shown(output) == wanted
    with av.open(str(output)) as box:
        (chapter,) = box.chapters()
        times = [round(1000 * chapter[end] * chapter["time_base"]) for end in ("start", "end")]
    assert times[0] == max(100 - late, 0) * 3
    assert suffix == ".mp4" or times[1] == (800 - late) * 3  # where a chapter ends with the next one


# --- what is refused, and who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ("rife", {"slow_motion": 1}, "slow_motion=1; allowed: from 2 to 16"),
        ("rife", {"slow_motion": 17}, "slow_motion=17"),
        ("rife", {"slow_motion": 2, "factor": 2}, "factor 2 and slow motion 2; allowed: one of them"),
        ("rife", {"slow_motion": 2, "fps": 60}, "fps 60 and slow motion 2"),
        ("websr-x2-s", {"slow_motion": 2}, "Add --model rife"),
        ("rife", {"slow_motion": 2, "audio": "copy"}, "audio 'copy' in slow motion; allowed: none or stretch"),
        ("rife", {"slow_motion": 2, "audio": "aac"}, "audio 'aac' in slow motion"),
        ("rife", {"audio": "stretch"}, "audio 'stretch' without slow motion"),
        ("rife", {"factor": 4, "audio": "stretch"}, "Pass --slow-motion 4"),
    ],
)
def test_what_contradicts_is_refused_at_once(models, options, words):
    with pytest.raises(errors.ConfigError, match=words):
        check_models(models, EnhanceOptions(**options))


def test_frames_without_a_container_have_no_sound(tmp_path):
    options = EnhanceOptions(slow_motion=2, audio="stretch")
    with pytest.raises(errors.ConfigError, match="audio 'stretch' in frames without a container"):
        resolve_targets([write(tmp_path / "a.mkv")], tmp_path / "b" / "%06d.png", options)


def test_segments_depend_on_it(tmp_path):
    plan = plan_video(write(tmp_path / "a.mkv", tracks=0))
    asked = (EnhanceOptions(factor=2), EnhanceOptions(slow_motion=2), EnhanceOptions(slow_motion=3))
    assert len({key_segments(plan, check_models("rife", options), options, "x") for options in asked}) == 3


def test_a_manifest_and_the_endpoint_take_the_same_words(tmp_path):
    from genai_ray.serve.web.video_job import VideoRequest, take_clip_options
    from genai_ray.serve.web.videos import _VideoQuery

    source = write(tmp_path / "a.mkv")
    (tmp_path / "list.csv").write_text("uri,output,slow_motion,audio\na.mkv,1.mkv,4,stretch\na.mkv,2.mkv,,\n")
    options = EnhanceOptions(encoding=FAST)
    plans = [
        examine_clip(target, check_models("rife", options), options)
        for target in resolve_targets(tmp_path / "list.csv", tmp_path / "out", options)
    ]
    count = len(plan_video(source).pts)
    assert [plan.frames for plan in plans] == [4 * count, 2 * count]
    assert [plan.timeline.result.slow_motion for plan in plans] == [4, 1]
    asked = _VideoQuery(model=("rife",), slow_motion="4", audio="stretch")
    request = VideoRequest(models=("rife",), sources=("rife",), **take_clip_options(asked))
    assert EnhanceOptions(**take_clip_options(request)) == EnhanceOptions(slow_motion=4, audio="stretch")
    assert "stretch" in AUDIO_WORDS
