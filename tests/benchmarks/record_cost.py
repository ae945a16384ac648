"""What a record costs beside the strict checks: each finished segment is decoded once, and its frames are hashed.

Goal: 2 % of the CPU seconds of everything else that a strict job does for a frame: decode, model, checks and encode.
CPU seconds, not time: the machine may do other work. The first segment of each clip as a job cuts it, several times;
the median counts. Decoding that segment again, without hashes, tells what bounds the record.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from common import CLIPS, ROOT, keep, median, write_small

from genai_ray import InferenceSession
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.types import CheckLevel
from genai_ray.video import Encoding, SegmentWriter, decode_segment, digest_part, plan_video
from genai_ray.video.reading.digest import decode_part

MODELS = ("websr-x2-s", "websr-x2-l")
"""The fastest model, and that of the preset ``balanced``."""

ENCODINGS = {"medium": Encoding(), "ultrafast": Encoding(preset="ultrafast")}
REPEATS = 3
SECONDS = 20


def measure(clip: Path, folder: Path, session: InferenceSession, encoding: Encoding) -> dict[str, float]:
    """Return CPU seconds for a frame: of the checks, of everything else but the record, of the record, and of the
    decoding in it; and the number of frames."""
    plan = plan_video(clip)
    taken: dict[str, list[float]] = {"rest": [], "checks": [], "record": [], "record_decoding": []}
    part = folder / "part.nut"
    for _ in range(REPEATS):
        started = time.process_time()
        decoded = list(decode_segment(plan, plan.segments[0]))
        frames = np.stack([frame.frame for frame in decoded])
        results = session.infer(frames)
        size = (results.shape[2], results.shape[1])
        with SegmentWriter(part, info=plan.info, size=size, encoding=encoding) as writer:
            for frame, result in zip(decoded, results, strict=True):
                writer.write(result, frame.pts)
        taken["rest"].append((time.process_time() - started) / len(frames))
        checks = SegmentChecks(plan, [session.spec], CheckLevel.STRICT)
        started = time.process_time()
        for index, (source, output) in enumerate(zip(frames, results, strict=True)):
            checks.add(index, source, output, 1)
        taken["checks"].append((time.process_time() - started) / len(frames))
        started = time.process_time()
        count, _ = digest_part(part)
        taken["record"].append((time.process_time() - started) / len(frames))
        if count != len(frames):
            raise SystemExit(f"{count} frames decoded, not {len(frames)}")
        started = time.process_time()
        count = sum(1 for _ in decode_part(part))
        taken["record_decoding"].append((time.process_time() - started) / count)
    return {name: median(values) for name, values in taken.items()} | {"frames": count}


def main() -> None:
    figures: dict[str, object] = {"clips": {}}
    rows: list[tuple[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "iscc-demo-176x144.mkv"
        write_small(CLIPS / "iscc-demo.mkv", small, SECONDS, (176, 144))
        for model in MODELS:
            with InferenceSession(model) as session:
                session.warmup()
                for clip in (ROOT / "samples" / "bigbuckbunny-360p.mp4", small):
                    for preset, encoding in ENCODINGS.items() if model == MODELS[0] else [("medium", Encoding())]:
                        cpu_s = measure(clip, folder, session, encoding)
                        frames = cpu_s.pop("frames")
                        label = f"{clip.stem}, {model}, {preset}"
                        share = cpu_s["record"] / (cpu_s["rest"] + cpu_s["checks"])
                        figures["clips"][label] = {
                            **{f"{part}_cpu_ms_per_frame": round(1000 * value, 3) for part, value in cpu_s.items()},
                            "frames": frames,
                            "record_share": round(share, 4),
                        }
                        rows.append((f"{label}: share of the record (goal: 0.02)", share))
    keep("record_cost", figures, rows)


if __name__ == "__main__":
    main()
