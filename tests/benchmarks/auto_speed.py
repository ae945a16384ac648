"""``enhance`` with ONNX Runtime, with ``--backend auto``, and with ``--precision auto`` too, against the plain script,
one after the other; each AUTO job measures first. websr-x2-s on the whole clip, once more with what was remembered; the
slow models on its first seconds. dB from ONNX Runtime's FP32 on frames of the clip. Models may be named as arguments;
kept figures of others stay."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from backend_speed import psnr_db
from common import CLIPS, MODELS, PLAIN_SCRIPT, RESULTS, genai_ray, keep, write_small

from genai_ray import InferenceSession, ModelBackend, ModelPrecision

FILES = {
    "websr-x2-s": ("websr-anime4k-cnn-x2-s-rl.onnx", None),
    "waifu2x-x2": ("waifu2x-upconv7-photo-scale2x.onnx", 5.0),
    "realesr-animevideov3-x2": ("realesr-animevideov3-x2.onnx", 5.0),
}
"""File of the model, and seconds of the clip; None for all of it."""

JOBS = {
    "onnx": (),
    "auto fp32": ("--backend", "auto"),
    "auto fp32, remembered": ("--backend", "auto"),
    "auto auto": ("--backend", "auto", "--precision", "auto"),
}


def run_job(clip: Path, output: Path, model_id: str, options: tuple[str, ...], cache: Path) -> dict[str, object]:
    command = genai_ray("enhance", clip, "-o", output, "--model", model_id, "--json", *options)
    started = time.perf_counter()
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": str(cache)}
    )
    wall_s = time.perf_counter() - started
    report = json.loads(done.stdout)
    (use,) = report["models"]
    chosen = [use["backend"], use["precision"], (report["choice"] or {}).get("origin")]
    return {
        "fps": report["fps"],
        "startup_s": report["startup_s"],
        "wall_s": wall_s,
        "chosen": chosen,
        "choice": report["choice"],
    }


def run_plain(clip: Path, output: Path, model: Path) -> dict[str, object]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, PLAIN_SCRIPT, clip, output, model], check=True, capture_output=True, text=True
    )
    return {"fps": json.loads(done.stdout)["fps"], "wall_s": time.perf_counter() - started}


def measure_db(clip: Path, model_id: str, chosen: list[str]) -> float | str:
    with av.open(str(clip)) as box:
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(box.decode(video=0), range(60), strict=False)]
    few = np.stack(frames[::20]).astype(np.float32) / 255
    with InferenceSession(model_id, device="cpu") as plain:
        expected = plain.infer(few)
    with InferenceSession(
        model_id, backend=ModelBackend(chosen[0]), precision=ModelPrecision(chosen[1]), device="cpu"
    ) as session:
        return psnr_db(expected, session.infer(few))


def measure(model_id: str, clip: Path, folder: Path) -> dict[str, object]:
    name, seconds = FILES[model_id]
    if seconds is not None:
        source, clip = clip, folder / f"{seconds:g}s.mkv"
        with av.open(str(source)) as box:
            size = (box.streams.video[0].width, box.streams.video[0].height)
        write_small(source, clip, seconds, size)
    found: dict[str, object] = {"seconds": seconds, "plain": run_plain(clip, folder / "plain.mkv", MODELS / name)}
    for number, (job, options) in enumerate(JOBS.items()):
        if job.endswith("remembered"):
            if seconds is not None:
                continue
            cache = folder / "cache-1"
        else:
            cache = folder / f"cache-{number}"
        found[job] = run_job(clip, folder / f"{number}.mkv", model_id, options, cache)
        found[job]["db"] = measure_db(clip, model_id, found[job]["chosen"])
    return found


def main(*model_ids: str) -> None:
    kept = RESULTS / "auto_speed.json"
    before = json.loads(kept.read_text()) if kept.exists() and model_ids else {}
    figures: dict[str, object] = {"clip": "iscc-demo.mkv"} | {name: before[name] for name in FILES if name in before}
    rows = []
    for model_id in model_ids or FILES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model_id, CLIPS / "iscc-demo.mkv", Path(folder))
        figures[model_id] = found | {"load_average": os.getloadavg()}
        for job, one in found.items():
            if isinstance(one, dict):
                fps, wall = (one["fps"] / found["plain"]["fps"], found["plain"]["wall_s"] / one["wall_s"])
                chosen = " ".join(map(str, one.get("chosen", ())))
                speed = f"{one['fps']:8.2f} frames/s ({fps:.2f}x), {one['wall_s']:6.1f} s in all ({wall:.2f}x)"
                rows.append((f"{model_id}: {job}", f"{speed}  {chosen} {one.get('db', '')}"))
                print(rows[-1], flush=True)
    keep("auto_speed", figures, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
