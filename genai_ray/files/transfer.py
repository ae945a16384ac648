"""Reads, fetches, publishes and removes files."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from genai_ray.errors import ConfigError, VideoError
from genai_ray.files.store import describe_error, file_errors, file_system, foreign_errors, is_remote

__all__ = [
    "check_writable",
    "discard",
    "fetch",
    "open_folder",
    "open_to_read",
    "publish",
    "remove",
    "sync_file",
    "write_bytes",
]

BLOCK_BYTES = 2 * 1024**2
"""Block size of remote reads; the last 32 blocks are kept."""

_ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Stores that show a file only when it is whole."""

_READ_ONLY = ("http", "https")


@contextmanager
def open_to_read(place: str) -> Iterator[BinaryIO]:
    """Open a file for reading at any position; if its server has no range requests, the whole file is fetched first.

    Args:
        place: Path or URI.

    Yields:
        The file.

    Raises:
        VideoError: If it is missing or its store fails, also in the block; the error has the file and the position.
    """
    if not is_remote(place):
        with file_errors(place, "reading"), open(place, "rb") as file:
            yield file
        return
    with file_errors(place, "opening"):
        found = file_system(place).open(place, "rb", block_size=BLOCK_BYTES, cache_type="blockcache")
    with found:
        if found.seekable():
            yield cast(BinaryIO, _Remote(place, found))
            return
        with tempfile.TemporaryFile() as copy:
            with file_errors(place, "fetching"):
                shutil.copyfileobj(found, copy, BLOCK_BYTES)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def fetch(place: str, target: Path) -> None:
    """Copy a file to this machine.

    Args:
        place: Path or URI.
        target: The local file.

    Raises:
        VideoError: If it is missing, or reading or writing fails.
    """
    with open_to_read(place) as source, file_errors(place, "fetching"), target.open("wb") as sink:
        shutil.copyfileobj(source, sink, BLOCK_BYTES)


def publish(source: Path, place: str) -> None:
    """Move a finished local file or folder to its place, whole or not at all.

    Args:
        source: The file; for a local place it may be a folder, and must be on the same file system.
        place: Path or URI; an existing file or folder is replaced.

    Raises:
        ConfigError: If the place is read-only.
        VideoError: If writing fails.
    """
    check_writable(place)
    if not is_remote(place):
        with file_errors(place, "publishing"):
            if source.is_dir():
                _replace_folder(source, Path(place))
            else:
                sync_file(source)
                source.replace(place)
        return
    store = file_system(place)
    scheme = place.partition("://")[0]
    with file_errors(place, "uploading"):
        target = place if scheme in _ATOMIC else f"{place}.{uuid.uuid4().hex[:8]}.partial"
        if scheme not in _ATOMIC:
            store.makedirs(os.path.dirname(place), exist_ok=True)
        store.put_file(str(source), target)
        if target != place:
            store.mv(target, place)
    source.unlink()


def discard(source: Path) -> None:
    """Remove a local file or folder that was not published; do nothing if it was.

    Args:
        source: The file or folder.
    """
    if source.is_dir():
        shutil.rmtree(source)
    else:
        source.unlink(missing_ok=True)


def write_bytes(place: str, data: bytes) -> None:
    """Write a small object to a store; the caller maps the store's errors.

    Args:
        place: URI; an existing object is replaced.
        data: Its bytes.
    """
    store = file_system(place)
    if place.partition("://")[0] not in _ATOMIC:
        store.makedirs(os.path.dirname(place), exist_ok=True)
    store.pipe_file(place, data)


def check_writable(place: str) -> None:
    """Check that results can be written to a place.

    Args:
        place: Path or URI.

    Raises:
        ConfigError: If its scheme is read-only.
    """
    if place.startswith(tuple(f"{scheme}://" for scheme in _READ_ONLY)):
        raise ConfigError(f"{place} as an output", "a path, or a URI of a writable store, such as s3:// or gs://")


def remove(places: Iterable[str]) -> None:
    """Remove files; missing ones are ignored.

    Args:
        places: Paths, or URIs of one store.

    Raises:
        VideoError: If the store fails.
    """
    remote = []
    for place in places:
        if is_remote(place):
            remote.append(place)
        else:
            with suppress(FileNotFoundError):
                os.unlink(place)
    if remote:
        with file_errors(remote[0], "removing"), suppress(FileNotFoundError):
            file_system(remote[0]).rm(remote)


@contextmanager
def open_folder(place: str) -> Iterator[None]:
    """Create a folder of this machine, with its parents, for a block that writes into it.

    Those that were created and are still empty after the block are removed.

    Args:
        place: Path or URI; nothing is done for a URI, since stores have no folders.

    Yields:
        Nothing.

    Raises:
        VideoError: If it cannot be created.
    """
    made: list[str] = []
    try:
        if not is_remote(place):
            missing = place.rstrip("/") or "/"
            while not os.path.isdir(missing) and missing not in ("", "/"):
                made.append(missing)
                missing = os.path.dirname(missing)
            with file_errors(place, "creating the folder"):
                os.makedirs(place, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # of the first one that is not empty
            for folder in filter(os.path.isdir, made):
                os.rmdir(folder)


class _Remote(io.RawIOBase):
    """A remote file whose errors have the position."""

    def __init__(self, place: str, file: Any) -> None:
        self._place = place
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        try:
            return bytes(self._file.read(size))
        except foreign_errors() as exc:
            raise VideoError(
                f"{self._place}: reading at byte {at} of {self._file.size} failed: {describe_error(exc)}"
            ) from exc

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _replace_folder(source: Path, place: Path) -> None:
    old = source.with_name(f"old-{uuid.uuid4().hex[:8]}")
    if place.exists():
        place.rename(old)
    source.rename(place)
    discard(old)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Args:
        path: The file, which may be closed.

    Raises:
        OSError: If the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
