"""The ways in which a model can be computed, and the choice among them by what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = [
    "MAX_QUALITY_DB",
    "MIN_QUALITY_DB",
    "REFERENCE",
    "Measured",
    "Way",
    "candidates",
    "check_quality",
    "choose_way",
]

MIN_QUALITY_DB = 40.0
"""The least agreement with FP32 that a session needs to open at all."""
MAX_QUALITY_DB = 120.0
"""Packaged models reach 128 dB and more in OpenVINO's FP32; nothing but the reference itself is held to more."""

MARGIN = 1.05
"""A way must be this much faster than the one before it: measurements of one way differ by a few percent."""


class Way(NamedTuple):
    """A runtime and a number format.

    Args:
        backend: The runtime.
        precision: The number format.
    """

    backend: ModelBackend
    """The runtime."""
    precision: ModelPrecision
    """The number format."""

    def __str__(self) -> str:
        return f"{self.backend.value} {self.precision.value}"


REFERENCE = Way(ModelBackend.ONNX, ModelPrecision.FP32)
"""What every other way is compared with."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model gave in one way."""

    way: Way
    """The way."""
    pixels_per_s: float = 0.0
    """Pixels of the frames that go in, in a second of a session that uses the whole device; 0 if it was refused."""
    precision_db: float | None = None
    """PSNR from the reference on calibration frames, ``inf`` for equal values; None for the reference itself."""
    memory_bytes: int = 0
    """Bytes that the session added to its process while it was measured."""
    num_runs: int = 0
    """Runtime calls that the session makes at the same time, which share the threads of its device."""
    run_batch: int = 0
    """Frames in one runtime call."""
    tile_size_px: int | None = None
    """Longest side of a tile in pixels, halo included, if memory allows it; None for whole frames."""
    refused: str = ""
    """Why the model does not run in this way; empty if it does."""

    def agrees_by(self, min_quality_db: float) -> bool:
        """Tell whether the results are near enough to those of the reference.

        Args:
            min_quality_db: The least PSNR.

        Returns:
            Whether the model runs in this way and reaches it.
        """
        return not self.refused and (self.precision_db is None or self.precision_db >= min_quality_db)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain values, fit for JSON.

        Returns:
            The fields by name, the way as ``backend`` and ``precision``; "inf" for infinite dB.
        """
        is_equal = self.precision_db is not None and math.isinf(self.precision_db)
        return {
            "backend": self.way.backend.value,
            "precision": self.way.precision.value,
            "pixels_per_s": self.pixels_per_s,
            "precision_db": "inf" if is_equal else self.precision_db,
            "memory_bytes": self.memory_bytes,
            "num_runs": self.num_runs,
            "run_batch": self.run_batch,
            "tile_size_px": self.tile_size_px,
            "refused": self.refused,
        }


def candidates(precision: ModelPrecision, *, is_gpu: bool) -> tuple[Way, ...]:
    """List the ways that AUTO tries.

    ONNX Runtime computes FP16 on a CPU in FP32, so that is none of them; neither are backends without tests, nor FP16
    of a GPU, whose agreement with FP32 is measured on the CPU.

    Args:
        precision: ``fp32`` for this number format only, or ``auto``.
        is_gpu: Whether a GPU computes.

    Returns:
        The reference first.
    """
    openvino = ModelBackend.OPENVINO
    found = [REFERENCE] if is_gpu else [REFERENCE, Way(openvino, ModelPrecision.FP32)]
    if precision is ModelPrecision.AUTO:
        lower = [] if is_gpu else [(openvino, ModelPrecision.BF16), (openvino, ModelPrecision.FP16)]
        found += [Way(*way) for way in lower]
    return tuple(found)


def check_quality(min_quality_db: float) -> None:
    """Check the least agreement that a user asks for.

    Args:
        min_quality_db: In dB.

    Raises:
        ConfigError: If it is out of range.
    """
    if not MIN_QUALITY_DB <= min_quality_db <= MAX_QUALITY_DB:
        raise ConfigError(
            f"a least quality of {min_quality_db:g} dB",
            f"from {MIN_QUALITY_DB:g}, below which no session opens, to {MAX_QUALITY_DB:g}",
        )


def choose_way(
    models: Sequence[Sequence[Measured]],
    precision: ModelPrecision,
    min_quality_db: float,
    pixels: Sequence[int] = (),
) -> Way:
    """Choose the fastest way that suits all models of a chain, on every kind of device on which they were measured.

    Of FP32, the reference counts unless another runtime is faster by more than the noise; then a lower precision counts
    only if it is faster again by as much.

    Args:
        models: The measurements of each model, and of each device if there are several kinds.
        precision: ``fp32``, or ``auto`` for lower precisions too.
        min_quality_db: The least agreement with the reference.
        pixels: Pixels of the frames that each of ``models`` gets: after an upscaler they are larger. Empty for frames
            of one size.

    Returns:
        The way.
    """
    tables = [{one.way: one for one in model} for model in models]

    def seconds(way: Way) -> float:
        """Time for one frame in all models; infinite if one of them does not run in this way, or not well enough."""
        found = [table.get(way) for table in tables]
        if any(one is None or not one.agrees_by(min_quality_db) for one in found):
            return math.inf
        counts = pixels or [1] * len(found)
        return sum(count / one.pixels_per_s for one, count in zip(found, counts, strict=True) if one is not None)

    tried = sorted({way for table in tables for way in table})
    exact = [way for way in tried if way.precision is ModelPrecision.FP32]
    lower = [way for way in tried if way not in exact] if precision is ModelPrecision.AUTO else []
    best = REFERENCE
    for ways in (exact, lower):
        fastest = min(ways, key=seconds, default=best)
        if seconds(fastest) * MARGIN < seconds(best):
            best = fastest
    return best
