"""The endpoint where little is given: no home, a user that the system does not know, few open files, an address of
IPv6; and what listens to the network."""

import ipaddress
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from genai_ray.serve.deployment.ports import find_free_ports
from tests.processes import DEADLINE_S, descendants, listeners, title

pytestmark = pytest.mark.cluster

UNKNOWN_USER = 54321
NUM_FILES = 4096
OF_RAY_SERVE = ("ray::ServeReplica", "ray::ProxyActor")
"""Their servers of gRPC listen everywhere: Ray Serve has no option for it. What they take wants Ray's token, or comes
from HAProxy."""


def beyond_loopback(root):
    heard = listeners({root, *descendants(root, with_agents=True)})
    assert len(heard) > 10
    return {title(pid) for host, _, pid in heard if not ipaddress.ip_address(host).is_loopback}


def test_all_but_the_gRPC_of_ray_serve_listens_on_the_loopback(served):
    assert all(words.startswith(OF_RAY_SERVE) for words in beyond_loopback(served.process.pid))


@pytest.fixture
def bare():
    """A temporary folder with a short path, and the command's environment: no home, and none of the system's."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        kept = ("PATH", "LANG", "VIRTUAL_ENV")
        yield (
            Path(folder),
            {name: os.environ[name] for name in kept if name in os.environ}
            | {"TMPDIR": folder, "RAY_ADDRESS": "local"},
        )


def as_unknown_user():
    """Return what runs a command as a user without a name, a home or rights; empty if that may not be done here."""
    command = ["unshare", "--user", f"--map-user={UNKNOWN_USER}", f"--map-group={UNKNOWN_USER}"]
    allowed = (
        shutil.which("unshare") and subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
    )
    return command if allowed else []


def test_an_unknown_user_without_a_home_serves_on_ipv6(bare):
    folder, environment = bare
    port, grpc_port = find_free_ports(2)
    words = ["serve", "--host", "::1", "--port", str(port), "--grpc-port", str(grpc_port), "--replicas", "1", "--json"]
    limited = ["sh", "-c", f'ulimit -n {NUM_FILES}; exec "$@"', "sh", sys.executable, "-m", "genai_ray.cli", *words]
    user = as_unknown_user()
    if not user:
        environment["HOME"] = "/proc/none"
    with subprocess.Popen(
        [*user, *limited], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            select.select([process.stdout], [], [], DEADLINE_S)
            assert json.loads(process.stdout.readline())["http"] == f"http://[::1]:{port}"
            with urllib.request.urlopen(f"http://[::1]:{port}/v2/health/ready", timeout=60) as answer:
                assert json.load(answer) == {"ready": True}
            frames = np.zeros((1, 16, 16, 3), np.uint8)
            given = triton.InferInput("frames", frames.shape, "UINT8")
            given.set_data_from_numpy(frames)
            with triton.InferenceServerClient(f"[::1]:{grpc_port}") as client:
                assert client.infer("websr-x2-s", [given], parameters={"frames": True}).as_numpy("output").shape == (
                    1,
                    32,
                    32,
                    3,
                )
            heard = {host for host, at, _ in listeners(descendants(process.pid)) if at in (port, grpc_port)}
            assert heard == {"::1"}
        finally:
            process.terminate()
            _, told = process.communicate(timeout=DEADLINE_S)
    assert "is not writable: the cache folder is" in told
    assert "Traceback" not in told
    assert [path.name.partition("-cache-")[0] for path in folder.iterdir()] == ["genai-ray"]
