"""Frames as Arrow tables: the schema of a batch of frames, and numpy views of its columns without a copy.

A batch of frames is a ``pyarrow.Table`` with the columns ``video`` string, ``frame_index`` int64, ``pts`` int64,
``time_base`` string "num/den" and ``frame``, a canonical ``arrow.fixed_shape_tensor`` [H, W, C] of uint8 or uint16 with
C = 1, 3 or 4. Results add ``output``, a column of the same kind, and ``latency_ms`` float64. The only importer of pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.errors import InvalidInputError, VideoError

__all__ = ["FRAME_COLUMNS", "TableWriter", "append_results", "build_index", "build_table", "from_column", "iter_frames", "to_column"]

FRAME_COLUMNS = ("video", "frame_index", "pts", "time_base", "frame")
"""Columns of a table of frames, in order."""


def to_column(frames: npt.NDArray[Any]) -> pa.FixedShapeTensorArray:
    """Make a column of frames; no copy where they are C-contiguous.

    Args:
        frames: (N, H, W, C), any numeric dtype; N may be 0.

    Returns:
        A tensor array of length N and shape [H, W, C] over the memory of ``frames``.

    Raises:
        InvalidInputError: If there are not four axes.
    """
    if frames.ndim != 4:
        raise InvalidInputError(f"a column of frames from shape {frames.shape}", "(N, H, W, C)")
    contiguous = np.ascontiguousarray(frames)  # else Arrow makes a permuted type without a word
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(frames.dtype), frames.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(contiguous.reshape(-1)), int(np.prod(frames.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def from_column(column: pa.Array | pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    """View a column of frames as numpy, without a copy.

    Args:
        column: A ``fixed_shape_tensor`` column, or Ray's tensor column types (variable shapes are copied, one array a frame).

    Returns:
        One read-only array (N, H, W, C) for each chunk that has rows, and for each run of frames of one shape within it.

    Raises:
        InvalidInputError: If the column does not hold frames.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [array for chunk in chunks if len(chunk) for array in _view(chunk)]


def iter_frames(table: pa.Table, column: str = "frame") -> Iterator[npt.NDArray[Any]]:
    """Walk over the frames of a table in runs of one shape.

    Args:
        table: A table with a column of frames.
        column: Its name.

    Yields:
        Arrays (n, H, W, C), which together are the column in order.

    Raises:
        InvalidInputError: If there is no such column, or it does not hold frames.
    """
    if column not in table.column_names:
        raise InvalidInputError(f"a table with the columns {table.column_names}", f"one with the column {column!r} of frames")
    yield from from_column(table.column(column))


def build_table(frames: npt.NDArray[Any], *, video: str, frame_index: Sequence[int], pts: Sequence[int], time_base: str) -> pa.Table:
    """Make a table of frames of one video.

    Args:
        frames: (N, H, W, C), uint8 or uint16.
        video: Path or URI of the video.
        frame_index: Position of each frame in the video, from 0.
        pts: Presentation time of each frame, in ``time_base`` units.
        time_base: "num/den" in seconds.

    Returns:
        A table of N rows with the columns of ``FRAME_COLUMNS``.

    Raises:
        InvalidInputError: If lengths differ, or frames are not (N, H, W, C).
    """
    if not len(frames) == len(frame_index) == len(pts):
        raise InvalidInputError(f"{len(frames)} frames with {len(frame_index)} indices and {len(pts)} pts", "equal numbers")
    return build_index(video=video, frame_index=frame_index, pts=pts, time_base=time_base).append_column("frame", to_column(frames))


def build_index(*, video: str, frame_index: Sequence[int], pts: Sequence[int], time_base: str) -> pa.Table:
    """Make a table of frames of one video without the frames themselves.

    Args:
        video: Path or URI of the video.
        frame_index: Position of each frame in the video, from 0.
        pts: Presentation time of each frame, in ``time_base`` units; as many as indices.
        time_base: "num/den" in seconds.

    Returns:
        A table with the columns of ``FRAME_COLUMNS`` but the last.
    """
    count = len(frame_index)
    columns = [pa.array([video] * count, pa.string()), pa.array(frame_index, pa.int64()), pa.array(pts, pa.int64())]
    return pa.table([*columns, pa.array([time_base] * count, pa.string())], names=list(FRAME_COLUMNS[:-1]))


def append_results(table: pa.Table, outputs: Sequence[npt.NDArray[Any]], latencies_ms: npt.NDArray[np.float64]) -> pa.Table:
    """Add the columns ``output`` and ``latency_ms`` to a table of frames.

    Args:
        table: A table of frames, N rows.
        outputs: Arrays (n, H, W, C), N frames together, all of one H, W and C.
        latencies_ms: Milliseconds of each row, N.

    Returns:
        The table with two more columns; outputs are not copied.

    Raises:
        InvalidInputError: If outputs have several shapes: map tables of one frame shape (``batch_size=None``).
    """
    shapes = {output.shape[1:] for output in outputs}
    if len(shapes) > 1:
        raise InvalidInputError(f"results of the shapes {sorted(shapes)} in one table", "one shape a table", "Map with batch_size=None.")
    column = pa.chunked_array([to_column(output) for output in outputs])
    return table.append_column("output", column).append_column("latency_ms", pa.array(latencies_ms, pa.float64()))


class TableWriter:
    """Writes tables of one schema into a Parquet file, a row group each; it appears under its name when the block ends without an error.

    Args:
        path: The file; replaced when it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add a row group.

        Args:
            table: Of the schema of the first one.

        Raises:
            VideoError: If the file cannot be written.
        """
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._partial, table.schema, compression="zstd", use_dictionary=False, write_statistics=False)
            self._writer.write_table(table)
        except OSError as exc:
            raise VideoError(f"{self.path}: writing failed: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    with self._partial.open("rb") as file:
                        os.fsync(file.fileno())
                    self._partial.replace(self.path)
        except OSError as exc:
            raise VideoError(f"{self.path}: writing failed: {exc}") from exc
        finally:
            self._partial.unlink(missing_ok=True)


def _view(chunk: pa.Array) -> list[npt.NDArray[Any]]:
    if isinstance(chunk, pa.FixedShapeTensorArray) and chunk.type.permutation in (None, [0, 1, 2]) and len(chunk.type.shape) == 3:
        return [chunk.to_numpy_ndarray()]
    if hasattr(chunk, "to_numpy") and type(chunk.type).__name__.startswith("ArrowVariableShapedTensor"):
        frames = chunk.to_numpy(zero_copy_only=False)
        starts = [i for i in range(len(frames)) if i == 0 or frames[i].shape != frames[i - 1].shape]
        return [np.stack(list(frames[a:b])) for a, b in zip(starts, [*starts[1:], len(frames)], strict=True)]
    if type(chunk.type).__name__.startswith("ArrowTensorType"):
        return [chunk.to_numpy(zero_copy_only=False)]
    raise InvalidInputError(f"a column of type {chunk.type}", "arrow.fixed_shape_tensor [H, W, C]", "Use genai_ray.frames.to_column.")
