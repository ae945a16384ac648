"""ONNX Runtime: the reference backend, with CPU, CUDA, TensorRT, CoreML and DirectML; and its FP16 converter.

Only this module imports ``onnxruntime``. ONNX Runtime falls back to the CPU without an exception if a provider's
libraries are missing; this module compares the provider that it chose with the requested one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from genai_ray.backends import RuntimeOptions, RuntimeSession, TensorInfo, Tensors, check_feeds
from genai_ray.errors import BackendUnavailableError, InferenceError, InvalidInputError, ModelLoadError
from genai_ray.files import temporary_folder
from genai_ray.graph import Graph, sort_nodes
from genai_ray.types import ModelBackend

__all__ = ["FramesSession", "OnnxRuntimeSession", "choose_device", "to_fp16"]

_log = logging.getLogger(__name__)

_PROVIDERS = {
    ModelBackend.TENSORRT: "TensorrtExecutionProvider",
    ModelBackend.COREML: "CoreMLExecutionProvider",
    ModelBackend.DIRECTML: "DmlExecutionProvider",
}
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
_BFLOAT16 = 16
"""ONNX's number for bfloat16. numpy has no such type: arrays hold the same bits as uint16."""


class OnnxRuntimeSession:
    """One model in ONNX Runtime; a ``RuntimeSession``.

    Args:
        model: A serialised ONNX model, or the path of one.
        options: How; ``backend`` is the provider: ``onnx`` means CUDA on a CUDA device, and the CPU provider otherwise.

    Raises:
        BackendUnavailableError: If the provider is not available.
        ModelLoadError: If the model cannot be loaded.
    """

    def __init__(self, model: bytes | Path, options: RuntimeOptions) -> None:
        device = options.device
        providers = _build_providers(options.backend, device, options.max_bytes)
        settings = _build_settings(options.threads)
        if options.folder is not None:
            settings.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(options.folder)
            )
        self._session: ort.InferenceSession | None = _create(model, settings, providers)
        wanted = providers[0][0]
        got = self._session.get_providers()[0]
        if wanted != got:
            self._session = None
            raise BackendUnavailableError(f"ONNX Runtime chose {got}, not {wanted}", do=_say_what_is_missing(wanted))
        self._is_cpu = wanted == "CPUExecutionProvider"
        self.device = "cpu" if self._is_cpu else (device if ":" in device else f"{device}:0")
        self.computes_in = "fp32" if self._is_cpu else "as the weights"
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
        self._before, self._after = (
            _create(model, _build_settings(1), [("CPUExecutionProvider", {})]) for model in (before, after)
        )
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


@functools.cache
def choose_device() -> str:
    """Choose the device for ``auto``: the first GPU that ONNX Runtime can use, else the CPU. It is logged once.

    Returns:
        ``cuda:0`` or ``cpu``.
    """
    if _count_gpus() == 0:
        _log.info("device auto: chose cpu (no NVIDIA GPU is visible)")
        return "cpu"
    if "CUDAExecutionProvider" not in ort.get_available_providers() or _missing_library("CUDAExecutionProvider"):
        _log.warning(
            "device auto: chose cpu although a GPU is visible: %s", _say_what_is_missing("CUDAExecutionProvider")
        )
        return "cpu"
    _log.info("device auto: chose cuda:0")
    return "cuda:0"


def to_fp16(model: Graph) -> Graph:
    """Convert weights and arithmetic to FP16; inputs and outputs stay in FP32.

    Args:
        model: A model in FP32; not changed.

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
            converted: Graph = convert_float_to_float16(copy, keep_io_types=True, op_block_list=[])
    except (ValueError, RuntimeError, KeyError, TypeError) as exc:
        raise ModelLoadError(f"the model cannot be converted to fp16: {exc}", do="Use fp32.") from exc
    sort_nodes(converted)
    return converted


def _build_settings(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # With memory patterns, the second run takes up to twice the memory and is not faster.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _build_providers(backend: ModelBackend, device: str, max_bytes: int | None) -> list[tuple[str, dict[str, Any]]]:
    kind, _, index = device.partition(":")
    cpu: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})
    if backend is ModelBackend.ONNX and kind == "cpu":
        return [cpu]
    wanted = "CUDAExecutionProvider" if backend is ModelBackend.ONNX else _PROVIDERS.get(backend)
    if wanted is None:
        raise BackendUnavailableError(
            f"backend {backend.value!r}", "onnx, tensorrt, coreml or directml for ONNX Runtime"
        )
    if backend is ModelBackend.TENSORRT and kind == "cpu":
        raise BackendUnavailableError("backend 'tensorrt' on device 'cpu'", "an NVIDIA GPU", "Use device='cuda'.")
    if wanted not in ort.get_available_providers():
        there = ", ".join(ort.get_available_providers())
        raise BackendUnavailableError(
            f"ONNX Runtime has no {wanted}", f"the providers it has: {there}", _say_what_is_missing(wanted)
        )
    options: dict[str, Any] = {}
    if wanted in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        if _count_gpus() == 0 or _missing_library(wanted):
            raise BackendUnavailableError(f"{wanted} cannot be used on {device!r}", do=_say_what_is_missing(wanted))
        options["device_id"] = int(index or 0)
    if wanted == "CUDAExecutionProvider":
        options |= {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        if max_bytes is not None:
            options["gpu_mem_limit"] = max_bytes
    return [(wanted, options), cpu]


def _create(
    model: bytes | Path, options: ort.SessionOptions, providers: list[tuple[str, dict[str, Any]]]
) -> ort.InferenceSession:
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
        raise ModelLoadError(f"ONNX Runtime cannot load {model.name}: {_first_line(exc)}") from exc


@contextlib.contextmanager
def _run_errors() -> Iterator[None]:
    try:
        yield
    except (ort_errors.InvalidArgument, ValueError) as exc:
        raise InvalidInputError(f"ONNX Runtime refused the input: {_first_line(exc)}") from exc
    except _BAD_RUN as exc:
        raise InferenceError(f"ONNX Runtime failed: {_first_line(exc)}") from exc


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


def _count_gpus() -> int:
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


@functools.cache
def _missing_library(provider: str) -> str | None:
    """Return the loader's reason why a provider's library does not load; None if it loads."""
    name = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}[provider]
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    if not library.exists():  # other names on Windows; the check of get_providers() finds it there
        return None
    if _count_gpus():
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
            ort.preload_dlls(cuda=True, cudnn=True, directory="")
    try:
        ctypes.CDLL(str(library.parent / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as exc:
        return str(exc)
    return None


def _say_what_is_missing(provider: str) -> str:
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)}
    words = []
    if len(installed) > 1:
        words.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files, and both are installed: "
            "uninstall both, then install one"
        )
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        if _count_gpus() == 0:
            words.append("no NVIDIA GPU or driver is visible (NVML finds none)")
        if provider in ort.get_available_providers() and (missing := _missing_library(provider)):
            words.append(f"its libraries do not load ({missing}): pip install 'genai-ray[cuda]'")
    if not words:
        words.append(f"this build of ONNX Runtime ({ort.__version__}) has no {provider}")
    return "Missing: " + "; ".join(words) + ". Use device='cpu' to compute on the CPU."


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
