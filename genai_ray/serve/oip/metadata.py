"""What the endpoint says about itself and its models, as the protocol has it; fit for JSON and for gRPC messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_ray.cluster import CacheStatus
from genai_ray.errors import ModelLoadError
from genai_ray.serve.engine.batching import FRAMES_TOGETHER
from genai_ray.serve.engine.inference import TensorMetadata
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.engine.repository import Repository, ServedModel
from genai_ray.serve.engine.statistics import ModelCounts, Statistics
from genai_ray.serve.http.errors import without_folders
from genai_ray.types import ModelBackend

__all__ = [
    "EXTENSIONS",
    "describe_config",
    "describe_index",
    "describe_model",
    "describe_server",
    "describe_statistics",
]

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""Extensions of the protocol that this server has."""

PLATFORM = "onnxruntime_onnx"

_STATES = {"ready": "READY", "loading": "LOADING", "retiring": "UNLOADING"}


def describe_server(version: str) -> dict[str, Any]:
    """Return the server's metadata.

    Args:
        version: Version of the package.

    Returns:
        Fit for JSON.
    """
    return {"name": "genai_ray", "version": version, "extensions": list(EXTENSIONS)}


def describe_model(target: Target) -> dict[str, Any]:
    """Return a model's metadata.

    Args:
        target: The model.

    Returns:
        Fit for JSON.
    """
    metadata = target.metadata
    spec = metadata.spec
    properties = {"task": spec.task.value, "description": spec.description}
    if spec.is_image_model:
        properties |= {"frames": "UINT8, UINT16 or FP32 [N,H,W,3]", "scale": str(spec.scale)}
        for name, param in spec.params.items():
            properties[f"parameter:{name}"] = f"{param.describe_limits()}; default {param.describe_default()}"
    return {
        "name": target.model.name,
        "versions": sorted(target.model.versions, key=int),
        "platform": PLATFORM,
        "inputs": [_describe_tensor(tensor) for tensor in metadata.inputs],
        "outputs": [_describe_tensor(tensor) for tensor in metadata.outputs],
        "properties": properties,
    }


def describe_config(target: Target) -> dict[str, Any]:
    """Return a model's configuration, as the configuration extension has it.

    Args:
        target: The model.

    Returns:
        Fit for JSON.
    """
    serving = target.model.serving
    parameters = {
        "backend": serving.backend.value,
        "precision": serving.precision.value,
        "device": serving.device,
        "frames_together": serving.max_batch_size or FRAMES_TOGETHER,
        "request_class": serving.request_class,
    }
    return {
        "name": target.model.name,
        "platform": PLATFORM,
        "backend": "openvino" if serving.backend is ModelBackend.OPENVINO else "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [_configure_tensor(tensor) for tensor in target.metadata.inputs],
        "output": [_configure_tensor(tensor) for tensor in target.metadata.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(serving.batch_wait_timeout_s * 1e6)},
        "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
    }


def describe_index(
    repository: Repository, status: CacheStatus, broken: Mapping[str, str], *, only_ready: bool = False
) -> list[dict[str, str]]:
    """Return every version of every model with its state.

    Args:
        repository: The models on offer.
        status: State of the cache.
        broken: Error texts of files that cannot be loaded, by source.
        only_ready: Whether to leave out models that are not ready.

    Returns:
        One entry a version.
    """
    states = {entry.key: _STATES.get(entry.state, "UNKNOWN") for entry in status.models if entry.state != "ready"}
    states |= {entry.key: "READY" for entry in status.models if entry.state == "ready"}
    waiting = {entry.key: entry.reason for entry in status.waiting}
    failing = {entry.key: entry.reason for entry in status.failing}
    entries = []
    for model in repository.models():
        for version, source in sorted(model.versions.items(), key=lambda item: int(item[0])):
            key = model.key(version)
            state = states.get(key, "UNAVAILABLE")
            reason = ""
            if model.fault is not None:
                state = "UNAVAILABLE"
                reason = str(ModelLoadError(*model.fault))
            elif key in waiting and state != "READY":
                state = "LOADING"
                reason = waiting[key]
            elif state == "UNAVAILABLE":
                reason = broken.get(source) or failing.get(key, "not loaded; its first request loads it")
            if state == "READY" or not only_ready:
                text = without_folders("; ".join(filter(None, (reason, model.note))))
                entries.append({"name": model.name, "version": version, "state": state, "reason": text})
    return entries


def describe_statistics(
    repository: Repository, statistics: Statistics, status: CacheStatus, target: Target | None
) -> dict[str, Any]:
    """Return the statistics of one model, or of all.

    Args:
        repository: The models on offer.
        statistics: Figures of all replicas.
        status: State of the cache; it has the bytes of each session.
        target: The model; None for all.

    Returns:
        Fit for JSON.
    """
    if target is not None:
        wanted = [(target.model, target.version)]
    else:
        models = repository.models()
        wanted = [(model, version) for model in models for version in sorted(model.versions, key=int)]
    entries = [
        {
            "name": model.name,
            "version": version,
            **statistics.counts.get((model.name, version), ModelCounts()).to_json(),
            "memory_usage": _describe_memory(model, version, status),
        }
        for model, version in wanted
    ]
    return {"model_stats": entries}


def _describe_memory(model: ServedModel, version: str, status: CacheStatus) -> list[dict[str, Any]]:
    key = model.key(version)
    usage = []
    for entry in status.models:
        if entry.key == key:
            gpus = entry.session.get("gpu_ids") or []
            kind = "GPU" if gpus else "CPU"
            device = int(gpus[0]) if gpus and str(gpus[0]).isdigit() else 0
            num_bytes = int(entry.session.get("memory_bytes", entry.bytes))
            usage.append({"type": kind, "id": device, "byte_size": num_bytes})
    return usage


def _describe_tensor(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _configure_tensor(tensor: TensorMetadata) -> dict[str, Any]:
    word = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{word}", "dims": list(tensor.shape)}
