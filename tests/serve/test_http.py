"""The endpoint over HTTP, by tritonclient as it is, and by hand where no client would send such a thing."""

import asyncio
import gzip
import http.client
import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from genai_ray import InferenceSession
from tests.serve.contract import check_answer
from tests.serve.models import ELEMENTS

NUMBERS = [name for name in ELEMENTS if name not in ("BYTES", "BF16")]


@pytest.fixture(scope="module")
def client(served):
    with triton.InferenceServerClient(served.http, network_timeout=120, connection_timeout=120) as one:
        yield one


def sample(datatype, shape=(2, 3)):
    generator = np.random.default_rng(7)
    if datatype == "BYTES":
        return np.array([["a", "é", ""], ["some text", "b", "c"]], object)
    if datatype == "BOOL":
        return generator.integers(0, 2, shape).astype(bool)
    if datatype == "BF16":
        return (generator.integers(-9, 9, shape) / 4).astype(ml_dtypes.bfloat16)
    dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}.get(datatype) or np.dtype(datatype.lower())
    return (
        generator.normal(size=shape).astype(dtype)
        if datatype.startswith("FP")
        else generator.integers(0, 100, shape).astype(dtype)
    )


def feed(name, array, datatype, binary=True):
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def send(served, method, path, body=b"", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    check_answer(f"http://{served.http}", method, path, (response.status, response.headers, data))
    return response, data


def post(served, model, content, headers=None):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response, data = send(served, "POST", f"/v2/models/{model}/infer", body, headers)
    return response.status, json.loads(data), response


def test_what_the_server_says_of_itself(served, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    assert told["name"] == "genai_ray"
    assert set(told["extensions"]) == {
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "parameters",
        "statistics",
    }
    assert set(served.told["models"]) >= {"websr-x2-s", "add-sub", "versioned"}
    assert json.loads(send(served, "GET", "/v2/")[1]) == told


def test_metadata_and_configuration(client):
    told = client.get_model_metadata("add-sub")
    assert told["versions"] == ["1"]
    assert told["platform"] == "onnxruntime_onnx"
    assert told["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, 4]} for name in ("a", "b")]
    assert [output["name"] for output in told["outputs"]] == ["sum", "difference"]
    config = client.get_model_config("add-sub")
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_FP32", "dims": [-1, 4]}
    assert client.get_model_metadata("ffdnet")["properties"]["parameter:sigma"] == (
        "from 0 to 0.294, or 1 to 75 of 255; default 0.0588"
    )
    assert client.get_model_metadata("versioned")["versions"] == ["1", "2"]


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_comes_back(client, datatype):
    array = sample(datatype)
    answer = client.infer(f"identity-{datatype.lower()}", [feed("x", array, datatype)])
    result = answer.as_numpy("y")
    assert result.shape == array.shape
    if datatype == "BYTES":
        assert [item.decode() for item in result.reshape(-1)] == list(array.reshape(-1))
    else:
        assert result.dtype == array.dtype
        assert np.array_equal(result, array)


@pytest.mark.parametrize("datatype", [name for name in ELEMENTS if name not in ("FP16", "BF16")])
def test_every_datatype_as_json(client, datatype):
    array = sample(datatype)
    outputs = [triton.InferRequestedOutput("y", binary_data=False)]
    result = client.infer(
        f"identity-{datatype.lower()}", [feed("x", array, datatype, binary=False)], outputs=outputs
    ).as_numpy("y")
    assert (
        np.array_equal(result.astype(str), array.astype(str)) if datatype == "BYTES" else np.array_equal(result, array)
    )


def test_raw_tensors_equal_a_local_session(client):
    tensor = np.random.default_rng(1).random((1, 3, 40, 52), np.float32)
    with InferenceSession("websr-x2-s") as session:
        wanted = session.run({"input": tensor})["output"]
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("output", binary_data=binary)]
        answer = client.infer(
            "websr-x2-s", [feed("input", tensor, "FP32", binary)], outputs=outputs, request_id="seven"
        )
        assert np.array_equal(answer.as_numpy("output"), wanted)
        assert answer.get_response()["id"] == "seven"


def test_frames_equal_a_local_session_also_when_merged(served, frames):
    with InferenceSession("ffdnet") as session:
        wanted = [session.infer(frames[index : index + 1], {"sigma": 0.1}) for index in range(len(frames))]

    def ask(index):
        with triton.InferenceServerClient(served.http, network_timeout=120) as one:
            tensor = feed("frames", frames[index : index + 1], "UINT8")
            return one.infer("ffdnet", [tensor], parameters={"frames": True, "sigma": 0.1}).as_numpy("output")

    with ThreadPoolExecutor(6) as pool:
        for index, result in zip([0, 1, 2] * 4, pool.map(ask, [0, 1, 2] * 4), strict=True):
            assert np.array_equal(result, wanted[index])


@pytest.mark.parametrize("datatype", ["UINT8", "UINT16", "FP32"])
def test_frames_come_back_in_their_datatype(client, datatype):
    frames = np.full((1, 8, 8, 3), 0.5 if datatype == "FP32" else 100, datatype.lower().replace("fp", "float"))
    with InferenceSession("websr-x2-s") as session:
        wanted = session.infer(frames)
    result = client.infer("websr-x2-s", [feed("frames", frames, datatype)], parameters={"frames": True}).as_numpy(
        "output"
    )
    assert result.dtype == frames.dtype
    assert np.array_equal(result, wanted)


def test_requests_that_wait_are_merged(served, client):
    def ask(number):
        with triton.InferenceServerClient(served.http, network_timeout=120) as one:
            a, b = np.full((1, 4), number, np.float32), np.ones((1, 4), np.float32)
            answer = one.infer("merged", [feed("a", a, "FP32"), feed("b", b, "FP32")])
            return answer.as_numpy("sum")[0, 0], answer.as_numpy("difference")[0, 0]

    client.load_model("merged")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [(number + 1, number - 1) for number in range(8)]
    (stats,) = client.get_inference_statistics("merged")["model_stats"]
    assert stats["inference_count"] == 8
    assert stats["execution_count"] < 8
    assert max(batch["batch_size"] for batch in stats["batch_stats"]) > 1


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(client, algorithm, binary):
    a = np.arange(400, dtype=np.float32).reshape(100, 4)
    outputs = [triton.InferRequestedOutput("sum", binary_data=binary)]
    inputs = [feed("a", a, "FP32", binary), feed("b", a, "FP32", binary)]
    answer = client.infer(
        "add-sub",
        inputs,
        outputs=outputs,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(answer.as_numpy("sum"), a + a)


def test_what_every_http_library_accepts_does_not_pack_tensors(served):
    body = {
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2]}],
        "parameters": {"binary_data_output": True},
    }
    for accepted, packed in (("gzip, deflate", None), ("gzip", "gzip"), ("gzip;q=0", None), ("deflate", "deflate")):
        response, data = send(
            served, "POST", "/v2/models/identity-uint8/infer", json.dumps(body).encode(), {"Accept-Encoding": accepted}
        )
        assert response.getheader("Content-Encoding") == packed
        data = gzip.decompress(data) if packed == "gzip" else zlib.decompress(data) if packed else data
        length = int(response.getheader("Inference-Header-Content-Length"))
        assert data[length:] == b"\x01\x02"


def test_asynchronous_requests_and_chosen_outputs(client):
    pending = []
    for number in range(6):
        a = np.full((1, 4), number, np.float32)
        outputs = [triton.InferRequestedOutput("difference")]
        pending.append(
            client.async_infer("add-sub", [feed("a", a, "FP32"), feed("b", a, "FP32", binary=False)], outputs=outputs)
        )
    for one in pending:
        answer = one.get_result()
        assert answer.as_numpy("difference").tolist() == [[0, 0, 0, 0]]
        assert answer.as_numpy("sum") is None


def test_the_asynchronous_client(served):
    def pair(number):
        return [feed(name, np.full((1, 4), number, np.float32), "FP32", binary=name == "a") for name in ("a", "b")]

    async def story():
        async with triton_aio.InferenceServerClient(served.http) as one:
            assert await one.is_server_live()
            await one.load_model("add-sub")
            assert await one.is_model_ready("add-sub")
            assert (await one.get_model_metadata("add-sub"))["inputs"][1]["name"] == "b"
            words = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
            answers = await asyncio.gather(
                *(one.infer("add-sub", pair(number), **(words if number % 2 else {})) for number in range(12))
            )
            assert [answer.as_numpy("sum").tolist() for answer in answers] == [
                [[2 * number] * 4] for number in range(12)
            ]
            with pytest.raises(InferenceServerException, match="missing inputs"):
                await one.infer("add-sub", pair(0)[:1])
            assert "add-sub" in {entry["name"] for entry in await one.get_model_repository_index()}

    asyncio.run(story())


def test_a_load_with_a_configuration_is_refused(client):
    client.unload_model("identity-uint64")
    for parameters in ({"config": '{"max_batch_size": 4}'}, {"files": {"file:1/model.onnx": b"abc"}, "config": "{}"}):
        with pytest.raises(
            InferenceServerException, match=r"^\[400\] parameters \['config'.* of a load; allowed: none"
        ):
            client.load_model("identity-uint64", **parameters)
    assert not client.is_model_ready("identity-uint64")


def test_a_raw_request_is_all_tensor(served):
    body = np.arange(8, dtype=np.float32).tobytes()
    response, data = send(served, "POST", "/v2/models/logarithm/infer", body, {"Inference-Header-Content-Length": "0"})
    assert response.status == 200
    assert np.allclose(
        np.frombuffer(data[int(response.getheader("Inference-Header-Content-Length")) :], np.float32)[1:],
        np.log(np.arange(1, 8)),
    )


def test_versions(client):
    x = feed("x", np.zeros(2, np.float32), "FP32")
    for version, wanted in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        answer = client.infer("versioned", [x], model_version=version)
        assert answer.as_numpy("y").tolist() == [wanted, wanted]
        assert answer.get_response()["model_version"] == (version or "2")
    with pytest.raises(InferenceServerException, match="version '3' of model 'versioned'"):
        client.infer("versioned", [x], model_version="3")


def test_load_unload_and_the_index(served, client):
    name = "logarithm"
    client.load_model(name)
    assert client.is_model_ready(name)
    states = {(entry["name"], entry["version"]): entry for entry in client.get_model_repository_index()}
    assert states[name, "1"]["state"] == "READY"
    assert states["broken", "1"]["state"] == "UNAVAILABLE"
    (stats,) = client.get_inference_statistics(name)["model_stats"]
    (usage,) = stats["memory_usage"]
    assert usage["type"] == "CPU"
    assert usage["byte_size"] > 10**7
    client.unload_model(name)
    assert not client.is_model_ready(name)
    client.unload_model(name)
    ready = json.loads(send(served, "POST", "/v2/repository/index", b'{"ready": true}')[1])
    assert name not in {entry["name"] for entry in ready}
    assert client.infer(name, [feed("x", np.ones(1, np.float32), "FP32")]).as_numpy("y").tolist() == [0.0]
    assert client.is_model_ready(name)


def test_a_model_that_comes_later_is_found(served, client):
    from tests.serve.models import add_number

    with pytest.raises(InferenceServerException, match="no model 'later'"):
        client.get_model_metadata("later")
    add_number(served.repository / "later.onnx", 5)
    assert "later" in {entry["name"] for entry in client.get_model_repository_index()}
    assert client.infer("later", [feed("x", np.zeros(1, np.float32), "FP32")]).as_numpy("y").tolist() == [5.0]


def test_what_is_pinned_stays(served, client):
    assert client.is_model_ready("pinned")
    response, data = send(served, "POST", "/v2/repository/models/pinned/unload")
    assert response.status == 409
    assert "pinned" in json.loads(data)["error"]
    assert client.is_model_ready("pinned")


@pytest.mark.parametrize("path", ["index", "models/websr-x2-s/load", "models/websr-x2-s/unload"])
@pytest.mark.parametrize("parameters", [False, 0, "", []])
def test_parameters_that_are_no_object_are_refused(served, path, parameters):
    response, data = send(served, "POST", f"/v2/repository/{path}", json.dumps({"parameters": parameters}).encode())
    assert response.status == 400
    assert "JSON object" in json.loads(data)["error"]
    assert send(served, "POST", f"/v2/repository/{path}", b'{"parameters": null}')[0].status == 200


@pytest.mark.parametrize("ready", [0, "", []])
def test_ready_of_the_index_is_true_or_false(served, ready):
    response, data = send(served, "POST", "/v2/repository/index", json.dumps({"ready": ready}).encode())
    assert response.status == 400
    assert "true or false" in json.loads(data)["error"]


def test_a_broken_file_says_why(served):
    status, answer, response = post(
        served, "broken", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    )
    assert status == 503
    assert "broken.onnx is not a usable ONNX file" in answer["error"]
    assert response.getheader("Retry-After")
    (entry,) = [
        entry for entry in json.loads(send(served, "POST", "/v2/repository/index")[1]) if entry["name"] == "broken"
    ]
    assert entry["state"] == "UNAVAILABLE"
    assert "broken.onnx is not a usable ONNX file" in entry["reason"]
    assert post(served, "broken", {"inputs": []})[0] == 503


@pytest.mark.parametrize("binary", [True, False])
def test_an_output_without_axes(client, binary):
    x = feed("x", np.array([1, 2, 4], np.float32), "FP32", binary)
    answer = client.infer("total", [x], outputs=[triton.InferRequestedOutput("y", binary_data=binary)])
    assert answer.get_response()["outputs"][0]["shape"] == []
    assert answer.as_numpy("y") == 7.0


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v3", 404, "/v3"),
        ("GET", "/v2/models/add-sub/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/add-sub", 405, "Method Not Allowed"),
        ("GET", "/v2/models/ad-sub", 404, "Did you mean add-sub"),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404, "Not Found"),
        ("GET", "/v2/models/%2fetc%2fpasswd.onnx", 404, "Not Found"),
        ("GET", "/v2/models/add-sub/versions/9/ready", 404, "version '9'"),
        ("GET", "/v2/models/add-sub/", 404, "Not Found"),
        ("POST", "/v2/repository/models/nothing/load", 404, "no model 'nothing'"),
        ("POST", "/v2/repository/models/nothing/unload", 404, "no model 'nothing'"),
    ],
)
def test_wrong_ways(served, method, path, status, words):
    response, data = send(served, method, path)
    assert response.status == status
    assert set(json.loads(data)) == {"error"}
    assert words in json.loads(data)["error"]


GOOD = [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} for name in ("a", "b")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "nested too deep"),
        ({"inputs": GOOD[:1]}, "missing inputs ['b']"),
        ({"inputs": [*GOOD, {**GOOD[0], "name": "c"}]}, "unexpected inputs ['c']"),
        ({"inputs": [GOOD[0], GOOD[0]]}, "twice"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [1, 5], "data": [1] * 5}]}, "unexpected shape for input 'b'"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [-1, 4]}]}, "negative"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [2**62, 2**62]}]}, "more elements"),
        ({"inputs": [GOOD[0], {**GOOD[1], "data": [1]}]}, "1 elements"),
        ({"inputs": [GOOD[0], {**GOOD[1], "datatype": "FP64"}]}, "datatype FP64"),
        ({"inputs": [GOOD[0], {**GOOD[1], "datatype": "FP16"}]}, "FP16 as JSON"),
        ({"inputs": GOOD, "outputs": [{"name": "product"}]}, "unexpected outputs ['product']"),
        ({"inputs": GOOD, "parameters": {"timeout": -1}}, "timeout"),
        ({"inputs": GOOD, "parameters": {"timeout": "soon"}}, "timeout"),
        ({"inputs": GOOD, "parameters": {"frames": True}}, "not an image model"),
        (b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [NaN, 1, 1, 1]}]}', "NaN"),
    ],
)
def test_bad_requests(served, content, words):
    status, answer, _ = post(served, "add-sub", content)
    assert status == 400
    assert set(answer) == {"error"}
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("tensor", "parameters", "words"),
    [
        ({"datatype": "UINT8", "shape": [1, 2, 2, 4], "data": [0] * 16}, {}, "frames of shape"),
        ({"datatype": "UINT8", "shape": [0, 2, 2, 3], "data": []}, {}, "empty"),
        ({"datatype": "FP32", "shape": [1, 1, 1, 3], "data": [2, 0, 0]}, {}, "values from"),
        ({"datatype": "INT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}, {}, "one input of"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}, {"sigma": 0.7}, "sigma"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}, {"strength": 1}, "strength"),
    ],
)
def test_bad_frames(served, tensor, parameters, words):
    status, answer, _ = post(
        served, "ffdnet", {"inputs": [{"name": "frames", **tensor}], "parameters": {"frames": True, **parameters}}
    )
    assert status == 400
    assert words in answer["error"]


def test_answers_that_json_cannot_hold(served, client):
    x = {"name": "x", "datatype": "FP32", "shape": [1], "data": [-1]}
    status, answer, _ = post(served, "logarithm", {"inputs": [x]})
    assert status == 400
    assert "NaN" in answer["error"]
    assert np.isnan(client.infer("logarithm", [feed("x", np.array([-1], np.float32), "FP32")]).as_numpy("y")[0])


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Inference-Header-Content-Length": "9"}, b"{}", 400, "at most 2"),
        ({"Inference-Header-Content-Length": "-1"}, b"{}", 400, "whole number"),
        ({"Content-Encoding": "br"}, b"{}", 415, "br"),
        ({"Content-Encoding": "gzip"}, b"{}", 400, "not gzip"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 300 * 1024**2, 9), 413, "unpacks to more"),
        ({"Content-Length": str(300 * 1024**2)}, b" " * 3 * 1024**2, 413, "a body of"),
    ],
)
def test_bad_bodies(served, headers, body, status, words):
    response, data = send(served, "POST", "/v2/models/add-sub/infer", body, headers)
    assert response.status == status
    assert words in json.loads(data)["error"]


def test_deadlines(served, client):
    content = {"inputs": GOOD, "parameters": {"timeout": 1}}
    client.load_model("add-sub")
    status, answer, _ = post(served, "add-sub", content)
    assert (status, "not done within" in answer["error"]) == (504, True)
    client.unload_model("add-sub")
    status, answer, response = post(served, "add-sub", {**content, "parameters": {"timeout": 20_000}})
    assert status == 503
    assert "was not loaded" in answer["error"]
    assert response.getheader("Retry-After") == "1"


@pytest.mark.parametrize("name", ["docs/serve.md", "README.md"])
def test_the_example_of_the_documentation(served, capsys, name):
    page = (Path(__file__).resolve().parents[2] / name).read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.S)
    over_grpc = code.replace("tritonclient.http", "tritonclient.grpc").replace("127.0.0.1:8000", served.grpc)
    for text in (code.replace("127.0.0.1:8000", served.http), over_grpc):
        exec(text, {})
        assert capsys.readouterr().out.strip() == "(1, 288, 352, 3)"
