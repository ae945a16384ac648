"""A local HTTP server of files: with ranges or without, one that goes away in the middle of a file, and one that lists
its folders."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.processes import wait_until


@contextmanager
def serving(folder: Path, *, ranges=True, breaks_at=None, waits_within=None):
    """Serve a folder. Gives the address and the bytes that were sent.

    ``breaks_at`` closes every connection at that byte of a file; ``waits_within``, (start, stop, ready), holds back
    what is asked for between two bytes until ``ready()``, or closes the connection at the deadline of tests.
    """
    sent, waited_in_vain = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, asked = path.read_bytes(), self.headers.get("Range")
            start, stop = 0, len(data)
            if ranges and asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            self.send_response(206 if ranges and asked else 200)
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            if ranges and asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            if not with_body:
                return
            if breaks_at is not None and stop > breaks_at:
                self.wfile.write(data[start : max(start, breaks_at)])
                self.close_connection = True
                return
            if waits_within is not None and start < waits_within[1] and stop > waits_within[0]:
                if waited_in_vain:  # whoever asks again is not held back again
                    self.close_connection = True
                    return
                try:
                    wait_until(waits_within[2])
                except AssertionError:
                    waited_in_vain.append(True)
                    raise
            sent.append(stop - start)
            self.wfile.write(data[start:stop])

        def log_message(self, *_):
            pass

    with _running(Handler) as address:
        yield address, sent


@contextmanager
def listing(folder: Path, locked: str = ""):
    """Serve a folder with pages that list what is in it, one file refused; gives the address and the paths of files
    that were read."""
    read = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if (folder / self.path.lstrip("/")).is_file():
                read.append(self.path)
            super().do_GET()

        def send_head(self):
            return self.send_error(403) if self.path == locked else super().send_head()

        def log_message(self, *_):
            pass

    with _running(partial(Handler, directory=str(folder))) as address:
        yield address, read


@contextmanager
def _running(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
