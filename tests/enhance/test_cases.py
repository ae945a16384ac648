"""Files like those of public bug reports (../shared/cases/video, README there), enhanced as one job; each must give
what its row says."""

import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from genai_ray import EnhanceOptions, enhance_videos
from genai_ray.video import Encoding
from tests.video.identity import decode

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class LoadRequest:
    """What one file must give; what is left out here holds for every file."""

    suffix: str = ""
    """Of the result; of the file itself where results have it, else .mkv."""
    frames: int | None = None
    """Frames of the result; those that PyAV's decoder shows where it is none."""
    refused: str = ""
    """Words of the refusal; empty where there is none."""
    notes: tuple[str, ...] = ()
    """Words of notes that must be there; no others with "left out" may be."""
    compared: bool = True
    """Whether compare_media.py finds the result faithful."""
    codec: str = "h264"
    audio: str = "auto"
    is_encoded: bool = False
    """Whether its sound is encoded, so that it has as many samples but for a packet."""
    size: tuple[int, int] | None = None
    seconds: float | None = None
    """How long the file says it is."""


def want(**values):
    return LoadRequest(**values)


ALPHA = "alpha was left out: libx264 cannot store it"
SIZES = ("size_16x16.mp4", "size_1x1.mkv", "size_2x2.mp4", "size_4x4.mp4", "size_8192x16.mp4")
WANTED: dict[str, list[LoadRequest]] = {name: [want(compared=False)] for name in SIZES} | {
    # sound and subtitles
    "dts.mkv": [want(), want(suffix=".mp4"), want(suffix=".mov")],
    "pgs.mkv": [
        want(),
        want(suffix=".mp4", notes=("subtitle stream 2 was left out: mp4 cannot hold it (hdmv_pgs_subtitle)",)),
    ],
    "dvb.mkv": [
        want(),
        want(suffix=".mov", notes=("subtitle stream 2 was left out: mov cannot hold it (dvb_subtitle)",)),
    ],
    "amr.mov": [
        want(),
        want(suffix=".mkv"),
        want(suffix=".mp4", refused=".mp4 cannot hold audio stream 1 (amr_nb); allowed: .mkv or .mov", audio="copy"),
        want(suffix=".mp4", notes=("audio stream 1 (amr_nb, ",), is_encoded=True, compared=False),
    ],
    "adpcm.avi": [
        want(),
        want(suffix=".mp4", refused=".mp4 cannot hold audio stream 1 (adpcm_ima_wav); allowed: .mkv", audio="copy"),
        want(suffix=".mp4", notes=("audio stream 1 (adpcm_ima_wav, ",), is_encoded=True, compared=False),
    ],
    "pcm.avi": [want(), want(suffix=".mp4"), want(suffix=".mov")],
    "pcm.mkv": [want(), want(suffix=".mp4"), want(suffix=".mov")],
    "pcm2.mov": [want(), want(suffix=".mp4")],
    "flac.mkv": [
        want(),
        want(suffix=".mp4"),
        want(suffix=".mov", refused=".mov cannot hold audio stream 1 (flac); allowed: .mp4 or .mkv", audio="copy"),
        want(suffix=".mov", notes=("audio stream 1 (flac, ",), is_encoded=True, compared=False),
    ],
    "vorbis.mkv": [
        want(),
        want(suffix=".mov", refused=".mov cannot hold audio stream 1 (vorbis); allowed: .mp4 or .mkv", audio="copy"),
        want(suffix=".mov", notes=("audio stream 1 (vorbis, ",), is_encoded=True, compared=False),
    ],
    "live.webm": [
        want(),
        want(suffix=".mov", refused=".mov cannot hold audio stream 1 (opus); allowed: .mp4 or .mkv", audio="copy"),
        want(suffix=".mov", notes=("audio stream 1 (opus, ",), is_encoded=True, compared=False),
    ],
    "dupaudio.mkv": [
        want(),
        want(suffix=".mp4", notes=("of audio stream 1 were moved",)),
        want(suffix=".mov", notes=("of audio stream 1 were moved",)),
    ],
    "sub.mp4": [
        want(notes=("data stream 3 was left out",)),
        want(suffix=".mkv", notes=("subtitle stream 2 (mov_text) is", "data stream 3 was"), compared=False),
    ],
    "sub.mkv": [want(), want(suffix=".mp4", notes=("subtitle stream 2 (subrip) is converted to mov_text",))],
    # a packet is not a frame
    "paff.ts": [want(frames=24, suffix=".mp4", notes=("times begin at zero",)), want(frames=24)],
    "paff.mkv": [want(frames=24)],
    "nvop.avi": [want(frames=42)],
    "packed.avi": [want(frames=50)],
    "altref.webm": [want(frames=50)],
    "trimend.mov": [want(frames=25)],
    "dur10.mkv": [want(frames=50)],
    "dur10.flv": [want(frames=50)],
    "mvhd10.mp4": [want(frames=50)],
    "vfr.mkv": [want(frames=50, suffix=".mp4", notes=("frames share a time",), compared=False)],
    "fast.mp4": [
        want(frames=50),
        want(frames=50, suffix=".mkv", notes=("by less than a millisecond",), compared=False),
    ],
    "holdb.mp4": [want(frames=50, notes=("frames share a time",))],
    "cat.ts": [want(refused="times go back")],
    # what is shown is what is kept
    "late.ts": [
        want(
            suffix=".mp4",
            seconds=2.03,
            notes=("times begin at zero; in the source they begin at 50001.379 s",),
            compared=False,
        )
    ],
    "wrap.ts": [want(suffix=".mp4", seconds=2.02, notes=("times begin at zero",)), want()],
    "exif.mkv": [want(frames=10)],
    "exif.mov": [want(frames=10)],
    "ycgco.mkv": [want(notes=("YCgCo",), compared=False)],
    "apple.mov": [want(), want(suffix=".mp4")],
    "thumbfirst.mp4": [want(frames=50, size=(192, 128), notes=("video stream 0 was left out",), compared=False)],
    "twovideo.mp4": [want(notes=("video stream 2 was left out",))],
    "prog2.ts": [want(notes=("video stream 1 was left out",))],
    "tc.mov": [want(notes=("data stream 2 was left out",))],
    "apac.mov": [want(notes=("audio stream 2 was left out",), compared=False)],
    "base.mp4": [
        want(),
        want(codec="hevc"),
        want(codec="hevc", suffix=".mov"),
        want(suffix=".webm", codec="vp9", notes=("audio stream 1 (aac, ",), is_encoded=True, compared=False),
    ],
    # animations
    "f_anim.webp": [want(frames=10, compared=False)],
    "pal.apng": [want(compared=False)],
    # what no file can be made of
    "raw.h264": [want(refused="frames without a time. Remux the file first")],
    "size_1x7.mkv": [want(refused="the file is empty")],
    "f_f32.mkv": [want(refused="pixel format gbrpf32le")],
}
"""By file; a file without a row must give its frames, at their times, with its sound."""

WANTED |= {
    name: [want(notes=(ALPHA,), compared=False)]
    for name in ("anim.gif", "f_4444.mov", "f_cfhd.mov", "f_utrgba.avi", "png_rgba.mov")
}


def plan_rows(cases, folder):
    """Return (file, output, what it must give) for every file."""
    rows = []
    for path in sorted(path for path in cases.iterdir() if path.is_file()):
        for index, wanted in enumerate(WANTED.get(path.name, [LoadRequest()])):
            suffix = wanted.suffix or (path.suffix if path.suffix in (".mp4", ".mkv", ".mov") else ".mkv")
            rows.append((path, folder / f"{path.name}.{index}{suffix}", wanted))
    return rows


@pytest.fixture(scope="module")
def job(ray_session, tmp_path_factory):
    """All files as one job."""
    cases = Path(__file__).parents[2].parent / "shared" / "cases" / "video"
    if not cases.is_dir():
        pytest.skip("../shared/cases/video is not here")
    folder = tmp_path_factory.mktemp("cases")
    rows = plan_rows(cases, folder)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "output", "codec", "preset", "audio"])
        writer.writerows(
            (path, output, row.codec, "8" if row.codec == "vp9" else "ultrafast", row.audio)
            for path, output, row in rows
        )
    report = enhance_videos(
        folder / "rows.csv", folder, models="websr-x2-s", options=EnhanceOptions(encoding=Encoding())
    )
    return rows, {Path(video.output).name: video for video in report.videos}


def sounds_of(path):
    """Return the bytes of every track of sound that a decoder is there for; without the header of 7 bytes that AAC has
    in a transport stream."""
    with av.open(str(path)) as box:
        found = {stream.index: b"" for stream in box.streams.audio if stream.codec_context is not None}
        for packet in (
            (packet for packet in box.demux([box.streams[index] for index in found]) if packet.size) if found else ()
        ):
            is_adts = (
                box.format.name in ("mpegts", "nut")
                and bytes(packet)[:1] == b"\xff"
                and packet.stream.codec_context.name == "aac"
            )
            found[packet.stream_index] += bytes(packet)[7 if is_adts else 0 :]
        return list(found.values())


def lengths_of(path):
    """Return how many seconds of sound each track has."""
    with av.open(str(path)) as box:
        tracks = [stream.index for stream in box.streams.audio if stream.codec_context is not None]
    lengths = []
    for index in tracks:
        with av.open(str(path)) as box:
            lengths.append(sum(frame.samples / frame.sample_rate for frame in box.decode(box.streams[index])))
    return lengths


def find_faults(path, output, row, report):
    """Compare what a file gave with what it must give; a list of sentences, empty where all is well."""
    if row.refused:
        return (
            []
            if report.status == "failed" and row.refused in str(report.error)
            else [f"not refused for {row.refused!r}: {report.status} {report.error}"]
        )
    if report.status == "failed":
        return [f"{report.error_class}: {report.error}"]
    faults = [
        f"no note of {words!r} in {report.notes}"
        for words in row.notes
        if not any(words in note for note in report.notes)
    ]
    faults += [
        f"note {note!r}"
        for note in report.notes
        if "left out" in note and not any(words in note for words in row.notes)
    ]
    shown = row.frames or len(decode(path))
    frames = decode(output)
    if not shown == len(frames) == report.frames:
        faults.append(f"{len(frames)} frames, {report.frames} in the report, not {shown}")
    if row.is_encoded:
        faults += [
            f"{after:.3f} s of sound, not {before:.3f}"
            for before, after in zip(lengths_of(path), lengths_of(output), strict=True)
            if not -0.001 <= after - before <= 0.13  # an AAC packet of 8 kHz
        ]
    elif sounds_of(path) != sounds_of(output):
        faults.append("the sound is another one")
    with av.open(str(output)) as box:
        codec = box.streams.video[0].codec_context
        if row.size is not None and (codec.width, codec.height) != row.size:
            faults.append(f"{codec.width}x{codec.height}, not {row.size}")
        if row.codec == "hevc" and output.suffix != ".mkv" and codec.codec_tag != "hvc1":
            faults.append(f"sample entry {codec.codec_tag}, not hvc1")
        if int(codec.colorspace) not in (1, 2, 5, 6, 9):
            faults.append(f"matrix {int(codec.colorspace)} of {codec.pix_fmt}")
        if row.seconds is not None and abs(box.duration / av.time_base - row.seconds) > 0.05:
            faults.append(f"{box.duration / av.time_base} s, not {row.seconds}")
    return faults


def test_every_file_gives_what_it_must(job):
    rows, reports = job
    assert len({path for path, _, _ in rows}) > 120
    found = {output.name: find_faults(path, output, row, reports[output.name]) for path, output, row in rows}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_every_frame_of_every_file_passes_the_checks(job):
    _, reports = job
    done = [video for video in reports.values() if video.status == "done"]
    assert sum(video.segments_recomputed + video.segments_failed for video in done) == 0
    unchecked = {Path(video.source).name for video in done if video.frames_checked < video.frames}
    assert unchecked == {"size_1x1.mkv", "size_2x2.mp4", "size_4x4.mp4"}


def test_metadata_of_a_phone_are_there(job):
    rows, _ = job
    for output in (output for path, output, _ in rows if path.name == "apple.mov"):
        with av.open(str(output)) as box:
            assert {key: box.metadata.get(key) for key in ("com.apple.quicktime.make",)} == {
                "com.apple.quicktime.make": "Apple"
            }


PARDONED = (
    "START",
    "language None -> und",
    "language und -> None",
    "disposition 0 -> 1",
    "metadata lost: ['software']",
    "title",
    "subtitle",
)
"""What compare_media.py says of every MP4 that FFmpeg makes, and what notes tell."""


@pytest.mark.longest
def test_results_are_faithful_by_two_other_readers(job):
    pytest.importorskip("imageio_ffmpeg")
    rows, _ = job
    tool = Path(__file__).parents[2].parent / "shared" / "acceptance" / "compare_media.py"
    if not tool.is_file():
        pytest.skip("../shared/acceptance is not here")
    compared = [
        (path, output) for path, output, row in rows if row.compared and not row.refused and path.name in WANTED
    ]

    def compare(pair):
        run = subprocess.run(
            [sys.executable, str(tool), *map(str, pair)], capture_output=True, text=True, check=False, timeout=60
        )
        said = run.stdout.partition("FAULT ")[2].strip() or run.stderr[-300:]
        return [fault for fault in said.split("; ") if fault and not fault.startswith(PARDONED)]

    with ThreadPoolExecutor(2) as pool:
        faults = dict(zip([output.name for _, output in compared], pool.map(compare, compared), strict=True))
    assert {name: words for name, words in faults.items() if words} == {}
