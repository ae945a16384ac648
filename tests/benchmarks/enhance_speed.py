"""``enhance`` against the plain script on a 60 s clip of 176x144, in turn; goal: at least 1.0 of its frame rate, start-up at most 12 s."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import CLIPS, MODELS, genai_ray, keep, median

RUNS = 3


def main(clip: Path = CLIPS / "iscc-demo.mkv") -> None:
    model = MODELS / "websr-anime4k-cnn-x2-l-rl.onnx"
    ours, plain, startup, elapsed = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(RUNS):
            command = genai_ray("enhance", clip, "-o", Path(folder, f"ours-{run}.mkv"), "--model", "websr-x2-l", "--json")
            report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours.append(report["fps"])
            startup.append(report["startup_s"])
            elapsed.append(report["elapsed_s"])
            rival = [
                sys.executable,
                str(Path(__file__).with_name("plain_script.py")),
                str(clip),
                str(Path(folder, f"plain-{run}.mkv")),
                str(model),
            ]
            plain.append(float(subprocess.run(rival, check=True, capture_output=True, text=True).stdout))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    keep(
        "enhance_speed",
        {"clip": clip.name, "fps": ours, "plain_fps": plain, "ratio": ratios, "startup_s": startup, "elapsed_s": elapsed},
        [
            ("enhance, frames/s", median(ours)),
            ("plain script, frames/s", median(plain)),
            ("ratio (goal 1.0)", median(ratios)),
            ("start-up to first decoded frame, s (goal 12 to the first encoded)", median(startup)),
        ],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
