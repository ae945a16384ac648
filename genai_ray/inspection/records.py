"""Inspects model files in a process of its own, and remembers the results by the content of the file.

A file may be gigantic, broken, or made to take all memory or time; the calling process stays safe.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeAlias

from genai_ray import __version__
from genai_ray.catalog import ModelSpec, hash_file
from genai_ray.confine import call_confined
from genai_ray.errors import DeadlineExceededError, ModelLoadError, ResourceExhaustedError
from genai_ray.files import cache_folder, is_private, write_whole
from genai_ray.graph import GraphTensor, external_files, graph_tensors, read_header
from genai_ray.inspection.trial import SAVE_SPEC, ask_runtime, inspect_model

__all__ = ["Hold", "code_versions", "forget_failures", "spec_of", "tensors_of", "weight_files"]

Hold: TypeAlias = Callable[[int], AbstractContextManager[object]]
"""Reserves so many bytes of memory for an inspection, or raises ``ResourceExhaustedError``."""

BASE_BYTES = 1024**3
"""Bytes that the inspecting process may allocate beside the model's data."""

DATA_FACTOR = 3
"""Bytes that it may allocate per byte of the model's data: the runtime repacks weights, and trial runs need two
runtimes."""

WITHIN_S = 120.0
"""Most seconds for a model's process."""

TRIALS_WITHIN_S = 60.0
"""Most of these seconds for its trial runs."""

FAILED_FOR_S = 600.0
"""Seconds before a file is inspected again that took too much memory or time, or that the runtime refused."""

AT_ONCE = 2
"""Most models that a process inspects at the same time."""

_PATH = "\0"
"""Placeholder for the file's path in a remembered error: files of equal content may have other paths."""

_places = threading.BoundedSemaphore(AT_ONCE)
_known: dict[str, dict[str, Any]] = {}


def spec_of(path: Path, hold: Hold = nullcontext) -> ModelSpec:
    """Return the spec that trial runs find for a model.

    Args:
        path: Its file.
        hold: Reserves the memory of an inspection.

    Returns:
        As ``inspect_model``.

    Raises:
        ModelLoadError: If the file is corrupt, the runtime cannot load it, or it takes too much memory or time.
        ResourceExhaustedError: As ``hold``.
    """
    return ModelSpec.model_validate(_record_of(path, hold, is_tried=True)["spec"])


def tensors_of(path: Path, hold: Hold = nullcontext) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Return the declared inputs and outputs of a model's graph.

    Args:
        path: Its file.
        hold: Reserves the memory of an inspection.

    Returns:
        (inputs, outputs) in the graph's order.

    Raises:
        ModelLoadError: If the file is corrupt.
        ResourceExhaustedError: As ``hold``.
    """
    record = _record_of(path, hold, is_tried=False)
    inputs, outputs = (
        tuple(
            GraphTensor(name, element, None if shape is None else tuple(shape)) for name, element, shape in record[end]
        )
        for end in ("inputs", "outputs")
    )
    return inputs, outputs


def weight_files(path: Path) -> tuple[str, ...]:
    """Return the files beside a model's file that hold weights of it; the graph of each content is read once.

    Args:
        path: The model's file.

    Returns:
        Sorted paths relative to the file's folder; they may not exist.

    Raises:
        ModelLoadError: If the file is corrupt.
        OSError: If it cannot be read.
    """
    # A large tensor in the file itself is a reference to its name: see ``read_header``.
    name = _name_of(hash_file(path), f"files beside {path.name}")
    record = _known.get(name) or _load(name, _is_names)
    if record is None:
        record = {"result": [other for other in external_files(read_header(path)) if other != path.name]}
        _store(name, record)
    _known[name] = record
    return tuple(record["result"])


def forget_failures() -> None:
    """Allow failed files to be inspected again at once."""
    for name in [name for name, record in list(_known.items()) if "error" in record]:
        _known.pop(name, None)


def describe_file(path: str, is_tried: bool, data_bytes: int) -> dict[str, Any]:
    """Read a model's graph and make trial runs; runs in a process of its own.

    Args:
        path: Its file.
        is_tried: Whether to make trial runs.
        data_bytes: Bytes of weights that the memory of this process is meant for.

    Returns:
        Inputs, outputs, the files of external data and their states, and the spec or None; JSON can hold it. If the
        runtime would load more than ``data_bytes``: only their number, ``data_bytes``.

    Raises:
        ModelLoadError: If the file is corrupt, or as ``inspect_model``.
    """
    file = Path(path)
    model = read_header(file)
    inputs, outputs = graph_tensors(model)
    is_complete = all(tensor.element and tensor.shape is not None for tensor in (*inputs, *outputs))
    files: list[list[Any]] = [
        [name, *_state_of(file.parent / name)] for name in external_files(model) if name != file.name
    ]
    needed = file.stat().st_size + sum(size for _, size, _ in files)
    if (is_tried or not is_complete) and needed > data_bytes:
        return {"data_bytes": needed}
    if not is_complete:
        inputs = ask_runtime(file, inputs)
        outputs = ask_runtime(file, outputs)
    return {
        "inputs": [astuple(tensor) for tensor in inputs],
        "outputs": [astuple(tensor) for tensor in outputs],
        "files": files,
        "spec": inspect_model(file, TRIALS_WITHIN_S).model_dump(mode="json") if is_tried else None,
    }


def _record_of(path: Path, hold: Hold, *, is_tried: bool) -> dict[str, Any]:
    facts = path.stat()
    digest = hash_file(path)
    record = None
    for each in dict.fromkeys((True, is_tried)):  # a result with trial runs also has the description
        name = _name_of(digest, each)
        found = _known.get(name) or _load(name, functools.partial(_is_description, each))
        record = record or (found if found is not None and _is_current(found, path, is_tried=is_tried) else None)
    if record is None:
        record = _inspect(path, hold, facts.st_size * is_tried, is_tried)
        if "result" in record:
            _store(name, record)
    _known[name] = record
    if "error" in record:
        raise ModelLoadError(*(text.replace(_PATH, str(path)) for text in record["error"]))
    result: dict[str, Any] = record["result"]
    return result


def _inspect(path: Path, hold: Hold, data_bytes: int, is_tried: bool) -> dict[str, Any]:
    if not _places.acquire(timeout=WITHIN_S):
        raise ModelLoadError(f"{path} waited too long for inspections of other models", do="Try again later.")
    try:
        for _ in range(2):  # again if there are weights outside the file
            max_bytes = BASE_BYTES + DATA_FACTOR * data_bytes
            with hold(max_bytes):
                record = _describe(path, is_tried, data_bytes, max_bytes)
            data_bytes = record.get("result", {}).get("data_bytes", 0)
            if not data_bytes:
                return record
    finally:
        _places.release()
    raise ModelLoadError(f"{path} changes while it is inspected", do="Try again later.")


def _describe(path: Path, is_tried: bool, data_bytes: int, max_bytes: int) -> dict[str, Any]:
    arguments = (str(path), is_tried, data_bytes)
    try:
        return {"result": call_confined(describe_file, *arguments, max_bytes=max_bytes, within_s=WITHIN_S)}
    except (DeadlineExceededError, ResourceExhaustedError) as exc:
        error = [f"{path} cannot be tried out: {exc}", f"{WITHIN_S:g} s and {max_bytes} bytes", SAVE_SPEC]
    except ModelLoadError as exc:
        error = [exc.got, exc.allowed, exc.do]
    return {"error": [text.replace(str(path), _PATH) for text in error], "until_s": time.time() + FAILED_FOR_S}


def _is_current(record: Mapping[str, Any], path: Path, *, is_tried: bool) -> bool:
    """Tell whether a remembered result is still valid: the file's hash does not cover external data."""
    if "error" in record:
        return is_tried and bool(time.time() < record["until_s"])
    return all(list(_state_of(path.parent / name)) == state for name, *state in record["result"]["files"])


def _load(name: str, is_right: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Read a stored result; None if there is none, if it is not of this user alone, or not of the right form."""
    with suppress(OSError, ValueError, RecursionError):
        if is_private(_folder()) and is_private(_folder() / name):
            record = json.loads((_folder() / name).read_bytes())
            if isinstance(record, dict) and is_right(record.get("result")):
                return {"result": record["result"]}
    return None


def _is_names(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(name, str) for name in result)


def _is_description(is_tried: bool, result: Any) -> bool:
    """Tell whether a stored result has the form of ``describe_file``."""
    try:
        tensors = [each for end in ("inputs", "outputs") for each in result[end]]
        names = [text for name, element, _ in tensors for text in (name, element)]
        axes = [axis for _, _, shape in tensors if shape is not None for axis in shape]
        names += [name for name, _, _ in result["files"]]
        axes += [number for _, size, time_ns in result["files"] for number in (size, time_ns)]
        if is_tried or result["spec"] is not None:
            ModelSpec.model_validate(result["spec"])
    except (KeyError, TypeError, ValueError):
        return False
    return _is_names(names) and all(isinstance(axis, int) for axis in axes)


def _store(name: str, record: dict[str, Any]) -> None:
    """Store a result for other processes; if that fails, they inspect the file again."""
    with suppress(OSError):
        write_whole(_folder() / name, json.dumps(record))


def _folder() -> Path:
    return cache_folder() / "inspected"


def _name_of(digest: str, what: bool | str) -> str:
    return f"{hashlib.sha256(repr((digest, what, _versions())).encode()).hexdigest()[:40]}.json"


def _state_of(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:  # the runtime will report it
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


@functools.cache
def _versions() -> tuple[str, ...]:
    package = Path(__file__).parent.parent
    return code_versions(*(file for name in ("graph", "inspection") for file in sorted((package / name).glob("*.py"))))


@functools.cache
def code_versions(*files: Path) -> tuple[str, ...]:
    """Return what a stored result depends on besides its model.

    Args:
        files: The code that makes it.

    Returns:
        Versions of this package, onnx and ONNX Runtime, and the sha256 of each file.
    """
    found = [__version__]
    for name in ("onnx", "onnxruntime", "onnxruntime-gpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return (*found, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
