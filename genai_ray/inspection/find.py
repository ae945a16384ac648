"""Finds models by name: catalog ids, paths and URIs."""

from __future__ import annotations

import hashlib
import logging
from contextlib import nullcontext, suppress
from pathlib import Path

from genai_ray.catalog import ModelCatalog, ModelSpec, hash_file, load_spec, read_content
from genai_ray.errors import ModelLoadError, ModelNotFoundError, VideoError
from genai_ray.files import is_remote, mirror
from genai_ray.graph import GraphTensor, graph_tensors, read_header
from genai_ray.inspection.records import Hold, spec_of, tensors_of, weight_files

__all__ = ["canonical_id", "find_model", "hash_model", "read_tensors"]

_log = logging.getLogger(__name__)


def canonical_id(model: str | Path) -> str:
    """Return the id under which the cache knows a model; its file may be gone.

    Args:
        model: Catalog id or alias; or the path or URI of an .onnx file.

    Returns:
        The catalog id, the absolute path, or the URI as it is. For a link, the path of its target if that ends in
        .onnx.

    Raises:
        ModelNotFoundError: If the catalog has no such id.
    """
    if Path(model).suffix.lower() != ".onnx":
        return ModelCatalog.default().resolve(str(model))
    return str(model) if is_remote(str(model)) else str(_real(Path(model)))


def _real(path: Path) -> Path:
    found = path.resolve()
    return found if found.suffix.lower() == ".onnx" else path.parent.resolve() / path.name


def find_model(model: str | Path, hold: Hold = nullcontext) -> tuple[ModelSpec, Path]:
    """Find a model by id, alias or path.

    Args:
        model: Catalog id or alias; or the path or URI of an .onnx file. The spec of such a file is read from the .yaml
            beside it, or found out by trial runs. A remote file, which must hold all weights, is copied to this
            machine, and copied again when it has changed.
        hold: Reserves the memory of an inspection.

    Returns:
        Its spec, and the path of its checked file.

    Raises:
        ModelNotFoundError: If there is no such id or file.
        ModelLoadError: If the file is corrupt, does not have the hash of its spec, or cannot be fetched.
        ConfigError: If the spec beside a file is wrong.
        ResourceExhaustedError: As ``hold``.
    """
    path = Path(model)
    if path.suffix.lower() != ".onnx":
        catalog = ModelCatalog.default()
        return catalog.get(str(model)), catalog.path(str(model))
    if is_remote(str(model)):
        path = _fetch(str(model))
    elif not path.is_file():
        raise ModelNotFoundError(f"no file {path}", "the path of an .onnx file, or a model id")
    path = _real(path)
    saved = path.with_suffix(".yaml")
    spec = load_spec(saved) if _is_spec(saved) else spec_of(path, hold)
    return spec.model_copy(update={"model_id": canonical_id(model), "file": str(path)}), path


def hash_model(spec: ModelSpec, path: Path) -> str:
    """Hash everything that a model computes with: its file, and the files in its folder that hold weights of it.

    Args:
        spec: The model.
        path: Its file.

    Returns:
        sha256, hexadecimal; that of the file alone if all weights are in it.

    Raises:
        ModelLoadError: If the file is corrupt, or is not the one of the catalog.
        OSError: If it cannot be read.
    """
    digest = hash_file(path)  # it may have changed since it was found
    if spec.sha256 not in (None, digest) and not spec.is_path:  # beside a file, what a spec says may be out of date
        raise ModelLoadError(f"{path} has sha256 {digest}", f"{spec.sha256}")
    others = weight_files(path)
    if not others:
        return digest
    found = [digest]
    for name in others:
        found.append(name)
        with suppress(OSError, ValueError):  # what is missing or elsewhere is refused by the load, which says why
            place = (path.parent / name).resolve()
            if place.is_file() and place.is_relative_to(path.parent.resolve()):
                found.append(hash_file(place))
    return hashlib.sha256("\0".join(found).encode(errors="surrogateescape")).hexdigest()


def read_tensors(
    spec: ModelSpec, path: Path, hold: Hold = nullcontext
) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Read the declared inputs and outputs of a model's graph.

    Args:
        spec: First result of ``find_model``.
        path: Second result of ``find_model``.
        hold: Reserves the memory of an inspection.

    Returns:
        (inputs, outputs) in the graph's order.

    Raises:
        ModelLoadError: If the file is corrupt.
        ResourceExhaustedError: As ``hold``.
    """
    # Files of the catalog are trusted: their hash was checked.
    return tensors_of(path, hold) if spec.is_path else graph_tensors(read_header(path))


def _is_spec(saved: Path) -> bool:
    """Tell whether the YAML file beside a model is meant to be its spec; other files may have this name by chance."""
    if not saved.is_file():
        return False
    content = read_content(saved)
    if isinstance(content, dict) and content.keys() & {"model_id", "file"}:
        return True
    _log.info("%s is not a model spec: it has neither model_id nor file", saved)
    return False


def _fetch(uri: str) -> Path:
    try:
        path = mirror(uri, (uri[: -len(".onnx")] + ".yaml",))
    except VideoError as exc:
        raise ModelLoadError(exc.got, exc.allowed, exc.do) from exc
    if path is None:
        raise ModelNotFoundError(f"no file {uri}", "the URI of an .onnx file, or a model id")
    return path
