"""``validate_videos``: decodes a reference and its candidates side by side and measures every frame."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.quality import (
    CandidateScores,
    QualityReport,
    WorstFrame,
    check_metric,
    ms_ssim,
    psnr,
    ssim,
    vmaf_of_clips,
)
from genai_ray.validate.clips import Clip, check_alignment, check_is_another, choose_factor, open_clip, resize

__all__ = ["METRICS", "validate_videos"]

METRICS = ("psnr", "ssim", "ms_ssim", "vmaf")
"""The metrics that can be measured."""

NUM_WORST = 3
"""Frames of each candidate that the report shows."""

WORST_APART = 12
"""Frames between two of them, because neighbours look alike."""

JOBS_PER_THREAD = 4
"""Frames that are decoded ahead for each thread."""

_OF_FRAME: dict[str, Callable[..., float]] = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
_Array = npt.NDArray[Any]


@dataclass(slots=True)
class _Work:
    """One candidate beside the reference."""

    clip: Clip
    factor: int
    """Result of ``choose_factor``."""
    scores: dict[str, _Array]
    """(N,) of each metric."""

    def fit(self, reference: _Array, candidate: _Array) -> tuple[_Array, _Array]:
        """Reduce the larger frame to the size of the smaller one."""
        return resize(reference, -self.factor), resize(candidate, self.factor)


def validate_videos(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    metrics: Sequence[str] = ("psnr", "ssim"),
    vmaf_model: str = "vmaf_v0.6.1neg",
    threads: int | None = None,
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
        on_progress: Called with the frames measured so far and the frames to measure, counted for each candidate, and
            once more for VMAF; for VMAF in another thread.

    Returns:
        The numbers of every frame, pooled numbers, and the worst frames of each candidate.

    Raises:
        InvalidInputError: If a metric or a number is not one of those allowed.
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
    check_is_another(os.fspath(reference), paths)
    origin = open_clip(os.fspath(reference))
    works = [_prepare(origin, open_clip(path), wanted, vmaf_model) for path in paths]
    total = len(origin) * len(works) * (int(wanted != ["vmaf"]) + int("vmaf" in wanted))
    done = _Counter(total, on_progress)
    if wanted != ["vmaf"]:
        _measure_frames(origin, works, count, done)
    if "vmaf" in wanted:
        for work in works:
            pairs = [_resized(origin, -work.factor), _resized(work.clip, work.factor, done)]
            work.scores["vmaf"] = np.array(vmaf_of_clips(*pairs, model=vmaf_model, threads=count))
    scores = tuple(_finish(origin, work, wanted) for work in works)
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
    check_alignment(reference, clip)
    factor = choose_factor(reference, clip)
    smaller = reference if factor >= 1 else clip
    for name in metrics:
        check_metric(name, smaller.width, smaller.height, vmaf_model)
    return _Work(clip, factor, {name: np.empty(len(reference)) for name in metrics})


def _measure_frames(reference: Clip, works: Sequence[_Work], threads: int, done: _Counter) -> None:
    """Decode in this thread and measure in others; a bounded number of frames waits."""
    decoders = [reference.frames(), *(work.clip.frames() for work in works)]
    waiting: collections.deque[Future[None]] = collections.deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="genai-ray-measure") as pool:
        try:
            for index in range(len(reference)):
                frames = [_next_of(decoder, index) for decoder in decoders]
                for work, frame in zip(works, frames[1:], strict=True):
                    waiting.append(pool.submit(_measure_frame, work, index, frames[0], frame))
                while len(waiting) > JOBS_PER_THREAD * threads:
                    waiting.popleft().result()
                    done.add(1)
            while waiting:
                waiting.popleft().result()
                done.add(1)
        finally:
            for job in waiting:
                job.cancel()


def _next_of(decoder: Iterator[_Array], index: int) -> _Array:
    frame = next(decoder, None)
    if frame is None:
        raise VideoError(f"frame {index} does not decode", "the planned frames")
    return frame


def _measure_frame(work: _Work, index: int, reference: _Array, candidate: _Array) -> None:
    before, after = work.fit(reference, candidate)
    for name, values in work.scores.items():
        if name in _OF_FRAME:
            values[index] = _OF_FRAME[name](before, after)


def _resized(clip: Clip, factor: int, done: _Counter | None = None) -> Iterator[_Array]:
    for frame in clip.frames():
        yield resize(frame, factor)
        if done is not None:
            done.add(1)


def _finish(reference: Clip, work: _Work, metrics: Sequence[str]) -> CandidateScores:
    notes = [*reference.notes, *work.clip.notes]
    if work.factor != 1:
        larger, smaller = (work.clip, reference) if work.factor > 1 else (reference, work.clip)
        block = abs(work.factor)
        notes.insert(0, f"{larger.size} reduced to {smaller.size} by the mean of {block}x{block} pixels")
    chosen = _choose_worst(work.scores[metrics[0]])
    before = reference.pick(chosen)
    after = work.clip.pick(chosen)
    worst = tuple(WorstFrame(index, *work.fit(before[index], after[index])) for index in chosen)
    return CandidateScores(
        candidate=work.clip.path,
        size=(work.clip.width, work.clip.height),
        notes=tuple(notes),
        per_frame=work.scores,
        worst=worst,
    )


def _choose_worst(values: _Array) -> list[int]:
    """Return the frames of the lowest values, not too near each other, the worst first."""
    chosen: list[int] = []
    for index in np.argsort(values, kind="stable"):
        if len(chosen) < NUM_WORST and all(abs(int(index) - other) >= WORST_APART for other in chosen):
            chosen.append(int(index))
    return chosen
