"""From ``genai-ray enhance`` to the first encoded frame: when each step is reached, in milliseconds after the command.

first_seconds.py [RUNS [PYTHON]]: 3 runs, about 10 s each on two quiet cores. PYTHON is that of another checkout, whose
jobs run in turn with those of this one; without it, what was measured of another one before is kept.
"""

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, genai_ray, keep, median
from watching import run_watched

CLIP = ROOT / "samples" / "bigbuckbunny-360p.mp4"
FRAMES = 32
MODEL = "websr-x2-s"
WATCHED = {
    "genai_ray.cli.job": [["run_job", "begin", "command_line"]],
    "genai_ray.enhance.job.job": [["enhance_videos", "begin", "imports"]],
    "genai_ray.enhance.job.clip_plan": [["examine_clip", "end", "plan"]],
    "genai_ray.cluster.runtime.connect": [["connect", "end", "ray"]],
    "genai_ray.cluster.cache.actor": [["CacheActor.__init__", "end", "cache_actor"]],
    "genai_ray.cluster.session_actor": [
        ["SessionActor.__init__", "end", "session_actor"],
        ["SessionActor.load", "end", "warm_up"],
    ],
    "genai_ray.session.session": [["InferenceSession.__init__", "end", "session"]],
    "genai_ray.enhance.job.steps": [["run_segment", "begin", "segment_task"]],
    "genai_ray.video.source": [["decode_source", "first", "first_decoded"]],
    "genai_ray.enhance.segment.chain": [["compose_results", "first", "first_result"]],
    "genai_ray.video.encoding.encode": [["SegmentWriter.write", "end", "first_encoded"]],
}
STEPS = {
    "interpreter": "Python runs",
    "command_line": "the command line is parsed",
    "imports": "`genai_ray.enhance` is imported",
    "plan": "the clip is planned",
    "ray": "Ray runs, and this process is connected",
    "cache_actor": "the process of the cache has its actor",
    "session_actor": "the process of the model has its actor",
    "session": "its session is open",
    "warm_up": "it is warm",
    "segment_task": "the task of the first segment begins",
    "first_decoded": "it has decoded the first frame",
    "first_result": "it has the first frame from the model",
    "first_encoded": "**it has encoded the first frame**",
    "end": "the command has ended",
}


def run_job(python: str, folder: Path) -> dict[str, float]:
    """Run one job; return when each step was first reached in ms, and CPU seconds: until the last step, and in all."""
    words = ("--overwrite", "--model", MODEL, "--duration", f"f{FRAMES}", "--quiet")
    command = genai_ray("enhance", CLIP, "--output", folder / "out.mp4", *words, python=python)
    run = run_watched(command, WATCHED, until="first_encoded")
    reached = {name: run.first(name) or 0.0 for name in STEPS}
    ended = {"end": 1000 * (run.ended_at - run.began_at)}
    return reached | ended | {"cpu_s": run.cpu_s_then, "cpu_s_in_all": sum(run.cpu_s.values())}


def main(runs: int = 3, other: str | None = None) -> None:
    pythons = {"now": sys.executable} | ({"before": other} if other else {})
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        for run in range(runs):
            for which, python in pythons.items():
                found = run_job(python, Path(name))
                print(
                    run,
                    which,
                    {step: round(value, 2 if step.startswith("cpu") else 0) for step, value in found.items()},
                )
                measured[which].append(found)
    figures: dict[str, Any] = {
        "model": MODEL,
        "clip": CLIP.name,
        "frames": FRAMES,
        "load_average": load_average,
        "steps": STEPS,
    }
    if not other:
        with suppress(FileNotFoundError):
            kept = json.loads((RESULTS / "first_seconds.json").read_text())
            figures |= {"before": kept["before"]} if "before" in kept else {}
    for which, found in measured.items():
        figures[which] = {
            step: [round(one.get(step, 0.0), 3) for one in found] for step in [*STEPS, "cpu_s", "cpu_s_in_all"]
        }
    rows = [(f"{which}: {step}", median(values)) for which in measured for step, values in figures[which].items()]
    keep("first_seconds", figures, rows)


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))
