"""Where the time of ``enhance`` goes around a small, a middle and a large model: CPU ms for each frame, step by step.

pipeline_profile.py [MODEL...]: one job for each model, 1 to 3 minutes each, of as many frames of 320x180 as it makes in
about 20 s. The steps of a segment's task run one after the other, so that their shares of its time add up to 1; the
task waits while the session computes. What each function takes is measured around it, without what it calls.

To look deeper into a step: ``py-spy record --subprocesses -o profile.svg -- genai-ray enhance ...``.
"""

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import CLIPS, genai_ray, keep, write_small
from watching import Run, run_watched

MODELS = {"websr-x2-s": 8.0, "websr-x2-l": 5.0, "esrgan-2x": 1.5}
"""Seconds of the clip for each."""
SIZE = (320, 180)
TASK = {
    "decode": "FFmpeg decodes",
    "to_rgb": "frames become RGB",
    "gamut": "colours outside RGB are counted",
    "same": "frames are compared with the one before them",
    "stack": "a batch is made of frames",
    "send": "a batch is sent to the session",
    "wait": "the task waits for a batch",
    "check": "results are compared with the source",
    "from_rgb": "results become YUV",
    "encode": "FFmpeg encodes",
    "hash": "the segment's file is hashed",
    "rest": "the rest: opening, planning, sessions, messages",
}
OTHERS = {
    "session_cpu_ms": "the session's process, CPU ms",
    "runtime_cpu_ms": "of that the runtime, CPU ms",
    "tasks_cpu_ms": "the processes of tasks, CPU ms, with their start",
    "cache_cpu_ms": "the process of the cache, CPU ms, with its start",
    "driver_cpu_ms": "the command's process, CPU ms, with its start",
    "ray_cpu_ms": "Ray's own processes, CPU ms, with their start",
    "job_cpu_ms": "the whole job, CPU ms",
    "job_s": "the whole job, seconds",
}
WATCHED = {
    "genai_ray.video.reading.decode": [["_stored_pictures", "time", "decode"], ["to_arrays", "time", "to_rgb"]],
    "genai_ray.video.colour": [["count_outside", "time", "gamut"], ["from_rgb", "time", "from_rgb"]],
    "genai_ray.enhance.segment.chain": [["_is_equal", "time", "same"], ["_Batch.stack", "time", "stack"]],
    "genai_ray.cluster.client.session": [
        ["CachedSession._infer", "time", "send"],
        ["PendingCall.result", "time", "wait"],
    ],
    "genai_ray.enhance.segment.checks": [["SegmentChecks.add", "time", "check"]],
    "genai_ray.video.encoding.encode": [
        ["SegmentWriter.write_picture", "time", "encode"],
        ["SegmentWriter._end", "time", "encode"],
    ],
    "genai_ray.enhance.job.steps": [
        ["_hashed", "time", "hash"],
        ["run_segment", "time", "rest"],
        ["run_segment", "flush", "task"],
    ],
    "genai_ray.backends.onnx_runtime": [["FramesSession.run", "time", "runtime"]],
    "genai_ray.session.runs": [["_run_tile", "time", "tiles"]],
    "genai_ray.cluster.session_actor": [
        ["SessionActor.load", "flush", "loaded"],
        ["SessionActor.infer", "time", "call"],
        ["SessionActor.infer", "flush", "session"],
    ],
}


def last_of(run: Run, name: str) -> list[dict[str, Any]]:
    """Return the last note of a name of each process."""
    return list({one["pid"]: one for one in run.notes if one["name"] == name}.values())


def add_up(notes: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return seconds and CPU seconds by step, of several processes together."""
    sums: dict[str, tuple[float, float]] = {}
    for note in notes:
        for step, (_, seconds, cpu_s) in note["taken"].items():
            before = sums.get(step, (0.0, 0.0))
            sums[step] = before[0] + seconds, before[1] + cpu_s
    return sums


def process_of(title: str) -> str:
    """Return which of the processes of a job has a title."""
    if title.startswith("ray::CacheActor"):
        return "cache"
    if title.startswith("ray::SessionActor"):
        return "session"
    return "tasks" if title.startswith("ray::") else "ray"


def measure(model: str, clip: Path, frames: int, folder: Path) -> dict[str, Any]:
    """Run one job; return CPU ms for a frame and the share of the time of the tasks, by step."""
    run = run_watched(genai_ray("enhance", clip, "-o", folder / "out.mkv", "-y", "-m", model, "-q"), WATCHED)
    task = add_up(last_of(run, "task"))
    (session,), (loaded,) = last_of(run, "session"), last_of(run, "loaded")
    whole = sum(seconds for seconds, _ in task.values())
    steps = {step: task.get(step, (0.0, 0.0)) for step in TASK}
    by_process: defaultdict[str, float] = defaultdict(float)
    for pid, cpu_s in run.cpu_s.items():
        by_process["driver" if pid == run.pid else process_of(run.titles[pid])] += 1000 * cpu_s / frames
    return {
        "frames": frames,
        "size": list(SIZE),
        "task": {
            step: {"cpu_ms": 1000 * cpu_s / frames, "share": seconds / whole}
            for step, (seconds, cpu_s) in steps.items()
        },
        "session_cpu_ms": 1000 * (session["cpu_s"] - loaded["cpu_s"]) / frames,
        "runtime_cpu_ms": 1000 * (add_up([session])["runtime"][1] - add_up([loaded])["runtime"][1]) / frames,
        **{f"{name}_cpu_ms": by_process[name] for name in ("tasks", "cache", "driver", "ray")},
        "job_cpu_ms": 1000 * sum(run.cpu_s.values()) / frames,
        "job_s": run.ended_at - run.began_at,
    }


def main(*models: str) -> None:
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0], "steps": TASK, "others": OTHERS, "models": {}}
    rows: list[tuple[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        clip = Path(name, "clip.mkv")
        for model in models or MODELS:
            frames = write_small(CLIPS / "iscc-demo.mkv", clip, MODELS[model], SIZE)
            found = measure(model, clip, frames, Path(name))
            figures["models"][model] = found
            rows += [(f"{model}: {step}, CPU ms a frame", one["cpu_ms"]) for step, one in found["task"].items()]
            rows += [(f"{model}: {step}", value) for step, value in found.items() if isinstance(value, float)]
    keep("pipeline_profile", figures, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
