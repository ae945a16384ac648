"""What was measured, remembered in the user's cache folder: one small file for each model, kind of device and size."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_ray.files import cache_folder, write_whole
from genai_ray.tune.ways import REFERENCE, Measured, Way
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["RecordKey", "library_versions", "read_record", "write_record"]

_log = logging.getLogger(__name__)

_FORMAT = 2
_VERSIONED = ("genai-ray", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")


@dataclass(frozen=True, slots=True)
class RecordKey:
    """What a measurement holds for."""

    digest: str
    """Hash of the model's file."""
    device: str
    """Kind of the device, with all that its speed depends on."""
    bucket: tuple[int, int]
    """(height, width) of what is measured, rounded up to 64 px."""

    @property
    def path(self) -> Path:
        """The file: in ``tuned`` of the user's cache folder (``XDG_CACHE_HOME``)."""
        name = hashlib.sha256(repr((self.digest, self.device, self.bucket)).encode()).hexdigest()[:32]
        return cache_folder() / "tuned" / f"{name}.json"


def read_record(key: RecordKey, ways: Sequence[Way]) -> tuple[Measured, ...] | None:
    """Return what was measured before.

    Args:
        key: What it must hold for.
        ways: The ways that are needed.

    Returns:
        One entry for each way, in order; None if one was not measured, or not with these versions of the libraries, or
        the file is damaged. The log says which, unless there is no file.
    """
    path = key.path
    try:
        found = json.loads(path.read_text())
        if found["format"] != _FORMAT or found["versions"] != list(library_versions()):
            _log.warning("%s was written by other versions of the libraries: the model is measured anew", path)
            return None
        known = {one.way: one for one in map(_parse, found["measured"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        _log.warning("%s is damaged (%s: %s): the model is measured anew", path, type(exc).__name__, exc)
        return None
    if not known.keys() >= set(ways):
        return None
    return tuple(known[way] for way in ways)


def write_record(key: RecordKey, measured: Sequence[Measured], about: dict[str, Any]) -> None:
    """Remember what was measured; if that fails, the log says so, and the next job measures again.

    Args:
        key: What it holds for.
        measured: The measurements.
        about: Words for people who read the file.
    """
    content = {
        "format": _FORMAT,
        "versions": library_versions(),
        **about,
        "measured": [one.to_dict() for one in measured],
    }
    path = key.path
    try:
        write_whole(path, json.dumps(content, indent=2))
    except OSError as exc:
        _log.warning("%s cannot be written (%s): the next job measures again", path, exc)


def _parse(entry: dict[str, Any]) -> Measured:
    way = Way(ModelBackend(entry["backend"]), ModelPrecision(entry["precision"]))
    quality = entry["precision_db"]
    found = Measured(
        way,
        pixels_per_s=float(entry["pixels_per_s"]),
        precision_db=None if quality is None else float(quality),
        memory_bytes=int(entry["memory_bytes"]),
        num_runs=int(entry["num_runs"]),
        run_batch=int(entry["run_batch"]),
        tile_size_px=None if entry["tile_size_px"] is None else int(entry["tile_size_px"]),
        refused=str(entry["refused"]),
    )
    is_whole = found.pixels_per_s > 0 and (found.precision_db is None) is (way == REFERENCE)
    if not (found.refused or is_whole):
        raise ValueError(f"no measurement of {way}")
    return found


@functools.cache
def library_versions() -> tuple[str, ...]:
    """Return the versions on which speed depends, of this package and of the libraries that it computes with.

    Returns:
        Such as ``numpy=2.3.5``.
    """
    found = []
    for name in _VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name}={importlib.metadata.version(name)}")
    return tuple(found)
