"""What the endpoint knows of a model before it is loaded: its tensors in the protocol's words, and the check of a request against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec
from genai_ray.errors import ConfigError, InvalidInputError, ModelLoadError
from genai_ray.graph import GraphTensor
from genai_ray.inspection import find_model, read_tensors
from genai_ray.serve.engine.inference import DATATYPES, InferRequest, Tensor, TensorMetadata, datatype_of
from genai_ray.types import ModelTask, check_frames

__all__ = ["FRAMES", "ModelMetadata", "check_feeds", "check_frame_request", "read_metadata", "to_outputs"]

Array = npt.NDArray[Any]

FRAMES = "frames"
"""Parameter of a request that gives and takes frames instead of the model's own tensors; also the name of that input."""

OUTPUT = "output"
"""Name of what comes back for frames."""

_WORDS = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
    **{name: name for name in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
}
_NAMED, _LETTERS = 8, 40
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
    """One version of a model."""

    spec: ModelSpec
    """Its spec, found by inspection where nobody wrote it."""
    inputs: tuple[TensorMetadata, ...]
    """Inputs of its graph."""
    outputs: tuple[TensorMetadata, ...]
    """Outputs of its graph that are tensors."""

    @property
    def has_free_first_axis(self) -> bool:
        """Whether the first axis of every input and output is free, so that it can be a batch."""
        return all(
            facts.is_rank_known and facts.shape and facts.shape[0] == -1 for facts in (*self.inputs, *self.outputs)
        )


def read_metadata(model: str) -> ModelMetadata:
    """Read what a model's file says.

    Args:
        model: Id of the catalog, or the path of a file.

    Returns:
        The facts.

    Raises:
        ModelNotFoundError: If the file is not there.
        ModelLoadError: If it or its spec is wrong, it has inputs that the protocol has no word for, or no output that it has one for.
    """
    try:
        spec, path = find_model(model)
        inputs, outputs = read_tensors(spec, path)
    except ConfigError as exc:  # not the fault of whoever asks
        raise ModelLoadError(exc.got, exc.allowed, exc.do) from exc
    except OSError as exc:
        raise ModelLoadError(f"{model} cannot be read: {exc.strerror}") from exc
    tensors = [
        tensor for tensor in outputs if tensor.element in _WORDS
    ] or outputs  # sequences and maps stay with the model
    return ModelMetadata(
        spec, tuple(_to_facts(tensor) for tensor in inputs), tuple(_to_facts(tensor) for tensor in tensors)
    )


def check_feeds(request: InferRequest, facts: ModelMetadata) -> dict[str, Array]:
    """Hold a request for the model's own tensors against the model.

    Args:
        request: What came.
        facts: The model.

    Returns:
        Arrays by name, as ``InferenceSession.run`` takes them.

    Raises:
        InvalidInputError: If an input is missing, unknown, or of a wrong datatype or shape, or an output is unknown.
    """
    _check_outputs(request, [output.name for output in facts.outputs])
    wanted = {tensor.name: tensor for tensor in facts.inputs}
    unknown = [tensor.name for tensor in request.inputs if tensor.name not in wanted]
    missing = sorted(set(wanted) - {tensor.name for tensor in request.inputs})
    if unknown or missing:
        words = f"unexpected inputs {_some(unknown)}, missing inputs {_some(missing)}"
        raise InvalidInputError(words, f"exactly {sorted(wanted)}")
    feeds = {}
    for tensor in request.inputs:
        fact = wanted[tensor.name]
        if tensor.datatype != fact.datatype:
            raise InvalidInputError(f"input {tensor.name!r} of datatype {tensor.datatype}", fact.datatype)
        shape = tensor.array.shape
        if fact.is_rank_known and (
            len(shape) != len(fact.shape) or not all(b in (-1, a) for a, b in zip(shape, fact.shape, strict=True))
        ):
            raise InvalidInputError(
                f"unexpected shape for input {tensor.name!r}: {list(shape)}",
                f"{list(fact.shape)}, where -1 is any size",
            )
        feeds[tensor.name] = _to_text(tensor) if tensor.datatype == "BYTES" else tensor.array
    return feeds


def check_frame_request(request: InferRequest, facts: ModelMetadata) -> tuple[Array, dict[str, float]]:
    """Hold a request for frames against the frame contract and the model's extra inputs.

    Args:
        request: What came, with the parameter ``frames``.
        facts: The model.

    Returns:
        (frames (N, H, W, 3), extra inputs by name).

    Raises:
        InvalidInputError: If the model takes no frames, or frames or parameters are wrong.
    """
    spec = facts.spec
    if not spec.is_image_model:
        raise InvalidInputError(
            f"frames for {spec.model_id}, which is not an image model",
            f"its own inputs, {[fact.name for fact in facts.inputs]}",
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
    params = {}
    for name, value in request.parameters.items():
        if name in _RESERVED or name.startswith("triton_"):
            continue
        param = spec.params.get(name)
        if param is None:
            raise InvalidInputError(f"parameter {name[:40]!r} for {spec.model_id}", f"{sorted(spec.params) or 'none'}")
        if isinstance(value, str | bool) or not param.minimum <= value <= param.maximum:
            raise InvalidInputError(
                f"parameter {name}={value!r:.40} for {spec.model_id}",
                f"a number from {param.minimum} to {param.maximum}",
            )
        params[name] = float(value)
    return frames, params


def to_outputs(arrays: dict[str, Array], facts: Sequence[TensorMetadata], request: InferRequest) -> tuple[Tensor, ...]:
    """Give what was computed the protocol's form.

    Args:
        arrays: Outputs by name.
        facts: What the model says of them; none for frames, whose datatype is that of what came.
        request: Which of them were asked for.

    Returns:
        The tensors, in the order in which they were asked for.
    """
    words = {fact.name: fact.datatype for fact in facts}
    names = list(arrays) if request.outputs is None else [output.name for output in request.outputs]
    return tuple(Tensor(name, words.get(name) or datatype_of(arrays[name]), arrays[name]) for name in names)


def _check_outputs(request: InferRequest, there: list[str]) -> None:
    unknown = [output.name for output in request.outputs or () if output.name not in there]
    if unknown:
        raise InvalidInputError(f"unexpected outputs {_some(unknown)}", f"{there}")


def _some(names: list[str]) -> str:
    """Return names for an error, but not a thousand, nor long ones."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{[name[:_LETTERS] for name in names[:_NAMED]] or 'none'}{more}"


def _to_facts(tensor: GraphTensor) -> TensorMetadata:
    word = _WORDS.get(tensor.element)
    if word is None:
        raise ModelLoadError(
            f"{tensor.name!r} is of type {tensor.element or 'sequence or map'}", f"tensors of {', '.join(DATATYPES)}"
        )
    return TensorMetadata(tensor.name, word, (-1,) if tensor.shape is None else tensor.shape, tensor.shape is not None)


def _to_text(tensor: Tensor) -> Array:
    """ONNX Runtime's strings are text."""
    array = np.empty(tensor.array.size, object)
    try:
        array[:] = [item.decode() for item in tensor.array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidInputError(
            f"input {tensor.name!r}: bytes that are not UTF-8 text", "strings: ONNX has no other"
        ) from exc
    return array.reshape(tensor.array.shape)
