"""JSON Schemas (2020-12) of the protocol's bodies, for the document at ``/openapi.json``."""

from __future__ import annotations

from genai_ray.serve.engine.inference import DATATYPES
from genai_ray.serve.http.routes import COUNT, NAME, TEXT, Schema, list_of, map_of, record, ref
from genai_ray.serve.oip.requests import MAX_TENSORS
from genai_ray.serve.oip.tensors import MAX_ELEMENTS, MAX_RANK

__all__ = ["SCHEMAS"]

VERSION: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_PARAMETER: Schema = {"type": ["string", "number", "boolean", "null"]}
_OBJECT = ["object", "null"]
"""Null means the same as no field."""


def _open(required: tuple[str, ...], **fields: Schema) -> Schema:
    """Return the schema of an object in a request; its unknown fields are ignored."""
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": fields}


_SHAPE = list_of({"type": "integer", "minimum": 0, "maximum": MAX_ELEMENTS}, maxItems=MAX_RANK)
_FREE_SHAPE = list_of({"type": "integer", "minimum": -1})
_DATATYPE: Schema = {"enum": list(DATATYPES)}
_DURATION = record(count=COUNT, ns=COUNT)

_REQUESTS: dict[str, Schema] = {
    "InferRequest": _open(
        (),
        id={"type": ["string", "null"]},
        parameters=ref("InferParameters"),
        inputs={
            "type": ["array", "null"],
            "items": ref("InferInput"),
            "maxItems": MAX_TENSORS,
            "description": "Every input of the model.",
        },
        outputs={"type": ["array", "null"], "items": ref("InferRequestedOutput"), "maxItems": MAX_TENSORS},
    ),
    "InferParameters": {
        "type": _OBJECT,
        "properties": {
            "timeout": {
                "type": ["number", "null"],
                "minimum": 0,
                "exclusiveMaximum": 2**63,
                "description": "Microseconds; 0 for the server's limit. Then 504, or 503 while the model loads.",
            },
            "frames": {
                "type": ["boolean", "null"],
                "description": "One input [N, H, W, 3] of UINT8, UINT16 or FP32 in, the enhanced frames out.",
            },
            "binary_data_output": {
                "type": ["boolean", "null"],
                "description": "Whether outputs that the request does not name are binary.",
            },
        },
        "additionalProperties": _PARAMETER,
    },
    "InferInput": {
        **_open(
            ("name", "shape", "datatype"),
            name=NAME,
            shape=_SHAPE,
            datatype=_DATATYPE,
            parameters={
                "type": _OBJECT,
                "properties": {"binary_data_size": {"type": ["integer", "null"], "minimum": 0}},
                "additionalProperties": _PARAMETER,
            },
            data={
                "type": "array",
                "description": "Flat and row-major, or nested to the shape; FP16 and BF16 are binary only.",
            },
        ),
        "anyOf": [{"required": ["data"]}, {"required": ["parameters"]}],
        "not": {
            "properties": {"parameters": {"type": "object", "required": ["shared_memory_region"]}},
            "required": ["parameters"],
        },
    },
    "InferRequestedOutput": _open(
        ("name",),
        name=NAME,
        parameters={
            "type": _OBJECT,
            "properties": {"binary_data": {"type": ["boolean", "null"]}},
            "additionalProperties": _PARAMETER,
        },
    ),
    "IndexRequest": _open((), ready={"type": ["boolean", "null"]}, parameters={"type": _OBJECT}),
    "LoadRequest": _open(
        (),
        parameters={
            "type": _OBJECT,
            "maxProperties": 0,
            "description": "None: options and files come from the model repository.",
        },
    ),
    "UnloadRequest": _open((), parameters={"type": _OBJECT}),
}

_PROTOCOL: dict[str, Schema] = {
    "Live": record(live={"const": True}),
    "Ready": record(ready={"const": True}),
    "ModelReady": record(name=NAME, ready={"const": True}),
    "ServerMetadata": record(name={"const": "genai_ray"}, version=NAME, extensions=list_of(NAME)),
    "ModelMetadata": record(
        name=NAME,
        versions=list_of(VERSION, minItems=1),
        platform=NAME,
        inputs=list_of(ref("TensorMetadata")),
        outputs=list_of(ref("TensorMetadata")),
        properties=map_of(TEXT),
    ),
    "TensorMetadata": record(name=NAME, datatype=_DATATYPE, shape=_FREE_SHAPE),
    "ModelConfig": record(
        name=NAME,
        platform=NAME,
        backend=NAME,
        version_policy={"type": "object"},
        max_batch_size=COUNT,
        input=list_of(record(name=NAME, data_type=NAME, dims=_FREE_SHAPE)),
        output=list_of(record(name=NAME, data_type=NAME, dims=_FREE_SHAPE)),
        dynamic_batching=record(max_queue_delay_microseconds=COUNT),
        parameters=map_of(record(string_value=TEXT)),
    ),
    "InferResponse": record(
        {"id": TEXT},
        model_name=NAME,
        model_version=VERSION,
        outputs=list_of(
            record(
                {"data": {"type": "array"}, "parameters": record(binary_data_size=COUNT)},
                name=NAME,
                datatype=_DATATYPE,
                shape=_SHAPE,
            )
        ),
    ),
    "RepositoryIndex": list_of(
        record(
            name=NAME,
            version=VERSION,
            state={"enum": ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
            reason=TEXT,
        )
    ),
    "Statistics": record(
        model_stats=list_of(
            record(
                name=NAME,
                version=VERSION,
                last_inference=COUNT,
                inference_count=COUNT,
                execution_count=COUNT,
                inference_stats=map_of(_DURATION),
                response_stats={"type": "object"},
                batch_stats=list_of(
                    record(batch_size=COUNT, compute_input=_DURATION, compute_infer=_DURATION, compute_output=_DURATION)
                ),
                memory_usage=list_of(record(type={"enum": ["CPU", "GPU"]}, id=COUNT, byte_size=COUNT)),
            )
        )
    ),
}

SCHEMAS: dict[str, Schema] = _REQUESTS | _PROTOCOL
"""Schemas by name."""
