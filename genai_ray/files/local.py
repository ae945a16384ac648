"""Temporary folders of this machine, and the folder of what this user's runs remember.

A process holds a temporary folder by a lock on a file in it; the lock ends with the process. ``sweep_folders`` removes
folders that no process holds; it never touches a folder without such a file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genai_ray.errors import ConfigError
from genai_ray.files.store import describe_error

__all__ = [
    "cache_folder",
    "home_folder",
    "is_cache_lasting",
    "is_private",
    "make_folder",
    "remove_folder",
    "sweep_folders",
    "temporary_base",
    "temporary_folder",
    "write_whole",
]

_log = logging.getLogger(__name__)

PREFIX = "genai-ray-"
"""Prefix of the names of temporary folders."""

_DO = "Set TMPDIR to a writable folder."
_MARK = ".in-use"
_TRIES = 10
_held: dict[Path, int] = {}
_told: set[Path] = set()


def cache_folder() -> Path:
    """Return the folder of what this user's runs remember.

    Returns:
        ``genai_ray`` in ``XDG_CACHE_HOME``, or in ``~/.cache``. If that is not writable, a private folder of this user
        among the temporary ones; the log says so once.
    """
    wanted = _wanted_cache()
    if _can_write(wanted):
        return wanted
    with suppress(OSError, ConfigError):
        instead = Path(temporary_base(), f"{PREFIX}cache-{os.geteuid()}")
        if _can_write(instead) and is_private(instead):
            if wanted not in _told:
                _told.add(wanted)
                _log.warning(
                    "%s is not writable: the cache folder is %s; set XDG_CACHE_HOME to another folder", wanted, instead
                )
            return instead
    return wanted


def write_whole(path: Path, text: str) -> None:
    """Write a small file of this user alone, whole or not at all; its folder is created.

    Args:
        path: The file, which may exist.
        text: What it shall contain.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_cache_lasting() -> bool:
    """Tell whether ``cache_folder`` is the one of this user, and not one among the temporary ones, maybe in memory.

    Returns:
        Whether it is.
    """
    return cache_folder() == _wanted_cache()


def _wanted_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache", "genai_ray")


def home_folder() -> Path:
    """Return this user's home folder.

    Returns:
        Its path; the folder may not exist. If the system does not know this user, a path that cannot be created.
    """
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull, "home")


def temporary_base() -> str:
    """Return the system's temporary folder.

    Returns:
        ``TMPDIR``; if that is not writable, the system's next choice; the log says so once.

    Raises:
        ConfigError: If no temporary folder is writable.
    """
    try:
        base = tempfile.gettempdir()
    except FileNotFoundError as exc:
        raise ConfigError(f"no temporary folder is writable: {exc.strerror}", do=_DO) from exc
    wanted = Path(os.environ.get("TMPDIR") or base)
    if os.path.realpath(wanted) != os.path.realpath(base) and not _can_write(wanted) and wanted not in _told:
        _told.add(wanted)
        _log.warning("TMPDIR=%s is not writable: temporary files are in %s", wanted, base)
    return base


def make_folder(purpose: str = "", base: str | os.PathLike[str] | None = None) -> Path:
    """Create a private temporary folder of this user, and hold it until ``remove_folder`` or this process ends.

    Args:
        purpose: A word for its name.
        base: Parent folder; None for the system's temporary folder (``TMPDIR``).

    Returns:
        The folder. It contains one hidden file.

    Raises:
        ConfigError: If it cannot be created.
    """
    prefix = f"{PREFIX}{purpose}-" if purpose else PREFIX
    try:
        for _ in range(_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base or temporary_base()))
            if _hold(folder):
                return folder
    except OSError as exc:
        raise ConfigError(f"a temporary folder cannot be created: {describe_error(exc)}", do=_DO) from exc
    raise ConfigError(f"temporary folders in {folder.parent} disappear", do="Set TMPDIR to another folder.")


def remove_folder(folder: Path) -> None:
    """Remove a temporary folder and its contents, as far as possible.

    Args:
        folder: Result of ``make_folder`` in this process.
    """
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Create a temporary folder, and remove it after the block.

    Args:
        purpose: A word for its name.

    Yields:
        The folder. It contains one hidden file.

    Raises:
        ConfigError: If it cannot be created.
    """
    folder = make_folder(purpose)
    try:
        yield folder
    finally:
        remove_folder(folder)


def sweep_folders(*bases: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary folders of this user whose process has ended.

    Args:
        bases: Parent folders.

    Returns:
        The removed folders.
    """
    removed = []
    for base in {os.path.realpath(base) for base in bases}:
        with suppress(OSError):
            for folder in sorted(Path(base).glob(f"{PREFIX}*")):
                with suppress(OSError):
                    if _sweep(folder):
                        removed.append(folder)
    return removed


def _hold(folder: Path) -> bool:
    """Lock the hidden file of a new folder; False if a sweep removed the folder before."""
    mark = folder / _MARK
    try:
        descriptor = os.open(mark, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # this file system has no locks: without the file, no sweep removes the folder
        os.close(descriptor)
        mark.unlink(missing_ok=True)
        return True
    if not mark.exists():
        os.close(descriptor)
        return False
    _held[folder] = descriptor
    return True


def _sweep(folder: Path) -> bool:
    if not is_private(folder):
        return False
    descriptor = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    return not folder.exists()


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def is_private(path: Path) -> bool:
    """Tell whether a folder or file belongs to this user, and nobody else may write to it.

    Args:
        path: Its path.

    Returns:
        Whether it does; false for a link, a pipe or a device.

    Raises:
        OSError: If it is missing.
    """
    found = path.lstat()
    is_plain = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    return is_plain and found.st_uid == os.geteuid() and not found.st_mode & 0o022
