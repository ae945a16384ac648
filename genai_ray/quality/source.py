"""Measures of a result without a reference: against the frames it was made of, and against its own neighbours.

Every measure is for one frame and catches accidents, not small losses: a black or flat frame, a shifted colour, NaN,
clipping, a flicker, the seams of tiles. ``docs/quality.md`` has values of packaged models on clean clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.quality.planes import reduce_frame
from genai_ray.types import ModelTask, full_range

__all__ = ["FrameMeasures", "SourceChecks", "SourceMeter", "seam_energy"]

KEEPS_PICTURE = frozenset({ModelTask.UPSCALING, ModelTask.DENOISING})
"""Tasks whose result, reduced to the size of the source, is the source's picture."""

KEEPS_FRAMES = KEEPS_PICTURE | {ModelTask.LOW_LIGHT}
"""Tasks that make one RGB frame of each frame."""

UPSCALED_DB = 26.0
DENOISED_DB = 18.0

MOST_BLOCKS = 8
"""Blocks along each side of the picture whose means are compared, and followed over time."""

LEAST_BLOCK_PX = 32
"""Least side of a block, unless the picture is smaller: noise of 25 levels is 0.8 levels in the mean of 32 x 32."""

SEAM_NEAR_PX = 1
"""A model that pads a tile's edge changes about so many pixels at each side of the line."""

SEAM_FAR_PX = range(3, 7)
"""Distances from the line of the steps that it is compared with."""

SEAM_OF_EDGE = 0.1
"""Share of a hard edge of the source that a clean result may differ by at the same line."""

LEAST_EDGE_PX = 32
"""A tile's edge that is shorter is measured together with its neighbour."""

CLIP_DISTANCE = 8 / 255
"""A value at an end of the range is clipped if the source is farther from that end than this share of full range."""

_FLAT = 3 / 255
"""A source whose blocks have a lower standard deviation has no contrast to compare; noise of 25 levels alone has
0.8 / 255."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceChecks:
    """What a result without a reference is compared with, and the limits of each measure.

    The limits lie beyond every value that three packaged models have on clean clips; ``docs/quality.md`` names them and
    the margins.
    """

    frames: Any = None
    """The frames that the model got: as ``QualityValidator.validate`` takes them; None for the column ``frame`` of the
    validated batch."""
    task: ModelTask = ModelTask.UPSCALING
    """The model's task, ``session.spec.task``. Upscaling and denoising keep the picture, and are compared with the
    source in every way; low light only in ``clipped``, because what it adds varies with the picture, in space and time;
    results of other tasks are only searched for invalid values."""
    seam_rows_px: tuple[int, ...] = ()
    """Rows of the source at which a tile begins, from ``session.tile_lines``; none for untiled results."""
    seam_columns_px: tuple[int, ...] = ()
    """Columns of the source at which a tile begins."""
    min_consistency_db: float | None = None
    """Least ``FrameMeasures.consistency_db``; None for 26 dB, and 18 dB for denoising: noise of a standard deviation of
    25 levels, removed, is about 21 dB."""
    max_colour_shift: float = 0.04
    """Most ``FrameMeasures.colour_shift``."""
    min_contrast: float = 0.7
    """Least ``FrameMeasures.contrast``."""
    max_contrast: float = 1.08
    """Most ``FrameMeasures.contrast``."""
    max_clipped: float = 0.35
    """Most ``FrameMeasures.clipped``."""
    max_flicker: float = 0.03
    """Most ``FrameMeasures.flicker``."""
    max_seam: float = 0.08
    """Most ``FrameMeasures.seam``."""

    def __post_init__(self) -> None:
        if self.task not in list(ModelTask):
            raise InvalidInputError(f"the task {self.task!r}", ", ".join(ModelTask))
        object.__setattr__(self, "task", ModelTask(self.task))
        if self.min_consistency_db is None:
            least_db = DENOISED_DB if self.task is ModelTask.DENOISING else UPSCALED_DB
            object.__setattr__(self, "min_consistency_db", least_db)
        for name in LIMITS:
            if not math.isfinite(getattr(self, name)):
                raise QualityError(f"{name}={getattr(self, name)}", "a finite number")
        for line in (*self.seam_rows_px, *self.seam_columns_px):
            if line < 1:
                raise QualityError(f"a tile that begins at pixel {line}", "1 or more; the frame's edge is no seam")


LIMITS = {
    "min_consistency_db": "consistency_db",
    "max_colour_shift": "colour_shift",
    "min_contrast": "contrast",
    "max_contrast": "contrast",
    "max_clipped": "clipped",
    "max_flicker": "flicker",
    "max_seam": "seam",
}
"""The measure that each limit of ``SourceChecks`` is for."""


@dataclass(frozen=True, slots=True)
class FrameMeasures:
    """What was measured of one frame; a measure that does not apply is None.

    In the formulas, ``D`` is the result, reduced to the source's size by the mean of s x s pixels, minus the source,
    both divided by the dtype's full range.
    """

    num_invalid: int
    """Values that are NaN, infinite or outside [0, 1]; always 0 for integers. If any, nothing else is measured."""
    consistency_db: float | None = None
    """``-10 log10(mean D^2)`` in dB, over all pixels and channels; ``inf`` if equal. The PSNR of the reduced result
    against the source; super-resolution papers call it LR-consistency (Lugmayr et al., NTIRE 2021, section 3.2), but
    reduce by a bicubic kernel, so their numbers are not comparable with these."""
    colour_shift: float | None = None
    """The largest of the channels' ``|mean D|``, a share of full range: 0.01 is 2.55 levels of 255."""
    contrast: float | None = None
    """Standard deviation of the block means of the reduced result over that of the source, each the root of the mean
    variance of the channels; about 1, and 0 for a flat frame. At most 8 x 8 blocks, of 32 x 32 pixels or more, so that
    noise does not count. None if the source's is below 3 / 255."""
    clipped: float | None = None
    """Share of values at either end of the range where the source is more than 8 / 255 away from that end."""
    seam: float | None = None
    """``seam_energy`` of D and the source; None without tiles."""
    flicker: float | None = None
    """How far the frame stands out from both neighbours in time, a share of full range: D is averaged in the blocks of
    ``contrast``; of each block and channel, the smaller of its two differences to the frames before and after if both
    have the same sign, else 0; the largest of these. A scene cut differs to one side only. None at the ends of a
    clip."""


def seam_energy(
    difference: npt.NDArray[np.float64],
    source: npt.NDArray[np.float64],
    rows_px: Sequence[int],
    columns_px: Sequence[int],
) -> float | None:
    """Measure how much a result jumps at the edges of tiles, compared with places nearby and with its source.

    A tile's edge is the stretch of a line between two crossing lines. The step at k is the mean over the edge of
    ``|D[k] - D[k - 1]|``. Its excess is the largest step at k - 1, k and k + 1, minus the mean step at the distances 3
    to 6, as measures of blocking compare steps at block borders with those inside (Wu and Yuen 1997, "A generalized
    block-edge impairment metric"). A tenth of the source's own excess is subtracted: at hard edges of the picture, a
    clean result differs from its source as well.

    Args:
        difference: (H, W, C), result minus source, shares of full range.
        source: (H, W, C), shares of full range.
        rows_px: Rows at which a tile begins.
        columns_px: Columns at which a tile begins.

    Returns:
        The largest energy of the edges, a share of full range; None if no line has pixels at both sides.
    """
    energies = []
    for axis, lines, crossing in ((0, rows_px, columns_px), (1, columns_px, rows_px)):
        if not lines:
            continue
        steps, own = (_steps(frame, axis, crossing) for frame in (difference, source))
        for line in lines:
            at = line - 1  # the step between pixels line - 1 and line
            near = slice(max(at - SEAM_NEAR_PX, 0), at + SEAM_NEAR_PX + 1)
            far = [at + way * px for px in SEAM_FAR_PX for way in (-1, 1) if 0 <= at + way * px < len(steps)]
            if at < len(steps) and far:
                jumps, edges = (values[near].max(axis=0) - values[far].mean(axis=0) for values in (steps, own))
                energies.append(float((jumps - SEAM_OF_EDGE * np.maximum(edges, 0)).max()))
    return max(energies, default=None)


def _steps(frame: npt.NDArray[np.float64], axis: int, crossing_px: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the mean step between neighbours along an axis: (pixels - 1, stretches between crossing lines)."""
    steps = np.abs(np.diff(frame, axis=axis)).mean(axis=2)
    if axis == 1:
        steps = steps.T
    starts = [0]
    for line in sorted(crossing_px):
        if starts[-1] + LEAST_EDGE_PX <= line <= steps.shape[1] - LEAST_EDGE_PX:
            starts.append(line)
    sums: npt.NDArray[np.float64] = np.add.reduceat(steps, starts, axis=1)
    return sums / np.diff([*starts, steps.shape[1]])


class SourceMeter:
    """Measures the frames of one result in the order of time.

    Args:
        checks: The task, and the lines of tiles.
    """

    def __init__(self, checks: SourceChecks) -> None:
        self._checks = checks
        self._blocks: list[npt.NDArray[np.float64] | None] = []
        self.frames: list[FrameMeasures] = []
        """Measures of the frames so far; the flicker of the last one is not known yet."""

    def add(self, output: npt.NDArray[Any], source: npt.NDArray[Any] | None) -> None:
        """Measure the next frame.

        Args:
            output: (sH, sW, C), uint8, uint16 or float32.
            source: (H, W, 3), the same dtype; None if the task does not make one frame of each frame.

        Raises:
            QualityError: If the size is no whole multiple of the source's, or dtype or channels differ.
            InvalidInputError: If the dtype is not one of these, or the source has NaN or infinite values.
        """
        top = full_range(output.dtype)
        blocks = None
        num_invalid = 0
        if output.dtype.kind == "f":
            num_invalid = int(output.size - np.count_nonzero((output >= 0) & (output <= top)))  # NaN is neither
        if num_invalid or source is None:
            measures = FrameMeasures(num_invalid)
        else:
            reduced, before = _to_one_size(output, source)
            difference = (reduced - before) / top
            blocks = _block_means(difference) if self._checks.task in KEEPS_PICTURE else None
            measures = self._measure(output, before / top, difference, blocks)
        self._blocks = [*self._blocks[-2:], blocks]
        self.frames.append(measures)
        if len(self._blocks) == 3 and self.frames[-2].num_invalid == 0:
            self._follow()

    def _measure(
        self,
        output: npt.NDArray[Any],
        source: npt.NDArray[np.float64],
        difference: npt.NDArray[np.float64],
        blocks: npt.NDArray[np.float64] | None,
    ) -> FrameMeasures:
        clipped = _share_clipped(output, source)
        if blocks is None:
            return FrameMeasures(0, clipped=clipped)
        means, squares = _moments(difference)
        mse = float(squares.mean())
        before = _block_means(source)
        deviation = _deviation(before)
        return FrameMeasures(
            0,
            consistency_db=math.inf if mse == 0 else -10 * math.log10(mse),
            colour_shift=float(np.abs(means).max()),
            contrast=None if deviation < _FLAT else _deviation(before + blocks) / deviation,
            clipped=clipped,
            seam=seam_energy(difference, source, self._checks.seam_rows_px, self._checks.seam_columns_px),
        )

    def _follow(self) -> None:
        """Measure the flicker of the frame before the last."""
        before, own, after = self._blocks
        if before is None or own is None or after is None or not before.shape == own.shape == after.shape:
            return
        back = own - before
        ahead = own - after
        jumps = np.where(back * ahead > 0, np.minimum(np.abs(back), np.abs(ahead)), 0.0)
        values = {name: getattr(self.frames[-2], name) for name in FrameMeasures.__slots__}
        self.frames[-2] = FrameMeasures(**(values | {"flicker": float(jumps.max())}))


def _to_one_size(
    output: npt.NDArray[Any], source: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reduce a result to the size of its source; both as float64."""
    if output.dtype != source.dtype or output.shape[-1:] != source.shape[-1:]:
        got = f"a result {output.shape} {output.dtype} of a source {source.shape} {source.dtype}"
        raise QualityError(got, "equal dtype and channels", "Nothing is converted silently.")
    if source.dtype.kind == "f" and not np.isfinite(source).all():
        raise InvalidInputError("a source with NaN or infinite values", "finite values")
    scale = output.shape[0] // max(source.shape[0], 1)
    if scale < 1 or output.shape[:2] != (source.shape[0] * scale, source.shape[1] * scale):
        got = f"a result of {output.shape[1]}x{output.shape[0]} of a source of {source.shape[1]}x{source.shape[0]}"
        raise QualityError(got, "the source's size, or a whole multiple of it along both axes")
    return reduce_frame(output, scale), source.astype(np.float64)


def _share_clipped(output: npt.NDArray[Any], source: npt.NDArray[np.float64]) -> float:
    """Count the values at either end whose source, a share of full range, is not near that end."""
    height, width, channels = source.shape
    blocks = output.reshape(height, output.shape[0] // height, width, output.shape[1] // width, channels)
    top = output.dtype.type(full_range(output.dtype))  # of another type, every value would be converted
    low, high = (
        ends & apart[:, None, :, None]
        for ends, apart in ((blocks <= 0, source > CLIP_DISTANCE), (blocks >= top, source < 1 - CLIP_DISTANCE))
    )
    return float((np.count_nonzero(low) + np.count_nonzero(high)) / output.size)


def _moments(frame: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the mean square of each channel; summed by rows first, which is 20 times as fast."""
    pixels = frame.shape[0] * frame.shape[1]
    sums, squares = (values.sum(axis=0).sum(axis=0) / pixels for values in (frame, np.square(frame)))
    return sums, squares


def _deviation(frame: npt.NDArray[np.float64]) -> float:
    means, squares = _moments(frame)
    return math.sqrt(max(float((squares - np.square(means)).mean()), 0.0))


def _block_means(frame: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average in blocks of even size: (rows, columns, C), at most 8 x 8, of 32 x 32 pixels or more."""
    height, width, channels = frame.shape
    counts = (min(MOST_BLOCKS, max(side // LEAST_BLOCK_PX, 1)) for side in (height, width))
    rows, columns = (
        np.linspace(0, side, count, endpoint=False, dtype=int)
        for side, count in zip((height, width), counts, strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(frame, rows, axis=0), columns, axis=1)
    sizes = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    means: npt.NDArray[np.float64] = sums / sizes[..., None]
    return means.reshape(len(rows), len(columns), channels)
