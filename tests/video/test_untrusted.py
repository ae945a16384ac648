"""Files that name other files or hosts are not read, unless that is meant; nothing that they name is opened."""

import os
import shutil
import socket

import av
import fsspec
import pytest

from genai_ray import errors
from genai_ray.video import (
    Encoding,
    SegmentWriter,
    check_container,
    check_result,
    decode_segment,
    describe_video,
    join_segments,
    plan_video,
)
from tests.video.clips import NUM_FRAMES, write

PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{}\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
MPD = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1.6S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" minBufferTime="PT1S">'
    '<Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("suffix", ["own", ".mp4", ".ts", ""])
@pytest.mark.parametrize(
    "kind", ["hls", "hls from a host", "hls in hls", "ffconcat", "ffconcat by name", "dash", "sdp"]
)
def test_a_file_that_names_others_is_refused_under_any_name(kind, suffix, tmp_path):
    """The pipe that it names is never opened: opening would wait for somebody who writes to it."""
    named = tmp_path / "named.ts"
    os.mkfifo(named)
    text, own = {
        "hls": (PLAYLIST.format(named), ".m3u8"),
        "hls from a host": (PLAYLIST.format(f"http://127.0.0.1:{free_port()}/a.ts"), ".m3u8"),
        "hls in hls": (f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{named}\n", ".m3u8"),
        "ffconcat": (f"ffconcat version 1.0\nfile {named}\n", ".ffconcat"),
        "ffconcat by name": ("ffconcat version 1.0\nfile named.ts\n", ".ffconcat"),
        "dash": (MPD.format(named), ".mpd"),
        "sdp": (SDP.format(free_port()), ".sdp"),
    }[kind]
    path = tmp_path / f"a{own if suffix == 'own' else suffix}"
    path.write_text(text)
    words = r"/a[.\w]*: a format that is not read; allowed: MP4, .*pass --any-format"
    if kind == "dash" or (kind.startswith("hls") and suffix != "own"):  # there FFmpeg itself knows no format
        words = r"/a[.\w]*: not a video"
    for read in (plan_video, lambda place: describe_video(str(place))):
        with pytest.raises(errors.VideoError, match=words):
            read(path)
    with pytest.raises(errors.VideoError, match="not a supported video"):
        check_container(path)
    with fsspec.open(f"memory://strangers/a{own}", "w") as sink:
        sink.write(text)
    with pytest.raises(errors.VideoError, match=r"a format that is not read|not a video"):
        plan_video(f"memory://strangers/a{own}")


def test_a_playlist_that_is_meant_is_read(tmp_path):
    write(tmp_path / "a.ts", tracks=0, options={"g": "10"})
    (tmp_path / "a.m3u8").write_text(PLAYLIST.format("a.ts"))
    plan = plan_video(tmp_path / "a.m3u8", segment_frames=10, any_format=True)
    frames = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    assert [frame.pts for frame in frames] == list(plan.pts)
    assert len(frames) == NUM_FRAMES


def test_sound_of_a_playlist_that_is_meant_is_kept(tmp_path):
    write(tmp_path / "a.ts", pts=range(6))
    (tmp_path / "a.m3u8").write_text(PLAYLIST.format("a.ts"))
    plan = plan_video(tmp_path / "a.m3u8", any_format=True)
    encoding = Encoding(preset="ultrafast")
    check_result(plan, (96, 64), encoding, ".mkv")
    with SegmentWriter(tmp_path / "0.nut", info=plan.info, size=(96, 64), encoding=encoding) as writer:
        for frame in decode_segment(plan, plan.segments[0]):
            writer.write(frame.frame, frame.pts)
    assert join_segments(plan, [tmp_path / "0.nut"], [6], tmp_path / "b.mkv") == ()
    with av.open(str(tmp_path / "b.mkv")) as box:
        assert [stream.type for stream in box.streams] == ["video", "audio"]


def test_a_name_that_looks_like_a_protocol_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plain.mkv", tracks=0, pts=range(6))
    for name in ("concat:a.mkv|b.mkv", "12:30 today.mkv", "http:clip.mkv", "pipe:0", "%03d.mkv"):
        shutil.copy("plain.mkv", name)
        assert len(plan_video(name).pts) == 6
