"""``tune_model``: measures a model, or takes what was measured before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_ray.backends import resolve_device
from genai_ray.backends.gpu import name_gpu, read_gpu
from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.inspection import find_model, hash_model
from genai_ray.session import count_cores, predict_bytes, processor_facts
from genai_ray.tune.measure import limits_of_part, measure_ways, part_of
from genai_ray.tune.record import RecordKey, read_record, write_record
from genai_ray.tune.ways import Measured, Way, candidates
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["MAX_SIDE_PX", "Tuning", "describe_device", "find_tuning", "predict_tuning_bytes", "tune_model"]

MAX_SIDE_PX = 16384
"""Longest side of frames that are measured."""

_BUCKET_PX = 64


@dataclass(frozen=True, slots=True)
class Tuning:
    """What one model gave on one device, in every way that was tried."""

    model_id: str
    """Canonical id, or a path."""
    size: tuple[int, int]
    """(height, width) in pixels of the frames."""
    part: tuple[int, int]
    """(height, width) in pixels of what was measured."""
    device: str
    """Name of the processor or GPU."""
    measured: tuple[Measured, ...]
    """One entry for each way."""
    is_recorded: bool
    """Whether an earlier run has measured it."""

    def frames_per_s(self, one: Measured) -> float:
        """Return the speed of one way for whole frames, by their area.

        Args:
            one: A measurement.

        Returns:
            Frames in a second, without decoding and encoding; 0 if it was refused.
        """
        return one.pixels_per_s / (self.size[0] * self.size[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the tuning as plain values, fit for JSON.

        Returns:
            The fields by name, sizes as (width, height).
        """
        return {
            "model_id": self.model_id,
            "size": list(reversed(self.size)),
            "measured_on": list(reversed(self.part)),
            "device": self.device,
            "is_recorded": self.is_recorded,
            "tried": [one.to_dict() | {"frames_per_s": self.frames_per_s(one)} for one in self.measured],
        }


def tune_model(
    model: str | Path,
    size: tuple[int, int],
    *,
    precision: ModelPrecision = ModelPrecision.AUTO,
    device: str = "auto",
    is_new: bool = False,
    on_way: Callable[[Way], None] | None = None,
) -> Tuning:
    """Measure a model in every way that AUTO may choose on this machine, and remember that.

    Args:
        model: Catalog id, alias, or path of an .onnx file.
        size: (height, width) in pixels of its frames.
        precision: ``fp32`` for this number format only, or ``auto``.
        device: ``auto``, ``cpu`` or ``cuda``.
        is_new: Whether to measure even if an earlier run has done so.
        on_way: Called with each way before it is tried.

    Returns:
        What was measured.

    Raises:
        ConfigError: If the precision is another one, or the device has another name.
        InvalidInputError: If the model takes no frames, or the size is none of a frame.
        ModelNotFoundError: If there is no such model or file.
        GenAIRayError: If the model does not run in ONNX Runtime in FP32.
    """
    asked = _Asked(model, size, precision, device)
    known = None if is_new else read_record(asked.key, asked.ways)
    measured = known or measure_ways(asked.spec, size, asked.ways, asked.device, on_way)
    if known is None:
        about = {"model": asked.spec.model_id, "device": asked.device_name, "measured_on": list(asked.part)}
        write_record(asked.key, measured, about)
    return asked.tuning(measured, is_recorded=known is not None)


def find_tuning(
    model: str | Path, size: tuple[int, int], *, precision: ModelPrecision = ModelPrecision.AUTO, device: str = "auto"
) -> Tuning | None:
    """Return what an earlier run has measured on this machine.

    Args:
        model: As ``tune_model``.
        size: As ``tune_model``.
        precision: As ``tune_model``.
        device: As ``tune_model``.

    Returns:
        The tuning; None if it must be measured.

    Raises:
        ConfigError: As ``tune_model``.
        InvalidInputError: As ``tune_model``.
        ModelNotFoundError: As ``tune_model``.
    """
    asked = _Asked(model, size, precision, device)
    known = read_record(asked.key, asked.ways)
    return None if known is None else asked.tuning(known, is_recorded=True)


def predict_tuning_bytes(
    model: str | Path, size: tuple[int, int], precision: ModelPrecision, *, is_gpu: bool = False
) -> int:
    """Predict the memory of measuring a model: its sessions in all ways are open at the same time.

    Args:
        model: As ``tune_model``.
        size: As ``tune_model``.
        precision: As ``tune_model``.
        is_gpu: Whether a GPU computes.

    Returns:
        Bytes, without the process.
    """
    spec, path = find_model(model)
    limits = limits_of_part(spec, size)
    threads = None if is_gpu else count_cores()
    return sum(
        predict_bytes(path, spec, limits, backend=way.backend, precision=way.precision, threads=threads)
        for way in candidates(precision, is_gpu=is_gpu)
    )


class _Asked:
    """What is asked for, checked, with the key of its record."""

    def __init__(self, model: str | Path, size: tuple[int, int], precision: ModelPrecision, device: str) -> None:
        if precision not in (ModelPrecision.FP32, ModelPrecision.AUTO):
            raise ConfigError(f"precision {precision.value!r} to choose a backend for", "fp32 or auto")
        if not all(1 <= side <= MAX_SIDE_PX for side in size):
            raise InvalidInputError(f"frames of {size[1]}x{size[0]} pixels", f"sides from 1 to {MAX_SIDE_PX}")
        self.spec, path = find_model(model)
        if not self.spec.is_image_model:
            raise InvalidInputError(f"{self.spec.model_id} takes no frames", "an image model", "Use backend onnx.")
        self.size = size
        self.part = part_of(self.spec, size)
        self.device = resolve_device(device, ModelBackend.ONNX)
        self.ways = candidates(precision, is_gpu=self.device != "cpu")
        self.device_name, facts = describe_device(self.device)
        bucket = (_round_up(self.part[0]), _round_up(self.part[1]))
        self.key = RecordKey(hash_model(self.spec, path), facts, bucket)

    def tuning(self, measured: tuple[Measured, ...], *, is_recorded: bool) -> Tuning:
        return Tuning(self.spec.model_id, self.size, self.part, self.device_name, measured, is_recorded)


def _round_up(length_px: int) -> int:
    return -(-length_px // _BUCKET_PX) * _BUCKET_PX


@functools.cache
def describe_device(device: str) -> tuple[str, str]:
    """Return what a device of this machine is.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``.

    Returns:
        Its name, and text with all that its speed depends on.

    Raises:
        BackendUnavailableError: If NVML does not know the GPU.
    """
    if device == "cpu":
        system, machine, *facts = processor_facts()
        name = min(facts, key=len, default=machine)  # the flags of a processor are longer than its name
        return name, "\n".join([f"{count_cores()} cores", system, machine, *facts])
    gpu = read_gpu(name_gpu(device))
    return gpu.name, f"{gpu.name}\n{gpu.driver}"
