"""The forecast of ``--dry-run`` against the run: goal: within 30 % on a quiet machine."""

import json
import subprocess
import tempfile
from pathlib import Path

from common import ROOT, genai_ray, keep

CASES = (("websr-x2-s",), ("websr-x2-l",), ("ffdnet", "--encoder-preset", "ultrafast"), ("rife", "--factor", "3"))


def seconds_of(key: str, *arguments: str | Path) -> float:
    """Run the command line; return a number of its JSON."""
    done = subprocess.run(
        genai_ray("enhance", *arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return float(json.loads(done.stdout)[key])


def main(clip: Path = ROOT / "samples" / "bigbuckbunny-360p.mp4") -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, *options in CASES:
            arguments = (clip, "-o", Path(folder, f"{model}.mp4"), "--model", model, *options)
            forecast_s = seconds_of("expected_s", *arguments, "--dry-run")
            figures[model] = {"forecast_s": forecast_s, "run_s": seconds_of("elapsed_s", *arguments)}
    rows = [
        (f"{model}: forecast {case['forecast_s']:.1f} s, run {case['run_s']:.1f} s; forecast / run", ratio)
        for model, case in figures.items()
        for ratio in [case["forecast_s"] / case["run_s"]]
    ]
    keep("forecast_error", {"clip": clip.name, "cases": figures}, rows)


if __name__ == "__main__":
    main()
