"""Measures of a result without a reference: against the frames it was made of, and against its own neighbours.

Every measure is for one frame and catches accidents, not small losses: a black or flat frame, a shifted colour, NaN,
clipping, a flicker, the seams of tiles. ``docs/quality.md`` has values of packaged models on clean clips.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields
from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.quality.planes import reduce_frame
from genai_ray.types import ModelTask, full_range

__all__ = ["FrameMeasures", "SourceChecks", "SourceMeter", "seam_energy"]

Array: TypeAlias = npt.NDArray[Any]
Blocks: TypeAlias = npt.NDArray[np.float64]

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

LEAST_CONTRAST = 0.7
MOST_CONTRAST = 1.08

ACCIDENT_COLOUR_SHIFT = 0.12
ACCIDENT_BLOCK_SHIFT = 0.25
ACCIDENT_CONTRAST = 0.4
"""Limits of ``SourceChecks.for_accidents``. Packaged models reach 0.064, 0.126 and 0.841 on 137 files of every kind,
all three in dithered pictures of two colours (``tests/benchmarks/check_limits.py``)."""

LOW_LIGHT_CONTRAST = 0.02
"""Brightening takes contrast from bright pictures, down to 0.12 in these files; a flat frame has none."""

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
    source in every way; low light only in ``clipped`` and ``contrast``, because what it adds varies in space and time;
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
    max_block_shift: float = 0.12
    """Most ``FrameMeasures.block_shift``."""
    min_contrast: float | None = None
    """Least ``FrameMeasures.contrast``; None for 0.7, and 0.02 for low light."""
    max_contrast: float | None = None
    """Most ``FrameMeasures.contrast``; None for 1.08, and no limit for low light."""
    max_clipped: float = 0.35
    """Most ``FrameMeasures.clipped``."""
    max_flicker: float = 0.03
    """Most ``FrameMeasures.flicker``; it is not measured if this is infinite."""
    max_seam: float = 0.08
    """Most ``FrameMeasures.seam``."""
    by_blocks: bool = False
    """Whether only the means of blocks are compared, which takes about a hundredth of the time: ``colour_shift``,
    ``block_shift``, ``contrast`` and ``flicker``; of low light ``contrast`` alone."""

    @staticmethod
    def for_accidents(task: ModelTask) -> SourceChecks:
        """Return quick checks that only an accident fails: a black or flat frame or part of one, a wrong colour.

        Args:
            task: The model's task.

        Returns:
            The checks, by blocks, with wide limits; they find nothing for tasks that make no frame of each frame.
        """
        return SourceChecks(
            task=task,
            by_blocks=True,
            min_consistency_db=-math.inf,
            max_colour_shift=ACCIDENT_COLOUR_SHIFT,
            max_block_shift=ACCIDENT_BLOCK_SHIFT,
            min_contrast=None if task == ModelTask.LOW_LIGHT else ACCIDENT_CONTRAST,
            max_contrast=math.inf,
            max_clipped=math.inf,
            max_flicker=math.inf,
            max_seam=math.inf,
        )

    def __post_init__(self) -> None:
        if self.task not in list(ModelTask):
            raise InvalidInputError(f"the task {self.task!r}", ", ".join(ModelTask))
        object.__setattr__(self, "task", ModelTask(self.task))
        is_low_light = self.task is ModelTask.LOW_LIGHT
        for name, value in {
            "min_consistency_db": DENOISED_DB if self.task is ModelTask.DENOISING else UPSCALED_DB,
            "min_contrast": LOW_LIGHT_CONTRAST if is_low_light else LEAST_CONTRAST,
            "max_contrast": math.inf if is_low_light else MOST_CONTRAST,
        }.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in LIMITS:
            if math.isnan(getattr(self, name)):
                raise QualityError(f"{name}={getattr(self, name)}", "a number; infinite for no limit")
        for line in (*self.seam_rows_px, *self.seam_columns_px):
            if line < 1:
                raise QualityError(f"a tile that begins at pixel {line}", "1 or more; the frame's edge is no seam")


LIMITS = {
    "min_consistency_db": "consistency_db",
    "max_colour_shift": "colour_shift",
    "max_block_shift": "block_shift",
    "min_contrast": "contrast",
    "max_contrast": "contrast",
    "max_clipped": "clipped",
    "max_flicker": "flicker",
    "max_seam": "seam",
}
"""The measure that each limit of ``SourceChecks`` is for."""


@describe_fields
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
    block_shift: float | None = None
    """The largest ``|mean D|`` of any channel of any block of ``contrast``, a share of full range."""
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
        blocks = None
        num_invalid = 0
        if output.dtype.kind == "f":
            num_invalid = int(output.size - np.count_nonzero((output >= 0) & (output <= 1)))  # NaN is neither
        measures = FrameMeasures(num_invalid)
        if not num_invalid and source is not None:
            _check_source(source)
            if self._checks.by_blocks:
                measures, blocks = self._measure_blocks(output, source)
            else:
                measures, blocks = self._measure(output, source)
        self._blocks = [*self._blocks[-2:], blocks]
        self.frames.append(measures)
        is_followed = math.isfinite(self._checks.max_flicker)
        if is_followed and len(self._blocks) == 3 and self.frames[-2].num_invalid == 0:
            self._follow()

    def _measure(self, output: Array, source: Array) -> tuple[FrameMeasures, Blocks | None]:
        reduced, values = _to_one_size(output, source)
        top = full_range(output.dtype)
        values /= top
        clipped = _share_clipped(output, values)
        difference = reduced / top - values
        blocks = _block_means(difference)
        contrast = _contrast(_block_means(values), blocks)
        if self._checks.task not in KEEPS_PICTURE:
            return FrameMeasures(0, contrast=contrast, clipped=clipped), None
        means, squares = _moments(difference)
        mse = float(squares.mean())
        measures = FrameMeasures(
            0,
            consistency_db=math.inf if mse == 0 else -10 * math.log10(mse),
            colour_shift=float(np.abs(means).max()),
            block_shift=float(np.abs(blocks).max()),
            contrast=contrast,
            clipped=clipped,
            seam=seam_energy(difference, values, self._checks.seam_rows_px, self._checks.seam_columns_px),
        )
        return measures, blocks

    def _measure_blocks(self, output: Array, source: Array) -> tuple[FrameMeasures, Blocks | None]:
        scale = _scale_of(output, source)
        top = full_range(output.dtype)
        before = _block_means(source) / top
        blocks = _block_means(output, scale) / top - before
        contrast = _contrast(before, blocks)
        if self._checks.task not in KEEPS_PICTURE:
            return FrameMeasures(0, contrast=contrast), None
        sizes = _find_grid(*source.shape[:2], 1).sizes
        means = (blocks * sizes).sum(axis=(0, 1)) / sizes.sum()
        measures = FrameMeasures(
            0,
            colour_shift=float(np.abs(means).max()),
            block_shift=float(np.abs(blocks).max()),
            contrast=contrast,
        )
        return measures, blocks

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
    return reduce_frame(output, _scale_of(output, source)), source.astype(np.float64)


def _check_source(source: Array) -> None:
    if source.dtype.kind == "f" and not np.isfinite(source).all():
        raise InvalidInputError("a source with NaN or infinite values", "finite values")


def _scale_of(output: Array, source: Array) -> int:
    """Return how many pixels of a result come from one of its source along each axis; refuse what does not match."""
    if output.dtype != source.dtype or output.shape[-1:] != source.shape[-1:]:
        got = f"a result {output.shape} {output.dtype} of a source {source.shape} {source.dtype}"
        raise QualityError(got, "equal dtype and channels", "Nothing is converted silently.")
    scale = int(output.shape[0]) // max(int(source.shape[0]), 1)
    if scale < 1 or output.shape[:2] != (source.shape[0] * scale, source.shape[1] * scale):
        got = f"a result of {output.shape[1]}x{output.shape[0]} of a source of {source.shape[1]}x{source.shape[0]}"
        raise QualityError(got, "the source's size, or a whole multiple of it along both axes")
    return scale


def _share_clipped(output: npt.NDArray[Any], source: npt.NDArray[np.float64]) -> float:
    """Count the values at either end whose source, a share of full range, is not near that end."""
    height, width, channels = source.shape
    blocks = output.reshape(height, output.shape[0] // height, width, output.shape[1] // width, channels)
    top = output.dtype.type(full_range(output.dtype))  # of another type, every value would be converted
    # One end after the other, in place: these are the largest arrays of the measures if a chain enlarges much.
    ends = blocks <= 0
    ends &= (source > CLIP_DISTANCE)[:, None, :, None]
    num_clipped = np.count_nonzero(ends)
    np.greater_equal(blocks, top, out=ends)
    ends &= (source < 1 - CLIP_DISTANCE)[:, None, :, None]
    return float((num_clipped + np.count_nonzero(ends)) / output.size)


def _moments(frame: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the mean square of each channel; summed by rows first, which is 20 times as fast."""
    pixels = frame.shape[0] * frame.shape[1]
    sums, squares = (values.sum(axis=0).sum(axis=0) / pixels for values in (frame, np.square(frame)))
    return sums, squares


def _deviation(frame: npt.NDArray[np.float64]) -> float:
    means, squares = _moments(frame)
    return math.sqrt(max(float((squares - np.square(means)).mean()), 0.0))


def _contrast(before: Blocks, change: Blocks) -> float | None:
    """Compare the deviation of block means after a change with that before; None if there was hardly any."""
    deviation = _deviation(before)
    return None if deviation < _FLAT else _deviation(before + change) / deviation


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """The blocks of frames of one size: at most 8 x 8, of even size, of 32 x 32 pixels of the source or more."""

    rows: tuple[int, ...]
    """First rows, and the height at the end."""
    columns: tuple[int, ...]
    """First columns."""
    sizes: npt.NDArray[np.int64]
    """Pixels of each block, (rows, columns, 1)."""


@functools.lru_cache(maxsize=8)
def _find_grid(height: int, width: int, scale: int) -> _Grid:
    """Return the blocks of a frame whose blocks are those of the frame reduced by ``scale``."""
    starts = []
    for side in (height // scale, width // scale):
        count = min(MOST_BLOCKS, max(side // LEAST_BLOCK_PX, 1))
        starts.append(tuple(int(start) * scale for start in np.linspace(0, side, count, endpoint=False, dtype=int)))
    rows, columns = starts
    sizes = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return _Grid((*rows, height), columns, sizes[..., None])


def _block_means(frame: Array, scale: int = 1) -> Blocks:
    """Average in blocks of even size: (rows, columns, C), at most 8 x 8, of 32 x 32 pixels of the source or more.

    Rows are added up first, as one long vector each: five times as fast as ``reduceat`` along them, and exact for
    integers.
    """
    height, width, channels = frame.shape
    grid = _find_grid(height, width, scale)
    kind = np.uint64 if frame.dtype.kind == "u" else np.float64
    narrow = np.uint32 if frame.dtype.kind == "u" and height <= 2**16 else kind  # 2**16 rows of 2**16 - 1 still fit
    flat = frame.reshape(height, width * channels)
    bands = np.stack([flat[start:stop].sum(axis=0, dtype=narrow) for start, stop in itertools.pairwise(grid.rows)])
    sums = np.add.reduceat(bands.reshape(len(bands), width, channels), grid.columns, axis=1, dtype=kind)
    means: Blocks = sums / grid.sizes
    return means
