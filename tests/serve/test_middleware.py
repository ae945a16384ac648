"""Who may ask: the Host that a request names, and the page that it comes from; without Ray, but for the last test."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from genai_ray.catalog import ServeProfile
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.http.middleware import Middleware
from genai_ray.serve.http.routes import Operation
from tests.serve.test_http import feed, send

HEALTH = "/v2/health/ready"


def ask(method="GET", path="/v2", *, headers=(), **profile):
    """Ask an application behind the gate; return the status, what it says, and whether the application was reached."""
    reached, told = [], SimpleNamespace(status=None, body=b"", headers={})

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            told.status, told.headers = (
                message["status"],
                {name.decode().lower(): value.decode() for name, value in message["headers"]},
            )
        told.body += message.get("body", b"")

    engine = SimpleNamespace(profile=ServeProfile(name="a", **profile), statistics=Statistics())
    lines = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": lines,
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(
        Middleware(app, engine, [Operation("GET", HEALTH, app, "health", "", is_open=True)])(scope, receive, send)
    )
    return told.status, json.loads(told.body or b"{}"), bool(reached), told.headers


def status_for(asked, path="/v2", **profile):
    status, told, was_reached, _ = ask("GET", path, headers=[("Host", asked)], **profile)
    assert was_reached is (status == 200)
    assert status == 200 or "--allowed-host" in told["error"], told
    return status


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.8.7:80",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:1",
        "",
    ],
)
def test_names_of_this_machine_are_taken(host):
    assert status_for(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost"),
        *("127.1", "2130706433", "0x7f000001", "10.0.0.5:8000", "[fe80::1]", "[::ffff:8.8.8.8]", "127.0.0.1:80:90"),
        *("user@127.0.0.1", "127.0.0.1, evil.example", "localhost evil", "[::1", "[::1]x", ":80"),
    ],
)
def test_every_other_host_is_refused_with_json(host):
    status, told, was_reached, _ = ask(headers=[("Host", host)])
    assert (status, was_reached) == (403, False)
    assert "allowed: " in told["error"]
    assert "--allowed-host" in told["error"]


def test_one_foreign_host_is_refused_and_no_host_is_taken():
    assert ask(headers=[("Host", "127.0.0.1"), ("Host", "evil.example")])[0] == 403
    assert ask(headers=[])[0] == 200  # HTTP/1.0: no page sends such a request


def test_hosts_that_are_named_are_taken():
    assert status_for("box.lan:9000", host="box.lan") == 200
    assert status_for("BOX.lan", allowed_hosts=("box.lan",)) == 200
    assert status_for("box.lan:1", allowed_hosts=("other", "Box.LAN")) == 200
    assert status_for("a.box.lan", allowed_hosts=("box.lan",)) == 403
    for host, status in (("a.b.lan", 200), ("b.lan", 403), ("ab.lan", 403), ("a.b.lan.evil.example", 403)):
        assert status_for(host, allowed_hosts=(".b.lan",)) == status
    assert status_for("evil.example", allowed_hosts=("*",)) == 200
    for wrong in ("http://box.lan", "box.lan:9000", "a b", "", "*.box.lan"):
        with pytest.raises(ValueError, match="allowed_hosts"):
            ServeProfile(name="a", allowed_hosts=(wrong,))


@pytest.mark.parametrize("listening", ["0.0.0.0", "::", "192.168.7.7"])
def test_an_open_endpoint_takes_addresses_and_dotless_names(listening):
    """No stranger's DNS can give a page such a name; probes of Kubernetes name the pod's address."""
    for host in ("10.1.2.3:8000", "[fd00::7]:8000", "localhost", "genai-ray-serve-svc:8000"):
        assert status_for(host, host=listening) == 200
    for host in ("evil.example", "10.1.2.3.evil.example", "0x0a010203", "10.1"):
        assert status_for(host, host=listening) == 403


def test_the_cluster_profile_takes_names_of_services():
    allowed = ServeProfile.load("cluster").allowed_hosts
    for host in ("serve-svc", "serve-svc.ml.svc", "serve-svc.ml.svc.cluster.local:8000", "10.4.5.6:8000"):
        assert status_for(host, host="0.0.0.0", allowed_hosts=allowed) == 200
    assert status_for("evil.example", host="0.0.0.0", allowed_hosts=allowed) == 403


def test_health_is_told_whatever_the_host():
    assert status_for("evil.example", HEALTH) == 200
    assert status_for("evil.example", "/v2") == 403


def page(origin=None, site=None, method="POST", asked="127.0.0.1:8000", **profile):
    headers = [
        ("Host", asked),
        *([("Origin", origin)] if origin is not None else []),
        *([("Sec-Fetch-Site", site)] if site else []),
    ]
    status, told, was_reached, answered = ask(method, headers=headers, **profile)
    assert was_reached is (status == 200)
    assert status == 200 or "--cors-origin" in told["error"], told
    return status, answered.get("access-control-allow-origin")


def test_pages_of_other_origins_change_nothing():
    for origin in (
        "https://evil.example",
        "null",
        "http://127.0.0.1:9000",
        "http://localhost:8000",
        "",
        "127.0.0.1:8000",
        "file://",
    ):
        for method in ("POST", "DELETE", "PUT", "PATCH"):
            assert page(origin, method=method)[0] == 403
    for site in ("cross-site", "same-site"):
        assert page(site=site)[0] == 403
        assert page("https://evil.example", site)[0] == 403
    assert page("https://evil.example", token_sha256="0" * 64)[0] == 403


def test_the_own_page_and_clients_without_a_page_are_taken():
    assert page()[0] == 200
    assert page(site="none")[0] == page(site="same-origin")[0] == 200
    assert page("http://127.0.0.1:8000", "same-origin")[0] == 200
    assert page("http://localhost:8000", asked="localhost:8000")[0] == 200
    assert page("HTTP://[::1]:8000", asked="[::1]:8000")[0] == 200
    for origin, host in (
        ("https://box.lan", "box.lan"),
        ("https://box.lan", "box.lan:443"),
        ("http://box.lan:80", "box.lan"),
    ):  # behind a proxy with TLS
        assert page(origin, asked=host, allowed_hosts=("box.lan",))[0] == 200
    assert page("https://box.lan:444", asked="box.lan", allowed_hosts=("box.lan",))[0] == 403
    for method in ("GET", "HEAD", "OPTIONS"):
        assert page("https://evil.example", "cross-site", method)[0] == 200


def test_named_origins_may_post_and_read_refusals():
    named = {"cors_origins": ("https://good.example",)}
    assert page("https://good.example", "cross-site", **named) == (200, "https://good.example")
    assert page("https://good.example.evil.example", "cross-site", **named)[0] == 403
    assert page(site="cross-site", **named)[0] == 403
    assert page("https://any.example", "cross-site", cors_origins=("*",))[0] == 200
    headers = [("Host", "evil.example"), ("Origin", "https://good.example")]
    assert ask("POST", headers=headers, **named)[0] == 403


def test_an_endpoint_refuses_strangers_and_takes_every_client(served):
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        response, data = send(served, "POST", "/v2/repository/models/add-sub/unload", headers=headers)
        assert (response.status, response.getheader("Content-Type")) == (403, "application/json")
        assert "allowed" in json.loads(data)["error"]
    for path in ("/v1/models", "/v1/cache", "/", "/v2/models/add-sub", "/nowhere", "/metrics"):
        assert send(served, "GET", path, headers={"Host": "evil.example"})[0].status == 403
    assert (
        send(
            served,
            "POST",
            "/v2/repository/index",
            headers={"Origin": f"http://{served.http}", "Sec-Fetch-Site": "same-origin"},
        )[0].status
        == 200
    )
    assert (
        send(
            served,
            "POST",
            "/v2/repository/index",
            headers={"Origin": "https://example.org", "Sec-Fetch-Site": "cross-site"},
        )[0].status
        == 200
    )
    x = feed("x", np.ones((1, 1), np.int16), "INT16")
    with tritonclient.http.InferenceServerClient(served.http) as client:
        assert client.infer("identity-int16", [x]).as_numpy("y").tolist() == [[1]]
    tensor = tritonclient.grpc.InferInput("x", [1, 1], "INT16")
    tensor.set_data_from_numpy(np.ones((1, 1), np.int16))
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        assert client.infer("identity-int16", [tensor], headers={"origin": "https://evil.example"}).as_numpy(
            "y"
        ).tolist() == [[1]]
