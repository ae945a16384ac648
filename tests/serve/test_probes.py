"""What probes and tools ask over gRPC, and corners of the protocol, at a real endpoint."""

import asyncio
import json
import queue
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import helper, numpy_helper
from tritonclient.grpc import service_pb2

from genai_ray.serve.oip.grpc import InferenceServicer
from genai_ray.serve.oip.messages import METHODS
from tests.serve.models import add_number, value, write
from tests.serve.test_grpc import feed

SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x03"
SERVICE = "inference.GRPCInferenceService"


def asked(service):
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


@pytest.fixture(scope="module")
def channel(served):
    with grpc.insecure_channel(served.grpc) as one:
        yield one


def post(served, path, content):
    request = urllib.request.Request(f"http://{served.http}{path}", json.dumps(content).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


def test_health_is_told_as_probes_ask_for_it(channel):
    check, watch = (
        channel.unary_unary("/grpc.health.v1.Health/Check"),
        channel.unary_stream("/grpc.health.v1.Health/Watch"),
    )
    for service in ("", SERVICE):
        assert check(asked(service), timeout=60) == SERVING
        watched = watch(asked(service), timeout=60)
        assert next(watched) == SERVING
        watched.cancel()
    with pytest.raises(grpc.RpcError) as refused:
        check(asked("nobody.Service"), timeout=60)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watched = watch(asked("nobody.Service"), timeout=60)
    assert next(watched) == SERVICE_UNKNOWN
    watched.cancel()


def test_reflection_describes_the_services(channel):
    tool = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(tool.get_services())
    for symbol, methods in ((SERVICE, {*METHODS, "ModelStreamInfer"}), ("grpc.health.v1.Health", {"Check", "Watch"})):
        file = tool.FindFileContainingSymbol(symbol)
        assert {method.name for service in file.service for method in service.method} == methods


def test_null_is_as_if_it_was_not_said(served):
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], "parameters": None}
        for name in ("a", "b")
    ]
    outputs = [{"name": "sum", "parameters": None}]
    for content in (
        {"inputs": tensors, "parameters": None, "outputs": outputs, "id": None},
        {"inputs": tensors, "parameters": {"binary_data_output": None, "timeout": None}, "outputs": None},
    ):
        status, told = post(served, "/v2/models/add-sub/infer", content)
        assert status == 200, told
        assert told["outputs"][0]["data"] == [2, 4, 6, 8]
    assert post(served, "/v2/repository/index", {"ready": None})[0] == 200
    assert post(served, "/v2/repository/models/add-sub/load", {"parameters": None})[0] == 200
    assert post(served, "/v2/repository/models/add-sub/unload", {"parameters": {"unload_dependents": None}})[0] == 200


def test_a_model_without_inputs_and_one_named_stats_are_served(served):
    constant = numpy_helper.from_array(np.arange(3, dtype=np.float32), "value")
    write(
        served.repository / "alone.onnx",
        [helper.make_node("Constant", [], ["y"], value=constant)],
        [],
        [value("y", "FP32", (3,))],
    )
    add_number(served.repository / "stats.onnx", 4)
    try:
        status, told = post(served, "/v2/repository/index", {})
        assert status == 200
        (entry,) = (entry for entry in told if entry["name"] == "stats")
        assert "/v2/models/stats/versions/" in entry["reason"]
        assert post(served, "/v2/models/alone/infer", {"inputs": []})[1]["outputs"][0]["data"] == [0, 1, 2]
        assert post(served, "/v2/models/alone/infer", {})[1]["outputs"][0]["data"] == [0, 1, 2]
        with triton_http.InferenceServerClient(served.http) as client:
            assert client.infer("alone", []).as_numpy("y").tolist() == [0, 1, 2]
        with triton.InferenceServerClient(served.grpc) as client:
            assert client.infer("alone", []).as_numpy("y").tolist() == [0, 1, 2]
            assert client.get_model_metadata("stats").name == "stats"
        content = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
        assert post(served, "/v2/models/stats/infer", content)[1]["outputs"][0]["data"] == [5]
        status, told = post(served, "/v2/models/add-sub/infer", {"inputs": []})
        assert (status, "missing inputs ['a', 'b']" in told["error"]) == (400, True)
    finally:
        for name in ("alone", "stats"):
            post(served, f"/v2/repository/models/{name}/unload", {})
            (served.repository / f"{name}.onnx").unlink()
        post(served, "/v2/repository/index", {})


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_last_response_of_a_stream_request_says_so_if_asked(served, is_wanted):
    answers = queue.Queue()
    array = np.ones((1, 4), np.float32)
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "add-sub", [feed("a", array, "FP32"), feed("b", array, "FP32")], enable_empty_final_response=is_wanted
        )
        result, error = answers.get(timeout=120)
        client.stop_stream()
    assert error is None
    told = result.get_response().parameters
    assert ("triton_final_response" in told) == is_wanted
    assert not is_wanted or told["triton_final_response"].bool_param


def test_a_stream_whose_requests_break_off_ends(caplog):
    """Also if the iterator of requests raises: nobody waits for ever."""

    class Context:
        code = None

        def peer(self):
            return "ipv4:127.0.0.1:1"

        def invocation_metadata(self):
            return ()

        def set_code(self, code):
            self.code = code

        def set_details(self, details):
            pass

    async def requests():
        yield service_pb2.ModelInferRequest(id="1").SerializeToString()
        raise ConnectionError("the client has gone")

    class Alone(InferenceServicer):
        def admit(self, grpc_context, *, is_open=False):
            return True

        def refuse(self, grpc_context, code, text):
            grpc_context.set_code(code)
            return False

        async def _answer_one(self, data, until_sent):
            return data

    async def story():
        async with asyncio.timeout(30):
            return [answer async for answer in Alone(None, None, None).ModelStreamInfer(requests(), context)]

    context = Context()
    assert len(asyncio.run(story())) == 1
    assert context.code is grpc.StatusCode.CANCELLED
