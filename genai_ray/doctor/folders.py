"""Folders that commands write into: may this user, and how much room is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genai_ray.catalog import models_folder
from genai_ray.display import format_bytes
from genai_ray.doctor.findings import Finding, State
from genai_ray.errors import ConfigError
from genai_ray.files import cache_folder, temporary_base

__all__ = ["check_folders"]

TOPIC = "folders"

LEAST_FREE_BYTES = 2_000_000_000
"""Less than this is a warning: segments of a long video take gigabytes."""

RAY_FULL_SHARE = 0.95
"""Ray writes no objects to a disk that is fuller (``local_fs_capacity_threshold``)."""

LEAST_SHM_BYTES = 2_000_000_000
"""Ray wants at least this for its objects, else it keeps them on the disk of its temporary folder."""

_SHM = Path("/dev/shm")


def check_folders() -> Iterator[Finding]:
    """Write a small file into each folder.

    Yields:
        Where they are, and what is wrong with them.
    """
    try:
        base = temporary_base()
    except ConfigError as exc:
        yield Finding(TOPIC, "temporary", State.BROKEN, exc.got, exc.do)
    else:
        yield _check("temporary", Path(base), "TMPDIR", is_needed=True)
    if ray_folder := os.environ.get("RAY_TMPDIR"):
        yield _check("of Ray", Path(ray_folder), "RAY_TMPDIR", is_needed=True)
    yield _check("cache", cache_folder(), "XDG_CACHE_HOME", is_needed=False)
    yield _check("models", models_folder(), "GENAI_RAY_MODELS", is_needed=False)
    if _SHM.is_dir():
        yield _check_shm()


def _check(name: str, folder: Path, variable: str, *, is_needed: bool) -> Finding:
    # A path that may not be looked at is none that exists: Path.exists would raise.
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        usage = shutil.disk_usage(there)
    except OSError as exc:
        state = State.BROKEN if is_needed else State.WARNING
        return Finding(
            TOPIC, name, state, f"{folder} is not writable: {exc.strerror}", f"Set {variable} to a writable folder."
        )
    detail = f"{folder}: {format_bytes(usage.free)} of {format_bytes(usage.total)} free"
    if there != folder:
        detail += "; it is made when it is needed"
    if usage.free < LEAST_FREE_BYTES:
        return Finding(TOPIC, name, State.WARNING, detail, f"Free some, or set {variable} to a larger disk.")
    if is_needed and usage.used > RAY_FULL_SHARE * (usage.used + usage.free):
        detail += f"; Ray moves no objects to a disk that is more than {RAY_FULL_SHARE:.0%} full"
        return Finding(TOPIC, name, State.WARNING, detail, f"Free some, or set {variable} to another disk.")
    return Finding(TOPIC, name, State.OK, detail)


def _check_shm() -> Finding:
    total = shutil.disk_usage(_SHM).total
    detail = f"{_SHM}: {format_bytes(total)}"
    if total >= LEAST_SHM_BYTES:
        return Finding(TOPIC, "shared memory", State.OK, detail)
    detail += ": Ray may keep frames on the disk instead, which is slower"
    return Finding(TOPIC, "shared memory", State.WARNING, detail, "In Docker, pass --shm-size=4g.")
