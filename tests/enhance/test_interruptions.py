"""Jobs that are killed, interrupted, or lose a process: what is kept, what is left, and the same bytes in the end."""

import json
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.video import Encoding
from tests.processes import descendants, is_alive, kill, run, start, title, wait_until
from tests.video.clips import write

pytestmark = pytest.mark.cluster

MODEL = ["--model", "websr-x2-l", "--preset", "ultrafast", "--segment-frames", 6, "--json"]


def segments(output):
    return sorted(output.with_name(output.name + ".genai-ray").glob("*.nut"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "a.mkv", size=(320, 180), pts=list(range(120)), options={"g": "6"})


@pytest.fixture(scope="module")
def undisturbed(source):
    output = source.with_name("undisturbed.mkv")
    assert run("enhance", source, "-o", output, *MODEL).returncode == 0
    return output.read_bytes()


def own_folders():
    return set(Path("/tmp").glob("genai-ray-*"))


@pytest.mark.parametrize("after", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_job_goes_on_where_it_stopped(source, undisturbed, tmp_path, after):
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *MODEL)
    wait_until(lambda: len(segments(output)) >= after, job)
    children = descendants(job.pid)
    kill(job.pid)
    job.communicate()
    assert not output.exists()
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    kept = len(segments(output))
    assert kept >= after
    done = run("enhance", source, "-o", output, *MODEL)
    report = json.loads(done.stdout)
    assert (report["segments"], report["segments_reused"]) == (20, kept)
    assert report["frames"] == 120
    assert output.read_bytes() == undisturbed
    assert list(tmp_path.iterdir()) == [output]


def test_ctrl_c_ends_everything_and_keeps_finished_segments(source, undisturbed, tmp_path):
    output, folders = tmp_path / "b.mkv", own_folders()
    job = start("enhance", source, "-o", output, *MODEL)
    wait_until(lambda: len(segments(output)) >= 2, job)
    children = descendants(job.pid)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = job.communicate()
    assert (job.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert own_folders() <= folders
    assert not output.exists()
    work = output.with_name(output.name + ".genai-ray")
    assert {path.suffix for path in work.iterdir()} == {".nut"}
    report = json.loads(run("enhance", source, "-o", output, *MODEL).stdout)
    assert report["segments_reused"] >= 2
    assert output.read_bytes() == undisturbed


def test_ctrl_c_at_the_start_leaves_nothing(source, tmp_path):
    job = start("enhance", source, "-o", tmp_path / "b.mkv", *MODEL)
    wait_until(lambda: any("raylet" in title(pid) for pid in descendants(job.pid)), job)
    children = descendants(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode == 130, err
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def killing(words, most, when):
    """Kill up to ``most`` processes of the embedded Ray whose title has ``words``, one after another, once ``when()`` holds."""
    over, killed = threading.Event(), []

    def hunt():
        while not over.wait(0.05) and len(killed) < most:
            if not when():
                continue
            for pid in descendants(os.getpid()):
                if words in title(pid) and pid not in killed and is_alive(pid):
                    kill(pid)
                    killed.append(pid)
                    break

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def options(segment_frames):
    return EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=segment_frames)


def test_a_killed_worker_and_a_killed_session_change_no_byte(ray_session, source, undisturbed, tmp_path):
    output = tmp_path / "b.mkv"
    with killing("ray::Map", 1, lambda: segments(output)) as workers, killing("ray::SessionActor", 1, lambda: segments(output)) as sessions:
        report = enhance_videos(source, output, models="websr-x2-l", options=options(6))
    assert len(workers) == len(sessions) == 1
    assert report.frames == 120
    assert output.read_bytes() == undisturbed


def test_a_segment_that_kills_every_worker_fails_by_name(ray_session, tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(100)))
    with killing("ray::Map", 99, lambda: True) as killed, pytest.raises(errors.VideoError, match=r"a\.mkv: the worker died 3 times on segments \[0\]"):
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-l", options=options(100))
    assert len(killed) >= 3
    assert list(tmp_path.iterdir()) == [source]
