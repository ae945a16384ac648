"""``validate_videos``: decodes a reference and its candidates side by side and measures every frame."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.progress import count_in_notebook
from genai_ray.quality import (
    STORED_FORMATS,
    CandidateScores,
    QualityReport,
    VmafMeter,
    WorstFrame,
    check_metric,
    ms_ssim,
    psnr,
    ssim,
)
from genai_ray.validate.clips import Clip, Still, check_alignment, check_is_another, choose_factor, open_clip, resize
from genai_ray.validate.durations import check_durations, find_duration
from genai_ray.video import StoredFrame

__all__ = ["METRICS", "validate_videos"]

METRICS = ("psnr", "ssim", "ms_ssim", "vmaf")
"""The metrics that can be measured."""

NUM_WORST = 3
"""Frames of each candidate that the report shows."""

WORST_APART = 12
"""Frames between two of them, because neighbours look alike."""

JOBS_PER_THREAD = 4
"""Frames that are decoded ahead for each thread."""

AS_STORED = "as stored"
"""What a report says of VMAF that is measured of planes as the files store them."""

_OF_FRAME: dict[str, Callable[..., float]] = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
_Array: TypeAlias = npt.NDArray[Any]
_Frame: TypeAlias = StoredFrame | Still


class _Shown:
    """A frame that is converted to RGB by the first thread that needs it: the one that decodes has enough to do."""

    def __init__(self, frame: _Frame) -> None:
        self._frame = frame
        self._lock = threading.Lock()
        self._rgb: _Array | None = None

    def rgb(self) -> _Array:
        """Return it, (H, W, 3)."""
        with self._lock:
            if self._rgb is None:
                self._rgb = self._frame.to_rgb()
            return self._rgb


@dataclass(slots=True, eq=False)
class _Work:
    """One candidate beside the reference."""

    clip: Clip
    factor: int
    """Result of ``choose_factor``."""
    notes: tuple[str, ...]
    """Result of ``check_alignment``."""
    scores: dict[str, _Array]
    """(N,) of each metric."""
    vmaf_pixels: str = ""
    """How VMAF gets the frames of this pair: one of ``STORED_FORMATS``, or RGB; empty if it is not asked for."""
    vmaf: VmafMeter | None = None
    """Measures it meanwhile."""

    @property
    def vmaf_planes(self) -> str | None:
        """What VMAF is measured of, in words."""
        if not self.vmaf_pixels:
            return None
        return AS_STORED if self.vmaf_pixels in STORED_FORMATS else "BT.709 luma"

    def smaller(self, reference: Clip) -> Clip:
        """Return the clip whose size both have when they are compared."""
        return reference if self.factor >= 1 else self.clip

    def fit(self, reference: _Array, candidate: _Array) -> tuple[_Array, _Array]:
        """Reduce the larger frame to the size of the smaller one."""
        return resize(reference, -self.factor), resize(candidate, self.factor)

    def give(self, reference: _Shown, candidate: _Shown) -> tuple[Callable[[], list[_Array]], ...]:
        """Return what gives both frames to VMAF, converted and reduced only then."""
        return partial(_resized, reference, -self.factor), partial(_resized, candidate, self.factor)


def validate_videos(  # noqa: PLR0913 - options of a command
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    metrics: Sequence[str] = ("psnr", "ssim"),
    vmaf_model: str = "vmaf_v0.6.1neg",
    threads: int | None = None,
    seconds_per_frame: Sequence[float | None] | None = None,
    has_pictures: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> QualityReport:
    """Measure every frame of one or more candidates against a reference.

    Frames pair by time, counted from the first frame of each file; a frame without a partner is an error. If one size
    is a whole multiple of the other, the larger frame is reduced by the mean of these blocks of pixels, rounded to
    nearest; the report says so. Frames are RGB, as they are stored: not rotated, without alpha.

    Args:
        reference: Path or URI of a video, or of a picture ending in .png, .jpg or .jpeg.
        candidates: One path or URI, or several.
        metrics: Names of ``METRICS``.
        vmaf_model: A name of ``genai_ray.quality.VMAF_MODELS``; ``neg`` gives no credit for sharpening.
        threads: Threads that measure; None for every core that this process may use. Results do not depend on it.
        seconds_per_frame: How long each frame of each candidate took to make; None, for all or for one of them, to
            take it from what ``enhance`` has written beside the candidate: ``results.parquet`` in its folder, or its
            JSON, kept as ``CANDIDATE.report.json``.
        has_pictures: Whether the worst frames are decoded once more, for the page; without it only their positions
            are known.
        on_progress: Called with the frames measured so far and the frames to measure, counted for each candidate.
            Without it a notebook shows a bar, and nothing else does.

    Returns:
        The numbers of every frame, pooled numbers, and the worst frames of each candidate.

    Raises:
        InvalidInputError: If a metric or a number is not one of those allowed, or there are not as many
            ``seconds_per_frame`` as candidates.
        QualityError: If a candidate is the reference, or lengths, times, sizes, rotations, bit depths or transfer
            functions do not match, or frames are too small for a metric.
        VideoError: If a file is missing, is not a video or picture, has no frames, or does not decode.
        BackendUnavailableError: If VMAF is asked for and its extra is not installed.

    Example:
        >>> report = validate_videos("samples/bigbuckbunny-360p.mp4", "samples/bigbuckbunny-720p.mp4", metrics=["psnr"])
        >>> report.candidates[0].notes[0]
        '1280x720 reduced to 640x360 by the mean of 2x2 pixels'
    """
    began_s = time.perf_counter()
    names = [candidates] if isinstance(candidates, str | os.PathLike) else list(candidates)
    paths = [os.fspath(name) for name in names]
    wanted = _check_metrics(metrics)
    count = _count_threads(threads)
    durations = check_durations(seconds_per_frame, len(paths))
    check_is_another(os.fspath(reference), paths)
    origin = open_clip(os.fspath(reference))
    works = [_prepare(origin, open_clip(path), wanted, vmaf_model) for path in paths]
    with contextlib.ExitStack() as opened:
        if "vmaf" in wanted:
            for work in works:
                smaller = work.smaller(origin)
                size, threads_each = (smaller.width, smaller.height), max(count // len(works), 1)
                meter = VmafMeter(size, work.vmaf_pixels, model=vmaf_model, threads=threads_each)
                work.vmaf = opened.enter_context(meter)
        counter = _Counter(len(origin) * len(works), on_progress or count_in_notebook("measuring"))
        _measure_frames(origin, works, count, counter)
        for work in works:
            if work.vmaf is not None:
                work.scores["vmaf"] = np.array(work.vmaf.finish())
    told = _note_vmaf(works)
    scores = tuple(
        _finish(origin, *of_one, has_pictures=has_pictures) for of_one in zip(works, durations, told, strict=True)
    )
    return QualityReport(
        reference=origin.path,
        size=(origin.width, origin.height),
        seconds=np.array(origin.seconds),
        metrics=tuple(wanted),
        vmaf_model=vmaf_model if "vmaf" in wanted else None,
        candidates=scores,
        elapsed_s=time.perf_counter() - began_s,
    )


class _Counter:
    """Counts frames and tells the caller."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._tell = tell

    def add(self, frames: int) -> None:
        self._done += frames
        if self._tell is not None:
            self._tell(self._done, self._total)


def _check_metrics(metrics: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise InvalidInputError(f"metrics {unknown or 'none'}", ", ".join(METRICS))
    return [name for name in METRICS if name in wanted]


def _count_threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise InvalidInputError(f"{threads} threads", "1 or more")
    if threads is not None:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(reference: Clip, clip: Clip, metrics: Sequence[str], vmaf_model: str) -> _Work:
    notes = check_alignment(reference, clip)
    factor = choose_factor(reference, clip)
    pixels = _choose_pixels(reference, clip) if "vmaf" in metrics else ""
    work = _Work(clip, factor, notes, {name: np.empty(len(reference)) for name in metrics}, pixels)
    smaller = work.smaller(reference)
    for name in metrics:
        check_metric(name, smaller.width, smaller.height, vmaf_model)
    return work


def _choose_pixels(reference: Clip, candidate: Clip) -> str:
    """Choose how VMAF gets the frames of a pair; other candidates have no part in it.

    If both files store pictures of one size in one pixel format and matrix, these are measured as they are, as FFmpeg's
    command does. If not, they are converted to RGB, and this to BT.709.
    """
    is_one_size = (reference.width, reference.height) == (candidate.width, candidate.height)
    if is_one_size and reference.stored is not None and reference.stored == candidate.stored:
        return reference.stored[0]
    return "rgb24" if reference.dtype == np.uint8 else "rgb48le"


def _measure_frames(reference: Clip, works: Sequence[_Work], threads: int, done: _Counter) -> None:
    """Decode in this thread, convert and measure in others; a bounded number of frames waits."""
    decoders = [reference.frames(), *(work.clip.frames() for work in works)]
    has_others = any(name in _OF_FRAME for name in works[0].scores)
    shown = {at for at, work in enumerate(works, 1) if has_others or work.vmaf_planes != AS_STORED}
    shown |= {0} if shown else set()
    waiting: collections.deque[Future[None]] = collections.deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="genai-ray-measure") as pool:
        try:
            for index in range(len(reference)):
                frames = [_next_of(decoder, index) for decoder in decoders]
                rgb = {at: _Shown(frames[at]) for at in shown}
                for at, work in enumerate(works, 1):
                    if work.vmaf is not None and work.vmaf_planes == AS_STORED:
                        work.vmaf.add(*(partial(_colour_planes, frames[one]) for one in (0, at)))
                    elif work.vmaf is not None:
                        work.vmaf.add(*work.give(rgb[0], rgb[at]))
                    if has_others:
                        waiting.append(pool.submit(_measure_frame, work, index, rgb[0], rgb[at]))
                    else:
                        done.add(1)
                while len(waiting) > JOBS_PER_THREAD * threads:
                    waiting.popleft().result()
                    done.add(1)
            while waiting:
                waiting.popleft().result()
                done.add(1)
        finally:
            for job in waiting:
                job.cancel()


def _colour_planes(frame: _Frame) -> list[_Array]:
    """Return Y, U and V without alpha."""
    return frame.planes()[:3]


def _resized(frame: _Shown, factor: int) -> list[_Array]:
    return [resize(frame.rgb(), factor)]


def _next_of(decoder: Iterator[_Frame], index: int) -> _Frame:
    frame = next(decoder, None)
    if frame is None:
        raise VideoError(f"frame {index} does not decode", "the planned frames")
    return frame


def _measure_frame(work: _Work, index: int, reference: _Shown, candidate: _Shown) -> None:
    before, after = work.fit(reference.rgb(), candidate.rgb())
    for name, values in work.scores.items():
        if name in _OF_FRAME:
            values[index] = _OF_FRAME[name](before, after)


def _note_vmaf(works: Sequence[_Work]) -> list[list[str]]:
    """Say of each candidate what keeps its VMAF from being compared with other numbers."""
    ways = {work.vmaf_planes for work in works}
    told: list[list[str]] = [[] for _ in works]
    for work, notes in zip(works, told, strict=True):
        if len(ways) > 1:
            notes.append(f"VMAF: {work.vmaf_planes}; another candidate is measured in the other way")
        if work.vmaf_planes is not None and work.clip.kind != "SDR":
            notes.append(
                f"VMAF of {work.clip.kind}: its models know SDR alone; compare it with other such numbers only"
            )
    return told


def _finish(
    reference: Clip, work: _Work, given_s: float | None, told_vmaf: Sequence[str], *, has_pictures: bool
) -> CandidateScores:
    notes = [*work.notes, *reference.notes, *work.clip.notes, *told_vmaf]
    if work.factor != 1:
        larger, smaller = (work.clip, reference) if work.factor > 1 else (reference, work.clip)
        block = abs(work.factor)
        notes.insert(0, f"{larger.size} reduced to {smaller.size} by the mean of {block}x{block} pixels")
    seconds, told = (given_s, "given") if given_s is not None else find_duration(work.clip.path, len(work.clip))
    if seconds is None and told:
        notes.append(told)
    chosen = _choose_worst(next(iter(work.scores.values())))
    before, after = (clip.pick(chosen) if has_pictures else {} for clip in (reference, work.clip))
    return CandidateScores(
        candidate=work.clip.path,
        size=(work.clip.width, work.clip.height),
        notes=tuple(notes),
        per_frame=work.scores,
        worst_frames=tuple(chosen),
        worst=tuple(WorstFrame(index, *work.fit(before[index], after[index])) for index in chosen if has_pictures),
        seconds_per_frame=seconds,
        seconds_from=told if seconds is not None else "",
        vmaf_planes=work.vmaf_planes,
    )


def _choose_worst(values: _Array) -> list[int]:
    """Return the frames of the lowest values, not too near each other, the worst first."""
    chosen: list[int] = []
    for index in np.argsort(values, kind="stable"):
        if len(chosen) < NUM_WORST and all(abs(int(index) - other) >= WORST_APART for other in chosen):
            chosen.append(int(index))
    return chosen
