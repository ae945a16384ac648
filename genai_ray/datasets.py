"""``read_videos``: frames of many videos as a Ray Data dataset, read in parallel over videos and their segments."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import FixedShapeTensorFormat
from ray.util.debug import log_once

from genai_ray.cluster import check_inside, connect, own_folders
from genai_ray.cluster.runtime.replies import wait_for
from genai_ray.display import describe_fields
from genai_ray.errors import ConfigError
from genai_ray.fields import check_ranges, refuse_unknown
from genai_ray.files import expand, to_place
from genai_ray.frames import FRAME_COLUMNS, build_index, build_table
from genai_ray.types import take_fields
from genai_ray.video import SOURCE_SUFFIXES, VideoPlan, decode_frames, plan_video

__all__ = ["FrameSelection", "read_videos"]

BLOCK_SLACK = 0.9
"""Ray Data closes a block when it is larger than its target, so the target is a little less than a batch."""

PLANS_IN_FLIGHT = 256
"""Most videos that are planned at the same time."""


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSelection:
    """Which frames of each video are read: those that meet every condition.

    Raises:
        ConfigError: If a value is of another type than its field, or not in its range.
    """

    every: int = 1
    """1 for every frame, 2 for every second one, and so on, from the first."""
    keys_only: bool = False
    """Whether only key frames are read; no other frame is decoded for them."""
    ranges_s: tuple[tuple[float, float], ...] = ()
    """Half-open ranges of seconds since the first frame, such as ((0, 5), (60, 65)); empty for the whole video."""

    def __post_init__(self) -> None:
        take_fields(self)
        check_ranges(self, every=(1, math.inf))
        if any(not 0 <= start < stop for start, stop in self.ranges_s):
            raise ConfigError(f"ranges {self.ranges_s}", "pairs of seconds, 0 or more, the second above the first")

    def indices(self, plan: VideoPlan) -> list[int]:
        """Choose frames from a plan.

        Args:
            plan: The video.

        Returns:
            Positions in display order, rising.
        """
        wanted = (
            [index for index in plan.keys if index % self.every == 0]
            if self.keys_only
            else list(range(0, len(plan.pts), self.every))
        )
        if not self.ranges_s:
            return wanted
        base = float(plan.info.time_base)
        times = [(plan.pts[index] - plan.pts[0]) * base for index in wanted]
        chosen: set[int] = set()
        for start, stop in self.ranges_s:
            chosen.update(wanted[bisect.bisect_left(times, start) : bisect.bisect_left(times, stop)])
        return sorted(chosen)


def read_videos(
    paths: str | Path | Sequence[str | Path],
    *,
    columns: Sequence[str] | None = None,
    selection: FrameSelection | None = None,
    batch_size: int = 32,
    segment_frames: int = 128,
    any_format: bool = False,
) -> ray.data.Dataset:
    """Read frames of videos as a dataset of tables (see ``genai_ray.frames``).

    Files are planned now, frames decoded on demand. Every block holds frames of one shape and dtype.
    ``BatchInference.map`` sends them through a model.

    Args:
        paths: Video files, folders, patterns or URIs, one or several.
        columns: Of ``genai_ray.frames.FRAME_COLUMNS``; None for all. Without ``frame`` nothing is decoded.
        selection: Which frames; None for all.
        batch_size: Most frames in a block of the largest pictures; blocks of smaller pictures have more, of about as
            many bytes.
        segment_frames: Most frames that one task reads, if key frames allow it.
        any_format: Whether files may name other files and hosts, as playlists do; those are opened then.

    Returns:
        The dataset: rows in order within a segment.

    Raises:
        ConfigError: If a column is unknown, a number or a range is not allowed, or this process has joined a cluster by
            ``ray://``, over which Ray Data does not run.
        VideoError: If a file is missing, is not a video, or nothing matches.

    Example:
        >>> dataset = read_videos("samples/bigbuckbunny-360p.mp4", selection=FrameSelection(every=30))
        >>> dataset.count()
        5
    """
    selection = selection or FrameSelection()
    unknown = sorted(set(columns or ()) - set(FRAME_COLUMNS))
    if unknown or (columns is not None and not columns):
        raise ConfigError(f"columns {unknown or '()'}", ", ".join(FRAME_COLUMNS))
    if batch_size < 1 or segment_frames < 1:
        raise ConfigError(f"batch_size={batch_size}, segment_frames={segment_frames}", "1 or more each")
    places = [to_place(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not places:
        raise ConfigError("at least one video is required")
    files = [name for place in places for name in _list(place)]
    connect()
    if own_folders():
        _hush()
    check_inside("Ray Data")
    parts = list(_plan_all(files, selection, {"segment_frames": segment_frames, "any_format": any_format}))
    dataset: ray.data.Dataset = ray.data.read_datasource(_Frames(parts, tuple(columns or FRAME_COLUMNS), batch_size))
    dataset.context.arrow_fixed_shape_tensor_format = FixedShapeTensorFormat.ARROW_NATIVE
    largest_bytes = max((part.row_bytes for part in parts), default=1)
    dataset.context.target_max_block_size = max(int(largest_bytes * batch_size * BLOCK_SLACK), 1)
    return dataset


def _hush() -> None:
    """In a Ray of our own, let Ray Data tell of its runs in its log file alone; warnings are printed."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)
    log_once("ray_data_progress_manager_disabled")  # its warning that there are no bars, which this package turns off


def _list(place: str) -> list[str]:
    below = expand(place, SOURCE_SUFFIXES)
    return [place] if below is None else [name for name, _ in below]


@dataclass(frozen=True, slots=True)
class _Part:
    """The chosen frames of one segment, and how a task reads them."""

    plan: Any
    """Ray's reference to the video's plan; None if the task plans it again."""
    file: str
    planning: Mapping[str, Any]
    """Options of ``plan_video``."""
    indices: Sequence[int]
    shape: tuple[int, int, int, int]
    """(H, W, C, bytes of a value)."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape)


class _Frames(Datasource):
    """Frames of planned videos."""

    def __init__(self, parts: Sequence[_Part], columns: tuple[str, ...], batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._projection_map = dict(zip(columns, columns, strict=True))
        self._parts = parts
        self._batch_size = batch_size

    def get_name(self) -> str:
        return "Videos"

    def supports_projection_pushdown(self) -> bool:
        return True

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(self._bytes_of(part) for part in self._parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del data_context
        columns = tuple(self.get_projection_map() or FRAME_COLUMNS)
        most = max(-(-sum(len(part.indices) for part in self._parts) // max(parallelism, 1)), 1)
        tasks = []
        for group in _group(self._parts, most):
            rows = sum(len(part.indices) for part in group)
            metadata = BlockMetadata(
                num_rows=rows, size_bytes=sum(map(self._bytes_of, group)), input_files=None, exec_stats=None
            )
            tasks.append(
                ReadTask(_reader(group, columns, self._batch_size), metadata, per_task_row_limit=per_task_row_limit)
            )
        return tasks

    def _bytes_of(self, part: _Part) -> int:
        return len(part.indices) * (part.row_bytes if "frame" in (self.get_projection_map() or FRAME_COLUMNS) else 64)


def _group(parts: Sequence[_Part], most: int) -> Iterator[tuple[_Part, ...]]:
    """Join neighbours of one shape, up to ``most`` frames: the blocks of a task must have one shape."""
    for _, alike in itertools.groupby(parts, key=lambda part: part.shape):
        group: list[_Part] = []
        for part in alike:
            if group and sum(len(one.indices) for one in group) + len(part.indices) > most:
                yield tuple(group)
                group = []
            group.append(part)
        yield tuple(group)


def _reader(group: tuple[_Part, ...], columns: tuple[str, ...], batch_size: int) -> Any:
    def read() -> Iterator[Any]:
        for part in group:
            plan = plan_video(part.file, **part.planning) if part.plan is None else ray.get(part.plan)
            yield from _tables(plan, part.indices, columns, batch_size)

    return read


def _tables(plan: VideoPlan, indices: Sequence[int], columns: tuple[str, ...], batch_size: int) -> Iterator[Any]:
    base = f"{plan.info.time_base.numerator}/{plan.info.time_base.denominator}"
    if "frame" not in columns:
        times = [plan.pts[index] for index in indices]
        yield build_index(video=plan.path, frame_index=indices, pts=times, time_base=base).select(columns)
        return
    decoded = decode_frames(plan, indices)
    while batch := list(itertools.islice(decoded, batch_size)):
        pictures = [
            frame.frame if frame.alpha is None else np.concatenate([frame.frame, frame.alpha], axis=-1)
            for frame in batch
        ]
        table = build_table(
            np.stack(pictures),
            video=plan.path,
            frame_index=[frame.index for frame in batch],
            pts=[frame.pts for frame in batch],
            time_base=base,
        )
        yield table.select(columns)


def _plan_all(files: Sequence[str], selection: FrameSelection, planning: Mapping[str, Any]) -> Iterator[_Part]:
    """Plan videos by tasks, several at a time. Plans stay in the object store; only the chosen frames come here."""
    task: Any = _plan
    waiting: deque[tuple[str, Any, Any]] = deque()
    left = iter(files)
    while True:
        for file in itertools.islice(left, PLANS_IN_FLIGHT - len(waiting)):
            waiting.append((file, *task.remote(file, selection, planning)))
        if not waiting:
            return
        file, facts, plan = waiting.popleft()
        shape, chosen = wait_for(facts)
        for indices in chosen:
            # The task that reads a video of one segment plans it again: so small a plan is not worth keeping.
            yield _Part(plan if len(chosen) > 1 else None, file, planning, indices, shape)


@ray.remote(num_cpus=1, max_retries=2, num_returns=2)
def _plan(
    file: str, selection: FrameSelection, planning: Mapping[str, Any]
) -> tuple[tuple[tuple[int, int, int, int], list[Sequence[int]]], VideoPlan]:
    """Plan a video; return the shape of its frames and the chosen frames of each segment, and the plan."""
    plan = plan_video(file, **planning)
    wanted = selection.indices(plan)
    info = plan.info
    cuts = [bisect.bisect_left(wanted, segment.start) for segment in plan.segments]
    chosen = [wanted[start:stop] for start, stop in itertools.pairwise([*cuts, len(wanted)]) if start < stop]
    shape = (info.height, info.width, 4 if info.has_alpha else 3, 1 if info.bit_depth <= 8 else 2)
    return (shape, [_shorten(indices) for indices in chosen]), plan


def _shorten(indices: list[int]) -> Sequence[int]:
    """Return the same positions as a range, if they are one."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    short = range(indices[0], indices[-1] + 1, step)
    return short if list(short) == indices else tuple(indices)
