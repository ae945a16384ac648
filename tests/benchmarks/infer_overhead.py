"""``InferenceSession.infer`` on uint8 frames against the bare runtime call on ready float tensors, in turn; goal: at
most 1.08."""

import time

import numpy as np
import onnxruntime as ort
from common import MODELS, keep, median

from genai_ray import InferenceSession

RUNS, COUNT, HEIGHT, WIDTH = 11, 8, 144, 176
CASES = {
    "esrgan-2x": ("upscalerjs-esrgan-slim-x2-nhwc255.onnx", lambda x: x.astype(np.float32)),
    "waifu2x-x2": (
        "waifu2x-upconv7-photo-scale2x.onnx",
        lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / 255,
    ),
}


def main() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8)
    figures, rows = {}, []
    for model_id, (file, prepare) in CASES.items():
        bare = ort.InferenceSession(MODELS / file, providers=["CPUExecutionProvider"])
        name, tensor = bare.get_inputs()[0].name, prepare(frames)
        step = 1 if bare.get_inputs()[0].shape[0] == 1 else COUNT
        with InferenceSession(model_id) as session:
            session.warmup()
            ours, theirs = [], []
            for run in range(RUNS + 1):
                started = time.perf_counter()
                session.infer(frames)
                middle = time.perf_counter()
                for i in range(0, COUNT, step):
                    bare.run(None, {name: tensor[i : i + step]})
                if run:  # the first is a warm-up of both
                    ours.append(middle - started)
                    theirs.append(time.perf_counter() - middle)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        figures[model_id] = {"infer_s": ours, "bare_s": theirs, "ratio": ratios}
        rows += [
            (f"{model_id}: infer, ms", 1e3 * median(ours)),
            (f"{model_id}: bare call, ms", 1e3 * median(theirs)),
            (f"{model_id}: ratio (goal 1.08)", median(ratios)),
        ]
    keep("infer_overhead", figures, rows)


if __name__ == "__main__":
    main()
