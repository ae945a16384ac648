"""Fixtures shared by all tests: where things are, one Ray for the whole run, the command line, small clips."""

import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.crashes import use_stderr

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


os.environ["RAY_ENABLE_AUTO_CONNECT"] = (
    "0"  # a test without Ray that needs it fails at once; Ray would start or join one
)


def pytest_configure():
    use_stderr()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the tests beside these start and find clusters of their own
        os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="r")  # short: paths of sockets are at most 107 bytes


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


ASK_THE_ENDPOINT = {
    f"tests/serve/test_{name}.py"
    for name in (
        "clients", "environment", "grpc", "http", "lifecycle", "middleware", "openapi", "operations", "probes",
    )
}  # fmt: skip
"""Files whose tests ask one endpoint."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give files to processes, as ``--dist loadfile`` does, but those of the endpoint to one: another would start
    another endpoint."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneEndpoint(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "the endpoint" if file in ASK_THE_ENDPOINT else file

    return OneEndpoint(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """What sessions were measured to take is remembered for this run only, and nothing of the user's is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _ray_stays():
    """A test that ends the Ray of the others would make each of their jobs start its own, in silence."""
    ray = sys.modules.get("ray")
    was_connected = ray is not None and ray.is_initialized()
    yield
    assert not was_connected or ray.is_initialized(), "this test has ended the Ray of the other tests"


@pytest.fixture(scope="session")
def samples() -> Path:
    return ROOT / "samples"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "clips").is_dir():
        pytest.skip("../shared, with real clips, is not here")
    return SHARED


@pytest.fixture(scope="session")
def ray_session():
    """One embedded Ray for every test that needs one."""
    from genai_ray.cluster import disconnect
    from tests.rays import connect_tests

    connect_tests()
    yield
    disconnect()


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line with these words in this process, for what needs no process of its own; its result.

    A job needs ``ray_session`` too: it joins the Ray of this process.
    """
    from genai_ray.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["genai-ray", *map(str, words)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return Ended(stopped.value.code, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def in_shared_ray(ray_session):
    """The environment in which the command line joins the Ray of this run: starting one takes longer than most jobs."""
    import ray

    from genai_ray import ModelCache

    yield os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    ModelCache().shutdown()  # of these jobs; tests that count sessions come after


@pytest.fixture(scope="module")
def nodes():
    """A cluster of several raylets instead of the embedded Ray: a head without GPUs, nodes of logical GPUs by
    ``nodes.add(2)``."""
    from tests.nodes import Nodes

    with Nodes() as several:
        yield several


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 49, 61, 3), np.uint8)
