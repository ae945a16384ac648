"""What is copied from a source beside its pictures: kept packet for packet, or refused before the first frame by stream
and codec."""

import resource
from fractions import Fraction

import av
import numpy as np
import pytest

from genai_ray import EnhanceOptions, errors
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.video import Encoding, SegmentWriter, decode_segment, join_segments, plan_video, write_pictures
from tests.video.clips import write
from tests.video.identity import identity
from tests.video.matrix import add_extras, picture

FAST = Encoding(preset="ultrafast")
SOUNDS = {
    "pcm_s16le": ".avi",
    "pcm_s24le": ".mkv",
    "pcm_mulaw": ".avi",
    "adpcm_ima_wav": ".avi",
    "adpcm_ms": ".avi",
    "wmav2": ".wmv",
    "mp2": ".ts",
    "ac3": ".ts",
    "flac": ".mkv",
    "libopus": ".mkv",
    "vorbis": ".mkv",
    "tta": ".mkv",
    "alac": ".mov",
    "eac3": ".mkv",
}


def make(path, sound, *, size=(64, 48), seconds=0.4):
    """A short clip of H.264 or MPEG-4 with one track of stereo sound."""
    with av.open(str(path), "w") as sink:
        video = sink.add_stream("mpeg4" if path.suffix in (".avi", ".wmv") else "libx264", rate=25)
        (video.width, video.height), video.pix_fmt = size, "yuv420p"
        heard = sink.add_stream(sound, rate=48000, options={"strict": "experimental"})
        heard.layout, heard.bit_rate = "stereo", 128_000
        for index in range(round(25 * seconds)):
            frame = av.VideoFrame.from_ndarray(picture(index, *size)[..., :3].copy(), format="rgb24").reformat(
                format="yuv420p"
            )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(video.encode(frame))
        sink.mux(video.encode(None))
        resampler = av.AudioResampler(
            format=heard.codec_context.format,
            layout="stereo",
            rate=48000,
            frame_size=heard.codec_context.frame_size or 1024,
        )
        wave = np.sin(np.arange(round(48000 * seconds)) * 0.03).astype(np.float32)
        chunk = av.AudioFrame.from_ndarray(np.stack([wave, wave]) * 0.3, format="fltp", layout="stereo")
        chunk.rate, chunk.pts, chunk.time_base = 48000, 0, Fraction(1, 48000)
        for ready in [*resampler.resample(chunk), *resampler.resample(None)]:
            sink.mux(heard.encode(ready))
        sink.mux(heard.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    return {sound: make(folder / f"{sound}{suffix}", sound) for sound, suffix in SOUNDS.items()}


def examine(source, output, encoding=FAST, model="websr-x2-s", **tracks):
    """What a job does before the first frame."""
    options = EnhanceOptions(encoding=encoding, **tracks)
    specs = check_models([model], options)
    return examine_clip(next(iter(resolve_targets([source], output, options))), specs, options)


def packets(path, kind="audio"):
    """Packets without the header of 7 bytes that AAC has in a transport stream; and their times in seconds."""
    with av.open(str(path)) as box:
        found = [
            packet for packet in box.demux([stream for stream in box.streams if stream.type == kind]) if packet.size
        ]
        return [bytes(packet) for packet in found], [
            float(packet.pts * packet.time_base) for packet in found if packet.pts is not None
        ]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("sound", SOUNDS)
def test_sound_is_kept_or_refused_before_the_first_frame(sound, suffix, clip, tmp_path):
    output, refused = tmp_path / f"b{suffix}", None
    try:
        examine(clip[sound], output, audio="copy")
    except errors.ConfigError as exc:
        refused = exc
    if refused is not None:
        assert suffix != ".mkv", "Matroska takes all of these"
        assert f"{suffix} cannot hold audio stream 1 ({sound.removeprefix('lib')})" in str(refused)
        assert ".mkv" in refused.allowed
        return
    _, notes = identity(clip[sound], output, FAST)
    assert [note for note in notes if "left out" in note] == []
    before, after = packets(clip[sound])[0], packets(output)[0]
    assert b"".join(after) == b"".join(before)  # of PCM, FFmpeg's demuxers cut packets as they like
    with av.open(str(output)) as box, av.open(str(clip[sound])) as source:
        name, wanted = (opened.streams.audio[0].codec_context.codec.canonical_name for opened in (box, source))
        assert name == wanted or (name, wanted) == ("mp3", "mp2")  # which MP4 has one number for
        assert sum(frame.samples for frame in box.decode(audio=0)) > 0.3 * 48000


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_mp4_begins_with_its_index_and_apple_knows_its_hevc(suffix, clip, tmp_path):
    output = tmp_path / f"b{suffix}"
    identity(clip["ac3"], output, Encoding(codec="hevc", preset="ultrafast"))
    data = output.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(output)) as box:
        assert box.streams.video[0].codec_context.codec_tag == "hvc1"


def restamp(source, target, change):
    """Copy a file with other decode times of its sound."""
    with av.open(str(source)) as box, av.open(str(target), "w") as sink:
        copies = {stream.index: sink.add_stream_from_template(stream) for stream in box.streams}
        for number, packet in enumerate(packet for packet in box.demux() if packet.size):
            if packet.stream.type == "audio":
                packet.pts = packet.dts = change(number, packet.dts)
            packet.stream = copies[packet.stream_index]
            sink.mux_one(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_equal_decode_times_of_sound_are_moved_by_the_least(suffix, tmp_path):
    """Matroska allows two packets at one time, as it has them of rounding; MP4 does not."""
    source = restamp(write(tmp_path / "a.mkv", tracks=1), tmp_path / "same.mkv", lambda number, time: time // 100 * 100)
    assert examine(source, tmp_path / f"b{suffix}")
    _, notes = identity(source, tmp_path / f"b{suffix}", FAST)
    (before, times), (after, moved) = packets(source), packets(tmp_path / f"b{suffix}")
    assert after == before
    assert len(set(times)) < len(times)
    assert max(abs(a - b) for a, b in zip(times, moved, strict=True)) < 0.001
    if suffix == ".mkv":
        assert notes == ()
    else:
        assert moved == sorted(set(moved))
        assert any("packets of audio stream 1 were moved" in note for note in notes)


def test_an_encoder_that_refuses_the_size_is_an_early_error(tmp_path):
    source = write(tmp_path / "wide.mkv", codec="ffv1", size=(8192, 16), pts=[0, 1], tracks=0)
    with pytest.raises(
        errors.ConfigError, match=r"wide\.mkv: libx265 does not support pictures of 16384x32; allowed: .*libx264"
    ) as caught:
        examine(source, tmp_path / "b.mkv", Encoding(codec="hevc"))
    assert "libx265" not in caught.value.allowed
    assert examine(source, tmp_path / "b.mkv", Encoding(codec="h264"))


def test_an_unwritable_result_is_named_without_temporary_names(tmp_path):
    source, part = write(tmp_path / "a.mkv", pts=[0, 1, 2], tracks=0), tmp_path / "part.nut"
    plan = plan_video(source)
    with SegmentWriter(part, info=plan.info, size=(96, 64), encoding=FAST) as writer:
        for frame in decode_segment(plan, plan.segments[0]):
            writer.write(frame.frame, frame.pts)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            errors.VideoError, match=rf"a\.mkv: writing its result in {tmp_path} failed: File too large$"
        ):
            join_segments(plan, [part], [3], tmp_path / "b.mkv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "part.nut"]


def add_unknown(source, target, codec, rate=None):
    """Copy a clip and put a track beside it that this build of FFmpeg has no decoder of."""
    with av.open(str(source)) as box, av.open(str(target), "w") as sink:
        copies = {stream.index: sink.add_stream_from_template(stream) for stream in box.streams}
        more = sink.add_mux_stream(codec, rate=rate)
        more.time_base = Fraction(1, 1000)
        for index in range(3):
            packet = av.Packet(bytes([index + 1]) * 40)
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = (
                more,
                Fraction(1, 1000),
                index * 200,
                index * 200,
                100,
            )
            packet.is_keyframe = True
            sink.mux_one(packet)
        for packet in box.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                sink.mux_one(packet)
    return target


def test_tracks_without_a_decoder_are_kept_as_well(tmp_path):
    plain = write(tmp_path / "plain.mp4", tracks=0)
    captions = add_unknown(plain, tmp_path / "a.mkv", "hdmv_text_subtitle")
    assert identity(captions, tmp_path / "b.mkv", FAST)[1] == ()
    assert packets(tmp_path / "b.mkv", "subtitle") == packets(captions, "subtitle")
    assert len(packets(captions, "subtitle")[0]) == 3
    assert any(
        "subtitle stream 1 was left out: mp4 cannot hold it" in note
        for note in identity(captions, tmp_path / "b.mp4", FAST)[1]
    )
    truehd = add_unknown(plain, tmp_path / "d.mkv", "truehd", rate=48000)
    for suffix in (".mp4", ".mov"):
        with pytest.raises(
            errors.ConfigError, match=rf"{suffix} cannot hold audio stream 1 \(truehd\); allowed: \.mkv"
        ):
            examine(truehd, tmp_path / f"d{suffix}")
    sound = add_unknown(plain, tmp_path / "a.mp4", "mpegh_3d_audio", rate=48000)
    assert identity(sound, tmp_path / "c.mp4", FAST)[1] == ()
    assert packets(tmp_path / "c.mp4") == packets(sound)
    with pytest.raises(errors.ConfigError, match=r"\.mkv cannot hold audio stream 1 .*; allowed: \.mp4 or \.mov"):
        examine(sound, tmp_path / "c.mkv")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_decode_time_that_goes_back_is_moved(suffix, tmp_path):
    """As a recorder writes it that loses its clock for a moment: FFmpeg's own muxers write no such file, so its bytes
    are changed."""
    source = write(tmp_path / "a.mkv", tracks=1)
    data, (sounds, times) = source.read_bytes(), packets(source)
    at = data.index(sounds[5]) - 3  # of a block: two bytes of time, one of flags
    before = int.from_bytes(data[at : at + 2], "big", signed=True)
    source.write_bytes(data[:at] + (before - 120).to_bytes(2, "big", signed=True) + data[at + 2 :])
    assert packets(source)[1][5] == pytest.approx(times[5] - 0.12, abs=0.0015)
    assert examine(source, tmp_path / f"b{suffix}")
    _, notes = identity(source, tmp_path / f"b{suffix}", FAST)
    after, moved = packets(tmp_path / f"b{suffix}")
    assert after == sounds
    assert moved == sorted(moved)
    assert "times of 1 packets of audio stream 1 were moved: they did not ascend" in notes


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_subtitles_in_another_order_than_shown_are_kept(suffix, tmp_path):
    source = add_extras(write(tmp_path / "plain.mkv"), tmp_path / "a.mkv")
    data = source.read_bytes()
    at = data.index(b"trois") - 3
    source.write_bytes(data[:at] + (100).to_bytes(2, "big") + data[at + 2 :])
    words, times = packets(source, "subtitle")
    assert (words, times) == ([b"un", b"deux", b"trois"], [0, 0.3, pytest.approx(0.1, abs=0.1)])
    _, notes = identity(source, tmp_path / f"b{suffix}", FAST)
    if suffix == ".mkv":
        assert packets(tmp_path / "b.mkv", "subtitle") == (words, [0, 0.3, 0.3])
        assert "times of 1 packets of subtitle stream 2 were moved: they did not ascend" in notes


def test_unwritable_frames_are_named_without_temporary_names(tmp_path):
    source, part = write(tmp_path / "a.mkv", pts=[0, 1, 2], tracks=0), tmp_path / "part.nut"
    plan = plan_video(source)
    with SegmentWriter(part, info=plan.info, size=(96, 64), encoding=Encoding(codec="png")) as writer:
        for frame in decode_segment(plan, plan.segments[0]):
            writer.write(frame.frame, frame.pts)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            errors.VideoError, match=rf"a\.mkv: writing its frames in {tmp_path} failed: File too large$"
        ):
            write_pictures(plan, [part], [3], tmp_path / "frames" / "%d.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_refusal_says_how_to_name_results(clip, tmp_path):
    with pytest.raises(errors.ConfigError, match=r"--name '\{folder\}\{stem\}\.mkv'"):
        examine(clip["adpcm_ms"], tmp_path / "b.mp4", audio="copy")
