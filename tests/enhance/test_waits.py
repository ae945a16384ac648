"""What a job waits for: a join that is killed in the middle, a cluster without CPUs, a lease that does not come."""

import json
import os
import signal
import tempfile
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job import job, scheduler
from genai_ray.video import Encoding
from tests.processes import descendants, is_alive, kill, start, title, wait_until
from tests.rays import ray_of
from tests.video.clips import write

MODEL = [
    "--model",
    "websr-x2-s",
    "--encoder-preset",
    "ultrafast",
    "--segment-frames",
    8,
    "--json",
    "--address",
    "local",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "a.mkv", options={"g": "8"})


@pytest.fixture
def own_temporary(monkeypatch):
    """Jobs that are killed leave Ray's folder behind: it goes with this one, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="job-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.cluster
@pytest.mark.slow
def test_a_join_that_is_killed_in_the_middle_is_made_again(ray_session, source, tmp_path, own_temporary):
    """The worker of a join is stopped until it is killed: it alone, or with the whole job. A join that ended before it
    was caught is tried again."""
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=8)
    enhance_videos(source, tmp_path / "undisturbed.mkv", models="websr-x2-s", options=options)
    output = tmp_path / "b.mkv"
    work = output.with_name("b.mkv.genai-ray")

    def finished():
        return sorted(work.glob("*.nut"))

    def hold():
        """Start the job, and return it with the stopped worker of its join, and whether all segments were there
        before."""
        while True:
            were_there = len(finished()) == 5
            held = start("enhance", source, "-o", output, *MODEL)
            while held.poll() is None:
                for pid in descendants(held.pid):
                    if "ray::_run_finish" in title(pid):
                        os.kill(pid, signal.SIGSTOP)
                        if len(finished()) == 5 and not output.exists():
                            return held, pid, were_there
                        os.kill(pid, signal.SIGCONT)
            _, err = held.communicate()
            assert held.returncode == 0, err
            output.unlink()

    held, _, _ = hold()
    end(held)
    assert not output.exists()
    assert len(finished()) == 5
    held, joining, were_there = hold()
    kill(joining)
    out, err = held.communicate()
    assert held.returncode == 0, err
    assert json.loads(out)["segments_reused"] == (5 if were_there else 0)
    assert output.read_bytes() == (tmp_path / "undisturbed.mkv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mkv", "undisturbed.mkv"]


def end(job):
    """Kill a job with all of its processes, and wait until nothing of it is left."""
    children = descendants(job.pid)
    for pid in (job.pid, *children):
        kill(pid)
    job.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_without_cpus_is_an_error(source, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "NO_CPU_WITHIN_S", 3.0)
    monkeypatch.setattr(scheduler, "CPUS_EVERY_S", 0.2)
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"))
    with ray_of(0), pytest.raises(errors.ResourceExhaustedError, match="the cluster has had no CPU for 3 s"):
        enhance_videos(source, tmp_path / "b.mkv", models="websr-x2-s", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def loading():
    """The lease of a job that has not come yet."""
    loading = job._ChainLease(None, EnhanceOptions())
    loading._lease = Future()
    return loading


def test_a_lease_that_does_not_come_holds_nobody_up(loading, monkeypatch):
    monkeypatch.setattr(job, "LEASE_WITHIN_S", 0.01)
    assert loading.uses() == ()
    loading.follow(None, None)
    released = []
    loading.release()
    assert released == []
    loading._lease.set_result(SimpleNamespace(release=lambda: released.append(True)))
    assert released == [True]


def test_a_lease_that_fails_ends_the_job_with_its_own_error(loading):
    loading._lease.set_exception(errors.ModelLoadError("a model", "another one"))
    with pytest.raises(errors.ModelLoadError, match="a model"):
        loading.follow(None, None)
    loading.release()
