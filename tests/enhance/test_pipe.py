"""A video from pipe to pipe: Y4M and NUT as FFmpeg writes and reads them, in order, bounded, and what is refused."""

import io
import os
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray import EnhanceOptions, InferenceSession, errors
from genai_ray.catalog import ModelCatalog
from genai_ray.enhance import enhance_pipe
from genai_ray.enhance.job.pipe import CHECKED_TOGETHER, check_pipe_options
from genai_ray.enhance.plan.pace import plan_pace
from genai_ray.enhance.plan.timeline import retime
from genai_ray.enhance.segment.chain import BATCHES_AHEAD
from genai_ray.video import Encoding, open_pipe, parse_track_options, plan_video
from genai_ray.video.colour import planes_of
from genai_ray.video.pipes.pipe import _NUT_INDEX
from tests.enhance.moving import pan, write_frames
from tests.enhance.test_checks import FAULTS, save_model
from tests.enhance.test_retime import PLANS, plan_of

TRACKS = parse_track_options("auto", "auto", None)
COUNT = 6


def y4m(words="C444", size=(48, 32), count=COUNT, rate="F25:1", planes=None, base=60):
    """A stream of smooth grey pictures that move; ``planes`` are (divisor of height, of width), and bits follow the
    words."""
    bits = int(words.partition(" ")[0].rpartition("p")[2]) if "p1" in words else 16 if "mono16" in words else 8
    kind = np.uint8 if bits == 8 else np.dtype("<u2")
    if planes is None:
        planes = [(1, 1), (1, 1), (1, 1)]
    stream = f"YUV4MPEG2 W{size[0]} H{size[1]} {rate} {words}\n".encode()
    for index in range(count):
        stream += b"FRAME\n"
        for number, (down, right) in enumerate(planes):
            height, width = -(-size[1] // down), -(-size[0] // right)
            y, x = np.mgrid[0:height, 0:width]
            values = base + index * 3 + y + x if number == 0 else np.full((height, width), 128)
            stream += (values * 2 ** (bits - 8)).astype(kind).tobytes()
    return stream


def opened(data, tracks=TRACKS, **words):
    return open_pipe(io.BufferedReader(io.BytesIO(data)), "the pipe", tracks, has_tracks=words.get("has_tracks", True))


def passed(data):
    """Read and write a stream without a model; return it."""
    source, sink = opened(data), io.BytesIO()
    written = source.open_sink(sink, source.info, (source.info.width, source.info.height))
    for frame, _ in source.frames():
        parts = [frame.frame] if frame.alpha is None else [frame.frame, frame.alpha]
        written.write(np.concatenate(parts, axis=-1), frame.pts)
    written.close()
    if source.failure:
        raise source.failure
    return sink.getvalue()


def decoded(data):
    """Decode a stream as FFmpeg does."""
    with av.open(io.BytesIO(data)) as box:
        return [[plane.astype(int) for plane in planes_of(frame)] for frame in box.decode(video=0)]


SHAPES = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 32), (47, 31), (1, 1)])
@pytest.mark.parametrize(
    "word",
    [
        *("420jpeg", "420mpeg2", "420paldv", "422", "444", "mono"),
        *("420p10", "422p10", "444p12", "420p16", "444p16", "mono16"),
    ],
)
def test_every_format_comes_back_as_ffmpeg_reads_it(word, size):
    chroma = SHAPES.get(word[:3])
    planes = [(1, 1)] + ([chroma] * 2 if chroma else [])
    data = y4m(f"C{word}", size, planes=planes)
    result = passed(data)
    assert len(result) == len(data) + len(result.partition(b"\n")[0]) - len(data.partition(b"\n")[0])
    for got, wanted in zip(decoded(result), decoded(data), strict=True):
        assert [plane.shape for plane in got] == [plane.shape for plane in wanted]
        assert max(abs(a - b).max() for a, b in zip(got, wanted, strict=True)) <= 1


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("Ip A1:1 C420jpeg", "Ip A1:1 C420jpeg"),
        ("It A16:15 C420mpeg2 XYSCSS=420MPEG2", "It A16:15 C420mpeg2"),
        ("Ib C420jpeg XCOLORRANGE=FULL", "Ib A0:0 C420jpeg XCOLORRANGE=FULL"),
        ("Im A0:0 C420jpeg XCOLORRANGE=LIMITED Xother", "Im A0:0 C420jpeg XCOLORRANGE=LIMITED"),
        ("", "I? A0:0 C420jpeg"),
    ],
)
def test_tags_are_kept(words, kept):
    data = y4m(words or "I?", planes=[(1, 1), (2, 2), (2, 2)])
    head = passed(data).partition(b"\n")[0].decode()
    assert head == f"YUV4MPEG2 W48 H32 F25:1 {kept}"
    info = opened(data).info
    assert info.is_interlaced == (words[:2] in ("It", "Ib", "Im"))
    assert info.colour.range == (2 if "FULL" in words else 1)


def test_lines_of_frames_may_have_words():
    data = y4m().replace(b"FRAME\n", b"FRAME Ip Xa=b\n")
    assert decoded(passed(data))[2][0][0, 0] == 66


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the pipe is empty; allowed: Y4M or NUT"),
        (b"RIFF....AVI ", "begins with b'RIFF....A'"),
        (y4m().replace(b"W48", b"W"), "the size W"),
        (y4m().replace(b"H32", b"H99999"), "the size H99999; allowed: from 1 to"),
        (y4m().replace(b"F25:1", b"F0:0"), "a frame rate of '0:0'"),
        (y4m("C411"), "the format C411; allowed: 420, "),
        (y4m("Iq C444"), "interlacing 'q'"),
        (b"YUV4MPEG2 W48" + b" " * 2000, "its header has no end"),
    ],
)
def test_what_is_no_video_is_refused(data, words):
    with pytest.raises(errors.VideoError, match=words.replace("(", "\\(")):
        opened(data)


@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (y4m()[:-1], COUNT - 1, "frame 5 is cut off: 4607 of 4608 bytes"),
        (y4m() + b"FRAM", COUNT, "its line of frame 6 has no end"),
        (y4m() + b"FRAME\n", COUNT, "frame 6 is cut off: 0 of 4608 bytes"),
        (y4m() + b"noise\n", COUNT, "frame 6 begins with b'noise'"),
        (y4m(count=0), 0, "the pipe has no frames; allowed: a frame or more"),
    ],
)
def test_a_stream_that_ends_too_early_gives_its_whole_frames(data, count, words):
    source = opened(data)
    assert len(list(source.frames())) == count
    assert words in str(source.failure)


def test_a_reader_asks_for_no_more_than_one_frame():
    """It is the asking that holds the other side back."""

    class Counting(io.BytesIO):
        most = 0

        def readinto(self, buffer):
            count = super().readinto(buffer)
            Counting.most += count
            return count

    data = y4m(count=50)
    source = open_pipe(io.BufferedReader(Counting(data), 4096), "the pipe", TRACKS, has_tracks=True)
    frames = source.frames()
    for number in range(1, 4):
        next(frames)
        assert Counting.most <= 60 + number * 4614 + 4096


# --- NUT --------------------------------------------------------------------------------------------------------------


def nut(tmp_path, *, pix_fmt="yuv444p", codec="ffv1", sound="flac", pts=None):
    """A NUT with a track of sound, of a variable rate."""
    path = tmp_path / "a.nut"
    with av.open(str(path), "w") as sink:
        video = sink.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, pix_fmt
        track = sink.add_stream(sound, rate=48000)
        track.layout = "stereo"
        for index, time in enumerate(pts or [0, 1, 2, 5, 6]):
            frame = av.VideoFrame.from_ndarray(pan(8, size=(48, 32))[index], format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 25)
            sink.mux(video.encode(frame))
        for index in range(12):
            wave = np.full((1, 2048), index * 100, np.int16)
            chunk = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
            chunk.rate, chunk.pts, chunk.time_base = 48000, index * 1024, Fraction(1, 48000)
            sink.mux(track.encode(chunk))
        sink.mux(video.encode(None))
        sink.mux(track.encode(None))
    return path.read_bytes()


def packets(data, kind):
    with av.open(io.BytesIO(data)) as box:
        return [
            (bytes(packet), packet.pts * packet.time_base)
            for packet in box.demux()
            if packet.size and packet.stream.type == kind
        ]


def test_nut_keeps_times_and_copies_sound(tmp_path):
    data = nut(tmp_path)
    result = passed(data)
    assert packets(result, "audio") == packets(data, "audio")
    assert [time for _, time in packets(result, "video")] == [time for _, time in packets(data, "video")]
    for got, wanted in zip(decoded(result), decoded(data), strict=True):
        assert abs(got[0] - wanted[0]).max() <= 1
    with av.open(io.BytesIO(result)) as box:
        assert box.streams.video[0].codec_context.name == "rawvideo"


def test_tracks_of_nut_are_chosen_or_told(tmp_path):
    data = nut(tmp_path)
    assert opened(data, parse_track_options("none", "auto", None)).copied == {}
    slow = opened(data, has_tracks=False)
    assert slow.notes == ("audio stream 1 was left out: slow motion; a pipe has no --audio stretch",)
    with pytest.raises(errors.ConfigError, match="streams 'eng'"):
        opened(data, parse_track_options("auto", "auto", "eng"))
    with pytest.raises(errors.ConfigError, match="of Y4M; allowed: none"):
        opened(y4m(), parse_track_options("auto", "auto", "audio:0"))


def test_nut_says_what_it_does_not_keep(tmp_path):
    source = opened(nut(tmp_path, pix_fmt="yuvj420p", codec="mjpeg"))
    assert "pictures of yuvj420p leave as yuv420p" in source.notes
    assert any("full range leave in limited range" in note for note in source.notes)


def test_damaged_nut_is_an_error_after_whole_frames(tmp_path):
    source = opened(nut(tmp_path)[:-3000])
    count = len(list(source.frames()))
    assert count < 5
    assert source.failure is not None


def test_nut_that_is_cut_after_its_pictures_is_an_error(tmp_path):
    """FFmpeg gives a packet of sound that is cut off as if it were whole."""
    data = nut(tmp_path, pts=[0, 1, 2, 3, 4])
    whole = opened(data)
    assert (len(list(whole.frames())), whole.failure) == (5, None)
    index = data.rindex(_NUT_INDEX)
    for end in (index - 40, index):
        source = opened(data[:end])
        assert len(list(source.frames())) == 5
        assert str(source.failure).startswith("the pipe: cut off: it ends without an index")
        assert "--allow-truncated" in str(source.failure)


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return plan_video(write_frames(tmp_path_factory.mktemp("plan") / "a.mkv", pan(3)))


@settings(deadline=None, max_examples=60)
@given(**PLANS, how=st.sampled_from(["none", "factor", "slow", "fps"]), number=st.integers(2, 7))
def test_times_are_those_of_a_video_that_is_known(template, base, deltas, first, cuts, how, number):
    plan = plan_of(template, base, deltas, first, cuts)
    fps = plan.info.average_rate * number
    if how == "fps" and fps > 1000:
        return
    words = {"factor": {"factor": number}, "slow": {"slow_motion": number}, "fps": {"fps": fps}, "none": {}}[how]
    specs = [ModelCatalog.default().get("websr-x2-s" if how == "none" else "rife")]
    pace = plan_pace(plan.info, specs, EnhanceOptions(**words))
    known = {"factor": {"factor": number}, "slow": {"factor": number, "is_slow": True}, "fps": {"fps": fps}, "none": {}}
    timeline = retime(plan, **known[how])
    ends = (*plan.pts[1:], plan.pts[-1] + plan.duration)
    moments = [
        moment
        for index, (begin, end) in enumerate(zip(plan.pts, ends, strict=True))
        for moment in pace.moments(index, begin, end, plan.pts[0])
    ]
    wanted = [moment for index in range(len(plan.segments)) for moment in timeline.moments(index)]
    unit = timeline.result.info.time_base
    assert [moment.pts * pace.time_base for moment in moments] == [moment.pts * unit for moment in wanted]
    assert [moment.left for moment in moments] == [moment.left for moment in wanted]
    last = len(plan.pts) - 1  # it is held: nothing follows
    inner = [(got.timestep, want.timestep) for got, want in zip(moments, wanted, strict=True) if got.left < last]
    assert all(got == want for got, want in inner)
    assert pace.rate == timeline.result.info.average_rate


# --- the whole way ----------------------------------------------------------------------------------------------------


def piped(data, model="websr-x2-s", sink=None, **words):
    sink = sink or io.BytesIO()
    report = enhance_pipe(io.BytesIO(data), sink, models=model, options=EnhanceOptions(**words))
    return report, sink.getvalue()


@pytest.mark.cluster
def test_frames_are_those_of_the_model_in_order(ray_session):
    data = y4m(count=11)
    report, result = piped(data, batch_size=2)
    head, _, _ = result.partition(b"\n")
    assert head == b"YUV4MPEG2 W96 H64 F25:1 I? A0:0 C444"
    frames = [frame.frame for frame, _ in opened(data).frames()]
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(np.stack(frames))
    got = np.stack([frame.frame for frame, _ in opened(result).frames()])
    assert np.abs(got.astype(int) - wanted).max() <= 2  # of YUV's rounding
    assert (report.frames, report.frames_inferred, report.frames_checked) == (11, 11, 11)
    assert report.videos[0].size_out == (96, 64)


@pytest.mark.cluster
def test_added_frames_another_size_and_sound(ray_session, tmp_path):
    report, result = piped(
        y4m("It C420jpeg", planes=[(1, 1), (2, 2), (2, 2)]), "rife", factor=3, height=16, deinterlace="off"
    )
    assert result.startswith(b"YUV4MPEG2 W24 H16 F75:1 I? A0:0 C420jpeg\n")
    assert report.frames == 18
    assert any("fields are enhanced as whole frames" in note for note in report.videos[0].notes)
    data = nut(tmp_path)
    report, result = piped(data, "rife", slow_motion=2)
    times = [time for _, time in packets(result, "video")]
    assert times == [Fraction(number, 25) for number in (0, 1, 2, 3, 4, 7, 10, 11, 12, 13)]
    assert packets(result, "audio") == []
    _, result = piped(data, "rife", factor=2)
    assert packets(result, "audio") == packets(data, "audio")


@pytest.mark.cluster
def test_what_is_read_waits_for_what_is_written(ray_session):
    """With two frames a batch, a slow reader is never more than the frames in flight behind, however long the video."""
    frame_bytes = 48 * 32 * 3 + 6
    lead = []

    class Source(io.BytesIO):
        def readinto(self, buffer):
            small = memoryview(buffer)[:frame_bytes]
            return super().readinto(small)

    class Sink(io.RawIOBase):
        count = 0

        def writable(self):
            return True

        def write(self, data):
            Sink.count += 1
            lead.append(source.tell() / frame_bytes - Sink.count)
            return len(data)

    source = Source(y4m(count=60))
    options = EnhanceOptions(batch_size=2)
    report = enhance_pipe(io.BufferedReader(source, 1), Sink(), models="websr-x2-s", options=options)
    assert report.frames == 60
    assert max(lead) <= 2 * (BATCHES_AHEAD + 2) + 2


@pytest.mark.cluster
def test_ends_that_are_no_ends(ray_session, tmp_path):
    sink = io.BytesIO()
    with pytest.raises(errors.VideoError, match="frame 5 is cut off"):
        piped(y4m()[:-7], sink=sink)
    assert len(decoded(sink.getvalue())) == COUNT - 1
    report, _ = piped(y4m()[:-7], allow_truncated=True)
    assert report.frames == COUNT - 1
    assert any("truncated input" in note for note in report.videos[0].notes)

    class Closed(io.RawIOBase):
        left = 3

        def writable(self):
            return True

        def write(self, data):
            Closed.left -= 1
            if Closed.left < 0:
                raise BrokenPipeError
            return len(data)

    for data in (y4m(), nut(tmp_path)):
        Closed.left = 3
        with pytest.raises(errors.VideoError, match="its reader has closed it before the end"):
            enhance_pipe(io.BytesIO(data), Closed(), models="websr-x2-s")
    save_model(tmp_path / "wrong.onnx", FAULTS["black"])
    with pytest.raises(errors.QualityError, match="wrong frames: frame "):
        piped(y4m(base=160), str(tmp_path / "wrong.onnx"))
    assert CHECKED_TOGETHER >= 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"start": 1}, "start of a video in a pipe. Cut it before the pipe: ffmpeg -ss"),
        ({"end": "f3"}, "end of a video"),
        ({"preview": True}, "preview of a video in a pipe"),
        ({"check": "strict"}, "check 'strict' of a video in a pipe; allowed: default or off"),
        ({"encoding": Encoding(codec="hevc")}, "an encoder for a video in a pipe"),
        ({"audio": "aac"}, "audio 'aac' of a video in a pipe; allowed: auto, copy or none"),
        ({"audio": "stretch", "slow_motion": 2}, "audio 'stretch'"),
        ({"deinterlace": "field"}, "deinterlace 'field' of a video in a pipe; allowed: auto or off"),
        ({"work_dir": "x"}, "work_dir of a video in a pipe"),
        ({"overwrite": True}, "overwrite of a video"),
    ],
)
def test_options_that_need_a_file_are_refused_at_once(words, message):
    options = EnhanceOptions(**words)
    source = io.BytesIO(y4m())
    with pytest.raises(errors.ConfigError, match=message):
        enhance_pipe(source, io.BytesIO(), models="rife", options=options)
    assert source.tell() == 0
    with pytest.raises(errors.ConfigError, match="standard input is interlaced; allowed: progressive video"):
        enhance_pipe(io.BytesIO(y4m("It C444")), io.BytesIO(), models="websr-x2-s")
    check_pipe_options(replace(EnhanceOptions(), encoding=Encoding(threads=4)))


def test_a_pipe_that_does_not_block_is_refused():
    """One without data for a moment would look ended."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    with open(read, "rb") as source, open(write, "wb"), pytest.raises(errors.ConfigError, match="does not block"):
        enhance_pipe(source, io.BytesIO(), models=["websr-x2-s"])
