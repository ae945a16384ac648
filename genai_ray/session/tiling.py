"""Cuts a frame into tiles that together equal the whole frame, bit for bit.

The model gets a tile with a halo of at least the receptive-field radius around the part that is kept; a smaller halo,
that of a spec's ``tiles``, gives nearly the whole frame. A tile ends at
the border of the frame, so that the model's own padding is the same as without tiles. Origins are multiples of the
model's stride. Tiles of a frame have one shape (the last may be less than a stride longer).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

__all__ = ["Tile", "TileSpan", "split_exactly", "split_frame", "split_length"]


@dataclass(frozen=True, slots=True)
class TileSpan:
    """One tile along one axis, in input pixels, half-open."""

    start: int
    """First pixel that the model gets."""
    stop: int
    """One past the last pixel that the model gets."""
    keep_start: int
    """First pixel whose result is kept."""
    keep_stop: int
    """One past the last pixel whose result is kept."""

    def kept_of_frame(self, scale: int) -> slice:
        """Return where the kept part lies in the resulting frame.

        Args:
            scale: Output pixels per input pixel.

        Returns:
            Output pixels.
        """
        return slice(self.keep_start * scale, self.keep_stop * scale)

    def kept_of_tile(self, scale: int) -> slice:
        """Return where the kept part lies in the model's result for this tile.

        Args:
            scale: Output pixels per input pixel.

        Returns:
            Output pixels.
        """
        return slice((self.keep_start - self.start) * scale, (self.keep_stop - self.start) * scale)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a frame."""

    rows: TileSpan
    """Along the height."""
    columns: TileSpan
    """Along the width."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels of what the model gets."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that the model gets."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)


def split_length(
    length_px: int, tile_size_px: int, overlap_px: int, stride_px: int = 1, *, is_uniform: bool = False
) -> tuple[TileSpan, ...]:
    """Cut one axis into the fewest even spans of about ``tile_size_px`` or less, which overlap by at least two halos.

    Args:
        length_px: Length of the axis.
        tile_size_px: Longest span that the model gets, halo included; longer if less than one stride would be kept.
        overlap_px: Halo on each inner side: the receptive-field radius.
        stride_px: Origins are multiples of it.
        is_uniform: Whether spans have one length for all axes that are longer, if strides allow it, rather than as
            little overlap as possible: frames of all sizes then have tiles of one shape.

    Returns:
        Spans in order; their kept parts cover the axis exactly once.
    """
    halo = -(-overlap_px // stride_px) * stride_px
    longest = max(tile_size_px // stride_px * stride_px, 2 * halo + 4 * stride_px)
    if length_px <= longest:
        return (TileSpan(0, length_px, 0, length_px),)
    if is_uniform and (length_px - longest) % stride_px == 0:
        return split_exactly(length_px, longest, halo, stride_px)
    usable = longest - stride_px if stride_px > 1 else longest  # aligning an origin may cost up to a stride
    count = -(-(length_px - 2 * halo) // (usable - 2 * halo))
    size = -(-(length_px + 2 * halo * (count - 1)) // count)
    size = -(-size // stride_px) * stride_px + (stride_px if stride_px > 1 else 0)
    starts = [(length_px - size) * i // (count - 1) // stride_px * stride_px for i in range(count)]
    stops = [start + size for start in starts[:-1]] + [length_px]
    cuts = [0, *((a + b) // 2 for a, b in zip(starts[1:], stops, strict=False)), length_px]
    return tuple(TileSpan(*span) for span in zip(starts, stops, cuts, cuts[1:], strict=False))


def split_exactly(length_px: int, tile_px: int | None, overlap_px: int, stride_px: int = 1) -> tuple[TileSpan, ...]:
    """Cut one axis into spans that all have the length that a model fixes.

    Args:
        length_px: Length of the axis: ``tile_px``, or more by a multiple of the stride.
        tile_px: Length of every span; None for the whole axis.
        overlap_px: Halo on each inner side, less than half of ``tile_px``.
        stride_px: Origins are multiples of it.

    Returns:
        Spans in order; their kept parts cover the axis exactly once.
    """
    if tile_px is None or length_px == tile_px:
        return (TileSpan(0, length_px, 0, length_px),)
    room = length_px - tile_px
    step = max((tile_px - 2 * overlap_px) // stride_px, 1) * stride_px
    count = -(-room // step) + 1
    starts = [room * i // (count - 1) // stride_px * stride_px for i in range(count)]
    cuts = [0, *((a + tile_px + b) // 2 for a, b in itertools.pairwise(starts)), length_px]
    return tuple(
        TileSpan(start, start + tile_px, *kept) for start, kept in zip(starts, itertools.pairwise(cuts), strict=True)
    )


def split_frame(
    height_px: int, width_px: int, tile_size_px: int, overlap_px: int, stride_px: int = 1, *, is_uniform: bool = False
) -> tuple[Tile, ...]:
    """Cut a frame into tiles, row by row.

    Args:
        height_px: Height of the frame.
        width_px: Width of the frame.
        tile_size_px: Longest side that the model gets, halo included.
        overlap_px: Halo on each inner side: the receptive-field radius.
        stride_px: Origins are multiples of it.
        is_uniform: As for ``split_length``.

    Returns:
        The tiles; a single one, the whole frame, if it is small enough.
    """
    rows, columns = (
        split_length(length, tile_size_px, overlap_px, stride_px, is_uniform=is_uniform)
        for length in (height_px, width_px)
    )
    return tuple(Tile(row, column) for row in rows for column in columns)
