"""Answers that are not read: what they hold, for how long, and what becomes of others meanwhile."""

import asyncio
import http.client
import json
import select
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from onnx import helper, numpy_helper

from genai_ray.catalog import ServeProfile
from genai_ray.errors import TooManyRequestsError
from genai_ray.serve.engine.limits import Admission
from genai_ray.serve.http import middleware
from genai_ray.serve.http.middleware import PIECE_BYTES, UntilSent
from genai_ray.serve.oip.grpc import _until_sent
from genai_ray.serve.oip.messages import message_class
from tests.processes import DEADLINE_S, descendants, rss_watched, title, wait_until
from tests.serve.conftest import serve
from tests.serve.models import value, write
from tests.serve.test_bodies import Call, Echo, binary, message, settle, told

LARGE = np.arange(300_000, dtype=np.float32)


class Reader(Call):
    """A request whose answer is read piece by piece, when the test says so."""

    def __init__(self, app, path, headers=None, query=""):
        self.pieces, self.going = [], asyncio.Semaphore(0)
        super().__init__(app, path, headers, query)

    async def send(self, message):
        if message["type"] == "http.response.body":
            self.pieces.append(len(message.get("body", b"")))
            await self.going.acquire()
        await super().send(message)


def large(count=300_000):
    return binary("FP32", LARGE[:count].tobytes(), count)


def profile(**limits):
    return {"max_body_bytes": 2_000_000, "max_output_bytes": 1_500_000, "max_results_bytes": 4_000_000, **limits}


def test_an_answer_counts_until_its_last_piece_has_gone(tmp_path):
    engine = Echo(tmp_path, **profile())
    admission = engine.admission

    async def story(served):
        body, headers = large()
        reader = Reader(served.app, "/v2/models/fp32/infer", headers)
        reader.chunks.put_nowait(body)
        while not reader.pieces:
            await asyncio.sleep(0.001)
        held = admission.result_bytes
        assert LARGE.nbytes < held < LARGE.nbytes + 1000
        assert admission.held_bytes == 0  # its body has gone
        while not reader.task.done():
            assert admission.result_bytes == held
            reader.going.release()
            await asyncio.sleep(0.001)
        assert admission.result_bytes == 0
        assert reader.body[-LARGE.nbytes :] == LARGE.tobytes()
        assert (max(reader.pieces), reader.pieces[-1]) == (PIECE_BYTES, 0)
        gone = Reader(served.app, "/v2/models/fp32/infer", headers)
        gone.chunks.put_nowait(body)
        while not gone.pieces:
            await asyncio.sleep(0.001)
        gone.task.cancel()
        await asyncio.gather(gone.task, return_exceptions=True)
        assert admission.result_bytes == 0

    told(engine, story)


def test_a_client_that_does_not_read_loses_its_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(middleware, "PIECE_WITHIN_S", 0.2)
    engine = Echo(tmp_path, **profile())

    async def story(served):
        body, headers = large()
        reader = Reader(served.app, "/v2/models/fp32/infer", headers)
        reader.chunks.put_nowait(body)
        await asyncio.wait_for(reader.task, DEADLINE_S)
        assert (reader.status, len(reader.pieces)) == (200, 1)
        assert engine.admission.result_bytes == 0

    told(engine, story)


def test_large_results_wait_for_unread_ones_and_small_ones_pass(tmp_path):
    engine = Echo(tmp_path, **profile(max_results_bytes=6_000_000))

    async def story(served):
        body, headers = large()
        infer = "/v2/models/fp32/infer"
        assert (await served.call(infer, headers).answer(body))[0] == 200  # now its size is known
        readers = [Reader(served.app, infer, headers) for _ in range(2)]
        for reader in readers:
            reader.chunks.put_nowait(body)
            while not reader.pieces:
                await asyncio.sleep(0.001)
        waiting = served.call(infer, headers)
        waiting.chunks.put_nowait(body)
        small, small_headers = large(100)
        assert (await served.call(infer, small_headers).answer(small))[0] == 200
        hasty, hasty_headers = binary(
            "FP32", LARGE.tobytes(), len(LARGE), parameters={"timeout": 50_000, "binary_data_output": True}
        )
        late = served.call(infer, hasty_headers)
        status, answer = await late.answer(hasty)
        assert (status, late.headers["retry-after"]) == (429, "1")
        assert "of answers that are not sent yet; allowed: 6000000 together" in json.loads(answer)["error"]
        assert not waiting.task.done()
        while not readers[0].task.done():
            readers[0].going.release()
            await asyncio.sleep(0)
        await waiting.task
        assert waiting.status == 200
        readers[1].task.cancel()

    told(engine, story)


def test_a_result_of_unknown_size_that_finds_no_room_is_dropped():
    async def story():
        admission = Admission(ServeProfile(name="a", max_output_bytes=100, max_results_bytes=200))
        with admission.place() as first, admission.place() as second:
            await first.wait_for_result(0, 1.0)
            first.keep_result(60, is_written=False)
            assert admission.result_bytes == 180
            with pytest.raises(TooManyRequestsError, match="takes 90 bytes beside 180 of answers"):
                second.keep_result(30, is_written=False)
            first.keep_result(60, is_written=True)
            second.keep_result(30, is_written=False)
            assert admission.result_bytes == 150
            first.give_back_result()
            second.give_back_result()
            assert admission.result_bytes == 0

    asyncio.run(story())
    with pytest.raises(ValueError, match="max_results_bytes=99 is less than max_output_bytes=100"):
        ServeProfile(name="a", max_output_bytes=100, max_results_bytes=99)


def test_an_answer_over_grpc_counts_until_it_is_sent(tmp_path):
    engine = Echo(tmp_path, **profile())

    class Context:
        def add_done_callback(self, done):
            self.done = done

        def peer(self):
            return "ipv4:127.0.0.1:1"

        def invocation_metadata(self):
            return []

    async def story(served):
        context = Context()
        data = message("FP32", len(LARGE), raw=LARGE.tobytes())
        reply = await _until_sent(served.rpc.ModelInfer)(data, context)
        assert engine.admission.result_bytes == len(reply.data) > LARGE.nbytes
        context.done(context)
        assert engine.admission.result_bytes == 0

        async def requests():
            for _ in range(3):
                yield data

        stream = served.rpc.ModelStreamInfer(requests(), context)
        await anext(stream)
        assert LARGE.nbytes < engine.admission.result_bytes <= 4_000_000
        await anext(stream)
        await stream.aclose()
        assert engine.admission.result_bytes == 0

    told(engine, story)


def test_requests_of_a_stream_get_room_in_response_order(tmp_path):
    """The second answer is sent after the first: it must not hold what the first one waits for."""
    engine = Echo(tmp_path, **profile(request_timeout_s=10))

    class Context:
        def peer(self):
            return "ipv4:127.0.0.1:1"

        def invocation_metadata(self):
            return []

    async def story(served):
        asked = [message("FP32", count, raw=LARGE[:count].tobytes()) for count in (len(LARGE), 100_000)]
        for data in asked:
            await served.infer(data)  # now their sizes are known

        async def requests():
            for data in asked:
                yield data

        with engine.admission.place() as other:
            await other.wait_for_result(200_000, 1.0)
            stream = served.rpc.ModelStreamInfer(requests(), Context())
            first = asyncio.ensure_future(anext(stream))
            await settle()
            other.give_back_result()
            replies = [
                message_class("ModelStreamInferResponse").FromString(reply.data)
                for reply in (await first, await anext(stream))
            ]
        assert [reply.error_message for reply in replies] == ["", ""]
        assert [reply.infer_response.outputs[0].shape for reply in replies] == [[len(LARGE)], [100_000]]
        await stream.aclose()
        assert engine.admission.result_bytes == 0

    told(engine, story)


def test_a_server_waits_for_a_reader_and_drops_one_that_stops(monkeypatch):
    """uvicorn takes a piece when it is rid of the one before; nothing of a large answer is buffered."""
    monkeypatch.setattr(middleware, "PIECE_WITHIN_S", 1.0)
    told_of, body = SimpleNamespace(pieces=0, over=0), bytes(200 * PIECE_BYTES)

    async def app(scope, receive, send):
        async def counted(message):
            told_of.pieces += 1
            await send(message)

        async def answer(scope, receive, send):
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
            )
            await send({"type": "http.response.body", "body": body})

        await UntilSent(answer)(scope, receive, counted)
        told_of.over += 1

    async def story():
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        while not told_of.over:
            await asyncio.sleep(0.05)
        assert told_of.pieces < 150
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        assert (head[:12], len(rest)) == (b"HTTP/1.1 200", len(body))
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(story(), DEADLINE_S))


FLOATS = 9_000_000
"""36 MB: more than what malloc keeps for the next one."""
MOST_BYTES = 240_000_000


CLIENT = """
import sys
import time
import grpc
from genai_ray.serve.oip.messages import message_class
request = message_class("ModelInferRequest")(model_name="expander")
request.inputs.add(name="x", datatype="FP32", shape=[1])
request.raw_input_contents.append(bytes(4))
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", -1)])
infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
calls = [infer.future(request.SerializeToString()) for _ in range(16)]
calls[0].result()
print("one is there", flush=True)
time.sleep(600)
"""


def expander(path):
    """Gives many numbers for one."""
    shape = numpy_helper.from_array(np.array([FLOATS], np.int64), "shape")
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    write(path, [node], [value("x", "FP32", (1,))], [value("y", "FP32", (FLOATS,))], [shape])


@pytest.mark.cluster
@pytest.mark.slow
def test_fifty_stuck_readers_keep_a_replica_within_its_limits(tmp_path):
    """As many answers as fit wait to be read; the others are told to come again, and none of them is kept."""
    expander(tmp_path / "models" / "expander.onnx")
    limits = f"max_body_bytes: 1000000\nmax_output_bytes: 40000000\nmax_results_bytes: {MOST_BYTES}\n"
    (tmp_path / "small.yaml").write_text(f"name: small\n{limits}")
    options = ["--profile", tmp_path / "small.yaml", "--replicas", 1, "--model", "websr-x2-s", "--timeout", 5]
    served = serve(*options, repository=tmp_path / "models")
    ingress = "ray::ServeReplica:genai_ray:Ingress"
    (replica,) = (pid for pid in descendants(served.process.pid) if title(pid).startswith(ingress))
    body, headers = binary("FP32", np.ones(1, np.float32).tobytes(), 1)

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=DEADLINE_S)
        connection.request("POST", "/v2/models/expander/infer", body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, len(data)

    wait_until(lambda: ask()[0] == 200, served.process)
    lines = "\r\n".join(f"{name}: {text}" for name, text in headers.items())
    head = (
        f"POST /v2/models/expander/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{lines}\r\n\r\n"
    )
    with rss_watched(replica) as most:
        base, readers = most[0], []
        for _ in range(50):
            one = socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE_S)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            one.sendall(head.encode() + body)
            readers.append(one)
        wait_until(lambda: len(select.select(readers, [], [], 0)[0]) == len(readers), served.process)
        statuses = [int(one.recv(12)[-3:]) for one in readers]
        for one in readers:
            one.close()
    assert {status: statuses.count(status) for status in set(statuses)}.keys() == {200, 429}
    assert 36_000_000 < most[0] - base < MOST_BYTES
    wait_until(lambda: ask()[0] == 200, served.process)
    stopped = subprocess.Popen([sys.executable, "-c", CLIENT, served.grpc], stdout=subprocess.PIPE, text=True)
    try:
        assert stopped.stdout.readline()
        stopped.send_signal(signal.SIGSTOP)  # it reads nothing any more
        wait_until(lambda: ask()[0] == 429, served.process)
    finally:
        stopped.kill()
        stopped.communicate()
    wait_until(lambda: ask()[0] == 200, served.process)
    assert served.end() == 0
