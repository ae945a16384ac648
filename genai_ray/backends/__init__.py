"""The runtimes behind one protocol: open a model on a device and run tensors through it.

``RuntimeSession`` is the protocol of every runtime; ``open_runtime`` chooses the module that implements it. Several
threads may run a session at once, and results do not depend on their number. If the requested device is not available,
that is an error; no other device takes its place. This package knows only tensors; ``genai_ray.session`` knows frames.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genai_ray.errors import BackendUnavailableError, ConfigError
from genai_ray.types import ModelBackend

# Set before onnxruntime is imported: its import would write an id of this device, and look up its maker's host.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["RuntimeSession", "TensorInfo", "Tensors", "open_runtime", "resolve_device"]

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
        """
        ...

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        ...


def open_runtime(
    model: bytes | Path,
    *,
    backend: ModelBackend = ModelBackend.ONNX,
    device: str = "cpu",
    threads: int = 1,
    max_bytes: int | None = None,
    folder: Path | None = None,
) -> RuntimeSession:
    """Load a model into a runtime.

    Args:
        model: A serialised ONNX model, or the path of one.
        backend: The runtime; this version has no ``openvino``.
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``; see ``resolve_device`` for ``auto``.
        threads: Threads that one run may use on a CPU.
        max_bytes: Most bytes of the runtime's arena on a GPU; None for no limit.
        folder: Folder of a serialised model's external data; None for a model without.

    Returns:
        The loaded session.

    Raises:
        BackendUnavailableError: If the runtime, provider or device is not available.
        ModelLoadError: If the model is corrupt, or needs something that the runtime does not support.
    """
    if backend is ModelBackend.OPENVINO:
        raise BackendUnavailableError(
            "backend 'openvino'", "onnx, tensorrt, coreml or directml in this version", "Use backend onnx."
        )
    from genai_ray.backends.onnx_runtime import OnnxRuntimeSession  # noqa: PLC0415

    return OnnxRuntimeSession(
        model, backend=backend, device=device, threads=threads, max_bytes=max_bytes, folder=folder
    )


def resolve_device(device: str, backend: ModelBackend = ModelBackend.ONNX) -> str:
    """Choose a device for ``auto``, and log it once; return any other device as it is.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        backend: The runtime that will use it.

    Returns:
        ``cpu``, ``cuda``, ``cuda:INDEX``, or the only device of the backend.

    Raises:
        ConfigError: If the device has another name.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "gpu") or (index and not index.isdigit()):
        raise ConfigError(f"device {device!r}", "auto, cpu, cuda or cuda:INDEX")
    if device != "auto":
        return device.replace("gpu", "cuda", 1)
    if backend is not ModelBackend.ONNX:
        return "cuda" if backend is ModelBackend.TENSORRT else "cpu"
    from genai_ray.backends.onnx_runtime import choose_device  # noqa: PLC0415

    return choose_device()
