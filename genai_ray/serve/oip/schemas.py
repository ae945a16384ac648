"""JSON Schemas (2020-12) of what the endpoint takes and gives: the components of the document at ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from genai_ray.serve.engine.inference import DATATYPES
from genai_ray.serve.http.routes import Schema, ref
from genai_ray.serve.oip.requests import MAX_TENSORS
from genai_ray.serve.oip.tensors import MAX_ELEMENTS, MAX_RANK
from genai_ray.serve.web.video_job import STATES
from genai_ray.types import ModelBackend, ModelPrecision, ModelTask

__all__ = ["ERROR", "SCHEMAS"]

ERROR = "Error"
"""Name of the schema of every error."""

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
VERSION: Schema = {"type": "string", "pattern": "^[0-9]+$"}
FILE: Schema = {"type": "string", "format": "binary"}
_PARAMETER: Schema = {"type": ["string", "number", "boolean", "null"]}
_OBJECT = ["object", "null"]
"""Null is as if it was not there."""


def _record(optional: Any = None, **fields: Schema) -> Schema:
    """Return the schema of an object that has these fields, those of ``optional`` perhaps, and no other."""
    return {
        "type": "object",
        "required": sorted(fields),
        "properties": {**fields, **(optional or {})},
        "additionalProperties": False,
    }


def _list_of(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _map_of(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _open(required: tuple[str, ...], **fields: Schema) -> Schema:
    """Return the schema of an object of a request, whose unknown fields are ignored."""
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": fields}


_SHAPE = _list_of({"type": "integer", "minimum": 0, "maximum": MAX_ELEMENTS}, maxItems=MAX_RANK)
_FREE_SHAPE = _list_of({"type": "integer", "minimum": -1})
_DATATYPE: Schema = {"enum": list(DATATYPES)}
_DURATION = _record(count=COUNT, ns=COUNT)
_OR_NONE = {"type": ["number", "null"], "minimum": 0}

_REQUESTS: dict[str, Schema] = {
    "InferRequest": _open(
        (),
        id={"type": ["string", "null"]},
        parameters=ref("InferParameters"),
        inputs={
            "type": ["array", "null"],
            "items": ref("InferInput"),
            "maxItems": MAX_TENSORS,
            "description": "All of the model's.",
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
                "description": "Microseconds, 0 for the server's own limit, which it never exceeds: 504 then, 503 where the model is still loading.",
            },
            "frames": {
                "type": ["boolean", "null"],
                "description": "One input [N, H, W, 3] of UINT8, UINT16 or FP32 in, the enhanced frames out.",
            },
            "binary_data_output": {
                "type": ["boolean", "null"],
                "description": "Whether outputs are binary that the request does not name.",
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
    "UploadForm": _open(("file",), file=FILE),
}

_PROTOCOL: dict[str, Schema] = {
    ERROR: _record(error=NAME),
    "Live": _record(live={"const": True}),
    "Ready": _record(ready={"const": True}),
    "ModelReady": _record(name=NAME, ready={"const": True}),
    "ServerMetadata": _record(name={"const": "genai_ray"}, version=NAME, extensions=_list_of(NAME)),
    "ModelMetadata": _record(
        name=NAME,
        versions=_list_of(VERSION, minItems=1),
        platform=NAME,
        inputs=_list_of(ref("TensorMetadata")),
        outputs=_list_of(ref("TensorMetadata")),
        properties=_map_of(TEXT),
    ),
    "TensorMetadata": _record(name=NAME, datatype=_DATATYPE, shape=_FREE_SHAPE),
    "ModelConfig": _record(
        name=NAME,
        platform=NAME,
        backend=NAME,
        version_policy={"type": "object"},
        max_batch_size=COUNT,
        input=_list_of(_record(name=NAME, data_type=NAME, dims=_FREE_SHAPE)),
        output=_list_of(_record(name=NAME, data_type=NAME, dims=_FREE_SHAPE)),
        dynamic_batching=_record(max_queue_delay_microseconds=COUNT),
        parameters=_map_of(_record(string_value=TEXT)),
    ),
    "InferResponse": _record(
        {"id": TEXT},
        model_name=NAME,
        model_version=VERSION,
        outputs=_list_of(
            _record(
                {"data": {"type": "array"}, "parameters": _record(binary_data_size=COUNT)},
                name=NAME,
                datatype=_DATATYPE,
                shape=_SHAPE,
            )
        ),
    ),
    "RepositoryIndex": _list_of(
        _record(
            name=NAME,
            version=VERSION,
            state={"enum": ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
            reason=TEXT,
        )
    ),
    "Statistics": _record(
        model_stats=_list_of(
            _record(
                name=NAME,
                version=VERSION,
                last_inference=COUNT,
                inference_count=COUNT,
                execution_count=COUNT,
                inference_stats=_map_of(_DURATION),
                response_stats={"type": "object"},
                batch_stats=_list_of(
                    _record(
                        batch_size=COUNT, compute_input=_DURATION, compute_infer=_DURATION, compute_output=_DURATION
                    )
                ),
                memory_usage=_list_of(_record(type={"enum": ["CPU", "GPU"]}, id=COUNT, byte_size=COUNT)),
            )
        )
    ),
}

_JOB_FIELDS: dict[str, Schema] = {
    "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "name": NAME,
    "models": _list_of(NAME, minItems=1),
    "created_s": NOT_NEGATIVE,
    "state": {"enum": list(STATES)},
    "stage": TEXT,
    "frames_done": COUNT,
    "frames_total": {"type": ["integer", "null"], "minimum": 0},
    "ended_s": _OR_NONE,
    "error": {"type": ["string", "null"]},
    "report": {"type": ["object", "null"]},
    "links": _record({"result": NAME}, self=NAME),
}

_PEOPLE: dict[str, Schema] = {
    "Models": _record(
        models=_list_of(
            {
                "oneOf": [
                    _record(name=NAME, error=NAME),
                    _record(
                        name=NAME,
                        task={"enum": [task.value for task in ModelTask]},
                        description=TEXT,
                        scale={"type": "integer", "minimum": 1},
                        takes_pictures=FLAG,
                        backend={"enum": [backend.value for backend in ModelBackend]},
                        precision={"enum": [precision.value for precision in ModelPrecision]},
                        params=_map_of({"type": "object"}),
                    ),
                ]
            }
        )
    ),
    "VideoJob": _record(**_JOB_FIELDS),
    "VideoJobRemoved": _record(id=_JOB_FIELDS["id"], state={"const": "removed"}),
    "Cache": _record(
        used_bytes=COUNT,
        budget_bytes=COUNT,
        policy=NAME,
        loads=COUNT,
        evictions=COUNT,
        failures=COUNT,
        hits=COUNT,
        devices=_list_of(
            _record(device=NAME, kind=TEXT, used_bytes=COUNT, free_bytes={"type": "integer"}, budget_bytes=COUNT)
        ),
        sessions=_list_of(
            _record(
                model=NAME,
                backend=NAME,
                precision=NAME,
                placed_on={"type": ["string", "null"]},
                state=NAME,
                bytes=COUNT,
                pinned=FLAG,
                leased=FLAG,
                hits=COUNT,
                queue=COUNT,
                idle_s=NUMBER,
                load_s=_OR_NONE,
                avg_latency_ms=_OR_NONE,
            )
        ),
    ),
}

SCHEMAS: dict[str, Schema] = _REQUESTS | _PROTOCOL | _PEOPLE
"""Components by name."""
