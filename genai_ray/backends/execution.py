"""Which of ONNX Runtime's providers computes: on which device, with which options, or what is missing for it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from genai_ray.backends import RuntimeOptions
from genai_ray.backends.cuda import start_context
from genai_ray.backends.gpu import GpuMeter, count_gpus, name_gpu, read_gpu, visible_gpus
from genai_ray.backends.providers import (
    CPU,
    CUDA,
    TENSORRT,
    EngineFacts,
    cuda_options,
    engine_folders,
    heavy_on_cpu,
    not_for_tensorrt,
    tensorrt_options,
)
from genai_ray.errors import BackendUnavailableError
from genai_ray.files import cache_folder, is_cache_lasting, is_private
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["build_providers", "check_placement", "choose_device", "open_gpu", "say_what_is_missing"]

_log = logging.getLogger(__name__)

_PROVIDERS = {
    ModelBackend.TENSORRT: TENSORRT,
    ModelBackend.COREML: "CoreMLExecutionProvider",
    ModelBackend.DIRECTML: "DmlExecutionProvider",
}
_LIBRARIES = {CUDA: "cuda", TENSORRT: "tensorrt"}

Providers = list[tuple[str, dict[str, Any]]]


@functools.cache
def choose_device() -> str:
    """Choose the device for ``auto``: the first GPU that ONNX Runtime can use, else the CPU. It is logged once.

    Returns:
        ``cuda:0`` or ``cpu``.
    """
    if not _count_visible():
        _log.info("device auto: chose cpu (no NVIDIA GPU is visible)")
        return "cpu"
    if CUDA not in ort.get_available_providers() or _missing_library(CUDA):
        _log.warning("device auto: chose cpu although a GPU is visible: %s", say_what_is_missing(CUDA))
        return "cpu"
    _log.info("device auto: chose cuda:0")
    return "cuda:0"


def build_providers(options: RuntimeOptions) -> Providers:
    """Choose providers and their options.

    Args:
        options: How a model is loaded.

    Returns:
        Providers by name, in ONNX Runtime's order of preference: the first one must compute.

    Raises:
        BackendUnavailableError: If the provider cannot be used.
    """
    wanted = _check_available(options.backend, options.device)
    if wanted == CPU:
        return [(CPU, {})]
    if wanted not in _LIBRARIES:
        return [(wanted, {}), (CPU, {})]
    index = int(options.device.partition(":")[2] or 0)
    cuda = cuda_options(index, arena_bytes=options.max_bytes, is_exhaustive=options.is_exhaustive)
    if wanted == CUDA:
        return [(CUDA, cuda), (CPU, {})]
    return [(TENSORRT, _tensorrt_options(options, index)), (CUDA, cuda), (CPU, {})]


def open_gpu(backend: ModelBackend, device: str) -> GpuMeter:
    """Create this process's CUDA context on a GPU, if it has none.

    Args:
        backend: The runtime that will use it.
        device: ``cuda`` or ``cuda:INDEX``.

    Returns:
        The process's meter of this GPU, which has measured the context.

    Raises:
        BackendUnavailableError: If the runtime, or CUDA, cannot use the GPU.
    """
    _check_available(backend, device)
    return _meter_of(name_gpu(device), int(device.partition(":")[2] or 0))


def check_placement(wanted: str, subgraphs: Iterable[Any]) -> None:
    """Check that a session on a GPU does not compute on the CPU.

    Args:
        wanted: The provider that must compute.
        subgraphs: Result of ``get_provider_graph_assignment_info``.

    Raises:
        BackendUnavailableError: If heavy operators are on the CPU.
    """
    nodes = ((subgraph.ep_name, node.op_type) for subgraph in subgraphs for node in subgraph.get_nodes())
    if found := heavy_on_cpu(nodes):
        raise BackendUnavailableError(
            f"ONNX Runtime would compute {', '.join(found)} on the CPU", f"all on {wanted}", "Use device='cpu'."
        )


def say_what_is_missing(provider: str) -> str:
    """Say why a provider cannot be used.

    Args:
        provider: Its name.

    Returns:
        What is missing, and what to do.
    """
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _version_of(name)}
    words = []
    if len(installed) > 1:
        words.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files, and both are installed: "
            "uninstall both, then install one"
        )
    if provider in _LIBRARIES:
        if not count_gpus():
            words.append("no NVIDIA GPU or driver is visible (NVML finds none)")
        elif not _count_visible():
            words.append(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r} hides every GPU")
        if provider in ort.get_available_providers() and (missing := _missing_library(provider)):
            package = "'tensorrt-cu13<11'" if provider == TENSORRT and "nvinfer" in missing else "'genai-ray[cuda]'"
            words.append(f"its libraries do not load ({missing}): pip install {package}")
    if not words:
        words.append(f"this build of ONNX Runtime ({ort.__version__}) has no {provider}")
    return "Missing: " + "; ".join(words) + ". Use device='cpu' to compute on the CPU."


def _check_available(backend: ModelBackend, device: str) -> str:
    """Return the provider that must compute."""
    is_cpu = device == "cpu"
    if backend is ModelBackend.ONNX and is_cpu:
        return CPU
    wanted = CUDA if backend is ModelBackend.ONNX else _PROVIDERS.get(backend)
    if wanted is None:
        raise BackendUnavailableError(
            f"backend {backend.value!r}", "onnx, tensorrt, coreml or directml for ONNX Runtime"
        )
    if backend is ModelBackend.TENSORRT and is_cpu:
        raise BackendUnavailableError("backend 'tensorrt' on device 'cpu'", "an NVIDIA GPU", "Use device='cuda'.")
    if wanted not in ort.get_available_providers():
        there = ", ".join(ort.get_available_providers())
        raise BackendUnavailableError(
            f"ONNX Runtime has no {wanted}", f"the providers it has: {there}", say_what_is_missing(wanted)
        )
    if wanted in _LIBRARIES:
        ort.set_default_logger_severity(3)  # else it warns at each session that its provider is no plugin
        has_gpu = bool(_count_visible())
        if has_gpu:
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML and Ray count GPUs in this order
        if has_gpu and wanted == TENSORRT:  # FP32 is FP32; the provider has no option for it, libraries read this once
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        if not has_gpu or _missing_library(wanted):
            raise BackendUnavailableError(f"{wanted} cannot be used on {device!r}", do=say_what_is_missing(wanted))
    return wanted


def _tensorrt_options(options: RuntimeOptions, index: int) -> dict[str, str]:
    is_fp16 = options.precision is ModelPrecision.FP16
    folders = None
    if options.model_digest:
        gpu = read_gpu(name_gpu(options.device))
        facts = EngineFacts(
            model=options.model_digest,
            gpu=gpu.name,
            driver=gpu.driver,
            tensorrt=str(_load_tensorrt().getInferLibVersion()),
            onnxruntime=ort.__version__,
            precision=options.precision.value,
            excluded=not_for_tensorrt(is_fp16=is_fp16),
            shapes=options.shapes,
        )
        folders = _keep(*engine_folders(cache_folder() / "tensorrt", facts))
    return tensorrt_options(index, is_fp16=is_fp16, arena_bytes=options.max_bytes, folders=folders)


def _keep(engines: Path, timings: Path) -> tuple[Path, Path] | None:
    """Create the folders; an engine is code, so that nobody else may write there. None if they cannot be used."""
    try:
        for folder in (engines.parent, engines, timings):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_cache_lasting() and all(map(is_private, (engines.parent, engines, timings))):
            return engines, timings
        why = "it is temporary, or others may write to it"
    except OSError as exc:
        why = str(exc)
    _log.warning("engines of TensorRT are not kept in %s: %s", engines.parent, why)
    return None


@functools.cache
def _meter_of(gpu: str, index: int) -> GpuMeter:
    meter = GpuMeter(gpu)
    start_context(index)
    meter.context_bytes = meter.measure()
    return meter


def _count_visible() -> int:
    """Count the GPUs that CUDA shows to this process."""
    return len(visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), count_gpus()))


@functools.cache
def _missing_library(provider: str) -> str | None:
    """Return the loader's reason why a provider's library does not load; None if it loads."""
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{_LIBRARIES[provider]}.so"
    if not library.exists():  # other names on Windows; the check of get_providers() finds it there
        return None
    if count_gpus():
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
            ort.preload_dlls(cuda=True, cudnn=True, directory="")
    try:
        if provider == TENSORRT:
            _load_tensorrt()
        ctypes.CDLL(str(library.parent / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
        ctypes.CDLL("libcudnn.so.9")  # the provider loads without it, and fails at the first convolution
    except OSError as exc:
        return str(exc)
    return None


def _load_tensorrt() -> ctypes.CDLL:
    """Load the libraries of TensorRT: those of its package, if it is installed, else those of the system."""
    pattern = "{}_10.dll" if sys.platform == "win32" else "lib{}.so.10"  # the version that the provider is linked to
    names = [pattern.format(name) for name in ("nvinfer", "nvonnxparser")]
    found = importlib.util.find_spec("tensorrt_libs")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    paths = [next((str(path) for folder in folders if (path := Path(folder, name)).exists()), name) for name in names]
    runtime, _ = (ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in paths)
    return runtime


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
