"""What is deployed on a cluster: ``serve run deployments/serve.yaml``, with the environment of ``ray-env.sh``."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml

from genai_ray import InferenceSession
from genai_ray.serve.deployment.ports import find_free_ports, find_port_block
from tests.processes import DEADLINE_S, descendants, is_alive, kill, listeners, wait_until
from tests.serve.test_http import feed

ROOT = Path(__file__).resolve().parents[2]


def _apart(folder):
    """Ray Serve's fixed ports and files, moved: others may run it on this machine."""
    names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
    ports = {f"RAY_SERVE_{name}": str(port) for name, port in zip(names, find_free_ports(len(names)), strict=True)}
    block = find_port_block(20)
    for index, kind in enumerate(("HTTP", "GRPC")):
        ports[f"RAY_SERVE_DIRECT_INGRESS_MIN_{kind}_PORT"] = str(block + 10 * index)
        ports[f"RAY_SERVE_DIRECT_INGRESS_MAX_{kind}_PORT"] = str(block + 10 * index + 9)
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return (
        ports
        | {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in files.items()}
        | {"RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder)}
    )


def _is_ready(port):
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False


@pytest.mark.cluster
@pytest.mark.slow
def test_the_serve_config_is_deployed_as_it_is_but_for_addresses(tmp_path):
    text = (ROOT / "deployments" / "serve.yaml").read_text()
    port, grpc_port = find_free_ports(2)
    config = yaml.safe_load(text)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["grpc_options"]["port"] = grpc_port
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    folder = Path(tempfile.mkdtemp(prefix="genai-ray-", dir="/tmp"))  # paths of sockets are short
    environment = (
        os.environ
        | _apart(folder)
        | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    )
    bin_folder = Path(sys.executable).parent
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    script = f'. {ROOT}/deployments/ray-env.sh && exec "$@"'
    command = ["sh", "-c", script, "sh", bin_folder / "serve", "run", str(tmp_path / "serve.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=tmp_path
        )
    mine = set()
    try:
        wait_until(lambda: process.poll() is not None or _is_ready(port))
        assert process.poll() is None, (tmp_path / "log").read_text()
        mine = descendants(process.pid)
        tensor = np.random.default_rng(5).random((1, 3, 24, 32), np.float32)
        with InferenceSession("websr-x2-s") as session:
            wanted = session.run({"input": tensor})["output"]
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=DEADLINE_S) as client:
            assert np.array_equal(
                client.infer("websr-x2-s", [feed("input", tensor, "FP32")]).as_numpy("output"), wanted
            )
            assert client.is_model_ready("websr-x2-s")
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
            again = tritonclient.grpc.InferInput("input", list(tensor.shape), "FP32")
            again.set_data_from_numpy(tensor)
            assert np.array_equal(client.infer("websr-x2-s", [again]).as_numpy("output"), wanted)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        connection.request("GET", "/openapi.json")
        assert "/v1/enhance" in json.loads(connection.getresponse().read())["paths"]
        connection.close()
        mine |= descendants(process.pid)
        closed = {int(environment[f"RAY_SERVE_HAPROXY_{name}_PORT"]) for name in ("METRICS", "STATS")}
        heard = {at for _, at, _ in listeners(mine)}
        assert port in heard
        assert not closed & heard
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_S)
        wait_until(lambda: not _is_ready(port))
    finally:
        for pid in {process.pid} | mine | descendants(process.pid):
            if is_alive(pid):
                kill(pid)
        process.wait()
        shutil.rmtree(folder)
