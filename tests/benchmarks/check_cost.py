"""What ``enhance --check`` costs: jobs with each level in turn, and the checks alone. Goal: 3 % for ``default``.

The model is the fastest one, so that checks weigh most. On a machine that does other work too, jobs vary by more than
the checks of ``default`` take; so CPU seconds are compared as well: those of the checks of a frame, and those of what
else a segment does for a frame: decode, model and encode.
"""

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from common import CLIPS, ROOT, keep, median, write_small

from genai_ray import EnhanceOptions, InferenceSession, enhance_videos
from genai_ray.cluster import connect
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.types import CheckLevel
from genai_ray.video import Encoding, SegmentWriter, decode_segment, plan_video

MODEL = "websr-x2-s"
RUNS = 3
SECONDS = 20
FRAMES = 16
REPEATS = 7


def job(clip: Path, folder: Path, level: CheckLevel, run: int) -> float:
    """Return the frames per second of one job."""
    report = enhance_videos(
        clip,
        folder / f"{clip.stem}-{level}-{run}.mkv",
        models=MODEL,
        options=EnhanceOptions(check=level),
    )
    checked = 0 if level is CheckLevel.OFF else report.frames
    if report.frames_checked != checked:
        raise SystemExit(f"{report.frames_checked} frames checked, not {checked}")
    return report.fps


def measure_cpu(clip: Path, folder: Path) -> dict[str, float]:
    """Return CPU seconds for a frame: of ``off``, everything but the checks; of the other levels, the checks."""
    plan = plan_video(clip)
    taken: dict[str, list[float]] = {level: [] for level in CheckLevel}
    with InferenceSession(MODEL) as session:
        session.warmup()
        for _ in range(REPEATS):
            started = time.process_time()
            decoded = list(itertools.islice(decode_segment(plan, plan.segments[0]), FRAMES))
            frames = np.stack([frame.frame for frame in decoded])
            results = session.infer(frames)
            size = (results.shape[2], results.shape[1])
            with SegmentWriter(folder / "cpu.nut", info=plan.info, size=size, encoding=Encoding()) as writer:
                for frame, result in zip(decoded, results, strict=True):
                    writer.write(result, frame.pts)
            taken[CheckLevel.OFF].append((time.process_time() - started) / len(frames))
            for level in (CheckLevel.DEFAULT, CheckLevel.STRICT):
                checks = SegmentChecks(plan, [session.spec], level)
                started = time.process_time()
                for index, (source, output) in enumerate(zip(frames, results, strict=True)):
                    checks.add(index, source, output, 1)
                taken[level].append((time.process_time() - started) / len(frames))
    return {level: median(values) for level, values in taken.items()}


def main() -> None:
    connect()
    figures: dict[str, object] = {"model": MODEL, "clips": {}}
    rows: list[tuple[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "iscc-demo-176x144.mkv"
        write_small(CLIPS / "iscc-demo.mkv", small, SECONDS, (176, 144))
        for clip in (ROOT / "samples" / "bigbuckbunny-360p.mp4", small):
            fps: dict[CheckLevel, list[float]] = {level: [] for level in CheckLevel}
            for run in range(-1, RUNS):  # the first round loads the model
                for level in CheckLevel:
                    value = job(clip, folder, level, run)
                    if run >= 0:
                        fps[level].append(round(value, 2))
            cpu_s = measure_cpu(clip, folder)
            found: dict[str, object] = {"fps": fps, "cpu_ms_per_frame_without": round(1000 * cpu_s["off"], 3)}
            rows.append((f"{clip.stem}: off, frames/s", median(fps[CheckLevel.OFF])))
            for level in (CheckLevel.DEFAULT, CheckLevel.STRICT):
                share = cpu_s[level] / cpu_s[CheckLevel.OFF]
                ratio = median([a / b for a, b in zip(fps[CheckLevel.OFF], fps[level], strict=True)])
                found[level] = {
                    "cpu_ms_per_frame": round(1000 * cpu_s[level], 3),
                    "share_of_cpu": round(share, 4),
                    "time_of_jobs": round(ratio, 4),
                }
                rows += [
                    (f"{clip.stem}: {level}, CPU ms a frame", 1000 * cpu_s[level]),
                    (f"{clip.stem}: {level}, of the CPU seconds of everything else (goal of default: 0.03)", share),
                    (f"{clip.stem}: {level}, time of jobs in turn against off", ratio),
                ]
            figures["clips"][clip.stem] = found
    keep("check_cost", figures, rows)


if __name__ == "__main__":
    main()
