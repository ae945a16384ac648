"""The command from pipe to pipe: between two FFmpegs, closed and cut pipes, and words that make no sense there."""

import json
import os
import subprocess
import sys

import av
import pytest

from genai_ray.cli.pipe import _pipes
from tests.enhance.test_pipe import COUNT, decoded, y4m
from tests.processes import ROOT


def test_words_of_the_command_that_make_no_sense(command):
    for words, message in (
        (("in.mp4", "-o", "-"), "no such file"),
        (("-", "-o", "out.mp4"), "allowed: - and - (a pipe into a pipe), or files"),
        (("-", "-o", "-", "--dry-run"), "--dry-run of a video in a pipe"),
    ):
        ended = command("enhance", *words, "--model", "websr-x2-s")
        assert ended.returncode == 2
        assert message in ended.stderr


@pytest.mark.parametrize("output", [["-o", "-"], ["-o-"], ["--output=-"]])
def test_errors_do_not_leave_through_the_pipe(command, output):
    ended = command("enhance", "-", *output, "--model", "websr-x2-s", "--preset", "fast", "--json")
    line, words = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout, json.loads(line)["error"]["class"]) == (2, "", "ConfigError")
    assert words == f"error: {json.loads(line)['error']['message']}"


def test_an_interruption_does_not_leave_through_the_pipe(command, monkeypatch):
    monkeypatch.setattr("genai_ray.cli.pipe._pipes", interrupt)
    ended = command("enhance", "-", "-o", "-", "--model", "websr-x2-s", "--json")
    line, words = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout, json.loads(line)["error"]["class"]) == (130, "", "KeyboardInterrupt")
    assert words == "interrupted"


def interrupt():
    raise KeyboardInterrupt


def test_a_pipe_that_does_not_block_has_not_ended():
    ends = os.pipe()
    kept = {number: os.dup(number) for number in (0, 1)}
    try:
        os.set_blocking(ends[0], False)
        os.dup2(ends[0], 0)
        with _pipes() as (source, sink):
            assert os.get_blocking(source.fileno())
            assert os.get_blocking(sink.fileno())
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        for end in ends:
            os.close(end)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yuv4mpegpipe", "nut"])
def test_between_two_ffmpegs(kind, in_shared_ray, samples, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    codec = ["-c:v", "rawvideo", "-c:a", "copy"] if kind == "nut" else []
    before = [ffmpeg, "-v", "error", "-i", samples / "bigbuckbunny-360p.mp4", "-t", "1", *codec, "-f", kind, "-"]
    ours = [sys.executable, "-m", "genai_ray.cli", "enhance", "-", "-o", "-", "--model", "websr-x2-s"]
    after = [ffmpeg, "-v", "error", "-y", "-i", "-", "-c:a", "copy", "-preset", "ultrafast", tmp_path / "a b.mkv"]
    first = subprocess.Popen([*map(str, before)], stdout=subprocess.PIPE)
    middle = subprocess.Popen(
        ours, stdin=first.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=in_shared_ray, cwd=ROOT
    )
    first.stdout.close()
    last = subprocess.Popen([*map(str, after)], stdin=middle.stdout)
    middle.stdout.close()
    told = middle.stderr.read().decode()
    assert (first.wait(), middle.wait(), last.wait()) == (0, 0, 0), told
    assert "frames" in told
    with av.open(str(tmp_path / "a b.mkv")) as box:
        assert (box.streams.video[0].width, len(box.streams.audio)) == (1280, int(kind == "nut"))
        assert sum(1 for _ in box.decode(video=0)) == 24 + (box.streams.video[0].average_rate > 24)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_closed_pipe_and_a_cut_one_end_without_a_traceback(in_shared_ray):
    ours = [sys.executable, "-m", "genai_ray.cli", "enhance", "-", "-o", "-", "--model", "websr-x2-s", "--quiet"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": in_shared_ray}
    cut = subprocess.run(ours, input=y4m()[:-9], capture_output=True, env=in_shared_ray, cwd=ROOT, check=False)
    assert cut.returncode == 1
    assert cut.stderr.decode() == (
        "error: standard input: frame 5 is cut off: 4599 of 4608 bytes; allowed: whole frames\n"
    )
    assert len(decoded(cut.stdout)) == COUNT - 1
    job = subprocess.Popen(ours, cwd=ROOT, **options)
    job.stdin.write(y4m(count=3))
    job.stdin.flush()
    assert job.stdout.read(9) == b"YUV4MPEG2"
    job.stdout.close()
    try:
        job.stdin.write(y4m(count=200).partition(b"\n")[2])
        job.stdin.close()
    except BrokenPipeError:
        pass
    told = job.stderr.read().decode()
    assert job.wait() == 1
    assert told == "error: standard output: its reader has closed it before the end\n"
