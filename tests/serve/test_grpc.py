"""The endpoint over gRPC, by tritonclient as it is, and by hand."""

import asyncio
import queue
import re
import threading

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from genai_ray import InferenceSession
from genai_ray.serve.oip.messages import METHODS, message_class
from tests.serve.models import ELEMENTS

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def client(served):
    with triton.InferenceServerClient(served.grpc) as one:
        yield one


@pytest.fixture(scope="module")
def stub(served):
    with grpc.insecure_channel(served.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def feed(name, array, datatype):
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def test_our_messages_are_those_of_the_protocol():
    """Every field that is here has the name, number, type and label that the client's generated ones have."""
    pairs = {name: name for pair in (*METHODS.values(), ["ModelStreamInferResponse"]) for name in pair} | {
        "InferParameter": "InferParameter",
        "InferTensorContents": "InferTensorContents",
    }
    for ours, theirs in pairs.items():
        mine, other = message_class(ours).DESCRIPTOR, service_pb2.DESCRIPTOR.message_types_by_name[theirs]
        compare(mine, other)


def compare(mine, other):
    for field in mine.fields:
        if field.name == "properties":
            continue  # in the protocol, not in Triton's copy of it
        twin = other.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (twin.number, twin.type, twin.is_repeated), (
            f"{mine.name}.{field.name}"
        )
        if field.message_type is not None:
            compare(field.message_type, twin.message_type)


@pytest.mark.slow
def test_what_the_server_says(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "genai_ray"
    told = client.get_model_metadata("add-sub", as_json=True)
    assert told["inputs"][1] == {"name": "b", "datatype": "FP32", "shape": ["-1", "4"]}
    config = client.get_model_config("add-sub", as_json=True)["config"]
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_FP32", "dims": ["-1", "4"]}


@pytest.mark.slow
@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_raw(client, datatype):
    if datatype == "BYTES":
        array = np.array([["a", "é"]], object)
    else:
        dtype = {"BF16": ml_dtypes.bfloat16, "FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower())
        array = np.array([[0, 1, 1]]).astype(dtype)
    result = client.infer(f"identity-{datatype.lower()}", [feed("x", array, datatype)]).as_numpy("y")
    assert [str(item) for item in result.reshape(-1)] == [
        str(item.encode() if isinstance(item, str) else item) for item in array.reshape(-1)
    ]
    assert result.shape == array.shape


@pytest.mark.parametrize("datatype", CONTENTS)
def test_every_datatype_in_typed_contents(stub, datatype):
    values = [b"a", b"bc"] if datatype == "BYTES" else [True, False] if datatype == "BOOL" else [1, 0]
    request = service_pb2.ModelInferRequest(model_name=f"identity-{datatype.lower()}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    answer = stub.ModelInfer(request)
    assert list(getattr(answer.outputs[0].contents, CONTENTS[datatype])) == values
    assert not answer.raw_output_contents


def test_results_equal_a_local_session(client, frames):
    tensor = np.random.default_rng(1).random((1, 3, 40, 52), np.float32)
    with InferenceSession("websr-x2-s") as session:
        wanted, enhanced = session.run({"input": tensor})["output"], session.infer(frames)
    answer = client.infer(
        "websr-x2-s", [feed("input", tensor, "FP32")], request_id="seven", compression_algorithm="gzip"
    )
    assert np.array_equal(answer.as_numpy("output"), wanted)
    assert answer.get_response().id == "seven"
    result = client.infer("websr-x2-s", [feed("frames", frames, "UINT8")], parameters={"frames": True}).as_numpy(
        "output"
    )
    assert result.dtype == np.uint8
    assert np.array_equal(result, enhanced)


def test_asynchronous_requests(client):
    results, done = [], threading.Event()

    def note(result, error):
        results.append(error or result.as_numpy("difference").tolist())
        if len(results) == 5:
            done.set()

    for _ in range(5):
        a = np.ones((1, 4), np.float32)
        client.async_infer(
            "add-sub",
            [feed("a", a, "FP32"), feed("b", a, "FP32")],
            note,
            outputs=[triton.InferRequestedOutput("difference")],
        )
    assert done.wait(60)
    assert results == [[[0, 0, 0, 0]]] * 5


def test_a_message_of_many_megabytes(client):
    array = np.random.default_rng(3).integers(0, 256, (2160, 3840 * 3), np.uint8)
    assert np.array_equal(client.infer("identity-uint8", [feed("x", array, "UINT8")]).as_numpy("y"), array)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client, algorithm):
    a = np.arange(400_000, dtype=np.float32).reshape(-1, 4)
    answer = client.infer("add-sub", [feed("a", a, "FP32"), feed("b", a, "FP32")], compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("sum"), a + a)


def test_the_asynchronous_client(served):
    async def story():
        async with triton_aio.InferenceServerClient(served.grpc) as one:
            assert await one.is_server_ready()
            await one.load_model("add-sub")
            assert await one.is_model_ready("add-sub")
            assert (await one.get_model_metadata("add-sub")).inputs[1].name == "b"
            answers = await asyncio.gather(
                *(one.infer("add-sub", _pair(number), compression_algorithm="gzip") for number in range(12))
            )
            assert [answer.as_numpy("sum").tolist() for answer in answers] == [
                [[2 * number] * 4] for number in range(12)
            ]
            with pytest.raises(InferenceServerException, match="missing inputs"):
                await one.infer("add-sub", _pair(0)[:1])

            async def requests():
                for number in range(5):
                    yield {"model_name": "add-sub", "inputs": _pair(number)}

            told = [
                (result.as_numpy("difference").tolist(), error) async for result, error in one.stream_infer(requests())
            ]
            assert told == [([[0] * 4], None)] * 5

    asyncio.run(story())


def _pair(number):
    return [feed(name, np.full((1, 4), number, np.float32), "FP32") for name in ("a", "b")]


def test_a_load_with_a_configuration_is_refused(client):
    client.unload_model("identity-uint64")
    for parameters in ({"config": '{"max_batch_size": 4}'}, {"files": {"file:1/model.onnx": b"abc"}, "config": "{}"}):
        with pytest.raises(
            InferenceServerException,
            match=r"\[StatusCode.INVALID_ARGUMENT\] parameters \['config'.* of a load; allowed: none",
        ):
            client.load_model("identity-uint64", **parameters)
    assert not client.is_model_ready("identity-uint64")


@pytest.mark.slow
def test_the_largest_message_and_one_that_is_larger(client):
    """The limit is 256 MiB."""
    array = np.random.default_rng(4).integers(0, 256, (1, 240_000_000), np.uint8)
    assert np.array_equal(
        client.infer("identity-uint8", [feed("x", array, "UINT8")], client_timeout=500).as_numpy("y"), array
    )
    array = np.zeros((1, 256 * 1024**2), np.uint8)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("identity-uint8", [feed("x", array, "UINT8")], client_timeout=500)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED", caught.value
    assert "268435456" in caught.value.message()
    with pytest.raises(InferenceServerException) as caught:
        client.infer("identity-uint8", [feed("x", array, "UINT8")], client_timeout=500, compression_algorithm="gzip")
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED", caught.value
    assert np.array_equal(
        client.infer("identity-uint8", [feed("x", array[:, :9], "UINT8")]).as_numpy("y"), array[:, :9]
    )


def test_load_unload_index_and_statistics(client):
    client.load_model("identity-int64")
    assert client.is_model_ready("identity-int64")
    index = {(entry.name, entry.version): entry.state for entry in client.get_model_repository_index().models}
    assert index["identity-int64", "1"] == "READY"
    assert index["versioned", "2"] in ("UNAVAILABLE", "READY")
    (stats,) = client.get_inference_statistics("identity-int64").model_stats
    assert stats.memory_usage[0].byte_size > 10**7
    client.unload_model("identity-int64")
    assert not client.is_model_ready("identity-int64")
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("pinned")
    assert "UNAVAILABLE" in str(caught.value)
    assert "pinned" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda request: setattr(request, "model_name", "ad-sub"), "NOT_FOUND", "add-sub"),
        (lambda request: setattr(request, "model_version", "4"), "NOT_FOUND", "version '4'"),
        (lambda request: request.ClearField("inputs"), "INVALID_ARGUMENT", "2 raw_input_contents for 0 inputs"),
        (lambda request: request.inputs.pop(), "INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs"),
        (lambda request: request.raw_input_contents.pop(), "INVALID_ARGUMENT", "1 raw_input_contents for 2 inputs"),
        (lambda request: request.raw_input_contents.__setitem__(0, b"abc"), "INVALID_ARGUMENT", "unexpected size"),
        (lambda request: setattr(request.inputs[0], "name", "b"), "INVALID_ARGUMENT", "a name of its own"),
        (lambda request: setattr(request.inputs[0], "datatype", "FP99"), "INVALID_ARGUMENT", "FP99"),
        (
            lambda request: (
                setattr(request.inputs[0], "name", "\u6f22" * 3000),
                setattr(request.inputs[0], "datatype", "FP99"),
            ),
            "INVALID_ARGUMENT",
            "\u6f22",
        ),
        (lambda request: request.inputs[0].shape.__setitem__(0, -1), "INVALID_ARGUMENT", "negative"),
        (lambda request: request.inputs[0].contents.fp32_contents.append(1), "INVALID_ARGUMENT", "both"),
        (lambda request: request.outputs.add(name="product"), "INVALID_ARGUMENT", "product"),
        (
            lambda request: request.outputs.add(name="sum").parameters["classification"].__setattr__("int64_param", 3),
            "INVALID_ARGUMENT",
            "classification",
        ),
        (lambda request: request.parameters["timeout"].__setattr__("int64_param", 1), "DEADLINE_EXCEEDED", "not done"),
    ],
)
def test_bad_requests(stub, change, code, words):
    request = service_pb2.ModelInferRequest(model_name="add-sub")
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(np.zeros(4, np.float32).tobytes())
    stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="add-sub"))
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode[code]
    assert words in caught.value.details()


def test_typed_contents_are_held_against_the_datatype(stub):
    for values, field, words in (
        ([1, 2, 3], "int_contents", "3 elements"),
        ([300, 1], "int_contents", "outside the range"),
        ([1, 2], "int64_contents", "int64"),
    ):
        request = service_pb2.ModelInferRequest(model_name="identity-int8")
        getattr(request.inputs.add(name="x", datatype="INT8", shape=[1, 2]).contents, field).extend(values)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in caught.value.details()


@pytest.fixture
def stream(served):
    """Tritonclient's stream, and the line that its answers come to."""
    answers = queue.Queue()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        yield client, lambda: answers.get(timeout=120)
        client.stop_stream()


def test_a_stream_answers_each_request_in_order(stream):
    client, answer = stream
    arrays = [np.full((1, 4), number, np.float32) for number in range(30)]
    for index in (0, 1):  # one after another: nobody waits for the end of the stream
        client.async_stream_infer(
            "add-sub", [feed("a", arrays[index], "FP32"), feed("b", arrays[1], "FP32")], request_id=f"first-{index}"
        )
        result, error = answer()
        assert error is None
        assert np.array_equal(result.as_numpy("sum"), arrays[index] + arrays[1])
        assert result.get_response().id == f"first-{index}"
    for index, array in enumerate(arrays):  # many at the same time, more than are computed together
        client.async_stream_infer(
            "pinned" if index % 2 else "add-sub",
            [feed("a", array, "FP32"), feed("b", arrays[3], "FP32")],
            request_id=str(index),
        )
    for index, array in enumerate(arrays):
        result, error = answer()
        assert error is None
        assert result.get_response().id == str(index)
        assert np.array_equal(result.as_numpy("difference"), array - arrays[3])


def test_an_error_in_a_stream_does_not_end_it(stream, stub):
    client, answer = stream
    a = np.ones((1, 4), np.float32)
    for model, tensors, words in (
        ("ad-sub", ["a", "b"], "NOT_FOUND.*add-sub"),
        ("add-sub", ["a"], "INVALID_ARGUMENT.*missing inputs"),
    ):
        client.async_stream_infer(model, [feed(name, a, "FP32") for name in tensors])
        result, error = answer()
        assert result is None
        assert re.search(words, error.message())
    client.async_stream_infer("add-sub", [feed(name, a, "FP32") for name in ("a", "b")])
    assert answer()[1] is None
    requests = [service_pb2.ModelInferRequest(model_name="nothing", id="lost")]
    (told,) = stub.ModelStreamInfer(iter(requests))
    assert "no model 'nothing'" in told.error_message
    assert told.infer_response.id == "lost"
    assert list(stub.ModelStreamInfer(iter([]))) == []


def test_a_stream_that_is_left_does_no_harm(served, client):
    a = np.ones((1, 4), np.float32)
    with triton.InferenceServerClient(served.grpc) as leaving:
        leaving.start_stream(lambda result, error: None)
        for _ in range(20):
            leaving.async_stream_infer("patient", [feed("a", a, "FP32"), feed("b", a, "FP32")])
        leaving.stop_stream(cancel_requests=True)
    assert np.array_equal(client.infer("add-sub", [feed("a", a, "FP32"), feed("b", a, "FP32")]).as_numpy("sum"), a + a)


def test_bytes_that_are_no_message(served):
    with grpc.insecure_channel(served.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        (answer,) = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([b"\xff\xff\xff"]))
        assert "not a message" in service_pb2.ModelStreamInferResponse.FromString(answer).error_message
