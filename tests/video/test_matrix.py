"""Every clip of matrix.yaml: segments equal a sequential decode, and the identity changes nothing that can be kept."""

import functools
import itertools
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from genai_ray.video import Encoding, Segment, decode_segment, describe_losses, plan_video
from genai_ray.video.colour import read_alpha, to_rgb
from genai_ray.video.info import main_stream
from genai_ray.video.reading.packets import Kind, PacketReader
from tests.video.identity import compare, decode, identity
from tests.video.matrix import CLIPS, NUM_FRAMES, TIMES, make

DECODERS = {"vp8-webm-alpha": "libvpx", "vp9-webm-alpha": "libvpx-vp9"}
LOSSLESS = {
    8: Encoding(codec="h264", preset="ultrafast", crf=0),
    10: Encoding(codec="h264", preset="ultrafast", options={"x264-params": "qp=0"}),
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Every clip is made once, when a test first asks for it."""
    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


def sequential(name, path):
    """Frames and times of one decoder from the first packet to the last; AVI's made-up times of reordered frames are
    put in order."""
    frames = decode(path, DECODERS.get(name))
    times = [frame.pts for frame in frames]
    return frames, sorted(times) if name == "h264-avi-b-frames" else times


def check_segments(name, path, counts):
    frames, times = sequential(name, path)
    plan = plan_video(path)
    colour = plan.info.colour
    whole = [(to_rgb(frame, colour), read_alpha(frame) if plan.info.has_alpha else None) for frame in frames]
    assert len(frames) == NUM_FRAMES
    assert plan.truncated is None
    assert list(plan.pts) == times
    for number in counts:
        planned = plan_video(path, segment_frames=-(-NUM_FRAMES // number)).segments
        assert [frame for segment in planned for frame in range(segment.start, segment.stop)] == list(range(NUM_FRAMES))
        cuts = [
            NUM_FRAMES * index // number for index in range(number + 1)
        ]  # wherever they fall; the planner keeps to key frames, and makes fewer
        evenly = [Segment(index, start, stop) for index, (start, stop) in enumerate(itertools.pairwise(cuts))]
        got = [frame for segment in evenly for frame in decode_segment(plan, segment)]
        assert [frame.pts for frame in got] == times
        assert [frame.index for frame in got] == list(range(NUM_FRAMES))
        for frame, (rgb, alpha) in zip(got, whole, strict=True):
            assert np.array_equal(frame.frame, rgb)
            assert (frame.alpha is None) == (alpha is None)
            assert alpha is None or np.array_equal(frame.alpha, alpha)


@pytest.mark.parametrize("name", CLIPS)
def test_segments_together_are_the_sequential_decode(name, clip):
    check_segments(name, clip(name), (3, 16))


@pytest.mark.parametrize("name", CLIPS)
def test_packets_of_ordinary_files_tell_what_is_shown(name, clip):
    """Planning them costs no decoding."""
    with av.open(str(clip(name))) as box:
        reader = PacketReader(main_stream(box))
        assert all(reader.read(bytes(packet)) is Kind.FRAME for packet in box.demux(main_stream(box)) if packet.size)


@pytest.mark.slow
@pytest.mark.longest  # three and sixteen segments are tried in every run
@pytest.mark.parametrize("name", CLIPS)
def test_any_number_of_segments_is_the_sequential_decode(name, clip):
    check_segments(name, clip(name), range(1, 17))


def packets_of(path, kind):
    """Packets of every stream of a kind, without the 7 bytes (ADTS) that a transport stream puts before AAC; and when
    each stream starts."""
    with av.open(str(path)) as box:
        streams = [stream for stream in box.streams if stream.type == kind]
        found = {stream.index: [] for stream in streams}
        starts = {}
        for packet in box.demux(streams) if streams else ():
            if packet.size:
                is_adts = box.format.name == "mpegts" and packet.stream.codec_context.name == "aac"
                found[packet.stream_index].append(bytes(packet)[7 if is_adts else 0 :])
                starts.setdefault(packet.stream_index, packet.pts * packet.time_base)
    return list(found.values()), list(starts.values())


def check_tags(info, result, path):
    assert (result.width, result.height) == (info.width, info.height)
    assert result.rotation == info.rotation
    tags = [(colour.matrix, colour.range, colour.primaries, colour.transfer) for colour in (info.colour, result.colour)]
    assert tags[0] == tags[1], path
    assert result.bit_depth == min(info.bit_depth, 10)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("name", CLIPS)
def test_the_identity_keeps_pictures_times_tags_and_sound(name, suffix, clip, tmp_path, record_property):
    source, output = clip(name), tmp_path / f"b{suffix}"
    encoding = (
        Encoding(codec="ffv1") if suffix == ".mkv" else LOSSLESS[10 if plan_video(source).info.bit_depth > 8 else 8]
    )
    plan, notes = identity(source, output, encoding, segment_frames=13)
    info, result = plan.info, plan_video(output)
    losses = [*describe_losses(info, encoding, (info.width, info.height)), *notes]
    wanted = CLIPS[name].get("left_out", {}).get(suffix, [])
    unsaid = [word for word in wanted if not any(word in note for note in losses)]
    unwanted = [note for note in losses if not any(word in note for word in wanted)]
    assert (unsaid, unwanted) == ([], [])
    check_tags(info, result.info, output)
    assert result.info.sample_aspect_ratio == (1 if "aspect" in wanted else info.sample_aspect_ratio)
    check_times(plan, result, suffix)
    check_sound(source, output, plan, result)
    check_pictures(name, source, output, plan, record_property)


def check_times(plan, result, suffix):
    """MP4 has every time, and begins at zero when the source's are a clock's; Matroska's are whole milliseconds, the
    nearest."""
    before = [time * plan.info.time_base for time in plan.pts]
    after = [time * result.info.time_base for time in result.pts]
    if suffix == ".mkv":
        before = [Fraction(math.floor(time * 1000 + Fraction(1, 2)), 1000) for time in before]
    assert [time - before[0] for time in before] == [time - after[0] for time in after]
    _, starts = packets_of(plan.path, "audio")
    # Matroska has no times below zero, where AAC of MP4 starts: everything moves by that.
    shifts = (
        (0, -min([0, *starts]))
        if suffix == ".mkv"
        else (-min([before[0], *starts]),)
        if plan.path.endswith((".ts", ".mpg"))
        else (0,)
    )
    assert min(abs(after[0] - before[0] - shift) for shift in shifts) <= (Fraction(1, 1000) if suffix == ".mkv" else 0)


def check_sound(source, output, plan, result):
    (before, starts), (after, new_starts) = packets_of(source, "audio"), packets_of(output, "audio")
    assert after == before
    for a, b in zip(starts, new_starts, strict=True):
        assert abs((a - plan.pts[0] * plan.info.time_base) - (b - result.pts[0] * result.info.time_base)) <= Fraction(
            2, 1000
        )


def check_pictures(name, source, output, plan, record_property):
    before, after = decode(source, DECODERS.get(name)), decode(output)
    assert len(before) == len(after) == NUM_FRAMES
    kept = before[0].format.name.replace("yuvj", "yuv")
    if after[0].format.name.replace("yuvj", "yuv") != kept or before[0].format.is_rgb:
        return  # stored otherwise, as the notes say; encoders' own tests look at those
    shares, differs, errors = zip(
        *(compare(a, b, plan.info.colour) for a, b in zip(before, after, strict=True)), strict=True
    )
    record_property("share_outside_rgb", float(np.mean(shares)))
    assert np.mean(shares) < 0.01
    assert max(differs) == 0
    peak = 2**plan.info.bit_depth - 1
    assert 10 * np.log10(peak**2 / max(np.mean(errors), 1e-9)) >= 60


def test_the_matrix_has_what_it_should():
    assert len(CLIPS) >= 24
    recipes = list(CLIPS.values())
    assert {Path(recipe["file"]).suffix for recipe in recipes} >= {
        ".mp4",
        ".mkv",
        ".webm",
        ".avi",
        ".mov",
        ".mpg",
        ".ts",
    }
    codecs = {recipe["codec"] for recipe in recipes}
    assert codecs >= {
        "libx264",
        "libx265",
        "libvpx",
        "libvpx-vp9",
        "libsvtav1",
        "mpeg2video",
        "mpeg4",
        "prores_ks",
        "ffv1",
    }
    assert set(TIMES) == {recipe.get("times", "steady") for recipe in recipes}
