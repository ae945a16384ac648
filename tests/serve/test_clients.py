"""The endpoint against others: KServe's own client in an environment of its own, and a fuzz of every byte that a client
could send."""

import http.client
import json
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from genai_ray import InferenceSession
from tests.processes import descendants, title
from tests.serve.test_http import GOOD, post
from tests.serve.test_protocol import REQUESTS

pytestmark = pytest.mark.slow
HEADER = "Inference-Header-Content-Length"
GROWTH_BYTES = 64 * 1024**2


@pytest.mark.longest
def test_kserves_client(served, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-compile", "kserve>=0.15"], check=True, capture_output=True
    )
    generator = np.random.default_rng(3)
    tensor, frames = generator.random((1, 3, 24, 32), np.float32), generator.integers(0, 256, (2, 24, 32, 3), np.uint8)
    np.savez(tmp_path / "in.npz", tensor=tensor, frames=frames)
    script = Path(__file__).with_name("kserve_client.py")
    command = [python, script, served.http, served.grpc, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, found = json.loads(done.stdout.splitlines()[-1]), dict(np.load(tmp_path / "out.npz"))
    with InferenceSession("websr-x2-s") as session:
        wanted, wanted_frames = session.run({"input": tensor})["output"], session.infer(frames)
    for name in ("rest_binary", "rest_json", "grpc_tensor"):
        assert np.array_equal(found[name].reshape(wanted.shape).astype(np.float32), wanted), name
    assert np.array_equal(found["rest_frames"].reshape(wanted_frames.shape), wanted_frames)
    yes = ("live", "ready", "model_ready", "grpc_live", "grpc_ready", "grpc_model_ready")
    assert all(told[name] is True for name in yes), told
    assert told["nothing_ready"] is False
    assert (told["id_binary"], told["id_json"], told["server"]) == ("seven", "seven", "genai_ray")
    assert told["inputs"] == [["input", "FP32", [-1, 3, -1, -1]]]
    assert all("no model 'nothing'" in told[name] for name in ("rest_error", "grpc_error"))


def _whole(model):
    """A request that is right: JSON, binary tensors, and how many bytes are JSON."""
    names, shape = {"add-sub": (("a", "b"), [3, 4]), "identity-fp32": (("x",), [2, 2])}[model]
    size = 4 * int(np.prod(shape))
    inputs = [
        {"name": name, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}} for name in names
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + bytes(size * len(names)), len(head)


@st.composite
def damaged(draw):
    """A right request with some bytes changed, cut off or doubled, and perhaps another length."""
    model = draw(st.sampled_from(["add-sub", "identity-fp32"]))
    body, length = _whole(model)
    for position, byte in draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=4)):
        body = body[:position] + bytes([byte]) + body[position + 1 :]
    start, stop = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
    body = draw(st.sampled_from([body, body[:stop], body[:stop] + body[start:stop] + body[stop:]]))
    return model, body, str(max(0, length + draw(st.integers(-3, 3))))


@st.composite
def invented(draw):
    """Whatever JSON could be there, and whatever length could be said of it."""
    content = draw(st.one_of(REQUESTS.map(lambda value: json.dumps(value).encode()), st.binary(max_size=64)))
    tail = draw(st.binary(max_size=32))
    digits = st.one_of(st.integers().map(str), st.text("0123456789+-. eEx", max_size=5).map(str.strip))
    length = draw(st.one_of(st.none(), st.just(str(len(content))), digits))
    return draw(st.sampled_from(["identity-fp32", "identity-bytes", "add-sub", "logarithm"])), content + tail, length


def _replica_bytes(served):
    """Private bytes of the processes that take requests."""
    pids = [
        pid for pid in descendants(served.process.pid) if title(pid).startswith("ray::ServeReplica:genai_ray:Ingress")
    ]
    assert pids
    fields = [
        line.split()
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Private_")
    ]
    return sum(int(field[1]) for field in fields) * 1024


@pytest.mark.longest
def test_nothing_on_the_wire_is_a_500_or_ends_a_connection(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
    statuses = []

    @given(st.one_of(damaged(), invented()))
    @settings(
        max_examples=5000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send_one(case):
        model, body, length = case
        connection.request("POST", f"/v2/models/{model}/infer", body, {} if length is None else {HEADER: length})
        response = connection.getresponse()
        answer = response.read()
        assert response.status in (200, 400), (case, response.status, answer)
        assert response.status == 200 or json.loads(answer)["error"], case
        assert not response.will_close, case
        statuses.append(response.status)

    for model in ("add-sub", "identity-fp32", "identity-bytes", "logarithm"):
        connection.request("POST", f"/v2/repository/models/{model}/load")
        connection.getresponse().read()
    connection.connect()
    first = connection.sock
    before = _replica_bytes(served)
    send_one()
    assert connection.sock is first, "the connection died"
    assert statuses.count(400) > 2000
    assert statuses.count(200) > 50
    assert _replica_bytes(served) - before < GROWTH_BYTES
    assert post(served, "add-sub", {"inputs": GOOD})[0] == 200
    connection.close()
