"""Names that others choose: none leads out of the output folder, and a long one harms nobody but itself."""

import os
import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.video import Encoding
from tests.video.clips import write

MODEL = "websr-x2-s"
OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "deep" / "out").mkdir(parents=True)
    return tmp_path / "deep" / "out"


@contextmanager
def listing_of(*names):
    """Serve a page that lists names as a server of a stranger may."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            body = (
                "".join(f'<a href="{name}">x</a>' for name in names).encode()
                if self.path.rstrip("/").endswith("clips")
                else b"0"
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body != b"0" else "video/mp4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/clips/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def refused(words="outside of"):
    return pytest.raises(errors.ConfigError, match=words)


@pytest.mark.parametrize("name", ["../escaped.mp4", "below/../../../escaped.mp4", "../../escaped.mp4"])
def test_a_listing_does_not_lead_out_of_the_folder(out, name):
    with listing_of("a.mp4", name) as address, refused():
        resolve_targets([address], out, OPTIONS)


@pytest.mark.parametrize("key", ["in/../../escaped.mp4", "in/sub/../../escaped.mp4"])
@pytest.mark.parametrize("to_store", [False, True])
def test_a_key_does_not_lead_out_of_the_folder(out, key, to_store, monkeypatch):
    store = fsspec.filesystem("memory")
    store.store.clear()
    try:
        for name in (key, "in/a.mp4"):
            store.store[f"/{name}"] = type(store).cat and fsspec.implementations.memory.MemoryFile(
                store, f"/{name}", b"0"
            )
        with refused():
            resolve_targets(["memory://in"], "memory://deep/out" if to_store else out, OPTIONS)
    finally:
        store.store.clear()


@pytest.mark.parametrize("folder", ["memory://deep/out", "{}"])
def test_a_name_that_begins_with_dots_is_a_name(out, folder, tmp_path):
    place = write(tmp_path / "..a.mp4", pts=[0, 1], tracks=0)
    (target,) = resolve_targets([place], f"{folder.format(out)}/", OPTIONS)
    assert target.output == f"{folder.format(out)}/..a.mp4"


def test_a_template_does_not_lead_out_of_the_folder(out, tmp_path):
    write(tmp_path / "a.mp4", pts=[0, 1], tracks=0)
    write(tmp_path / "b.mp4", pts=[0, 1], tracks=0)
    for template in ("../{stem}{suffix}", "x/../../{stem}{suffix}"):
        with refused():
            resolve_targets([tmp_path / "a.mp4", tmp_path / "b.mp4"], out, replace(OPTIONS, name=template))
        with refused():
            resolve_targets([tmp_path / "a.mp4"], out, replace(OPTIONS, name=template))
    for target in resolve_targets(
        [tmp_path / "a.mp4", tmp_path / "b.mp4"], out, replace(OPTIONS, name="x/../{stem}{suffix}")
    ):
        assert Path(target.output).resolve().parent == out


@pytest.mark.parametrize(
    "output", ["../escaped.mp4", "x/../../escaped.mp4", "link/escaped.mp4", "link/below/escaped.mp4"]
)
def test_a_manifest_and_a_link_do_not_lead_out_of_the_folder(out, tmp_path, output):
    (out / "link").symlink_to(tmp_path)
    write(tmp_path / "a.mp4", pts=[0, 1], tracks=0)
    pyarrow.csv.write_csv(pa.table({"uri": ["a.mp4"], "output": [output]}), tmp_path / "list.csv")
    with refused():
        resolve_targets([tmp_path / "list.csv"], out, OPTIONS)


def test_a_manifest_of_a_stranger_names_no_place_of_its_own(out, tmp_path):
    write(tmp_path / "a.mp4", pts=[0, 1], tracks=0)
    pyarrow.csv.write_csv(
        pa.table({"uri": [str(tmp_path / "a.mp4")], "output": [str(tmp_path / "escaped.mp4")]}), tmp_path / "list.csv"
    )
    (target,) = resolve_targets([tmp_path / "list.csv"], out, OPTIONS)  # the user's own
    assert target.output == str(tmp_path / "escaped.mp4")
    with fsspec.open("memory://list.csv", "wb") as file:
        file.write((tmp_path / "list.csv").read_bytes())
    with refused():
        resolve_targets(["memory://list.csv"], out, OPTIONS)


def test_the_output_folder_itself_may_be_a_link(out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    write(tmp_path / "a.mp4", pts=[0, 1], tracks=0)
    (target,) = resolve_targets([tmp_path / "a.mp4"], tmp_path / "link", OPTIONS)
    assert target.output == str(tmp_path / "link" / "a.mp4")


def long(suffix, num_bytes, letter="a"):
    """Make a name of so many bytes, or a few less where its letters have several."""
    return letter * ((num_bytes - len(suffix)) // len(letter.encode())) + suffix


def test_names_as_long_as_can_be_harm_nobody(ray_session, out, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    short = write(tmp_path / "a.mp4", pts=[0, 1, 2], tracks=0)
    fine = [long(".mp4", length) for length in (236, 239, 246, 255)] + [
        long(".mp4", 255, "é"),
        long(".mp4", 255, "\U0001f3ac"),
    ]
    too_long = long(".ts", 255)  # its result ends in .mp4
    for name in (*fine, too_long, "short.mp4"):
        (clips / name).write_bytes(short.read_bytes())
    report = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    (failed,) = [video for video in report.videos if video.status == "failed"]
    assert Path(failed.source).name == too_long
    assert "256 bytes; allowed: 255" in failed.error
    assert "--name" in failed.error
    assert sorted(os.listdir(out)) == sorted([*fine, "results.parquet", "short.mp4"])
    again = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    assert (again.clips_skipped, again.clips_failed) == (len(fine) + 1, 1)


@pytest.mark.parametrize("name", [long(".mkv", 255), long("", 255) + "/%06d.png", long(".parquet", 255)])
def test_one_output_of_a_long_name_is_written(ray_session, out, tmp_path, name):
    source = write(tmp_path / long(".mp4", 255), pts=[0, 1, 2], tracks=0)
    options = EnhanceOptions(work_dir=tmp_path / "work") if name.endswith(".mkv") else EnhanceOptions()
    assert enhance_videos(source, out / name, models=MODEL, options=options).frames == 3
    assert os.listdir(out) == [name.partition("/")[0]]


def test_an_output_whose_name_is_too_long_is_refused_at_once(out, tmp_path):
    source = write(tmp_path / "a.mp4", pts=[0, 1, 2], tracks=0)
    with pytest.raises(errors.ConfigError, match=re.escape("256 bytes; allowed: 255")):
        enhance_videos(source, out / long(".mkv", 256), models=MODEL)
    assert os.listdir(out) == []
