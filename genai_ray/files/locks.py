"""Locks that know their owner: a file or object that says which process has a place, and whether it is alive.

A process of this machine is alive if its id and start time are those of the lock. Processes of other machines cannot be
seen: they renew their locks, and a lock that is older than ``DEAD_AFTER_S`` is dead. Not all stores can create an
object only if it does not exist: if two processes lock a place at the same instant, the first renewal decides.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_ray.errors import ConfigError, VideoError
from genai_ray.files.sharing import name_process_space
from genai_ray.files.store import describe_error, file_errors, file_system, is_remote
from genai_ray.files.transfer import write_bytes

__all__ = ["DEAD_AFTER_S", "RENEW_EVERY_S", "Lock", "read_lock"]

RENEW_EVERY_S = 10.0
"""Seconds between two renewals of a lock."""

DEAD_AFTER_S = 60.0
"""Seconds without a renewal after which an owner on another machine counts as dead."""

_TRIES = 10
"""Another process may take or release a lock between two steps of ours."""

_own: set[str] = set()
"""Locks of this process; others with its id were left by a job that could not release them."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The owner of a lock."""

    content: bytes
    """Content of the lock."""
    facts: Mapping[str, Any]
    """Facts about the owner; empty if the content is not readable."""
    renewed_s: float
    """Time of the last renewal, in seconds of the epoch."""

    @property
    def is_here(self) -> bool:
        """Whether the owner is a process of this machine, or of this container."""
        return self.facts.get("machine") == name_process_space()

    @property
    def is_alive(self) -> bool:
        """Whether the owner is alive, as far as this machine can tell."""
        if not self.is_here:
            return time.time() - self.renewed_s < DEAD_AFTER_S
        pid = self.facts.get("pid")
        if not isinstance(pid, int) or self.facts.get("started") != _started(pid):
            return False
        return pid != os.getpid() or self.facts.get("id") in _own

    def describe(self) -> str:
        """Name the owner.

        Returns:
            Text for an error.
        """
        if "pid" not in self.facts:
            return "an unknown process"
        host = "" if self.is_here else f" on {self.facts.get('host')}"
        return f"process {self.facts['pid']}{host}"


class Lock:
    """A lock of this process, until it is released.

    Args:
        place: Path or URI of the lock itself; a local folder for it is created.
        what: What is locked, for the text of the error.
        more: More facts to store in it.

    Raises:
        ConfigError: If another live process, or another job of this process, has the lock; or its folder cannot be
            made.
        VideoError: If it cannot be written.
    """

    def __init__(self, place: str, what: str, more: Mapping[str, Any] | None = None) -> None:
        self.place = place
        self.what = what
        self._id = uuid.uuid4().hex
        self._facts = {
            "id": self._id,
            "machine": name_process_space(),
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            **(more or {}),
        }
        for _ in range(_TRIES):
            with file_errors(place, "locking"):
                if self._make():
                    _own.add(self._id)
                    return
            found = read_lock(place)
            if found is not None and found.is_alive:
                raise ConfigError(f"{what} is in use by another job: {found.describe()}", do=_advice(place, found))
            if found is not None:
                _remove_dead(place, found)
        if not is_remote(place):
            try:  # below /proc a folder that cannot be made looks like one that other jobs remove
                os.makedirs(os.path.dirname(place), exist_ok=True)
            except OSError as exc:
                why = describe_error(exc)
                raise ConfigError(f"{what} is not writable: {why}", do="Choose another place.") from exc
        raise ConfigError(f"{what} is in use by other jobs", do="Wait until they have ended.")

    def renew(self) -> bool:
        """Renew the lock.

        Returns:
            Whether this process still has it; False if it was removed, or another process has taken it.

        Raises:
            VideoError: If its store fails; this process may still have the lock.
        """
        found = read_lock(self.place)
        if found is None or found.facts.get("id") != self._id:
            return False
        with file_errors(self.place, "renewing the lock"):
            if is_remote(self.place):
                write_bytes(self.place, self._content())
            else:
                os.utime(self.place)
        return True

    def release(self) -> None:
        """Release the lock; a lock that another process has taken stays."""
        _own.discard(self._id)
        with suppress(VideoError, OSError):
            found = read_lock(self.place)
            if found is not None and found.facts.get("id") == self._id:
                _unlink(self.place)

    def _content(self) -> bytes:
        return json.dumps(self._facts | {"renewed_s": time.time()}).encode()

    def _make(self) -> bool:
        """Create the lock if it does not exist."""
        if is_remote(self.place):
            if read_lock(self.place) is not None:
                return False
            write_bytes(self.place, self._content())
            found = read_lock(self.place)
            return found is not None and found.facts.get("id") == self._id
        try:
            os.makedirs(os.path.dirname(self.place), exist_ok=True)
            handle = os.open(self.place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, FileNotFoundError):  # not found: another job has just removed the empty folder
            return False
        try:
            os.write(handle, self._content())
        except OSError:
            os.unlink(self.place)
            raise
        finally:
            os.close(handle)
        return True


def read_lock(place: str) -> Holder | None:
    """Read a lock.

    Args:
        place: Path or URI.

    Returns:
        Its owner; None if there is no lock.

    Raises:
        VideoError: If it cannot be read.
    """
    try:
        with file_errors(place, "reading the lock"):
            changed_s = 0.0
            if is_remote(place):
                content = bytes(file_system(place).cat_file(place))
            else:
                handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with open(handle, "rb") as file:
                    content = file.read()
                    changed_s = os.fstat(handle).st_mtime
    except VideoError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return None
        raise
    facts: Any = {}
    with suppress(ValueError):  # half-written, or not a lock
        facts = json.loads(content)
    facts = facts if isinstance(facts, dict) else {}
    return Holder(content, facts, float(facts.get("renewed_s", 0.0)) if is_remote(place) else changed_s)


def _remove_dead(place: str, found: Holder) -> None:
    """Remove the lock of a dead owner, but not a new one: two processes may have found the dead one at once."""
    with file_errors(place, "removing the lock of a dead job"), suppress(FileNotFoundError):
        if is_remote(place):
            _unlink(place)
            return
        aside = f"{place}.{uuid.uuid4().hex[:8]}"
        os.rename(place, aside)
        if Path(aside).read_bytes() != found.content:  # the other process was faster, and has the lock now
            with suppress(FileExistsError):
                os.link(aside, place)
        os.unlink(aside)


def _unlink(place: str) -> None:
    with suppress(FileNotFoundError):
        if is_remote(place):
            file_system(place).rm_file(place)
        else:
            os.unlink(place)


def _advice(place: str, found: Holder) -> str:
    advice = "Wait until it ends, or choose another output."
    return advice if found.is_here else f"{advice} If it is dead, wait {DEAD_AFTER_S:.0f} s or remove {place}."


def _started(pid: int) -> int | None:
    """Return the start time of a process in the kernel's ticks; None if it has ended, 0 if the system does not tell."""
    if Path("/proc/self/stat").exists():
        try:
            words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if words[0] in (b"Z", b"X") else int(words[19])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's process
        return 0
    return 0
