"""Copies remote files to this machine, for libraries that read only local ones; once for each version of a file.

Own code because fsspec's ``filecache`` downloads into the final file without a check of its size, overwrites the
version that another process may be reading, and does not keep a file's name and companions.
"""

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
"""Another process may still be opening the version before."""


def mirror(place: str, companions: tuple[str, ...] = ()) -> Path | None:
    """Return a local copy of a remote file; copy the file first if there is no copy of its present version.

    Args:
        place: URI of the file.
        companions: URIs of files of the same folder; those that exist are copied with it.

    Returns:
        The copy, under the file's own name, in the folder ``mirror`` of ``cache_folder()``; None if there is no such
        file.

    Raises:
        VideoError: If the store fails, or returns another number of bytes than it states.
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
                raise VideoError(f"{one}: received {copy.stat().st_size} bytes", f"{facts.size} bytes")
        with suppress(OSError):  # another process was faster
            part.rename(version)
    finally:
        remove_folder(temporary)
    if not target.is_file():
        raise VideoError(f"{place}: it could not be copied to {version}")
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
