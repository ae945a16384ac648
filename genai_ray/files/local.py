"""Folders of this machine that runs write to beside their results: temporary ones, and what this user's runs remember.

A temporary folder is held by a lock on a file in it, which ends with its process however that ends. ``sweep_folders`` removes those that
nobody holds any more; a folder without such a file is never touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genai_ray.errors import ConfigError

__all__ = [
    "cache_folder",
    "home_folder",
    "make_folder",
    "remove_folder",
    "sweep_folders",
    "temporary_base",
    "temporary_folder",
]

_log = logging.getLogger(__name__)

PREFIX = "genai-ray-"
"""Names of temporary folders begin so."""

_DO = "Set TMPDIR to a folder that can be written."
_MARK = ".in-use"
_TRIES = 10
_held: dict[Path, int] = {}
_told: set[Path] = set()


def cache_folder() -> Path:
    """Return the folder for what this user's runs remember.

    Returns:
        ``genai_ray`` in ``XDG_CACHE_HOME``, or in ``~/.cache``. If that cannot be written, a folder of this user alone among the temporary
        ones, which is said once in the log.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache", "genai_ray")
    if _can_write(wanted):
        return wanted
    with suppress(OSError, ConfigError):
        instead = Path(temporary_base(), f"{PREFIX}cache-{os.geteuid()}")
        if _can_write(instead) and _is_private(instead):
            if wanted not in _told:
                _told.add(wanted)
                _log.warning(
                    "%s cannot be written: what is remembered from run to run is in %s; set XDG_CACHE_HOME to another folder",
                    wanted,
                    instead,
                )
            return instead
    return wanted


def home_folder() -> Path:
    """Return this user's home.

    Returns:
        Its path, which need not be there; one that cannot be made if the system does not know this user.
    """
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull, "home")


def temporary_base() -> str:
    """Return the system's temporary folder.

    Returns:
        ``TMPDIR``; if that cannot be written, the next that can, which is said once in the log.

    Raises:
        ConfigError: If none can be written.
    """
    try:
        base = tempfile.gettempdir()
    except FileNotFoundError as exc:
        raise ConfigError(f"no temporary folder can be written: {exc.strerror}", do=_DO) from exc
    wanted = Path(os.environ.get("TMPDIR") or base)
    if os.path.realpath(wanted) != os.path.realpath(base) and not _can_write(wanted) and wanted not in _told:
        _told.add(wanted)
        _log.warning("TMPDIR=%s cannot be written: temporary files are in %s", wanted, base)
    return base


def make_folder(purpose: str = "", base: str | os.PathLike[str] | None = None) -> Path:
    """Make a temporary folder that only this user can enter, and hold it until ``remove_folder`` or the end of this process.

    Args:
        purpose: A word for its name.
        base: Where; None for the system's temporary folder (``TMPDIR``).

    Returns:
        The folder. It holds one hidden file.

    Raises:
        ConfigError: If none can be made there.
    """
    prefix = f"{PREFIX}{purpose}-" if purpose else PREFIX
    try:
        for _ in range(_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base or temporary_base()))
            if _hold(folder):
                return folder
    except OSError as exc:
        raise ConfigError(f"no temporary folder can be made: {exc}", do=_DO) from exc
    raise ConfigError(f"no temporary folder could be kept in {folder.parent}", do="Set TMPDIR to another folder.")


def remove_folder(folder: Path) -> None:
    """Remove a temporary folder with all that is in it, as far as that is possible.

    Args:
        folder: One that ``make_folder`` made in this process.
    """
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Give a temporary folder, which is removed afterwards.

    Args:
        purpose: A word for its name.

    Yields:
        The folder. It holds one hidden file.

    Raises:
        ConfigError: If none can be made.
    """
    folder = make_folder(purpose)
    try:
        yield folder
    finally:
        remove_folder(folder)


def sweep_folders(*bases: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary folders of this user whose process is gone.

    Args:
        bases: Where ``make_folder`` made them.

    Returns:
        What was removed.
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
    """Lock the file that says that a new folder is in use; False if a sweep took the folder before."""
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
    except OSError:  # no locks on this file system: without the file the folder is never swept
        os.close(descriptor)
        mark.unlink(missing_ok=True)
        return True
    if not mark.exists():
        os.close(descriptor)
        return False
    _held[folder] = descriptor
    return True


def _sweep(folder: Path) -> bool:
    if not _is_private(folder):
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


def _is_private(folder: Path) -> bool:
    """Tell whether a folder, not a link to one, is this user's and nobody else may write into it."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
