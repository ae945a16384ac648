"""Planted faults: none leaves a wrong frame that neither the checks nor the record find."""

import pytest

from genai_ray import ModelCache
from tests.caches import ending
from tests.enhance.moving import pan, write_frames
from tests.enhance.planted import AGAIN, KINDS, MENDED, NO_EFFECT, REFUSED, STORED, Planter, plant_all


@pytest.mark.slow
def test_no_planted_fault_passes(ray_session, tmp_path):
    clip = write_frames(tmp_path / "a.mkv", pan(10, size=(96, 64)))
    with ending(ModelCache(2_000_000_000, name="planted")) as cache:
        found = plant_all(Planter(clip, tmp_path, cache), dict.fromkeys(KINDS, 6), seed=1)
    assert not any(counts[NO_EFFECT] for counts in found.values()), found
    assert found["black frame"][MENDED] + found["black frame"][REFUSED] == 6
    assert found["bit flip between kill and resume"] == {STORED: 6}
    for kind in ("wrong model", "wrong precision"):
        assert found[kind] == {AGAIN: 6}, kind
