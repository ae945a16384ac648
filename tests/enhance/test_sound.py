"""Sound that a container cannot hold, or that is wanted in another codec: encoded from its first sample to its last, at
its time; and which tracks a result has."""

import functools
import math
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.job.segment_store import key_clip, key_segments
from genai_ray.enhance.job.steps import write_result
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.plan.piece import parse_piece, take_piece
from genai_ray.enhance.plan.timeline import retime
from genai_ray.video import Encoding, SegmentWriter, check_result, decode_segment, parse_track_options, plan_video
from genai_ray.video.codecs import SOUND_CODECS, SUFFIXES
from genai_ray.video.track_options import AUDIO_WORDS
from tests.enhance.test_tracks import add_unknown, packets
from tests.video.clips import write
from tests.video.matrix import picture

SECONDS = 1.2
ROOT = Path(__file__).resolve().parents[2]


def noise(channels, rate, seconds=SECONDS):
    """Low noise, another one in each channel, (channels, samples): it resembles itself at no other time."""
    steps = np.random.default_rng(7).standard_normal((channels, round(rate * seconds) + 63))
    smooth = np.stack([np.convolve(row, np.hanning(64) / 32, "valid") for row in steps])
    return (smooth * 0.15).clip(-0.9, 0.9).astype(np.float32)


def make(path, *sounds, layout="stereo", rate=48000, start=0.0):
    """Write 30 pictures and tracks of noise."""
    with av.open(str(path), "w") as sink:
        video = sink.add_stream("mpeg4" if path.suffix in (".avi", ".wmv") else "libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        tracks = [sink.add_stream(codec, rate=rate, options={"strict": "experimental"}) for codec in sounds]
        for track in tracks:
            track.layout, track.bit_rate = layout, 192_000
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(picture(index, 64, 48)[..., :3].copy(), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(video.encode(frame))
        sink.mux(video.encode(None))
        for track in tracks:
            wave = noise(track.codec_context.layout.nb_channels, rate)
            packed = np.ascontiguousarray(wave.T).reshape(1, -1)
            chunk = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            chunk.rate, chunk.pts, chunk.time_base = rate, round(start * rate), Fraction(1, rate)
            sink.mux(track.encode(chunk))
            sink.mux(track.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Every clip is made once, when a test first asks for it."""
    folder = tmp_path_factory.mktemp("sound")
    return functools.cache(lambda name, *sounds, **words: make(folder / name, *sounds, **words))


def result(source, output, *, start=None, end=None, audio="auto", subtitles="auto", streams=None, slow_motion=None):
    """Take a video through decoder, encoder and container, without a model; return the notes, first those of the
    start."""
    webm = output.suffix == ".webm"
    encoding = Encoding(preset="8" if webm else "ultrafast").fit(output.suffix)
    plan, _ = take_piece(plan_video(source), parse_piece(start, end, None), segment_frames=128)
    plan = replace(plan, tracks=parse_track_options(audio, subtitles, streams))
    timeline = retime(plan, factor=slow_motion or 1, is_slow=slow_motion is not None)
    size = (plan.info.width, plan.info.height)
    told = check_result(timeline.result, size, encoding, output.suffix)
    part = output.with_name(f"{output.name}.nut")
    frames = {frame.index: frame.frame for frame in decode_segment(plan, timeline.range_to_decode(0))}
    with SegmentWriter(part, info=timeline.result.info, size=size, encoding=encoding) as writer:
        for moment in timeline.moments(0):
            writer.write(frames[moment.left], moment.pts)
    notes = write_result(timeline.result, [part], [len(timeline.result.pts)], output)
    assert set(told) <= set(notes)
    return told, notes


def heard(path, index=0):
    """Decode a track of sound; return (channels, samples) in [-1, 1], and when it begins in seconds."""
    with av.open(str(path)) as box:
        frames = [frame for frame in box.decode(box.streams.audio[index]) if frame.samples]
    starts_s = frames[0].pts * frames[0].time_base
    found = []
    for frame in frames:
        kind, channels = frame.format.name.removesuffix("p"), frame.layout.nb_channels
        packed = av.AudioResampler(format=kind).resample(frame)  # PyAV miscounts eight planes
        values = packed[0].to_ndarray().reshape(-1, channels).T.astype(np.float64)
        found.append((values - 128) / 128 if kind == "u8" else values / {"s16": 2**15, "s32": 2**31, "flt": 1}[kind])
    return np.concatenate(found, axis=1), starts_s


def names(path, kind="audio"):
    with av.open(str(path)) as box:
        return [stream.codec_context.codec.canonical_name for stream in box.streams if stream.type == kind]


def likeness_db(got, wanted):
    """Return the power of a sound over that of its difference from another one."""
    count = min(got.shape[1], wanted.shape[1])
    error = ((got[:, :count] - wanted[:, :count]) ** 2).mean()
    return 10 * np.log10((wanted[:, :count] ** 2).mean() / max(error, 1e-12))


def lag(got, wanted):
    """Return by how many samples a sound is later than another one, by their correlation."""
    count = min(got.shape[1], wanted.shape[1])
    spectrum = np.fft.rfft(got[0, :count], 2 * count) * np.conj(np.fft.rfft(wanted[0, :count], 2 * count))
    found = int(np.argmax(np.fft.irfft(spectrum)))
    return found if found < count else found - 2 * count


# --- what an output can hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("word", SOUND_CODECS)
def test_the_table_of_codecs_is_what_the_containers_hold(word, suffix, tmp_path):
    codec = SOUND_CODECS[word]
    silence = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
    silence.rate, silence.pts, silence.time_base = 48000, 0, Fraction(1, 48000)
    path = tmp_path / f"a{suffix}"
    try:
        with av.open(str(path), "w") as sink:
            track = sink.add_stream(codec.encoder, rate=48000, layout="stereo", format=codec.formats[-1])
            sink.mux(track.encode(silence))
            sink.mux(track.encode(None))
        is_held = names(path) == [av.Codec(codec.encoder, "w").canonical_name]
    except (ValueError, av.FFmpegError):
        is_held = False
    assert is_held == (suffix in codec.suffixes)


def test_options_say_what_they_allow(tmp_path):
    for words, message in (
        ({"audio": "ogg"}, "audio 'ogg'; allowed: auto, copy, none, stretch, aac"),
        ({"subtitles": "srt"}, "subtitles 'srt'; allowed: auto, copy, none"),
        ({"streams": "a:0"}, "streams 'a:0'; allowed: words and commas"),
        ({"streams": "1,,2"}, "streams '1,,2'"),
        ({"audio": "none", "streams": "audio:0"}, "audio 'none' and streams 'audio:0'; allowed: one of them"),
    ):
        with pytest.raises(errors.ConfigError, match=re.escape(message)):
            _ = EnhanceOptions(**words).tracks
    with pytest.raises(errors.ConfigError, match="audio=3"):
        EnhanceOptions(audio=3)
    video = write(tmp_path / "a.mkv", pts=[0, 1], tracks=0)
    for name, audio, message in (
        ("b.mov", "flac", "audio 'flac' in .mov; allowed: aac, ac3, mp3, alac, pcm_s16le, pcm_s24le; or an output in"),
        ("b.webm", "aac", "audio 'aac' in .webm; allowed: opus; or an output in .mp4 or .mkv or .mov"),
        ("f/%d.png", "aac", "audio 'aac' in frames without a container; allowed: auto or none"),
        ("b.parquet", "copy", "audio 'copy' in frames without a container"),
    ):
        with pytest.raises(errors.ConfigError, match=re.escape(message)):
            resolve_targets([video], tmp_path / name, EnhanceOptions(audio=audio))
    with pytest.raises(errors.ConfigError, match="subtitles 'copy' in frames"):
        resolve_targets([video], tmp_path / "b.parquet", EnhanceOptions(subtitles="copy"))


# --- sound that is encoded --------------------------------------------------------------------------------------------

FOREIGN = [
    ("adpcm_ms", ".avi", ".mp4", "aac"),
    ("wmav2", ".wmv", ".mov", "aac"),
    ("tta", ".mkv", ".mp4", "alac"),
    ("flac", ".mkv", ".mov", "alac"),
    ("libopus", ".mkv", ".mov", "aac"),
    ("aac", ".mp4", ".webm", "opus"),
    ("pcm_s16le", ".avi", ".webm", "opus"),
    ("mp2", ".ts", ".webm", "opus"),
]

DELAYS = {"aac": 1024, "alac": 0}
"""Samples that an encoder puts before the first one: one frame of AAC."""


@pytest.mark.parametrize(("codec", "before", "after", "made"), FOREIGN)
def test_sound_that_does_not_fit_is_encoded_where_it_was(codec, before, after, made, clip, tmp_path):
    source, output = clip(f"{codec}{before}", codec), tmp_path / f"b{after}"
    told, notes = result(source, output)
    assert len(told) == 1
    assert re.match(rf"audio stream 1 \(\w+, 48000 Hz, .*\) is encoded as .*: \{after} cannot hold it$", told[0])
    assert not [note for note in notes if "left out" in note or "decode" in note]
    assert names(output) == [made]
    (wanted, starts), (got, begins) = heard(source), heard(output)
    late = Fraction(0)
    if before == ".ts" and after != ".webm":
        late = starts  # a clock's times begin at zero
    # A late track of MP4 and MOV begins with what its encoder needs: silence.
    early = DELAYS[made] if after == ".mov" and starts > late else 0
    assert abs(begins + Fraction(early, 48000) - (starts - late)) <= Fraction(1, 1000)
    got = got[:, early:]
    if made == "alac":
        assert np.array_equal(got, wanted)
    else:
        assert -48 * bool(early) <= got.shape[1] - wanted.shape[1] <= 1024  # the source's times are milliseconds
        assert abs(lag(got, wanted)) <= 48 * bool(early)
        assert early or likeness_db(got, wanted) > 12


@pytest.mark.parametrize(
    ("word", "suffix"),
    [(word, suffix) for word, codec in SOUND_CODECS.items() for suffix in codec.suffixes if suffix != ".webm"],
)
def test_every_codec_that_is_asked_for(word, suffix, clip, tmp_path):
    source, output = clip("pcm.mkv", "pcm_s24le"), tmp_path / f"b{suffix}"
    told, _ = result(source, output, audio=word)
    if word == "pcm_s24le":
        assert told == ()
        assert b"".join(packets(output)[0]) == b"".join(packets(source)[0])
    else:
        rate = SOUND_CODECS[word].bit_rate(48000, 2)
        said = f"at {rate // 1000} kb/s" if rate else "bits"
        assert re.fullmatch(rf"audio stream 1 \(pcm_s24le, .*\) is encoded as .*{said}, 48000 Hz, stereo", told[0])
    (wanted, _), (got, begins) = heard(source), heard(output)
    assert begins == 0
    assert 0 <= got.shape[1] - wanted.shape[1] < 1536
    if word in ("alac", "flac", "pcm_s24le"):
        assert np.array_equal(got, wanted)
    elif word == "pcm_s16le":
        assert np.abs(got - wanted).max() <= 2**-15
    else:
        assert lag(got, wanted) == 0
        assert likeness_db(got, wanted) > 12


def test_a_track_of_the_wanted_codec_is_copied(clip, tmp_path):
    source, output = clip("two.mkv", "aac", "flac"), tmp_path / "b.mkv"
    told, _ = result(source, output, audio="aac")
    assert [note.split(" is ")[0] for note in told] == ["audio stream 2 (flac, 48000 Hz, stereo)"]
    assert names(output) == ["aac", "aac"]
    with av.open(str(source)) as box, av.open(str(output)) as made:
        before, after = (
            [bytes(packet) for packet in opened.demux(opened.streams.audio[0]) if packet.size] for opened in (box, made)
        )
    assert after == before


@pytest.mark.parametrize(
    ("layout", "rate", "word", "made"),
    [
        ("5.1(side)", 48000, "aac", (48000, 6)),
        ("5.1(side)", 48000, "opus", (48000, 6)),
        ("7.1", 48000, "aac", (48000, 8)),
        ("mono", 44100, "opus", (48000, 1)),
        ("stereo", 96000, "ac3", (48000, 2)),
        ("stereo", 22050, "mp3", (22050, 2)),
        ("mono", 8000, "mp3", (16000, 1)),
    ],
)
def test_channels_stay_and_rates_change_only_if_they_must(layout, rate, word, made, clip, tmp_path):
    source, output = clip(f"{layout}-{rate}.mkv", "flac", layout=layout, rate=rate), tmp_path / "b.mp4"
    (told,), _ = result(source, output, audio=word)
    assert f"(flac, {rate} Hz, {layout})" in told
    assert f", {made[0]} Hz, " in told
    (wanted, _), (got, begins) = heard(source), heard(output)
    assert begins == 0
    assert got.shape[0] == made[1]
    seconds = got.shape[1] / made[0] - wanted.shape[1] / rate
    assert -0.001 < seconds < 0.1


def test_more_channels_than_a_codec_has_are_refused(clip, tmp_path):
    source = clip("5.1(side)-48000.mkv", "flac", layout="5.1(side)")
    said = r"audio 'mp3' for audio stream 1 \(flac\) with 6 channels \(5\.1\(side\)\)"
    with pytest.raises(
        errors.ConfigError, match=rf"{said}; allowed: auto, copy, none, aac, ac3, opus, alac, flac, pcm_s16le"
    ):
        result(source, tmp_path / "b.mp4", audio="mp3")


def reorder(plain, target, tag, mask=0):
    """Copy a MOV; its channels are others, by a tag of Core Audio (``CAChannelLayoutTag``) and a mask."""
    data = bytearray(plain.read_bytes())
    at = data.index(b"chan") + 8
    data[at : at + 8] = tag.to_bytes(4, "big") + mask.to_bytes(4, "big")
    target.write_bytes(data)
    return target


@pytest.mark.slow
def test_channels_in_another_order_are_put_in_order(clip, tmp_path):
    """In a process of its own: PyAV frees such an order twice, which ends the process."""
    plain = clip("three.mov", "pcm_s16le", layout="3.0")
    source = reorder(plain, tmp_path / "a.mov", 114 << 16 | 3)  # center, left, right
    script = (
        "import sys; from pathlib import Path; from tests.enhance.test_sound import result\n"
        "source, *outputs = map(Path, sys.argv[1:])\n"
        "for output, word in zip(outputs, ('alac', 'auto', 'auto'), strict=True):\n"
        "    print(result(source, output, audio=word)[0])\n"
    )
    outputs = [tmp_path / name for name in ("b.mov", "b.webm", "c.mov")]
    done = subprocess.run(
        [sys.executable, "-c", script, source, *outputs],
        cwd=ROOT,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert "(pcm_s16le, 48000 Hz, 3 channels (FC+FL+FR)) is encoded as ALAC with 16 bits, 48000 Hz, 3.0" in done.stdout
    wanted = heard(plain)[0][[1, 2, 0]]
    assert np.array_equal(heard(outputs[0])[0], wanted)
    got, _ = heard(outputs[1])
    assert min(likeness_db(got[index : index + 1], wanted[index : index + 1]) for index in range(3)) > 12
    assert packets(outputs[2])[0] == packets(source)[0]


def test_channels_that_cannot_be_mixed_are_refused(clip, tmp_path):
    plain = clip("three.mov", "pcm_s16le", layout="3.0")
    source = reorder(plain, tmp_path / "a.mov", 1 << 16, 0x403)  # left, right, side right
    with pytest.raises(errors.ConfigError, match=r"audio 'aac' for audio stream 1 \(pcm_s16le\) with 3 channels \("):
        result(source, tmp_path / "b.mp4", audio="aac")


def test_sound_that_changes_its_channels_is_mixed_and_told(clip, tmp_path):
    source = tmp_path / "a.mkv"
    before, after = clip("mp2.mkv", "mp2"), clip("mono.mkv", "mp2", layout="mono")
    with av.open(str(before)) as box, av.open(str(after)) as other, av.open(str(source), "w") as sink:
        copies = {stream.index: sink.add_stream_from_template(stream) for stream in box.streams}
        for packet in (packet for packet in (*box.demux(), *other.demux(audio=0)) if packet.size):
            is_late = packet.pts * packet.time_base >= Fraction(6, 10)
            if packet.stream_index == 0 or is_late == (packet.stream.codec_context.layout.nb_channels == 1):
                packet.stream = copies[packet.stream_index]
                sink.mux(packet)
    told, notes = result(source, tmp_path / "b.mov", audio="alac")
    assert "(mp2, 48000 Hz, stereo)" in told[0]
    assert [note for note in notes if "s of audio stream 1 are not 48000 Hz, stereo" in note]
    got, _ = heard(tmp_path / "b.mov")
    assert np.array_equal(got[0, 31200:], got[1, 31200:])
    assert not np.array_equal(got[0, :28800], got[1, :28800])
    told, notes = result(source, tmp_path / "c.mov", audio="alac", start="0.8")
    assert "(mp2, 48000 Hz, mono)" in told[0]
    assert not [note for note in notes if "are not" in note]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(("start", "end"), [("0.4", "0.9"), (None, "0.5"), ("1.0", None)])
def test_sound_of_a_piece_is_cut_at_the_sample(suffix, start, end, clip, tmp_path):
    source, output = clip("tta.mkv", "tta"), tmp_path / f"b{suffix}"
    _, notes = result(source, output, start=start, end=end, audio="alac")
    assert not [note for note in notes if "cut to" in note or "holes" in note]
    wanted, _ = heard(source)
    first, stop = round(float(start or 0) * 48000), round(float(end or SECONDS) * 48000)
    got, begins = heard(output)
    assert begins == 0
    assert np.array_equal(got, wanted[:, first:stop])


def test_aac_of_a_piece_has_the_pictures_length(clip, tmp_path):
    source = clip("aac.mp4", "aac")
    for suffix, word in ((".webm", "opus"), (".mkv", "aac")):
        output = tmp_path / f"b{suffix}"
        result(source, output, start="0.4", end="0.9", audio="mp3" if word == "aac" else "auto")
        wanted = heard(source)[0][:, 19200:43200]
        got, begins = heard(output)
        assert begins == 0
        assert got.shape[1] == 24000
        assert lag(got, wanted) == 0


def test_late_sound_stays_late(clip, tmp_path):
    source = clip("late.mkv", "flac", start=0.3)
    for suffix in (".mov", ".webm"):
        output = tmp_path / f"b{suffix}"
        result(source, output)
        got, begins = heard(output)
        assert abs(begins - Fraction(3, 10)) <= Fraction(1, 1000)
        assert got.shape[1] == 57600
        result(source, output, start="0.2", end="0.8")
        got, begins = heard(output)
        assert abs(begins - Fraction(1, 10)) <= Fraction(1, 1000)
        assert got.shape[1] == 24000


def holed(source, target, shift_s):
    """Copy a file; sound from 0.6 s on is shown later, or earlier."""
    with av.open(str(source)) as box, av.open(str(target), "w") as sink:
        copies = {stream: sink.add_stream_from_template(stream) for stream in box.streams}
        for packet in box.demux():
            if packet.size:
                if packet.stream.type == "audio" and packet.pts * packet.time_base >= Fraction(6, 10):
                    packet.pts += round(shift_s / packet.time_base)
                    packet.dts = packet.pts
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return target


def test_a_hole_in_the_sound_becomes_silence(clip, tmp_path):
    source = holed(clip("flac.mkv", "flac"), tmp_path / "a.mkv", Fraction(3, 10))
    output = tmp_path / "b.mov"
    _, notes = result(source, output)
    with av.open(str(source)) as box:
        frames = list(box.decode(audio=0))
    ends = [frame.pts * frame.time_base + Fraction(frame.samples, 48000) for frame in frames]
    at = next(index for index, frame in enumerate(frames[1:], 1) if frame.pts * frame.time_base > ends[index - 1] + 0.1)
    first = sum(frame.samples for frame in frames[:at])
    hole = round(frames[at].pts * frames[at].time_base * 48000) - first
    wanted, got = heard(source)[0], heard(output)[0]
    assert abs(hole - 14400) <= 48
    assert np.array_equal(got[:, :first], wanted[:, :first])
    assert not got[:, first : first + hole].any()
    assert np.array_equal(got[:, first + hole :], wanted[:, first:])
    assert "audio stream 1 has holes of 0.30 s in all: silence was encoded there" in notes


def shift_blocks(data, words, shift_ms):
    """Change the times of blocks of a Matroska file."""
    for word in words:
        at = data.index(word) - 3  # two bytes of time, one of flags
        before = int.from_bytes(data[at : at + 2], "big", signed=True)
        data[at : at + 2] = (before + shift_ms).to_bytes(2, "big", signed=True)
    return data


@pytest.mark.parametrize("shift_ms", [20_000, -300])
def test_a_single_wrong_time_of_sound_is_not_followed(shift_ms, clip, tmp_path):
    plain = clip("flac.mkv", "flac")
    source = tmp_path / "a.mkv"
    source.write_bytes(shift_blocks(bytearray(plain.read_bytes()), packets(plain)[0][5:6], shift_ms))
    _, notes = result(source, tmp_path / "b.mov")
    assert np.array_equal(heard(tmp_path / "b.mov")[0], heard(plain)[0])
    assert "1 times of audio stream 1 are wrong: the sound was put between its neighbours" in notes
    assert not [note for note in notes if "holes" in note or "left out" in note]


def test_silence_ends_with_the_pictures(clip, tmp_path):
    plain = clip("flac.mkv", "flac")
    source, words = tmp_path / "a.mkv", packets(plain)[0]
    source.write_bytes(shift_blocks(bytearray(plain.read_bytes()), words[5:], 20_000))
    _, notes = result(source, tmp_path / "b.mov")
    wanted, got = heard(plain)[0], heard(tmp_path / "b.mov")[0]
    rest = 57600 - 5 * 4608
    assert got.shape[1] == 57600 + rest
    assert np.array_equal(got[:, 57600:], wanted[:, 57600 - rest :])
    assert "audio stream 1 has holes of 19.28 s after the last picture: they were closed" in notes


def test_sound_whose_times_go_back_loses_what_was_heard(clip, tmp_path):
    """FFmpeg's own muxers write no such file, so its bytes are changed."""
    plain = clip("flac.mkv", "flac")
    late = [word for word, time in zip(*packets(plain), strict=True) if time >= 0.6]
    source = tmp_path / "a.mkv"
    source.write_bytes(shift_blocks(bytearray(plain.read_bytes()), late, -200))
    _, notes = result(source, tmp_path / "b.mov")
    assert abs(heard(tmp_path / "b.mov")[0].shape[1] - 48000) <= 48
    assert "0.20 s of audio stream 1 were left out: times go back there" in notes


def test_sound_that_does_not_decode_is_told(clip, tmp_path):
    plain = clip("flac.mkv", "flac")
    data, words = bytearray(plain.read_bytes()), packets(plain)[0]
    at = data.index(words[4])
    data[at : at + len(words[4])] = b"\xff" * len(words[4])
    source = tmp_path / "a.mkv"
    source.write_bytes(data)
    _, notes = result(source, tmp_path / "b.mov")
    assert "1 packets of audio stream 1 do not decode" in notes
    assert abs(heard(tmp_path / "b.mov")[0].shape[1] - 57600) <= 4608


def movie_scale(path):
    """Read the units in a second of MP4's edit lists (ISO/IEC 14496-12, 8.2.2)."""
    data = path.read_bytes()
    at = data.index(b"mvhd") + 16
    return int.from_bytes(data[at : at + 4], "big")


def test_edit_lists_are_finer_only_if_sound_needs_it(clip, tmp_path):
    source, late = clip("aac.mp4", "aac"), clip("late.mp4", "aac", start=3000 / 48000)
    with av.open(str(source)) as box:
        pictures = box.streams.video[0].time_base.denominator
    finer = math.lcm(pictures, 48000)
    output = tmp_path / "b.mp4"
    for video, words, wanted in (
        (source, {}, pictures),
        (source, {"audio": "mp3"}, finer),
        (source, {"start": "0.4"}, finer),
        (source, {"start": "0.4", "audio": "none"}, pictures),
        (late, {}, finer),
        (late, {"audio": "none"}, pictures),
    ):
        result(video, output, **words)
        assert movie_scale(output) == wanted


# --- as FFmpeg does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "before", "after", "words"),
    [
        ("tta", ".mkv", ".mov", ["-c:a", "alac"]),
        ("wmav2", ".wmv", ".mkv", ["-c:a", "flac"]),
        ("aac", ".mp4", ".mkv", ["-c:a", "libopus"]),
        ("adpcm_ms", ".avi", ".mp4", ["-c:a", "aac"]),
    ],
)
def test_ffmpeg_encodes_as_many_samples(codec, before, after, words, clip, tmp_path):
    """And as FFmpeg, it begins them when they began; lossless ones are the same."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    source, theirs, ours = clip(f"{codec}{before}", codec), tmp_path / f"a{after}", tmp_path / f"b{after}"
    command = [ffmpeg, "-v", "error", "-i", str(source), "-map", "0:a", *words, "-b:a", "192k", str(theirs)]
    subprocess.run(command, check=True, timeout=60)
    result(source, ours, audio=words[1].removeprefix("lib"))
    (wanted, starts), (got, begins) = heard(theirs), heard(ours)
    assert abs(got.shape[1] - wanted.shape[1]) <= 1024
    assert abs(begins - starts) <= Fraction(1, 1000)
    if words[1] in ("alac", "flac"):
        count = min(got.shape[1], wanted.shape[1])
        assert np.abs(got[:, :count] - wanted[:, :count]).max() <= (2**-22 if codec == "wmav2" else 0)
    else:
        assert lag(got, wanted) == 0


def test_ffmpeg_converts_text_to_the_same_packets(clip, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    words = tmp_path / "a.srt"
    words.write_text(
        "1\n00:00:00,100 --> 00:00:00,400\nun <b>gras</b>\n\n"
        "2\n00:00:00,500 --> 00:00:00,700\n<i>deux</i>\nlignes, à la fin\n\n"
        '3\n00:00:00,700 --> 00:00:01,000\n<font color="#ff0000">trois</font>\n'
    )
    languages = {"audio": iter(("eng",)), "subtitle": iter(("fra",)), "video": iter(("und",))}
    source = merge(clip("plain.mkv", "aac"), words, languages)
    for suffix, codec in ((".mp4", "mov_text"), (".webm", "webvtt")):
        theirs, ours = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        command = [ffmpeg, "-v", "error", "-i", str(source), "-map", "0:s", "-c:s", codec, str(theirs)]
        subprocess.run(command, check=True, timeout=60)
        result(source, ours, audio="none")
        # FFmpeg's muxer puts an empty sample between two that join if there are pictures too.
        found = [
            [row for row in zip(*packets(path, "subtitle"), strict=True) if len(row[0]) > 2] for path in (ours, theirs)
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 3
        assert shown(ours) == shown(theirs)


# --- refusals and choices ---------------------------------------------------------------------------------------------


def test_copy_refuses_before_the_first_frame(clip, tmp_path):
    source = clip("flac.mkv", "flac")
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), audio="copy")
    specs = check_models("websr-x2-s", options)
    (target,) = resolve_targets([source], tmp_path / "b.mov", options)
    with pytest.raises(
        errors.ConfigError, match=r"\.mov cannot hold audio stream 1 \(flac\); allowed: \.mp4 or \.mkv.*--audio auto"
    ):
        examine_clip(target, specs, options)
    options = replace(options, encoding=Encoding())
    (target,) = resolve_targets([source], tmp_path / "b.webm", options)
    with pytest.raises(
        errors.ConfigError, match=r"\.webm cannot hold audio stream 1 \(flac\); allowed: \.mp4 or \.mkv"
    ):
        examine_clip(target, specs, options)
    told, _ = result(source, tmp_path / "b.mp4", audio="copy")
    assert told == ()
    assert packets(tmp_path / "b.mp4")[0] == packets(source)[0]


def test_sound_that_neither_fits_nor_decodes_is_refused(tmp_path):
    truehd = add_unknown(write(tmp_path / "plain.mp4", tracks=0), tmp_path / "d.mkv", "truehd", rate=48000)
    with pytest.raises(errors.ConfigError, match=r"\.mp4 cannot hold audio stream 1 \(truehd\); allowed: \.mkv"):
        result(truehd, tmp_path / "d.mp4")
    with pytest.raises(errors.ConfigError, match=r"stream 1 \(truehd\), which does not decode; allowed: none\."):
        result(truehd, tmp_path / "d.mp4", audio="aac")
    with pytest.raises(errors.ConfigError, match=r"which does not decode; allowed: auto, copy, none\."):
        result(truehd, tmp_path / "d.mkv", audio="aac")


def test_notes_of_the_start_are_in_the_plan(clip, tmp_path):
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"))
    (target,) = resolve_targets([clip("flac.mkv", "flac")], tmp_path / "b.mov", options)
    plan = examine_clip(target, check_models("websr-x2-s", options), options)
    assert "audio stream 1 (flac, 48000 Hz, stereo) is encoded as ALAC with 16 bits, 48000 Hz, stereo" in plan.notes[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, clip):
    """A clip with sound in two languages, subtitles in a third one, and an attachment."""
    words = tmp_path_factory.mktemp("mixed") / "a.srt"
    words.write_text("1\n00:00:00,000 --> 00:00:00,250\nun\n")
    languages = {"audio": iter(("eng", "deu")), "subtitle": iter(("fra",)), "video": iter(("und",))}
    return merge(clip("mixed.mkv", "aac", "ac3"), words, languages)


def merge(source, words, languages):
    """Copy a clip and put subtitles and an attachment beside it."""
    target = words.with_name("all.mkv")
    with av.open(str(source)) as box, av.open(str(words)) as lines, av.open(str(target), "w") as sink:
        copies = {stream: sink.add_stream_from_template(stream) for stream in (*box.streams, lines.streams[0])}
        for stream, copy in copies.items():
            copy.metadata["language"] = next(languages[stream.type])
        sink.add_attachment("note.txt", "text/plain", b"kept")
        for packet in (*lines.demux(), *box.demux()):
            if packet.size:
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return target


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ({}, ["audio 1", "audio 2", "subtitle 3"]),
        ({"audio": "none"}, ["subtitle 3"]),
        ({"subtitles": "none"}, ["audio 1", "audio 2"]),
        ({"streams": "2"}, ["audio 2"]),
        ({"streams": "audio:0, 3"}, ["audio 1", "subtitle 3"]),
        ({"streams": "audio"}, ["audio 1", "audio 2"]),
        ({"streams": "subtitles"}, ["subtitle 3"]),
        ({"streams": "deu"}, ["audio 2"]),
        ({"streams": "audio:ENG,subtitles:fra"}, ["audio 1", "subtitle 3"]),
        ({"streams": "fra", "audio": "none"}, ["subtitle 3"]),
    ],
)
def test_tracks_are_chosen(words, kept, mixed, tmp_path):
    told, _ = result(mixed, tmp_path / "b.mkv", **words)
    assert told == ()
    with av.open(str(mixed)) as box, av.open(str(tmp_path / "b.mkv")) as made:
        wanted = [(box.streams[int(word[-1])].type, box.streams[int(word[-1])].metadata["language"]) for word in kept]
        tracks = [stream for stream in made.streams if stream.type in ("audio", "subtitle")]
        assert [(stream.type, stream.metadata["language"]) for stream in tracks] == wanted
        assert [stream.type for stream in made.streams if stream.type == "attachment"] == ["attachment"]


def test_a_word_that_finds_no_track_is_refused(mixed, tmp_path):
    for word in ("0", "7", "audio:2", "subtitles:1", "audio:fra", "spa"):
        with pytest.raises(errors.ConfigError, match=rf"streams '{word}'; allowed: its tracks: 1 \(audio, eng\), 2"):
            result(mixed, tmp_path / "b.mkv", streams=word)
    options = EnhanceOptions(streams="spa")
    (target,) = resolve_targets([mixed], tmp_path / "b.parquet", options)
    with pytest.raises(errors.ConfigError, match="streams 'spa'"):
        examine_clip(target, check_models("websr-x2-s", options), options)


# --- subtitles --------------------------------------------------------------------------------------------------------

ASS = """[Script Info]
PlayResX: 384
PlayResY: 288

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.10,0:00:00.80,Default,,0,0,0,,First {\\b1}line{\\b0}
Dialogue: 0,0:00:00.30,0:00:00.50,Default,,0,0,0,,Second
Dialogue: 0,0:00:00.90,0:00:01.10,Default,,0,0,0,,Third, with a comma
"""  # noqa: E501


@pytest.fixture(scope="module")
def styled(tmp_path_factory, clip):
    """A clip whose subtitles overlap."""
    words = tmp_path_factory.mktemp("ass") / "a.ass"
    words.write_text(ASS)
    languages = {"audio": iter(("eng",)), "subtitle": iter(("fra",)), "video": iter(("und",))}
    return merge(clip("plain.mkv", "aac"), words, languages)


def shown(path):
    """Return the texts of the first track of subtitles: (text, begin, end) in milliseconds."""
    with av.open(str(path)) as box:
        track = box.streams.subtitles[0]
        found = []
        for packet in box.demux(track):
            for rect in track.codec_context.decode(packet) if packet.size else ():
                begin, length = (round(float(time * packet.time_base * 1000)) for time in (packet.pts, packet.duration))
                found.append((re.sub(rb"{[^}]*}", b"", rect.dialogue).decode(), begin, begin + length))
        return [row for row in found if row[0]]


LINES = [("First line", 100, 800), ("Second", 300, 500), ("Third, with a comma", 900, 1100)]
FLAT = [
    ("First line", 100, 300),
    ("First line\nSecond", 300, 500),
    ("First line", 500, 800),
    ("Third, with a comma", 900, 1100),
]


@pytest.mark.parametrize(
    ("suffix", "codec", "wanted"), [(".mp4", "mov_text", FLAT), (".mov", "mov_text", FLAT), (".webm", "webvtt", LINES)]
)
def test_text_is_converted_and_lines_of_one_time_stay_together(suffix, codec, wanted, styled, tmp_path):
    output = tmp_path / f"b{suffix}"
    told, notes = result(styled, output, audio="none")
    lost = "its positions and most of its styles are lost"
    assert told[:1] == (f"subtitle stream 2 (ass) is converted to {codec}: {suffix} cannot hold it; {lost}",)
    assert not [note for note in notes if "left out" in note and "attachment" not in note]
    assert names(output, "subtitle") == [codec]
    assert shown(output) == wanted


def test_mov_text_becomes_subrip_in_matroska(styled, tmp_path):
    result(styled, tmp_path / "b.mp4", audio="none")
    told, _ = result(tmp_path / "b.mp4", tmp_path / "c.mkv")
    assert told == ("subtitle stream 1 (mov_text) is converted to subrip: .mkv cannot hold it",)
    assert shown(tmp_path / "c.mkv") == FLAT


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_subtitles_of_a_piece_are_shortened_to_it(suffix, styled, tmp_path):
    output = tmp_path / f"b{suffix}"
    result(styled, output, audio="none", start="0.4", end="1.0")
    flat = [("First line\nSecond", 0, 100), ("First line", 100, 400), ("Third, with a comma", 500, 600)]
    lines = [("First line", 0, 400), ("Second", 0, 100), ("Third, with a comma", 500, 600)]
    assert shown(output) == (flat if suffix == ".mp4" else lines)


def test_bold_text_stays_bold(styled, tmp_path):
    result(styled, tmp_path / "b.mp4", audio="none")
    with av.open(str(tmp_path / "b.mp4")) as box:
        track = box.streams.subtitles[0]
        texts = [rect.ass for packet in box.demux(track) if packet.size for rect in track.codec_context.decode(packet)]
    assert texts[0] == rb"0,0,Default,,0,0,0,,First {\b1}line"


def words_in(folder, clip, name, text):
    """Put a file of subtitles into a clip."""
    words = folder / name
    words.write_text(text)
    languages = {"audio": iter(("eng",)), "subtitle": iter(("fra",)), "video": iter(("und",))}
    return merge(clip("plain.mkv", "aac"), words, languages)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_text_without_an_end_is_shown_until_the_next(suffix, clip, tmp_path):
    cues = (("100", "300", "un"), ("400", "400", "deux"), ("600", "700", "trois"), ("900", "900", "quatre"))
    text = "".join(f"1\n00:00:00,{start} --> 00:00:00,{stop}\n{word}\n\n" for start, stop, word in cues)
    source, output = words_in(tmp_path, clip, "a.srt", text), tmp_path / f"b{suffix}"
    _, notes = result(source, output, audio="none")
    assert shown(output) == [("un", 100, 300), ("deux", 400, 600), ("trois", 600, 700), ("quatre", 900, 1200)]
    assert "2 texts of subtitle stream 2 have no end: each is shown until the next one, 10 s at most" in notes
    _, notes = result(source, output, audio="none", start="0.48", end="0.68")
    assert shown(output) == [("deux", 0, 120), ("trois", 120, 200)]
    assert [note for note in notes if note.startswith("1 texts of subtitle stream 2 have no end")]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_text_that_loses_something_is_told(suffix, clip, tmp_path):
    codec = "mov_text" if suffix == ".mp4" else "webvtt"
    text = "1\n00:00:00,100 --> 00:00:00,200\n{\\an8}haut\n\n2\n00:00:00,300 --> 00:00:00,400\nbas\n"
    _, notes = result(words_in(tmp_path, clip, "a.srt", text), tmp_path / f"b{suffix}", audio="none")
    assert f"1 texts of subtitle stream 2 have positions or styles that are lost in {codec}" in notes
    head, tail = ASS.split("[Events]\n")
    rows = ("{\\p1}m 0 0 l 9 9 0 9{\\p0}", "avant {\\p1}m 0 0 l 9 9 0 9{\\p0}{\\pos(9,9)}après", "rien")
    lines = [f"Dialogue: 0,0:00:00.{at}0,0:00:00.{at}9,Default,,0,0,0,,{row}\n" for at, row in enumerate(rows, 1)]
    drawn = words_in(tmp_path, clip, "a.ass", f"{head}[Events]\n{tail.splitlines()[0]}\n{''.join(lines)}")
    _, notes = result(drawn, tmp_path / f"b{suffix}", audio="none")
    assert [row[0] for row in shown(tmp_path / f"b{suffix}")] == ["avant après", "rien"]
    assert "drawings in 2 lines of subtitle stream 2 were left out" in notes


def test_text_too_long_for_mov_text_is_left_out(clip, tmp_path):
    text = f"1\n00:00:00,100 --> 00:00:00,200\n{'x' * 66_000}\n\n2\n00:00:00,300 --> 00:00:00,400\nbas\n"
    _, notes = result(words_in(tmp_path, clip, "a.srt", text), tmp_path / "b.mp4", audio="none")
    assert shown(tmp_path / "b.mp4") == [("bas", 300, 400)]
    assert "1 texts of subtitle stream 2 were left out: they are too long for mov_text" in notes


def test_settings_of_webvtt_cues_are_told(clip, tmp_path):
    text = "WEBVTT\n\n00:00.100 --> 00:00.200 line:0\nhaut\n\n00:00.300 --> 00:00.400\n<c.red>bas</c>\n\n"
    source = words_in(tmp_path, clip, "a.vtt", f"{text}00:00.500 --> 00:00.600\nplain\n")
    _, notes = result(source, tmp_path / "b.mp4", audio="none")
    assert [row[0] for row in shown(tmp_path / "b.mp4")] == ["haut", "bas", "plain"]
    assert "2 texts of subtitle stream 2 have positions or styles that are lost in mov_text" in notes


def test_subtitles_that_are_neither_held_nor_text(tmp_path):
    plain = write(tmp_path / "plain.mp4", tracks=0)
    source = add_unknown(plain, tmp_path / "a.mkv", "hdmv_text_subtitle")
    told, _ = result(source, tmp_path / "b.mp4")
    assert told == ("subtitle stream 1 was left out: mp4 cannot hold it (unknown codec), .mkv can",)
    with pytest.raises(
        errors.ConfigError, match=r"\.mp4 cannot hold subtitle stream 1 \(unknown codec\); allowed: \.mkv"
    ):
        result(source, tmp_path / "b.mp4", subtitles="copy")
    told, _ = result(source, tmp_path / "b.mkv", subtitles="copy")
    assert told == ()
    assert packets(tmp_path / "b.mkv", "subtitle")[0] == packets(source, "subtitle")[0]


# --- the job ----------------------------------------------------------------------------------------------------------


def test_segments_do_not_depend_on_tracks(clip):
    source = clip("flac.mkv", "flac")
    specs = check_models("websr-x2-s", EnhanceOptions())
    keys = set()
    for words in ({}, {"audio": "aac"}, {"subtitles": "none"}, {"streams": "1"}):
        options = EnhanceOptions(**words)
        keys.add((key_clip(None, specs, options), key_segments(plan_video(source), specs, options, "x")))
    assert len({result for result, _ in keys}) == 4
    assert len({segments for _, segments in keys}) == 1


def test_the_endpoint_takes_the_same_words():
    from genai_ray.serve.web.videos import _VideoQuery

    (audio,) = (field.annotation.__args__ for name, field in _VideoQuery.model_fields.items() if name == "audio")
    assert audio == AUDIO_WORDS


@pytest.mark.cluster
def test_a_manifest_says_which_tracks(ray_session, clip, tmp_path):
    source = clip("two.mkv", "aac", "flac")
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "uri,output,audio,streams\n"
        + "".join(f"{source},{row}\n" for row in ("1.mov,auto,", "2.mkv,none,", "3.mkv,,2"))
    )
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"))
    report = enhance_videos(manifest, tmp_path / "out", models="websr-x2-s", options=options)
    assert [video.error for video in report.videos] == ["", "", ""]
    assert [names(place) for place in report.outputs] == [["aac", "alac"], [], ["flac"]]
    assert any("is encoded as ALAC" in note for note in report.videos[0].notes)
    assert len(set(report.videos[0].notes)) == len(report.videos[0].notes)
