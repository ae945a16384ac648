"""What a session adds to the memory that it computes in: that of its process, or that of a GPU."""

from __future__ import annotations

from genai_ray.backends.execution import open_gpu
from genai_ray.backends.gpu import LEAST_ARENA_BYTES, WORKSPACE_BYTES, GpuMeter
from genai_ray.session.process import anonymous_bytes
from genai_ray.types import ModelBackend

__all__ = ["SessionMemory"]


class SessionMemory:
    """Measures bytes from before a session is opened: on a CPU anonymous memory, on a GPU bytes of the device.

    Args:
        backend: The runtime.
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``; the CUDA context is created, if there is none.
        meter: Measures a GPU; None for NVML's meter of the device.

    Raises:
        BackendUnavailableError: If the runtime, or CUDA, cannot use the GPU.
    """

    def __init__(self, backend: ModelBackend, device: str, meter: GpuMeter | None = None) -> None:
        if meter is None and device.startswith("cuda"):
            meter = open_gpu(backend, device)
        self._meter = meter
        self.context_bytes = 0 if meter is None else meter.context_bytes
        """Bytes of the CUDA context, which sessions of one process share; each counts it. 0 on a CPU."""
        self._before = anonymous_bytes() if meter is None else meter.measure() - meter.context_bytes
        self._peak = 0

    @property
    def is_of_gpu(self) -> bool:
        """Whether these are bytes of a GPU."""
        return self._meter is not None

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were added so far; what else the process does counts as well."""
        now = anonymous_bytes() if self._meter is None else self._meter.added_bytes
        self._peak = max(self._peak, now - self._before)
        return self._peak

    def copy_bytes(self, num_bytes: int) -> int:
        """Predict what another copy of a model takes beside it: on a GPU the context is there, but no workspace.

        Args:
            num_bytes: What the model takes, the context included.

        Returns:
            Bytes.
        """
        own_bytes = 0 if self._meter is None else WORKSPACE_BYTES + LEAST_ARENA_BYTES
        return num_bytes - self.context_bytes + own_bytes

    def measure(self) -> None:
        """Measure when a load or warm-up has ended: a driver may tell only what all programs take together."""
        if self._meter is not None:
            self._peak = max(self._peak, self._meter.measure() - self._before)
