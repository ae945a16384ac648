"""What TransNetV2 costs beside the interpolation of ``rife``, on one core; goal: its share as planned, or less.

``genai_ray/enhance/plan/cuts.py`` has these figures as constants: they decide which detector ``auto`` is.
"""

import os
import time

import numpy as np
from common import keep

from genai_ray import InferenceSession
from genai_ray.enhance.plan import cuts
from genai_ray.scenes.transnet import KEPT, MODEL, WINDOW

SIZES = ((640, 352), (960, 544))
SEGMENT_FRAMES = 128


def seconds(call, times=3):
    """Return the CPU seconds of the fastest of several calls: other programs take turns with this one."""
    found = []
    for _ in range(times):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def main():
    load = os.getloadavg()[0]
    started = time.process_time()
    with InferenceSession(MODEL, device="cpu", threads=1) as session:
        load_s = time.process_time() - started
        window = np.random.default_rng(0).uniform(0, 255, (1, WINDOW, 27, 48, 3)).astype(np.float32)
        session.run({"frames": window})
        window_s = seconds(lambda: session.run({"frames": window}))
        finder_mb = session.memory_bytes / 1e6
    result = {"load_average": load, "load_s": load_s, "window_s": window_s, "session_mb": finder_mb}
    result["frame_ms"] = 1000 * window_s / KEPT
    rows = [
        (f"load (planned {cuts.LOAD_S} s)", f"{load_s:.2f} s"),
        (f"window of {WINDOW} frames (planned {cuts.WINDOW_S} s)", f"{window_s:.2f} s, {finder_mb:.0f} MB"),
    ]
    for width, height in SIZES:
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        with InferenceSession("rife", device="cpu", threads=1) as session:
            session.infer(frames)
            added_s = seconds(lambda session=session, frames=frames: session.infer(frames), 2)
        windows = SEGMENT_FRAMES / KEPT + 1
        share = (windows * window_s + load_s) / (SEGMENT_FRAMES * added_s)
        result[f"{width}x{height}"] = {"added_s": added_s, "share": share}
        planned = cuts.ADDED_S_PER_PIXEL * width * height
        rows.append((f"a frame of {width}x{height} by rife (planned {planned:.2f} s)", f"{added_s:.2f} s"))
        rows.append((f"share of TransNetV2 at {width}x{height}, factor 2 (goal < {cuts.MOST_SHARE})", f"{share:.3f}"))
    keep("scene_cost", result, rows)


if __name__ == "__main__":
    main()
