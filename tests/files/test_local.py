"""Temporary folders of processes that live, and of those that do not."""

import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile

import pytest

from genai_ray import errors
from genai_ray.files import (
    cache_folder,
    file_errors,
    is_private,
    make_folder,
    remove_folder,
    sweep_folders,
    temporary_folder,
    write_whole,
)

_HOLD = """
import sys
from genai_ray.files import make_folder
print(make_folder(base=sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process, process.stdout.readline().strip()


def test_a_folder_is_kept_as_long_as_its_process_lives(tmp_path, holder):
    process, folder = holder
    mine = make_folder("mine", tmp_path)
    for name in ("genai-ray-results", "other"):
        (tmp_path / name).mkdir()  # not made by us
    (tmp_path / "genai-ray-link").symlink_to(tmp_path / "other")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert sweep_folders(tmp_path) == []
    process.kill()
    process.wait()
    assert [str(path) for path in sweep_folders(tmp_path)] == [folder]
    remove_folder(mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genai-ray-link", "genai-ray-results", "other"]


def test_a_folder_of_a_fork_outlives_the_process_that_made_it(tmp_path):
    with temporary_folder("fork") as folder:
        child = multiprocessing.get_context("fork").Process(target=sys.stdin.close)
        child.start()
        child.join()
        assert sweep_folders(folder.parent) == []
        assert folder.is_dir()
    assert not folder.exists()


def test_a_small_file_is_whole_and_of_this_user_alone(tmp_path):
    before = os.umask(0o002)
    try:
        write_whole(tmp_path / "new" / "a.json", "1")
        write_whole(tmp_path / "new" / "a.json", "2")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "new").iterdir()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("2", 0o600)
    assert is_private(file)
    assert is_private(file.parent)
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(file.parent, "3")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_errors_of_the_system_have_no_numbers():
    with pytest.raises(errors.VideoError) as caught, file_errors("a", "writing"):
        raise PermissionError(13, "Permission denied", "/x")
    assert str(caught.value) == "a: writing failed: Permission denied: '/x'"


def test_no_folder_can_be_made(tmp_path):
    with pytest.raises(
        errors.ConfigError, match=r"a temporary folder cannot be created: No such file or directory: .*Set TMPDIR"
    ):
        make_folder(base=tmp_path / "missing")


def test_an_unwritable_temporary_folder_gives_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/proc/none")
    with temporary_folder("elsewhere") as folder:
        assert folder.is_dir()
    assert f"TMPDIR=/proc/none is not writable: temporary files are in {folder.parent}" in caplog.text


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_an_unwritable_home_is_replaced_by_a_temporary_folder(monkeypatch, tmp_path, caplog, home):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder() == folder
    assert caplog.text.count("is not writable") == 1


def test_a_cache_folder_that_others_can_write_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"genai-ray-cache-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert str(cache_folder()) == "/proc/none/genai_ray"
