"""Latency beyond the model's own time for one client and a 64x64 image tensor (goals: 3 ms at the median, 8 ms at p99); and a 4K frame
in and out of an identity model (goal: 200 MB/s)."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import tritonclient.grpc as triton
from common import keep, median
from onnx import TensorProto, helper
from serve_common import Target, drive, endpoint, infer_request

from genai_ray import InferenceSession

MODEL = "websr-x2-s"


def write_identity(folder: Path) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.UINT8, ("n", "h", "w", 3)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(folder / "identity.onnx"))


def own_time(tensor: np.ndarray, runs: int) -> list[float]:
    with InferenceSession(MODEL) as session:
        session.warmup()
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            session.run({"input": tensor})
            times.append(time.perf_counter() - began)
        return times


def over_grpc(port: int, tensor: np.ndarray, runs: int) -> list[float]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        sent = triton.InferInput("input", list(tensor.shape), "FP32")
        sent.set_data_from_numpy(tensor)
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            client.infer(MODEL, [sent])
            times.append(time.perf_counter() - began)
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--large-runs", type=int, default=20)
    parser.add_argument("--output", default="serve_latency")
    options = parser.parse_args()
    tensor = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    frame = np.random.default_rng(0).integers(0, 256, (1, 2160, 3840, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_identity(Path(folder))
        with endpoint("--model", MODEL, "--model-repository", folder) as (port, grpc_port, _):
            body, headers = infer_request("input", tensor, frames=False)
            small = Target(port, body, [(f"/v2/models/{MODEL}/infer", headers)])
            drive(small, clients=1, requests=50)
            own = own_time(tensor, options.runs)
            http = drive(small, clients=1, requests=options.runs).latencies_s
            over_grpc(grpc_port, tensor, 20)
            grpc = over_grpc(grpc_port, tensor, options.runs)
            body, headers = infer_request("x", frame, frames=False)
            large = Target(port, body, [("/v2/models/identity/infer", headers)])
            drive(large, clients=1, requests=3)
            seconds = drive(large, clients=1, requests=options.large_runs).latencies_s
    mean = median(own)
    beyond = {name: [1e3 * (one - mean) for one in times] for name, times in (("http", http), ("grpc", grpc))}
    rate = 2 * frame.nbytes / 1e6 / median(seconds)
    figures = {"own_ms": 1e3 * mean, "frame_mb_per_s": rate}
    rows = [("the model alone, ms", 1e3 * mean)]
    for name, times in beyond.items():
        figures[name] = {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}
        rows += [
            (f"{name}: beyond it, p50 ms (goal 3)", figures[name]["p50_ms"]),
            (f"{name}: p99 ms (goal 8)", figures[name]["p99_ms"]),
        ]
    keep(options.output, figures, [*rows, ("4K frame in and out, MB/s (goal 200)", rate)])


if __name__ == "__main__":
    main()
