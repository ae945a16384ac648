"""Runtime calls for a batch of frames: whole frames, pairs or tiles, several at once, online calls first."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.backends import RuntimeSession, TensorInfo
from genai_ray.errors import InferenceError, ModelLoadError
from genai_ray.session.sizing import Shapes
from genai_ray.session.tiling import Tile, split_exactly, split_frame

__all__ = ["RunPlan", "RunPool", "pad_frames", "run_frames", "zero_feeds"]

Array = npt.NDArray[Any]
_Work = tuple[Future[Any], Callable[[], Any]]
_Part = tuple[int, Tile | None]
"""Index of a result, and its tile; None for the whole frame."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How frames of one shape are cut into runtime calls."""

    scale: int
    """Output pixels per input pixel."""
    is_pairs: bool
    """Whether a result belongs to a frame and its successor (interpolation)."""
    run_batch: int
    """Frames in one runtime call."""
    tile_size_px: int | None
    """Longest side of a call, halo included; None for whole frames."""
    overlap_px: int
    """Halo of a tile: the receptive-field radius, or that of the spec's ``tiles``."""
    stride_px: int
    """Tile origins are multiples of it."""
    num_runs: int
    """Calls at the same time."""
    fixed_px: tuple[int | None, int | None] = (None, None)
    """(height, width) that every call must have; None for any length."""
    is_exact: bool = True
    """Whether tiles equal the whole frame. If not, results depend on the tiles: none are cut for idle cores."""
    is_uniform: bool = False
    """Whether tiles have one shape for frames of all sizes, and those of one frame share calls: on a GPU."""
    is_online: bool = False
    """Whether a request waits for the result: its calls overtake those of batch jobs."""

    def tiles(self, height_px: int, width_px: int, num_busy: int) -> tuple[Tile | None, ...]:
        """Return the tiles of a frame, or ``(None,)`` for the whole frame.

        A frame that would leave cores idle is cut into one strip per core, if halos cost at most an eighth.

        Args:
            height_px: Height of the frame.
            width_px: Width of the frame.
            num_busy: Frames that are computed together, including this one, and calls that run or wait already.

        Returns:
            Tiles in reading order.
        """
        if self.fixed_px not in ((None, None), (height_px, width_px)):
            rows, columns = (
                split_exactly(length, tile, self.overlap_px, self.stride_px)
                for length, tile in zip((height_px, width_px), self.fixed_px, strict=True)
            )
            return tuple(Tile(row, column) for row in rows for column in columns)
        if self.tile_size_px is None:
            return (None,)
        tiles = split_frame(
            height_px, width_px, self.tile_size_px, self.overlap_px, self.stride_px, is_uniform=self.is_uniform
        )
        if len(tiles) > 1:
            return tiles
        strips = self.num_runs // num_busy
        if self.is_exact and strips > 1 and height_px >= strips * (16 * self.overlap_px + 2 * self.stride_px):
            strip_px = -(-height_px // strips) + 2 * self.overlap_px + 2 * self.stride_px
            return tuple(
                Tile(row, tiles[0].columns)
                for row in (t.rows for t in split_frame(height_px, 1, strip_px, self.overlap_px, self.stride_px))
            )
        return (None,)


class RunPool:
    """Threads that make runtime calls: online ones first, otherwise in the order of arrival.

    Args:
        num_runs: Calls at the same time.
    """

    def __init__(self, num_runs: int) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, _Work | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False
        self._num_pending = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"genai-ray-run-{index}", daemon=True) for index in range(num_runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_pending(self) -> int:
        """Calls that run or wait."""
        return self._num_pending

    def submit(self, call: Callable[..., Any], *args: Any, is_online: bool) -> Future[Any]:
        """Make a call when a thread is free.

        Args:
            call: The function.
            args: Its arguments.
            is_online: Whether it overtakes calls that are not online.

        Returns:
            The future of its result.

        Raises:
            InferenceError: If the pool is closed, or this process is a fork, which has none of the pool's threads.
        """
        if self._process != os.getpid():
            do = "Open a session in this process, or start processes by 'spawn'."
            raise InferenceError(f"a run in a fork of process {self._process}, which opened the session", do=do)
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise InferenceError("a run of a closed session", do="Open a new one.")
            self._num_pending += 1
            self._queue.put((0 if is_online else 1, next(self._numbers), (future, lambda: call(*args))))
        return future

    def close(self) -> None:
        """Make the calls that wait, then end the threads; does nothing a second time, or in a fork."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            for _ in self._threads:
                self._queue.put((2, next(self._numbers), None))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()[2]) is not None:
            future, call = item
            result: Any = None
            error: BaseException | None = None
            is_wanted = future.set_running_or_notify_cancel()
            try:
                result = call() if is_wanted else None
            except BaseException as exc:  # noqa: BLE001 - the caller gets it from the future
                error = exc
            with self._lock:
                self._num_pending -= 1  # before the caller continues: its next frame must find a free thread
            if error is not None:
                future.set_exception(error)
            elif is_wanted:
                future.set_result(result)
            del future, call, item, result, error  # an idle thread must not keep frames alive


def pad_frames(frames: Array, height_px: int, width_px: int, edge_px: int = 0) -> Array:
    """Pad frames: reflected as far as possible, then with the edge repeated.

    Args:
        frames: Frames (N, H, W, C); not written to.
        height_px: The new height, at least that of the frames and of two edges.
        width_px: The new width, at least that of the frames and of two edges.
        edge_px: Pixels on the left and at the top; the others come on the right and at the bottom.

    Returns:
        ``frames`` itself if it has this size, else a larger copy.
    """
    for axis, target in ((1, height_px), (2, width_px)):
        length = frames.shape[axis]
        before, after = edge_px, target - length - edge_px
        for mode, most in (("reflect", length - 1), ("edge", target)):
            pads = [(0, 0)] * frames.ndim
            pads[axis] = min(before, most), min(after, most)
            if any(pads[axis]):
                frames = np.pad(frames, pads, mode=mode)  # type: ignore[call-overload]
            before -= pads[axis][0]
            after -= pads[axis][1]
    return frames


def run_frames(
    runtime: RuntimeSession, frames: Array, extra: Mapping[str, Array], out: Array, *, plan: RunPlan, pool: RunPool
) -> int:
    """Run frames through a fused model.

    Args:
        runtime: A model after ``graph.fuse_frames``.
        frames: Frames (N, H, W, 3), C-contiguous, of the fused model's dtype; may be read-only.
        extra: Extra inputs by name, as ``ParamSpec.to_array`` makes them.
        out: Gets the results: (N, s*H, s*W, C), or N - 1 frames for pairs; C-contiguous.
        plan: How to cut the frames.
        pool: Makes the calls; its size limits how many run at once.

    Returns:
        The number of runtime calls.

    Raises:
        InferenceError: If the runtime fails; by then the other calls have ended.
    """
    tiles = plan.tiles(frames.shape[1], frames.shape[2], len(out) + pool.num_pending)
    calls = _group(len(out), tiles, plan)
    futures: list[Future[None]] = [
        pool.submit(_run_parts, runtime, frames, extra, out, parts, plan, is_online=plan.is_online) for parts in calls
    ]
    done, pending = wait(futures, return_when=FIRST_EXCEPTION)
    for future in pending:
        future.cancel()
    wait(pending)
    for future in done:
        future.result()
    return len(calls)


def _group(count: int, tiles: Sequence[Tile | None], plan: RunPlan) -> list[list[_Part]]:
    """Divide frames and their tiles into calls of ``run_batch`` parts of one shape.

    On a GPU, tiles of one frame share calls, so that one frame fills a batch; elsewhere each call has one tile of
    several frames.
    """
    size = plan.run_batch
    if plan.is_uniform and None not in tiles and len({tile.shape for tile in tiles if tile is not None}) == 1:
        parts = [(index, tile) for index in range(count) for tile in tiles]
        return [parts[start : start + size] for start in range(0, len(parts), size)]
    return [
        [(index, tile) for index in range(start, min(start + size, count))]
        for start in range(0, count, size)
        for tile in tiles
    ]


def _run_parts(
    runtime: RuntimeSession,
    frames: Array,
    extra: Mapping[str, Array],
    out: Array,
    parts: Sequence[_Part],
    plan: RunPlan,
) -> None:
    """Make one call: of whole frames in their order, or of tiles."""
    names = ("frames0", "frames1") if plan.is_pairs else ("frames",)
    first, tile = parts[0]
    if tile is None:
        window = slice(first, first + len(parts))
        whole = {name: frames[window.start + shift : window.stop + shift] for shift, name in enumerate(names)}
        runtime.run(whole | dict(extra), {"output": out[window]})
        return
    tiles = [(index, tile) for index, tile in parts if tile is not None]
    feeds = {name: _cut(frames[shift:], tiles) for shift, name in enumerate(names)}
    size = (length * plan.scale for length in tile.shape)
    result = np.empty((len(tiles), *size, out.shape[3]), out.dtype)
    runtime.run(feeds | dict(extra), {"output": result})
    for part, (index, tile) in zip(result, tiles, strict=True):
        kept = part[tile.rows.kept_of_tile(plan.scale), tile.columns.kept_of_tile(plan.scale)]
        out[index, tile.rows.kept_of_frame(plan.scale), tile.columns.kept_of_frame(plan.scale)] = kept


def _cut(frames: Array, tiles: Sequence[tuple[int, Tile]]) -> Array:
    if len(tiles) == 1:  # a strip of the whole width needs no copy
        index, tile = tiles[0]
        return np.ascontiguousarray(frames[index : index + 1, *tile.window])
    return np.stack([frames[index, *tile.window] for index, tile in tiles])


def zero_feeds(inputs: tuple[TensorInfo, ...], shapes: Shapes) -> dict[str, Array]:
    """Make zeros, or empty strings, for the inputs of one run.

    Args:
        inputs: The inputs of a graph.
        shapes: Their shapes; an input whose axes are all fixed needs none.

    Returns:
        Arrays by name.

    Raises:
        ModelLoadError: If a shape does not fit, or is missing.
    """
    wanted = {info.name: info for info in inputs}
    given = dict(shapes)
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise ModelLoadError(f"warmup_shapes of unknown inputs {unknown}", f"{sorted(wanted)}")
    feeds = {}
    for name, info in wanted.items():
        allowed = [-1 if axis is None else axis for axis in info.shape]
        shape = given.get(name, tuple(allowed))
        if len(shape) != len(allowed) or any(
            size < 1 or axis not in (-1, size) for size, axis in zip(shape, allowed, strict=True)
        ):
            got = f"{list(shape)} for input {name!r}" if name in given else f"without input {name!r}"
            raise ModelLoadError(f"warmup_shapes {got}", f"{allowed}, with a size of 1 or more for each -1")
        feeds[name] = np.full(shape, "", object) if info.dtype == object else np.zeros(shape, info.dtype)
    return feeds
