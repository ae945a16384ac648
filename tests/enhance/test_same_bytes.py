"""One worker, and four of which one is killed: the same bytes, whatever the encoder, and whatever a job does with times
and sound."""

import json
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest

from genai_ray import EnhanceOptions, enhance_videos, verify_video
from genai_ray.video import Encoding, plan_video
from tests.enhance.moving import frames_of
from tests.enhance.test_sound import heard, make
from tests.processes import killing
from tests.rays import ray_of, without_ray
from tests.session.test_pictures import SUNSET, save_style
from tests.session.test_vectors import save_style as save_vector
from tests.video.clips import write
from tests.video.test_deinterlace import TOP, write_telecined

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FAST = Encoding(preset="ultrafast")
ENCODINGS = {
    "a.mp4": Encoding(codec="libx264", preset="ultrafast"),
    "b.mov": Encoding(codec="libx265", preset="ultrafast"),
    "c.webm": Encoding(codec="libvpx-vp9", preset="8"),
    "d.mkv": Encoding(codec="ffv1"),
    "e.av1.mp4": Encoding(codec="libsvtav1", preset="12"),
    "f.prores.mov": Encoding(codec="prores_ks"),
}
PIECE = EnhanceOptions(
    encoding=FAST, segment_frames=6, start="0.5", end="f80", size="400x400", fit="pad", input_height=90
)
FIELDS = EnhanceOptions(
    encoding=FAST, segment_frames=7, deinterlace="field", start="0.22", end="f40", height=240, check="strict"
)
SOUND = EnhanceOptions(encoding=Encoding(preset="8"), segment_frames=4, start="0.1", end="1.1")
SLOW = EnhanceOptions(
    encoding=FAST, segment_frames=4, start="f2", end="f14", height=100, slow_motion=3, audio="stretch", check="strict"
)
FILM_FRAMES = 44
"""Of 54 of video: decimate drops one of five."""
FILM = EnhanceOptions(encoding=Encoding(preset="slow"), segment_frames=6, deinterlace="ivtc", height=480)
STYLE = EnhanceOptions(encoding=Encoding(preset="slow"), segment_frames=6, params={"style": SUNSET}, check="strict")
VECTOR = EnhanceOptions(encoding=FAST, segment_frames=6, params={"style": (0.5, 0, 0.25, 1, 0)}, check="strict")
SLOW_PTS = [0, 1, 2, 5, 6, 7, 8, 9, 12, *range(13, 36)]
JOBS = {
    name: ("plain.mkv", "websr-x2-s", EnhanceOptions(encoding=encoding, segment_frames=6, check="strict"), 60)
    for name, encoding in ENCODINGS.items()
} | {
    "piece.mp4": ("piece.mp4", "websr-x2-s", PIECE, 67),
    "fields.mp4": ("fields.mp4", "websr-x2-s", FIELDS, 69),
    "sound.webm": ("sound.mkv", "rife", SOUND, 50),
    "slow.mp4": ("a slow clip.mp4", "rife", SLOW, 36),
    "film.mp4": ("film.mkv", "websr-x2-s", FILM, FILM_FRAMES),
    "style.mp4": ("plain.mkv", "style.onnx", STYLE, 60),
    "vector.mp4": ("plain.mkv", "vector.onnx", VECTOR, 60),
}
"""By the name of its result: source, model, options, and how many frames it makes."""
TRIES = 5
"""Jobs of seconds may be over before the one who looks for the moment to kill has seen it."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    size, two = (320, 180), {"g": "12", "bf": "2"}
    write(folder / "plain.mkv", size=size, pts=list(range(60)), options=two)
    write(folder / "piece.mp4", size=size, pts=list(range(90)), options=two)
    write(folder / "fields.mp4", size=size, pts=list(range(45)), options=TOP)
    make(folder / "sound.mkv", "aac", "flac")
    write_telecined(folder / "film.mkv")
    save_style(folder / "style.onnx")
    save_vector(folder / "vector.onnx", [1, 5])
    write(folder / "a slow clip.mp4", pts=SLOW_PTS, options={"g": "6", "bf": "2"})
    return folder


def made(name, sources, folder, kills=0):
    """Make a result; with ``kills`` a worker is killed, once a segment is there and another one is being written. What
    is told of a file is checked, too: the file names its record."""
    source, model, options, frames = JOBS[name]
    output, work = folder / name, folder / f"{name}.genai-ray"
    model = sources / model if model.endswith(".onnx") else model
    for _ in range(TRIES):
        with (
            killing("ray::_run_", kills, lambda: any(work.glob("*.nut")) and any(work.glob("*.partial")))
            if kills
            else nullcontext([])
        ) as killed:
            report = enhance_videos(sources / source, output, models=model, options=replace(options, overwrite=True))
        assert report.frames == frames
        assert report.segments > 1
        if len(killed) == kills:
            return output
    raise AssertionError(f"{name}: no worker could be killed in time")


@pytest.fixture(scope="module")
def alone(sources, tmp_path_factory):
    """What one worker makes, in a folder; afterwards four work."""
    folder = tmp_path_factory.mktemp("alone")
    with without_ray():
        with ray_of(1):
            for name in JOBS:
                made(name, sources, folder)
        with ray_of(4):
            yield folder


@pytest.mark.parametrize("name", JOBS)
def test_workers_and_deaths_change_no_byte(alone, sources, tmp_path, name):
    output = made(name, sources, tmp_path, kills=1)
    assert output.read_bytes() == (alone / name).read_bytes()
    kept = {name}
    if JOBS[name][2].check == "strict":
        assert verify_video(output).failures == ()  # so the records are the same, too: the files name them
        kept.add(f"{name}.record.json")
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("name", ["fields.mp4", "slow.mp4"])
def test_segments_that_are_computed_again_are_those(alone, sources, name):
    assert verify_video(alone / name, sources / JOBS[name][0], sample="100%").passed


def test_slow_motion_has_its_times_and_its_sound(alone, sources):
    """A piece of a clip of variable rate, resized, slowed down with its sound."""
    output, source = alone / "slow.mp4", sources / "a slow clip.mp4"
    record = json.loads((alone / "slow.mp4.record.json").read_text())
    assert (record["options"]["slow_motion"], record["options"]["audio"]) == (3, "stretch")
    own = plan_video(source)
    bounds = [(time - own.pts[2]) * own.info.time_base for time in own.pts[2:15]]
    wanted = [3 * a + step * (b - a) for a, b in pairwise(bounds) for step in range(3)]
    times, frames = frames_of(output)
    assert (times, frames.shape[1]) == (wanted, 100)
    got, starts = heard(output)
    length = 3 * float(bounds[-1]) * 16000
    assert abs(got.shape[1] - length) <= 2048
    assert starts <= 0
