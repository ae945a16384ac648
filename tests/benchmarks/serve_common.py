"""What the endpoint's benchmarks share: a server in a process of its own, and clients that keep their connections."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from common import descendants, genai_ray
from onnx import TensorProto, helper, numpy_helper

START_WITHIN_S = 120.0


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Endpoint(NamedTuple):
    """A server of ours."""

    port: int
    grpc_port: int
    pid: int


@contextmanager
def endpoint(*options: str | int, python: str = sys.executable) -> Iterator[Endpoint]:
    """Run ``genai-ray serve`` as it is installed in an environment."""
    port, grpc_port = free_port(), free_port()
    command = genai_ray(
        "serve", "--port", str(port), "--grpc-port", str(grpc_port), "--json", *map(str, options), python=python
    )
    with process(command, cwd=Path(python).parents[2]) as server:  # not the folder of another version
        ready, _, _ = select.select([server.stdout], [], [], START_WITHIN_S)
        if not ready or not server.stdout.readline():
            raise SystemExit("the endpoint did not start")
        yield Endpoint(port, grpc_port, server.pid)


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[Any]:
    """Run a server in a process group of its own, and end that by SIGTERM."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # some leave workers behind
        server.wait()


def wait_for_port(server: Any, port: int, path: str) -> None:
    """Wait until a server that was started answers."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", path)
                connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nothing listens on port {port}")


def write_matmul(path: Path, num_bytes: int, *, seed: int = 0) -> None:
    """Write a model of so many bytes: one product with a square matrix, ``x`` [1, n] to ``y`` [1, n]."""
    side = round((num_bytes / 4) ** 0.5)
    weights = np.random.default_rng(seed).standard_normal((side, side), np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, side)) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))


def infer_request(name: str, array: np.ndarray, *, frames: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a binary request."""
    datatype = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
    tensor = {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }
    parameters = {"binary_data_output": True} | ({"frames": True} if frames else {})
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@dataclass(frozen=True)
class Target:
    """What clients ask for: one request, or several kinds of it that take turns as ``order`` says."""

    port: int
    body: bytes | list[bytes]
    """One for all kinds, or one of each."""
    kinds: list[tuple[str, dict[str, str]]]
    """Path and headers of each kind."""
    order: list[int] | None = None
    """Kinds in the order in which the clients together send them; None for the only one."""
    pid: int = 0
    """Process of the server, which started all its others."""

    def cpu_s(self) -> float:
        """Return the processor seconds that the server's processes took so far."""
        ticks = 0
        for pid in {self.pid, *descendants(self.pid, with_agents=True)}:
            with suppress(FileNotFoundError, ProcessLookupError):
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Driven:
    """What clients saw."""

    latencies_s: list[float]
    seconds: float
    refused: int
    """Answers 503; they are sent again, and their time is in the latency."""

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.seconds


def drive(
    target: Target, *, clients: int, requests: int | None = None, seconds: float | None = None, within_s: float = 720.0
) -> Driven:
    """Send requests from several connections, in a process that does nothing else: so many from each client, or for so
    long; an error after a while."""
    bodies = target.body if isinstance(target.body, list) else [target.body]
    job = {
        "port": target.port,
        "kinds": target.kinds,
        "lengths": [len(body) for body in bodies],
        "order": target.order,
        "clients": clients,
        "requests": requests,
        "seconds": seconds,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        command = [sys.executable, __file__, file.name]
        done = subprocess.run(
            command,
            input=b"".join(bodies),
            stdout=subprocess.PIPE,
            check=True,
            timeout=max(within_s, (seconds or 0) + 120),
        )
    return Driven(**json.loads(done.stdout))


def _drive_here(job: dict[str, Any], text: bytes) -> None:
    ends = list(itertools.accumulate(job["lengths"]))
    bodies = [text[end - length : end] for end, length in zip(ends, job["lengths"], strict=True)]
    latencies: list[list[float]] = [[] for _ in range(job["clients"])]
    refused: list[int] = []
    failed: list[str] = []
    start = threading.Barrier(job["clients"] + 1)
    turns = iter(itertools.cycle(job["order"] or [0]))
    turn = threading.Lock()
    over = float("inf")

    def ask(connection: http.client.HTTPConnection, mine: list[float]) -> None:
        while len(mine) < (job["requests"] or sys.maxsize) and time.perf_counter() < over:
            with turn:
                kind = next(turns)
            path, headers = job["kinds"][kind]
            body = bodies[kind % len(bodies)]
            began = time.perf_counter()
            while True:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                data = response.read()
                if response.status != 503:
                    break
                refused.append(1)
                time.sleep(float(response.getheader("Retry-After") or 1))
            mine.append(time.perf_counter() - began)
            if response.status != 200:
                failed.append(f"{response.status}: {data[:200]!r}")
                return

    def client(mine: list[float]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", job["port"], timeout=120)) as connection:
            try:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                start.wait()
                ask(connection, mine)
            except (OSError, http.client.HTTPException, threading.BrokenBarrierError) as exc:
                failed.append(repr(exc))
                start.abort()

    threads = [threading.Thread(target=client, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        start.wait()
    began = time.perf_counter()
    if job["seconds"]:
        over = began + job["seconds"]
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed or not all(latencies):
        raise SystemExit(f"{len(failed)} clients failed: {failed[:1]}")
    print(
        json.dumps(
            {"latencies_s": [one for mine in latencies for one in mine], "seconds": seconds, "refused": len(refused)}
        )
    )


if __name__ == "__main__":
    _drive_here(json.loads(Path(sys.argv[1]).read_text()), sys.stdin.buffer.read())
