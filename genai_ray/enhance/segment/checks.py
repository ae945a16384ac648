"""Compares the frames of a segment with those of the source that they were made of, while the segment is made.

What the chain has made is compared with what its first model got: before it is resampled to a size that was asked for.
Every frame of the result that shows one frame of the source is compared, before the background is put in; frames that a
model adds between two of them are not. So what is found depends on the video alone, never on time or the number of
workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from genai_ray.catalog import ModelSpec
from genai_ray.quality.source import KEEPS_FRAMES, LIMITS, FrameMeasures, SourceChecks, SourceMeter
from genai_ray.types import CheckLevel, ModelTask
from genai_ray.video import VideoInfo

__all__ = ["SegmentChecks", "Timed", "predict_check_bytes"]

LEAST_SIDE_PX = 16
"""Smaller frames are not compared: models make of them what they make of the padding around them."""

STRICT_BYTES_PER_PX = 320
"""Most bytes of the strict measures for a pixel of the source, for enlargements up to 8."""

STRICT_BYTES_PER_RESULT_PX = 3
"""Bytes for a pixel of the result, beside ``STRICT_FIXED_BYTES_PER_PX`` for one of the source: with larger ones, this
is more."""

STRICT_FIXED_BYTES_PER_PX = 100

MOST_NAMED = 3
"""Frames that a text describes one by one."""

_MEANINGS = {
    "consistency_db": "it is another picture",
    "colour_shift": "its colours are others",
    "block_shift": "a part of it is black or of another colour",
    "contrast": "it is flat, or its contrast is another",
    "clipped": "too much of it is black or white",
    "flicker": "it flashes",
}


class Timed(Protocol):
    """A source: a ``VideoPlan``, or one that is not known to its end."""

    @property
    def info(self) -> VideoInfo:
        """Its facts."""

    def seconds_of(self, index: int) -> float:
        """Return when a frame is shown, in seconds.

        Args:
            index: Its index.

        Returns:
            Seconds of the source's times.
        """


class SegmentChecks:
    """The checks of one segment, in one try.

    Args:
        plan: The source.
        specs: The chain.
        level: How closely frames are compared.
        given: (width, height) of the frames that the first model gets; None for those of the source.
    """

    def __init__(
        self,
        plan: Timed,
        specs: Sequence[ModelSpec],
        level: CheckLevel,
        given: tuple[int, int] | None = None,
    ) -> None:
        self._plan = plan
        self._limits = _choose(given or (plan.info.width, plan.info.height), specs, level)
        self._meter = SourceMeter(self._limits) if self._limits is not None else None
        self._indices: list[int] = []
        self._bad: dict[int, list[str]] = {}
        self.num_checked = 0
        """Frames of the result that are compared, with those that repeat a frame."""

    @property
    def has_failed(self) -> bool:
        """Whether a frame is beyond a limit."""
        return bool(self._bad)

    def add(self, index: int, source: npt.NDArray[Any], output: npt.NDArray[Any], shown: int) -> None:
        """Compare the next frame.

        Args:
            index: Its index in the source; rising.
            source: What the first model got, (H, W, 3), uint8 or uint16.
            output: What the chain has made of it, (sH, sW, 3) of the same dtype.
            shown: How often the result shows it.
        """
        if self._meter is None or self._limits is None:
            return
        self._meter.add(output, source)
        self._indices.append(index)
        self.num_checked += shown
        for position in range(max(len(self._indices) - 2, 0), len(self._indices)):  # flicker is known one frame later
            reasons = _judge(self._meter.frames[position], self._limits)
            if reasons:
                self._bad[position] = reasons

    def measured(self) -> dict[str, float | str]:
        """Return the worst value of each strict measure, for the record of the segment.

        Returns:
            Numbers of four digits by ``lowest_`` or ``highest_`` and the name of the measure; the text ``inf`` for an
            infinite one. Empty if nothing was compared, or not strictly.
        """
        found: dict[str, float | str] = {}
        if self._meter is None or self._limits is None or self._limits.by_blocks:
            return found
        for limit, name in LIMITS.items():
            values = [value for one in self._meter.frames if (value := getattr(one, name)) is not None]
            if values:
                word, worst = ("lowest", min(values)) if limit.startswith("min") else ("highest", max(values))
                found[f"{word}_{name}"] = float(f"{worst:.4g}") if math.isfinite(worst) else "inf"
        return found

    def describe(self) -> str:
        """Say which frames are wrong, what was measured of them, and what is allowed.

        Returns:
            The text; empty if none is.
        """
        texts = []
        for position, reasons in list(self._bad.items())[:MOST_NAMED]:
            index = self._indices[position]
            texts.append(f"frame {index} ({self._plan.seconds_of(index):.3f} s): {', '.join(reasons)}")
        if len(self._bad) > MOST_NAMED:
            last = self._indices[list(self._bad)[-1]]
            texts.append(f"{len(self._bad) - MOST_NAMED} more frames up to {last}")
        return "; ".join(texts)


def predict_check_bytes(info: VideoInfo, scale: int, level: CheckLevel) -> int:
    """Predict the memory of the checks of one frame.

    Args:
        info: Properties of the source.
        scale: Pixels of the result for one of the source along each axis.
        level: How closely frames are compared.

    Returns:
        Bytes; little unless the level is strict.
    """
    if level != CheckLevel.STRICT:
        return 0
    bytes_per_px = max(STRICT_BYTES_PER_PX, STRICT_FIXED_BYTES_PER_PX + STRICT_BYTES_PER_RESULT_PX * scale**2)
    return bytes_per_px * info.width * info.height


def _choose(size: tuple[int, int], specs: Sequence[ModelSpec], level: CheckLevel) -> SourceChecks | None:
    """Return the limits for a chain; None if its frames cannot be compared with those of the source."""
    between = (ModelTask.INTERPOLATION, ModelTask.BACKGROUND_REMOVAL)
    # Of a model without a spec only the size is known: it may keep the picture or colour it.
    tasks = [
        ModelTask.LOW_LIGHT if spec.unsure and spec.task is ModelTask.DENOISING else spec.task
        for spec in specs
        if spec.task not in between
    ]
    if level == CheckLevel.OFF or not tasks or not KEEPS_FRAMES.issuperset(tasks):
        return None
    if min(size) < LEAST_SIDE_PX:
        return None
    task = next((one for one in (ModelTask.LOW_LIGHT, ModelTask.DENOISING) if one in tasks), ModelTask.UPSCALING)
    return SourceChecks(task=task) if level == CheckLevel.STRICT else SourceChecks.for_accidents(task)


def _judge(measures: FrameMeasures, limits: SourceChecks) -> list[str]:
    reasons = []
    for limit, name in LIMITS.items():
        value = getattr(measures, name)
        allowed = getattr(limits, limit)
        is_least = limit.startswith("min")
        if value is not None and (value < allowed if is_least else value > allowed):
            words = f"allowed: {'at least' if is_least else 'at most'} {allowed:g}"
            reasons.append(f"{name} is {value:.3g} ({_MEANINGS[name]}; {words})")
    return reasons
