"""Where a cluster is looked for, and where one is started: in processes of their own, each with its environment."""

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError

from genai_ray.cluster.runtime.connect import find_running
from genai_ray.cluster.runtime.token import _keep_token
from genai_ray.serve.deployment.ports import find_free_ports
from tests.processes import descendants, kill, listeners, title, wait_until
from tests.test_notebooks import BOTH_WAYS, FOLDER, execute
from tests.video.clips import write

pytestmark = pytest.mark.cluster

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def place():
    """Folders with short paths, as sockets need them."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def environment(**said):
    """Return this process's environment without what chooses a cluster or a folder, and with what is said."""
    chosen = (
        "RAY_ADDRESS",
        "RAY_TMPDIR",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    )
    return {name: value for name, value in os.environ.items() if name not in chosen} | {
        name: str(value) for name, value in said.items()
    }


def run_python(code, timeout_s=120, **said):
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**said),
    )


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
def client_port():
    """A port for Ray Client."""
    (port,) = find_free_ports(1)
    return port


@pytest.fixture(scope="module")
def cluster(place, client_port):
    """A cluster as ``ray start`` makes it, which wants a token, with its files below ``RAY_TMPDIR``; the folder and its
    address."""
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--port=0",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--block",
    ]
    command += ["--object-store-memory=100000000", "--memory=550000000", "--disable-usage-stats"]
    command += [f"--ray-client-server-port={client_port}"]
    folder = place / "there"
    folder.mkdir()
    said = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    head = subprocess.Popen(
        command, env=said, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    file = folder / "ray" / "ray_current_cluster"
    try:
        wait_until(file.is_file, head)
        wait_until(lambda: any("raylet" in title(pid) for pid in descendants(head.pid)), head)
        yield folder, file.read_text().strip()
    finally:
        for pid in [*descendants(head.pid, with_agents=True), head.pid]:
            kill(pid)
        head.wait()


@pytest.mark.parametrize("said", [{}, {"RAY_ADDRESS": "auto"}], ids=["unasked", "auto"])
def test_a_cluster_is_found_by_ray_starts_file_and_gets_a_token(cluster, place, said):
    folder, address = cluster
    done = run_python(_CONNECT, RAY_TMPDIR=folder, HOME=home_with(place, TOKEN), **said)
    assert done.stdout.split() == ["False", address], done.stderr


def test_a_named_cluster_takes_this_users_token(cluster, place):
    _, address = cluster
    done = run_python(_CONNECT, RAY_ADDRESS=address, HOME=home_with(place, TOKEN))
    assert done.stdout.split() == ["False", address], done.stderr


_PUT = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."
_NAME = "Name a file that this user can read, or unset the variable."
_STARTED = f"allowed: the token that it was started with. {_PUT}"


@pytest.mark.parametrize(
    ("token", "said", "words"),
    [
        (None, {}, f"the Ray cluster at ADDRESS requires a token, and this user has none; {_STARTED}"),
        ("f" * 64, {}, f"the Ray cluster at ADDRESS refuses this user's token; {_STARTED}"),
        (
            None,
            {"RAY_AUTH_MODE": "token"},
            f"RAY_AUTH_MODE=token, and this user has no token; allowed: the token of the cluster. {_PUT}",
        ),
        (
            None,
            {"RAY_AUTH_TOKEN_PATH": "/none"},
            f"RAY_AUTH_TOKEN_PATH=/none: this file cannot be read, or is empty; allowed: a file with a token. {_NAME}",
        ),
    ],
    ids=["none", "wrong", "mode", "path"],
)
def test_a_wrong_token_for_a_cluster_is_one_sentence_at_once(cluster, place, token, said, words):
    _, address = cluster
    command = [sys.executable, "-m", "genai_ray.cli", "cache", "status", "--address", address]
    home = home_with(place, token)
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env=environment(HOME=home, **said)
    )
    assert done.returncode == 2
    *others, line = done.stderr.splitlines()
    assert line == f"error: {words.replace('ADDRESS', address)}"
    assert len(others) <= (0 if said else 1)  # what Ray prints of one refusal


_OVER_RAY_CLIENT = """
import sys
import numpy as np
from genai_ray import BatchInference, ModelCache, enhance_videos, errors, read_videos
source, output = sys.argv[1:]
with ModelCache() as cache:
    session = cache.get_session("websr-x2-s")
    print(session.submit(session.submit(np.zeros((2, 20, 24, 3), np.uint8))).result().shape)
print(enhance_videos(source, output, models="websr-x2-s").frames)
for call in (lambda: read_videos(source), lambda: BatchInference("websr-x2-s").map(None)):
    try:
        call()
    except errors.ConfigError as exc:
        print(exc)
"""


NOT_STARTED = "no Ray cluster at ray://"
"""On a busy machine the process that Ray starts for a client now and then dies at once."""


def test_ray_client_carries_the_cache_and_jobs(cluster, client_port, place, tmp_path):
    source = write(tmp_path / "a.mp4", pts=list(range(8)))
    said = {"RAY_ADDRESS": f"ray://127.0.0.1:{client_port}", "HOME": home_with(place, TOKEN)}
    command = [sys.executable, "-c", _OVER_RAY_CLIENT, source, tmp_path / "b.mp4"]
    for _ in range(4):
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=240, env=environment(**said)
        )
        if NOT_STARTED not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    shape, frames, *refused = done.stdout.splitlines()
    assert (shape, frames) == ("(2, 80, 96, 3)", "8")
    assert len(refused) == 2
    assert all(line.startswith("Ray Data over ray://; allowed: ModelCache, its sessions and") for line in refused)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"ray://127.0.0.1:{closed.getsockname()[1]}"
    done = run_python(_CONNECT, RAY_ADDRESS=dead)
    assert f"no Ray cluster at {dead}: nothing answers there" in done.stderr


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_a_notebook_runs_over_ray_client(cluster, client_port, place):
    said = {"RAY_ADDRESS": f"ray://127.0.0.1:{client_port}", "HOME": home_with(place, TOKEN)}
    for trial in range(4):
        try:
            execute(FOLDER / f"{BOTH_WAYS}.ipynb", env=environment(**said))
            break
        except CellExecutionError as exc:
            if trial == 3 or NOT_STARTED not in str(exc):
                raise


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "requires a token, and this user has none"), ("f" * 64, "refuses this user's token")],
    ids=["none", "wrong"],
)
def test_ray_client_tells_of_a_wrong_token(cluster, client_port, place, token, words):
    address = f"ray://127.0.0.1:{client_port}"
    done = run_python(_CONNECT, RAY_ADDRESS=address, HOME=home_with(place, token))
    assert f"ConfigError: the Ray cluster at {address} {words}; allowed: the token" in done.stderr.splitlines()[-1]


_DOCTOR = """
from genai_ray.doctor.clusters import check_cluster
for finding in check_cluster(None):
    print(finding.name, finding.state, finding.detail, sep="|")
"""


@pytest.mark.parametrize(
    ("token", "state", "words"),
    [
        (None, "broken", "it requires a token, and this user has none"),
        ("f" * 64, "broken", "it requires a token, and refuses this user's"),
        (TOKEN, "ok", "it requires a token, and takes this user's"),
    ],
    ids=["none", "wrong", "right"],
)
def test_the_doctor_asks_a_cluster_for_its_token(cluster, place, token, state, words):
    _, address = cluster
    done = run_python(_DOCTOR, RAY_ADDRESS=address, HOME=home_with(place, token))
    assert done.stdout.splitlines()[1:] == [f"running|ok|at {address}", f"access|{state}|{words}"], done.stderr


_STAY = f"""
import os, sys
{_CONNECT}
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user")
def test_a_cluster_of_another_user_is_not_joined_unasked(place, monkeypatch, caplog):
    file = place / "foreign" / "ray" / "ray_current_cluster"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(file.parents[1]))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        file.write_text(address)
        assert find_running() == address
        os.chown(file, 54321, 54321)
        assert find_running() is None
        file.rename(file.with_name("of-root"))
        os.chown(file.with_name("of-root"), 0, 0)
        file.symlink_to("of-root")
        assert find_running() is None
        file.unlink()
        os.mkfifo(file)  # whoever reads it waits for ever
        assert find_running() is None
    assert f"the Ray cluster at {address} is another user's" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user")
@pytest.mark.parametrize("theirs", [".ray", ".ray/auth_token"])
def test_a_token_that_another_user_wrote_is_not_this_users(place, caplog, theirs):
    """As in a home that several share, such as /tmp: whoever wrote the token could run code in the cluster that takes
    it."""
    path = home_with(place, TOKEN) / ".ray" / "auth_token"
    _keep_token(path)
    os.chown(path.parents[1] / theirs, 54321, 54321)
    with pytest.raises(PermissionError):
        _keep_token(path)
    assert f"Ray's token in {path} belongs to another user" in caplog.text


_COMPUTE = f"""
{_STAY}
import numpy as np
import ray
from genai_ray import InferenceSession, ModelCache
from genai_ray.errors import ConfigError
with InferenceSession("websr-x2-s") as session:
    session.infer(np.zeros((1, 32, 32, 3), np.uint8))
cache = ModelCache(10**9)
cache.load_model("websr-x2-s")
cache.get_session("websr-x2-s").infer(np.zeros((1, 32, 32, 3), np.uint8))
fork = os.fork()
if not fork:
    try:
        cache.get_session("websr-x2-s")
    except ConfigError as exc:
        print(exc, flush=True)
    os._exit(0)
os.waitpid(fork, 0)
read = ray.remote(num_cpus=0, runtime_env={{"env_vars": {{"WORD": "of a task"}}}})(lambda: os.environ["WORD"])
print("computed", ray.get(read.remote()), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def staying(code, **said):
    """Start a process with a cluster of its own; gives the process and the cluster's folders, and lets it end."""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**said),
        start_new_session=True,
    )
    try:
        is_own, _, *folders = process.stdout.readline().split()
        assert is_own == "True"
        yield process, [Path(folder) for folder in folders]
    finally:
        process.stdin.close()
        process.wait()


_HOLD = """
import os, signal, sys
from genai_ray.files import make_folder
print(make_folder(base=sys.argv[1]))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""

_AS_ANOTHER = """
import os, sys
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
print(*(path for path in sys.argv[1:] if os.access(path, os.R_OK) or os.access(path, os.X_OK)), sep="\\n")
"""


def test_an_own_cluster_is_private_and_leaves_nothing(place):
    home, base, other = home_with(place, None), place / "a", place / "other"
    for folder in (home, base, other):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    place.chmod(0o755)
    left = Path(
        subprocess.run(
            [sys.executable, "-c", _HOLD, str(base)], check=False, capture_output=True, text=True
        ).stdout.strip()
    )
    assert left.parent == base
    with staying(_COMPUTE, HOME=home, RAY_TMPDIR=base, TMPDIR=other) as (process, (folder,)):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(
            f"this process is a fork of process {process.pid}, which is connected to Ray"
        )
        # Ray's agent of runtime environments starts when a task has one.
        assert process.stdout.readline() == "computed of a task\n"
        assert list(base.iterdir()) == [folder]  # what the dead process had left is gone
        inside = [path for path in folder.rglob("*") if "session_latest" not in path.parts]
        assert any(path.is_socket() for path in inside)
        token = home / ".ray" / "auth_token"
        assert (folder.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)
        if os.getuid() == 0:
            command = [sys.executable, "-c", _AS_ANOTHER, str(token), str(folder / "ray"), *map(str, inside)]
            assert subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.split() == []
        everybody = {process.pid, *descendants(process.pid, with_agents=True)}
        heard = listeners(everybody)
        assert len(heard) > 5
        assert [host for host, _, _ in heard if not ipaddress.ip_address(host).is_loopback] == []
        words = list(map(title, everybody))
        assert not [one for one in words if "monitor.py" in one or "dashboard" in one.partition(" ")[0].lower()]
    kept = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    # Measured sizes and prepared models; no telemetry among it.
    assert {path for path in kept if not path.startswith(".cache/genai_ray/")} == {".ray/auth_token"}
    assert [*base.iterdir(), *other.iterdir()] == []


_INTERRUPT = """
import os, signal, threading
import psutil
from genai_ray import ModelCache

def interrupt():
    while not any(child.name() == "raylet" for child in psutil.Process().children()):
        pass
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    ModelCache(10**9)
except KeyboardInterrupt:
    print([child.name() for child in psutil.Process().children(recursive=True)], os.listdir(os.environ["TMPDIR"]))
with ModelCache(10**9) as cache:
    print(cache.is_embedded, cache.loaded_models())
"""


def test_after_an_interrupted_start_the_next_one_works(place):
    home, base = home_with(place, None), place / "a"
    for folder in (home, base):
        folder.mkdir(exist_ok=True)
    done = run_python(_INTERRUPT, HOME=home, TMPDIR=base)
    assert done.stdout.splitlines() == ["[] []", "True []"], done.stderr


def test_a_long_temporary_path_works_and_the_token_is_private(place):
    home, long = home_with(place, TOKEN), place / ("long" * 30)
    long.mkdir()
    token = home / ".ray" / "auth_token"
    token.chmod(0o644)
    with staying(_STAY, HOME=home, TMPDIR=long) as (_, (folder, short)):
        assert folder.parent == long
        assert next(folder.glob("ray/session_2*/sockets/raylet")).is_socket()
        done = run_python(
            _CONNECT, HOME=home, TMPDIR=long, RAY_ADDRESS="auto"
        )  # it ends with its process: nobody else is to join it
        assert done.stderr.splitlines()[-1].startswith(
            "genai_ray.errors.ConfigError: no Ray cluster is running on this machine"
        ), done.stdout
        assert (token.read_text(), token.stat().st_mode & 0o777) == (TOKEN, 0o600)
    assert list(long.iterdir()) == []
    assert not short.exists()
