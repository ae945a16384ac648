"""Where times of a result begin, what it says of itself, and what Apple's players need: the container's side of what is
shown and kept."""

from fractions import Fraction

import av
import pytest

from genai_ray.video import Encoding, plan_video
from genai_ray.video.joining.metadata import read_metadata
from tests.video.clips import write
from tests.video.identity import identity

FAST = Encoding(preset="ultrafast")


def remux(source, target, *, late_s=0, words=None, tracks=None, options=None):
    """Copy a clip, its times later, with other words."""
    with av.open(str(source)) as box, av.open(str(target), "w", options=options or {}) as sink:
        copies = {stream.index: sink.add_stream_from_template(stream) for stream in box.streams}
        sink.metadata.update(words or {})
        if late_s:
            sink.set_chapters(
                [{"id": 1, "start": late_s, "end": late_s + 1, "time_base": Fraction(1), "metadata": {"title": "One"}}]
            )
        for index, own in (tracks or {}).items():
            copies[index].metadata.update(own)
        for packet in box.demux():
            if packet.size:
                units = round(late_s / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts + units,
                    packet.dts + units,
                    copies[packet.stream_index],
                )
                sink.mux_one(packet)
    return target


def starts(path):
    """Return when picture and sound begin, and how long the file says it is, in seconds."""
    with av.open(str(path)) as box:
        firsts = {}
        for packet in box.demux():
            if packet.size and packet.pts is not None:
                firsts[packet.stream.type] = min(
                    packet.pts * packet.time_base, firsts.get(packet.stream.type, packet.pts * packet.time_base)
                )
        return firsts["video"], firsts["audio"], box.duration / av.time_base


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(("source", "late_s"), [("a.ts", 0), ("a.ts", 50_000), ("a.mkv", 50_000)])
def test_mp4_begins_at_zero_if_the_sources_times_are_a_clocks(source, late_s, suffix, tmp_path):
    clip = remux(write(tmp_path / "plain.mp4"), tmp_path / source, late_s=late_s)
    plan, notes = identity(clip, tmp_path / f"b{suffix}", FAST)
    (picture, sound, _), (new_picture, new_sound, seconds) = starts(clip), starts(tmp_path / f"b{suffix}")
    assert min(picture, sound) > max(late_s - 1, 0)
    assert 0 <= min(new_picture, new_sound) < 0.001
    assert abs((picture - sound) - (new_picture - new_sound)) < 0.001
    assert 1.6 < seconds < 2.2
    result = plan_video(tmp_path / f"b{suffix}")
    assert [(time - result.pts[0]) * result.info.time_base for time in result.pts] == [
        (time - plan.pts[0]) * plan.info.time_base for time in plan.pts
    ]
    assert any("times begin at zero; in the source they begin at" in note for note in notes)
    if late_s and clip.suffix == ".mkv":
        with av.open(str(tmp_path / f"b{suffix}")) as box:
            assert [chapter["start"] * chapter["time_base"] for chapter in box.chapters()] == [
                pytest.approx(0, abs=0.1)
            ]


APPLE = {
    "com.apple.quicktime.location.ISO6709": "+48.1+011.5/",
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.creationdate": "2020-01-02T03:04:05+0100",
}


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_what_a_phone_writes_of_a_video_is_kept(suffix, tmp_path):
    clip = remux(
        write(tmp_path / "plain.mp4"), tmp_path / "a.mov", words=APPLE, options={"movflags": "use_metadata_tags"}
    )
    _, notes = identity(clip, tmp_path / f"b{suffix}", FAST)
    with av.open(str(tmp_path / f"b{suffix}")) as box:
        kept = {key.lower(): value for key, value in box.metadata.items()}
    assert {key: kept.get(key.lower()) for key in APPLE} == APPLE
    assert [note for note in notes if "metadata" in note] == []


def test_metadata_that_a_container_has_no_place_for_are_said(tmp_path):
    clip = remux(
        write(tmp_path / "plain.mp4"),
        tmp_path / "a.mkv",
        words={"title": "A", "director": "B"},
        tracks={1: {"language": "en-GB"}},
    )
    _, notes = identity(clip, tmp_path / "b.mp4", FAST)
    assert "metadata DIRECTOR was left out: mp4 cannot hold it" in notes
    assert "language 'en-GB' of audio stream 1 was left out: mp4 cannot hold it" in notes
    assert not any("title" in note for note in notes)
    assert identity(clip, tmp_path / "b.mkv", FAST)[1] == ()


def test_titles_and_languages_of_tracks_stay_in_any_container(tmp_path):
    clip = remux(
        write(tmp_path / "plain.mp4", tracks=2),
        tmp_path / "a.mkv",
        tracks={0: {"title": "Film"}, 1: {"title": "Kommentar", "language": "jpn"}},
    )
    path = clip
    for name in ("b.mp4", "c.mp4", "d.mov", "e.mkv"):
        _, notes = identity(path, tmp_path / name, FAST)
        path = tmp_path / name
        assert [note for note in notes if "title" in note or "language" in note] == []
        with av.open(str(path)) as box:
            assert read_metadata(box.streams.video[0])["title"] == "Film"
            assert [read_metadata(stream).get("title") for stream in box.streams.audio] == ["Kommentar", None]
            assert box.streams.audio[0].metadata["language"] == "jpn"
            assert box.streams.audio[0].metadata["title" if path.suffix == ".mkv" else "name"] == "Kommentar"


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_hevc_is_tagged_as_apples_players_know_it(suffix, tmp_path):
    clip = write(tmp_path / "a.mkv", pts=list(range(5)), tracks=0)
    identity(clip, tmp_path / f"b{suffix}", Encoding(codec="hevc", preset="ultrafast"))
    with av.open(str(tmp_path / f"b{suffix}")) as box:
        assert box.streams.video[0].codec_context.codec_tag == "hvc1"
        assert len(list(box.decode(video=0))) == 5


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_frames_within_a_millisecond_keep_order_in_matroska(suffix, tmp_path):
    pts = [0, 1, 2, 3, 4, 90, 91, 92, 8000, 16000]
    clip = write(tmp_path / "a.mp4", rate=90_000, pts=pts, tracks=0)
    _, notes = identity(clip, tmp_path / f"b{suffix}", FAST if suffix == ".mkv" else Encoding(preset="8"))
    with av.open(str(tmp_path / f"b{suffix}")) as box:
        times = [round(frame.pts * frame.time_base * 1000) for frame in box.decode(video=0)]
    assert times == [0, 1, 2, 3, 4, 5, 6, 7, 89, 178]
    assert any("by less than a millisecond" in note for note in notes)
