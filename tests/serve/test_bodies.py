"""What a request costs before it is computed: places, threads and bounds. The application and the gRPC methods without
Ray or a network."""

import asyncio
import contextlib
import gzip
import json
import shutil
import struct
import threading
import zlib
from types import SimpleNamespace
from urllib.parse import quote, unquote

import numpy as np
import pytest
from PIL import Image

from genai_ray import errors
from genai_ray.catalog import ServeProfile
from genai_ray.inspection import find_model
from genai_ray.serve.deployment.app import build_app, list_operations
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.model_metadata import FRAMES, OUTPUT, ModelMetadataCache
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.http import bodies
from genai_ray.serve.oip.grpc import InferenceServicer, _InStream
from genai_ray.serve.oip.messages import count_typed_bytes, message_class
from tests.serve.models import identity
from tests.video.test_images import saved

MANY = 30_000
"""Strings whose reading takes long."""


class Echo(Engine):
    """Gives inputs back as outputs, on the event loop; a request with the parameter ``wait`` waits for the gate."""

    def __init__(self, folder, **limits):
        for datatype in ("BYTES", "FP32", "INT64"):
            identity(folder / f"{datatype.lower()}.onnx", datatype, ("n",))
        cache = SimpleNamespace(loaded_models=list)
        super().__init__(ServeProfile(name="a", **limits), cache, Repository(folder, ()))
        self._metadata = ModelMetadataCache(self.call, self.evict_outdated)  # reserves no memory in Ray
        self.gate, self.on_threads = asyncio.Event(), []

    async def _compute(self, target, request):
        if request.parameters.get("wait"):
            await self.gate.wait()
        return {OUTPUT if request.parameters.get(FRAMES) else "y": request.inputs[0].array}

    async def call(self, function, *args):
        if getattr(function, "__name__", "") != "stamp":  # the state of a file, which a disk may keep waiting
            self.on_threads.append(function)
        return await super().call(function, *args)


class Call:
    """One request over HTTP, whose body is sent when the test says so."""

    def __init__(self, app, path, headers=None, query=""):
        self.chunks, self.read, self.status, self.headers, self.body = asyncio.Queue(), 0, None, {}, b""
        self.more = False
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self):
        chunk = await self.chunks.get()
        self.read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": self.more or self.chunks.qsize() > 0 or not chunk}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status, self.headers = (
                message["status"],
                {name.decode(): value.decode() for name, value in message["headers"]},
            )
        self.body += message.get("body", b"")

    async def answer(self, *chunks):
        for chunk in chunks:
            self.chunks.put_nowait(chunk)
        await self.task
        return self.status, self.body


class Context:
    """Of a call over gRPC."""

    def __init__(self):
        self.code, self.details = None, ""

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self):
        return []

    def set_code(self, code):
        self.code = code.name

    def set_details(self, details):
        self.details = details


async def none():
    return None


def told(engine, story):
    """Run a story with the application and the gRPC methods of an engine."""

    async def run():
        rpc = InferenceServicer(engine, none, lambda _: True)
        for name in ("bytes", "fp32", "int64"):
            await engine.find(name)
        engine.on_threads.clear()

        async def infer(data):
            context = Context()
            reply = await rpc.ModelInfer(data, context)
            return context, message_class("ModelInferResponse").FromString(reply.data)

        app = build_app(list_operations(engine, none))
        await story(
            SimpleNamespace(app=app, rpc=rpc, infer=infer, call=lambda *args, **options: Call(app, *args, **options))
        )

    asyncio.run(run())


async def settle():
    """Let everything go on that waits for nothing but its turn."""
    for _ in range(50):
        await asyncio.sleep(0)


def binary(datatype, array_bytes, count, **fields):
    entry = {"name": "x", "datatype": datatype, "shape": [count], "parameters": {"binary_data_size": len(array_bytes)}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}, **fields}).encode()
    return head + array_bytes, {"Inference-Header-Content-Length": str(len(head))}


def message(datatype, count, *, raw=None, contents=None, **parameters):
    request = message_class("ModelInferRequest")(model_name=datatype.lower(), id="seven")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[count])
    if raw is not None:
        request.raw_input_contents.append(raw)
    else:
        getattr(tensor.contents, contents[0]).extend(contents[1])
    for name, value in parameters.items():
        request.parameters[name].bool_param = value
    return request.SerializeToString()


SMALL, SMALL_HEADERS = binary("FP32", bytes(16), 4)


def test_a_request_takes_a_place_before_its_body_is_read(tmp_path):
    engine = Echo(tmp_path, max_waiting=2)

    async def story(served):
        infer = "/v2/models/fp32/infer"
        waiting = [served.call(infer, SMALL_HEADERS), served.call("/v1/enhance", query="model=fp32")]
        await settle()
        refused = [served.call(infer, SMALL_HEADERS), served.call("/v1/enhance", query="model=fp32")]
        for call in refused:
            status, body = await call.answer(bytes(10**6), bytes(10**6), bytes(10))
            assert (status, call.headers["retry-after"]) == (429, "1")
            assert json.loads(body)["error"].startswith("2 requests in this replica; allowed: 2")
            assert call.read == 2 * 10**6 + 10
        context, _ = await served.infer(b"not even a message")
        assert context.code == "RESOURCE_EXHAUSTED"
        assert (await waiting[0].answer(SMALL))[0] == 200
        assert (await waiting[1].answer(b"no picture"))[0] == 400
        for _ in range(3):  # whatever is wrong, places come back
            assert (await served.call(infer, SMALL_HEADERS).answer(b"{"))[0] == 400
            assert (await served.call("/v2/models/nothing/infer").answer(b"{}"))[0] == 404
            assert (await served.call("/v1/enhance", query="model=nothing").answer(b"{}"))[0] == 404
            assert (await served.infer(b"\xff"))[0].code == "INVALID_ARGUMENT"
            gone = served.call(infer, SMALL_HEADERS)
            await settle()
            gone.task.cancel()
            await asyncio.gather(gone.task, return_exceptions=True)
        assert (await served.call(infer, SMALL_HEADERS).answer(SMALL))[0] == 200

    told(engine, story)


def test_all_bodies_together_are_bounded_packed_and_unpacked(tmp_path, monkeypatch):
    engine = Echo(tmp_path, max_body_bytes=1000, max_bodies_bytes=2000)
    monkeypatch.setattr(bodies, "_UNPACK_BYTES", 64)
    infer, admission = "/v2/models/fp32/infer", engine.admission

    def long(path=infer, query="", num_bytes=1000, **headers):
        return (path, {"Content-Length": str(num_bytes), **headers}, query)

    async def story(served):
        waiting = [served.call(*long()), served.call(*long("/v1/enhance", "model=fp32"))]
        await settle()
        assert admission.held_bytes == 0  # nothing is held for what has not come
        for call in waiting:
            call.more = True
            call.chunks.put_nowait(bytes(999))
        async with asyncio.timeout(60):
            while admission.held_bytes < 1998:
                await settle()
        assert [call.read for call in waiting] == [999, 999]
        for words in (long(num_bytes=3), long("/v1/enhance", "model=fp32", num_bytes=3)):
            call = served.call(*words)
            status, body = await call.answer(b"{{{")
            assert (status, call.headers["retry-after"], call.read) == (429, "1", 3)
            assert json.loads(body)["error"] == (
                "3 bytes more beside 1998 of all requests in this replica; allowed: 2000 together. Send it again later."
            )
        unsaid = served.call(infer)
        assert (await unsaid.answer(b"{{{"))[0] == 429
        context, _ = await served.infer(b"{{{")
        assert (context.code, "3 bytes more beside 1998" in context.details) == ("RESOURCE_EXHAUSTED", True)
        assert (await served.call("/v2/repository/index").answer(b"[]"))[
            0
        ] == 400  # what is small anyway is not counted
        waiting[1].more = False
        assert (await waiting[1].answer(b"."))[0] == 400
        assert admission.held_bytes == 999
        body, headers = binary("FP32", bytes(800), 200, parameters={"wait": True})
        packed = gzip.compress(body)
        headers |= {"Content-Encoding": "gzip"}
        refused = served.call(*long(num_bytes=len(packed), **headers))
        assert len(packed) + len(body) > 1001 > len(body)
        status, told_error = await refused.answer(packed)
        assert (status, "of all requests" in json.loads(told_error)["error"]) == (429, True)
        waiting[0].task.cancel()
        await asyncio.gather(waiting[0].task, return_exceptions=True)
        assert admission.held_bytes == 0
        taken = served.call(*long(num_bytes=len(packed), **headers))
        taken.chunks.put_nowait(packed)
        async with asyncio.timeout(60):
            while admission.held_bytes < len(packed) + len(body):  # unpacked by a thread
                await asyncio.sleep(0.001)
        assert admission.held_bytes == len(packed) + len(body)
        engine.gate.set()
        await taken.task
        assert (taken.status, admission.held_bytes) == (200, 0)

    told(engine, story)


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_what_is_packed_is_unpacked_whole_or_refused(encoding, bits, tmp_path, monkeypatch):
    engine = Echo(tmp_path, max_body_bytes=2000)
    monkeypatch.setattr(bodies, "_UNPACK_BYTES", 7)

    async def story(served):
        async def ask(content, headers):
            status, answer = await served.call(
                "/v2/models/fp32/infer", headers | {"Content-Encoding": encoding}
            ).answer(content)
            return status, answer

        def pack(content):
            packer = zlib.compressobj(9, zlib.DEFLATED, bits)
            return packer.compress(content) + packer.flush()

        array = np.random.default_rng(0).random(300, np.float32)
        body, headers = binary("FP32", array.tobytes(), len(array))
        status, answer = await ask(pack(body), headers)
        assert (status, answer[-array.nbytes :] == array.tobytes()) == (200, True)
        for wrong in (pack(body)[:-5], pack(body) + b"more", b"nothing packed"):
            status, answer = await ask(wrong, headers)
            assert (status, f"a body that is not {encoding}" in json.loads(answer)["error"]) == (400, True), wrong
        for size, wanted in ((2000, 400), (2001, 413), (10**6, 413)):
            assert (await ask(pack(b" " * size), {}))[0] == wanted

    told(engine, story)


@pytest.mark.slow
def test_a_body_that_stops_coming_gives_its_place_back(tmp_path, monkeypatch):
    engine = Echo(tmp_path, max_waiting=1)
    monkeypatch.setattr(bodies, "_IDLE_S", 4.0)
    monkeypatch.setattr(bodies, "_LEAST_BYTES", 40)

    async def story(served):
        for path, query in (("/v2/models/fp32/infer", ""), ("/v1/enhance", "model=fp32")):
            call = served.call(path, query=query)
            status, body = await call.answer()
            assert (status, json.loads(body)["error"]) == (
                504,
                "the body arrived too slowly: less than 40 bytes in 4 s",
            )
        call = served.call("/v2/models/fp32/infer", SMALL_HEADERS)  # slow, but it comes
        for start in range(0, len(SMALL), 20):
            call.more = start + 20 < len(SMALL)
            call.chunks.put_nowait(SMALL[start : start + 20])
            await asyncio.sleep(0.5)
        await call.task
        assert call.status == 200
        call = served.call("/v2/models/fp32/infer", SMALL_HEADERS)  # it comes, byte by byte
        call.more = True
        for start in range(100):
            call.chunks.put_nowait(SMALL[start : start + 1])
            if call.task.done():
                break
            await asyncio.sleep(0.5)
        await call.task
        assert (call.status, start < 39) == (504, True)

    told(engine, story)


def test_a_request_counts_once_and_its_model_too(tmp_path):
    engine = Echo(tmp_path, max_waiting=4, max_waiting_per_model=2)

    async def story(served):
        body, headers = binary("FP32", bytes(16), 4, parameters={"wait": True})
        calls = [served.call("/v2/models/fp32/infer", headers) for _ in range(3)]
        for call in calls:
            call.chunks.put_nowait(body)
        await settle()
        await calls[2].task
        assert (calls[2].status, json.loads(calls[2].body)["error"][:22]) == (429, "2 requests for fp32 in")
        others = [
            asyncio.create_task(served.infer(message("INT64", 1, contents=("int64_contents", [5]), wait=True)))
            for _ in range(2)
        ]
        await settle()
        assert (await served.infer(message("BYTES", 1, contents=("bytes_contents", [b"a"]))))[
            0
        ].code == "RESOURCE_EXHAUSTED"
        engine.gate.set()
        await asyncio.gather(*others, *(call.task for call in calls))
        assert [call.status for call in calls] == [200, 200, 429]
        assert all(context.code is None for context, _ in (other.result() for other in others))

    told(engine, story)


def test_small_requests_stay_on_the_event_loop(tmp_path):
    engine = Echo(tmp_path)
    numbers = np.arange(2**19, dtype=np.float32)

    async def story(served):
        for path, (body, headers) in (
            ("/v2/models/fp32/infer", (SMALL, SMALL_HEADERS)),
            ("/v2/models/fp32/infer", binary("FP32", numbers.tobytes(), len(numbers))),  # two megabytes
            ("/v2/models/bytes/infer", binary("BYTES", bytes(400), 100)),
        ):
            assert (await served.call(path, headers).answer(body))[0] == 200
        for data in (
            message("FP32", len(numbers), raw=numbers.tobytes()),
            message("BYTES", 2, raw=bytes(8)),
            message("INT64", 3, contents=("int64_contents", [1, 2, 3])),
        ):
            assert (await served.infer(data))[0].code is None
        assert engine.on_threads == []

    told(engine, story)


@pytest.mark.parametrize("protocol", ["http", "raw", "typed"])
def test_many_strings_are_read_and_written_on_threads(tmp_path, protocol):
    engine = Echo(tmp_path)

    async def story(served):
        if protocol == "http":
            body, headers = binary("BYTES", bytes(4 * MANY), MANY)
            status, answer = await served.call("/v2/models/bytes/infer", headers).answer(body)
            assert (status, answer[-4 * MANY :]) == (200, bytes(4 * MANY))
        else:
            data = {"raw": bytes(4 * MANY)} if protocol == "raw" else {"contents": ("bytes_contents", [b"a"] * MANY)}
            context, answer = await served.infer(message("BYTES", MANY, **data))
            assert (context.code, answer.id) == (None, "seven")
            assert (
                answer.raw_output_contents == [bytes(4 * MANY)]
                if protocol == "raw"
                else len(answer.outputs[0].contents.bytes_contents) == MANY
            )
        assert len(engine.on_threads) == (3 if protocol == "typed" else 2)

    told(engine, story)


def test_strings_and_typed_contents_are_bounded_before_reading(tmp_path):
    engine = Echo(tmp_path, max_json_bytes=4000)

    async def story(served):
        body, headers = binary("BYTES", bytes(4 * 1001), 1001)
        status, answer = await served.call("/v2/models/bytes/infer", headers).answer(body)
        assert (status, json.loads(answer)["error"]) == (
            400,
            "1001 elements of BYTES as binary data; allowed: 1000 in one request to this model",
        )
        body, headers = binary("BYTES", bytes(4), 1)
        status, answer = await served.call("/v2/models/fp32/infer", headers).answer(body)
        assert (status, json.loads(answer)["error"]) == (
            400,
            "1 elements of BYTES as binary data; allowed: 0 in one request to this model",
        )
        for data, words in (
            (message("BYTES", 1001, raw=bytes(4 * 1001)), "1001 elements of BYTES as binary data; allowed: 1000"),
            (
                message("BYTES", 2000, contents=("bytes_contents", [b""] * 2000)),
                "bytes of a request beside raw_input_contents; allowed: 4000. Send tensors as",
            ),
            (
                message("INT64", 501, contents=("int64_contents", [1] * 501)),
                "result has 4008 bytes in typed contents; allowed: 4000",
            ),
        ):
            context, _ = await served.infer(data)
            assert context.code == "INVALID_ARGUMENT"
            assert words in context.details
        assert (await served.infer(message("FP32", 10_000, raw=bytes(40_000))))[0].code is None
        refusal = await served.rpc._answer_one(
            message("BYTES", 1001, raw=bytes(4 * 1001)), _InStream(contextlib.ExitStack(), None, asyncio.Event())
        )
        refusal = message_class("ModelStreamInferResponse").FromString(refusal.data)
        assert (refusal.infer_response.id, refusal.error_message[:18]) == ("seven", "[INVALID_ARGUMENT]")
        answer = await served.rpc._answer_one(
            message("FP32", 1, raw=struct.pack("f", 2)), _InStream(contextlib.ExitStack(), None, asyncio.Event())
        )
        assert message_class("ModelStreamInferResponse").FromString(answer.data).infer_response.raw_output_contents == [
            struct.pack("f", 2)
        ]

    told(engine, story)


@pytest.mark.parametrize(("datatype", "count"), [("FP32", 300), ("BYTES", 30)])
def test_a_result_as_json_is_bounded(tmp_path, datatype, count):
    engine = Echo(tmp_path, max_json_bytes=1000)

    async def story(served):
        array_bytes = bytes(4 * count) if datatype == "FP32" else (struct.pack("<I", 40) + b"a" * 40) * count
        for is_binary, wanted in ((True, 200), (False, 400)):
            body, headers = binary(datatype, array_bytes, count, parameters={"binary_data_output": is_binary})
            status, answer = await served.call(f"/v2/models/{datatype.lower()}/infer", headers).answer(body)
            assert status == wanted, answer
        words = f"inputs whose result has {len(array_bytes)} bytes, as JSON; allowed: 1000 bytes."
        words += " Ask for it as binary data."
        assert json.loads(answer)["error"] == words

    told(engine, story)


def test_what_sessions_keep_waiting_keeps_nothing_else(tmp_path):
    engine, gate = Echo(tmp_path, max_waiting=2), threading.Event()

    async def story(served):
        for _ in range(2):
            engine._calls._threads.submit(gate.wait)
        async with asyncio.timeout(60):
            await engine.rescan()
            assert (await engine.find("fp32")).version == "1"
        gate.set()

    told(engine, story)


@pytest.mark.parametrize(
    ("accepted", "packed"), [("gzip", "gzip"), ("gzip;q=0", None), ("gzip; Q=0.00", None), ("deflate;q=0.5", "deflate")]
)
def test_an_answer_is_packed_for_who_wants_it(tmp_path, accepted, packed):
    engine = Echo(tmp_path)

    async def story(served):
        call = served.call("/v2/models/fp32/infer", SMALL_HEADERS | {"Accept-Encoding": accepted})
        assert (await call.answer(SMALL))[0] == 200
        assert call.headers.get("content-encoding") == packed

    told(engine, story)


def test_requests_without_tensors_are_small(tmp_path):
    engine = Echo(tmp_path)

    async def story(served):
        context = Context()
        await served.rpc.RepositoryModelUnload(bytes(65537), context)
        assert (context.code, context.details) == (
            "INVALID_ARGUMENT",
            "a request of 65537 bytes; allowed: 65536 for one without tensors",
        )
        status, answer = await served.call("/v2/repository/index").answer(bytes(40_000), bytes(40_000))
        assert (status, json.loads(answer)["error"]) == (413, "a body of more than 65536 bytes")

    told(engine, story)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "²", "9"])
def test_a_length_that_is_none_is_told(tmp_path, length):
    engine = Echo(tmp_path)

    async def story(served):
        status, answer = await served.call("/v2/models/fp32/infer", {"Inference-Header-Content-Length": length}).answer(
            b"{}"
        )
        assert status == 400
        assert "Inference-Header-Content-Length" in json.loads(answer)["error"]

    told(engine, story)


def test_a_model_of_any_name_is_told_in_a_header(tmp_path):
    engine, name = Echo(tmp_path), "模型 é"
    shutil.copy(find_model("ffdnet")[1], tmp_path / f"{name}.onnx")
    picture = saved(Image.new("RGB", (8, 6), "red"))

    async def story(served):
        await engine.rescan()
        call = served.call("/v1/enhance", query=f"model={quote(name)}")
        status, body = await call.answer(picture)
        assert status == 200, body
        assert call.headers["x-model"].isascii()
        assert unquote(call.headers["x-model"]) == name

    told(engine, story)


def test_typed_contents_are_counted_without_parsing():
    request = message_class("ModelInferRequest")(model_name="m", id="x" * 300)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).parameters["p"].int64_param = 7
    bare = len(request.SerializeToString())
    request.raw_input_contents.extend([b"", bytes(5), bytes(70_000)])
    data = request.SerializeToString()
    assert count_typed_bytes(data) == len(data) - 70_005 == bare + 2 + 2 + 4
    assert count_typed_bytes(b"") == 0
    typed = bytes([5 << 3 | 2, 100]) + bytes(100)
    for tail in (
        b"\x3a",
        b"\x3a\xff\xff\xff\xff\x7f",
        b"\x3a" + b"\xff" * 30,
        b"\xff" * 30,
        b"\x38\x01\x3a\x05" + bytes(5),
    ):
        assert count_typed_bytes(typed + tail) >= len(typed)
    with pytest.raises(errors.InvalidInputError, match="more than 4096 inputs, outputs and parameters"):
        count_typed_bytes(b"\x2a\x00" * 4097)
