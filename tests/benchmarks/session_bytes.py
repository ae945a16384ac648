"""Bytes of a session: predicted from the file, measured after warm-up, and what the operating system sees at rest and
at the most while it works.

What is recorded is a peak, of the moments at which the cache looked; it is wrong by what it lies below the bytes at
rest or above the most.
"""

import argparse
import statistics

import numpy as np
from common import keep, rss_anon

from genai_ray import ModelCache
from genai_ray.cluster import CacheOptions, SessionRequest, disconnect, open_session
from genai_ray.types import ModelBackend, ModelPrecision
from tests.caches import ending
from tests.processes import rss_watched

MODELS = ("websr-x2-s", "websr-x2-l", "waifu2x-x2", "realesr-animevideov3-x2", "esrgan-2x", "rife")
SIZES = ((144, 176), (480, 640))


def measure(model: str, size: tuple[int, int]) -> dict[str, float]:
    with ending(ModelCache(8_000_000_000, name=f"{model} {size}", options=CacheOptions(min_stay_s=0))) as cache:
        session = open_session(cache, SessionRequest(model, ModelBackend.ONNX, ModelPrecision.FP32, max_frame=size))
        session.touch()
        (at_load,) = cache.status().models
        frames = np.random.default_rng(0).integers(0, 256, (8 if size[0] < 300 else 4, *size, 3), np.uint8)
        pid = at_load.session["pid"]
        with rss_watched(pid) as most:
            for _ in range(4):
                session.infer(frames)
            (after,) = cache.status().models
        recorded, seen = after.bytes, rss_anon(pid)
        error = max(0.0, 1 - recorded / seen, recorded / most[0] - 1)
        return {
            "predicted": at_load.predicted_bytes,
            "at_load": at_load.bytes,
            "recorded": recorded,
            "seen": seen,
            "most": most[0],
            "error": error,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    figures, rows = {}, []
    for model in MODELS:
        for size in SIZES:
            found = [measure(model, size) for _ in range(runs)]
            name = f"{model} {size[1]}x{size[0]}"
            figures[name] = {key: statistics.median(one[key] for one in found) for key in found[0]}
            seen, most = figures[name]["seen"], figures[name]["most"]
            shares = {key: figures[name][key] / seen for key in ("predicted", "at_load", "recorded")}
            figures[name] |= {f"{key}_share": share for key, share in shares.items()}
            text = f"{seen / 1e6:.0f} to {most / 1e6:.0f} MB; " + ", ".join(
                f"{key} {share:.2f}" for key, share in shares.items()
            )
            rows.append((name, text))
    worst = max(one["error"] for one in figures.values())
    keep(
        "session_bytes",
        {"runs": runs, "sessions": figures, "worst_recorded_error": worst},
        [*rows, ("worst error of what is recorded (goal 0.10)", worst)],
    )
    disconnect()


if __name__ == "__main__":
    main()
