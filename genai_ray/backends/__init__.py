"""The runtimes behind one protocol: open a model on a device and run tensors through it.

``RuntimeSession`` is what every runtime looks like; ``open_runtime`` picks the file that implements it. The contract of all
of them: a session is safe to run from several threads at once, results do not depend on how many, and a device that was
asked for and is not there is an error, never another device. The module knows tensors only; frames are ``genai_ray.session``'s.
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

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # before it is imported: else it writes an id of this device, and asks for its maker's host

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
    """Sizes of the axes; None where free. Also empty if the graph does not say how many axes there are."""
    is_tensor: bool = True
    """False for a sequence or a map."""


class RuntimeSession(Protocol):
    """A model on a device."""

    inputs: tuple[TensorInfo, ...]
    """The graph's inputs, in its order."""
    outputs: tuple[TensorInfo, ...]
    """The graph's outputs, in its order."""
    device: str
    """Where it really computes: ``cpu``, ``cuda:0``, ..."""
    computes_in: str
    """The number format the device really computes in, for weights of ``fp32`` and for others."""

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Args:
            feeds: One array for each input, of its dtype and shape; read-only arrays are fine.
            into: C-contiguous writable arrays that outputs are written into without a copy; only these outputs are computed.

        Returns:
            Every output by name, or just the arrays of ``into``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails.
        """
        ...

    def close(self) -> None:
        """Let go of the model; a second call does nothing."""
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
        backend: The runtime; ``openvino`` is a word of the interface whose runtime is not built in yet.
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``; see ``resolve_device`` for ``auto``.
        threads: Threads that one run may use on a CPU.
        max_bytes: Bytes that the runtime's arena may take on a GPU; None for all.
        folder: Where external data of a serialised model lies; None for a model that has none.

    Returns:
        The loaded session.

    Raises:
        BackendUnavailableError: If runtime, provider or device is not there.
        ModelLoadError: If the model is corrupt or uses what the runtime does not have.
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
    """Turn ``auto`` into a device that is there, and say once in the log which; hand back any other device unchanged.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        backend: The runtime that shall use it.

    Returns:
        ``cpu``, ``cuda``, ``cuda:INDEX``, or the one device of a backend that has only one.

    Raises:
        ConfigError: If the device is none of these words.
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
