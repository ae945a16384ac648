"""What an operator looks at: metrics, the access log, tokens, origins, limits."""

import gzip
import hashlib
import http.client
import json
import queue
import re
import select
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from genai_ray import errors
from genai_ray.catalog import ServeProfile
from genai_ray.inspection import find_model
from genai_ray.serve.deployment.endpoint import Endpoint, read_token
from genai_ray.serve.engine.limits import Admission, check_frame_sizes, check_result, check_tensor_sizes
from genai_ray.serve.http.middleware import bears_token
from tests.processes import foreign_files, wait_until
from tests.serve.conftest import serve
from tests.serve.test_http import feed, post, send

ROOT = Path(__file__).resolve().parents[2]


def figures(served):
    response, data = send(served, "GET", "/metrics")
    assert response.status == 200
    assert response.getheader("Content-Type").startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def test_metrics_follow_what_is_asked(served):
    with tritonclient.http.InferenceServerClient(served.http, network_timeout=120) as client:
        x = feed("x", np.ones((1, 1), np.int16), "INT16")
        client.infer("identity-int16", [x])
        before = figures(served)
        for _ in range(3):
            client.infer("identity-int16", [x])
        send(served, "GET", "/v2/models/nothing")
        after = figures(served)
    rise = {key: after[key] - before.get(key, 0) for key in after}
    model = ("1", "identity-int16")
    assert rise["genai_ray_request_seconds_count", model] == 3
    assert rise["genai_ray_request_seconds_bucket", ("+Inf", *model)] == 3
    assert rise["genai_ray_batch_size_sum", model] == 3
    assert rise["genai_ray_compute_seconds_total", model] > 0
    assert rise["genai_ray_responses_total", ("200", "http")] >= 4
    assert rise["genai_ray_responses_total", ("404", "http")] == 1
    assert after["genai_ray_cache_budget_bytes", ()] > after["genai_ray_cache_used_bytes", ()] > 0
    assert after["genai_ray_cache_loads_total", ()] >= 1
    assert after["genai_ray_cache_reuses_total", ()] <= after["genai_ray_cache_loads_total", ()]
    assert any(
        name == "genai_ray_session_bytes" and any(word.endswith("identity-int16.onnx") for word in labels)
        for name, labels in after
    )
    names = {name for name, _ in after}
    documented = re.findall(r"`(genai_ray_\w+)`", (ROOT / "docs" / "operate.md").read_text())
    assert len(documented) > 10
    assert [name for name in documented if name not in names and f"{name}_count" not in names] == []


def test_every_query_of_dashboard_and_alerts_finds_its_metric(served):
    with tritonclient.http.InferenceServerClient(served.http, network_timeout=120) as client:
        client.infer("identity-int16", [feed("x", np.ones((1, 1), np.int16), "INT16")])
    families = list(text_string_to_metric_families(send(served, "GET", "/metrics")[1].decode()))
    samples = [sample for family in families for sample in family.samples]
    folder = ROOT / "deployments" / "monitoring"
    rules = yaml.safe_load((folder / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    queries = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    asked = set(re.findall(r"\bgenai_ray_\w+", " ".join(queries)))
    assert len(asked) > 10
    assert asked <= {sample.name for sample in samples}
    grouped = {
        label.strip() for labels in re.findall(r" by \(([^)]+)\)", " ".join(queries)) for label in labels.split(",")
    }
    assert {"protocol", "model", "model_id"} <= grouped <= {label for sample in samples for label in sample.labels}


def test_the_access_log_has_a_line_for_each_request(served):
    response, _ = send(
        served, "GET", "/v2/models/add-sub?note=1", headers={"X-Request-Id": "log-me", "X-Forwarded-For": "8.8.8.8"}
    )
    assert response.getheader("x-request-id") == "log-me"
    wait_until(lambda: "log-me" in served.access_log.read_text())
    (line,) = [json.loads(line) for line in served.access_log.read_text().splitlines() if "log-me" in line]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v2/models/add-sub", 200)
    assert line["client"] == "127.0.0.1"  # whatever it says
    assert line["sent_bytes"] > 0
    assert line["ms"] >= 0


def test_pages_of_an_allowed_origin_may_call(served):
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "inference-header-content-length",
    }
    response, _ = send(served, "OPTIONS", "/v2/models/add-sub/infer", headers=asked)
    assert response.status == 200
    assert response.getheader("Access-Control-Allow-Origin") == "https://example.org"
    response, _ = send(served, "GET", "/v2", headers={"Origin": "https://example.org"})
    exposed = response.getheader("Access-Control-Expose-Headers")
    assert {"Inference-Header-Content-Length", "Retry-After", "Location", "Server-Timing", "X-Model"} <= set(
        exposed.split(", ")
    )
    response, _ = send(served, "GET", "/v2", headers={"Origin": "https://other.org"})
    assert response.getheader("Access-Control-Allow-Origin") is None


def test_a_result_too_large_is_refused_before_computing(served):
    frames = np.zeros((1, 4000, 4000, 3), np.uint8)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "frames",
                    "datatype": "UINT8",
                    "shape": list(frames.shape),
                    "parameters": {"binary_data_size": frames.nbytes},
                }
            ],
            "parameters": {"frames": True, "binary_data_output": True},
        }
    ).encode()
    response, data = send(
        served,
        "POST",
        "/v2/models/realesr-animevideov3-x4/infer",
        head + frames.tobytes(),
        {"Inference-Header-Content-Length": str(len(head))},
    )
    assert response.status == 400
    assert "whose result has 768000000 bytes" in json.loads(data)["error"]


def test_frames_of_too_many_pixels_are_refused(served):
    head = {
        "inputs": [
            {
                "name": "frames",
                "datatype": "UINT8",
                "shape": [1, 1, 16_000_001, 3],
                "parameters": {"binary_data_size": 48_000_003},
            }
        ]
    }
    text = json.dumps(head | {"parameters": {"frames": True, "binary_data_output": True}}).encode()
    body = gzip.compress(text + bytes(48_000_003), 1)
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Encoding": "gzip"}
    response, data = send(served, "POST", "/v2/models/websr-x2-s/infer", body, headers)
    assert response.status == 400
    assert json.loads(data)["error"] == "frames of 16000001x1; allowed: 16000000 pixels each. Send smaller ones."


def test_json_and_numbers_of_tensors_are_limited(served):
    for path, size, words in (
        ("/v2/models/add-sub/infer", 32 * 1024**2 + 1, "33554433 bytes of JSON; allowed: 33554432"),
        ("/v2/repository/index", 64 * 1024 + 1, "a body of 65537 bytes; allowed: 65536"),
    ):
        response, data = send(served, "POST", path, b" " * size)
        assert response.status == 413
        assert words in json.loads(data)["error"]
    for kind in ("inputs", "outputs"):
        content = {"inputs": [{"name": "x"}]} | {kind: [{"name": str(index)} for index in range(1025)]}
        status, answer, _ = post(served, "identity-int64", content)
        assert status == 400
        assert "1025" in answer["error"] or kind == "outputs"
    names = [{"name": f"{'x' * 300}{index}"} for index in range(1000)]
    status, answer, _ = post(
        served,
        "identity-int64",
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [1]}], "outputs": names},
    )
    assert status == 400
    assert "and 992 more" in answer["error"]
    assert len(answer["error"]) < 1000


def test_results_and_waiting_requests_are_counted():
    profile = ServeProfile(name="a", max_output_bytes=100, max_waiting=3, max_waiting_per_model=2, max_frame_pixels=50)
    check_result([np.zeros(60, np.uint8), np.zeros(10, np.float32)], profile)
    with pytest.raises(errors.InvalidInputError, match=r"has 101 bytes; allowed: 100 bytes"):
        check_result([np.zeros(60, np.uint8), np.zeros(41, np.uint8)], profile)
    check_frame_sizes(np.zeros((1, 2, 4, 3), np.uint8), 2, profile)
    for shape, scale, words in (((1, 3, 17, 3), 1, "17x3"), ((2, 2, 5, 3), 2, "has 240 bytes")):
        with pytest.raises(errors.InvalidInputError, match=words):
            check_frame_sizes(np.zeros(shape, np.uint8), scale, profile)
    spec = find_model("websr-x2-s")[0]
    check_tensor_sizes({"input": np.zeros(25, np.uint8), "more": np.zeros(1, np.uint8)}, spec, profile)
    with pytest.raises(errors.InvalidInputError, match="has 104 bytes"):
        check_tensor_sizes({"input": np.zeros(26, np.uint8)}, spec, profile)
    check_tensor_sizes({"input": np.zeros(999, np.uint8)}, find_model("selfie-segmentation")[0], profile)
    admission = Admission(profile)
    with admission.admit_to("a"), admission.admit_to("a"):
        with (
            pytest.raises(
                errors.TooManyRequestsError, match="2 requests for a in this replica; allowed: 2 at the same time"
            ),
            admission.admit_to("a"),
        ):
            pass
        with admission.admit_to("b"):
            pass
    with admission.admit_to("a"):
        pass
    with admission.place(), admission.place():
        with (
            admission.place(),
            pytest.raises(errors.TooManyRequestsError, match="3 requests in this replica; allowed: 3 at the same time"),
            admission.place(),
        ):
            pass
        with admission.place():
            pass


@pytest.mark.slow
def test_too_many_requests_for_one_model_leave_room_for_others(served):
    """Sixteen wait for others to be merged with; the server lets no more wait for that model."""
    content = {
        "inputs": [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} for name in ("a", "b")]
    }
    send(served, "POST", "/v2/repository/models/patient/load")
    waiting = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=120) for _ in range(16)]
    tensors = [tritonclient.grpc.InferInput(name, [1, 4], "FP32") for name in ("a", "b")]
    for tensor in tensors:
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    refused = None
    while refused is None:  # once, but on a machine so slow that they are done before the next one comes
        for connection in waiting:
            connection.request("POST", "/v2/models/patient/infer", json.dumps(content))
        while refused is None and not select.select([connection.sock for connection in waiting], [], [], 0)[0]:
            status, told, response = post(served, "patient", content | {"parameters": {"timeout": 1}})
            with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
                try:
                    client.infer("patient", tensors, timeout=1)
                except InferenceServerException as exc:
                    refused = exc if status == 429 and "RESOURCE_EXHAUSTED" in str(exc) else None
        assert post(served, "add-sub", content)[0] == 200
        answers = [connection.getresponse() for connection in waiting]
        statuses = [(answer.status, answer.read())[0] for answer in answers]
    assert statuses == [200] * 16
    assert response.getheader("Retry-After") == "1"
    assert told["error"].startswith("16 requests for patient in this replica; allowed: 16 at the same time")


def test_tokens(tmp_path):
    path = tmp_path / "token"
    path.write_text("secret-words-of-mine\n")
    digest = read_token(path)
    assert digest == hashlib.sha256(b"secret-words-of-mine").hexdigest()
    for authorization, allowed in (
        ("Bearer secret-words-of-mine", True),
        ("bearer secret-words-of-mine", True),
        ("Bearer other", False),
        ("Basic x", False),
        ("", False),
    ):
        assert bears_token(authorization, digest) is allowed
    assert bears_token("", None)
    for content in ("", "two words", "geheimß"):
        path.write_text(content)
        with pytest.raises(errors.ConfigError, match="token file"):
            read_token(path)
    with pytest.raises(errors.ConfigError, match="token file"):
        read_token(tmp_path / "nowhere")


def test_an_open_endpoint_is_warned_of():
    assert Endpoint(ServeProfile(name="a")).warnings == []
    assert Endpoint(ServeProfile(name="a", host="0.0.0.0", token_sha256="0" * 64)).warnings == []
    (warning,) = Endpoint(ServeProfile(name="a", host="0.0.0.0")).warnings
    assert "open to the network" in warning


@pytest.mark.cluster
def test_without_the_token_only_health_is_answered(tmp_path):
    (tmp_path / "token").write_text("open-sesame")
    home = tmp_path / "home"
    said = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    served = serve(
        "--replicas",
        1,
        "--model",
        "websr-x2-s",
        "--token-file",
        tmp_path / "token",
        "--cors-origin",
        "https://example.org",
        **said,
    )
    bearer = {"authorization": "Bearer open-sesame"}
    try:
        for path, status in (
            ("/v2/health/ready", 200),
            ("/v2", 401),
            ("/metrics", 401),
            ("/v2/models/websr-x2-s", 401),
            ("/nowhere", 401),
        ):
            response, data = send(served, "GET", path)
            assert response.status == status
            assert status == 200 or "Bearer" in json.loads(data)["error"]
            response, _ = send(served, "GET", path, headers={"origin": "https://example.org"})
            assert (
                response.getheader("access-control-allow-origin") == "https://example.org"
            )  # also where it is refused: a page could not tell why
            assert send(served, "GET", path, headers=bearer)[0].status == (404 if path == "/nowhere" else 200)
        with tritonclient.http.InferenceServerClient(served.http) as client:
            assert client.get_server_metadata(headers=bearer)["name"] == "genai_ray"
            tensor = np.zeros((1, 3, 16, 16), np.float32)
            assert client.infer("websr-x2-s", [feed("input", tensor, "FP32")], headers=dict(bearer)).as_numpy(
                "output"
            ).shape == (1, 3, 32, 32)
        with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
            assert client.is_server_live()
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.get_server_metadata()
            told = queue.Queue()
            client.start_stream(lambda result, error: told.put(error))
            assert "UNAUTHENTICATED" in str(told.get(timeout=120))
            client.stop_stream()
            assert client.get_server_metadata(headers=bearer).name == "genai_ray"
    finally:
        assert served.end() == 0
    assert foreign_files(home) == []  # no runtime keeps an id of this device, or counts its use
