"""What a person sees while a job runs, in a terminal and without one; and Ctrl-C."""

import os
import re
import signal

import pytest

from tests.cli.terminal import run_in_terminal
from tests.processes import descendants, is_alive, start, wait_until
from tests.video.clips import write

FAST = ("-m", "websr-x2-s", "--encoder-preset", "ultrafast", "--segment-frames", 8)


@pytest.mark.slow
def test_the_bar_names_stages_and_fits_80_columns(tmp_path):
    source = write(tmp_path / "a.mp4", tracks=0, colour=None)
    done = run_in_terminal("enhance", source, "-o", tmp_path / "b.mp4", *FAST)
    assert done.returncode == 0, done.text
    drawn = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.raw))
    assert not any("/?" in line for line in drawn)
    seen = [
        stage for line in drawn for stage in ("starting", "planning", "enhancing", "joining") if f" {stage} " in line
    ]
    assert seen[0] == "starting"
    assert "enhancing" in seen
    assert any("of 40 frames" in line for line in drawn)
    assert all(len(line) <= 80 for line in drawn if "frames/s" in line and "speed" not in line)
    table = done.text[done.text.rindex("video ") :]
    assert "untagged colour" in table
    assert "RGB gamut" not in table
    assert re.search(r"speed +\d+\.\d frames/s", table)


@pytest.mark.cluster
def test_ctrl_c_is_answered_at_once_and_a_second_one_ends(tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(120)), options={"g": "6"})
    job = start("enhance", source, "-o", tmp_path / "b.mkv", *FAST, "-m", "websr-x2-l")
    wait_until(lambda: list(tmp_path.glob("b.mkv.genai-ray/*.nut")), job)
    children = descendants(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    line = next(line for line in job.stderr if "stopping" in line)
    assert "press Ctrl-C again to abandon" in line
    assert job.poll() is None  # it was told before the cleanup
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate()
    assert (job.returncode, "abandoned" in err) == (130, True), err
    assert "Traceback" not in err
    wait_until(lambda: not any(is_alive(pid) for pid in children))
