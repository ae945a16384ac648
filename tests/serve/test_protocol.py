"""The codec of the Open Inference Protocol: what it reads and writes, and that nothing sent to it does worse than a
typed error."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.errors import InvalidInputError
from genai_ray.serve import InferResponse, Tensor, TensorMetadata, decode_request, encode_response
from genai_ray.serve.engine.inference import DATATYPES
from genai_ray.serve.oip.tensors import from_contents, to_contents, to_json

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def body_of(*inputs, tail=b"", **fields):
    head = json.dumps({"inputs": list(inputs), **fields}).encode()
    return head + tail, str(len(head))


def binary_input(name, datatype, shape, size):
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def sample(datatype):
    generator = np.random.default_rng(7)
    if datatype == "BOOL":
        return generator.integers(0, 2, (2, 3)).astype(bool)
    if datatype.startswith("FP"):
        return generator.normal(size=(2, 3)).astype(DATATYPES[datatype])
    return generator.integers(0, 127, (2, 3)).astype(DATATYPES[datatype])


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_travel_as_bytes_and_as_json(datatype):
    array = sample(datatype)
    data = array.tobytes()
    body, length = body_of(
        binary_input("x", datatype, [2, 3], len(data)), tail=data, parameters={"binary_data_output": True}
    )
    request = decode_request(body, length)
    assert np.array_equal(request.inputs[0].array, array)
    parts, head_bytes = encode_response(InferResponse("m", request.inputs), request)
    answer = b"".join(parts)
    assert answer[head_bytes:] == data
    assert json.loads(answer[:head_bytes])["outputs"] == [binary_input("x", datatype, [2, 3], len(data))]
    for values in (array.tolist(), array.reshape(-1).tolist()):
        body, _ = body_of({"name": "x", "datatype": datatype, "shape": [2, 3], "data": values})
        if datatype in ("FP16", "BF16"):
            with pytest.raises(InvalidInputError, match="binary tensor data extension"):
                decode_request(body)
            continue
        request = decode_request(body)
        assert np.array_equal(request.inputs[0].array, array)
        parts, head_bytes = encode_response(InferResponse("m", request.inputs, id="7"), request)
        assert head_bytes is None
        answer = json.loads(b"".join(parts))
        assert (answer["id"], answer["outputs"][0]["data"]) == ("7", array.reshape(-1).tolist())


def test_strings_and_mixed_inputs_and_outputs_by_request():
    words = [b"one", b"", "zwölf".encode()]
    data = b"".join(struct.pack("<I", len(word)) + word for word in words)
    body, length = body_of(
        {"name": "a", "datatype": "BYTES", "shape": [2], "data": ["x", "ß"]},
        binary_input("b", "BYTES", [3], len(data)),
        binary_input("empty", "FP32", [0, 4], 0),
        tail=data,
        outputs=[{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}],
    )
    request = decode_request(body, length)
    first, second, empty = request.inputs
    assert first.array.tolist() == [b"x", "ß".encode()]
    assert second.array.tolist() == words
    assert empty.array.shape == (0, 4)
    assert [(output.name, output.binary) for output in request.outputs] == [("b", True), ("a", False)]
    parts, head_bytes = encode_response(InferResponse("m", (second, first, empty)), request)
    answer = b"".join(parts)
    assert answer[head_bytes:] == data
    assert json.loads(answer[:head_bytes])["outputs"][1]["data"] == ["x", "ß"]


def test_binary_strings_are_counted_over_all_inputs_unread():
    body, length = body_of(
        binary_input("a", "BYTES", [2], 8), binary_input("b", "BYTES", [3, 1], 12), X, tail=bytes(20)
    )
    assert decode_request(body, length, max_strings=5).inputs[1].array.tolist() == [[b""]] * 3
    with pytest.raises(InvalidInputError, match="5 elements of BYTES as binary data; allowed: 4 in one request"):
        decode_request(body, length, max_strings=4)


@pytest.mark.parametrize("datatype", ["INT64", "BYTES"])
def test_typed_contents_are_copied_in_parts_that_join(datatype):
    values = [number if datatype == "INT64" else str(number).encode() for number in range(100_000)]
    array = from_contents("x", datatype, (1000, 100), values)
    assert array.shape == (1000, 100)
    parts = list(to_contents(Tensor("x", datatype, array)))
    assert len(parts) > 1
    assert [value for part in parts for value in part] == values


def test_a_raw_request_is_the_only_input():
    facts = [TensorMetadata("x", "FP32", (-1, 3, -1))]
    request = decode_request(np.arange(6, dtype=np.float32).tobytes(), "0", facts)
    assert request.inputs[0].array.tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert request.binary_default
    assert decode_request(b"text", "0", [TensorMetadata("x", "BYTES", (1,))]).inputs[0].array.tolist() == [b"text"]
    for body, wrong in [
        (b"abc", facts),
        (b"", []),
        (b"abcd" * 6, [TensorMetadata("x", "FP32", (-1, -1, -1))]),
        (b"abc", [TensorMetadata("x", "UINT8", (4,))]),
    ]:
        with pytest.raises(InvalidInputError):
            decode_request(body, "0", wrong)


X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"{}", "3", "at most 2"),
        (b"{}", "-1", "whole number"),
        (b"{}", "1e1", "whole number"),
        (b"{}", "9" * 30, "whole number"),
        (b"[]", None, "not a JSON object"),
        (b"\xff", None, "not valid JSON"),
        (b"[" * 10_000, None, "nested too deep"),
        (b'{"inputs":' + b"9" * 9000 + b"}", None, "not valid JSON"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', None, "NaN in JSON"),
        (*body_of(X, X), "twice"),
        (*body_of(X, outputs=[{"name": "y"}, {"name": "y"}]), "twice"),
        (*body_of(X, tail=b"more"), "unexpected additional input data"),
        (*body_of(X | {"shape": [-2]}), "negative"),
        (*body_of(X | {"shape": [2**62, 2**62]}), "more elements"),
        (*body_of(X | {"shape": [0, 2**62]}), "more elements"),
        (*body_of(X | {"shape": [1] * 40}), "axes"),
        (*body_of(X | {"shape": [2.0]}), "list of integers"),
        (*body_of(X | {"shape": [3]}), "2 elements"),
        (*body_of(X | {"shape": [2, 1], "data": [[1, 2]]}), "nested"),
        (*body_of(X | {"data": [1, "2"]}), "holds str"),
        (*body_of(X | {"data": [1, None]}), "holds null"),
        (*body_of(X | {"data": [1, 1e300]}), "outside the range"),
        (*body_of(X | {"datatype": "UINT8", "data": [1, 256]}), "outside the range"),
        (*body_of(X | {"datatype": "UINT8", "data": [1, True]}), "holds bool"),
        (*body_of(X | {"datatype": "FP31"}), "FP31"),
        (*body_of(X | {"parameters": {"binary_data_size": 8}}), "both data"),
        (*body_of(binary_input("x", "FP32", [2], 9), tail=b"123456789"), "unexpected size for input"),
        (*body_of(binary_input("x", "FP32", [2], 8), tail=b"1234"), "binary_data_size"),
        (*body_of(binary_input("x", "FP32", [2], -8)), "binary_data_size"),
        (*body_of(binary_input("x", "BYTES", [2**39], 8), tail=b"12345678"), "unexpected size"),
        (*body_of(binary_input("x", "BYTES", [1], 8), tail=b"\xff\xff\xff\xff1234"), "unexpected size"),
        (*body_of(binary_input("x", "BYTES", [1], 8), tail=b"\x01\0\0\x001234"), "unexpected size"),
        (*body_of(binary_input("x", "BOOL", [1], 1), tail=b"\x02"), "neither 0 nor 1"),
        (*body_of({"name": "x"}), "datatype"),
        (*body_of({"name": "x", "datatype": "FP32", "shape": [1]}), "without data"),
        (*body_of(X | {"parameters": {"shared_memory_region": "r"}}), "shared memory"),
        (*body_of(X, outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification"),
        (*body_of(X, parameters={"binary_data_output": "yes"}), "true or false"),
        (*body_of(X, parameters={"a": []}), "not a string"),
        (*body_of(X, id=7), "id"),
    ],
)
def test_what_is_wrong_is_said(body, length, words):
    with pytest.raises(InvalidInputError, match=words):
        decode_request(body, length)


def test_what_json_cannot_hold_is_refused():
    for datatype, array in [
        ("FP32", np.array([np.nan], np.float32)),
        ("FP16", np.ones(1, np.float16)),
        ("BYTES", np.array([b"\xff"], object)),
    ]:
        with pytest.raises(InvalidInputError, match="binary_data"):
            to_json(Tensor("y", datatype, array))


SIZES = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, 2**62, 2**64, 10**30]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.sampled_from(["x", "y"]), VALUES),
        "datatype": st.one_of(st.sampled_from([*DATATYPES]), VALUES),
        "shape": st.one_of(st.lists(SIZES, max_size=4), VALUES),
        "data": VALUES,
        "parameters": st.one_of(st.fixed_dictionaries({"binary_data_size": SIZES}), VALUES),
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(ENTRIES, max_size=3), VALUES)},
    optional={"outputs": st.one_of(st.lists(ENTRIES, max_size=2), VALUES), "parameters": VALUES, "id": VALUES},
)


def fuzz(content, tail, length):
    body = (content if isinstance(content, bytes) else json.dumps(content).encode()) + tail
    header = str(len(body) - len(tail)) if length is True else length
    tracemalloc.start()
    try:
        request = decode_request(body, header, [TensorMetadata("x", "FP32", (-1, 2))])
        encode_response(InferResponse("m", request.inputs), request)
    except InvalidInputError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4_000_000


FUZZ = (
    st.one_of(REQUESTS, st.binary(max_size=64)),
    st.binary(max_size=32),
    st.one_of(st.none(), st.just(True), st.text(max_size=4), st.integers().map(str)),
)


@given(*FUZZ)
@settings(max_examples=300, deadline=None)
def test_nothing_sent_does_worse_than_a_typed_error(content, tail, length):
    fuzz(content, tail, length)


@pytest.mark.slow
@pytest.mark.longest  # 300 requests of the same kinds are sent in every run
@given(*FUZZ)
@settings(max_examples=6000, deadline=None)
def test_no_request_causes_worse_than_a_typed_error(content, tail, length):
    fuzz(content, tail, length)
