"""What a client tells the cache of a model before it is loaded: its hash, and its predicted bytes."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import ray

from genai_ray.backends import check_precision
from genai_ray.catalog import ModelSpec
from genai_ray.cluster.messages import LoadRequest, SessionRequest
from genai_ray.errors import ModelLoadError
from genai_ray.inspection import find_model, hash_model
from genai_ray.session import check_tile_size, count_cores, predict_bytes
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["CACHE_SHARE", "build_load_request", "is_text", "own_node", "to_request"]

CACHE_SHARE = 0.8
"""The cache may use at least this share of the client's deadline; the rest is for its answer to arrive."""


def to_request(model: str | Path | SessionRequest) -> tuple[SessionRequest, ModelSpec]:
    """Turn a model's id, alias or path into a request.

    Args:
        model: Id, alias or path, for ONNX Runtime and FP32; or a request.

    Returns:
        The request with the canonical id, and the model's spec.

    Raises:
        ConfigError: If the backend does not offer the precision, or the model does not allow such tiles.
        ModelNotFoundError: If the model is not known.
        ModelLoadError: If Ray cannot carry its path.
    """
    request = (
        model
        if isinstance(model, SessionRequest)
        else SessionRequest(str(model), ModelBackend.ONNX, ModelPrecision.FP32)
    )
    check_precision(request.backend, request.precision)
    if not is_text(request.model):  # before its inspection, which cannot open it either
        raise ModelLoadError(
            f"{request.model}: the path is not UTF-8 text",
            "UTF-8, which Ray can carry",
            "Rename the file or its folder.",
        )
    spec, _ = find_model(request.model)
    check_tile_size(spec, request.tile_size_px)
    return replace(request, model=spec.model_id), spec


def build_load_request(
    request: SessionRequest, spec: ModelSpec, *, is_explicit: bool, is_online: bool, within_s: float
) -> LoadRequest:
    """Complete a request with what the cache needs.

    Args:
        request: Which session.
        spec: Its model.
        is_explicit: Whether a caller asked to load the model, rather than for a result.
        is_online: Whether a person waits for the result.
        within_s: Seconds after which the client gives up.

    Returns:
        The request for the cache, which answers a little before the client gives up, so that the reason arrives.

    Raises:
        ModelNotFoundError: If the model's file is not there.
        ModelLoadError: If it is corrupt.
    """
    _, path = find_model(request.model)
    found = path.stat()
    digest = hash_model(spec, path)
    predicted_bytes = _predict(path, found.st_mtime_ns, request)
    if request.floor_bytes is not None:
        predicted_bytes = 0  # the session tries to keep to the given bytes, by smaller tiles
    cache_within_s = max(within_s * CACHE_SHARE, within_s - 1.0)
    return LoadRequest(request, digest, predicted_bytes, own_node(), is_explicit, is_online, cache_within_s)


def is_text(name: str) -> bool:
    """Tell whether a name is Unicode text: a path may be other bytes, of which Ray's workers die.

    Args:
        name: Any name.

    Returns:
        Whether UTF-8 can encode it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _predict(path: Path, modified_ns: int, request: SessionRequest) -> int:
    del modified_ns  # part of the cache's key
    spec, _ = find_model(request.model)
    return predict_bytes(
        path,
        spec,
        request.limits(),
        backend=request.backend,
        precision=request.precision,
        threads=None if request.device.startswith("cuda") else count_cores(),
    )


def own_node() -> str:
    """Return the node of this process.

    Returns:
        Its id.
    """
    return str(ray.get_runtime_context().get_node_id())
