"""Starting and ending the endpoint: ports that are taken, signals, what a killed one leaves, replicas and sessions that
die."""

import contextlib
import http.client
import itertools
import json
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from genai_ray import InferenceSession, ModelCache, errors
from genai_ray.catalog import ServeProfile
from genai_ray.serve.deployment.endpoint import Endpoint
from genai_ray.serve.deployment.ports import find_free_ports, find_port_block
from tests.nodes import Nodes
from tests.processes import DEADLINE_S, crowding, descendants, is_alive, kill, rss_anon, run, title, wait_until
from tests.serve.conftest import serve
from tests.serve.models import add_number, add_sub
from tests.video.clips import NUM_FRAMES, write

LOAD_S = 60.0
END_WITHIN_S = 10.0
HAPROXY_WITHIN_S = 10.0
INGRESS = "ray::ServeReplica:genai_ray:Ingress"
NOISE_BYTES = 4_000_000
"""What the smallest processes, of 10 to 40 MB, take more or less by chance."""
KEPT_BYTES = 4 * 4 * 1024**2
"""What HAProxy's threads keep in buffers at the most; their pages are touched one after another."""


def listens(port):
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_second_endpoint_on_the_same_port_is_told_whose_it_is(served):
    done = run("serve", "--port", find_free_ports(1)[0], "--grpc-port", served.grpc_port)
    assert done.returncode == 2
    assert (
        f"port {served.grpc_port} on 127.0.0.1 is taken by the endpoint that process {served.process.pid} started"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    with pytest.raises(errors.ConfigError, match="two different ports"):
        Endpoint(ServeProfile(name="a", port=8000, grpc_port=8000)).start()


def test_nothing_of_the_ingress_is_open_to_the_network(served):
    is_proxy = lambda pid: title(pid).startswith("/") and "haproxy" in title(pid).split()[0]  # noqa: E731
    assert _listening(is_proxy, served.process.pid) == {("0100007F", served.port), ("0100007F", served.grpc_port)}


def _listening(is_meant, root):
    """Addresses, as the kernel writes them, and ports that some of the processes of an endpoint listen on."""
    sockets = set()
    for pid in filter(is_meant, descendants(root)):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(entry.readlink()))
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].rpartition(":")
                listening.add((address, int(port, 16)))
    return listening


def test_replicas_of_two_endpoints_share_no_port(served):
    mine = {
        port
        for _, port in _listening(lambda pid: title(pid).startswith("ray::ServeReplica"), served.process.pid)
        if 20_000 <= port < 30_000
    }
    assert len(mine) == 2
    block = find_port_block(100)
    assert not mine & set(range(block, block + 100))


def infer_slowly(port, results):
    frames = np.random.default_rng(0).integers(0, 256, (1, 180, 320, 3), np.uint8)  # replicas wait five seconds for it
    with triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120) as client:
        tensor = triton.InferInput("frames", frames.shape, "UINT8")
        tensor.set_data_from_numpy(frames)
        results.append(client.infer("waifu2x-x2", [tensor], parameters={"frames": True}).as_numpy("output"))
        results.append(frames)


@pytest.mark.cluster
def test_an_endpoint_whose_node_dies_ends_and_says_so():
    endpoint = serve("--replicas", 1, "--model", "websr-x2-s")
    children = descendants(endpoint.process.pid)
    kill(next(pid for pid in children if "raylet/raylet" in title(pid)))
    assert endpoint.process.wait(DEADLINE_S) == 1, endpoint.stderr
    wait_until(
        lambda: "error: the Ray node that this process started has died. Start the endpoint again.\n" in endpoint.stderr
    )
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert not listens(endpoint.port)


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.longest)])
def test_a_killed_endpoint_is_cleared_and_a_signal_lets_it_end(number):
    """What a killed one left goes at the next start. A signal ends that one: what is computed ends, and nothing is
    left."""
    killed = serve("--replicas", 1, "--model", "waifu2x-x2")
    time.sleep(2.5)  # twice a record's period is not waited for: what is not recorded ends by itself
    left = descendants(killed.process.pid)
    kill(killed.process.pid)
    killed.process.wait()
    wait_until(lambda: not listens(killed.port))  # HAProxy's manager may start one more as replicas disappear
    endpoint = serve("--replicas", 1, "--model", "waifu2x-x2", ports=(killed.port, killed.grpc_port))
    assert not any(is_alive(pid) for pid in left)
    wait_until(lambda: any("was killed" in line for line in endpoint.stderr), endpoint.process)
    client = triton.InferenceServerClient(endpoint.http, network_timeout=120)
    client.load_model("waifu2x-x2")
    (session_pid,) = (pid for pid in descendants(endpoint.process.pid) if title(pid).startswith("ray::SessionActor"))
    idle = _ticks(session_pid)
    results = []
    asking = threading.Thread(target=infer_slowly, args=(endpoint.port, results))
    asking.start()
    wait_until(lambda: _ticks(session_pid) > idle + 20, endpoint.process)
    mine = descendants(endpoint.process.pid)
    assert endpoint.end(number) == 0
    asking.join(60)
    result, frames = results
    with InferenceSession("waifu2x-x2") as session:
        assert np.array_equal(result, session.infer(frames))
    wait_until(lambda: not any(is_alive(pid) for pid in mine))
    assert not listens(endpoint.port)
    assert not listens(endpoint.grpc_port)
    assert not [line for line in endpoint.stderr if "Traceback" in line]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.longest), signal.SIGINT])
def test_a_signal_ends_an_endpoint_under_load_within_ten_seconds(number):
    """What was sent before the signal is answered or told to come again; what comes later is told so too, or finds
    nobody.

    Before it replicas are killed under a request that comes slowly, and then HAProxy; requests are taken again soon.
    """
    endpoint = serve("--replicas", 2, "--model", "websr-x2-s")
    _check_that_a_slow_request_outlives_a_change_of_replicas(endpoint)
    crowded = crowding()
    frames = np.random.default_rng(0).integers(0, 256, (1, 144, 176, 3), np.uint8)
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(frames)
    signalled, late = threading.Event(), []
    assert _s_until_taken_again(endpoint, frames, wanted) < HAPROXY_WITHIN_S * max(crowded, crowding())
    told = len(endpoint.stderr)

    def ask(outcomes, is_over):
        """Ask until the signal, of which the last request knows nothing; then as long as anybody is there."""
        _ask_until(endpoint.port, frames, wanted, signalled.is_set, outcomes, 0)
        _ask_until(endpoint.port, frames, wanted, lambda: is_over() or not listens(endpoint.port), late, 0)

    with _clients(ask, 16) as outcomes:
        wait_until(lambda: all(len(several) > 1 for several in outcomes), endpoint.process)
        mine, so_far = descendants(endpoint.process.pid, with_agents=True), len(_flat(outcomes))
        signalled.set()
        endpoint.process.send_signal(number)
        began = time.monotonic()
        assert endpoint.process.wait(DEADLINE_S) == 0, endpoint.stderr
        took_s = time.monotonic() - began
        assert not listens(endpoint.port)
        assert not listens(endpoint.grpc_port)
    assert len(_flat(outcomes)) > so_far
    assert set(_flat(outcomes)) <= {"right", "come again"}
    assert {word.partition(":")[0] for word in late} <= {"right", "come again", "broken"}
    assert took_s < END_WITHIN_S * max(crowded, crowding())
    wait_until(lambda: not any(is_alive(pid) for pid in mine))
    assert not [line for line in endpoint.stderr[told:] if "Traceback" in line]


def _s_until_taken_again(endpoint, frames, wanted):
    """Kill HAProxy, and return after how many seconds a request is answered."""
    kill(next(pid for pid in descendants(endpoint.process.pid) if "/haproxy" in title(pid).split(" ")[0]))
    began, outcomes = time.monotonic(), []
    wait_until(lambda: not listens(endpoint.port), endpoint.process)
    wait_until(lambda: listens(endpoint.port), endpoint.process)
    _ask_until(endpoint.port, frames, wanted, lambda: "right" in outcomes, outcomes, 0)
    return time.monotonic() - began


def _ticks(pid):
    """CPU time of a process."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def _check_that_a_slow_request_outlives_a_change_of_replicas(endpoint):
    """HAProxy starts anew whenever a replica comes or goes; what it has begun goes on in the old process."""

    def ingress():
        return {pid for pid in descendants(endpoint.process.pid) if "/haproxy" in title(pid).split(" ")[0]}

    frames = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8)
    head, body = _request_of(frames)
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=DEADLINE_S)
    connection.putrequest("POST", "/v2/models/websr-x2-s/infer")
    connection.putheader("Inference-Header-Content-Length", str(len(head)))
    connection.putheader("Content-Length", str(len(head) + len(body)))
    connection.endheaders(head)
    before = ingress()
    for word in (INGRESS, INGRESS.replace("Ingress", "Total")):
        kill(next(pid for pid in descendants(endpoint.process.pid) if title(pid).startswith(word)))
    wait_until(lambda: ingress() - before, endpoint.process)
    time.sleep(15.0)  # nothing to wait for: this is how slowly it comes
    connection.send(body)
    response = connection.getresponse()
    told = response.read()
    assert response.status == 200, told
    with InferenceSession("websr-x2-s") as session:
        assert told[int(response.getheader("Inference-Header-Content-Length")) :] == session.infer(frames).tobytes()
    connection.close()

    def counted():
        connection.request("GET", "/v2/models/websr-x2-s/stats")
        response = connection.getresponse()
        told = response.read()
        return response.status == 200 and json.loads(told)["model_stats"][0]["inference_count"] == 1

    wait_until(counted, endpoint.process)  # the replica told it to whoever took the place of the one that adds up
    connection.close()
    # The old process ends with its last connection.
    wait_until(lambda: num_ingresses(endpoint) == 2 and len(ingress()) == len(before), endpoint.process)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.longest
def test_every_request_is_answered_while_processes_are_killed(tmp_path):
    """Sixty-four clients for 60 s; right answers, or 503 with Retry-After; at most two broken connections for each
    replica that is killed.

    No process grows from the 20th second on, or from when what was killed has been replaced.
    """
    add_sub(tmp_path / "add-sub.onnx")
    endpoint = serve("--replicas", 2, "--model", "websr-x2-s", repository=tmp_path)
    frames, turn = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8), itertools.count()
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(frames)
    began = time.monotonic()
    with _clients(
        lambda outcomes, is_over: _ask_until(endpoint.port, frames, wanted, is_over, outcomes, next(turn)), 64
    ) as outcomes:
        for number, word in enumerate(("ray::SessionActor", INGRESS)):
            wait_until(lambda done=100 * (number + 1): len(_flat(outcomes)) > done, endpoint.process)
            kill(next(pid for pid in descendants(endpoint.process.pid) if title(pid).startswith(word)))
        wait_until(
            lambda: (
                time.monotonic() > began + LOAD_S / 3 and num_ingresses(endpoint) == 2 and len(_flat(outcomes)) > 1000
            ),
            endpoint.process,
        )
        before = anonymous_bytes(endpoint.process.pid)
        wait_until(lambda: time.monotonic() > began + LOAD_S, endpoint.process)
        after = anonymous_bytes(endpoint.process.pid)
    told = _flat(outcomes)
    counts = {word: told.count(word) for word in set(told)}
    assert counts.pop("right") > 500
    assert sum(counts.pop(word) for word in list(counts) if word.startswith("broken")) <= 2
    counts.pop("come again", None)
    assert not counts
    allowed = {
        what: 1.1 * size + (KEPT_BYTES if "haproxy" in what[1] else NOISE_BYTES) for what, size in before.items()
    }
    grown = {what: (before[what], now) for what, now in after.items() if what in before and now > allowed[what]}
    assert not grown
    assert endpoint.end() == 0


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.longest
def test_replicas_that_take_requests_scale_with_them(tmp_path):
    """One replica, many requests: another comes, as Ray Serve is told, and no request notices."""
    profile = tmp_path / "scaled.yaml"
    profile.write_text(
        "name: scaled\nmodels: [websr-x2-s]\nnum_replicas: 1\nmax_replicas: 2\nrequests_per_replica: 2\n"
    )
    endpoint = serve("--profile", profile)
    frames = np.random.default_rng(0).integers(0, 256, (1, 144, 176, 3), np.uint8)
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(frames)
    assert num_ingresses(endpoint) == 1
    with _clients(
        lambda outcomes, is_over: _ask_until(endpoint.port, frames, wanted, is_over, outcomes, 0), 16
    ) as outcomes:
        wait_until(lambda: num_ingresses(endpoint) == 2, endpoint.process)
        so_far = len(_flat(outcomes))
        wait_until(lambda: len(_flat(outcomes)) > so_far + 200, endpoint.process)
    assert set(_flat(outcomes)) == {"right"}
    assert endpoint.end() == 0


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.longest
def test_calls_over_grpc_outlive_the_replica_that_takes_them(tmp_path):
    """A replica is killed while calls are on their way: HAProxy sends them to the other one, or says UNAVAILABLE, which
    a second try mends."""
    endpoint = serve("--replicas", 2, "--model", "websr-x2-s", repository=tmp_path)
    _check_that_every_replica_finds(endpoint, tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8)
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(frames)
    with _clients(
        lambda outcomes, is_over: _call_until(endpoint.grpc, frames, wanted, is_over, outcomes), 8
    ) as outcomes:
        wait_until(lambda: len(_flat(outcomes)) > 100, endpoint.process)
        kill(next(pid for pid in descendants(endpoint.process.pid) if title(pid).startswith(INGRESS)))
        wait_until(lambda: num_ingresses(endpoint) == 1)
        so_far = len(_flat(outcomes))
        wait_until(lambda: num_ingresses(endpoint) == 2 and len(_flat(outcomes)) > so_far + 200, endpoint.process)
    counts = {word: _flat(outcomes).count(word) for word in set(_flat(outcomes))}
    assert counts.pop("right") > 300
    assert counts.pop("broken once", 0) <= 2
    assert not counts
    assert endpoint.end() == 0


def _check_that_every_replica_finds(endpoint, repository):
    """What one replica was told to look for, all have from then on."""

    def ask():
        with triton.InferenceServerClient(endpoint.http) as client:  # a connection of its own: any replica
            answer = client.infer("later", [tensor])
            return answer.get_response()["model_version"], answer.as_numpy("y").tolist()

    tensor = triton.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with triton.InferenceServerClient(endpoint.http) as client:
        for version in (1, 2):
            add_number(repository / "later" / str(version) / "model.onnx", version)
            assert "later" in {entry["name"] for entry in client.get_model_repository_index()}
            if version > 1:
                wait_until(
                    lambda: all(ask()[0] == "2" for _ in range(8)), endpoint.process
                )  # the newest version within half a second
            assert [ask() for _ in range(8)] == [(str(version), [version])] * 8


@contextlib.contextmanager
def _clients(ask, count):
    """Ask from so many threads until the block ends; gives the outcomes of each."""
    over, outcomes = threading.Event(), [[] for _ in range(count)]
    threads = [threading.Thread(target=ask, args=(several, over.is_set)) for several in outcomes]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a request hangs"


def _flat(outcomes):
    return [outcome for several in outcomes for outcome in several]


def _call_until(address, frames, wanted, is_over, outcomes):
    with triton_grpc.InferenceServerClient(address) as client:
        tensor = triton_grpc.InferInput("frames", list(frames.shape), "UINT8")
        tensor.set_data_from_numpy(frames)
        was_broken = False
        while not is_over():
            try:
                result = client.infer("websr-x2-s", [tensor], parameters={"frames": True}, client_timeout=100).as_numpy(
                    "output"
                )
            except InferenceServerException as exc:
                outcomes.append(
                    "broken once"
                    if "UNAVAILABLE" in exc.status() and not was_broken
                    else f"{exc.status()} {exc.message()}"
                )
                was_broken = True
                continue
            was_broken = False
            outcomes.append("right" if np.array_equal(result, wanted) else "wrong")


def num_ingresses(endpoint):
    return sum(title(pid).startswith(INGRESS) for pid in descendants(endpoint.process.pid))


def anonymous_bytes(root):
    """Return the anonymous memory of a process and of all that it started, by id and title."""
    found = {}
    for pid in {root, *descendants(root)}:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # it has ended
            found[pid, title(pid)] = rss_anon(pid)
    return found


def _request_of(frames):
    """Return (header, frames as bytes) of a binary request."""
    tensor = {
        "name": "frames",
        "datatype": "UINT8",
        "shape": list(frames.shape),
        "parameters": {"binary_data_size": frames.nbytes},
    }
    return json.dumps(
        {"inputs": [tensor], "parameters": {"frames": True, "binary_data_output": True}}
    ).encode(), frames.tobytes()


def _ask_until(port, frames, wanted, is_over, outcomes, index):
    one = index % len(frames)
    head, body_sent = _request_of(frames[one : one + 1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
    while not is_over():
        try:
            connection.request(
                "POST",
                "/v2/models/websr-x2-s/infer",
                head + body_sent,
                {"Inference-Header-Content-Length": str(len(head))},
            )
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as exc:
            outcomes.append(f"broken: {exc!r:.60}" if not isinstance(exc, TimeoutError) else "hung")
            connection.close()
            continue
        if response.status == 503 and response.getheader("Retry-After") and "error" in json.loads(body):
            outcomes.append("come again")
            time.sleep(0.1)
        elif response.status == 200:
            length = int(response.getheader("Inference-Header-Content-Length"))
            outcomes.append("right" if body[length:] == wanted[one].tobytes() else "wrong")
        else:
            outcomes.append(f"{response.status} {body[:200]}")
    connection.close()


def _check_that_open_ports_are_refused(nodes):
    """A node whose HAProxy would open its ports for statistics and metrics comes and goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        open_one = nodes.add()
    refused = run("serve", "--address", nodes.cluster.address, "--port", find_free_ports(1)[0], "--grpc-port", 0)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "would open its ports for statistics (8404) and metrics (9101) to every network" in refused.stderr
    nodes.remove(open_one)
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)


@pytest.mark.cluster
@pytest.mark.slow
def test_an_endpoint_leaves_a_joined_cluster_as_it_was(tmp_path):
    clip = write(tmp_path / "a.mkv", tracks=0)
    profile = tmp_path / "joined.yaml"
    profile.write_text(f"name: joined\npeople: {{videos_folder: {tmp_path / 'videos'}}}\n")
    frames = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8)
    with Nodes(serves_metrics=True) as nodes:
        nodes.add()
        _check_that_open_ports_are_refused(nodes)
        endpoint = serve(
            "--address", nodes.cluster.address, "--profile", profile, "--replicas", 2, "--model", "websr-x2-s"
        )
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=DEADLINE_S)

        def ask(method, path, body=None, **headers):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers

        head, body = _request_of(frames)
        status, told, headers = ask(
            "POST", "/v2/models/websr-x2-s/infer", head + body, **{"Inference-Header-Content-Length": str(len(head))}
        )
        assert status == 200, told
        with InferenceSession("websr-x2-s") as session:
            assert told[int(headers["Inference-Header-Content-Length"]) :] == session.infer(frames).tobytes()
        status, told, _ = ask(
            "POST", "/v1/videos?model=websr-x2-s&format=mkv", clip.read_bytes(), **{"Content-Type": "video/x-matroska"}
        )
        assert status == 202, told
        job = f"/v1/videos/{json.loads(told)['id']}"
        wait_until(lambda: json.loads(ask("GET", job)[1])["state"] in ("done", "failed"), endpoint.process)
        report = json.loads(ask("GET", job)[1])["report"]
        assert report["frames"] == NUM_FRAMES
        connection.close()
        other = run("serve", "--address", nodes.cluster.address, "--port", find_free_ports(1)[0], "--grpc-port", 0)
        assert (other.returncode, other.stdout) == (2, "")
        assert "Ray Serve runs in this cluster already" in other.stderr
        assert ask("GET", "/v2/health/ready")[0] == 200
        with ModelCache() as guest:  # as the README has it
            assert guest.loaded_models() == ["websr-x2-s"]
        status, told, _ = ask(
            "POST", "/v2/models/websr-x2-s/infer", head + body, **{"Inference-Header-Content-Length": str(len(head))}
        )
        assert status == 200, told
        ModelCache().shutdown()  # the cache that the endpoint uses too
        status, told, _ = ask(
            "POST", "/v2/models/websr-x2-s/infer", head + body, **{"Inference-Header-Content-Length": str(len(head))}
        )
        assert (status, b"shut down" in told) == (503, True)
        assert ask("GET", "/v2/health/ready")[0] in (200, 503)  # each replica finds out by itself
        connection.close()

        def is_well():
            connection.close()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return (
                    ask(
                        "POST",
                        "/v2/models/websr-x2-s/infer",
                        head + body,
                        **{"Inference-Header-Content-Length": str(len(head))},
                    )[0]
                    == 200
                )
            return False

        wait_until(is_well, endpoint.process)
        connection.close()
        assert endpoint.end() == 0
        wait_until(
            lambda: (
                not any(entry["name"].startswith("SERVE") for entry in ray.util.list_named_actors(all_namespaces=True))
            )
        )
        assert not listens(endpoint.port)
        assert not listens(endpoint.grpc_port)
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        assert not [line for line in endpoint.stderr if "Traceback" in line or "graceful_shutdown" in line]
