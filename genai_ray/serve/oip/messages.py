"""The messages of the protocol over gRPC, built from their field numbers, in a pool of their own.

Generated modules would claim the names of package ``inference`` for the whole process, and clash with a client's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from genai_ray.errors import InvalidInputError
from genai_ray.serve.oip.requests import MAX_TENSORS

__all__ = ["HEALTH", "METHODS", "POOL", "SERVICE", "STREAM", "count_typed_bytes", "message_class"]

SERVICE = "inference.GRPCInferenceService"
"""Full name of the service."""

HEALTH = "grpc.health.v1.Health"
"""Full name of the service that probes ask."""

METHODS = {
    name: (f"{name}Request", f"{name}Response")
    for name in (
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelConfig",
        "ModelStatistics",
    )
} | {
    name: (f"{name}Request", f"{name}Response")
    for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
}
"""Requests and responses of its methods, all of one message each."""

STREAM = "ModelStreamInfer"
"""The one method of the service that takes and gives streams: ``ModelInferRequest`` in, ``ModelStreamInferResponse`` out."""

_ONE_OF = "oneof"
_NAME_VERSION = "name=1 string, version=2 string"
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1 bool",
    "ModelReadyRequest": _NAME_VERSION,
    "ModelReadyResponse": "ready=1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name=1 string, version=2 string, extensions=3 repeated string",
    "ModelMetadataRequest": _NAME_VERSION,
    "TensorMetadata": "name=1 string, datatype=2 string, shape=3 repeated int64",
    "ModelMetadataResponse": (
        "name=1 string, versions=2 repeated string, platform=3 string, inputs=4 repeated TensorMetadata, outputs=5 repeated TensorMetadata, "
        "properties=6 map string"
    ),
    "InferParameter": "bool_param=1 oneof bool, int64_param=2 oneof int64, string_param=3 oneof string, double_param=4 oneof double, "
    "uint64_param=5 oneof uint64",
    "InferTensorContents": (
        "bool_contents=1 repeated bool, int_contents=2 repeated int32, int64_contents=3 repeated int64, uint_contents=4 repeated uint32, "
        "uint64_contents=5 repeated uint64, fp32_contents=6 repeated float, fp64_contents=7 repeated double, bytes_contents=8 repeated bytes"
    ),
    "InferTensor": "name=1 string, datatype=2 string, shape=3 repeated int64, parameters=4 map InferParameter, contents=5 InferTensorContents",
    "InferRequestedOutput": "name=1 string, parameters=2 map InferParameter",
    "ModelInferRequest": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 map InferParameter, inputs=5 repeated InferTensor, "
        "outputs=6 repeated InferRequestedOutput, raw_input_contents=7 repeated bytes"
    ),
    "ModelInferResponse": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 map InferParameter, outputs=5 repeated InferTensor, "
        "raw_output_contents=6 repeated bytes"
    ),
    "ModelStreamInferResponse": "error_message=1 string, infer_response=2 ModelInferResponse",
    "ModelConfigRequest": _NAME_VERSION,
    "ConfigInput": "name=1 string, data_type=2 DataType, dims=4 repeated int64",
    "ConfigOutput": "name=1 string, data_type=2 DataType, dims=3 repeated int64",
    "ConfigBatching": "max_queue_delay_microseconds=2 uint64",
    "ConfigParameter": "string_value=1 string",
    "ModelConfig": (
        "name=1 string, platform=2 string, backend=17 string, max_batch_size=4 int32, input=5 repeated ConfigInput, output=6 repeated ConfigOutput, "
        "dynamic_batching=11 ConfigBatching, parameters=14 map ConfigParameter"
    ),
    "ModelConfigResponse": "config=1 ModelConfig",
    "ModelStatisticsRequest": _NAME_VERSION,
    "StatisticDuration": "count=1 uint64, ns=2 uint64",
    "InferStatistics": (
        "success=1 StatisticDuration, fail=2 StatisticDuration, queue=3 StatisticDuration, compute_input=4 StatisticDuration, "
        "compute_infer=5 StatisticDuration, compute_output=6 StatisticDuration, cache_hit=7 StatisticDuration, cache_miss=8 StatisticDuration"
    ),
    "InferBatchStatistics": "batch_size=1 uint64, compute_input=2 StatisticDuration, compute_infer=3 StatisticDuration, compute_output=4 StatisticDuration",
    "MemoryUsage": "type=1 string, id=2 int64, byte_size=3 uint64",
    "ModelStatistics": (
        "name=1 string, version=2 string, last_inference=3 uint64, inference_count=4 uint64, execution_count=5 uint64, inference_stats=6 InferStatistics, "
        "batch_stats=7 repeated InferBatchStatistics, memory_usage=8 repeated MemoryUsage"
    ),
    "ModelStatisticsResponse": "model_stats=1 repeated ModelStatistics",
    "RepositoryIndexRequest": "repository_name=1 string, ready=2 bool",
    "ModelIndex": "name=1 string, version=2 string, state=3 string, reason=4 string",
    "RepositoryIndexResponse": "models=1 repeated ModelIndex",
    "ModelRepositoryParameter": "bool_param=1 oneof bool, int64_param=2 oneof int64, string_param=3 oneof string, bytes_param=4 oneof bytes",
    "RepositoryModelLoadRequest": "repository_name=1 string, model_name=2 string, parameters=3 map ModelRepositoryParameter",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name=1 string, model_name=2 string, parameters=3 map ModelRepositoryParameter",
    "RepositoryModelUnloadResponse": "",
}
"""Fields as ``name=number [repeated | map | oneof] type``; a map's keys are strings."""

_DATA_TYPES = (
    "INVALID",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "STRING",
    "BF16",
)
_MAX_FIELDS = 4 * MAX_TENSORS
_RAW_FIELD, _DELIMITED = 7, 2
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def message_class(name: str) -> type[Any]:
    """Return the class of a message.

    Args:
        name: Its name in package ``inference``.

    Returns:
        A class of protobuf's.
    """
    return _CLASSES[name]


def count_typed_bytes(data: bytes) -> int:
    """Count the bytes of a serialised ``ModelInferRequest`` beside its raw tensors: parsed, they may take twenty times as many.

    Args:
        data: What came; it need not be such a message.

    Returns:
        Their number.

    Raises:
        InvalidInputError: If it has more fields than inputs, outputs and parameters may be.
    """
    size, position, fields = len(data), 0, 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 != _DELIMITED:  # no field of this message: all that follows counts
            break
        length, position = _read_varint(data, position)
        if tag >> 3 == _RAW_FIELD:
            size -= max(min(length, len(data) - position), 0)
        position += length
        fields += 1
        if fields > _MAX_FIELDS:
            raise InvalidInputError(
                f"a request with more than {_MAX_FIELDS} inputs, outputs and parameters",
                f"at most {MAX_TENSORS} inputs and outputs",
            )
    return size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    number = shift = 0
    while position < len(data):
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128 or shift > 63:
            break
    return number, position


def _build() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="genai_ray/inference.proto", package="inference", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for number, word in enumerate(_DATA_TYPES):
        kinds.value.add(name=f"TYPE_{word}", number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split(", ") if fields else ():
            _add_field(message, *text.replace("=", " ").split())
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name, (asked, told) in METHODS.items():
        service.method.add(name=name, input_type=f".inference.{asked}", output_type=f".inference.{told}")
    stream = service.method.add(
        name=STREAM, input_type=".inference.ModelInferRequest", output_type=".inference.ModelStreamInferResponse"
    )
    stream.client_streaming = stream.server_streaming = True
    POOL.Add(file)
    POOL.Add(_describe_health())
    names = {f"inference.{name}" for name in _MESSAGES} | {
        f"grpc.health.v1.HealthCheck{word}" for word in ("Request", "Response")
    }
    return {
        name.rpartition(".")[2]: message_factory.GetMessageClass(POOL.FindMessageTypeByName(name)) for name in names
    }


def _describe_health() -> descriptor_pb2.FileDescriptorProto:
    package, _, name = HEALTH.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(name="grpc/health/v1/health.proto", package=package, syntax="proto3")
    _add_field(file.message_type.add(name="HealthCheckRequest"), "service", "1", "string")
    response = file.message_type.add(name="HealthCheckResponse")
    states = response.enum_type.add(name="ServingStatus")
    for number, word in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        states.value.add(name=word, number=number)
    kind = f".{package}.HealthCheckResponse.ServingStatus"
    response.field.add(name="status", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_ENUM, type_name=kind)
    service = file.service.add(name=name)
    for method in ("Check", "Watch"):
        ends = {"input_type": f".{package}.HealthCheckRequest", "output_type": f".{package}.HealthCheckResponse"}
        service.method.add(name=method, server_streaming=method == "Watch", **ends)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: str, *words: str) -> None:
    *label, kind = words
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if label == ["map"]:
        entry = message.nested_type.add(name="".join(word.title() for word in name.split("_")) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), kind)
        field.label, field.type, field.type_name = (
            _Field.LABEL_REPEATED,
            _Field.TYPE_MESSAGE,
            f".inference.{message.name}.{entry.name}",
        )
        return
    if label == ["repeated"]:
        field.label = _Field.LABEL_REPEATED
    elif label == [_ONE_OF]:
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    _set_type(field, kind)


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".inference.{kind}"


POOL = descriptor_pool.DescriptorPool()
"""Descriptors of the services and their messages."""

_CLASSES = _build()
