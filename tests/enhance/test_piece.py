"""A piece of a video: the frames, times and sound that FFmpeg's own trim filters give, whatever the clip; and what is
refused."""

import functools
import json
import subprocess
from fractions import Fraction
from itertools import pairwise

import av
import av.filter
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genai_ray.video.reading.decode
from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.job.segment_store import key_clip, key_segments
from genai_ray.enhance.job.steps import write_result
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.plan.piece import Place, parse_piece, parse_place, take_piece
from genai_ray.enhance.plan.timeline import retime
from genai_ray.video import Encoding, SegmentWriter, decode_segment, plan_video
from tests.processes import descendants, is_alive, kill, run, start, wait_until
from tests.video.clips import write
from tests.video.identity import decode
from tests.video.matrix import CLIPS, NUM_FRAMES, add_extras, add_sound, add_video, make, write_sound
from tests.video.matrix import picture as draw
from tests.video.test_matrix import DECODERS

FAST = EnhanceOptions(encoding=Encoding(preset="ultrafast"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Every clip is made once, when a test first asks for it."""
    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


def taken(source, segment_frames=16, **places):
    piece = parse_piece(places.get("start"), places.get("end"), places.get("duration"))
    return take_piece(plan_video(source, segment_frames=segment_frames), piece, segment_frames=segment_frames)


def cut(source, output, encoding, **places):
    """Take a piece through decoder, encoder and container, without a model; return plan, timeline and notes."""
    plan, notes = taken(source, **places)
    timeline = retime(plan)
    size = (plan.info.width, plan.info.height)
    parts = []
    for segment in plan.segments:
        parts.append(output.with_name(f"{output.name}.{segment.index}.nut"))
        times = {moment.left: moment.pts for moment in timeline.moments(segment.index)}
        with SegmentWriter(parts[-1], info=plan.info, size=size, encoding=encoding.fit(output.suffix)) as writer:
            for frame in decode_segment(plan, timeline.range_to_decode(segment.index)):
                writer.write(frame.frame, times[frame.index])
    counts = [segment.stop - segment.start for segment in plan.segments]
    return timeline, (*notes, *write_result(timeline.result, parts, counts, output))


def trim(frames, template, words):
    """Return the frames that FFmpeg's filter trim or atrim passes on."""
    graph = av.filter.Graph()
    is_sound = template.type == "audio"
    source = graph.add_abuffer(template=template) if is_sound else graph.add_buffer(template=template)
    sink = graph.add("abuffersink" if is_sound else "buffersink")
    middle = graph.add("atrim" if is_sound else "trim", words)
    source.link_to(middle)
    middle.link_to(sink)
    graph.configure()
    kept = []
    for frame in (*frames, None):
        source.push(frame)
        while True:
            try:
                kept.append(sink.pull())
            except (av.BlockingIOError, av.EOFError):
                break
    return kept


# --- how it is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("90", Place(Fraction(90))),
        (90, Place(Fraction(90))),
        ("1:30", Place(Fraction(90))),
        ("01:30", Place(Fraction(90))),
        ("90:00", Place(Fraction(5400))),
        ("1:30.5", Place(Fraction(181, 2))),
        ("1:02:03.25", Place(Fraction(14893, 4))),
        ("0.1", Place(Fraction(1, 10))),
        (0.1, Place(Fraction(1, 10))),
        (np.float64(0.1), Place(Fraction(1, 10))),
        (Fraction(1001, 30000), Place(Fraction(1001, 30000))),
        ("f250", Place(Fraction(250), is_frame=True)),
        (" 2. ", Place(Fraction(2))),
    ],
)
def test_places_are_read_exactly(word, place):
    assert parse_place(word, "start") == place


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("noon", "such as 90"),
        ("", "such as 90"),
        ("1:75", "such as 90"),
        ("1:60:00", "such as 90"),
        ("1:2:3:4", "such as 90"),
        ("f1.5", "such as 90"),
        ("250f", "such as 90"),
        ("1,5", "such as 90"),
        ("٣", "such as 90"),
        (True, "such as 90"),
        (None, "such as 90"),
        (float("nan"), "such as 90"),
        (float("inf"), "such as 90"),
        (-1, "from 0 to"),
        ("-1:30", "from 0 to"),
        ("-f3", "from 0 to"),
        ("--5", "such as 90"),
        ("-" * 5000, "such as 90"),
        ("99999999999999", "such as 90"),
        (1e300, "from 0 to"),
        ("9999999999", "from 0 to"),
    ],
)
def test_other_words_are_refused(word, allowed):
    with pytest.raises(errors.ConfigError) as caught:
        parse_place(word, "start")
    assert caught.value.got.startswith("start ")
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 5, "end": 3}, "end 3 s of a piece from 5 s; allowed: an end after its start"),
        ({"start": 5, "end": "0:05"}, "an end after its start"),
        ({"start": "f5", "end": "f5"}, "end f5 of a piece from f5"),
        ({"end": 0}, "an end after its start"),
        ({"end": "f0"}, "an end after its start"),
        ({"end": 3, "duration": 3}, "end 3 s and duration 3 s; allowed: one of them"),
        ({"duration": "0:00"}, "duration 0 s; allowed: more than 0"),
        ({"preview": True, "start": 1, "duration": 2}, "preview and start and duration; allowed: one of them"),
        ({"preview": "yes"}, "preview='yes'; allowed: True or False"),
    ],
)
def test_contradictions_are_refused_at_once(options, words, tmp_path):
    with pytest.raises(errors.ConfigError) as caught:
        enhance_videos("missing.mp4", tmp_path / "b.mp4", models="websr-x2-s", options=EnhanceOptions(**options))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 2}, r"a\.mkv: start 2 s; allowed: up to the last frame, f39 at 1\.560 s"),
        ({"start": "1.57"}, r"up to the last frame, f39 at 1\.560 s"),
        ({"start": "f40"}, r"start f40; allowed: up to f39: the video has 40 frames"),
        ({"end": "f41"}, r"end f41; allowed: up to f40: the video has 40 frames"),
        ({"start": "f30", "duration": "f11"}, r"duration f11; allowed: up to f10: the video has 40 frames"),
        ({"start": "f20", "end": "0.5"}, r"no frame from start f20 \(f20 at 0\.800 s\) to 0\.5 s"),
        ({"start": "0.41", "end": "0.43"}, r"no frame from start 0\.41 s \(f11 at 0\.440 s\) to 0\.43 s"),
    ],
)
def test_pieces_that_a_video_lacks_are_refused(options, words, tmp_path):
    source = write(tmp_path / "a.mkv", tracks=0)
    with pytest.raises(errors.ConfigError, match=words):
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=EnhanceOptions(**options))
    assert list(tmp_path.iterdir()) == [source]


# --- which frames ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_the_trim_filter(name, clip):
    source = clip(name)
    whole = plan_video(source)
    base, zero = whole.info.time_base, whole.begins_s
    frames = decode(source, DECODERS.get(name))
    for frame, pts in zip(frames, whole.pts, strict=True):
        frame.pts = pts  # in AVI with B-frames the decoder has none
    reference = list(decode_segment(whole, replace_all(whole)))
    middle, last = whole.pts[17] * base - zero, whole.pts[33] * base - zero
    for begin, end in ((0, last), (middle, last), (middle + base * 3 / 4, last + base * 3 / 4), (middle, 9999)):
        words = f"start={float(begin + zero):.6f}:end={float(end + zero):.6f}"
        with av.open(str(source)) as box:
            stream = next(one for one in box.streams.video if one.type == "video")
            wanted = [frame.pts for frame in trim(frames, stream, words)]
        plan, notes = taken(source, 5, start=rounded(begin), end=rounded(end))
        assert [whole.pts[index] for index in range(plan.first, plan.stop)] == wanted, words
        assert any("before the end that is asked for" in note for note in notes) == (end == 9999)
        got = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
        assert [(frame.index, frame.pts) for frame in got] == [
            (at, whole.pts[at]) for at in range(plan.first, plan.stop)
        ]
        assert all(np.array_equal(frame.frame, reference[frame.index].frame) for frame in got)


def rounded(seconds):
    """FFmpeg reads times in microseconds."""
    return Fraction(round(seconds * 10**6), 10**6)


def replace_all(plan):
    """Return one segment of the whole plan."""
    return type(plan.segments[0])(0, 0, len(plan.pts))


@pytest.mark.parametrize("name", ["h264-mp4-variable-rate", "h264-mp4-ntsc", "h264-mkv-open-gop", "h264-ts"])
@pytest.mark.parametrize(("start", "length"), [("0.3", "0.5"), ("0.333", "0.1"), ("0.2002", "0.44")])
def test_a_duration_is_that_of_the_trim_filter(name, start, length, clip):
    source = clip(name)
    whole = plan_video(source)
    words = f"start={float(Fraction(start) + whole.begins_s):.6f}:duration={length}"
    with av.open(str(source)) as box:
        wanted = [frame.pts for frame in trim(decode(source), box.streams.video[0], words)]
    plan, _ = taken(source, start=start, duration=length)
    assert list(whole.pts[plan.first : plan.stop]) == wanted
    assert abs(plan.span.end - plan.span.begin - Fraction(length)) <= plan.info.time_base / 2


@pytest.mark.parametrize("name", ["h264-mp4-b-frames", "h264-mp4-late-start", "h264-mkv-open-gop", "vp9-webm"])
def test_the_ffmpeg_command_takes_the_same_pictures(name, clip):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()

    def hashes(*where):
        command = [ffmpeg, "-v", "error", "-nostdin", *where, "-i", clip(name), "-map", "0:v:0"]
        command += ["-fps_mode", "passthrough", "-f", "framemd5", "-"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line.split(",")[-1] for line in lines if not line.startswith("#")]

    whole = hashes()
    # FFmpeg counts to the end from the first picture; with one at the start that is the same.
    late = 1.48 if name == "h264-mp4-late-start" else 0
    for begin, end in ((0.4 + late, 1.2 + late), (0.4 + late, 0.93 + late), (late, 0.5 + late)):
        plan, _ = taken(clip(name), start=f"{begin:.2f}", end=f"{end:.2f}")
        assert hashes("-ss", f"{begin:.2f}", "-to", f"{end:.2f}") == whole[plan.first : plan.stop]


@settings(deadline=None, max_examples=60)
@given(first=st.integers(0, NUM_FRAMES - 1), length=st.integers(1, NUM_FRAMES), most=st.integers(1, 50))
def test_frames_may_be_counted(clip, first, length, most):
    whole = plan_video(clip("h264-mp4-b-frames"))
    stop = min(first + length, NUM_FRAMES)
    plans = [
        take_piece(whole, parse_piece(f"f{first}", *ends), segment_frames=most)[0]
        for ends in ((f"f{stop}", None), (None, f"f{stop - first}"))
    ]
    assert plans[0] == plans[1]
    plan = plans[0]
    assert (plan.first, plan.stop) == (first, stop)
    bounds = [plan.first, *(segment.stop for segment in plan.segments)]
    assert [(segment.start, segment.stop) for segment in plan.segments] == list(pairwise(bounds))
    result = plan.from_zero()
    base = plan.info.time_base
    assert [time + whole.pts[first] for time in result.pts] == list(whole.pts[first:stop])
    assert (result.pts[-1] + result.duration) * base == plan.span.end - plan.span.begin


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    source = write(tmp_path / "a.mkv", pts=list(range(200)), options={"g": "20", "bf": "2"}, tracks=0)
    plan, _ = taken(source, start="f105", end="f115")
    own = genai_ray.video.reading.decode.decode_packet
    seen = []
    monkeypatch.setattr(genai_ray.video.reading.decode, "decode_packet", lambda *given: seen.append(1) or own(*given))
    frames = [frame.index for segment in plan.segments for frame in decode_segment(plan, segment)]
    assert frames == list(range(105, 115))
    assert len(seen) < 30  # from frame 100 on, and what the decoder holds back


def test_the_middle_of_a_video_is_its_preview(tmp_path):
    source = write(tmp_path / "a.mkv", pts=list(range(300)), tracks=0)
    (target,) = resolve_targets(source, tmp_path / "b.mkv", EnhanceOptions(preview=True))
    assert target.output == str(tmp_path / "b.preview.mkv")
    planned = examine_clip(target, check_models("websr-x2-s", FAST), EnhanceOptions(preview=True))
    assert (planned.timeline.plan.first, planned.timeline.plan.stop, planned.frames) == (88, 213, 125)
    assert planned.notes == ("piece: frames 88 to 212 of 300, from 3.520 s to 8.520 s of the source",)
    short = write(tmp_path / "s.mkv", tracks=0)
    (target,) = resolve_targets(short, tmp_path / "c.mkv", EnhanceOptions(preview=True))
    planned = examine_clip(target, check_models("websr-x2-s", FAST), EnhanceOptions(preview=True))
    assert planned.frames == NUM_FRAMES
    assert planned.notes[1] == "the whole video: it is not longer than 5 s"


def test_previews_have_names_of_their_own(tmp_path):
    options = EnhanceOptions(preview=True)
    for name, wanted in (("b.mp4", "b.preview.mp4"), ("frames/%06d.png", "frames.preview/%06d.png")):
        (target,) = resolve_targets("a.mp4", tmp_path / name, options)
        assert target.output == str(tmp_path / wanted)
    targets = resolve_targets(["x/a.mp4", "x/b.mov"], f"{tmp_path}/out/", options)
    assert [target.output for target in targets] == [f"{tmp_path}/out/a.preview.mp4", f"{tmp_path}/out/b.preview.mov"]


# --- what is copied -------------------------------------------------------------------------------------------------


def write_all(path, sounds, frames=NUM_FRAMES):
    """Write a clip with B-frames, and tracks of 1.6 s of sound."""
    with av.open(str(path), "w") as sink:
        video = add_video(sink, {"codec": "libx264", "options": {"bf": "2", "g": "12"}})
        tracks = [add_sound(sink, codec) for codec in sounds]
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(index, 96, 64), format="rgba").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(video.encode(frame))
        sink.mux(video.encode(None))
        for number, track in enumerate(tracks):
            write_sound(sink, track, number)
    return path


def heard(path, index=0):
    """Decode a track; return its samples, and when the first is heard."""
    with av.open(str(path)) as box:
        frames = list(box.decode(box.streams.audio[index]))
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]), frames[0].pts * frames[0].time_base


SOUNDS = {
    "aac": ".mp4",
    "libmp3lame": ".mp4",
    "ac3": ".mp4",
    "alac": ".mov",
    "pcm_s16le": ".mov",
    "flac": ".mp4",
}


@pytest.mark.parametrize("codec", SOUNDS)
def test_an_edit_list_cuts_sound_at_the_sample(codec, tmp_path):
    source = write_all(tmp_path / f"a{SOUNDS[codec]}", [codec])
    output = tmp_path / f"b{SOUNDS[codec]}"
    _, notes = cut(source, output, Encoding(codec="libx264", preset="ultrafast"), start="0.5", end="1.01")
    assert not any("audio" in note for note in notes)
    with av.open(str(source)) as box:
        track = box.streams.audio[0]
        kept = trim(box.decode(track), track, "start=0.52:end=1.01")
    wanted = np.concatenate([frame.to_ndarray().reshape(-1) for frame in kept])
    got, starts = heard(output)
    assert starts == 0
    assert len(wanted) == 23520
    assert 0 <= len(got) - len(wanted) < 5000  # decoders may give the rest of the last packet, which is not shown
    assert np.abs(got[: len(wanted)].astype(float) - wanted).max() <= (1e-4 if codec in ("aac", "ac3") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["f10", "f29"])
@pytest.mark.parametrize("codec", ["aac", "flac", "libopus", "pcm_s16le"])
def test_sound_goes_on_to_its_end_if_no_end_is_asked_for(codec, start, tmp_path):
    """Sound of 1.6 s beside pictures of 1.2 s; in MP4 and MOV to the sample, in Matroska to the packet."""
    begin = Fraction(start[1:]) / 25
    for suffix in (".mkv", ".mov" if codec == "pcm_s16le" else ".mp4"):
        source = write_all(tmp_path / f"a{suffix}", [codec], frames=30)
        output = tmp_path / f"b{suffix}"
        _, notes = cut(source, output, Encoding(codec="libx264", preset="ultrafast"), start=start)
        made = packets(output, "audio")
        theirs = [part for part in packets(source, "audio") if part[2] > begin]
        assert made[-1][0] == theirs[-1][0]
        assert abs(made[-1][2] - (theirs[-1][2] - begin)) <= Fraction(1, 1000)
        if suffix == ".mkv":
            late = float((theirs[-1][2] - Fraction(6, 5)) * 1000)
            assert any(f"ends {late:.1f} ms after them" in note for note in notes), notes


def write_gap(path, codec):
    """Write 6 s of pictures; the sound stops at 0.8 s and resumes at 4 s."""
    plain = write_all(path.with_name(f"plain{path.suffix}"), [codec], frames=150)
    with av.open(str(plain)) as box, av.open(str(path), "w") as sink:
        copies = {stream: sink.add_stream_from_template(stream) for stream in box.streams}
        for packet in box.demux():
            if packet.size:
                if packet.stream.type == "audio" and packet.pts * packet.time_base >= Fraction(8, 10):
                    packet.pts += round(Fraction(32, 10) / packet.time_base)
                    packet.dts = packet.pts
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac"])
@pytest.mark.parametrize("start", ["3.8", "4.12"])
def test_sound_before_a_gap_is_not_kept(codec, start, tmp_path):
    """The second piece begins soon after the gap, before a decoder of MP3 has all that it needs."""
    source, output = write_gap(tmp_path / "a.mkv", codec), tmp_path / "b.mp4"
    cut(source, output, Encoding(codec="libx264", preset="ultrafast"), start=start, end="4.6")
    assert packets(output, "audio")[0][1] > -0.3
    with av.open(str(source)) as box:
        track = box.streams.audio[0]
        kept = trim(box.decode(track), track, f"start={start}:end=4.6")
    wanted = np.concatenate([frame.to_ndarray().reshape(-1) for frame in kept])
    got, starts = heard(output)
    assert abs(starts - (kept[0].pts * kept[0].time_base - Fraction(start))) <= Fraction(1, 1000)
    if codec == "flac":  # the other decoders give other sound at a gap
        assert 0 <= len(got) - len(wanted) < 5000
        assert np.array_equal(got[: len(wanted)], wanted)


@pytest.mark.parametrize(("start", "end"), [("0.4", "0.44"), ("1.56", None)])
def test_a_packet_that_covers_the_start_is_kept_alone(start, end, tmp_path):
    """Packets last 96 ms, and the last one 64 ms: none begins within the piece of one picture."""
    source, output = write_all(tmp_path / "a.mp4", ["flac"]), tmp_path / "b.mp4"
    _, notes = cut(source, output, Encoding(codec="libx264", preset="ultrafast"), start=start, end=end)
    assert not any("audio" in note for note in notes)
    with av.open(str(source)) as box:
        track = box.streams.audio[0]
        kept = trim(box.decode(track), track, f"start={start}:duration=0.04")
    wanted = np.concatenate([frame.to_ndarray().reshape(-1) for frame in kept])
    got, starts = heard(output)
    assert starts == 0
    assert len(wanted) == 1920
    assert np.array_equal(got[:1920], wanted)


def packets(path, kind):
    """Return the packets of the first track of a kind: bytes, begin and end in seconds."""
    with av.open(str(path)) as box:
        track = next(one for one in box.streams if one.type == kind)
        return [
            (bytes(packet), packet.pts * track.time_base, (packet.pts + packet.duration) * track.time_base)
            for packet in box.demux(track)
            if packet.size
        ]


def test_matroska_gets_whole_packets_and_says_so(tmp_path):
    source, output = write_all(tmp_path / "a.mkv", ["aac", "flac"]), tmp_path / "b.mkv"
    _, notes = cut(source, output, Encoding(codec="ffv1"), start="0.5", end="1.01")
    begin, end = Fraction("0.52"), Fraction("1.01")
    wanted = [
        (data, start - begin, stop - begin) for data, start, stop in packets(source, "audio") if begin <= start < end
    ]
    assert packets(output, "audio") == wanted
    said = [note for note in notes if note.startswith("audio stream 1 is cut to whole packets")]
    late, over = wanted[0][1], wanted[-1][2] - (end - begin)
    where = f"it begins {float(late * 1000):.1f} ms after the pictures and ends {float(over * 1000):.1f} ms after them"
    assert said == [f"audio stream 1 is cut to whole packets: {where}"]
    assert len([note for note in notes if "cut to whole packets" in note]) == 2


def test_opus_from_the_start_loses_no_sample(tmp_path):
    """Its first packet begins before zero, by what decoders drop."""
    source, output = write_all(tmp_path / "a.mkv", ["libopus"]), tmp_path / "b.mkv"
    _, notes = cut(source, output, Encoding(codec="h264", preset="ultrafast"), end=1)
    (whole, starts), (got, begins) = heard(source), heard(output)
    assert (starts, begins) == (0, 0)
    assert np.array_equal(got[:40000], whole[:40000])
    assert any("it begins 0.0 ms after the pictures" in note for note in notes)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_subtitles_and_chapters_are_cut_with_it(suffix, tmp_path):
    """Subtitles are shown from 0 to 0.25 s, 0.3 to 0.55, 0.6 to 0.85; the chapter lasts to 0.8 s."""
    source = add_extras(write_all(tmp_path / "plain.mkv", ["aac"]), tmp_path / "a.mkv")
    output = tmp_path / f"b{suffix}"
    timeline, notes = cut(source, output, Encoding(codec="libx264", preset="ultrafast"), start="0.4", end="0.7")
    if suffix == ".mkv":
        found = [(data, float(start), float(stop)) for data, start, stop in packets(output, "subtitle")]
        assert found == [(b"deux", 0, 0.15), (b"trois", 0.2, 0.3)]
    else:
        assert any("subtitle stream 2 (subrip) is converted to mov_text" in note for note in notes)
        found = [(data, float(start), float(stop)) for data, start, stop in packets(output, "subtitle")]
        assert found == [(b"\0\4deux", 0, 0.15), (b"\0\0", 0.15, 0.2), (b"\0\5trois", 0.2, 0.3)]
    with av.open(str(output)) as box:
        chapters = [
            (float(one["start"] * one["time_base"]), float(one["end"] * one["time_base"]), one["metadata"]["title"])
            for one in box.chapters()
        ]
        assert box.metadata["title"] == "A clip"
    assert chapters == [(0, pytest.approx(0.3, abs=1e-3), "One")]
    assert timeline.result.pts[0] == 0
    _, _ = cut(source, tmp_path / f"c{suffix}", Encoding(codec="libx264", preset="ultrafast"), start="0.9")
    with av.open(str(tmp_path / f"c{suffix}")) as box:
        assert box.chapters() == []


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    "name", ["h264-mp4-late-start", "h264-mp4-variable-rate", "h264-ts", "mpeg2-ps", "h264-avi-b-frames", "vp9-webm"]
)
def test_the_pictures_of_the_result_are_those_of_the_piece(name, suffix, clip, tmp_path):
    source, output = clip(name), tmp_path / f"b{suffix}"
    lossless = Encoding(codec="ffv1") if suffix == ".mkv" else Encoding(codec="h264", preset="ultrafast", crf=0)
    timeline, _ = cut(source, output, lossless, start="f9", end="f31")
    whole, result = plan_video(source), plan_video(output)
    base = whole.info.time_base
    wanted = [(time - whole.pts[9]) * base for time in whole.pts[9:31]]
    unit = Fraction(1, 1000) if suffix == ".mkv" else 0
    assert len(result.pts) == 22
    for got, want in zip(result.pts, wanted, strict=True):
        assert abs(got * result.info.time_base - want) <= unit / 2
    if suffix == ".mp4":
        assert (
            result.pts[-1] + result.duration
            == (timeline.plan.span.end - timeline.plan.span.begin) / result.info.time_base
        )
    luma = [np.asarray(memoryview(frame.planes[0])) for frame in decode(source)[9:31]]
    assert all(
        np.array_equal(np.asarray(memoryview(frame.planes[0])), one)
        for frame, one in zip(decode(output), luma, strict=True)
    )


@pytest.mark.parametrize("codec", ["aac", "ac3"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_track_without_sound_in_the_piece_is_left_out(suffix, codec, tmp_path):
    source, output = write_all(tmp_path / f"a{suffix}", [codec], frames=120), tmp_path / f"b{suffix}"
    _, notes = cut(source, output, Encoding(codec="h264", preset="ultrafast"), start=3)
    assert "audio stream 1 was left out: it has no sound in this piece" in notes
    with av.open(str(output)) as box:
        assert [stream.type for stream in box.streams] == ["video"]
    assert len(plan_video(output).pts) == 45


# --- the job --------------------------------------------------------------------------------------------------------


def test_results_and_segments_of_another_piece_do_not_count(tmp_path):
    source = write(tmp_path / "a.mkv", tracks=0)
    specs = check_models("websr-x2-s", FAST)
    keys = {}
    for word in ("0.2", "0:00.2", "0.24", None):
        options = EnhanceOptions(start=word)
        plan, _ = take_piece(plan_video(source), options.piece, segment_frames=16)
        keys[word] = (key_clip(None, specs, options), key_segments(plan, specs, options, "x"))
    assert keys["0.2"] == keys["0:00.2"]
    assert len({key for key, _ in keys.values()}) == 3
    assert len({key for _, (key, *_) in keys.values()}) == 3


def test_a_piece_in_more_frames_is_held_at_its_end(tmp_path):
    plan, _ = taken(write(tmp_path / "a.mkv", tracks=0), start="f10", end="f20", segment_frames=4)
    timeline = retime(plan, factor=2)
    moments = [moment for index in range(len(plan.segments)) for moment in timeline.moments(index)]
    assert [(moment.left, moment.timestep) for moment in moments] == [
        (10 + index // 2, Fraction(index % 2, 2) if index < 19 else 0) for index in range(20)
    ]
    assert timeline.range_to_decode(len(plan.segments) - 1).stop == 20
    assert retime(taken(plan.path, end="1.01")[0], fps=Fraction(25)).result.info.average_rate == 25


@pytest.mark.cluster
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_manifest_says_which_piece(ray_session, kind, tmp_path):
    write(tmp_path / "a.mkv")
    table = {"uri": ["a.mkv", "a.mkv", "a.mkv"], "output": ["1.mkv", "2.mkv", "3.mkv"]}
    table |= {"start": ["00:01", "f3", None], "duration": ["0.2", "f4", None], "preview": [None, None, True]}
    manifest = tmp_path / f"list{kind}"
    (pyarrow.csv.write_csv if kind == ".csv" else pyarrow.parquet.write_table)(pa.table(table), manifest)
    report = enhance_videos(manifest, tmp_path / "out", models="websr-x2-s", options=FAST)
    assert [(video.frames, video.error) for video in report.videos] == [(5, ""), (4, ""), (NUM_FRAMES, "")]
    assert report.outputs[2] == str(tmp_path / "out" / "3.preview.mkv")


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.longest
def test_a_killed_piece_goes_on_where_it_stopped(tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(120)), options={"g": "6"})
    words = ["--model", "websr-x2-l", "--encoder-preset", "ultrafast", "--segment-frames", 6, "--json"]
    words += ["--start", "f31", "--end", "0:04.4", "--size", "500x300", "--fit", "crop"]
    assert run("enhance", source, "-o", tmp_path / "undisturbed.mkv", *words).returncode == 0
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *words)
    work = tmp_path / "b.mkv.genai-ray"
    wait_until(lambda: any(work.glob("*.nut")), job)
    children = descendants(job.pid)
    kill(job.pid)
    job.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    kept = len(list(work.glob("*.nut")))
    report = json.loads(run("enhance", source, "-o", output, *words).stdout)
    assert (report["frames"], report["segments_reused"]) == (79, kept)
    assert kept >= 1
    assert output.read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()


@pytest.mark.parametrize(
    ("rate", "first", "moved"),
    [(Fraction(25), "01:00:59:20", "01:01:00:20"), (Fraction(30000, 1001), "00:59:59;20", "01:00:00;20")],
)
@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_a_piece_begins_at_its_own_timecode(rate, first, moved, suffix, tmp_path):
    source = tmp_path / "a.mxf"
    with av.open(str(source), "w", options={"timecode": first} if ";" in first else {}) as sink:
        sink.metadata["timecode"] = first
        stream = sink.add_stream("mpeg2video", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv422p"
        for index in range(45):
            picture = av.VideoFrame.from_ndarray(np.full((64, 96), 60 + index, np.uint8), format="gray")
            picture.pts, picture.time_base = index, 1 / rate
            sink.mux(stream.encode(picture.reformat(format="yuv422p")))
        sink.mux(stream.encode(None))
    output = tmp_path / f"b{suffix}"
    cut(source, output, Encoding(preset="ultrafast"), start=f"f{round(rate)}", end="f40")
    with av.open(str(output)) as box:
        kept = {**box.metadata, **{key: value for one in box.streams for key, value in one.metadata.items()}}
    assert {key.lower(): value for key, value in kept.items()}["timecode"] == moved
