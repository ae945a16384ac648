"""OpenVINO on the CPU, in FP32, BF16 or FP16 if the processor has them. Only this module imports ``openvino``.

OpenVINO computes loops wrongly without an error, so models with control flow are refused. In FP32 its results for a
shape that was fixed before compiling differ in single bits from those for a free shape; here every shape is fixed.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# At its import openvino would send an event home by this package, with an id that it writes to the user's home;
# without the package it has a stub that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402

from genai_ray.backends import RuntimeOptions, TensorInfo, Tensors, check_feeds  # noqa: E402
from genai_ray.errors import BackendUnavailableError, InferenceError, InvalidInputError, ModelLoadError  # noqa: E402
from genai_ray.graph import Graph, read_weights, weight_bytes  # noqa: E402
from genai_ray.types import ModelPrecision  # noqa: E402

__all__ = ["MAX_SHAPES", "OpenVinoSession"]

MAX_SHAPES = 8
"""Most shapes that stay compiled; each has its own weights and tensors."""

_HINTS = {
    ModelPrecision.FP32: ("FP32", ov.Type.f32),
    ModelPrecision.BF16: ("BF16", ov.Type.bf16),
    ModelPrecision.FP16: ("FP16", ov.Type.f16),
}
"""OpenVINO's name of the device's ability, and of the hint."""
_MAX_MODEL_BYTES = 2_000_000_000
"""Most bytes of weights: protobuf holds 2 GiB."""
_CONTROL_FLOW = {"If", "Loop", "TensorIterator"}
_DTYPES = {
    **{f"f{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"u{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"i{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    "boolean": np.dtype(np.bool_),
}
"""numpy's types by OpenVINO's names."""

_Key = tuple[tuple[int, ...], ...]


class OpenVinoSession:
    """One model in OpenVINO; a ``RuntimeSession``. It compiles the model for every shape of its inputs.

    Args:
        model: A serialised ONNX model, or the path of one.
        options: How. Before it compiles a further shape it asks ``may_compile``; if the answer is no, it first drops
            those that it has.

    Raises:
        BackendUnavailableError: If the device is not ``cpu``, or does not compute in the precision.
        ModelLoadError: If the model is corrupt, has control flow, or has operators or tensors that OpenVINO lacks.
    """

    def __init__(self, model: bytes | Path, options: RuntimeOptions) -> None:
        if options.device != "cpu":
            raise BackendUnavailableError(f"backend 'openvino' on device {options.device!r}", "cpu")
        _check_precision(options.precision)
        self._options = options
        self._model: ov.Model | None = _read(model, options.folder)
        self.device = "cpu"
        self.computes_in = options.precision.value
        self.inputs = tuple(_describe(port) for port in self._model.inputs)
        self.outputs = tuple(_describe(port) for port in self._model.outputs)
        self._compiled: dict[_Key, ov.CompiledModel] = {}
        self._num_running = 0
        self._changed = threading.Condition()
        self._compiling = threading.Lock()

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once; see ``RuntimeSession.run``. The first run of a shape also compiles the model for it.

        Args:
            feeds: One array for each input, of its dtype and shape; may be read-only.
            into: C-contiguous writable arrays that get the outputs without a copy.

        Returns:
            Every output by name, or only the arrays of ``into``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails, or the session is closed.
        """
        if self._model is None:
            raise InferenceError("a run on a closed session", do="Open a new one.")
        check_feeds(self.inputs, feeds)
        arrays = {name: np.require(array, requirements="C") for name, array in feeds.items()}
        with self._use(arrays) as compiled, _runtime_errors():
            request = compiled.create_infer_request()  # takes 10 us, and keeps none of the arrays after the run
            for name, array in (*arrays.items(), *(into or {}).items()):
                request.set_tensor(name, _share(array))
            request.infer()
            if into is not None:
                return dict(into)
            return {info.name: request.get_output_tensor(index).data.copy() for index, info in enumerate(self.outputs)}

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        with self._changed:
            self._model = None
            self._compiled.clear()

    @contextlib.contextmanager
    def _use(self, arrays: Tensors) -> Iterator[ov.CompiledModel]:
        key = tuple(arrays[info.name].shape for info in self.inputs)
        compiled = self._enter(key)
        if compiled is None:
            with self._compiling:  # one at a time
                compiled = self._enter(key) or self._compile(key)
        try:
            yield compiled
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    def _enter(self, key: _Key) -> ov.CompiledModel | None:
        with self._changed:
            compiled = self._compiled.pop(key, None)
            if compiled is not None:
                self._compiled[key] = compiled  # the last one is the one used last
                self._num_running += 1
            return compiled

    def _compile(self, key: _Key) -> ov.CompiledModel:
        options = self._options
        shapes = {info.name: shape for info, shape in zip(self.inputs, key, strict=True)}
        if self._compiled and options.may_compile is not None and not options.may_compile(shapes):
            with self._changed:
                self._compiled.clear()
                self._changed.wait_for(lambda: self._num_running == 0)  # a run holds what it uses
        model = self._model
        if model is None:
            raise InferenceError("a session was closed during a run", do="Open a new one.")
        fixed = model.clone()
        try:
            fixed.reshape({index: list(shape) for index, shape in enumerate(key)})
        except RuntimeError as exc:
            raise InvalidInputError(f"inputs of shapes {shapes}: {_last_line(exc)}") from exc
        hint = _HINTS[options.precision][1]
        with _runtime_errors():
            compiled = _core().compile_model(
                fixed,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,  # on AMX it takes BF16 without being asked
                    "INFERENCE_NUM_THREADS": options.threads * options.num_runs,
                    "NUM_STREAMS": options.num_runs,
                    "ENABLE_CPU_PINNING": False,  # the sessions of a machine would share its first cores
                },
            )
            got = compiled.get_property("INFERENCE_PRECISION_HINT")
        if got != hint:
            raise InferenceError(f"OpenVINO computes in {got.get_type_name()}, not in {hint.get_type_name()}")
        with self._changed:
            if self._model is not None:
                self._compiled[key] = compiled
            while len(self._compiled) > MAX_SHAPES:
                del self._compiled[next(iter(self._compiled))]
            self._num_running += 1
        return compiled


@functools.cache
def _core() -> ov.Core:
    return ov.Core()


def _check_precision(precision: ModelPrecision) -> None:
    abilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    held = [one.value for one, (ability, _) in _HINTS.items() if ability in abilities]
    if precision.value not in held:
        name = _core().get_property("CPU", "FULL_DEVICE_NAME")
        raise BackendUnavailableError(f"precision {precision.value!r} of OpenVINO on {name}", " or ".join(held))


def _read(model: bytes | Path, folder: Path | None) -> ov.Model:
    name = model.name if isinstance(model, Path) else "the model"
    try:
        if isinstance(model, Path):
            found = _core().read_model(str(model))
        elif folder is None:
            found = _core().read_model(model)
        else:
            found = _core().read_model(_with_weights(model, folder))
    except RuntimeError as exc:
        raise ModelLoadError(f"OpenVINO cannot load {name}: {_last_line(exc)}", do="Use backend onnx.") from exc
    loops = sorted(_CONTROL_FLOW & {node.get_type_name() for node in found.get_ops()})
    if loops:
        raise ModelLoadError(
            f"{name} has control flow ({', '.join(loops)}), which OpenVINO computes wrongly",
            "models without",
            "Use backend onnx.",
        )
    return found


def _with_weights(model: bytes, folder: Path) -> bytes:
    """Put the weights into the model: OpenVINO follows no links to other folders."""
    graph = Graph.FromString(model)
    num_bytes = weight_bytes(graph)
    if num_bytes > _MAX_MODEL_BYTES:
        raise ModelLoadError(
            f"{num_bytes} bytes of weights for OpenVINO", f"at most {_MAX_MODEL_BYTES}", "Use backend onnx."
        )
    read_weights(graph, folder / "model.onnx")
    return graph.SerializeToString()


def _describe(port: Any) -> TensorInfo:
    name = port.any_name
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise ModelLoadError(f"tensor {name!r} of type {kind}", ", ".join(_DTYPES), "Use backend onnx.")
    shape = port.get_partial_shape()
    axes = () if shape.rank.is_dynamic else tuple(axis.get_length() if axis.is_static else None for axis in shape)
    return TensorInfo(name, _DTYPES[kind], axes)


def _share(array: npt.NDArray[Any]) -> ov.Tensor:
    """Wrap an array without a copy; this way a read-only one too."""
    return ov.Tensor(array, ov.Shape(array.shape), ov.Type(array.dtype))


@contextlib.contextmanager
def _runtime_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise InferenceError(f"OpenVINO failed: {_last_line(exc)}") from exc


def _last_line(exc: Exception) -> str:
    """Return the reason: the last line that names no place in OpenVINO's source."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("Exception from", "Check ", "To facilitate"))]
    return (plain or lines or [type(exc).__name__])[-1]
