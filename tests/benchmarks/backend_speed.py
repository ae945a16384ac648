"""Milliseconds for one frame of 176x144 on one core: ONNX Runtime and OpenVINO in turn, with dB from ONNX's FP32."""

import os
import time

import av
import numpy as np
from common import ROOT, keep, median

from genai_ray import InferenceSession, ModelBackend, ModelCatalog, ModelPrecision, SessionLimits, errors

ROUNDS, HEIGHT, WIDTH = 11, 144, 176
WAYS = [
    (ModelBackend.ONNX, ModelPrecision.FP32),
    (ModelBackend.OPENVINO, ModelPrecision.FP32),
    (ModelBackend.OPENVINO, ModelPrecision.BF16),
    (ModelBackend.OPENVINO, ModelPrecision.FP16),
]


def two_frames() -> np.ndarray:
    with av.open(str(ROOT / "samples" / "bigbuckbunny-360p.mp4")) as box:
        decoded = [frame for frame, _ in zip(box.decode(video=0), range(40), strict=False)]
        return np.stack([frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray() for frame in decoded[-2:]])


def psnr_db(reference: np.ndarray, candidate: np.ndarray) -> float | str:
    mse = float(np.mean((reference.astype(np.float64) - candidate) ** 2))
    return 10 * float(np.log10(1 / mse)) if mse else "inf"


def measure(model_id: str, frames: np.ndarray) -> dict[str, object]:
    count = 2 if ModelCatalog.default().get(model_id).task == "interpolation" else 1
    sessions, found = {}, {}
    for backend, precision in WAYS:
        name = f"{backend.value} {precision.value}"
        try:
            limits = SessionLimits(max_frame=(HEIGHT, WIDTH))
            started = time.perf_counter()
            session = InferenceSession(model_id, backend=backend, precision=precision, threads=1, limits=limits)
            session.warmup()
            sessions[name] = session
            found[name] = {"ms": [], "warm_s": time.perf_counter() - started, "memory_bytes": session.memory_bytes}
        except (errors.BackendUnavailableError, errors.ModelLoadError) as exc:
            found[name] = {"refused": str(exc)}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.infer(frames[:count])
            found[name]["ms"].append(1e3 * (time.perf_counter() - started))
    floats = frames.astype(np.float32) / 255
    expected = next(iter(sessions.values())).infer(floats[:count])
    for name, session in sessions.items():
        found[name]["db"] = psnr_db(expected, session.infer(floats[:count]))
        session.close()
    return found


def main() -> None:
    frames = two_frames()
    catalog = ModelCatalog.default()
    figures: dict[str, object] = {"load_average": os.getloadavg()}
    rows = []
    for model_id in catalog.ids():
        if catalog.get(model_id).url is not None:
            continue
        figures[model_id] = found = measure(model_id, frames)
        for name, one in found.items():
            text = one.get("refused") or f"{median(one['ms']):8.1f} ms  {one['db']} dB from onnx fp32"
            rows.append((f"{model_id}: {name}", text))
            print(rows[-1], flush=True)
    keep("backend_speed", figures, rows)


if __name__ == "__main__":
    main()
