"""TransNetV2 finds transitions that are made of real clips here, and the same ones however a video is divided."""

import subprocess
from itertools import chain, pairwise

import numpy as np
import onnxruntime
import pytest

from genai_ray import ModelCatalog, find_scenes
from genai_ray.scenes import CutFinder, count_windows
from genai_ray.scenes.transnet import _windows
from genai_ray.video import Segment, decode_small, plan_source, plan_video
from tests.enhance.moving import frames_of, write_frames
from tests.scenes.test_similarity import CUTS_OF_BIKES

HARD, DISSOLVE, FADE = 35, (70, 86), (120, 136)
"""In the clip below: the last frame before a cut; first and one past the last frame of a dissolve and of a fade."""


def mix(first, second, share):
    """Blend two frames (H, W, 3)."""
    return np.rint(first * (1.0 - share) + second * share).astype(np.uint8)


def make_transitions(shared):
    """Four scenes of real footage, with a cut, a dissolve, and a fade through black between them."""
    _, street = frames_of(shared / "clips" / "bikes.mp4")
    _, film = frames_of(shared / "clips" / "bigbuckbunny.mp4")
    street, film = street[:, ::4, ::4], film[:, :: film.shape[1] // 68, :: film.shape[2] // 160][:, :68, :160]
    frames = [*street[80 : 80 + HARD + 1], *film[: DISSOLVE[1] - HARD - 1]]
    later = street[190:]
    start, stop = DISSOLVE
    for index in range(start, stop):
        frames[index] = mix(frames[index], later[index - start], (index - start + 1) / (stop - start + 1))
    frames += [*later[stop - start : stop - start + FADE[0] - stop]]
    half = (FADE[1] - FADE[0]) // 2
    black = np.zeros_like(frames[0])
    frames += [mix(frames[-1], black, (index + 1) / half) for index in range(half)]
    frames += [mix(black, film[90 + index], (index + 1) / half) for index in range(half)]
    frames += [*film[90 + half : 90 + half + 25]]
    return np.stack(frames)


@pytest.fixture(scope="module")
def transitions(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transitions")
    return write_frames(folder / "four scenes.mkv", make_transitions(shared), options={"g": "12"})


def published(path):
    """Cuts as the authors' own script finds them: all windows of the whole video, and the first frame of each run."""
    frames = np.stack(list(decode_small(plan := plan_video(path), Segment(0, 0, len(plan.pts)), (48, 27))))
    count = len(frames)
    padded = np.concatenate([frames[[0] * 25], frames, frames[[-1] * (25 + 50 - (count % 50 or 50))]])
    session = onnxruntime.InferenceSession(ModelCatalog.default().path("transnetv2"))
    found = [
        session.run(["output"], {"frames": padded[None, at : at + 100].astype(np.float32)})[0][0, 25:75]
        for at in range(0, len(padded) - 50, 50)
    ]
    is_cut = np.concatenate(found)[:count] > 0
    return [int(index) for index in np.flatnonzero(is_cut & ~np.insert(is_cut[:-1], 0, False)) if index < count - 1]


@pytest.mark.slow
def test_cuts_dissolves_and_fades_of_real_clips(transitions, shared):
    found = [scene.stop - 1 for scene in find_scenes(transitions)][:-1]
    hard, dissolve, *fade = found
    assert hard == HARD
    assert DISSOLVE[0] <= dissolve < DISSOLVE[1]
    assert 1 <= len(fade) <= 2  # what fades out, and what fades in
    assert all(FADE[0] - 2 <= index < FADE[1] for index in fade)
    assert found == published(transitions)
    plan = plan_video(transitions)
    with CutFinder(threads=1) as finder:
        for bounds in ((0, 36, 70, 101, len(plan.pts)), (0, 49, 50, 51, 150, len(plan.pts))):
            pieces = [list(finder.find(plan, *pair)) for pair in pairwise(bounds)]
            assert list(chain(*pieces)) == found, bounds
    street = find_scenes(shared / "clips" / "bikes.mp4")
    assert tuple(scene.stop - 1 for scene in street)[:-1] == CUTS_OF_BIKES
    assert published(shared / "clips" / "bikes.mp4") == list(CUTS_OF_BIKES)


def test_windows_are_those_that_are_published():
    """Of any length: 25 first frames more, last frames up to a whole window, a window every 50 frames."""
    for count in (1, 2, 49, 50, 51, 99, 100, 101, 150, 237):
        frames = np.arange(count * 6, dtype=np.uint8).reshape(count, 1, 2, 3)
        padded = np.concatenate([frames[[0] * 25], frames, frames[[-1] * (25 + 50 - (count % 50 or 50))]])
        windows = list(_windows(iter(frames), 25, count_windows(0, count)))
        assert len(windows) == (len(padded) - 50) // 50
        for number, window in enumerate(windows):
            assert np.array_equal(window, padded[50 * number : 50 * number + 100])
    assert list(_windows(iter(()), 25, 3)) == []


@pytest.mark.parametrize(("start", "stop", "count"), [(0, 1, 1), (0, 50, 1), (50, 100, 2), (51, 100, 1), (0, 128, 3)])
def test_a_range_needs_the_frame_before_it(start, stop, count):
    assert count_windows(start, stop) == count


@pytest.mark.parametrize("name", ["flip_rot90.mp4", "flip_hflip.mp4", "plain.mp4", "odd_rot.mp4", "f_264_422.mp4"])
def test_small_frames_are_those_that_ffmpeg_shows(shared, name):
    """Turned as players turn them; the network has learned upright pictures."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    path = shared / "cases" / "video" / name
    plan = plan_video(path)
    (small,) = decode_small(plan, Segment(0, 0, 1), (48, 27))
    assert (small.shape, small.dtype) == ((27, 48, 3), np.uint8)
    words = ["-i", path, "-frames:v", "1", "-vf", "scale=48:27:flags=bicubic", "-f", "rawvideo"]
    told = subprocess.run([ffmpeg, *words, "-pix_fmt", "rgb24", "-"], check=True, capture_output=True)
    shown = np.frombuffer(told.stdout, np.uint8).reshape(27, 48, 3)
    off, turned = (np.abs(one.astype(int) - shown).mean() for one in (small, np.rot90(small, 2)))
    assert off < 8  # FFmpeg turns pictures before it scales them
    assert turned > 3 * off


def test_small_frames_of_an_animation(shared):
    plan = plan_source(str(shared / "cases" / "video" / "anim.gif"))
    frames = list(decode_small(plan, Segment(0, 0, len(plan.pts)), (48, 27)))
    assert len(frames) == len(plan.pts) > 1
    assert {(frame.shape, frame.dtype) for frame in frames} == {((27, 48, 3), np.dtype(np.uint8))}
