"""Measures one model in several ways on one device: its sessions are open at the same time and take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from genai_ray.catalog import ModelSpec
from genai_ray.errors import GenAIRayError
from genai_ray.session import InferenceSession, SessionLimits, calibration_frames, can_tile, count_cores
from genai_ray.tune.ways import REFERENCE, Measured, Way
from genai_ray.types import Frames, ModelTask, Params

__all__ = ["PART_PX", "limits_of_part", "measure_ways", "part_of", "time_infer"]

PART_PX = 256
"""A model that can be tiled is measured on a part of a frame with at most this side: the tiles of a session that is
given no size. Which way is the fastest does not depend on more of the frame."""

TURNS = 15
"""Most turns of each way; the fastest one counts. Other work on the machine only makes turns slower: on two cores with
15 processes, fastest turns differed by 3 % from one measurement to the next, and medians by 30 %."""

TURN_S = 0.05
"""A turn repeats the call for at least this long."""

MIN_TURNS = 3
"""Fewest turns, unless they are slow."""

WITHIN_S = 3.0
"""After so many seconds only the fewest turns are made."""

SLOW_S = 15.0
"""After so many seconds no further turn is made."""

GPU_FRAMES = 8
"""Frames in one call on a GPU: two runs at once of the largest batch."""
MAX_WHOLE_FRAMES = 4
"""The same of a model that cannot be tiled: each run takes the memory of a whole frame."""
HEAVY_FRAMES = 1
"""The same of a model with ``tiles``: one frame keeps all cores, or a GPU, busy for seconds."""


def part_of(spec: ModelSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of what is measured.

    Args:
        spec: The model.
        size: (height, width) in pixels of the frames.

    Returns:
        (height, width) in pixels: of the whole frame if the model cannot be tiled.
    """
    return (min(size[0], PART_PX), min(size[1], PART_PX)) if can_tile(spec) else size


def limits_of_part(spec: ModelSpec, size: tuple[int, int]) -> SessionLimits:
    """Return the limits of a session that is measured.

    Args:
        spec: The model.
        size: (height, width) in pixels of the frames.

    Returns:
        The limits.
    """
    return SessionLimits(max_frame=part_of(spec, size))


def measure_ways(
    spec: ModelSpec,
    size: tuple[int, int],
    ways: Sequence[Way],
    device: str,
    on_way: Callable[[Way], None] | None = None,
) -> tuple[Measured, ...]:
    """Measure a model in several ways.

    Args:
        spec: The model.
        size: (height, width) in pixels of its frames.
        ways: The reference first.
        device: ``cpu`` or ``cuda``.
        on_way: Called with each way before its session opens.

    Returns:
        One entry for each way, in order.

    Raises:
        GenAIRayError: If the model does not run in the reference.
    """
    limits = limits_of_part(spec, size)
    frames = _build_frames(spec, size, device)
    pixels = (len(frames) - (spec.task is ModelTask.INTERPOLATION)) * frames.shape[1] * frames.shape[2]
    refused: dict[Way, str] = {}
    memory: dict[Way, int] = {}
    sessions: dict[Way, InferenceSession] = {}
    with ExitStack() as stack:
        for way in ways:
            if on_way is not None:
                on_way(way)
            try:
                session = InferenceSession(
                    spec.model_id, backend=way.backend, precision=way.precision, device=device, limits=limits
                )
                sessions[way] = stack.enter_context(session)
                session.infer(frames)  # OpenVINO compiles, and memory is touched for the first time
                memory[way] = session.memory_bytes
            except GenAIRayError as exc:
                if way == REFERENCE:
                    raise
                sessions.pop(way, None)
                refused[way] = str(exc)
        seconds = _take_turns(sessions, frames)
        quality = {way: session.status()["precision_db"] for way, session in sessions.items()}
    settings = {way: (one.num_runs, one.run_batch, one.tile_size_px) for way, one in sessions.items()}
    return tuple(
        Measured(way, refused=refused[way])
        if way in refused
        else Measured(
            way,
            pixels / min(seconds[way]),
            None if way == REFERENCE else float(quality[way]),
            memory[way],
            *settings[way],
        )
        for way in ways
    )


def time_infer(session: InferenceSession, frames: Frames, params: Params | None = None) -> tuple[Frames, float]:
    """Enhance frames, and measure how long that takes.

    Args:
        session: A session that is warm.
        frames: As ``InferenceSession.infer``.
        params: As ``InferenceSession.infer``.

    Returns:
        The result, and seconds.
    """
    started = time.perf_counter()
    result = session.infer(frames, params)
    return result, time.perf_counter() - started


def _take_turns(sessions: Mapping[Way, InferenceSession], frames: Frames) -> dict[Way, list[float]]:
    """Return seconds of one call, of each way in each turn."""
    found: dict[Way, list[float]] = {way: [] for way in sessions}
    began = time.perf_counter()
    for turn in range(TURNS):
        seconds = time.perf_counter() - began
        if turn and seconds > (SLOW_S if turn < MIN_TURNS else WITHIN_S):
            break
        for way, session in sessions.items():
            calls: list[float] = []
            while sum(calls) < TURN_S:
                calls.append(time_infer(session, frames)[1])
            found[way].append(statistics.fmean(calls))
    return found


def _build_frames(spec: ModelSpec, size: tuple[int, int], device: str) -> Frames:
    """Make frames for one call that keeps the whole device busy."""
    height, width = part_of(spec, size)
    first, second = np.rint(255 * calibration_frames(max(height, width))[:, :height, :width]).astype(np.uint8)
    count = GPU_FRAMES if device != "cpu" else count_cores()
    if not can_tile(spec):
        count = min(count, MAX_WHOLE_FRAMES)
    if spec.tiles is not None:
        count = HEAVY_FRAMES
    count += spec.task is ModelTask.INTERPOLATION
    return np.stack([second if index % 2 else first for index in range(count)])
