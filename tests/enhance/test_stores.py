"""Jobs from S3 to S3, and from Google Cloud Storage to it, with what ``genai-ray[remote]`` installs, against servers of
these protocols on this machine."""

import json
import os
import subprocess
import sys

import fsspec
import pyarrow.parquet as pq
import pytest

from genai_ray import EnhanceOptions, enhance_videos
from genai_ray.files import find_facts, list_names
from genai_ray.video import Encoding
from tests.processes import run
from tests.video.clips import NUM_FRAMES, write

pytestmark = pytest.mark.slow

OPTIONS = ["--model", "websr-x2-s", "--encoder-preset", "ultrafast", "--segment-frames", 16, "--json"]

SERVERS = {
    "s3": """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
""",
    "gs": """
import sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print("http://127.0.0.1:%d" % server._api._httpd.server_port, flush=True)
sys.stdin.read()
server.stop()
""",
}
ENVIRONMENT = {
    "s3": {
        "AWS_ENDPOINT_URL": "{}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    },
    "gs": {"STORAGE_EMULATOR_HOST": "{}", "GOOGLE_CLOUD_PROJECT": "testing"},
}


@pytest.fixture(scope="module", params=SERVERS)
def bucket(request):
    """An empty bucket: the scheme of its URIs, the bucket as fsspec sees it, and the environment in which others see
    it."""
    scheme = request.param
    server = subprocess.Popen(
        [sys.executable, "-c", SERVERS[scheme]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = next(line.strip() for line in server.stdout if line.startswith("http"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT[scheme].items():
                patch.setenv(name, value.format(address))
            fsspec.get_filesystem_class(scheme).clear_instance_cache()  # another server was meant by them
            store = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
            store.mkdir("bucket")
            yield scheme, store, dict(os.environ)
    finally:
        server.communicate()


@pytest.fixture(scope="module")
def enhanced(ray_session, tmp_path_factory):
    """Clips in a folder of this machine, and what becomes of them."""
    clips, local = (tmp_path_factory.mktemp(name) for name in ("clips", "local"))
    (clips / "below").mkdir()
    write(clips / "a.mp4")
    write(clips / "below" / "b.mkv", tracks=0, options={"g": "8"})
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=16)
    assert enhance_videos(clips, local, models="websr-x2-s", options=options).clips_failed == 0
    return clips, local


def test_a_folder_of_a_bucket_becomes_another_one(bucket, enhanced):
    """In a Ray of its own, whose processes have the environment that the store needs."""
    scheme, store, environment = bucket
    clips, local = enhanced
    for name in ("a.mp4", "below/b.mkv"):
        store.put_file(str(clips / name), f"bucket/in/{name}")
    store.pipe_file("bucket/in/bad.mp4", b"no video" * 100)

    command = ["enhance", f"{scheme}://bucket/in", "-o", f"{scheme}://bucket/out", *OPTIONS]
    done = run(*command, env=environment)
    report = json.loads(done.stdout)
    assert (done.returncode, report["clips"], report["clips_failed"], report["frames"]) == (1, 3, 1, 2 * NUM_FRAMES), (
        done.stderr
    )
    assert store.find("bucket/out") == ["bucket/out/a.mp4", "bucket/out/below/b.mkv", "bucket/out/results.parquet"]
    for name in ("a.mp4", "below/b.mkv"):
        assert store.cat_file(f"bucket/out/{name}") == (local / name).read_bytes()
    with store.open("bucket/out/results.parquet") as file:
        rows = {row["output"]: (row["status"], row["frames"]) for row in pq.read_table(file).to_pylist()}
    assert rows[f"{scheme}://bucket/out/a.mp4"] == ("done", NUM_FRAMES)
    assert rows[f"{scheme}://bucket/out/bad.mp4"] == ("failed", None)

    store.pipe_file("bucket/in/bad.mp4", (clips / "a.mp4").read_bytes())
    again = json.loads(run(*command, env=environment).stdout)
    assert (again["clips_skipped"], again["clips_failed"]) == (2, 0)
    assert store.cat_file("bucket/out/bad.mp4") == (local / "a.mp4").read_bytes()


def test_segments_that_others_upload_are_seen(bucket):
    scheme, store, _ = bucket
    folder = f"{scheme}://bucket/segments"
    store.pipe_file("bucket/segments/0.nut", b"0")
    assert list_names(folder) == ["0.nut"]
    store.pipe_file("bucket/segments/1.nut", b"1")
    assert list_names(folder) == ["0.nut", "1.nut"]
    assert find_facts(f"{folder}/1.nut").size == 1


def test_what_a_bucket_lacks_is_an_error_that_names_it(bucket, tmp_path):
    scheme, _, environment = bucket
    for source in (f"{scheme}://bucket/none.mp4", f"{scheme}://elsewhere/a.mp4"):
        done = run("enhance", source, "-o", tmp_path / "b.mp4", *OPTIONS, env=environment)
        assert done.returncode == 1
        assert source in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
