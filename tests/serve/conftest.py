"""One endpoint for all tests that need one: the command line in a process of its own, on free ports."""

import json
import os
import select
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genai_ray.serve.deployment.ports import find_free_ports
from tests.processes import DEADLINE_S, start
from tests.serve.models import write_repository


@dataclass
class Served:
    process: Any
    port: int
    grpc_port: int
    repository: Path | None
    told: dict
    stderr: list
    access_log: Path | None = None

    @property
    def http(self):
        return f"127.0.0.1:{self.port}"

    @property
    def grpc(self):
        return f"127.0.0.1:{self.grpc_port}"

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


_started = []


@pytest.fixture(autouse=True)
def _none_is_left():
    """End what a test that failed has not ended."""
    yield
    for process in [process for process in _started if process.poll() is None]:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_S)
    _started.clear()


def serve(*options, repository=None, ports=None, wait=True, stays=False, **said):
    """Start an endpoint, and return when it takes requests; it ends with the test, or ``stays``. ``said`` is added to
    its environment."""
    port, grpc_port = ports or find_free_ports(2)
    words = ["serve", "--port", port, "--grpc-port", grpc_port, "--json", *options]
    if repository is not None:
        words += ["--model-repository", repository]
    process = start(
        *words, env=os.environ | {"RAY_ADDRESS": "local"} | said
    )  # its own Ray, whatever else runs on this machine
    if not stays:
        _started.append(process)
    lines = []
    threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
    served = Served(process, port, grpc_port, repository, {}, lines)
    if wait:
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            served.end()
        assert line, lines
        served.told = json.loads(line)
    return served


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    write_repository(repository)
    log = repository.with_name("access.jsonl")
    profile = repository.with_name("served.yaml")
    limits = "max_frame_pixels: 16000000\nmax_waiting_per_model: 16\n"
    profile.write_text(f"name: served\n{limits}people: {{videos_folder: {repository.with_name('videos')}}}\n")
    options = ["--profile", profile, "--replicas", 1, "--access-log", log, "--cors-origin", "https://example.org"]
    endpoint = serve(*options, repository=repository, stays=True)
    endpoint.access_log = log
    yield endpoint
    endpoint.end()
