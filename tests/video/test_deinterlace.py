"""Interlaced video: whatever the segments, the frames and times are those of one run of FFmpeg's filter."""

import itertools
from dataclasses import replace
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest

import genai_ray.video.reading.decode
from genai_ray import EnhanceOptions, errors
from genai_ray.enhance.plan.fields import plan_fields
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.plan.piece import parse_piece, take_piece
from genai_ray.types import Deinterlace, FieldOrder
from genai_ray.video import Encoding, Segment, decode_segment, describe_losses, plan_video
from genai_ray.video.colour import read_alpha, to_rgb
from genai_ray.video.reading.deinterlace import PictureFilter
from tests.video.clips import NUM_FRAMES, write
from tests.video.fields import write_fields
from tests.video.matrix import picture as smooth

VARIABLE = np.cumsum([1 + (i * 7) % 5 for i in range(NUM_FRAMES)]).tolist()
TOP = {"x264-params": "tff=1", "g": "12", "bf": "2"}


def flagged(order):
    def more(stream):
        stream.codec_context.field_order = order

    return more


CLIPS = {
    "mbaff": {"suffix": ".mp4", "options": TOP},
    "bottom": {"suffix": ".mkv", "options": TOP | {"x264-params": "bff=1:open-gop=1"}},
    "mpeg2": {"suffix": ".ts", "codec": "mpeg2video", "options": {"flags": "+ildct+ilme", "g": "8", "bf": "2"}},
    "variable": {"suffix": ".mkv", "options": TOP, "pts": VARIABLE, "rate": 100},
    "hdr": {
        "suffix": ".mkv",
        "codec": "prores_ks",
        "pix_fmt": "yuv422p10le",
        "options": {"flags": "+ildct"},
        "colour": (9, 1, 9, 16),
    },
    "alpha": {"suffix": ".mov", "codec": "prores_ks", "pix_fmt": "yuva444p10le", "options": {"flags": "+ildct"}},
    "odd": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv444p", "size": (97, 65), "more": flagged(3)},
    "packed": {"suffix": ".mov", "codec": "rawvideo", "pix_fmt": "uyvy422", "more": flagged(2)},
    "paff": None,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Every clip is made once, when a test first asks for it."""
    made = {}

    def find(name):
        if name not in made:
            recipe = dict(CLIPS[name] or {})
            path = tmp_path_factory.mktemp(name) / f"a{recipe.pop('suffix', '.mkv')}"
            made[name] = write(path, tracks=0, **recipe) if recipe else write_fields(path, ["fields"] * 12)
        return made[name]

    return find


def filtered(path, options=None):
    """Run FFmpeg's filter over a whole file, or no filter: give time, picture, and whether it was flagged."""
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        if options is None:
            return [(frame.time, frame, frame.interlaced_frame) for frame in box.decode(stream)]
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("bwdif", options), graph.add("buffersink")]
        graph.link_nodes(*nodes)
        graph.configure()
        made = []
        for frame in (*box.decode(stream), None):
            graph.push(frame)
            while True:
                try:
                    picture = graph.pull()
                except (av.BlockingIOError, av.EOFError):
                    break
                made.append((Fraction(picture.pts) * picture.time_base, picture, False))
        return made


def planned(path, how="frame", order=None, segment_frames=7):
    plan = plan_video(path, segment_frames=segment_frames)
    return plan_fields(plan, Deinterlace(how), order and FieldOrder(order), segment_frames=segment_frames)


def decoded(plan, segments=None, **options):
    return [frame for segment in segments or plan.segments for frame in decode_segment(plan, segment, **options)]


def check_same(frames, pictures, plan):
    assert len(frames) == len(pictures)
    for frame, (_, picture, _) in zip(frames, pictures, strict=True):
        assert np.array_equal(frame.frame, to_rgb(picture, plan.info.colour)), frame.index
        if plan.info.has_alpha:
            assert np.array_equal(frame.alpha, read_alpha(picture)), frame.index


@pytest.mark.parametrize("how", ["frame", "field"])
@pytest.mark.parametrize("name", CLIPS)
def test_segments_are_one_run_of_the_filter(name, how, clip):
    plan, (note,) = planned(clip(name), how)
    order = {"odd": "bff", "packed": "tff"}.get(name, "auto")
    pictures = filtered(clip(name), f"mode=send_{how}:parity={order}:deint=all")
    assert len(plan.segments) > 1
    check_same(decoded(plan), pictures, plan)
    cuts = (0, 3, 4, 5, 11, len(plan.pts))
    check_same(decoded(plan, [Segment(at, *pair) for at, pair in enumerate(itertools.pairwise(cuts))]), pictures, plan)
    times = [time * plan.info.time_base for time in plan.pts]
    last = len(times) - (how == "field")  # of the last field FFmpeg knows no duration
    assert times[:last] == [time for time, _, _ in pictures][:last]
    assert times[-1] + plan.duration * plan.info.time_base == (
        (whole := plan_video(clip(name))).pts[-1] + whole.duration
    ) * (whole.info.time_base)
    assert note.startswith("interlaced source")
    assert note.endswith({"frame": "one frame for each", "field": "one frame for each field"}[how])
    assert not plan.info.is_interlaced
    assert not [text for text in describe_losses(plan.info, Encoding(), (96, 64)) if "interlaced" in text]


def test_frames_that_are_not_flagged_stay_as_they_are(tmp_path):
    kinds = ["frame", "fields", "fields", "frame", "frame", "frame", "fields", "frame", "fields", "fields", "frame"]
    path = write_fields(tmp_path / "a.mkv", kinds)
    plan, _ = planned(path, "auto")
    stored = filtered(path)
    assert [is_flagged for _, _, is_flagged in stored] == [kind == "fields" for kind in kinds]
    every = filtered(path, "mode=send_frame:parity=auto:deint=all")
    wanted = [one if flag else two for one, two, flag in zip(every, stored, [f for _, _, f in stored], strict=True)]
    for start, stop in itertools.combinations(range(len(kinds) + 1), 2):
        frames = decoded(plan, [Segment(0, start, stop)])
        check_same(frames, wanted[start:stop], plan)
        assert [frame.is_deinterlaced for frame in frames] == [kind == "fields" for kind in kinds[start:stop]]


def test_progressive_video_costs_nothing(tmp_path, monkeypatch):
    plan = plan_video(write(tmp_path / "a.mp4", tracks=0, options={"g": "10"}), segment_frames=10)
    found, notes = plan_fields(plan, Deinterlace.AUTO, None, segment_frames=10)
    assert notes == ()
    assert (found.pts, found.segments, found.info) == (plan.pts, plan.segments, plan.info)
    counts = {}
    whole = genai_ray.video.reading.decode.decode_from

    def counted(video, start, **options):
        for frame in whole(video, start, **options):
            counts[video is found] = counts.get(video is found, 0) + 1
            yield frame

    monkeypatch.setattr(genai_ray.video.reading.decode, "decode_from", counted)
    for one, other in zip(decoded(plan), decoded(found), strict=True):
        assert np.array_equal(one.frame, other.frame)
    assert counts[True] == counts[False]


def test_field_order_is_what_is_asked_for(clip):
    plan, notes = planned(clip("mbaff"), "field", "bottom")
    assert notes[1] == "the stream says top field first; bottom was asked for"
    check_same(decoded(plan), filtered(clip("mbaff"), "mode=send_field:parity=bff:deint=all"), plan)
    right, (note,) = planned(clip("mbaff"), "field", "top")
    assert note == "interlaced source, top field first: deinterlaced by bwdif, one frame for each field"
    check_same(decoded(right), filtered(clip("mbaff"), "mode=send_field:parity=tff:deint=all"), plan)


def test_fields_in_the_right_order_move_forward(tmp_path):
    """A bar that moves by 2 pixels from field to field: woven, then found again at its places."""

    def bar(at):
        picture = np.full((64, 96, 3), 40, np.uint8)
        picture[:, at : at + 8] = 200
        return picture

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.field_order = 2
        for number in range(12):
            woven = bar(4 * number)
            woven[1::2] = bar(4 * number + 2)[1::2]
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(woven, format="rgb24").reformat(format="yuv444p")))
        sink.mux(stream.encode(None))

    def places(order):
        plan, _ = planned(path, "field", order)
        rows = [frame.frame[..., 1].astype(float).mean(axis=0) - 40 for frame in decoded(plan)]
        return [float((row * np.arange(96)).sum() / row.sum()) for row in rows]

    steps = np.diff(places(None))
    assert np.abs(steps[:-1] - 2).max() < 0.6  # the last field has no neighbour after it
    assert np.diff(places("bottom")).min() < -1
    plan, _ = planned(path, "auto")  # this codec does not flag its frames: the stream says it for all of them
    assert all(frame.is_deinterlaced for frame in decoded(plan))


def test_every_frame_is_filtered_if_the_user_says_so(tmp_path):
    path = write(tmp_path / "a.mkv", tracks=0)
    assert planned(path, "off") == (plan_video(path, segment_frames=7), ())
    plan, (note,) = planned(path, "frame")
    assert note == (
        "the source is not flagged as interlaced, taken for top field first: deinterlaced by bwdif all the same, "
        "one frame for each"
    )
    check_same(decoded(plan), filtered(path, "mode=send_frame:parity=tff:deint=all"), plan)
    plan, (note,) = planned(path, "field", "bottom")
    assert note.startswith("the source is not flagged as interlaced, bottom field first: ")
    check_same(decoded(plan), filtered(path, "mode=send_field:parity=bff:deint=all"), plan)


@pytest.mark.parametrize(
    ("places", "frames"),
    [
        ({"start": "f5", "end": "f9"}, range(10, 18)),
        ({"start": "f5", "duration": "f3"}, range(10, 16)),
        ({"start": "0.21"}, range(11, 80)),  # the second field of frame 5 is shown at 0.22 s
        ({"start": "0.2", "end": "0.31"}, range(10, 16)),  # the second field of frame 7 only after the end
        ({"end": "f40"}, range(80)),
    ],
)
def test_a_piece_sees_its_neighbours(places, frames, clip):
    whole, _ = planned(clip("mbaff"), "field")
    piece = parse_piece(places.get("start"), places.get("end"), places.get("duration"))
    plan, (note,) = take_piece(whole, piece, segment_frames=3)
    pictures = filtered(clip("mbaff"), "mode=send_field:parity=auto:deint=all")
    assert (plan.first, plan.stop) == (frames.start, frames.stop)
    check_same(decoded(plan), pictures[frames.start : frames.stop], plan)
    assert note.startswith(f"piece: frames {frames.start // 2} to {(frames.stop - 1) // 2} of 40, ")
    assert plan.from_zero().duration > 0


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"start": "f40"}, "start f40; allowed: up to f39: the video has 40 frames"),
        ({"end": "f41"}, "end f41; allowed: up to f40"),
        ({"start": "f39", "duration": "f2"}, "duration f2; allowed: up to f1"),
        ({"start": "2"}, "start 2 s; allowed: up to the last frame, f39 at 1.560 s"),
    ],
)
def test_places_count_stored_frames(places, words, clip):
    whole, _ = planned(clip("mbaff"), "field")
    piece = parse_piece(places.get("start"), places.get("end"), places.get("duration"))
    with pytest.raises(errors.ConfigError) as caught:
        take_piece(whole, piece, segment_frames=7)
    assert words in str(caught.value)


def test_times_keep_their_unit_if_halves_are_whole(tmp_path):
    plan, _ = planned(write(tmp_path / "a.mp4", tracks=0, options=TOP), "field")
    before = plan_video(plan.path).info
    assert (plan.info.time_base, plan.info.average_rate) == (before.time_base, 50)
    variable, _ = planned(write(tmp_path / "b.mkv", tracks=0, options=TOP, pts=VARIABLE, rate=100), "field")
    assert variable.info.time_base in (Fraction(1, 1000), Fraction(1, 2000))
    fine = replace(plan_video(plan.path), pts=tuple(range(40)), duration=1)
    fine = replace(fine, info=replace(fine.info, time_base=Fraction(1, 2**31 - 1)))
    with pytest.raises(errors.ConfigError, match="a time base up to 1/2147483647"):
        plan_fields(fine, Deinterlace.FIELD, None, segment_frames=7)


def test_a_file_that_ends_too_early_ends_like_a_whole_one(tmp_path):
    source = write(tmp_path / "a.ts", codec="mpeg2video", tracks=0, options=CLIPS["mpeg2"]["options"])
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    plan, _ = planned(source, "field")
    frames = decoded(plan, allow_truncated=True)
    pictures = filtered(source, "mode=send_field:parity=auto:deint=all")
    assert 0 < len(frames) < 2 * NUM_FRAMES
    check_same(frames, pictures[: len(frames)], plan)


def test_pictures_that_the_filter_does_not_take_are_refused(tmp_path):
    grey = write(tmp_path / "a.mkv", codec="ffv1", pix_fmt="gray12le", tracks=0, more=flagged(2))
    with pytest.raises(errors.VideoError, match=r"pixel format gray12le; allowed: .*bwdif.*Pass --deinterlace off"):
        planned(grey, "auto")
    small = write(tmp_path / "b.mkv", codec="ffv1", size=(16, 6), tracks=0, more=flagged(2))
    with pytest.raises(errors.VideoError, match=r"pictures of 16x6 in yuv420p; allowed: .*planes of 3 columns and 4"):
        planned(small, "auto")
    assert planned(small, "off")[0].deinterlacing is None
    with pytest.raises(
        errors.VideoError, match=r"a\.mkv: interlaced, and this build of PyAV lacks FFmpeg's filter odd"
    ):
        PictureFilter("a.mkv", (("odd", ""),), "yuv420p", (96, 64))


def test_single_fields_are_not_taken_for_frames(tmp_path):
    path = write(
        tmp_path / "a.mkv", codec="libx265", tracks=0, options={"x265-params": "interlace=tff:log-level=error"}
    )
    plan, (note,) = planned(path, "auto")
    assert note.startswith("not deinterlaced: each picture of this hevc stream is a single field. Weave them first:")
    assert plan.deinterlacing is None
    with pytest.raises(errors.VideoError, match=r"is a single field; allowed: frames that hold both.*ffmpeg -i"):
        planned(path, "field")


def test_a_format_that_the_filter_lacks_is_told_at_the_start(tmp_path):
    path = write(tmp_path / "a.mkv", codec="ffv1", pix_fmt="gray10le", tracks=0)
    plan, (note,) = planned(path, "auto")
    assert note == "no frame is deinterlaced, even if one is flagged: FFmpeg's bwdif does not take gray10le of 96x64"
    assert plan.deinterlacing is None
    assert len(decoded(plan)) == NUM_FRAMES
    with pytest.raises(errors.VideoError, match="pixel format gray10le"):
        planned(path, "frame")


def test_film_that_is_none_is_doubted(clip):
    _, notes = planned(clip("mbaff"), "ivtc")
    assert [note for note in notes if note.startswith("this does not look like telecined film: of ")] == [notes[-1]]
    assert "--deinterlace frame or field" in notes[-1]


FILM_RATE = Fraction(24000, 1001)


def run_filter(steps, pictures):
    graph = av.filter.Graph()
    buffer = "video_size=96x64:pix_fmt=yuv420p:time_base=1/30:frame_rate=30"
    graph.link_nodes(graph.add("buffer", buffer), *(graph.add(*step) for step in steps), graph.add("buffersink"))
    graph.configure()
    made = []
    for number, picture in enumerate((*pictures, None)):
        if picture is not None:
            picture.pts = number
        graph.push(picture)
        while True:
            try:
                made.append(graph.pull())
            except (av.BlockingIOError, av.EOFError):
                break
    return made


def write_telecined(path, *, left_out=0):
    """Write 16 frames of film in 20 of video, then 14 interlaced frames of video, then the film again."""

    def convert(rgb):
        return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")

    drawn = [np.ascontiguousarray(smooth(3 * number, 96, 64)[..., :3]) for number in range(16)]
    film = run_filter([("telecine", "pattern=23")], [convert(rgb) for rgb in drawn])
    # Squares that no two fields have in common stay combed.
    squares = np.random.default_rng(0).integers(0, 256, (28, 8, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    every_other_field = "'eq(mod(n,4),0)+eq(mod(n,4),3)'"
    weaving = [("separatefields",), ("select", every_other_field), ("weave",)]
    video = run_filter(weaving, [convert(rgb) for rgb in squares])
    rate = Fraction(30000, 1001)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.field_order = 2
        for number, picture in enumerate([*film, *video, *film][: 54 - left_out]):
            picture.pts, picture.time_base = number, 1 / rate
            sink.mux(stream.encode(picture))
        sink.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("left_out", [0, 1, 2, 3, 4])
def test_film_is_found_whatever_the_segments(left_out, tmp_path):
    path = write_telecined(tmp_path / "a.mkv", left_out=left_out)
    plan, (note,) = planned(path, "ivtc", segment_frames=6)
    assert note == "telecined film, top field first: its own frames by fieldmatch, bwdif and decimate, four of five"
    matched = run_filter([("fieldmatch", "order=tff")], [picture for _, picture, _ in filtered(path)])
    combed = [picture.interlaced_frame for picture in matched]
    assert any(combed)
    assert not all(combed)
    progressive = run_filter([("bwdif", "deint=all:mode=send_frame:parity=tff")], matched)
    chosen = [two if is_combed else one for one, two, is_combed in zip(matched, progressive, combed, strict=True)]
    pictures = [(None, picture, None) for picture in run_filter([("decimate",)], chosen)]
    check_same(decoded(plan), pictures, plan)
    count = len(pictures)
    for start, stop in [(0, 1), (3, 4), (3, 9), (4, 5), (7, 8), (8, 17), (21, 30), (count - 3, count)]:
        check_same(decoded(plan, [Segment(0, start, stop)]), pictures[start:stop], plan)
    times = [(time - plan.pts[0]) * plan.info.time_base for time in plan.pts]
    assert times == [number / FILM_RATE for number in range(count)]
    assert plan.info.average_rate == FILM_RATE


def test_frames_of_a_film_are_those_before_the_telecine(tmp_path):
    plan, _ = planned(write_telecined(tmp_path / "a.mkv"), "ivtc")
    frames = decoded(plan)
    for number, frame in enumerate(frames[:16]):
        assert np.abs(frame.frame.astype(int) - smooth(3 * number, 96, 64)[..., :3]).mean() < 3, number
    piece, (note,) = take_piece(plan, parse_piece("f10", None, "f20"), segment_frames=6)
    assert (piece.first, piece.stop) == (8, 24)
    assert note.startswith("piece: frames 10 to 28 of 54, ")
    for one, two in zip(decoded(piece), frames[8:24], strict=True):
        assert np.array_equal(one.frame, two.frame)


def test_film_needs_a_constant_rate_and_eight_bits(clip):
    with pytest.raises(errors.ConfigError, match=r"off a constant rate of .*; allowed: a constant rate.*--deinterlace"):
        planned(clip("variable"), "ivtc")
    with pytest.raises(errors.VideoError, match=r"pixel format yuv422p10le; allowed: .*fieldmatch and bwdif and deci"):
        planned(clip("hdr"), "ivtc")


def test_options_are_checked_before_a_video_is_opened():
    with pytest.raises(errors.ConfigError, match="field order 'top' with deinterlace 'off'"):
        check_models("websr-x2-s", EnhanceOptions(deinterlace="off", field_order="top"))
    with pytest.raises(errors.ConfigError, match="deinterlace='bob'; allowed: auto, off, frame, field, ivtc"):
        EnhanceOptions(deinterlace="bob")
    with pytest.raises(errors.ConfigError, match="field_order='tff'; allowed: top, bottom"):
        EnhanceOptions(field_order="tff")
    check_models("websr-x2-s", EnhanceOptions(deinterlace="field", field_order="bottom"))
