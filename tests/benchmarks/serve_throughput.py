"""Requests a second at 16 clients, websr-x2-s on 176x144 uint8 frames: the endpoint, LitServe, MLServer, and two plain
replicas behind ``@serve.multiplexed`` that each hold a copy. Goals: 1.2 x LitServe, 1.2 x MLServer, 0.9 x the plain
replicas. All servers are up at the same time and are driven in turn.

Then 12 models of 50 MB, asked for by Zipf 1.1, in room for 6: the endpoint and ``@serve.multiplexed`` with 3 in each of
2 replicas, in turn as well. Goal: 1.5 x, with fewer loads.

LitServe and MLServer run in environments of their own, which are made where they are missing (a minute each;
``--prepare`` does no more)."""

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import MODELS, keep, median
from serve_common import Target, drive, endpoint, free_port, infer_request, process, wait_for_port, write_matmul

MODEL = "websr-x2-s"
CLIENTS = 16
HEIGHT, WIDTH = 144, 176
FRAME = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
PEERS = Path(__file__).with_name("serve_peers.py")
WEIGHTS = MODELS / "websr-anime4k-cnn-x2-s-rl.onnx"
PACKAGES = {
    "LitServe": ("litserve==0.2.19", "python-multipart"),
    "MLServer": ("mlserver==1.7.1", "uvloop<0.22"),
}
MODEL_BYTES = 50_000_000
NUM_MODELS, ROOM = 12, 6


def python_of(name: str, folder: Path) -> str:
    """Return the Python of a peer's environment, made where it is missing."""
    home = folder / name.lower()
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", *PACKAGES[name]], check=True, timeout=600
        )
        (home / "ready").touch()
    return str(python)


@contextmanager
def ours(python, _fused):
    with endpoint("--model", MODEL, python=python) as (port, _, pid):
        body, headers = infer_request("frames", FRAME, frames=True)
        yield Target(port, body, [(f"/v2/models/{MODEL}/infer", headers)], pid=pid)


@contextmanager
def plain(python, path, *, each=1, loads=os.devnull, order=None):
    port = free_port()
    environment = os.environ | {
        "PEER_MODELS_EACH": str(each),
        "PEER_LOADS": str(loads),
        "PEER_HEIGHT": str(HEIGHT),
        "PEER_WIDTH": str(WIDTH),
    }
    with process([python, str(PEERS), "multiplexed", str(port), path], env=environment) as server:
        if server.stdout.readline() != "ready\n":
            raise SystemExit("the plain replicas did not start")
        names = [MODEL] if order is None else [f"m{index:02}" for index in range(NUM_MODELS)]
        body = FRAME.tobytes() if order is None else VECTOR.tobytes()
        yield Target(port, body, [("/", {"serve_multiplexed_model_id": name}) for name in names], order, server.pid)


@contextmanager
def litserve(python, fused):
    port = free_port()
    with process(
        [python, str(PEERS), "litserve", str(port), fused],
        env=os.environ | {"PEER_HEIGHT": str(HEIGHT), "PEER_WIDTH": str(WIDTH)},
    ) as server:
        wait_for_port(server, port, "/health")
        head = (
            b'--b\r\nContent-Disposition: form-data; name="frame"; filename="f"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        yield Target(
            port,
            head + FRAME.tobytes() + b"\r\n--b--\r\n",
            [("/predict", {"Content-Type": "multipart/form-data; boundary=b"})],
            pid=server.pid,
        )


@contextmanager
def mlserver(python, fused):
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        Path(folder, "settings.json").write_text(
            json.dumps(ports | {"parallel_workers": 2, "debug": False, "metrics_endpoint": None})
        )
        model = {"name": MODEL, "implementation": "serve_peers.OnnxRuntime", "parameters": {"uri": fused}}
        Path(folder, "model-settings.json").write_text(json.dumps(model))
        environment = os.environ | {
            "PYTHONPATH": str(PEERS.parent),
            "PEER_HEIGHT": str(HEIGHT),
            "PEER_WIDTH": str(WIDTH),
        }
        with process([str(Path(python).with_name("mlserver")), "start", folder], env=environment, cwd=folder) as server:
            wait_for_port(server, port, "/v2/health/ready")
            tensor = {"name": "frames", "datatype": "BYTES", "shape": [1], "parameters": {"content_type": "base64"}}
            body = json.dumps({"inputs": [tensor | {"data": [base64.b64encode(FRAME.tobytes()).decode()]}]}).encode()
            yield Target(
                port, body, [(f"/v2/models/{MODEL}/infer", {"Content-Type": "application/json"})], pid=server.pid
            )


SERVERS = {"genai-ray": ours, "two plain replicas": plain, "LitServe": litserve, "MLServer": mlserver, "before": ours}


def write_fused(folder: Path) -> str:
    """Write the model with uint8 frames in and out, which every peer gets."""
    from genai_ray.catalog import ModelCatalog
    from genai_ray.graph import fuse_frames, read_model

    path = folder / "fused.onnx"
    path.write_bytes(
        fuse_frames(read_model(WEIGHTS), ModelCatalog.default().get(MODEL), np.dtype(np.uint8)).SerializeToString()
    )
    return str(path)


def one_model(options, pythons) -> dict[str, dict[str, list[float]]]:
    """Requests a second of each server, in turn; and the processor milliseconds that it took for one, which tell more
    on a busy machine."""
    figures: dict[str, dict[str, list[float]]] = {
        name: {"requests_per_s": [], "cpu_ms_per_request": []} for name in pythons
    }
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        fused = write_fused(Path(folder))
        targets = {name: stack.enter_context(SERVERS[name](python, fused)) for name, python in pythons.items()}
        for target in targets.values():
            drive(target, clients=CLIENTS, seconds=3)
        for _ in range(options.repetitions):
            for name, target in targets.items():
                before_s = target.cpu_s()
                done = drive(target, clients=CLIENTS, seconds=options.seconds)
                figures[name]["requests_per_s"].append(done.rate)
                figures[name]["cpu_ms_per_request"].append(1e3 * (target.cpu_s() - before_s) / len(done.latencies_s))
    return figures


VECTOR = np.random.default_rng(0).random((1, round((MODEL_BYTES / 4) ** 0.5)), np.float32)


def loads_of(port: int) -> dict[str, int]:
    """Loads so far, and those of them in used processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for name in ("loads", "reuses"):
        line = next(line for line in lines if line.startswith(f"genai_ray_cache_{name}_total "))
        found[name] = int(float(line.split()[1]))
    return found


def reserved_of_one(folder: Path) -> int:
    """Bytes that the cache reserves for one of the models."""
    from genai_ray import ModelCache
    from genai_ray.cluster import connect, disconnect

    connect()
    with ModelCache(2_000_000_000) as cache:
        cache.load_model(folder / "m00.onnx")
        used, _ = cache.memory_usage()
    disconnect()
    return used


def many_models(options) -> dict[str, dict[str, list[float]]]:
    """Requests a second of both servers in turn, and their loads, with more models than there is room for.

    Every model is asked for once before. What that takes is a figure of its own: an unknown model is inspected."""
    weights = [1 / rank**1.1 for rank in range(1, NUM_MODELS + 1)]
    order = random.Random(0).choices(range(NUM_MODELS), weights, k=20_000)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as log:
        for index in range(NUM_MODELS):
            write_matmul(Path(folder, f"m{index:02}.onnx"), MODEL_BYTES, seed=index)
        budget = int((ROOM + 0.5) * reserved_of_one(Path(folder)))
        port = stack.enter_context(
            endpoint("--model-repository", folder, "--model", MODEL, "--max-memory", budget)
        ).port
        body, headers = infer_request("x", VECTOR, frames=False)
        kinds = [(f"/v2/models/m{index:02}/infer", headers) for index in range(NUM_MODELS)]
        peer = plain(sys.executable, folder, each=ROOM // 2, loads=log.name, order=order)
        targets = {
            "genai-ray": (Target(port, body, kinds, order), lambda: loads_of(port)),
            "@serve.multiplexed": (
                stack.enter_context(peer),
                lambda: {"loads": len(Path(log.name).read_text().splitlines())},
            ),
        }
        figures: dict[str, dict[str, list[float]]] = {}
        for name, (target, _) in targets.items():
            first = drive(replace(target, order=list(range(NUM_MODELS))), clients=1, requests=NUM_MODELS)
            figures[name] = {"first_requests_s": first.latencies_s}
        for _ in range(options.repetitions):
            for name, (target, loads) in targets.items():
                before = loads()
                done = drive(target, clients=CLIENTS, seconds=options.many_seconds)
                turn = {what: count - before[what] for what, count in loads().items()} | {
                    "requests": len(done.latencies_s),
                    "requests_per_s": done.rate,
                    "refused": done.refused,
                    "p50_s": median(done.latencies_s),
                    "p95_s": float(np.percentile(done.latencies_s, 95)),
                }
                turn["loads_per_1000"] = 1000 * turn["loads"] / turn["requests"]
                for what, value in turn.items():
                    figures[name].setdefault(what, []).append(value)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "genai-ray-benchmarks",
        help="where the peers are installed",
    )
    parser.add_argument("--prepare", action="store_true", help="install the peers, and end")
    parser.add_argument(
        "--only",
        choices=["genai-ray", "two plain replicas", *PACKAGES, "many"],
        action="append",
        help="leave out the others",
    )
    parser.add_argument("--seconds", type=float, default=8, help="of each repetition of each server")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--many-seconds", type=float, default=15)
    parser.add_argument(
        "--before", metavar="PYTHON", help="Python of an environment with an earlier version, as one more server"
    )
    parser.add_argument("--output", default="serve_throughput")
    options = parser.parse_args()
    pythons = {
        name: python_of(name, options.environments) if name in PACKAGES else sys.executable
        for name in options.only or list(SERVERS)[:-1]
        if name != "many"
    }
    if options.before:
        pythons["before"] = options.before
    if options.prepare:
        return
    began = time.monotonic()
    single = one_model(options, pythons) if pythons else {}
    many = many_models(options) if options.only is None or "many" in options.only else {}
    rows = [
        (f"{name}, {what.replace('_', ' ')}", median(several))
        for name, found in single.items()
        for what, several in found.items()
    ]
    rates = {name: found["requests_per_s"] for name, found in single.items()}
    for name, goal in {"two plain replicas": 0.9, "LitServe": 1.2, "MLServer": 1.2, "before": 1.0}.items():
        if name in rates and "genai-ray" in rates:
            rows.append(
                (
                    f"genai-ray / {name} (goal {goal})",
                    median([a / b for a, b in zip(rates["genai-ray"], rates[name], strict=True)]),
                )
            )
    for name, found in many.items():
        rows += [
            (f"12 models in room for 6: {name}, {what}", median(found[key]))
            for what, key in (("loads for 1000 requests", "loads_per_1000"), ("requests/s", "requests_per_s"))
        ]
    if many:
        ours, theirs = (found["requests_per_s"] for found in many.values())
        ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
        rows.append(("  genai-ray / @serve.multiplexed (goal 1.5)", ratio))
    figures = {"clients": CLIENTS, "one_model": single, "many_models": many, "took_s": time.monotonic() - began}
    keep(options.output, figures, rows)


if __name__ == "__main__":
    main()
