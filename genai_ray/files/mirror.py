"""Copies of remote files on this machine, for what can only read local ones; a copy is made once for each version of a file."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from genai_ray.errors import VideoError
from genai_ray.files.local import cache_folder, make_folder, remove_folder, sweep_folders
from genai_ray.files.places import find_facts
from genai_ray.files.store import file_errors
from genai_ray.files.transfer import fetch

__all__ = ["mirror"]

_VERSIONS_KEPT = 2
"""The one before may still be being opened."""


def mirror(place: str, companions: tuple[str, ...] = ()) -> Path | None:
    """Return a local copy of a remote file, made where there is none of its present version.

    Args:
        place: URI of the file.
        companions: URIs of files of the same folder that are copied with it, where they are there.

    Returns:
        The copy, under the file's own name, in ``$XDG_CACHE_HOME/genai_ray/mirror``; None where there is no such file.

    Raises:
        VideoError: If the store fails, or gives fewer bytes than it says.
    """
    wanted = {one: facts for one in (place, *companions) if (facts := find_facts(one)) is not None}
    if place not in wanted:
        return None
    here = _folder(place)
    version = here / hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:16]
    target = version / os.path.basename(place)
    if target.is_file():
        return target
    with file_errors(place, "copying to this machine"):
        here.mkdir(parents=True, exist_ok=True)
        sweep_folders(here.parent)
        temporary = make_folder("mirror", here.parent)
        part = temporary / "files"
    try:
        part.mkdir()
        for one, facts in wanted.items():
            copy = part / os.path.basename(one)
            fetch(one, copy)
            if facts.size not in (-1, copy.stat().st_size):
                raise VideoError(f"{one}: {copy.stat().st_size} bytes came", f"{facts.size} bytes, as its store says")
        with suppress(OSError):
            part.rename(version)  # else another process was faster
    finally:
        remove_folder(temporary)
    if not target.is_file():
        raise VideoError(f"{place}: no copy of it could be kept in {version}")
    _forget_old_versions(here)
    return target


def _folder(place: str) -> Path:
    return cache_folder() / "mirror" / hashlib.sha256(place.encode()).hexdigest()[:16]


def _forget_old_versions(folder: Path) -> None:
    versions = sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in versions[_VERSIONS_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
