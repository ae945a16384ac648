"""One job at a time has an output, a work folder, and each output of a folder; locks of dead jobs are known."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from genai_ray import EnhanceOptions, enhance_videos, errors
from genai_ray.enhance.job import job
from genai_ray.enhance.job.claims import LOCK
from genai_ray.enhance.job.segment_store import remove_folder
from genai_ray.files import Lock, read_lock
from genai_ray.files.locks import DEAD_AFTER_S
from genai_ray.video import Encoding
from tests.processes import ROOT, is_alive, kill, wait_until
from tests.video.clips import write

MODEL = "websr-x2-s"
OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"))

CLAIM = """
import json, sys
from genai_ray import EnhanceOptions
from genai_ray.enhance.job.claims import Claims
from genai_ray.enhance.plan.clip_target import resolve_targets
for line in sys.stdin:
    source, output, work_dir = json.loads(line)
    with Claims() as claims:
        targets = resolve_targets([source], output, EnhanceOptions(work_dir=work_dir))
        claims.take_all(targets)
        claims.take(next(iter(targets)))
        print("taken", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
"""


@contextmanager
def another_process():
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield other
    finally:
        kill(other.pid)
        other.communicate()


def tell(process, line, answer):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"{answer}\n"


@pytest.fixture(scope="module")
def other():
    with another_process() as process:
        yield process


@pytest.fixture
def claim(other):
    """Claim one output, or those of a folder, in another process, as another job does, until the test is over."""
    claimed = []

    def take(source, output, work_dir=None):
        tell(other, json.dumps([str(source), str(output), str(work_dir) if work_dir else None]), "taken")
        claimed.append(output)
        return other.pid

    yield take
    if claimed:
        tell(other, "", "released")


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mkv", "b.mkv"):
        write(folder / name, pts=list(range(4)), tracks=0)
    (tmp_path / "out").mkdir()
    return folder


@pytest.fixture
def nothing_starts(monkeypatch):
    monkeypatch.setattr(job, "ModelCache", lambda *_, **__: pytest.fail("a cache was started"))


@pytest.mark.parametrize("place", ["out/c.mkv", "link/c.mkv", "out/./c.mkv", "local://{}/out/c.mkv"])
def test_the_second_job_for_an_output_is_refused_at_once(claim, clips, tmp_path, nothing_starts, place):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    is_remote = "://" in place
    pid = claim(
        clips / "a.mkv",
        f"local://{tmp_path}/out/c.mkv" if is_remote else tmp_path / "out" / "c.mkv",
        None if is_remote else tmp_path / "work",
    )
    output = place.format(tmp_path) if "://" in place else f"{tmp_path}/{place}"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.ConfigError, match=rf"is in use by another job: process {pid}\.") as refusal:
        enhance_videos(clips / "b.mkv", output, models=MODEL, options=OPTIONS)
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_second_job_for_a_work_folder_is_refused(claim, clips, tmp_path, nothing_starts):
    """Two machines may call different folders by one name, and share the work folder."""
    claim(clips / "a.mkv", tmp_path / "out" / "c.mkv", tmp_path / "work")
    for lock in (tmp_path / "out").rglob(LOCK):
        lock.unlink()
    with pytest.raises(errors.ConfigError, match=r"work folder .* is in use by another job"):
        enhance_videos(
            clips / "a.mkv",
            tmp_path / "out" / "c.mkv",
            models=MODEL,
            options=replace(OPTIONS, work_dir=tmp_path / "work"),
        )


def test_two_outputs_share_a_work_dir(ray_session, claim, clips, tmp_path):
    claim(clips / "a.mkv", tmp_path / "out" / "c.mkv", tmp_path / "work")
    (tmp_path / "other").mkdir()
    report = enhance_videos(
        clips / "a.mkv",
        tmp_path / "other" / "c.mkv",
        models=MODEL,
        options=replace(OPTIONS, work_dir=tmp_path / "work"),
    )
    assert report.frames == 4
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["c.mkv"]


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_second_job_for_the_same_videos_is_refused_at_once(ray_session, claim, clips, tmp_path, scheme):
    out = f"{scheme}{tmp_path}/out"
    claim(str(clips / "*.mkv"), out)
    with pytest.raises(
        errors.ConfigError, match=r"2 outputs, such as .*/out/a\.mkv, are in use by another job: process \d+"
    ):
        enhance_videos(clips, out, models=MODEL, options=OPTIONS)
    other = replace(OPTIONS, name="{stem}-x2{suffix}")
    assert enhance_videos(clips, out, models=MODEL, options=other).frames == 8
    assert {"a-x2.mkv", "b-x2.mkv", "results.parquet"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_an_output_that_another_job_has_fails_alone(ray_session, claim, clips, tmp_path):
    claim(clips / "a.mkv", tmp_path / "out" / "a.mkv")
    report = enhance_videos(clips, tmp_path / "out", models=MODEL, options=OPTIONS)
    assert [video.status for video in report.videos] == ["failed", "done"]
    assert "in use by another job" in report.videos[0].error
    assert (tmp_path / "out" / "a.mkv.genai-ray" / LOCK).exists()


def test_a_job_that_fails_removes_nothing_of_another_job(ray_session, clips, tmp_path):
    locks = [Lock(f"{tmp_path}/out/{name}.genai-ray/{LOCK}", "an output") for name in ("a.mkv", "b.mkv")]
    theirs = [Path(lock.place).with_name("000000.0123abcd.partial") for lock in locks]
    for partial in theirs:
        partial.touch()
    with pytest.raises(errors.ConfigError, match="in use by another job"):
        enhance_videos(clips, tmp_path / "out", models=MODEL, options=replace(OPTIONS, fail_fast=True))
    assert [partial.exists() for partial in theirs] == [True, True]
    for lock in locks:
        lock.release()


def test_a_folder_that_other_jobs_remove_is_made_again(tmp_path):
    """The last one that leaves removes it, just when another one comes."""
    failures = []

    def come_and_go(number):
        try:
            for _ in range(200):
                Lock(f"{tmp_path}/common/{number}.lock", "a folder").release()
                remove_folder(f"{tmp_path}/common")
        except errors.GenAIRayError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=come_and_go, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "output", "made"),
    [("a.mkv", "out/c.mkv", ["c.mkv"]), ("*.mkv", "out", ["a.mkv", "b.mkv", "results.parquet"])],
)
def test_the_lock_of_a_dead_job_is_taken_at_once(ray_session, clips, tmp_path, source, output, made):
    with another_process() as dead:
        tell(dead, json.dumps([str(clips / source), str(tmp_path / output), None]), "taken")
        kill(dead.pid)
        wait_until(lambda: not is_alive(dead.pid))  # a zombie, until it is fetched
        assert enhance_videos(str(clips / source), tmp_path / output, models=MODEL, options=OPTIONS).clips_failed == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == made


def change(place, **facts):
    lock = Path(place)
    lock.write_text(json.dumps(json.loads(lock.read_text()) | facts))


def test_a_lock_is_its_process_not_its_number(claim, clips, tmp_path):
    pid = claim(clips / "a.mkv", tmp_path / "out" / "c.mkv")
    place = str(tmp_path / "out" / "c.mkv.genai-ray" / LOCK)
    with pytest.raises(errors.ConfigError, match=str(pid)):
        Lock(place, "c.mkv")
    change(place, started=1)  # as of an earlier process of this number
    Lock(place, "c.mkv").release()
    assert not Path(place).exists()


def test_a_lock_of_another_machine_counts_while_it_is_renewed(claim, clips, tmp_path):
    claim(clips / "a.mkv", tmp_path / "out" / "c.mkv")
    place = str(tmp_path / "out" / "c.mkv.genai-ray" / LOCK)
    change(place, machine="another", host="far", pid=1)
    with pytest.raises(
        errors.ConfigError, match=rf"process 1 on far\. .*wait {DEAD_AFTER_S:.0f} s or remove {re.escape(place)}"
    ):
        Lock(place, "c.mkv")
    silent_s = time.time() - DEAD_AFTER_S - 1
    os.utime(place, (silent_s, silent_s))
    Lock(place, "c.mkv").release()


def test_a_folder_that_cannot_be_made_is_not_in_use():
    with pytest.raises(
        errors.ConfigError, match=r"^work folder /proc/none is not writable: No such file or directory:"
    ):
        Lock(f"/proc/none/{LOCK}", "work folder /proc/none")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"pid": "x"}', bytes(range(100, 200))])
def test_a_lock_that_cannot_be_read_counts_for_a_while(tmp_path, content):
    place = tmp_path / LOCK
    place.write_bytes(content)
    with pytest.raises(errors.ConfigError, match=f"remove {re.escape(str(place))}"):
        Lock(str(place), "c.mkv")
    os.utime(place, (1, 1))
    Lock(str(place), "c.mkv").release()


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_an_owner_notices_that_its_lock_was_taken(tmp_path, scheme):
    place = f"{scheme}{tmp_path}/{LOCK}"
    first = Lock(place, "c.mkv")
    assert first.renew()
    with pytest.raises(errors.ConfigError, match=f"process {os.getpid()}"):
        Lock(place, "c.mkv")
    fsspec.filesystem("memory" if scheme else "file").rm_file(f"{tmp_path}/{LOCK}")
    second = Lock(place, "c.mkv")
    assert not first.renew()
    first.release()
    assert read_lock(place) is not None
    second.release()
    assert read_lock(place) is None


def test_a_job_whose_output_was_taken_ends(ray_session, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("genai_ray.enhance.job.claims.RENEW_EVERY_S", 0.01)
    lock = tmp_path / "out" / "c.mkv.genai-ray" / LOCK
    source = write(clips / "long.mkv", pts=list(range(400)), size=(320, 180), tracks=0)
    with pytest.raises(errors.VideoError, match=r"output .*c\.mkv is not this job's any more"):
        enhance_videos(
            source,
            tmp_path / "out" / "c.mkv",
            models=MODEL,
            options=OPTIONS,
            on_progress=lambda _: lock.unlink(missing_ok=True),
        )
    assert not (tmp_path / "out" / "c.mkv").exists()


def test_of_many_that_ask_at_once_one_gets_it(tmp_path):
    """A lock of a dead process lies there, which all of them may remove."""
    place = tmp_path / LOCK
    Lock(str(place), "c.mkv").release()
    code = f"""
import sys
from genai_ray.errors import ConfigError
from genai_ray.files import Lock
print("ready", flush=True)
sys.stdin.readline()
try:
    Lock({str(place)!r}, "c.mkv")
    print("taken", flush=True)
except ConfigError:
    print("refused", flush=True)
sys.stdin.readline()
"""
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for other in others:
            assert other.stdout.readline() == "ready\n"
        place.write_text("{}")
        os.utime(place, (1, 1))
        for other in others:
            other.stdin.write("\n")
            other.stdin.flush()
        told = sorted(other.stdout.readline() for other in others)
        assert told == ["refused\n"] * 3 + ["taken\n"]
    finally:
        for other in others:
            kill(other.pid)
            other.communicate()
