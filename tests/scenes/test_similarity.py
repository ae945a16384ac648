"""Cuts are found in real footage, all of them and nothing else."""

import av
import numpy as np
import pytest

from genai_ray.scenes import SCENE_THRESHOLD, is_cut, thumbnail
from tests.enhance.moving import pan

CUTS_OF_BIKES = (29, 75, 136, 186, 241)
"""The last frame before each cut of bikes.mp4, found by eye."""


def cuts_of(path, step=1, threshold=SCENE_THRESHOLD):
    with av.open(str(path)) as box:
        small = [
            thumbnail(frame.to_ndarray(format="rgb24"))
            for index, frame in enumerate(box.decode(video=0))
            if index % step == 0
        ]
    return tuple(index * step for index in range(len(small) - 1) if is_cut(small[index], small[index + 1], threshold))


def test_the_cuts_of_a_street_scene_are_found(shared):
    assert cuts_of(shared / "clips" / "bikes.mp4") == CUTS_OF_BIKES
    assert cuts_of(shared / "clips" / "bikes.mp4", step=2) == (28, 74, 136, 186, 240)


@pytest.mark.parametrize("clip", ["bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_a_moving_camera_and_a_moving_face_are_no_cuts(shared, clip):
    assert cuts_of(shared / "clips" / clip) == ()


@pytest.mark.parametrize("size", [(96, 64), (31, 5), (1, 1), (640, 360)])
def test_any_size_and_depth_gives_the_same_answer(size):
    here, there = pan(2, size=size), pan(2, scene=1, size=size)
    for frames in (np.stack([*here, *there]), np.stack([*here, *there]).astype(np.uint16) * 257):
        small = [thumbnail(frame) for frame in frames]
        assert not is_cut(small[0], small[0], 1.0)
        assert not is_cut(small[0], small[1], SCENE_THRESHOLD)
        assert not is_cut(small[0], small[2], 0.0)
        if min(size) > 5:
            assert is_cut(small[1], small[2], SCENE_THRESHOLD)
    assert np.allclose(thumbnail(here[0]), thumbnail(here[0].astype(np.uint16) * 257))


def test_black_to_white_is_a_cut_and_black_to_black_is_none():
    black, white = thumbnail(np.zeros((64, 96, 3), np.uint8)), thumbnail(np.full((64, 96, 3), 255, np.uint8))
    assert is_cut(black, white, SCENE_THRESHOLD)
    assert not is_cut(black, black, SCENE_THRESHOLD)
