"""Files that others name: exactly the checked file is opened, and not more bytes are read than allowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from genai_ray.errors import VideoError
from genai_ray.files.store import file_errors

__all__ = ["fetch_untrusted", "is_of_this_machine", "open_below"]

_BLOCK_BYTES = 2 * 1024**2
_LOCAL = ("file", "local")
"""fsspec's schemes of files of this machine."""
_HTTP = ("http://", "https://")
_ALONE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags that follow no link, and wait for no pipe or device."""


def is_of_this_machine(uri: str) -> bool:
    """Tell whether a URI names a file of this machine.

    Args:
        uri: The URI.

    Returns:
        Whether it does.
    """
    return uri.partition(":")[0].lower() in _LOCAL


def open_below(uri: str, allowed: Sequence[str]) -> BinaryIO:
    """Open a file of this machine below an allowed folder; links may not lead outside of it.

    Links are resolved first. Then every folder of the resolved path is opened by its descriptor, without following
    links, so that a link that is created meanwhile leads nowhere else.

    Args:
        uri: The file; its path is percent-decoded once.
        allowed: URIs of folders; those of other schemes are ignored.

    Returns:
        The file, open for reading.

    Raises:
        VideoError: If it is missing, outside the allowed folders, or a pipe, a device or a folder.
    """
    with file_errors(uri, "looking"):
        path = os.path.realpath(_path_of(uri))
        folders = [os.path.realpath(_path_of(folder)) for folder in allowed if is_of_this_machine(folder)]
    folder = next((one for one in folders if Path(path).is_relative_to(one)), None)
    if folder is None or path == folder:
        raise VideoError(f"{uri} is outside the allowed folders", "files below an allowed folder")
    with file_errors(uri, "opening"), ExitStack() as stack:
        *names, last = Path(path).relative_to(folder).parts
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        for name in names:
            handle = os.open(name, _ALONE | os.O_DIRECTORY, dir_fd=handle)
            stack.callback(os.close, handle)
        found = os.open(last, _ALONE, dir_fd=handle)
    if stat.S_ISREG(os.fstat(found).st_mode):
        return os.fdopen(found, "rb")
    os.close(found)
    raise VideoError(f"{uri} is a pipe, a device or a folder", "a regular file")


def fetch_untrusted(place: str, target: Path, max_bytes: int, allowed: Sequence[str]) -> None:
    """Copy a file that others named to this machine, up to a number of bytes and without following redirects.

    Args:
        place: URI.
        target: The local file.
        max_bytes: Most bytes.
        allowed: URIs of folders; a file of this machine must be below one of them.

    Raises:
        VideoError: If it is missing, too large or not allowed, or reading or writing fails.
    """
    import fsspec  # noqa: PLC0415 - local jobs do not need it

    left = max_bytes
    with file_errors(place, "fetching"), ExitStack() as stack:
        if is_of_this_machine(place):
            source: Any = stack.enter_context(open_below(place, allowed))
        else:
            options = {"allow_redirects": False} if place.startswith(_HTTP) else {}
            source = stack.enter_context(fsspec.open(place, "rb", **options))
        sink = stack.enter_context(target.open("wb"))
        while chunk := source.read(min(_BLOCK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise VideoError(f"{place}: more than {max_bytes} bytes", f"{max_bytes} bytes")
            sink.write(chunk)


def _path_of(uri: str) -> str:
    return unquote(urlsplit(uri).path)
