"""Five hundred clips of 1 s as one job; the published figures, and those of ten thousand, are measured by
``tests/benchmarks/many_clips.py``."""

import sys

import pytest

from tests.processes import ROOT


@pytest.mark.slow
@pytest.mark.longest  # it measures a speed, which means nothing beside other tests
def test_five_hundred_clips_are_nearly_as_fast_as_a_loop(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "benchmarks"), *sys.path])
    monkeypatch.setenv("RAY_ADDRESS", "local")
    from many_clips import measure

    figures = measure(500, 50, 64, 48)  # every clip is there and none failed, else it raises
    assert figures["ratio"] > 0.25, figures
    assert figures["driver_grew_mb"] < 25, figures
