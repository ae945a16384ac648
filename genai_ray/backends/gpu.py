"""NVIDIA GPUs as NVML tells of them: which there are, and what this process takes of one.

Only this module imports ``pynvml``. ``GpuMeter`` measures bytes of the device, never of the host: by process if the
driver tells them, else by difference. ``arena_limit`` is the arithmetic from the bytes that are reserved to those that
ONNX Runtime's arena may have.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from genai_ray.errors import BackendUnavailableError, ResourceExhaustedError

__all__ = [
    "LEAST_ARENA_BYTES",
    "WORKSPACE_BYTES",
    "GpuMeter",
    "GpuState",
    "arena_limit",
    "count_gpus",
    "list_gpus",
    "name_gpu",
    "read_gpu",
    "visible_gpus",
]

_log = logging.getLogger(__name__)

WORKSPACE_BYTES = 128 * 1024**2
"""Bytes of a session on a GPU that are neither CUDA context nor weights nor arena: handles and workspaces of cuBLAS and
cuDNN, and kernels that are loaded when they are first used. An estimate, which is reserved and was not yet measured."""

LEAST_ARENA_BYTES = 16 * 1024**2
"""A smaller arena computes nothing."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU at one moment."""

    name: str
    """Its kind: ``NVIDIA L4``."""
    total_bytes: int
    """Its memory."""
    used_bytes: int = 0
    """What all programs together take of it."""
    process_bytes: Mapping[int, int | None] = field(default_factory=dict)
    """Bytes by process id, CUDA context included; None if the driver does not tell them. In a container it may list no
    process, or have other numbers for them."""
    driver: str = ""
    """Version of NVIDIA's driver."""


ReadGpu = Callable[[str], GpuState]
"""Reads the state of a GPU by index or UUID."""


def read_gpu(gpu: str) -> GpuState:
    """Ask NVML for the state of a GPU.

    Args:
        gpu: Index or UUID, as in ``CUDA_VISIBLE_DEVICES``.

    Returns:
        Its state.

    Raises:
        BackendUnavailableError: If there is no driver, or no such GPU.
    """
    with _nvml() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else nvml.nvmlDeviceGetHandleByUUID(gpu)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        processes: dict[int, int | None] = {}
        with contextlib.suppress(nvml.NVMLError):  # some drivers do not list them
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                processes[process.pid] = process.usedGpuMemory
        return GpuState(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            total_bytes=int(memory.total),
            used_bytes=int(memory.used),
            process_bytes=processes,
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
        )


def count_gpus() -> int:
    """Count the GPUs that the driver shows, whether CUDA may use them or not.

    Returns:
        The number; 0 if there is no driver.
    """
    try:
        with _nvml() as nvml:
            return int(nvml.nvmlDeviceGetCount())
    except BackendUnavailableError:
        return 0


def list_gpus() -> list[GpuState]:
    """List the GPUs that the driver shows.

    Returns:
        Their states, by index; one that does not answer is left out, and the log says why.
    """
    found = []
    for index in range(count_gpus()):
        try:
            found.append(read_gpu(str(index)))
        except BackendUnavailableError as exc:
            _log.warning("GPU %d does not answer: %s", index, exc)
    return found


def visible_gpus(chosen: str | None, count: int) -> tuple[str, ...]:
    """Tell which GPUs CUDA shows to a process.

    Args:
        chosen: ``CUDA_VISIBLE_DEVICES``; None if it is not set.
        count: GPUs of the machine.

    Returns:
        Index or UUID of each, in CUDA's order: ``cuda:0`` is the first one. As in CUDA, the first word that is no GPU
        ends the list.
    """
    if chosen is None:
        return tuple(map(str, range(count)))
    words = [word.strip() for word in chosen.split(",")]
    return tuple(
        itertools.takewhile(lambda word: int(word) < count if word.isdigit() else word[:3] in ("GPU", "MIG"), words)
    )


def name_gpu(device: str) -> str:
    """Return the name that NVML knows a CUDA device of this process by.

    Args:
        device: ``cuda`` or ``cuda:INDEX``.

    Returns:
        Index or UUID.

    Raises:
        BackendUnavailableError: If CUDA shows no such device to this process.
    """
    with _nvml() as nvml:  # says why, if there is no driver
        gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), int(nvml.nvmlDeviceGetCount()))
    index = int(device.partition(":")[2] or 0)
    if index >= len(gpus):
        there = ", ".join(f"cuda:{number}" for number in range(len(gpus))) or "none: CUDA_VISIBLE_DEVICES hides them"
        raise BackendUnavailableError(f"device {device!r}", there, "Use device='cpu' to compute on the CPU.")
    return gpus[index]


class GpuMeter:
    """Measures what this process adds to what it takes of a GPU, its CUDA context included.

    If the driver tells bytes by process, every reading is new. Otherwise the difference of the whole GPU counts, which
    other programs change as well: it is taken only by ``measure``, which is called when a load has ended, and the cache
    loads one session at a time on a GPU.

    Args:
        gpu: Index or UUID.
        pid: The process; None for this one.
        read: Reads the state of a GPU.

    Raises:
        BackendUnavailableError: If NVML does not know the GPU.
    """

    def __init__(self, gpu: str, pid: int | None = None, read: ReadGpu = read_gpu) -> None:
        self._gpu = gpu
        self._pid = os.getpid() if pid is None else pid
        self._read = read
        before = read(gpu)
        self._own_before = before.process_bytes.get(self._pid) or 0
        self._used_before = before.used_bytes
        self._added = 0
        self.context_bytes = 0
        """Bytes of the CUDA context; set by who creates it."""
        self.is_by_process = False
        """Whether the driver tells what this process takes."""

    def measure(self) -> int:
        """Measure, in a moment when no other program changes what it takes of the GPU.

        Returns:
            Bytes that this process has added since this meter was made.
        """
        now = self._read(self._gpu)
        own = now.process_bytes.get(self._pid)
        grown = max(now.used_bytes - self._used_before, 0)
        # In a container this number may be that of another process, whose bytes do not grow with ours.
        self.is_by_process = own is not None and (own > self._own_before or grown == 0)
        self._added = (own or 0) - self._own_before if self.is_by_process else grown
        return self._added

    @property
    def added_bytes(self) -> int:
        """Bytes that this process has added since this meter was made; by difference, those of the last ``measure``."""
        if self.is_by_process:
            try:
                own = self._read(self._gpu).process_bytes.get(self._pid)
            except BackendUnavailableError as exc:
                _log.warning("GPU %s: %s; the last figure counts", self._gpu, exc)
            else:
                self._added = self._added if own is None else own - self._own_before
        return self._added


def arena_limit(reserved_bytes: int, *, context_bytes: int, weight_bytes: int) -> int:
    """Return ``gpu_mem_limit`` of ONNX Runtime: it limits the arena and the weights, and not what lies beside them.

    Weights have allocations of their own, which ONNX Runtime counts; with fewer bytes than they take it has no limit.

    Args:
        reserved_bytes: Bytes of the GPU that the session may take in all.
        context_bytes: What its process took before the model was opened: the CUDA context.
        weight_bytes: The model's weights.

    Returns:
        Bytes that context and ``WORKSPACE_BYTES`` leave.

    Raises:
        ResourceExhaustedError: If nothing useful is left beside the weights.
    """
    limit = reserved_bytes - context_bytes - WORKSPACE_BYTES
    if limit - weight_bytes < LEAST_ARENA_BYTES:
        raise ResourceExhaustedError(
            f"{reserved_bytes} bytes of a GPU",
            f"{context_bytes + weight_bytes + WORKSPACE_BYTES + LEAST_ARENA_BYTES} or more: "
            f"{context_bytes} for the CUDA context, {weight_bytes} for weights, "
            f"{WORKSPACE_BYTES} for workspace, {LEAST_ARENA_BYTES} for tensors",
            "Give it more bytes.",
        )
    return limit


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml  # noqa: PLC0415  it is slow to import

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as exc:
        raise BackendUnavailableError(f"NVML: {exc}", do="See `nvidia-smi`, or use device='cpu'.") from exc


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word
