"""RIFE through ``enhance``: every second frame of bikes.mp4 is left out, made anew, and held against the true one;
goal: 2 dB above blending."""

import argparse
import json
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import CLIPS, genai_ray, keep

from genai_ray import QualityValidator

CUTS = (29, 75, 136, 186, 241)
"""The last frame before each cut of the clip, found by eye."""


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as box:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)])


def write_half(true: np.ndarray, path: Path) -> None:
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=Fraction(25, 2))
        stream.width, stream.height, stream.pix_fmt = true.shape[2], true.shape[1], "yuv420p"
        for picture in true[::2]:
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        sink.mux(stream.encode(None))


def db(true: np.ndarray, made: np.ndarray) -> float:
    return QualityValidator(true).validate(made).psnr


def main(most: int) -> None:
    true = decode(CLIPS / "bikes.mp4")[: 2 * most + 1 if most else None]
    with tempfile.TemporaryDirectory() as folder:
        half, whole = Path(folder, "half.mkv"), Path(folder, "whole.mkv")
        write_half(true, half)
        done = subprocess.run(
            genai_ray("enhance", half, "-o", whole, "--model", "rife", "--codec", "ffv1", "--json"),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        kept, result = decode(half), decode(whole)
    pairs = range((len(true) - 1) // 2)
    cuts = [index for index in pairs if 2 * index in {cut // 2 * 2 for cut in CUTS}]
    over_cuts = [index for index in cuts if not np.array_equal(result[2 * index + 1], result[2 * index])]
    moving = [index for index in pairs if index not in cuts]
    made = [db(true[2 * index + 1], result[2 * index + 1]) for index in moving]
    blended = [db(true[2 * index + 1], np.rint(kept[index : index + 2].mean(0)).astype(np.uint8)) for index in moving]
    gain = float(np.mean(made) - np.mean(blended))
    figures = {
        "clip": "bikes.mp4",
        "pairs": len(moving),
        "cuts": len(cuts),
        "blended_over_cuts": len(over_cuts),
        "interpolated_db": float(np.mean(made)),
        "blended_db": float(np.mean(blended)),
        "gain_db": gain,
        "pairs_better": sum(a > b for a, b in zip(made, blended, strict=True)),
        "fps": json.loads(done.stdout)["fps"],
    }
    rows = [
        ("middle frames, dB", figures["interpolated_db"]),
        ("blended, dB", figures["blended_db"]),
        ("gain (goal 2), dB", gain),
        ("of so many pairs", len(moving)),
        ("better on", figures["pairs_better"]),
        ("blended over cuts (goal 0)", f"{len(over_cuts)} of {len(cuts)}"),
        ("frames of the result a second", figures["fps"]),
    ]
    keep("rife_middle", figures, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=0, help="pairs to do; 0 for the whole clip")
    main(parser.parse_args().pairs)
