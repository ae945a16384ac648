"""What a model's file says, read once for each state of the file; and the check of a request against it."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec, ParamValue
from genai_ray.cluster import SessionRequest
from genai_ray.errors import ConfigError, InvalidInputError, ModelLoadError, ResourceExhaustedError, VideoError
from genai_ray.graph import GraphTensor
from genai_ray.inspection import Hold, find_model, forget_failures, read_tensors
from genai_ray.serve.engine.inference import DATATYPES, InferRequest, Tensor, TensorMetadata, datatype_of
from genai_ray.serve.engine.limits import RETRY_LATER
from genai_ray.serve.engine.repository import ServedModel
from genai_ray.types import ModelTask, check_frames
from genai_ray.video import is_picture_text, parse_picture_text

__all__ = [
    "FRAMES",
    "OUTPUT",
    "ModelMetadata",
    "ModelMetadataCache",
    "Target",
    "check_feeds",
    "check_frame_request",
    "read_metadata",
    "to_outputs",
]

Array = npt.NDArray[Any]

FRAMES = "frames"
"""Parameter of a request that sends and gets frames instead of the model's own tensors; also the name of that input."""

OUTPUT = "output"
"""Name of the output of a request for frames."""

BROKEN_FOR_S = 60.0
"""A file that could not be read as a model is not read again for this long, unless it changes."""

_DATATYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
    **{name: name for name in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
}
_MAX_NAMES = 8
_MAX_NAME_LETTERS = 40
_FRAME_TYPES = ("UINT8", "UINT16", "FP32")
_RESERVED = {
    FRAMES,
    "binary_data_output",
    "timeout",
    "priority",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "headers",
}


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the file of one version of a model says."""

    spec: ModelSpec
    """Its spec, found by inspection if nobody wrote one."""
    inputs: tuple[TensorMetadata, ...]
    """Inputs of its graph."""
    outputs: tuple[TensorMetadata, ...]
    """Outputs of its graph that are tensors."""

    @property
    def has_free_first_axis(self) -> bool:
        """Whether the first axis of every input and output is free, so that it can be a batch."""
        return all(
            tensor.is_rank_known and tensor.shape and tensor.shape[0] == -1 for tensor in (*self.inputs, *self.outputs)
        )


@dataclass(frozen=True, slots=True)
class Target:
    """The version of a model that a request is for."""

    model: ServedModel
    """The model."""
    version: str
    """The version, never empty."""
    source: str
    """What the cache is asked for."""
    metadata: ModelMetadata
    """What its file says."""

    @property
    def request(self) -> SessionRequest:
        """Which session computes it."""
        return replace(self.model.request(self.version), model=self.metadata.spec.model_id)


def read_metadata(model: str, hold: Hold = nullcontext) -> ModelMetadata:
    """Read what a model's file says.

    Args:
        model: Id of the catalog, or the path of a file.
        hold: Reserves the memory of an inspection.

    Returns:
        The metadata.

    Raises:
        ModelNotFoundError: If the file is not there.
        ModelLoadError: If file or spec is wrong, or the protocol lacks the type of an input or of all outputs.
        ResourceExhaustedError: As ``hold``.
    """
    try:
        spec, path = find_model(model, hold)
        inputs, outputs = read_tensors(spec, path, hold)
    except ConfigError as exc:  # the fault of the file, not of the request
        raise ModelLoadError(exc.got, exc.allowed, exc.do) from exc
    except OSError as exc:
        raise ModelLoadError(f"{model} cannot be read: {exc.strerror}") from exc
    # Sequences and maps are not offered, unless there is nothing else: then the first of them is the error.
    tensors = [tensor for tensor in outputs if tensor.element in _DATATYPES] or outputs
    return ModelMetadata(spec, tuple(map(_to_metadata, inputs)), tuple(map(_to_metadata, tensors)))


class _Broken(NamedTuple):
    """A file that could not be read as a model."""

    stamp: str
    """State of the file at that time."""
    why: tuple[str, str, str]
    """The fields of the error; the error itself would keep, by its traceback, what was read."""
    until_s: float
    """When this is forgotten, on the monotonic clock."""


class ModelMetadataCache:
    """Reads each state of a file once, for all requests that ask; used from one event loop.

    Args:
        call: Calls a function on a thread.
        on_read: Called on that thread with the source and the metadata of each state of a file that is read.
        hold: Reserves the memory of an inspection.
    """

    def __init__(
        self,
        call: Callable[[Callable[[str], ModelMetadata], str], Awaitable[ModelMetadata]],
        on_read: Callable[[str, ModelMetadata], object] | None = None,
        hold: Hold = nullcontext,
    ) -> None:
        self._call = call
        self._hold = hold
        self._on_read = on_read
        self._known: dict[tuple[str, str], ModelMetadata] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[ModelMetadata]] = {}
        self._broken: dict[str, _Broken] = {}

    async def get(self, source: str, stamp: str, within_s: float) -> ModelMetadata:
        """Return what a file says; it may have to be fetched and read.

        Args:
            source: Id of the catalog, path or URI.
            stamp: Changes whenever the file does.
            within_s: Most seconds to wait.

        Returns:
            The metadata.

        Raises:
            ModelLoadError: If the file is corrupt; that is remembered for a minute, or until the file changes.
            ResourceExhaustedError: If the file was not read in time.
        """
        key = source, stamp
        if key in self._known:
            return self._known[key]
        broken = self._broken.get(source)
        if broken is not None and broken.stamp == stamp and broken.until_s > time.monotonic():
            raise ModelLoadError(*broken.why)
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.ensure_future(self._call(self._read, source))
            task.add_done_callback(functools.partial(self._note_result, key))
        done, _ = await asyncio.wait([task], timeout=within_s)
        if not done:
            name = source.rpartition("/")[2]
            raise ResourceExhaustedError(f"{name} was not read within {within_s:g} s", do=RETRY_LATER)
        return task.result()

    def broken(self) -> dict[str, str]:
        """Return the files that could not be read as models.

        Returns:
            Error texts by source.
        """
        return {source: str(ModelLoadError(*found.why)) for source, found in self._still_broken().items()}

    def keep_broken(self, stamps: Mapping[str, str | None]) -> None:
        """Forget broken files that have changed or are gone.

        Args:
            stamps: Present stamps by source; None for a file whose state is unknown.
        """
        self._broken = {
            source: found
            for source, found in self._broken.items()
            if source in stamps and stamps[source] in (None, found.stamp)
        }

    def forget_broken(self) -> None:
        """Forget all broken files: the next request reads them again."""
        self._broken.clear()
        forget_failures()

    def _still_broken(self) -> dict[str, _Broken]:
        return {source: found for source, found in self._broken.items() if found.until_s > time.monotonic()}

    def _read(self, source: str) -> ModelMetadata:
        metadata = read_metadata(source, self._hold)
        if self._on_read is not None:
            self._on_read(source, metadata)
        return metadata

    def _note_result(self, key: tuple[str, str], task: asyncio.Task[ModelMetadata]) -> None:
        del self._reading[key]
        if task.cancelled():
            return
        source, stamp = key
        error = task.exception()
        if isinstance(error, ModelLoadError) and not isinstance(
            error.__cause__, VideoError
        ):  # a store's failure passes
            why = (error.got, error.allowed, error.do)
            self._broken = self._still_broken() | {source: _Broken(stamp, why, time.monotonic() + BROKEN_FOR_S)}
        elif error is None:
            self._broken.pop(source, None)
            others = {other: metadata for other, metadata in self._known.items() if other[0] != source}
            self._known = others | {key: task.result()}


def check_feeds(request: InferRequest, metadata: ModelMetadata) -> dict[str, Array]:
    """Check a request for the model's own tensors against the model.

    Args:
        request: The request.
        metadata: Of the model.

    Returns:
        Arrays by name, as ``InferenceSession.run`` takes them.

    Raises:
        InvalidInputError: If an input is missing, unknown, or has a wrong datatype or shape, or an output is unknown.
    """
    _check_outputs(request, [output.name for output in metadata.outputs])
    wanted = {tensor.name: tensor for tensor in metadata.inputs}
    unknown = [tensor.name for tensor in request.inputs if tensor.name not in wanted]
    missing = sorted(set(wanted) - {tensor.name for tensor in request.inputs})
    if unknown or missing:
        words = f"unexpected inputs {_list_some(unknown)}, missing inputs {_list_some(missing)}"
        raise InvalidInputError(words, f"exactly {sorted(wanted)}")
    feeds = {}
    for tensor in request.inputs:
        known = wanted[tensor.name]
        if tensor.datatype != known.datatype:
            raise InvalidInputError(f"input {tensor.name!r} of datatype {tensor.datatype}", known.datatype)
        if known.is_rank_known and not _fits(tensor.array.shape, known.shape):
            raise InvalidInputError(
                f"unexpected shape for input {tensor.name!r}: {list(tensor.array.shape)}",
                f"{list(known.shape)}, where -1 is any size",
            )
        feeds[tensor.name] = _to_text(tensor) if tensor.datatype == "BYTES" else tensor.array
    return feeds


def check_frame_request(request: InferRequest, metadata: ModelMetadata) -> tuple[Array, dict[str, ParamValue]]:
    """Check a request for frames against the frame contract and the model's extra inputs.

    Args:
        request: The request, with the parameter ``frames``.
        metadata: Of the model.

    Returns:
        (frames (N, H, W, 3), extra inputs by name).

    Raises:
        InvalidInputError: If the model takes no frames, or frames or parameters are wrong.
    """
    spec = metadata.spec
    if not spec.is_image_model:
        raise InvalidInputError(
            f"frames for {spec.model_id}, which is not an image model",
            f"its own inputs, {[tensor.name for tensor in metadata.inputs]}",
        )
    _check_outputs(request, [OUTPUT])
    if len(request.inputs) != 1 or request.inputs[0].datatype not in _FRAME_TYPES:
        sent = [f"{tensor.name} {tensor.datatype}" for tensor in request.inputs]
        raise InvalidInputError(
            f"inputs {sent} with the parameter {FRAMES}",
            f"one input of {', '.join(_FRAME_TYPES)}, shape [N, H, W, 3], RGB",
        )
    frames = check_frames(request.inputs[0].array)
    least = 2 if spec.task is ModelTask.INTERPOLATION else 1
    if len(frames) < least:
        raise InvalidInputError(f"{len(frames)} frames for {spec.model_id}", f"{least} or more")
    return frames, _check_params(request, spec)


def _check_params(request: InferRequest, spec: ModelSpec) -> dict[str, ParamValue]:
    params: dict[str, ParamValue] = {}
    for name, value in request.parameters.items():
        if name in _RESERVED or name.startswith("triton_"):
            continue
        param = spec.params.get(name)
        if param is None:
            raise InvalidInputError(f"parameter {name[:40]!r} for {spec.model_id}", f"{sorted(spec.params) or 'none'}")
        if param.picture is not None:
            sent: Any = parse_picture_text(value) if is_picture_text(value) else value
            params[name] = param.read(name, sent)
            continue
        if param.size is not None:
            given: Any = value.split(",") if isinstance(value, str) and not is_picture_text(value) else value
            params[name] = param.read(name, given)
            continue
        if isinstance(value, str | bool) or not abs(value) <= sys.float_info.max:
            got = f"parameter {name}={value!r:.40} for {spec.model_id}"
            raise InvalidInputError(got, f"a number {param.describe_limits()}")
        params[name] = param.read(name, float(value))
    missing = [name for name in spec.picture_params if name not in params]
    if missing:
        raise InvalidInputError(
            f"no parameter {missing[0]!r} for {spec.model_id}",
            f"{spec.params[missing[0]].describe_limits()}, as data:image/png;base64,...",
            f"Over /v1/enhance and /v1/videos, send it as the file param.{missing[0]} of a form.",
        )
    return params


def to_outputs(
    arrays: dict[str, Array], tensors: Sequence[TensorMetadata], request: InferRequest
) -> tuple[Tensor, ...]:
    """Turn results into the outputs of a response.

    Args:
        arrays: Results by name.
        tensors: Outputs of the model; none for frames, whose datatype is that of the request.
        request: Which results it asks for.

    Returns:
        The outputs, in the order of the request.
    """
    datatypes = {tensor.name: tensor.datatype for tensor in tensors}
    names = list(arrays) if request.outputs is None else [output.name for output in request.outputs]
    return tuple(Tensor(name, datatypes.get(name) or datatype_of(arrays[name]), arrays[name]) for name in names)


def _check_outputs(request: InferRequest, known: list[str]) -> None:
    unknown = [output.name for output in request.outputs or () if output.name not in known]
    if unknown:
        raise InvalidInputError(f"unexpected outputs {_list_some(unknown)}", f"{known}")


def _fits(shape: tuple[int, ...], known: tuple[int, ...]) -> bool:
    return len(shape) == len(known) and all(wanted in (-1, size) for size, wanted in zip(shape, known, strict=True))


def _list_some(names: list[str]) -> str:
    """Return names for an error text; a client may have sent a thousand, and long ones."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{[name[:_MAX_NAME_LETTERS] for name in names[:_MAX_NAMES]] or 'none'}{more}"


def _to_metadata(tensor: GraphTensor) -> TensorMetadata:
    datatype = _DATATYPES.get(tensor.element)
    if datatype is None:
        raise ModelLoadError(
            f"{tensor.name!r} is of type {tensor.element or 'sequence or map'}", f"tensors of {', '.join(DATATYPES)}"
        )
    is_rank_known = tensor.shape is not None
    return TensorMetadata(tensor.name, datatype, (-1,) if tensor.shape is None else tensor.shape, is_rank_known)


def _to_text(tensor: Tensor) -> Array:
    """Decode strings: ONNX Runtime takes only text."""
    array = np.empty(tensor.array.size, object)
    try:
        array[:] = [item.decode() for item in tensor.array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidInputError(
            f"input {tensor.name!r}: bytes that are not UTF-8 text", "strings: ONNX has no other"
        ) from exc
    return array.reshape(tensor.array.shape)
