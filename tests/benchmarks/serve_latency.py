"""Latency beyond the model's own time for one client and a 64x64 image tensor (goals: 3 ms at the median, 8 ms at p99);
and a 4K frame in and out of an identity model (goal: 200 MB/s). With ``--before`` another installed version takes turns
with this one."""

import argparse
import sys
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
FRAME_SHAPE = (1, 2160, 3840, 3)


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


def measured(python: str, folder: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Latencies in seconds of small requests over HTTP and gRPC, and of a 4K frame over HTTP."""
    tensor = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    frame = np.random.default_rng(0).integers(0, 256, FRAME_SHAPE, np.uint8)
    with endpoint("--model", MODEL, "--model-repository", folder, python=python) as (port, grpc_port, _):
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
        return {
            "own": own,
            "http": http,
            "grpc": grpc,
            "frame": drive(large, clients=1, requests=options.large_runs).latencies_s,
        }


def figures_of(several: list[dict[str, list[float]]]) -> dict[str, float]:
    """Medians over repetitions: what is beyond the model's own time, and the rate of large frames."""
    found: dict[str, list[float]] = {"own_ms": [], "frame_mb_per_s": []}
    for times in several:
        mean = median(times["own"])
        found["own_ms"].append(1e3 * mean)
        found["frame_mb_per_s"].append(2 * np.prod(FRAME_SHAPE) / 1e6 / median(times["frame"]))
        for name in ("http", "grpc"):
            for rank in (50, 99):
                beyond = 1e3 * float(np.percentile(times[name], rank) - mean)
                found.setdefault(f"{name}_p{rank}_ms", []).append(beyond)
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--large-runs", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--before", metavar="PYTHON", help="Python of an environment with an earlier version")
    parser.add_argument("--output", default="serve_latency")
    options = parser.parse_args()
    pythons = {"now": sys.executable} | ({"before": options.before} if options.before else {})
    with tempfile.TemporaryDirectory() as folder:
        write_identity(Path(folder))
        turns = [
            {name: measured(python, folder, options) for name, python in pythons.items()}
            for _ in range(options.repetitions)
        ]
    figures = {name: figures_of([turn[name] for turn in turns]) for name in pythons}
    goals = {"http_p50_ms": 3, "http_p99_ms": 8, "grpc_p50_ms": 3, "grpc_p99_ms": 8, "frame_mb_per_s": 200}
    rows = [
        (f"{name}: {what.replace('_', ' ')}" + (f" (goal {goals[what]})" if what in goals else ""), value)
        for name, found in figures.items()
        for what, value in found.items()
    ]
    keep(options.output, figures, rows)


if __name__ == "__main__":
    main()
