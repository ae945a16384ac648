"""Jobs that are killed, interrupted, or lose a process: what is kept, what is left, and the same bytes in the end."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.video import Encoding
from tests.processes import (
    DEADLINE_S,
    ROOT,
    descendants,
    foreign_files,
    is_alive,
    kill,
    killing,
    run,
    start,
    title,
    wait_until,
)
from tests.video.clips import write

pytestmark = pytest.mark.cluster

SEGMENT_FRAMES, NUM_FRAMES = 3, 60
MODEL = ["--model", "websr-x2-l", "--encoder-preset", "ultrafast", "--segment-frames", SEGMENT_FRAMES, "--json"]


RAY_ENDS = re.compile(r"core_worker_process\.cc:\d+: The core worker has already been shutdown\..* will exit")

HELD_UP_S = 7.0
"""Longer than a cluster made to notice a silent node soon waits for it."""


def segments(output):
    return sorted(output.with_name(output.name + ".genai-ray").glob("*.nut"))


def has_segments(output, count):
    return len(segments(output)) >= count


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty segments, each of which takes a while: there is time to look for the moment to end a job."""
    pts = list(range(NUM_FRAMES))
    return write(tmp_path_factory.mktemp("clip") / "a.mkv", size=(320, 180), pts=pts, options={"g": "3"})


@pytest.fixture(scope="module")
def undisturbed(ray_session, source):
    output = source.with_name("undisturbed.mkv")
    enhance_videos(source, output, models="websr-x2-l", options=options(SEGMENT_FRAMES))
    return output.read_bytes()


@pytest.fixture
def temporary():
    """A folder for temporary files with a path short enough for Ray's sockets, of one job alone."""
    with tempfile.TemporaryDirectory(prefix="job-", dir="/tmp") as folder:
        yield Path(folder)


def environment(temporary):
    return {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | {"TMPDIR": str(temporary)}


def end_by_kill(job):
    kill(job.pid)
    job.communicate()


def end_by_ctrl_c(job):
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = job.communicate()
    assert (job.returncode, json.loads(out)["error"]["message"]) == (130, "interrupted")
    assert "interrupted" in err
    assert "Traceback" not in err


def end_by_sigterm(job):
    os.kill(job.pid, signal.SIGTERM)
    out, err = job.communicate(timeout=DEADLINE_S)
    assert (job.returncode, json.loads(out)["error"]["message"]) == (143, "ended by SIGTERM"), err
    assert "ended by SIGTERM" in err
    assert "***" not in err
    assert "Traceback" not in err


def end_by_death_of_its_node(job):
    kill(wait_for(job, "raylet/raylet"))
    out, err = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 1, err
    assert not out or "has died" in json.loads(out)["error"]["message"]  # Ray may end the process from below Python
    stages = ("planning", "starting", "enhancing:", "joining:")
    told = [line for line in err.splitlines() if not line.startswith(stages)]
    if not out:  # Ray has ended the process from below Python: then its C++ may say so first, beside other threads
        told = [line for line in told if not RAY_ENDS.search(line)]
    assert (
        told.pop()
        == "error: the Ray node that this process started has died. Run the same again: finished segments are kept."
    )
    assert all("finished segments are kept in" in line for line in told), err  # and none of Ray's own words


def test_a_job_goes_on_where_it_stopped_whatever_ended_it(source, undisturbed, tmp_path, temporary):
    """One job, ended in four ways, each time when two more segments are finished: nothing of them is lost, nothing else
    is left, and the bytes are those of a job that nobody disturbed."""
    output, kept = tmp_path / "b.mkv", {}
    work = output.with_name(output.name + ".genai-ray")
    command = ["enhance", source, "-o", output, *MODEL]
    for end in (end_by_kill, end_by_ctrl_c, end_by_sigterm, end_by_death_of_its_node):
        job = start(*command, env=environment(temporary))
        wait_until(partial(has_segments, output, len(kept) + 2), job)
        before, children = stamps(output), descendants(job.pid)
        end(job)
        wait_until(partial(are_gone, children))
        assert not output.exists()
        assert kept.items() <= before.items() <= stamps(output).items(), end
        kept = stamps(output)
        if end in (end_by_ctrl_c, end_by_sigterm):  # also what the job before left when it was killed
            assert list(temporary.glob("genai-ray-*")) == []
            assert {path.suffix for path in work.iterdir()} == {".nut"}
    done = run(*command, env=environment(temporary))
    report = json.loads(done.stdout)
    assert (report["segments"], report["segments_reused"], report["frames"]) == (20, len(kept), NUM_FRAMES)
    assert output.read_bytes() == undisturbed
    assert list(tmp_path.iterdir()) == [output]
    # What Ray left if it ended the process at once, the next job has removed.
    assert list(temporary.glob("genai-ray-*")) == []


def test_ctrl_c_at_the_start_leaves_nothing(source, tmp_path):
    job = start("enhance", source, "-o", tmp_path / "b.mkv", *MODEL)
    wait_until(lambda: any("raylet" in title(pid) for pid in descendants(job.pid)), job)
    children = descendants(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode == 130, err
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert list(tmp_path.iterdir()) == []


def options(segment_frames):
    return EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=segment_frames)


def test_an_interrupted_job_leaves_no_task_in_a_shared_cluster(ray_session, tmp_path):
    source, output = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(600))), tmp_path / "b.mkv"
    work = output.with_name(output.name + ".genai-ray")

    def interrupt():
        wait_until(lambda: any(path.stat().st_size for path in work.glob("*.partial")))  # frames are being written
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        enhance_videos(source, output, models="websr-x2-l", options=options(600))
    thread.join()
    wait_until(lambda: not any(title(pid).startswith("ray::_run_") for pid in descendants(os.getpid())))
    assert list(tmp_path.iterdir()) == [source]


def test_a_killed_worker_and_a_killed_session_change_no_byte(ray_session, source, undisturbed, tmp_path):
    output = tmp_path / "b.mkv"
    with (
        killing("ray::_run_", 1, lambda: segments(output)) as workers,
        killing("ray::SessionActor", 1, lambda: segments(output)) as sessions,
    ):
        report = enhance_videos(source, output, models="websr-x2-l", options=options(SEGMENT_FRAMES))
    assert len(workers) == len(sessions) == 1
    assert report.frames == NUM_FRAMES
    assert output.read_bytes() == undisturbed


def test_a_segment_that_kills_every_worker_fails_by_name(ray_session, tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(100)))
    with (
        killing("ray::_run_", 99, lambda: True) as killed,
        pytest.raises(errors.VideoError, match=r"a\.mkv: the worker died 3 times on segments \[0\]"),
    ):
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-l", options=options(100))
    assert len(killed) >= 3
    assert list(tmp_path.iterdir()) == [source]


def test_a_chain_that_loses_processes_gives_the_same_bytes(ray_session, tmp_path):
    """Frames between two models are owned by the segment's task: what a session had made before it died is not lost
    with it."""
    source, output, chain = (
        write(tmp_path / "a.mkv", size=(160, 96), pts=list(range(60)), options={"g": "6"}),
        tmp_path / "b.mkv",
        ["ffdnet", "rife", "websr-x2-l"],
    )
    enhance_videos(source, tmp_path / "undisturbed.mkv", models=chain, options=options(12))
    with (
        killing("ray::SessionActor", 2, lambda: segments(output)) as sessions,
        killing("ray::_run_", 1, lambda: len(segments(output)) > 1) as workers,
    ):
        report = enhance_videos(source, output, models=chain, options=options(12))
    assert (len(sessions), len(workers)) == (2, 1)
    assert report.frames == 120
    assert output.read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()


def stamps(output):
    """Return which file every finished segment is; one that was made again is another."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in segments(output)}


def are_gone(pids):
    return not any(is_alive(pid) for pid in pids)


def find(job, words):
    return next((pid for pid in descendants(job.pid) if words in title(pid) and is_alive(pid)), None)


def wait_for(job, words):
    """Return a process of the job whose title has ``words``, as soon as there is one."""
    found = []
    wait_until(lambda: found.append(find(job, words)) or found[-1], job)
    return found[-1]


def test_ray_that_does_not_start_is_an_error(source, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    at_once = environment(folder) | {"RAY_NUM_REDIS_GET_RETRIES": "0"}  # nothing starts within that
    done = run("enhance", source, "-o", tmp_path / "b.mkv", *MODEL, "--address", "local", env=at_once)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"].startswith("Ray did not start: ")
    assert "error: Ray did not start: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [folder]
    assert not list(folder.glob("genai-ray-*"))


def test_a_machine_that_is_held_up_for_seconds_loses_nothing(source, undisturbed, tmp_path):
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *MODEL)
    wait_until(lambda: len(segments(output)) >= 1, job)
    raylet = wait_for(job, "raylet/raylet")
    os.kill(raylet, signal.SIGSTOP)
    time.sleep(HELD_UP_S)  # not to wait for something: it is what is tested
    os.kill(raylet, signal.SIGCONT)
    out, err = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 0, err
    assert json.loads(out)["frames"] == NUM_FRAMES
    assert output.read_bytes() == undisturbed


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.parametrize(
    "has_come",
    [
        lambda job, output: find(job, "ray::CacheActor"),
        lambda job, output: find(job, "ray::SessionActor"),
        lambda job, output: len(segments(output)) >= 19,
    ],
    ids=["cache", "session", "end"],
)
def test_a_dead_node_of_its_own_ends_the_job_with_an_error(source, undisturbed, tmp_path, temporary, has_come):
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *MODEL, env=environment(temporary))
    wait_until(lambda: has_come(job, output), job)
    kept, children = len(segments(output)), descendants(job.pid)
    end_by_death_of_its_node(job)
    wait_until(partial(are_gone, children))
    done = run("enhance", source, "-o", output, *MODEL, env=environment(temporary))
    assert json.loads(done.stdout)["segments_reused"] >= kept
    assert output.read_bytes() == undisturbed


def test_a_process_that_ray_ends_at_once_has_a_last_word(temporary):
    """Without its node Ray calls ``_exit`` as soon as this process asks the object store for something: no line of
    Python runs after that."""
    code = """
import os, signal, ray
from genai_ray.cluster import connect
connect("local")
node = ray._private.worker._global_node
(raylet,) = [info.process for info in node.all_processes["raylet"]]
os.kill(raylet.pid, signal.SIGKILL)
raylet.wait()
ray.put(b"x" * 10_000_000)
print("not ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(temporary), cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the Ray node that this process started has died\n"


@pytest.mark.slow
@pytest.mark.longest
def test_sigterm_at_the_start_leaves_nothing(source, tmp_path, temporary):
    job = start("enhance", source, "-o", tmp_path / "b.mkv", *MODEL, env=environment(temporary))
    wait_until(lambda: find(job, "raylet/raylet"), job)
    children = descendants(job.pid)
    end_by_sigterm(job)
    wait_until(partial(are_gone, children))
    assert list(temporary.glob("genai-ray-*")) == []
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".nut"}


def test_odd_folders_terminals_and_homes_change_nothing(tmp_path, temporary):
    """Workers import what this process imports: not what a user calls by the name of a package."""
    for name in (
        "av",
        "numpy",
        "onnxruntime",
        "onnx",
        "pyarrow",
        "yaml",
        "fsspec",
        "pydantic",
        "psutil",
        "code",
        "secrets",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of a user was imported')")
    source = write(tmp_path / "a.mkv", pts=[0, 1, 2], tracks=0)
    command = [
        Path(sys.executable).with_name("genai-ray"),
        "enhance",
        source,
        "-o",
        tmp_path / "\u00e9\udce9.mkv",
        "--model",
        "websr-x2-s",
    ]
    home = temporary / "home"
    said = {"PYTHONIOENCODING": "ascii", "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    done = subprocess.run(
        command, capture_output=True, check=False, cwd=tmp_path, env=environment(temporary) | said, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert b"\\xe9\\udce9.mkv" in done.stdout
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "\u00e9\udce9.mkv").exists()
    assert foreign_files(home) == []  # no runtime keeps an id of this device, or counts its use
    assert list(temporary.iterdir()) == [home]


MOMENTS = [
    ("driver", lambda job, output: find(job, "raylet")),
    ("driver", lambda job, output: find(job, "ray::SessionActor")),
    ("ray::_run_segment", lambda job, output: len(segments(output)) >= 1),
    ("ray::SessionActor", lambda job, output: len(segments(output)) >= 3),
    ("driver", lambda job, output: len(segments(output)) >= 5),
    ("ray::CacheActor", lambda job, output: len(segments(output)) >= 6),
    ("ray::_run_segment", lambda job, output: len(segments(output)) >= 8),
    ("driver", lambda job, output: len(segments(output)) >= 10),
    ("ray::SessionActor", lambda job, output: len(segments(output)) >= 12),
    ("driver", lambda job, output: len(segments(output)) >= 16),
]
"""Who is killed next, and when, by the number of finished segments."""


@pytest.mark.slow
@pytest.mark.longest
def test_ten_moments_of_death_change_no_byte_and_undo_nothing(source, undisturbed, tmp_path):
    output, kept = tmp_path / "b.mkv", {}
    command = ["enhance", source, "-o", output, *MODEL]
    job = start(*command)
    for victim, has_come in MOMENTS:
        wait_until(partial(has_come, job, output), job)
        if victim != "driver":
            kill(wait_for(job, victim))
            continue
        before, children = stamps(output), descendants(job.pid)
        kill(job.pid)
        job.communicate()
        wait_until(partial(are_gone, children))
        assert not output.exists()
        assert kept.items() <= before.items() <= stamps(output).items()
        kept = stamps(output)
        job = start(*command)
    out, err = job.communicate()
    assert job.returncode == 0, err
    report = json.loads(out)
    assert (report["frames"], report["segments"], report["segments_reused"]) == (NUM_FRAMES, 20, len(kept))
    assert output.read_bytes() == undisturbed
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
def test_a_second_job_is_refused_at_once_and_harms_nothing(source, undisturbed, tmp_path):
    output = tmp_path / "b.mkv"
    job = start("enhance", source, "-o", output, *MODEL)
    wait_until(lambda: len(segments(output)) >= 2, job)
    second = run("enhance", source, "-o", output, *MODEL, "--overwrite")
    assert (second.returncode, json.loads(second.stdout)["error"]["class"]) == (2, "ConfigError")
    assert second.stderr.startswith(f"error: output {output} is in use by another job: process {job.pid}.")
    assert second.stderr.count("\n") == 1
    _, err = job.communicate()
    assert job.returncode == 0, err
    assert output.read_bytes() == undisturbed
    assert list(tmp_path.iterdir()) == [output]
