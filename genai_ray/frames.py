"""Frames as Arrow tables: the schema of a batch of frames, and numpy views of its columns without a copy.

A batch of frames is a ``pyarrow.Table`` with the columns ``video`` string, ``frame_index`` int64, ``pts`` int64,
``time_base`` string "num/den" and ``frame``, a canonical ``arrow.fixed_shape_tensor`` [H, W, C] of uint8 or uint16 with
C = 1, 3 or 4. Results add ``output``, a column of the same kind, and ``latency_ms`` float64. A column may also hold PNG
or JPEG files as bytes, as ``encode_frames`` makes them; they are decoded when they are read. Only this module and
``tables`` import pyarrow.

A batch may also be a dict of numpy arrays or a pandas DataFrame, which Ray Data offers; results have the same type.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.files import describe_error, sync_file
from genai_ray.types import PictureFormat, take_word
from genai_ray.video import decode_pixels, encode_pixels

__all__ = [
    "FRAME_COLUMNS",
    "TableWriter",
    "append_results",
    "build_index",
    "build_table",
    "check_is_new",
    "encode_frames",
    "from_column",
    "iter_frames",
    "to_column",
]

FRAME_COLUMNS = ("video", "frame_index", "pts", "time_base", "frame")
"""Columns of a table of frames, in order."""

_RESULT_COLUMNS = ("output", "latency_ms")

FILES_AT_A_TIME = 32
"""Most frames of a column of files that are decoded in memory."""


def to_column(frames: npt.NDArray[Any]) -> pa.FixedShapeTensorArray:
    """Make a column of frames, without a copy if they are C-contiguous.

    Args:
        frames: (N, H, W, C), any numeric dtype; N may be 0.

    Returns:
        A tensor array of length N and shape [H, W, C] over the memory of ``frames``.

    Raises:
        InvalidInputError: If there are not four axes.
    """
    if frames.ndim != 4:
        raise InvalidInputError(f"a column of frames from shape {frames.shape}", "(N, H, W, C)")
    contiguous = np.ascontiguousarray(frames)  # else Arrow silently makes a permuted type
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(frames.dtype), frames.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(contiguous.reshape(-1)), int(np.prod(frames.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def from_column(column: pa.Array | pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    """View a column of frames as numpy, without a copy. All PNG or JPEG files of a column are decoded.

    Args:
        column: A ``fixed_shape_tensor`` column, one of Ray's tensor columns (variable shapes are copied), or a column
            of PNG or JPEG files.

    Returns:
        Read-only arrays (N, H, W, C): one for each chunk with rows, and for each run of frames of one shape in it; of
        files several, none longer than ``FILES_AT_A_TIME``.

    Raises:
        InvalidInputError: If the column does not hold frames, or a file does not decode.
    """
    return list(_views(column))


def iter_frames(batch: Any, column: str = "frame") -> Iterator[npt.NDArray[Any]]:
    """Walk over the frames of a batch in runs of one shape.

    Args:
        batch: A ``pyarrow.Table``, a dict of numpy arrays or a pandas DataFrame with a column of frames.
        column: Its name.

    Yields:
        Arrays (n, H, W, C), which together are the column in order; those of a table are not copied. PNG and JPEG files
        are decoded as they are reached, at most ``FILES_AT_A_TIME`` together.

    Raises:
        InvalidInputError: If it is not a batch, there is no such column, the column does not hold frames, or a file
            does not decode.
    """
    names = _names_of(batch)
    if column not in names:
        do = f'If the column has another name, rename it: dataset.rename_columns({{"image": {column!r}}}).'
        raise InvalidInputError(f"a batch with the columns {names}", f"one with the column {column!r} of frames", do)
    if isinstance(batch, pa.Table):
        yield from _views(batch.column(column))
        return
    values = batch[column]
    if isinstance(values, np.ndarray) and values.ndim == 4:
        yield from [values] if len(values) else ()
    elif any(isinstance(value, bytes) for value in values):
        yield from _decode_runs(values)
    else:
        yield from _join_runs([np.asarray(value) for value in values], column)


def encode_frames(batch: Any, kind: PictureFormat | str = PictureFormat.PNG, *, column: str = "frame") -> Any:
    """Put a file in place of each frame of a batch: in Parquet a table is then about as large as its pictures.

    ``read_videos(...).map_batches(encode_frames, batch_format="pyarrow", batch_size=None)`` does so for a dataset.

    Args:
        batch: A batch as for ``iter_frames``.
        kind: ``png`` is exact, with 8 or 16 bits; ``jpeg`` is lossy, and takes RGB of 8 bits alone.
        column: The column of frames.

    Returns:
        A batch of the same type with the same columns. Files that the column has already are decoded and encoded again.

    Raises:
        ConfigError: If the kind is none of these.
        InvalidInputError: As ``iter_frames``, or if the format cannot hold the frames.
    """
    wanted = take_word(PictureFormat, kind, "kind")
    files = [encode_pixels(frame, wanted) for run in iter_frames(batch, column) for frame in run]
    if isinstance(batch, pa.Table):
        return batch.set_column(batch.column_names.index(column), column, pa.array(files, pa.binary()))
    if isinstance(batch, Mapping):
        return {**batch, column: np.array(files, object)}
    return batch.assign(**{column: files})


def check_is_new(batch: Any) -> None:
    """Refuse a batch that has results already: it is not clear whether to enhance those or the frames.

    Args:
        batch: A batch as for ``iter_frames``.

    Raises:
        InvalidInputError: If it has the columns of results, or is not a batch.
    """
    there = [name for name in _RESULT_COLUMNS if name in _names_of(batch)]
    if there:
        raise InvalidInputError(
            f"a batch with the columns {there} already",
            "one without results",
            "To enhance results again: "
            'dataset.drop_columns(["frame", "latency_ms"]).rename_columns({"output": "frame"}).',
        )


def build_table(
    frames: npt.NDArray[Any], *, video: str, frame_index: Sequence[int], pts: Sequence[int], time_base: str
) -> pa.Table:
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
        raise InvalidInputError(
            f"{len(frames)} frames with {len(frame_index)} indices and {len(pts)} pts", "equal numbers"
        )
    return build_index(video=video, frame_index=frame_index, pts=pts, time_base=time_base).append_column(
        "frame", to_column(frames)
    )


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


def append_results(
    batch: Any,
    outputs: Sequence[Any],
    latencies_ms: npt.NDArray[np.float64],
    *,
    keeps_frames: bool = True,
) -> Any:
    """Add the columns ``output`` and ``latency_ms`` to a batch of frames.

    Args:
        batch: A batch as for ``iter_frames``, with N rows.
        outputs: Arrays (n, H, W, C) of N frames in total, or N files as bytes.
        latencies_ms: Milliseconds of each row, N.
        keeps_frames: Whether the column ``frame`` stays.

    Returns:
        A batch of the same type with two more columns; a table holds outputs of one shape without a copy.

    Raises:
        InvalidInputError: If the batch is a table whose frames have one shape, but outputs have several.
    """
    if not isinstance(batch, pa.Table):
        column = np.array(outputs, object) if isinstance(outputs[0], bytes) else _join(outputs)
        if isinstance(batch, Mapping):
            kept = {name: values for name, values in batch.items() if keeps_frames or name != "frame"}
            return {**kept, "output": column, "latency_ms": latencies_ms}
        kept = batch if keeps_frames else batch.drop(columns="frame")
        return kept.assign(output=list(column), latency_ms=latencies_ms)
    results = pa.array(outputs, pa.binary()) if isinstance(outputs[0], bytes) else _to_results(batch, outputs)
    kept = batch if keeps_frames else batch.drop_columns("frame")
    return kept.append_column("output", results).append_column("latency_ms", pa.array(latencies_ms, pa.float64()))


def _to_results(batch: pa.Table, outputs: Sequence[npt.NDArray[Any]]) -> Any:
    shapes = {output.shape[1:] for output in outputs}
    if len(shapes) == 1:
        return pa.chunked_array([to_column(output) for output in outputs])
    kind: Any = type(batch.column("frame").chunk(0))  # Ray's type if the frames have several shapes as well
    if not _is_variable(kind):
        raise InvalidInputError(f"results of the shapes {sorted(shapes)} for frames of one shape", "one shape")
    return kind.from_numpy(_join(outputs))


class TableWriter:
    """Writes tables of one schema into a Parquet file; the file appears when the block ends without an error.

    Args:
        path: The file; an existing one is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add a row group.

        Args:
            table: A table with the schema of the first one.

        Raises:
            VideoError: If the file cannot be written.
        """
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._partial, table.schema, compression="zstd", use_dictionary=False, write_statistics=False
                )
            self._writer.write_table(table)
        except OSError as exc:
            raise VideoError(f"{self.path}: writing failed: {describe_error(exc)}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    sync_file(self._partial)
                    self._partial.replace(self.path)
        except OSError as exc:
            raise VideoError(f"{self.path}: writing failed: {describe_error(exc)}") from exc
        finally:
            self._partial.unlink(missing_ok=True)


def _views(column: pa.Array | pa.ChunkedArray) -> Iterator[npt.NDArray[Any]]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    first_row = 0
    for chunk in chunks:
        if len(chunk):
            yield from _view(chunk, first_row)
        first_row += len(chunk)


def _view(chunk: pa.Array, first_row: int) -> Iterable[npt.NDArray[Any]]:
    if chunk.null_count:
        raise InvalidInputError(
            f"a column with {chunk.null_count} rows without a frame", "a frame in each row", "Filter them out first."
        )
    if (
        isinstance(chunk, pa.FixedShapeTensorArray)
        and chunk.type.permutation in (None, [0, 1, 2])
        and len(chunk.type.shape) == 3
    ):
        return [chunk.to_numpy_ndarray()]
    if _is_variable(type(chunk)):
        return list(_join_runs(list(chunk.to_numpy(zero_copy_only=False)), "frame"))
    if type(chunk.type).__name__.startswith("ArrowTensorType"):
        return [chunk.to_numpy(zero_copy_only=False)]
    if pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
        return _decode_runs((value.as_py() for value in chunk), first_row)
    raise InvalidInputError(
        f"a column of type {chunk.type}",
        "arrow.fixed_shape_tensor [H, W, C], or PNG or JPEG files as binary",
        "Use genai_ray.frames.to_column.",
    )


def _decode_runs(files: Iterable[Any], first_row: int = 0) -> Iterator[npt.NDArray[Any]]:
    """Decode files, and join neighbouring frames of one shape."""
    frames = (_decode(row, file) for row, file in enumerate(files, first_row))
    for _, run in itertools.groupby(frames, key=lambda frame: (frame.shape, frame.dtype)):
        while some := list(itertools.islice(run, FILES_AT_A_TIME)):
            yield np.stack(some)


def _decode(row: int, file: Any) -> npt.NDArray[Any]:
    if not isinstance(file, bytes):
        raise InvalidInputError(f"{type(file).__name__} in row {row}, among files", "a PNG or JPEG file in each row")
    try:
        return decode_pixels(file)
    except InvalidInputError as exc:
        raise InvalidInputError(f"row {row}: {exc.got}", exc.allowed, exc.do) from exc


def _is_variable(kind: type[pa.Array]) -> bool:
    """Tell whether a column is of Ray's type for tensors of several shapes."""
    return kind.__name__.startswith("ArrowVariableShapedTensor")


def _names_of(batch: Any) -> list[str]:
    if isinstance(batch, pa.Table):
        return list(batch.column_names)
    if isinstance(batch, Mapping):
        return list(batch)
    if hasattr(batch, "columns") and hasattr(batch, "assign"):  # pandas, which may not be installed
        return list(batch.columns)
    raise InvalidInputError(
        f"a batch of type {type(batch).__name__}",
        "a pyarrow.Table, a dict of numpy arrays or a pandas DataFrame, each with a column 'frame'",
    )


def _join_runs(frames: Sequence[npt.NDArray[Any]], column: str) -> Iterator[npt.NDArray[Any]]:
    """Join neighbouring frames of one shape."""
    odd = next((frame for frame in frames if frame.ndim != 3), None)
    if odd is not None:
        raise InvalidInputError(
            f"{odd.dtype} of shape {odd.shape} in the column {column!r}", "a frame (H, W, C) in each row"
        )
    for _, run in itertools.groupby(frames, key=lambda frame: (frame.shape, frame.dtype)):
        yield np.stack(list(run))


def _join(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return frames as one array (N, H, W, C); if they have several shapes, as an array of N arrays."""
    if len({array.shape[1:] for array in arrays}) == 1:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    joined = np.empty(sum(map(len, arrays)), object)
    for index, frame in enumerate(frame for array in arrays for frame in array):
        joined[index] = frame
    return joined
