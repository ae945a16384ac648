"""Where a cluster is looked for, and where one is started: in processes of their own, each with its environment."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.processes import descendants, kill, title, wait_until

pytestmark = pytest.mark.cluster

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def place():
    """Folders with short paths, as sockets need them."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def environment(**said):
    """Return this process's environment without what chooses a cluster or a folder, and with what is said."""
    chosen = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return {name: value for name, value in os.environ.items() if name not in chosen} | {name: str(value) for name, value in said.items()}


def run_python(code, timeout_s=120, **said):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=timeout_s, env=environment(**said))


def home_with(place, token):
    """Return a home with a token, or with none."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=place))
    if token:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(token)
    return home


_CONNECT = """
from genai_ray.cluster import connect, own_folders
import ray
print(connect(), ray.get_runtime_context().gcs_address, *own_folders())
"""


@pytest.fixture(scope="module")
def cluster(place):
    """A cluster as ``ray start`` makes it, which wants a token, with its files below ``RAY_TMPDIR``; the folder and its address."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--block"]
    command += ["--object-store-memory=100000000", "--memory=500000000", "--disable-usage-stats"]
    folder = place / "there"
    folder.mkdir()
    said = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    head = subprocess.Popen(command, env=said, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    file = folder / "ray" / "ray_current_cluster"
    try:
        wait_until(file.is_file, head)
        wait_until(lambda: any("raylet" in title(pid) for pid in descendants(head.pid)), head)
        yield folder, file.read_text().strip()
    finally:
        for pid in [*descendants(head.pid, with_agents=True), head.pid]:
            kill(pid)
        head.wait()


def test_a_cluster_is_looked_for_where_ray_start_wrote_of_it_and_takes_this_users_token(cluster, place):
    folder, address = cluster
    done = run_python(_CONNECT, RAY_TMPDIR=folder, HOME=home_with(place, TOKEN))
    assert done.stdout.split() == ["False", address], done.stderr


def test_a_named_cluster_takes_this_users_token(cluster, place):
    _, address = cluster
    done = run_python(_CONNECT, RAY_ADDRESS=address, HOME=home_with(place, TOKEN))
    assert done.stdout.split() == ["False", address], done.stderr


@pytest.mark.parametrize(("token", "words"), [(None, "wants a token, and this user has none"), ("f" * 64, "refuses this user's token")])
def test_a_cluster_that_wants_another_token_is_one_sentence_at_once(cluster, place, token, words):
    _, address = cluster
    command = [sys.executable, "-m", "genai_ray.cli", "cache", "status", "--address", address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment(HOME=home_with(place, token)))
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # before it stands what Ray prints of one refusal
    assert line.startswith(f"error: the Ray cluster at {address} {words}; allowed: the token that it was started with. Put ")


def test_a_cluster_of_our_own_is_below_ray_tmpdir(place):
    chosen, other = place / "chosen", place / "other"
    other.mkdir()
    done = run_python(_CONNECT, RAY_TMPDIR=chosen, TMPDIR=other)
    is_own, _, folder = done.stdout.split()
    assert is_own == "True", done.stderr
    assert Path(folder).parent == chosen
    assert list(chosen.iterdir()) == []
