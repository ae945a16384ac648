"""How long a job will take, measured on a few frames of one of its videos: nothing is guessed from the model's size."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.job.clip_plan import ClipPlan
from genai_ray.enhance.plan.cuts import predict_finding_s
from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.enhance.segment.resize import add_bars, fit_frame, reduce_frames
from genai_ray.errors import BackendUnavailableError
from genai_ray.files import temporary_folder
from genai_ray.session import InferenceSession, SessionLimits, count_cores
from genai_ray.tune import time_infer
from genai_ray.types import ModelTask, Params
from genai_ray.video import Budget, decode_source, open_writer

__all__ = ["ClipLoad", "Trial", "limits_of", "load_of", "predict_frame_seconds", "predict_seconds", "try_chain"]

_Stage: TypeAlias = tuple[ModelSpec, InferenceSession, Params]
"""A model, its warm session, and its params."""

FEWEST_FRAMES = 4
MOST_FRAMES = 32
"""Frames that are really enhanced: the more, the less an encoder's first frames count."""

MAX_BYTES = 1_000_000_000
"""Most bytes of these frames and their results, which are in memory together; one frame is enhanced at least."""

FRAMES_WITHIN_S = 2.0
"""A slow model gets fewer frames, so that about this time is enough."""

SLOW_S = 10.0
"""If ``FEWEST_FRAMES`` take longer, the trial is a single frame."""

STARTUP_IMPORTS = 6.5
"""A job starts in about this many times the CPU seconds of one import of Ray and this package: Ray, the cache, a
session and the first task are processes that import them one after the other, and partly at the same time."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured."""

    startup_s: float
    """Seconds until the first frame is decoded, with the loading of the models."""
    infer_source_s: float
    """Seconds of all cores, or of the device, for each frame of the source: models before one that adds frames."""
    infer_result_s: float
    """The same for each frame of the result: the model that adds frames, and those after it."""
    decode_s: float
    """Seconds of one core for each frame of the source."""
    encode_s: float
    """Seconds of one core for each frame of the result."""
    pixels: int
    """Pixels of a frame of the source."""


@dataclass(frozen=True, slots=True)
class ClipLoad:
    """What is to be done for one video: the numbers of a plan that time depends on."""

    pixels: int
    """Pixels of a frame of the source."""
    sources: float
    """Frames of the source in segments that are not finished."""
    results: float
    """Frames of the result in these segments."""
    longest: float
    """Share of the longest of these segments, in (0, 1]."""
    finding_s: float = 0.0
    """Seconds of one core in which TransNetV2 finds their cuts."""


def load_of(plan: ClipPlan) -> ClipLoad:
    """Return what is to be done for a planned video.

    Args:
        plan: Its plan.

    Returns:
        The numbers.
    """
    source = plan.timeline.plan
    lengths = [source.segments[index].stop - source.segments[index].start for index in plan.todo]
    num_sources = sum(lengths)
    return ClipLoad(
        pixels=source.info.width * source.info.height,
        sources=num_sources,
        results=plan.frames - plan.frames_reused,
        longest=max(lengths, default=0) / max(num_sources, 1),
        finding_s=predict_finding_s(plan.timeline, plan.todo) if plan.timeline.scene_threshold is None else 0.0,
    )


def predict_seconds(trial: Trial, loads: Iterable[ClipLoad]) -> float:
    """Predict how long a job takes on this machine alone.

    Segments run at the same time, each decoded and encoded by one core, while sessions use all cores that are free: the
    job takes as long as all work on all cores, or as its longest segment on one core.

    Args:
        trial: What was measured on one of the videos.
        loads: What is to be done for each video.

    Returns:
        Seconds.
    """
    cores = count_cores()
    shared_s = longest_s = 0.0
    for load in loads:
        scale = load.pixels / trial.pixels
        alone_s = (load.sources * trial.decode_s + load.results * trial.encode_s) * scale
        infer_s = (load.sources * trial.infer_source_s + load.results * trial.infer_result_s) * scale
        shared_s += infer_s + (alone_s + load.finding_s) / cores
        longest_s = max(longest_s, (alone_s + load.finding_s) * load.longest)
    return trial.startup_s + max(shared_s, longest_s)


def predict_frame_seconds(trial: Trial, load: ClipLoad) -> float:
    """Predict how long the models take for one frame of the result.

    Args:
        trial: What was measured on one of the videos.
        load: What is to be done for this or another video.

    Returns:
        Seconds of all cores, or of the device, without decoding and encoding; 0 if nothing is to be done.
    """
    infer_s = load.sources * trial.infer_source_s + load.results * trial.infer_result_s
    return infer_s * load.pixels / trial.pixels / load.results if load.results else 0.0


def limits_of(request: SessionRequest) -> SessionLimits:
    """Return the limits of a session in this process that is like one of the job.

    Args:
        request: The job's session.

    Returns:
        Its limits.
    """
    return SessionLimits(max_frame=request.max_frame, tile_size_px=request.tile_size_px)


def try_chain(planned: ClipPlan, specs: Sequence[ModelSpec]) -> Trial:
    """Enhance a few frames of a video in this process.

    Args:
        planned: Its plan.
        specs: The chain.

    Returns:
        What was measured.

    Raises:
        VideoError: If the frames do not decode.
        BackendUnavailableError: If a new process cannot import Ray and this package.
        GenAIRayError: What a session raises.
    """
    plan = planned.timeline.plan
    startup_s = STARTUP_IMPORTS * _measure_import()
    started = time.perf_counter()
    sizes = planned.sizes
    decoded = reduce_frames(decode_source(plan, plan.segments[0], allow_truncated=True), sizes)
    frames = np.stack([frame.frame for frame in itertools.islice(decoded, _most_frames(planned))])
    decode_s = (time.perf_counter() - started) / len(frames)
    started = time.perf_counter()
    with _sessions(planned, specs) as stages:
        startup_s += time.perf_counter() - started
        passed, most = _pass_some(frames, stages)
    results = passed.frames
    with temporary_folder("trial") as folder:
        started = time.perf_counter()
        with open_writer(
            folder / "trial.nut",
            info=plan.info,
            size=sizes.result,
            encoding=planned.options.encoding,
            budget=_share_budget(planned.timeline, len(results)),
        ) as writer:
            for frame, pts in zip(results, plan.pts, strict=False):
                writer.write(add_bars(fit_frame(frame, sizes), sizes), pts)
        encode_s = (time.perf_counter() - started) / len(results)
    return Trial(
        startup_s=startup_s,
        infer_source_s=passed.source_s / most,
        infer_result_s=passed.result_s / len(results),
        decode_s=decode_s,
        encode_s=encode_s,
        pixels=plan.info.width * plan.info.height,
    )


def _share_budget(timeline: Timeline, count: int) -> Budget | None:
    """Return the bytes that some frames of the first segment have; None if segments have a constant quality."""
    if not timeline.budgets:
        return None
    return Budget(timeline.budgets[0] * count // max(timeline.count_frames(0), 1), count)


def _pass_some(frames: npt.NDArray[Any], stages: Sequence[_Stage]) -> tuple[_Passed, int]:
    """Pass as many frames as the speed of the chain allows; return what was measured, and how many frames passed."""
    alone = _pass(frames[:1], stages)
    if (alone.source_s + alone.result_s) * FEWEST_FRAMES >= SLOW_S:
        return alone, 1
    # The first passes also fill memory and caches; only a very slow model is not asked again.
    first = _pass(frames[:FEWEST_FRAMES], stages)
    once_s = (first.source_s + first.result_s) / len(frames[:FEWEST_FRAMES])
    most = min(len(frames), max(FEWEST_FRAMES, int(FRAMES_WITHIN_S / max(once_s, 1e-6))))
    return _pass(frames[:most], stages), most


def _most_frames(planned: ClipPlan) -> int:
    """Return how many frames fit into ``MAX_BYTES`` with their results."""
    info = planned.timeline.plan.info
    pixels = sum(width * height for width, height in (planned.sizes.given, planned.sizes.made))
    pair_bytes = pixels * 3 * (1 if info.bit_depth <= 8 else 2)
    return max(1, min(MOST_FRAMES, MAX_BYTES // pair_bytes))


@dataclass(slots=True)
class _Passed:
    """Frames that have passed a chain, and the seconds of its sessions."""

    frames: npt.NDArray[Any]
    source_s: float = 0.0
    result_s: float = 0.0


@contextmanager
def _sessions(planned: ClipPlan, specs: Sequence[ModelSpec]) -> Iterator[list[_Stage]]:
    """Open a warm session of each model, with its params."""
    options = planned.options
    with ExitStack() as stack:
        stages: list[_Stage] = []
        for spec, request in zip(specs, planned.requests, strict=True):
            session = InferenceSession(
                spec.model_id,
                backend=request.backend,
                precision=request.precision,
                device=request.device,
                limits=limits_of(request),
            )
            stack.enter_context(session)
            session.warmup()
            stages.append((spec, session, {name: v for name, v in options.params.items() if name in spec.params}))
        yield stages


def _pass(frames: npt.NDArray[Any], stages: Sequence[_Stage]) -> _Passed:
    passed = _Passed(frames)
    adds_frames = False
    for spec, session, params in stages:
        batch = passed.frames
        if len(batch) == 1 and spec.task is ModelTask.INTERPOLATION:
            batch = np.concatenate([batch, batch])
        result, seconds = time_infer(session, batch, params)
        adds_frames = adds_frames or spec.task is ModelTask.INTERPOLATION
        if adds_frames:
            passed.result_s += seconds
        else:
            passed.source_s += seconds
        if spec.task is not ModelTask.BACKGROUND_REMOVAL:
            passed.frames = np.ascontiguousarray(result)
    return passed


def _measure_import() -> float:
    """Return the CPU seconds in which a new process imports what a worker of a job imports.

    Wall-clock time would count the disk, which a job that follows does not wait for again.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-Pc", f"import ray, {__name__}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="backslashreplace")
    if done.returncode:
        *_, reason = ["", *done.stderr.strip().splitlines()]
        raise BackendUnavailableError(
            f"a new process of {sys.executable} ended with code {done.returncode} while it imported Ray and genai_ray"
            f"{f': {reason}' if reason else ''}",
            do="Run `genai-ray doctor`.",
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
