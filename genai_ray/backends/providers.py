"""Options of ONNX Runtime's providers for NVIDIA GPUs, and the names of TensorRT's engines; pure functions.

Sources: ONNX Runtime's pages of the CUDA and TensorRT execution providers, and the settings of vs-mlrt
(``vsort/vs_onnxruntime.cpp``), which uses ONNX Runtime for the same kind of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

__all__ = [
    "CPU",
    "CUDA",
    "FP32_OPERATORS",
    "HEAVY_OPERATORS",
    "TENSORRT",
    "EngineFacts",
    "cuda_options",
    "engine_folders",
    "heavy_on_cpu",
    "not_for_tensorrt",
    "tensorrt_options",
]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

HEAVY_OPERATORS = frozenset(
    {
        *("Conv", "ConvTranspose", "FusedConv", "Gemm", "GridSample", "MatMul"),
        *("ConvInteger", "QLinearConv", "QLinearMatMul", "MatMulInteger", "NhwcConv"),
    }
)
"""Operators that take nearly all of a model's time: a session on a GPU that has one of them on the CPU is refused.
Others, such as those that compute shapes, belong on the CPU."""

FP32_OPERATORS = (
    *("Exp", "GlobalAveragePool", "InstanceNormalization", "LayerNormalization", "Log", "Pow"),
    *("ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax"),
)
"""Operators that stay in FP32 on a GPU if the rest is in FP16: sums over many pixels and powers leave its range, which
ends at 65504. A CPU computes all in FP32, so that the comparison with FP32 there would not show it."""

NOT_FOR_TENSORRT = ("NonMaxSuppression", "NonZero", "RoiAlign")
"""ONNX Runtime's own list: their results have no fixed shape, and TensorRT is slow at them."""


def cuda_options(index: int, *, arena_bytes: int | None = None, is_exhaustive: bool = False) -> dict[str, str]:
    """Return the options of the CUDA provider.

    Args:
        index: CUDA's index of the GPU.
        arena_bytes: Most bytes of its arena; None for no limit.
        is_exhaustive: Whether cuDNN tries every algorithm for each new shape. That takes about half a second by shape,
            and which of them wins, and so the rounding, differs from run to run.

    Returns:
        Options by name. FP32 is FP32: the shorter mantissa of TF32 is not used.
    """
    options = {
        "device_id": str(index),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE" if is_exhaustive else "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",  # 0 may race
        "use_tf32": "0",
    }
    if arena_bytes is not None:
        options["gpu_mem_limit"] = str(arena_bytes)
    return options


def tensorrt_options(
    index: int,
    *,
    is_fp16: bool,
    arena_bytes: int | None = None,
    folders: tuple[Path, Path] | None = None,
) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    Args:
        index: CUDA's index of the GPU.
        is_fp16: Whether TensorRT may compute in FP16; CUDA computes ``FP32_OPERATORS`` then.
        arena_bytes: Most bytes of an engine's workspace; None for no limit.
        folders: Where engines and timings are kept, from ``engine_folders``; None to build them at each load.

    Returns:
        Options by name.
    """
    options = {
        "device_id": str(index),
        "trt_fp16_enable": str(int(is_fp16)),
        "trt_op_types_to_exclude": ",".join(not_for_tensorrt(is_fp16=is_fp16)),
        "trt_force_sequential_engine_build": "1",  # two builds at once on one GPU have crashed
        "trt_context_memory_sharing_enable": "1",
    }
    if arena_bytes is not None:
        options["trt_max_workspace_size"] = str(arena_bytes)
    if folders is not None:
        engines, timings = folders
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(timings),
        }
    return options


def not_for_tensorrt(*, is_fp16: bool) -> tuple[str, ...]:
    """Return the operators that CUDA computes instead of TensorRT.

    Args:
        is_fp16: Whether the model is in FP16: TensorRT would compute what the graph keeps in FP32 in FP16 as well.

    Returns:
        Names of operators, sorted.
    """
    return tuple(sorted({*NOT_FOR_TENSORRT, *(FP32_OPERATORS if is_fp16 else ())}))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """All that an engine of TensorRT depends on: an engine for other facts is never loaded."""

    model: str
    """sha256 of the model: of its file, its weights, and how its graph was changed."""
    gpu: str
    """Kind of the GPU, by name."""
    driver: str
    """Version of NVIDIA's driver."""
    tensorrt: str
    """Version of TensorRT."""
    onnxruntime: str
    """Version of ONNX Runtime."""
    precision: str
    """Number format."""
    excluded: tuple[str, ...] = ()
    """Operators that CUDA computes."""
    shapes: str = ""
    """What the shapes of its runs follow from; TensorRT builds an engine again for shapes that it was not built for."""


def engine_folders(base: Path, facts: EngineFacts) -> tuple[Path, Path]:
    """Name the folders of a model's engines and of timings.

    Args:
        base: Folder of all that is kept.
        facts: What the engine depends on.

    Returns:
        The folder of its engines; the folder of the timings, which models on one kind of GPU share.
    """
    machine = _digest([facts.gpu, facts.driver, facts.tensorrt])
    return base / f"engines-{_digest(map(repr, astuple(facts)))}", base / f"timings-{machine}"


def heavy_on_cpu(nodes: Iterable[tuple[str, str]]) -> list[str]:
    """Tell which operators of a session on a GPU would make it compute on the CPU.

    Args:
        nodes: Provider and operator of each node.

    Returns:
        Heavy operators on the CPU, sorted, each once.
    """
    return sorted({operator for provider, operator in nodes if provider == CPU and operator in HEAVY_OPERATORS})


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
