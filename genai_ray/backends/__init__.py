"""The runtimes behind one protocol: open a model on a device and run tensors through it.

``RuntimeSession`` is the protocol of every runtime; ``open_runtime`` chooses the module that implements it. Several
threads may run a session at once, and results do not depend on their number. If the requested device is not available,
that is an error; no other device takes its place. This package knows only tensors; ``genai_ray.session`` knows frames.

``onnx_runtime`` and ``openvino`` are the runtimes, ``quantize`` makes INT8. For GPUs, ``execution`` chooses ONNX
Runtime's providers with the options of ``providers``, ``gpu`` measures bytes, ``cuda`` has memory of the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genai_ray.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    InvalidInputError,
    ResourceExhaustedError,
)
from genai_ray.types import ModelBackend, ModelPrecision

# Set before onnxruntime is imported: its import would write an id of this device, and look up its maker's host.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "RUN_ERRORS",
    "RuntimeOptions",
    "RuntimeSession",
    "TensorInfo",
    "Tensors",
    "check_device",
    "check_feeds",
    "check_precision",
    "open_frames",
    "open_runtime",
    "resolve_device",
]

RUN_ERRORS = (InferenceError, InvalidInputError, ResourceExhaustedError)
"""What ``RuntimeSession.run`` raises."""

Tensors = Mapping[str, npt.NDArray[Any]]
"""Arrays by the name of a graph's input or output."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a loaded graph."""

    name: str
    """Name in the graph."""
    dtype: np.dtype[Any]
    """numpy dtype; ``object`` for strings, ``uint16`` with the same bits for bfloat16."""
    shape: tuple[int | None, ...]
    """Sizes of the axes; None for a free axis. Also empty if the graph does not declare the number of axes."""
    is_tensor: bool = True
    """False for a sequence or a map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How a runtime loads a model."""

    backend: ModelBackend = ModelBackend.ONNX
    """The runtime."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format of OpenVINO's arithmetic; ONNX Runtime computes in that of the weights."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:INDEX``; see ``resolve_device`` for ``auto``."""
    threads: int = 1
    """Threads that one run may use on a CPU. Several runs of one thread are faster than one run of several threads
    (1.10 to 1.16 of the plain script's speed against 1.01), so callers ask for one."""
    num_runs: int = 1
    """Most runs at the same time."""
    max_bytes: int | None = None
    """Most bytes of the runtime's arena on a GPU, or of TensorRT's workspace; None for no limit. On a CPU there is no
    limit."""
    is_exhaustive: bool = False
    """Whether CUDA tries every algorithm of a convolution for each new shape: faster runs, not equal from load to
    load."""
    model_digest: str = ""
    """sha256 of all that the model computes with, by which TensorRT's engines are kept; empty to keep none."""
    shapes: str = ""
    """What the shapes of runs follow from; engines for others are kept apart."""
    folder: Path | None = None
    """Folder of a serialised model's external data; None for a model without."""
    may_compile: Callable[[Mapping[str, tuple[int, ...]]], bool] | None = None
    """Tells whether OpenVINO may compile the model for further shapes, by input, and keep those that it has; None for
    always."""


class RuntimeSession(Protocol):
    """A model on a device."""

    inputs: tuple[TensorInfo, ...]
    """The graph's inputs, in its order."""
    outputs: tuple[TensorInfo, ...]
    """The graph's outputs, in its order."""
    device: str
    """The device that really computes: ``cpu``, ``cuda:0``, ..."""
    computes_in: str
    """The number format of the arithmetic: ``fp32``, or ``as the weights``."""

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Args:
            feeds: One array for each input, of its dtype and shape; may be read-only.
            into: C-contiguous writable arrays that get the outputs without a copy; only these outputs are computed.

        Returns:
            Every output by name, or only the arrays of ``into``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails.
            ResourceExhaustedError: If the memory is not there.
        """
        ...

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        ...


def open_runtime(model: bytes | Path, options: RuntimeOptions = RuntimeOptions()) -> RuntimeSession:
    """Load a model into a runtime.

    Args:
        model: A serialised ONNX model, or the path of one.
        options: Which runtime, and how.

    Returns:
        The loaded session.

    Raises:
        BackendUnavailableError: If the runtime, provider or device is not available, or cannot hold the precision.
        ModelLoadError: If the model is corrupt, or needs something that the runtime does not support.
    """
    if options.backend is not ModelBackend.OPENVINO:
        from genai_ray.backends.onnx_runtime import OnnxRuntimeSession  # noqa: PLC0415

        return OnnxRuntimeSession(model, options)
    try:
        from genai_ray.backends.openvino import OpenVinoSession  # noqa: PLC0415
    except ImportError as exc:
        raise BackendUnavailableError(
            f"backend 'openvino': {exc}", do="Install it: pip install 'genai-ray[openvino]'. Or use backend onnx."
        ) from exc
    return OpenVinoSession(model, options)


def open_frames(
    core: RuntimeSession, before: bytes | Path, after: bytes | Path, output: str | None = None
) -> RuntimeSession:
    """Open a session of frames around the session of a model in ONNX Runtime on the CPU, which several may share.

    Args:
        core: The model; it stays open when the result is closed.
        before: First result of ``genai_ray.graph.frame_ends``, serialised, or its path.
        after: Its second result.
        output: Name of the model's output that ``after`` reads; None for the first one.

    Returns:
        The session.

    Raises:
        ModelLoadError: If ONNX Runtime cannot load a graph.
    """
    from genai_ray.backends.onnx_runtime import FramesSession  # noqa: PLC0415

    return FramesSession(core, before, after, output)


def check_precision(backend: ModelBackend, precision: ModelPrecision) -> None:
    """Check that a backend offers a precision; only its device can tell whether it holds it.

    Args:
        backend: The runtime.
        precision: The number format.

    Raises:
        ConfigError: If it does not.
    """
    offered = [ModelPrecision.FP32, ModelPrecision.FP16]
    if backend is ModelBackend.OPENVINO:
        offered.append(ModelPrecision.BF16)
    if precision not in offered:
        do = "`genai-ray models quantize` makes an INT8 model." if precision is ModelPrecision.INT8 else ""
        raise ConfigError(f"precision {precision.value!r} of backend {backend.value!r}", " or ".join(offered), do)


def check_feeds(inputs: tuple[TensorInfo, ...], feeds: Tensors) -> None:
    """Check feeds against the inputs of a graph.

    Args:
        inputs: The graph's inputs.
        feeds: What a caller gave.

    Raises:
        InvalidInputError: If names, dtypes or shapes do not fit.
    """
    wanted = {tensor.name: tensor for tensor in inputs}
    if set(feeds) != set(wanted):
        raise InvalidInputError(f"inputs {sorted(feeds)}", f"exactly {sorted(wanted)}")
    for name, array in feeds.items():
        info = wanted[name]
        if info.shape == () or not info.is_tensor:
            continue  # the graph may not declare the shape, or it is no tensor: the runtime checks it
        if not isinstance(array, np.ndarray):
            raise InvalidInputError(f"input {name!r} of type {type(array).__name__}", "a numpy array")
        fits = len(array.shape) == len(info.shape) and all(
            b in (None, a) for a, b in zip(array.shape, info.shape, strict=True)
        )
        if not fits or info.dtype not in (object, array.dtype):
            shape = "(" + ", ".join("any" if axis is None else str(axis) for axis in info.shape) + ")"
            raise InvalidInputError(
                f"input {name!r} of shape {array.shape}, {array.dtype}", f"shape {shape}, {info.dtype}"
            )


def check_device(device: str) -> str:
    """Check the name of a device.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.

    Returns:
        It without its index.

    Raises:
        ConfigError: If it is another name.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "gpu") or (index and not index.isdigit()):
        raise ConfigError(f"device {device!r}", "auto, cpu, cuda or cuda:INDEX")
    return kind


def resolve_device(device: str, backend: ModelBackend = ModelBackend.ONNX) -> str:
    """Choose a device for ``auto``, and log it once; return any other device as it is.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        backend: The runtime that will use it.

    Returns:
        ``cpu``, ``cuda``, ``cuda:INDEX``, or the only device of the backend.

    Raises:
        ConfigError: If the device has another name.
        BackendUnavailableError: If the backend does not compute on such a device.
    """
    kind = check_device(device)
    if backend is ModelBackend.OPENVINO and kind not in ("auto", "cpu"):
        raise BackendUnavailableError(
            f"backend 'openvino' on device {device!r}", "auto or cpu", "Use backend onnx for an NVIDIA GPU."
        )
    if device != "auto":
        return device.replace("gpu", "cuda", 1)
    if backend is not ModelBackend.ONNX:
        return "cuda" if backend is ModelBackend.TENSORRT else "cpu"
    from genai_ray.backends.execution import choose_device  # noqa: PLC0415

    return choose_device()
