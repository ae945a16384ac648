"""Host memory for runs on a GPU, page-locked by CUDA's runtime library, and the CUDA context.

The library is the one that ONNX Runtime's CUDA provider has loaded; it is called by ``ctypes``.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from genai_ray.backends import Tensors
from genai_ray.errors import BackendUnavailableError, ResourceExhaustedError

__all__ = ["Block", "HostBlocks", "allocate_pageable", "allocate_pinned", "run_staged", "start_context"]

_ALIGN_BYTES = 256
"""Tensors in a block begin at multiples of this."""

_PORTABLE = 1
"""``cudaHostAllocPortable``: page-locked for every CUDA context of the process."""


class Block(NamedTuple):
    """A block of host memory.

    Args:
        memory: Its bytes, uint8 (N,).
        free: Gives it back.
    """

    memory: npt.NDArray[np.uint8]
    """Its bytes, uint8 (N,)."""
    free: Callable[[], None]
    """Gives it back."""


class HostBlocks:
    """Blocks of host memory that runs use one after the other: at most one for each run at the same time.

    Args:
        allocate: Allocates a block of so many bytes.
    """

    def __init__(self, allocate: Callable[[int], Block]) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._idle: list[Block] = []
        self._is_closed = False

    @contextmanager
    def take(self, shapes: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> Iterator[list[npt.NDArray[Any]]]:
        """Use a block until the end of the ``with`` statement.

        Args:
            shapes: dtype and shape of the arrays that it must hold.

        Yields:
            The arrays, C-contiguous; their values are not defined.

        Raises:
            ResourceExhaustedError: If the memory cannot be allocated.
        """
        sizes = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in shapes]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _ALIGN_BYTES) * _ALIGN_BYTES)
        block = self._find(max(starts[-1], 1))
        try:
            yield [
                block.memory[start : start + size].view(dtype).reshape(shape)
                for start, size, (dtype, shape) in zip(starts, sizes, shapes, strict=False)
            ]
        finally:
            with self._lock:
                is_kept = not self._is_closed
                if is_kept:
                    self._idle.append(block)
            if not is_kept:
                block.free()

    def close(self) -> None:
        """Give the idle blocks back, and those in use when they are idle; a second call does nothing."""
        with self._lock:
            self._is_closed = True
            blocks, self._idle = self._idle, []
        for block in blocks:
            block.free()

    def _find(self, num_bytes: int) -> Block:
        """Take the smallest idle block that is large enough; else replace the largest of those that are too small."""
        with self._lock:
            self._idle.sort(key=lambda block: block.memory.size)
            index = next((i for i, block in enumerate(self._idle) if block.memory.size >= num_bytes), None)
            if index is not None:
                return self._idle.pop(index)
            small = self._idle.pop() if self._idle else None
        if small is not None:
            small.free()
        return self._allocate(num_bytes)


def run_staged(session: ort.InferenceSession, feeds: Tensors, into: Tensors, blocks: HostBlocks) -> None:
    """Run once through blocks of host memory, which a GPU copies from and to without the driver's own copy.

    Args:
        session: The session.
        feeds: One array for each input; may be read-only and have any strides.
        into: Arrays that get the outputs; may have any strides.
        blocks: Where inputs and outputs lie during the run.

    Raises:
        ResourceExhaustedError: If the memory cannot be allocated.
    """
    arrays = (*feeds.values(), *into.values())
    with blocks.take([(array.dtype, array.shape) for array in arrays]) as places:
        staged: Mapping[str, npt.NDArray[Any]] = dict(zip((*feeds, *into), places, strict=True))
        binding = session.io_binding()
        for name, array in feeds.items():
            np.copyto(staged[name], array)
            binding.bind_cpu_input(name, staged[name])
        for name in into:
            place = staged[name]
            binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        for name, array in into.items():
            np.copyto(array, staged[name])


def allocate_pageable(num_bytes: int) -> Block:
    """Allocate ordinary memory.

    Args:
        num_bytes: How much.

    Returns:
        The block.
    """
    return Block(np.empty(num_bytes, np.uint8), lambda: None)


def allocate_pinned(num_bytes: int, index: int = 0) -> Block:
    """Allocate page-locked memory.

    Args:
        num_bytes: How much.
        index: CUDA's index of the GPU that copies from and to it.

    Returns:
        The block.

    Raises:
        BackendUnavailableError: If CUDA's runtime library is not there.
        ResourceExhaustedError: If CUDA refuses.
    """
    runtime = _load_runtime()
    start_context(index)
    address = ctypes.c_void_p()
    error = runtime.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_uint(_PORTABLE))
    if error or address.value is None:
        raise ResourceExhaustedError(
            f"{num_bytes} bytes of page-locked host memory: {_say(error)}", do="Free memory of this machine."
        )
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address.value))

    def free() -> None:
        runtime.cudaFreeHost(address)

    return Block(memory, free)


def start_context(index: int) -> None:
    """Create this process's CUDA context on a GPU, if it has none; other calls of this thread then mean that GPU.

    Args:
        index: CUDA's index of the GPU.

    Raises:
        BackendUnavailableError: If CUDA cannot use the GPU, or its runtime library is not there.
    """
    runtime = _load_runtime()
    error = runtime.cudaSetDevice(ctypes.c_int(index)) or runtime.cudaFree(ctypes.c_void_p())
    if error:
        raise BackendUnavailableError(f"cuda:{index}: {_say(error)}", do="See `nvidia-smi`, or use device='cpu'.")


@functools.cache
def _load_runtime() -> ctypes.CDLL:
    """Return CUDA's runtime library of the version that ONNX Runtime was built for; it is loaded already."""
    major = str(ort.cuda_version).partition(".")[0]
    name = f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}"
    try:
        runtime = ctypes.CDLL(name)
    except OSError as exc:
        raise BackendUnavailableError(
            f"CUDA's runtime library does not load: {exc}", do="Install it: pip install 'genai-ray[cuda]'."
        ) from exc
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    return runtime


def _say(error: int) -> str:
    words = _load_runtime().cudaGetErrorString(ctypes.c_int(error))
    return f"CUDA error {error}, {words.decode() if words else 'unknown'}"
