"""Graphs that are ready for ONNX Runtime, kept on this machine: made once, and then opened by path.

What was made of a model is found by its content, not by its name. A record, ``KEY.json``, names the file of the graph
and that of its large weights, which the runtime maps into memory; both are named by their sha256. A file that is
damaged, or that this user does not own alone, is not opened, and is made again. Whatever cannot be kept is loaded
without: this module never raises.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np

from genai_ray import __version__
from genai_ray.catalog import ModelSpec, hash_file
from genai_ray.errors import GenAIRayError
from genai_ray.files import cache_folder, is_private
from genai_ray.graph import (
    Graph,
    copy_weights,
    frame_ends,
    free_batch,
    fuse_frames,
    graph_tensors,
    read_header,
    read_model,
    refer_to_weights,
    weight_bytes,
)
from genai_ray.inspection import hash_model, weight_files
from genai_ray.session.sizing import bytes_per_px

__all__ = ["ENDS", "MAX_KEPT_BYTES", "Prepared", "build_graphs", "find_prepared", "forget_prepared", "freed_inputs"]

_log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 2 * 1024**3
"""Most bytes of all files; beyond that, those that were used least recently go. A model of more than half of it is not
kept."""

ENDS = "ends "
"""How the kind of the graphs before and after a model begins."""

_LEFT_FREE = 0.5
"""At least this share of the free bytes of the disk stays free."""

_DEAD_AFTER_S = 3600.0
"""A file without a record is removed after this: its process has ended before it wrote the record."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph in the folder of kept files."""

    key: str
    """Name of its record."""
    graphs: tuple[str, ...]
    """sha256 and name of its file; the graphs before and after a model are two."""
    weights: str
    """sha256 and name of the file of its large weights; empty if all are in the graph's file."""
    num_bytes: int
    """Bytes of all files."""
    weight_bytes: int
    """Bytes of the weights, as stored."""
    bytes_per_px: float | None
    """Predicted bytes of a run by input pixel; None if it takes no frames, or has no weights."""
    freed: tuple[str, ...]
    """Inputs whose first axis is 1 in the model's file, and free in the graph."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the graphs."""
        return tuple(_folder() / f"{name}.onnx" for name in self.graphs)

    @property
    def files(self) -> tuple[tuple[Path, str], ...]:
        """Its files, each with its sha256."""
        weights = ((_folder() / f"{self.weights}.weights", self.weights),) if self.weights else ()
        return (*zip(self.paths, self.graphs, strict=True), *weights)


def build_graphs(model: Graph, spec: ModelSpec, kind: str) -> tuple[Graph, ...]:
    """Build what a session loads of a model.

    Args:
        model: The model of the file; not changed.
        spec: The model's spec.
        kind: ``raw`` for the model as it is; a dtype of frames for one that takes frames of it. For a model that all
            dtypes share, ``core``; and ``ends`` with a dtype for the graphs before and after it.

    Returns:
        The graph, or the two ends.

    Raises:
        ModelLoadError: As ``genai_ray.graph.fuse_frames``.
    """
    if kind == "raw":
        return (model,)
    if kind == "core":
        return (free_batch(model) if spec.batchable else model,)
    if kind.startswith(ENDS):
        return frame_ends(model, spec, np.dtype(kind.removeprefix(ENDS)))
    return (fuse_frames(model, spec, np.dtype(kind)),)


def freed_inputs(model: Graph, spec: ModelSpec) -> tuple[str, ...]:
    """Tell which inputs take any number of frames in a session, but only one by the model's file.

    Args:
        model: The model of the file.
        spec: The model's spec.

    Returns:
        Their names.
    """
    inputs = graph_tensors(model)[0] if spec.batchable else ()
    return tuple(tensor.name for tensor in inputs if len(tensor.shape or ()) > 1 and (tensor.shape or ())[0] == 1)


def find_prepared(spec: ModelSpec, path: Path, kind: str) -> Prepared | None:
    """Return graphs of a model that are ready for ONNX Runtime, in FP32; make them, if there are none.

    Args:
        spec: The model.
        path: Its file.
        kind: As for ``build_graphs``.

    Returns:
        The graph, or the two ends; None if they cannot be kept: the model is too large, corrupt or changes meanwhile,
        or the folder cannot be written to or belongs to others. The log says why.
    """
    try:
        states = _states_of(path)
        key = _key_of(hash_model(spec, path), spec, kind)
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_private(folder):
            _log.info("%s belongs to others, or others may write to it: nothing is kept there", folder)
            return None
        found = _read(key)
        if found is None or not all(_is_whole(file, digest) for file, digest in found.files):
            found = _make(key, spec, path, kind, states)
        else:
            os.utime(_record(key), ns=(time.time_ns(), _record(key).stat().st_mtime_ns))  # it was used now
    except (GenAIRayError, OSError) as exc:
        _log.info("%s: its graph is not kept: %s", path, exc)
        return None
    return found


def forget_prepared(found: Prepared) -> None:
    """Remove the record of a graph, which is made again when it is needed next.

    Args:
        found: Result of ``find_prepared``.
    """
    with suppress(OSError):
        _record(found.key).unlink()


def _make(key: str, spec: ModelSpec, path: Path, kind: str, states: object) -> Prepared | None:
    needed = path.stat().st_size + sum((path.parent / name).stat().st_size for name in weight_files(path))
    if needed > min(MAX_KEPT_BYTES // 2, _LEFT_FREE * shutil.disk_usage(_folder()).free):
        _log.info("%s is too large to be kept", path)
        return None
    # To raise the operator set, all weights that are in the file must be in the graph.
    is_raised = spec.is_resized and kind in ("uint8", "uint16", "float32")
    model = read_model(path) if is_raised else read_header(path)
    freed = freed_inputs(model, spec)
    per_px = bytes_per_px(fuse_frames(model, spec, np.uint8), spec) if kind in ("uint8", "core") else None
    graphs = build_graphs(model, spec, kind)
    stored_bytes = sum(map(weight_bytes, graphs))
    names = []
    with _partial() as (file, partial):
        num_bytes = max(copy_weights(one, path, file) for one in graphs)
        weights = _place(file, partial, ".weights") if num_bytes else ""
    for one in graphs:
        refer_to_weights(one, f"{weights}.weights")
        with _partial() as (file, partial):
            num_bytes += file.write(one.SerializeToString())
            names.append(_place(file, partial, ".onnx"))
    if _states_of(path) != states:
        _log.info("%s changes while it is read", path)
        return None
    made = Prepared(key, tuple(names), weights, num_bytes, stored_bytes, per_px, freed)
    with _partial() as (file, partial):
        file.write(_seal(made))
        file.flush()
        partial.replace(_record(key))
    _remove_oldest()
    return made


def _states_of(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes if one of the files of a model is replaced or written to."""
    facts = [path.stat(), *((path.parent / name).stat() for name in weight_files(path))]
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in facts)


def _key_of(digest: str, spec: ModelSpec, kind: str) -> str:
    described = "" if kind == "raw" else spec.model_dump_json(exclude={"model_id", "file", "sha256", "unsure"})
    return hashlib.sha256(repr((digest, described, kind, _versions())).encode()).hexdigest()[:40]


@functools.cache
def _versions() -> tuple[str, ...]:
    """Return what a graph depends on besides its model: packages, and the code of this one that makes it."""
    found = [__version__]
    for name in ("onnx", "onnxruntime", "onnxruntime-gpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    here = Path(__file__).parent
    code = [*sorted((here.parent / "graph").glob("*.py")), here / "sizing.py", Path(__file__)]
    return (*found, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in code))


def _folder() -> Path:
    return cache_folder() / "prepared"


def _record(key: str) -> Path:
    return _folder() / f"{key}.json"


def _seal(made: Prepared) -> bytes:
    """Write a record as JSON, with a sha256 by which damage is noticed."""
    facts = asdict(made)
    return json.dumps({"facts": facts, "check": _check_of(facts)}).encode()


def _check_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(key: str) -> Prepared | None:
    """Read a record; None if there is none, or if it is damaged or not of this user alone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if is_private(_record(key)):
            content = json.loads(_record(key).read_bytes())
            if content["check"] == _check_of(content["facts"]) and content["facts"]["key"] == key:
                facts = content["facts"]
                return Prepared(**facts | {name: tuple(facts[name]) for name in ("graphs", "freed")})
    return None


def _is_whole(file: Path, digest: str) -> bool:
    with suppress(OSError):
        return is_private(file) and hash_file(file) == digest
    return False


@contextmanager
def _partial() -> Iterator[tuple[BufferedRandom, Path]]:
    """Create a file that only this user may read, and remove it after the block if it was not renamed."""
    handle, name = tempfile.mkstemp(dir=_folder(), suffix=".partial")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _place(file: BufferedRandom, partial: Path, suffix: str) -> str:
    """Name a file by its sha256, unless there is one of that name already; nobody writes to it from now on."""
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = _folder() / f"{digest}{suffix}"
    if not _is_whole(target, digest):
        os.fchmod(file.fileno(), 0o400)
        partial.replace(target)
    return digest


def _remove_oldest() -> None:
    """Remove records that were used least recently until the rest is small enough, and files without a record."""
    folder = _folder()
    now_s = time.time()
    facts = {}
    for file in folder.iterdir():
        with suppress(OSError):  # another process removes it as well
            facts[file] = file.lstat()
    left_bytes = MAX_KEPT_BYTES
    wanted: set[Path] = set()
    dropped: set[Path] = set()
    records = [file for file in facts if file.suffix == ".json"]
    for record in sorted(records, key=lambda record: facts[record].st_atime_ns, reverse=True):
        found = _read(record.stem)
        files = set() if found is None else {file for file, _ in found.files}
        more_bytes = sum(facts[file].st_size for file in files - wanted if file in facts)
        if found is None or more_bytes > left_bytes:
            dropped |= {record, *files}
        else:
            left_bytes -= more_bytes
            wanted |= {record, *files}
    lost = {file for file, found in facts.items() if now_s - found.st_mtime > _DEAD_AFTER_S}
    for file in (dropped | lost) - wanted:
        with suppress(OSError):
            file.unlink(missing_ok=True)
