"""Nodes that do not share the folders of a job: what they make is brought to the machine that has them."""

import logging
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.csv
import pytest

from genai_ray import EnhanceOptions, ModelCache, enhance_videos, errors
from genai_ray.enhance.distribution.shared_folders import SharedFolders, find_shared_folders
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.files import identify_folder
from genai_ray.video import Encoding
from tests.nodes import Nodes
from tests.processes import descendants, kill, wait_until
from tests.video.clips import write

MODEL = "websr-x2-s"
OPTIONS = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=10)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "a.mkv", pts=list(range(40)))
    write(folder / "b.mkv", pts=list(range(30)))
    return folder


def test_a_folder_is_itself_whatever_it_is_called(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    assert identify_folder(str(real)) == identify_folder(str(link)) != identify_folder(str(tmp_path))
    assert identify_folder(str(tmp_path / "none")) == ""


def test_a_folder_that_was_made_anew_is_another_one(clips, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (target,) = resolve_targets([clips / "a.mkv"], out / "a.mkv", replace(OPTIONS, work_dir=str(work)))
    home = find_shared_folders(target)
    assert home == SharedFolders((str(out), identify_folder(str(out))), (str(work), identify_folder(str(work))))
    assert home.is_here()
    home.check()
    shutil.move(out, tmp_path / "away")
    assert (home.is_here(), home.has_work()) == (False, True)
    with pytest.raises(
        errors.VideoError, match=re.escape(f"{out}: this folder of the job's machine is not there for Ray on node")
    ):
        home.check()
    out.mkdir()
    assert not home.is_here()
    assert find_shared_folders(target).is_here()
    (target,) = resolve_targets([clips / "a.mkv"], "memory://out/a.mkv", OPTIONS)
    assert find_shared_folders(target) == SharedFolders()


def test_an_input_that_is_missing_is_the_fault_of_its_clip_alone(ray_session, clips, tmp_path, caplog):
    pyarrow.csv.write_csv(
        pa.table({"uri": [str(clips / name) for name in ("none.mkv", "a.mkv")]}), tmp_path / "list.csv"
    )
    with caplog.at_level(logging.WARNING, "genai_ray"):
        report = enhance_videos(tmp_path / "list.csv", tmp_path, models=MODEL, options=OPTIONS)
    failed, _ = report.videos
    assert (report.clips_failed, failed.error_class) == (1, "VideoError")
    assert failed.error.endswith("none.mkv: no such file. Check the spelling and the folder.")
    assert not caplog.records


@pytest.mark.cluster
@pytest.mark.slow
def test_a_long_plan_outlives_the_node_that_made_it(clips, tmp_path, monkeypatch):
    """As of a video of many hours: plans of these clips are no small values where Ray counts what takes 100 bytes as
    large."""
    monkeypatch.setenv("RAY_max_direct_call_object_size", "100")
    out, options = tmp_path / "out", replace(OPTIONS, segment_frames=2)
    out.mkdir()
    with Nodes(head_cpus=0) as nodes, ThreadPoolExecutor(1) as thread:
        node = nodes.add()
        job = thread.submit(enhance_videos, clips, out, models=MODEL, options=options)
        wait_until(lambda: any(out.glob("*/*.nut")) or job.done())
        assert not job.done()
        nodes.remove(node)
        nodes.add()
        report = job.result()
    assert (report.frames, report.clips_failed) == (70, 0)


@pytest.fixture(scope="module")
def idle_head():
    """A cluster whose head has no CPU: every step begins on another node."""
    with Nodes(head_cpus=0) as several:
        yield several


@pytest.fixture
def headed(idle_head):
    """That cluster, without other nodes."""
    yield idle_head
    ModelCache().shutdown()
    idle_head.clear()


@pytest.mark.cluster
@pytest.mark.slow
def test_segments_of_a_node_without_the_folder_are_brought_home(headed, clips, tmp_path, caplog):
    """A node that sees the clips and has an empty folder in the place of the results."""
    expected, out = tmp_path / "expected", tmp_path / "out"
    expected.mkdir()
    out.mkdir()
    node = headed.add()
    enhance_videos(clips, expected, models=MODEL, options=OPTIONS)
    enhance_videos(clips / "a.mkv", expected / "one.mkv", models=MODEL, options=OPTIONS)
    headed.remove(node)
    with headed.apart(out), caplog.at_level(logging.WARNING, "genai_ray"):
        several = enhance_videos(clips, out, models=MODEL, options=OPTIONS)
        one = enhance_videos(clips / "a.mkv", out / "one.mkv", models=MODEL, options=OPTIONS)
    assert (several.frames, several.clips_failed, one.frames) == (70, 0, 40)
    assert min(several.segments, one.segments) > 2
    assert sum("not every node has the folders" in record.message for record in caplog.records) == 2
    for name in ("a.mkv", "b.mkv", "one.mkv"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["a.mkv", "b.mkv", "one.mkv", "results.parquet"]


@pytest.mark.cluster
@pytest.mark.slow
def test_the_death_of_such_a_node_changes_no_byte(headed, clips, tmp_path):
    out, options = tmp_path / "out", replace(OPTIONS, segment_frames=4)
    out.mkdir()
    with headed.apart(out) as process, ThreadPoolExecutor(1) as thread:
        job = thread.submit(enhance_videos, clips / "a.mkv", out / "a.mkv", models=MODEL, options=options)
        wait_until(lambda: any(out.glob("*/*.nut")) or job.done())
        assert not job.done()
        for pid in descendants(process.pid):
            kill(pid)
        headed.add()
        report = job.result()
        enhance_videos(clips / "a.mkv", tmp_path / "a.mkv", models=MODEL, options=options)
    assert (report.frames, report.segments_reused) == (40, 0)
    assert (out / "a.mkv").read_bytes() == (tmp_path / "a.mkv").read_bytes()
    assert [path.name for path in out.iterdir()] == ["a.mkv"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_node_without_the_input_is_named(headed, clips, tmp_path):
    before = set(threading.enumerate())  # endpoints of other tests of this process have some
    with headed.apart(clips), pytest.raises(errors.VideoError, match=r"a\.mkv: no such file on node"):
        enhance_videos(clips / "a.mkv", tmp_path / "a.mkv", models=MODEL, options=OPTIONS)
    assert list(tmp_path.iterdir()) == []
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("genai-ray")]  # Ray may be shut down next
