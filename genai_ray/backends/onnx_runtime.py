"""ONNX Runtime: the reference backend, with CPU, CUDA, TensorRT, CoreML and DirectML; and its FP16 converter.

ONNX Runtime falls back to the CPU without an exception if a provider's libraries are missing, or for nodes that a
provider lacks; this module compares what it chose with what was requested.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from genai_ray.backends import RuntimeOptions, RuntimeSession, TensorInfo, Tensors, check_feeds
from genai_ray.backends.cuda import HostBlocks, allocate_pinned, run_staged
from genai_ray.backends.execution import Providers, build_providers, check_placement, say_what_is_missing
from genai_ray.backends.providers import CPU, CUDA, TENSORRT
from genai_ray.errors import (
    BackendUnavailableError,
    GenAIRayError,
    InferenceError,
    InvalidInputError,
    ModelLoadError,
    ResourceExhaustedError,
)
from genai_ray.files import temporary_folder
from genai_ray.graph import Graph, sort_nodes

__all__ = ["FramesSession", "OnnxRuntimeSession", "to_fp16"]

_BAD_MODEL = (
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
)
_BAD_RUN = (ort_errors.Fail, ort_errors.RuntimeException, ort_errors.EPFail, ort_errors.NotImplemented, RuntimeError)
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(bfloat16)": np.uint16,
}
_NO_MEMORY = (
    *("failed to allocate memory", "is smaller than requested bytes"),  # an arena that has reached its limit
    *("out of memory", "alloc_failed", "allocation_failed"),  # CUDA, cuBLAS, cuDNN
    *("outofmemory", "could not be allocated"),  # TensorRT
    "bad_alloc",  # the C++ library
)
"""Words of a lack of memory, in small letters."""
_BFLOAT16 = 16
"""ONNX's number for bfloat16. numpy has no such type: arrays hold the same bits as uint16."""


class OnnxRuntimeSession:
    """One model in ONNX Runtime; a ``RuntimeSession``.

    Args:
        model: A serialised ONNX model, or the path of one.
        options: How; ``backend`` is the provider: ``onnx`` means CUDA on a CUDA device, and the CPU provider otherwise.
        blocks: Host memory that runs with ``into`` go through; None for page-locked memory on a GPU, and for none on a
            CPU, which reads and writes the arrays themselves.

    Raises:
        BackendUnavailableError: If the provider is not available, or would leave the work to the CPU.
        ModelLoadError: If the model cannot be loaded.
        ResourceExhaustedError: If the memory is not there.
    """

    def __init__(self, model: bytes | Path, options: RuntimeOptions, blocks: HostBlocks | None = None) -> None:
        device = options.device
        providers = build_providers(options)
        wanted = providers[0][0]
        is_gpu = wanted in (CUDA, TENSORRT)
        settings = _build_settings(options.threads, is_gpu=is_gpu)
        if options.folder is not None:
            settings.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(options.folder)
            )
        self._session: ort.InferenceSession | None = _create(model, settings, providers)
        got = self._session.get_providers()[0]
        if wanted != got:
            self._session = None
            raise BackendUnavailableError(f"ONNX Runtime chose {got}, not {wanted}", do=say_what_is_missing(wanted))
        if is_gpu:
            check_placement(wanted, self._session.get_provider_graph_assignment_info())
        is_cpu = wanted == CPU
        self._blocks = blocks
        if is_gpu and blocks is None:
            self._blocks = HostBlocks(functools.partial(allocate_pinned, index=int(device.partition(":")[2] or 0)))
        self.device = "cpu" if is_cpu else (device if ":" in device else f"{device}:0")
        self.computes_in = "fp32" if is_cpu else "as the weights"
        nodes = (*self._session.get_inputs(), *self._session.get_outputs())
        self._bfloat16 = {node.name for node in nodes if node.type == "tensor(bfloat16)"}
        self.inputs = tuple(_describe(node) for node in self._session.get_inputs())
        self.outputs = tuple(_describe(node) for node in self._session.get_outputs())

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once; see ``RuntimeSession.run``.

        Args:
            feeds: One array for each input, of its dtype and shape; may be read-only.
            into: C-contiguous writable arrays that get the outputs without a copy.

        Returns:
            Every output by name, or only the arrays of ``into``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails, or the session is closed.
            ResourceExhaustedError: If the run needs more memory than there is, or than the session may take.
        """
        session = self._session
        if session is None:
            raise InferenceError("a run on a closed session", do="Open a new one.")
        check_feeds(self.inputs, feeds)
        with _run_errors():
            names = [tensor.name for tensor in self.outputs]
            if self._bfloat16:
                return self._run_with_bfloat16(session, names, feeds)
            if into is None:
                return dict(zip(names, session.run(names, dict(feeds)), strict=True))
            if self._blocks is not None:
                run_staged(session, feeds, into, self._blocks)
                return dict(into)
            binding = session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, array in into.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return dict(into)

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        self._session = None
        if self._blocks is not None:
            self._blocks.close()

    def _run_with_bfloat16(
        self, session: ort.InferenceSession, names: list[str], feeds: Tensors
    ) -> dict[str, npt.NDArray[Any]]:
        values = {}
        for name, array in feeds.items():
            writable = np.array(array, order="C")  # ONNX Runtime takes no read-only array here
            if name in self._bfloat16:
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(writable, _BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(writable)
        results = dict(zip(names, session.run_with_ort_values(names, values), strict=True))
        return {
            name: _read_bfloat16(value) if name in self._bfloat16 else value.numpy() for name, value in results.items()
        }


class FramesSession:
    """Frames through a model: two small graphs around its session, which others may use as well; a ``RuntimeSession``.

    Args:
        core: The model, on the CPU.
        before: Serialised graph, or its path, whose outputs are the model's inputs, in their order.
        after: The graph whose first input is an output of the model; its others are inputs of ``before``.
        output: Name of that output; None for the first one.

    Raises:
        ModelLoadError: If a graph cannot be loaded.
    """

    def __init__(
        self, core: RuntimeSession, before: bytes | Path, after: bytes | Path, output: str | None = None
    ) -> None:
        if not isinstance(core, OnnxRuntimeSession) or core.device != "cpu":
            raise TypeError(f"a session on {core.device}: only ONNX Runtime on the CPU is shared")
        self._core: OnnxRuntimeSession | None = core
        self._output = output or core.outputs[0].name
        self._before, self._after = (_create(model, _build_settings(1), [(CPU, {})]) for model in (before, after))
        self.device, self.computes_in = core.device, core.computes_in
        self.inputs = tuple(_describe(node) for node in self._before.get_inputs())
        self.outputs = tuple(_describe(node) for node in self._after.get_outputs())
        self._made = [node.name for node in self._before.get_outputs()]
        self._result, *sized = (node.name for node in self._after.get_inputs())
        self._sized = frozenset(sized)

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once; see ``RuntimeSession.run``.

        Args:
            feeds: One array for each input, of its dtype and shape; may be read-only.
            into: C-contiguous writable arrays that get the outputs without a copy.

        Returns:
            Every output by name, or only the arrays of ``into``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails, or the session is closed.
            ResourceExhaustedError: If the memory is not there.
        """
        core = None if self._core is None else self._core._session
        if core is None:
            raise InferenceError("a run on a closed session", do="Open a new one.")
        check_feeds(self.inputs, feeds)
        with _run_errors():
            made = _run_bound(_bind(self._before, feeds), self._before, self._made)
            values = dict(zip((node.name for node in core.get_inputs()), made, strict=True))
            del made  # each tensor goes back to its arena as soon as it was read
            binding = _bind(core, {}, values)
            values.clear()
            (result,) = _run_bound(binding, core, [self._output])
            del binding
            binding = _bind(self._after, {name: feeds[name] for name in self._sized}, {self._result: result})
            if into is None:
                return {"output": _run_bound(binding, self._after, [self.outputs[0].name])[0].numpy()}
            for name, array in into.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._after.run_with_iobinding(binding)
            return dict(into)

    def close(self) -> None:
        """Release the two graphs, not the model; a second call does nothing."""
        self._core = None


def _bind(
    session: ort.InferenceSession, arrays: Tensors, values: Mapping[str, ort.OrtValue] | None = None
) -> ort.IOBinding:
    """Bind inputs without a copy; arrays may be read-only."""
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, value in (values or {}).items():
        binding.bind_ortvalue_input(name, value)
    return binding


def _run_bound(binding: ort.IOBinding, session: ort.InferenceSession, names: Sequence[str]) -> list[ort.OrtValue]:
    """Run once; the outputs stay in the memory of the runtime."""
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    outputs: list[ort.OrtValue] = binding.get_outputs()
    return outputs


def to_fp16(model: Graph, in_fp32: Collection[str] = ()) -> Graph:
    """Convert weights and arithmetic to FP16; inputs and outputs stay in FP32.

    Args:
        model: A model in FP32; not changed.
        in_fp32: Operators that stay in FP32.

    Returns:
        The converted model.

    Raises:
        ModelLoadError: If the converter fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - it changes sys.path

    copy = type(model)()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it reports every weight that it rounds up to 1e-7
            # Its own list of blocked operators breaks RIFE (Resize, GridSample between casts); without it RIFE keeps 69
            # dB.
            converted: Graph = convert_float_to_float16(copy, keep_io_types=True, op_block_list=list(in_fp32))
    except (ValueError, RuntimeError, KeyError, TypeError) as exc:
        raise ModelLoadError(f"the model cannot be converted to fp16: {exc}", do="Use fp32.") from exc
    sort_nodes(converted)
    return converted


def _build_settings(threads: int, *, is_gpu: bool = False) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # With memory patterns, the second run takes up to twice the memory and is not faster.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if is_gpu:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # outside of the arena
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _create(model: bytes | Path, options: ort.SessionOptions, providers: Providers) -> ort.InferenceSession:
    if isinstance(model, bytes):
        # A session built from bytes keeps them (33 % more for a model of 32 MB); a file is read and released.
        with temporary_folder("model") as folder:
            path = folder / "model.onnx"
            path.write_bytes(model)
            try:
                return _create(path, options, providers)
            except ModelLoadError as exc:
                raise ModelLoadError(
                    exc.got.replace(str(path), "the model").replace(path.name, "the model")
                ) from exc.__cause__
    try:
        return ort.InferenceSession(str(model), options, providers=providers)
    except (*_BAD_MODEL, *_BAD_RUN, ort_errors.InvalidArgument) as exc:
        _check_memory(exc, f"loading {model.name}")
        raise ModelLoadError(f"ONNX Runtime cannot load {model.name}: {_first_line(exc)}") from exc


@contextlib.contextmanager
def _run_errors() -> Iterator[None]:
    try:
        yield
    except GenAIRayError:
        raise
    except (ort_errors.InvalidArgument, ValueError) as exc:
        raise InvalidInputError(f"ONNX Runtime refused the input: {_first_line(exc)}") from exc
    except (*_BAD_RUN, MemoryError) as exc:
        _check_memory(exc, "a run")
        raise InferenceError(f"ONNX Runtime failed: {_first_line(exc)}") from exc


def _check_memory(exc: Exception, what: str) -> None:
    """Raise ``ResourceExhaustedError`` if ONNX Runtime failed for want of memory."""
    if isinstance(exc, MemoryError) or any(word in str(exc).lower() for word in _NO_MEMORY):
        raise ResourceExhaustedError(
            f"{what} needs more memory than ONNX Runtime may take: {_first_line(exc)}",
            do="Give the model more bytes, or smaller runs.",
        ) from exc


def _describe(node: ort.NodeArg) -> TensorInfo:
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorInfo(node.name, np.dtype(_DTYPES.get(node.type, object)), shape, node.type.startswith("tensor("))


def _read_bfloat16(value: ort.OrtValue) -> npt.NDArray[np.uint16]:
    shape = value.shape()
    count = int(np.prod(shape))
    bits = (
        np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
        if count
        else np.empty(0, np.uint16)
    )
    return bits.reshape(shape).copy()


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
