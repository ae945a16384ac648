"""Names of places, facts about files, and the files of folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from genai_ray.errors import VideoError
from genai_ray.files.store import describe_error, file_errors, file_system, is_remote

__all__ = [
    "FileFacts",
    "expand",
    "find_facts",
    "find_missing",
    "is_folder",
    "join_place",
    "list_files",
    "list_names",
    "to_place",
]

_READ_ONLY = ("http://", "https://")

_GONE = (404, 410)
_STAMPS = ("mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "Last-Modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Facts that differ between two versions of a file."""

    size: int
    """Bytes; -1 if the store does not tell."""
    stamp: str
    """Time of the last change, or the store's version tag; empty if there is neither."""


def to_place(place: str | Path) -> str:
    """Return the canonical form of a place.

    Args:
        place: Path or URI; ``file://`` is a path.

    Returns:
        The absolute path, or the URI as it is.

    Raises:
        ConfigError: If fsspec knows no such scheme, or its package is missing.
    """
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not is_remote(text):
        return os.path.abspath(os.path.expanduser(text)) + ("/" if text.endswith("/") else "")
    file_system(text)
    return text


def join_place(folder: str, name: str) -> str:
    """Return the place of a file in a folder.

    Args:
        folder: Path or URI.
        name: Relative path of the file.

    Returns:
        The place.
    """
    return f"{folder.rstrip('/')}/{name}"


def find_facts(place: str) -> FileFacts | None:
    """Ask for size and version of a file.

    Args:
        place: Path or URI.

    Returns:
        The facts; None if there is no such file.

    Raises:
        VideoError: If the store fails.
    """
    if not is_remote(place):
        try:
            with file_errors(place, "looking"):
                found = os.stat(place)
        except VideoError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, NotADirectoryError)):
                return None
            raise
        return FileFacts(found.st_size, str(found.st_mtime_ns))
    with file_errors(place, "looking"):
        try:
            info = file_system(place).info(place)
        except FileNotFoundError as exc:
            cause = exc.__cause__
            if type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", None) not in _GONE:
                # fsspec raises FileNotFoundError for every failure of a server.
                raise VideoError(f"{place}: looking failed: {describe_error(cause or exc)}") from exc
            return None
        size = info.get("size")
        return FileFacts(
            -1 if size is None else int(size), next((str(info[name]) for name in _STAMPS if info.get(name)), "")
        )


def find_missing(names: Iterable[str]) -> list[str]:
    """Find the paths and patterns of this machine that match no file or folder.

    Args:
        names: Paths, patterns and URIs; URIs are left out.

    Returns:
        Those without a match, as they were given.

    Raises:
        ConfigError: As ``to_place``.
        VideoError: If a folder cannot be read.
    """
    return [
        name
        for name, place in ((name, to_place(name)) for name in names)
        if not is_remote(place) and find_facts(place) is None and not _match(place)
    ]


def is_folder(place: str) -> bool:
    """Tell whether a place is a folder; a URI that ends in ``/`` always is.

    Args:
        place: Path or URI.

    Returns:
        Whether it is.

    Raises:
        VideoError: If the store fails.
    """
    if not is_remote(place):
        return os.path.isdir(place)
    if place.endswith("/"):
        return True
    if place.startswith(_READ_ONLY):
        return False
    with file_errors(place, "looking"):
        return bool(file_system(place).isdir(place))


def expand(place: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]] | None:
    """List the files of a folder and of all folders below it, or those that match a pattern.

    Args:
        place: Folder or pattern with ``*``, ``?``, ``[`` or ``**``, as path or URI.
        suffixes: Lower-case suffixes, with their dot, of the files to list of a folder; patterns ignore them.

    Returns:
        Pairs in order: the file, and its folder relative to the listed one (empty, or ending in ``/``); None if the
        place is a single file.

    Raises:
        VideoError: If nothing matches, or the store fails.
    """
    is_pattern = (
        any(sign in place for sign in "*?[") and _find_facts_or_none(place) is None and not place.startswith(_READ_ONLY)
    )
    if not is_pattern and not is_folder(place):
        return None
    if is_pattern:
        found = _match(place)
        root = _root(place)
        root = os.path.dirname(root[: min(root.index(sign) for sign in "*?[" if sign in root)])
    else:
        found = [name for _, name in list_files(place, ("**",)) if name.lower().endswith(suffixes)]
        root = _root(place)
    if not found:
        raise VideoError(
            f"{place}: no video matches", f"files ending in {', '.join(suffixes)}" if not is_pattern else ""
        )
    relative = [os.path.dirname(name.removeprefix(root).lstrip("/")) for name in found]
    return [(name, f"{folder}/" if folder else "") for name, folder in zip(found, relative, strict=True)]


def list_files(folder: str, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """List the files of a folder.

    Args:
        folder: Path or URI.
        patterns: ``*`` for its own files, ``*/*`` for those of its folders, ``**`` for all below it.

    Returns:
        (path relative to the folder, place), in order.

    Raises:
        VideoError: If there is no such folder, or its store fails.
    """
    root = _root(folder)
    with file_errors(folder, "listing"):
        if is_remote(root):
            store = file_system(root)
            store.ls(f"{root}/", detail=False)  # raises if there is no such folder; a pattern would match nothing
        else:
            os.listdir(root)
    found = [
        name for pattern in patterns for name in _match(f"{root if is_remote(root) else glob.escape(root)}/{pattern}")
    ]
    return sorted((name.removeprefix(root).lstrip("/"), name) for name in found)


def list_names(folder: str) -> list[str]:
    """List the names of a folder's files.

    Args:
        folder: Path or URI.

    Returns:
        Names; none if there is no such folder.

    Raises:
        VideoError: If the store fails.
    """
    if not is_remote(folder):
        with file_errors(folder, "listing"):
            try:
                return sorted(os.listdir(folder))
            except FileNotFoundError:
                return []
    with file_errors(folder, "listing"):
        try:
            return sorted(
                os.path.basename(str(entry).rstrip("/")) for entry in file_system(folder).ls(folder, detail=False)
            )
        except FileNotFoundError:
            return []


def _find_facts_or_none(place: str) -> FileFacts | None:
    with suppress(VideoError):  # a store may refuse a pattern as a name
        return find_facts(place)
    return None


def _match(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    with file_errors(pattern, "listing"):
        store = file_system(pattern)
        return sorted(
            _with_scheme(pattern, name)
            for name, info in store.glob(pattern, detail=True).items()
            if info["type"] == "file"
        )


def _root(place: str) -> str:
    return (_own_form(place) if is_remote(place) else place).rstrip("/")


def _with_scheme(place: str, name: str) -> str:
    return name if "://" in name else f"{place.partition('://')[0]}://{name}"


def _own_form(place: str) -> str:
    """Return a URI in its store's own form, which the names of its files begin with."""
    return _with_scheme(place, str(file_system(place)._strip_protocol(place)))
