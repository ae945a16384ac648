"""Graphs that are ready for ONNX Runtime on a CPU, kept on this machine: made once, and then opened by path.

What was made of a model is found by its content, not by its name. A record, ``KEY.json``, names the file of the graph
and that of its large weights, which the runtime maps into memory; both are named by their sha256. A file that is
damaged, or that this user does not own alone, is not opened, and is made again. A model that cannot be kept is loaded
without; ``KEY.failed`` remembers that for a while. Each machine has a folder of its own, since what others remove could
still be mapped here, and in it each version of the code.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np

from genai_ray.catalog import ModelSpec, hash_file
from genai_ray.errors import GenAIRayError, ModelLoadError
from genai_ray.files import cache_folder, is_cache_lasting, is_private
from genai_ray.graph import (
    Graph,
    copy_weights,
    frame_ends,
    free_batch,
    fuse_frames,
    graph_tensors,
    plan_weights,
    read_header,
    read_model,
    refer_to_weights,
    weight_bytes,
)
from genai_ray.inspection import code_versions, hash_model, weight_files
from genai_ray.session.sizing import bytes_per_px
from genai_ray.types import parse_bytes

__all__ = ["ENDS", "MAX_KEPT_BYTES", "Prepared", "build_graphs", "find_prepared", "forget_prepared", "freed_inputs"]

_log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 2 * 1024**3
"""Most bytes of all files of a machine and version, unless ``GENAI_RAY_PREPARED_BYTES`` gives another number; beyond
that, the least recently used are removed. A model of more than half of it is not kept."""

FAILED_FOR_S = 3600.0
"""Seconds before it is tried again to keep a model that could not be kept."""

_SETTING = "GENAI_RAY_PREPARED_BYTES"

_UNUSED_AFTER_S = 30 * 86400.0
"""What another version of the code has made on this machine is removed if it was not used for so long."""

ENDS = "ends "
"""How the kind of the graphs before and after a model begins."""

_FAULTS = (
    GenAIRayError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a strange model may cause."""

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
    """Predicted bytes of a run by input pixel; None if it was not predicted."""
    freed: tuple[str, ...]
    """Inputs whose first axis is 1 in the model's file, and free in the graph."""
    source: str
    """sha256 of what the file of the large weights is a copy of; empty without one."""

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

    Raises:
        ConfigError: If ``GENAI_RAY_PREPARED_BYTES`` is no number of bytes.
    """
    chosen = os.environ.get(_SETTING, "").strip() or MAX_KEPT_BYTES
    if chosen == "0":
        return None
    limit_bytes = parse_bytes(chosen, _SETTING)
    try:
        if not is_cache_lasting():
            _log.info("%s is temporary: nothing is kept there", cache_folder())
            return None
        if not _is_usable():
            _log.info("%s cannot be written to, or others may write to it: nothing is kept there", _folder())
            return None
        states = _states_of(path)
        digest = hash_model(spec, path)
        key = _key_of(digest, spec, kind)
        found = _read(key)
        if found is not None and all(_is_whole(*file) for file in found.files):
            with suppress(OSError):
                os.utime(_record(key))  # it was used now
            return found
        if _has_failed(key):
            return None
        try:
            made = _make(key, digest, spec, path, kind, limit_bytes)
            if _states_of(path) != states:
                _log.info("%s changes while it is read", path)
                return None
            _write(made)
        except Exception:
            _remember_failure(key)
            raise
        _remove_oldest(limit_bytes)
        _remove_unused_versions()
    except _FAULTS as exc:  # the model is loaded without, and that says what is wrong with it
        _log.info("%s: its graph is not kept: %s", path, exc)
        return None
    return made


def forget_prepared(found: Prepared) -> None:
    """Remove the record of a graph that was refused; it is made again only if its files are no longer what they were.

    Args:
        found: Result of ``find_prepared``.
    """
    with suppress(OSError):
        _record(found.key).unlink()
    if all(_is_whole(*file) for file in found.files):
        _remember_failure(found.key)


def _make(key: str, digest: str, spec: ModelSpec, path: Path, kind: str, limit_bytes: int) -> Prepared:
    most = min(limit_bytes // 2, int(_LEFT_FREE * shutil.disk_usage(_folder()).free))
    if path.stat().st_size + sum((path.parent / name).stat().st_size for name in weight_files(path)) > most:
        raise ModelLoadError("the model is too large", f"{most} bytes")
    # To raise the operator set, all weights that are in the file must be in the graph.
    is_raised = spec.is_resized and kind in ("uint8", "uint16", "float32")
    model = read_model(path) if is_raised else read_header(path)
    freed = freed_inputs(model, spec)
    per_px = _predict(model, spec) if kind in ("uint8", "core") else None
    graphs = build_graphs(model, spec, kind)
    stored_bytes = sum(map(weight_bytes, graphs))
    plan = plan_weights(graphs)
    num_bytes = plan.num_bytes + sum(one.ByteSize() for one in graphs)
    if num_bytes > most:  # tensors may overlap in their files
        raise ModelLoadError(f"the model takes {num_bytes} bytes", f"{most}")
    source = hashlib.sha256(repr((digest, plan.offsets)).encode()).hexdigest() if plan.offsets else ""
    weights = _find_weights(source) if source else ""
    if source and not weights:
        with _partial() as (file, partial):
            copy_weights(plan, path, file)
            weights = _place(file, partial, ".weights")
    num_bytes = plan.num_bytes
    names = []
    for one in graphs:
        refer_to_weights(one, plan, f"{weights}.weights")
        with _partial() as (file, partial):
            num_bytes += file.write(one.SerializeToString())
            names.append(_place(file, partial, ".onnx"))
    return Prepared(key, tuple(names), weights, num_bytes, stored_bytes, per_px, freed, source)


def _predict(model: Graph, spec: ModelSpec) -> float | None:
    try:
        return bytes_per_px(fuse_frames(model, spec, np.uint8), spec)
    except _FAULTS as exc:  # ONNX may not know an operator that the runtime knows
        _log.debug("%s: no bytes by pixel: %s", spec.model_id, exc)
        return None


def _states_of(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes if one of the files of a model is replaced or written to."""
    facts = [path.stat(), *((path.parent / name).stat() for name in weight_files(path))]
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in facts)


def _key_of(digest: str, spec: ModelSpec, kind: str) -> str:
    described = "" if kind == "raw" else spec.model_dump_json(exclude={"model_id", "file", "sha256", "unsure"})
    return hashlib.sha256(repr((digest, described, kind)).encode()).hexdigest()[:40]


@functools.cache
def _version() -> str:
    """Name what a graph depends on besides its model: packages, and the code of this one that makes it."""
    here = Path(__file__).parent
    found = code_versions(*sorted((here.parent / "graph").glob("*.py")), here / "sizing.py", Path(__file__))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _folder() -> Path:
    machine = re.sub(r"[^\w-]", "_", socket.gethostname()) or "_"
    return cache_folder() / "prepared" / machine / _version()


def _is_usable() -> bool:
    """Create the folder; tell whether this user alone may write to it."""
    version = _folder()
    folders = (version.parent.parent, version.parent, version)
    for folder in folders:
        folder.mkdir(exist_ok=True, mode=0o700)
    return all(map(is_private, folders)) and os.access(version, os.W_OK | os.X_OK)


def _record(key: str) -> Path:
    return _folder() / f"{key}.json"


def _has_failed(key: str) -> bool:
    with suppress(OSError):
        mark = _record(key).with_suffix(".failed")
        return is_private(mark) and abs(time.time() - mark.lstat().st_mtime) < FAILED_FOR_S
    return False


def _remember_failure(key: str) -> None:
    with suppress(OSError), _partial() as (_, partial):
        partial.replace(_record(key).with_suffix(".failed"))


def _write(made: Prepared) -> None:
    with _partial() as (file, partial):
        file.write(_seal(made))
        file.flush()
        partial.replace(_record(made.key))


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


def _find_weights(source: str) -> str:
    """Return the sha256 of a copy of weights that is there already; empty if there is none."""
    for record in _folder().glob("*.json"):
        found = _read(record.stem)
        if found is not None and found.source == source and all(_is_whole(*file) for file in found.files[-1:]):
            return found.weights
    return ""


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
        with suppress(OSError):  # some network file systems have no modes
            os.fchmod(file.fileno(), 0o400)
        partial.replace(target)
    return digest


def _remove_oldest(limit_bytes: int) -> None:
    """Remove records that were used least recently until the rest is small enough, and files without a record."""
    folder = _folder()
    now_s = time.time()
    facts = {}
    for file in folder.iterdir():
        with suppress(OSError):  # another process removes it as well
            facts[file] = file.lstat()
    left_bytes = limit_bytes
    wanted: set[Path] = set()
    dropped: set[Path] = set()
    records = [file for file in facts if file.suffix == ".json"]
    for record in sorted(records, key=lambda record: facts[record].st_mtime_ns, reverse=True):
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


def _remove_unused_versions() -> None:
    for other in _folder().parent.iterdir():
        with suppress(OSError):
            last_s = max([other.lstat().st_mtime, *(file.lstat().st_mtime for file in other.iterdir())])
            if other != _folder() and time.time() - last_s > _UNUSED_AFTER_S:
                shutil.rmtree(other, ignore_errors=True)
