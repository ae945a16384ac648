"""``genai-ray scenes``: the list, the edit decision list, files of scenes, and what it refuses."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from genai_ray import errors, split_video
from genai_ray.enhance import name_scene_folder
from genai_ray.scenes import list_scenes
from genai_ray.video import plan_video
from tests.enhance.moving import frames_of, pan, write_frames
from tests.video.clips import write

NTSC = Fraction(30000, 1001)


def scenes_of(path, cuts):
    return list_scenes(plan_video(path), cuts)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """45 frames with a cut after frame 19."""
    frames = np.concatenate([pan(20, size=(160, 96)), pan(25, scene=1, size=(160, 96))])
    return write_frames(tmp_path_factory.mktemp("cut") / "a cut.mkv", frames, rate=NTSC)


@pytest.mark.slow
def test_a_cut_as_list_as_edl_and_as_files(clip, command, tmp_path):
    told = json.loads(command("scenes", clip, "--json").stdout)
    assert [(one["start"], one["stop"]) for one in told["scenes"]] == [(0, 20), (20, 45)]
    assert told["scenes"][1]["start_exact"] == "667/1000"  # Matroska's milliseconds
    assert told["frames"] == 45
    edl = command("scenes", clip, "--edl")
    assert edl.stdout.splitlines()[1] == "FCM: DROP FRAME"
    assert "002  AX       V     C        00:00:00;20 00:00:01;15 00:00:00;20 00:00:01;15" in edl.stdout
    done = command("scenes", clip, "--split", "-o", tmp_path / "scenes", "--codec", "ffv1", "--json")
    files = json.loads(done.stdout)["files"]
    assert [(one["path"], one["frames"]) for one in files] == [
        (str(tmp_path / "scenes" / "a cut-001.mkv"), 20),
        (str(tmp_path / "scenes" / "a cut-002.mkv"), 25),
    ]
    table = command("scenes", clip, "--probability", "0.999")
    assert len(table.stdout.splitlines()) in (2, 3)
    again = command("scenes", clip, "--split", "-o", tmp_path / "scenes")
    assert (again.returncode, "a cut-001.mkv exists" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.mp4"], "none.mp4: no such file"),
        (["{clip}", "--json", "--edl"], "--edl and --json; allowed: one of them"),
        (["{clip}", "--split", "--edl"], "--edl and --split; allowed: one of them"),
        (["{clip}", "-o", "there"], "--output, --codec or --crf without --split"),
        (["{clip}", "--crf", "20"], "--output, --codec or --crf without --split"),
        (["{clip}", "--timecode", "drop"], "--timecode without --edl"),
        (["{clip}", "--probability", "1"], "a probability of 1 for a cut; allowed: between 0 and 1"),
        (["{clip}", "--probability", "nan"], "a probability of nan for a cut"),
        (["{clip}", "--timecode", "pal"], "pal"),
    ],
)
def test_what_is_refused(clip, command, words, told):
    done = command("scenes", *(word.format(clip=clip) for word in words))
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert list(clip.parent.iterdir()) == [clip]


def test_the_usual_folder_is_named_after_the_video_alone():
    for path in ("a cut.mkv", "/x/a cut.mkv", "https://x.org/a cut.mkv?sig=1.2&b=/c.d"):
        assert name_scene_folder(path) == "a cut-scenes"
    assert name_scene_folder("what?.mkv") == "what?-scenes"  # a file may have this name


def test_files_of_scenes_have_exactly_their_frames_and_sound(tmp_path):
    """Scenes that begin at no key frame; together they are the video."""
    source = write(tmp_path / "a b.mp4", codec="libx264", size=(64, 48), pts=list(range(30)), tracks=1)
    _, frames = frames_of(source)
    told = []
    files = split_video(scenes_of(source, [6, 7, 20]), tmp_path / "out", on_file=told.append)
    assert list(files) == told
    assert [(file.path, file.frames) for file in files] == [
        (str(tmp_path / "out" / f"a b-00{number}.mp4"), count) for number, count in enumerate((7, 1, 13, 9), 1)
    ]
    made = [frames_of(file.path) for file in files]
    assert [len(shown) for _, shown in made] == [7, 1, 13, 9]
    assert all(times[0] == 0 for times, _ in made)
    off = np.abs(np.concatenate([shown for _, shown in made]).astype(int) - frames)
    assert off.mean() < 3  # encoded anew, at CRF 18
    assert all(
        np.abs(made[1][1][0].astype(int) - frames[index]).mean() >= np.abs(made[1][1][0].astype(int) - frames[7]).mean()
        for index in (6, 8)
    )
    with pytest.raises(errors.ConfigError, match=r"a b-001.mp4 exists"):
        split_video(scenes_of(source, [6]), tmp_path / "out")
    with pytest.raises(errors.ConfigError, match="a folder of this machine"):
        split_video(scenes_of(source, [6]), "s3://bucket/out")


def test_files_of_scenes_have_all_packets_of_sound_together(tmp_path):
    """Sound of 1.6 s beside pictures of 1.2 s, whose last scene is one frame."""
    source = write(tmp_path / "a.mkv", codec="libx264", size=(64, 48), pts=list(range(30)), tracks=1)
    files = split_video(scenes_of(source, [6, 7, 28]), tmp_path / "out")

    def sound_of(path):
        with av.open(str(path)) as box:
            return [bytes(packet) for packet in box.demux(box.streams.audio[0]) if packet.size and packet.pts >= 0]

    assert [packet for file in files for packet in sound_of(file.path)] == sound_of(source)
