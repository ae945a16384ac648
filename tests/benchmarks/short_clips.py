"""20 clips of 5 s as one job against the plain loop over them, in turn; goal: at least 0.95 of its frame rate.

short_clips.py [CLIP [RUNS]]: about 70 s a run on two quiet cores, half of it the plain loop's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import CLIPS, MODELS, genai_ray, keep, median, write_small

CLIPS_OF_JOB, SECONDS, SIZE = 20, 5, (128, 104)


def main(clip: Path = CLIPS / "iscc-demo.mkv", runs: int = 3) -> None:
    ours, plain = [], []
    with tempfile.TemporaryDirectory() as place:
        clips = Path(place, "clips")
        clips.mkdir()
        frames = write_small(clip, clips / "00.mkv", SECONDS, SIZE)
        for number in range(1, CLIPS_OF_JOB):
            (clips / f"{number:02d}.mkv").hardlink_to(clips / "00.mkv")
        for run in range(runs):
            for name in (out := Path(place, f"out-{run}"), plain_out := Path(place, f"plain-{run}")):
                name.mkdir()
            job = subprocess.run(
                genai_ray("enhance", clips, "-o", out, "--model", "websr-x2-l", "--json"),
                check=True,
                capture_output=True,
                text=True,
            )
            ours.append(json.loads(job.stdout)["fps"])
            rival = [
                sys.executable,
                str(Path(__file__).with_name("plain_loop.py")),
                str(clips),
                str(plain_out),
                str(MODELS / "websr-anime4k-cnn-x2-l-rl.onnx"),
            ]
            plain.append(frames * float(subprocess.run(rival, check=True, capture_output=True, text=True).stdout))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    keep(
        "short_clips",
        {
            "clip": clip.name,
            "size": SIZE,
            "clips": CLIPS_OF_JOB,
            "frames_of_each": frames,
            "fps": ours,
            "plain_fps": plain,
            "ratio": ratios,
        },
        [
            ("enhance, frames/s", median(ours)),
            ("plain loop, frames/s", median(plain)),
            ("ratio (goal 0.95)", median(ratios)),
        ],
    )


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((Path, int), sys.argv[1:], strict=False)))
