"""What the endpoint says of itself and its models, in the protocol's words; fit for JSON, and for gRPC's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_ray.cluster import CacheStatus
from genai_ray.errors import ModelLoadError
from genai_ray.serve.engine.batching import FRAMES_TOGETHER
from genai_ray.serve.engine.error_text import without_folders
from genai_ray.serve.engine.inference import TensorMetadata
from genai_ray.serve.engine.model_metadata import Target
from genai_ray.serve.engine.repository import Repository, ServedModel
from genai_ray.serve.engine.statistics import ModelCounts, Statistics

__all__ = [
    "EXTENSIONS",
    "describe_config",
    "describe_index",
    "describe_model",
    "describe_server",
    "describe_statistics",
]

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""Extensions of the protocol that are here."""

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
        target: Which.

    Returns:
        Fit for JSON.
    """
    facts, spec = target.metadata, target.metadata.spec
    properties = {"task": spec.task.value, "description": spec.description}
    if spec.is_image_model:
        properties |= {"frames": "UINT8, UINT16 or FP32 [N,H,W,3]", "scale": str(spec.scale)}
        properties |= {
            f"parameter:{name}": f"{param.minimum} to {param.maximum}, default {param.default}"
            for name, param in spec.params.items()
        }
    return {
        "name": target.model.name,
        "versions": sorted(target.model.versions, key=int),
        "platform": PLATFORM,
        "inputs": [_tensor(fact) for fact in facts.inputs],
        "outputs": [_tensor(fact) for fact in facts.outputs],
        "properties": properties,
    }


def describe_config(target: Target) -> dict[str, Any]:
    """Return a model's configuration, as the extension has it.

    Args:
        target: Which.

    Returns:
        Fit for JSON.
    """
    serving = target.model.serving
    return {
        "name": target.model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [_config_tensor(fact) for fact in target.metadata.inputs],
        "output": [_config_tensor(fact) for fact in target.metadata.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(serving.batch_wait_timeout_s * 1e6)},
        "parameters": {
            name: {"string_value": str(value)}
            for name, value in {
                "backend": serving.backend.value,
                "precision": serving.precision.value,
                "device": serving.device,
                "frames_together": serving.max_batch_size or FRAMES_TOGETHER,
                "request_class": serving.request_class,
            }.items()
        },
    }


def describe_index(
    repository: Repository, status: CacheStatus, broken: Mapping[str, str], *, only_ready: bool = False
) -> list[dict[str, str]]:
    """Return every model with its state, loaded or not.

    Args:
        repository: What is offered.
        status: State of the cache.
        broken: Files that are no models the server can load, and why, by source.
        only_ready: Whether models that are not loaded are left out.

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
            state, reason = states.get(key, "UNAVAILABLE"), ""
            if model.fault is not None:
                state, reason = "UNAVAILABLE", str(ModelLoadError(*model.fault))
            elif key in waiting and state != "READY":
                state, reason = "LOADING", waiting[key]
            elif state == "UNAVAILABLE":
                reason = broken.get(source) or failing.get(key, "not loaded; its first request loads it")
            if state == "READY" or not only_ready:
                entries.append(
                    {
                        "name": model.name,
                        "version": version,
                        "state": state,
                        "reason": without_folders("; ".join(filter(None, (reason, model.note)))),
                    }
                )
    return entries


def describe_statistics(
    repository: Repository, tally: Statistics, status: CacheStatus, target: Target | None
) -> dict[str, Any]:
    """Return the statistics of one model, or of all.

    Args:
        repository: What is offered.
        tally: Figures of all replicas.
        status: State of the cache: bytes as the sessions themselves say.
        target: Which model; None for all.

    Returns:
        Fit for JSON.
    """
    wanted = (
        [(target.model, [target.version])]
        if target
        else [(model, sorted(model.versions, key=int)) for model in repository.models()]
    )
    return {
        "model_stats": [
            {
                "name": model.name,
                "version": version,
                **tally.counts.get((model.name, version), ModelCounts()).to_json(),
                "memory_usage": _memory(model, version, status),
            }
            for model, versions in wanted
            for version in versions
        ]
    }


def _memory(model: ServedModel, version: str, status: CacheStatus) -> list[dict[str, Any]]:
    usage, key = [], model.key(version)
    for entry in status.models:
        if entry.key == key:
            gpus = entry.session.get("gpu_ids") or []
            taken = entry.session.get("memory_bytes", entry.bytes)
            usage.append(
                {
                    "type": "GPU" if gpus else "CPU",
                    "id": int(gpus[0]) if gpus and str(gpus[0]).isdigit() else 0,
                    "byte_size": int(taken),
                }
            )
    return usage


def _tensor(fact: TensorMetadata) -> dict[str, Any]:
    return {"name": fact.name, "datatype": fact.datatype, "shape": list(fact.shape)}


def _config_tensor(fact: TensorMetadata) -> dict[str, Any]:
    word = "STRING" if fact.datatype == "BYTES" else fact.datatype
    return {"name": fact.name, "data_type": f"TYPE_{word}", "dims": list(fact.shape)}
