"""What a person sees while a job runs, in a terminal and without one; and Ctrl-C."""

import io
import json
import os
import re
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from genai_ray.cli.progress import Bar, stopping
from genai_ray.cli.tables import add_row, print_failures, print_report
from genai_ray.enhance import EnhanceReport, Progress, enhance_videos
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.progress import Lines, NotebookBar, Silence, count_in_notebook, show_progress, tell_frames, telling
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


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "progress",
    [
        Progress(128, 14400, "enhancing", fps=9.8, seconds_left=1456.0),
        Progress(12345, 123456, "enhancing", fps=123.4, seconds_left=36000.0),
        Progress(12345, 123456, "enhancing", 10, 12, 3, fps=123.4, seconds_left=36000.0),
        Progress(12345, 123456, "enhancing", 1000, 1234, 100, fps=123.4, seconds_left=36000.0),
    ],
)
def test_the_bar_shows_the_whole_time_left(columns, progress):
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=columns)) as bar:
        bar(progress)
    drawn = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
    (last,) = [line for line in drawn if "enhancing" in line][-1:]
    assert last.rstrip().endswith("0:24:16 left" if progress.seconds_left < 3600 else "10:00:00 left")
    assert "…" not in screen.getvalue()
    assert "frames/s" in last
    assert len(last) <= columns


def test_notes_are_printed_at_once(capsys):
    told = Progress(0, 100, "enhancing", notes=("a [x264].mkv: sound is encoded",))
    Lines()(told)
    assert capsys.readouterr().err == "note: a [x264].mkv: sound is encoded\n"
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=80)) as bar:
        bar(told)
    assert "note: a [x264].mkv: sound is encoded" in screen.getvalue()
    Silence()(told)
    assert capsys.readouterr().err == ""
    assert (Silence().told, bar.told) == (set(), {"a [x264].mkv: sound is encoded"})


def test_a_note_that_was_told_is_not_in_the_table(capsys):
    counts = {"frames": 8, "fps": 4.0, "segments": 1, "segments_reused": 0, "frames_inferred": 8}
    video = ClipOutcome("a.mkv", "b.mp4", frames=8, notes=("sound is encoded", "untagged colour"))
    done = EnhanceReport(**counts, elapsed_s=3.0, startup_s=1.0, outputs=(), models=(), videos=(video,))
    for told, wanted in (((), 2), (("a.mkv: sound is encoded",), 1), (("sound is encoded", "untagged colour"), 0)):
        print_report(done, is_verbose=False, told=set(told))
        assert capsys.readouterr().out.count("\nnote ") == wanted


def test_brackets_are_no_markup():
    screen = io.StringIO()
    table = Table("")
    add_row(table, "My clip [x264].mp4")
    add_row(table, "odd [/x].mp4")
    Console(file=screen, width=80).print(table)
    assert "My clip [x264].mp4" in screen.getvalue()
    assert "odd [/x].mp4" in screen.getvalue()


@pytest.mark.slow
def test_each_failed_video_is_a_line_up_to_a_limit(ray_session, tmp_path, capsys):
    for number in range(23):
        (tmp_path / f"{number:02}.mp4").write_text(f"no video {number}" * 100)
    report = enhance_videos(tmp_path, f"{tmp_path}/out/", models="websr-x2-s")
    capsys.readouterr()
    print_failures(report)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (21, "failed: 3 more videos")
    assert lines[0].startswith(f"failed: {tmp_path}/00.mp4")
    assert "not a video" in lines[0]


def test_a_job_without_anything_to_do_has_no_speed(capsys):
    counts = {"frames": 264, "fps": 0.0, "segments": 4, "segments_reused": 0, "frames_inferred": 0}
    done = EnhanceReport(**counts, elapsed_s=1.2, startup_s=1.2, outputs=(), models=(), videos=(), clips=2)
    print_report(done, is_verbose=False)
    assert "frames/s" in capsys.readouterr().out
    print_report(replace(done, clips_skipped=2), is_verbose=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["frames", "264"],
        ["seconds", "1.2:", "nothing", "was", "left", "to", "do"],
    ]


def test_counted_frames_are_shown_as_those_of_a_job(capsys, monkeypatch):
    monkeypatch.setattr("genai_ray.progress.LINE_EVERY_S", 0.0)
    with Lines() as lines:
        tell_frames(lines, "measuring")(12, 48)
    assert re.fullmatch(r"measuring: 12 of 48 frames, \d+\.\d frames/s, \d+:\d\d:\d\d left\n", capsys.readouterr().err)


@pytest.fixture
def shell():
    """IPython in this process, which keeps no history; it has no kernel, as in a terminal."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


def drawn_by(draw):
    from IPython.utils.capture import capture_output

    with capture_output() as said:
        draw()
    return [(one.data["text/plain"], one.data["text/html"], bool(one.update)) for one in said.outputs]


def test_a_notebook_gets_a_bar_that_ends_with_what_was_done(shell, monkeypatch):
    monkeypatch.setattr("genai_ray.progress.DRAWN_EVERY_S", 0.0)

    def draw():
        with NotebookBar() as bar:
            bar(Progress(12, 48, "enhancing", fps=4.0, seconds_left=9.0, notes=("<a>.mkv: sound is encoded",)))
            bar(Progress(48, 48, "joining", 2, 3, 1, fps=4.0, seconds_left=0.0))

    first, enhancing, joining, done = drawn_by(draw)
    assert first == ("starting", "<progress></progress> starting", False)
    assert enhancing[0] == ("enhancing: 12 of 48 frames, 4.0 frames/s, 0:00:09 left\nnote: <a>.mkv: sound is encoded")
    assert enhancing[1].startswith('<progress value="12" max="48"></progress> enhancing: 12 of 48 frames')
    assert enhancing[1].endswith("<br>note: &lt;a&gt;.mkv: sound is encoded")
    assert joining[0].startswith("joining: 2 of 3 videos (1 failed), 48 of 48 frames")
    assert done[0].startswith("done: 2 of 3 videos (1 failed), 48 of 48 frames, 4.0 frames/s\nnote: <a>")
    assert [is_update for *_, is_update in (first, enhancing, joining, done)] == [False, True, True, True]


def test_a_bar_of_a_job_that_fails_says_what_it_did(shell):
    def plan():
        with NotebookBar() as bar:
            bar(Progress(0, 0, "planning"))
            raise KeyError

    def fail():
        with pytest.raises(KeyError):
            plan()

    assert drawn_by(fail)[-1] == ("ended while planning", '<progress value="0"></progress> ended while planning', True)


def test_only_a_kernel_makes_a_bar(shell, monkeypatch):
    assert isinstance(show_progress(), Lines)
    assert count_in_notebook("measuring") is None
    with telling(None) as shown:
        assert shown is None
    monkeypatch.setattr(shell, "kernel", object(), raising=False)  # what a kernel of Jupyter sets
    with telling(print) as shown:
        assert shown is print

    def draw():
        assert isinstance(show_progress(), NotebookBar)
        with telling(None) as shown:
            shown(Progress(1, 2, "enhancing"))
        count = count_in_notebook("measuring")
        count(1, 2)
        count(2, 2)

    words = [text for text, *_ in drawn_by(draw)]
    assert "done: 1 of 2 frames" in words
    assert re.fullmatch(r"done: 2 of 2 frames, \d+\.\d frames/s", words[-1])


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping(Silence()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.cluster
def test_ctrl_c_is_answered_at_once_and_a_second_one_ends(tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(120)), options={"g": "6"})
    job = start("enhance", source, "-o", tmp_path / "b.mkv", *FAST, "-m", "websr-x2-l", "--json")
    wait_until(lambda: list(tmp_path.glob("b.mkv.genai-ray/*.nut")), job)
    children = descendants(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    line = next(line for line in job.stderr if "stopping" in line)
    assert "press Ctrl-C again to abandon" in line
    assert job.poll() is None  # it was told before the cleanup
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate()
    assert (job.returncode, "abandoned" in err) == (130, True), err
    assert json.loads(out)["error"]["class"] == "KeyboardInterrupt"
    assert "Traceback" not in err
    wait_until(lambda: not any(is_alive(pid) for pid in children))
