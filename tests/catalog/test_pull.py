"""Pulling from a real server on loopback: progress, breaks, resuming, wrong hashes."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from genai_ray import ModelCatalog, errors
from genai_ray.catalog import pull_model

DATA = bytes(range(256)) * 2000


class Handler(BaseHTTPRequestHandler):
    """Serves DATA; breaks off after ``server.most`` bytes; knows Range unless told not to."""

    def do_GET(self):
        server, start = self.server, 0
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if wanted and server.knows_range:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(DATA):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        self.wfile.write(DATA[start : start + server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.most, server.knows_range, server.ranges = len(DATA), True, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def spec(server):
    url = f"http://127.0.0.1:{server.server_port}/u2net.onnx"
    known = ModelCatalog.default().get("u2net")
    return known.model_copy(update={"url": url, "sha256": hashlib.sha256(DATA).hexdigest(), "size_bytes": len(DATA)})


def test_progress_and_the_file(spec, tmp_path):
    seen = []
    path = pull_model(spec, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["u2net.onnx"]


@pytest.mark.parametrize("knows_range", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(spec, server, tmp_path, knows_range):
    server.most, server.knows_range = 100_000, knows_range
    with pytest.raises(errors.ModelLoadError, match="100000 bytes are kept"):
        pull_model(spec, tmp_path)
    assert not (tmp_path / "u2net.onnx").exists()
    server.most = len(DATA)
    assert pull_model(spec, tmp_path).read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-"]


def test_a_part_that_is_whole_is_enough(spec, tmp_path):
    (tmp_path / "u2net.onnx.part").write_bytes(DATA)
    assert pull_model(spec, tmp_path).read_bytes() == DATA


def test_a_wrong_hash_leaves_nothing(spec, tmp_path):
    with pytest.raises(errors.ModelLoadError, match="sha256"):
        pull_model(spec.model_copy(update={"sha256": "0" * 64}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_pulled(spec, tmp_path):
    with pytest.raises(errors.ConfigError, match="no url"):
        pull_model(ModelCatalog.default().get("rife"), tmp_path)
    with pytest.raises(errors.ConfigError, match="http"):
        pull_model(spec.model_copy(update={"url": "file:///etc/passwd"}), tmp_path)
    with pytest.raises(errors.ModelLoadError, match=r"none: Connection refused\. Repeat the command"):
        pull_model(spec.model_copy(update={"url": "http://127.0.0.1:9/none"}), tmp_path)
