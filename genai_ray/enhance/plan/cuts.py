"""How the cuts of a video are found, across which no frame is added: by TransNetV2 if that costs little.

The choice is part of the plan. It depends on sizes, numbers of frames and the kind of device, never on a time that was
measured: a job that is resumed, or has other workers, makes the same choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from genai_ray.catalog import ModelSpec
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.scenes import SCENE_THRESHOLD, count_windows
from genai_ray.types import ModelTask, SceneDetector

__all__ = ["FINDER_BYTES", "MOST_SHARE", "plan_cuts", "predict_finding_s", "predict_share"]

FINDER_BYTES = 600_000_000
"""Memory of a segment's task while TransNetV2 looks for cuts."""

MOST_SHARE = 0.1
"""TransNetV2 is chosen if it takes less than this of the interpolation's time."""

WINDOW_S = 0.95
"""One core's seconds for a window of TransNetV2; ``tests/benchmarks/scene_cost.py`` measures it and the two below."""

LOAD_S = 0.3
"""One core's seconds to load it, once in each segment."""

ADDED_S_PER_PIXEL = 1.2e-6
"""One core's seconds for each pixel of an added frame by ``rife``; other models are taken to be as fast."""


def plan_cuts(
    timeline: Timeline, specs: Sequence[ModelSpec], options: EnhanceOptions, sizes: FrameSizes, *, is_gpu: bool
) -> tuple[Timeline, tuple[str, ...]]:
    """Choose how the cuts of a video are found.

    Args:
        timeline: The plan of the video and of its result.
        specs: The chain.
        options: The options of this video.
        sizes: The plan of the sizes of its frames.
        is_gpu: Whether models run on a GPU.

    Returns:
        The plan with the choice; and a note for the report if the choice was left to the job.
    """
    if not timeline.adds_frames:
        return timeline, ()
    threshold = SCENE_THRESHOLD if options.scene_threshold is None else options.scene_threshold
    by_threshold = replace(timeline, scene_threshold=threshold)
    by_network = replace(timeline, scene_threshold=None)
    if options.scene_threshold is not None or options.scene_detector is SceneDetector.THRESHOLD:
        return by_threshold, ()
    if options.scene_detector is SceneDetector.TRANSNETV2:
        return by_network, ()
    share = predict_share(timeline, specs, sizes)
    if not is_gpu and share < MOST_SHARE:
        return by_network, ("cuts: TransNetV2 finds them, also fades and dissolves",)
    cost = f"{share:.0%} of the time of adding frames" if share <= 1 else "longer than adding frames"
    why = "frames are added on a GPU" if is_gpu else f"it would take {cost}"
    return by_threshold, (f"cuts: where neighbours are less similar than {threshold:g}, without TransNetV2: {why}",)


def predict_share(timeline: Timeline, specs: Sequence[ModelSpec], sizes: FrameSizes) -> float:
    """Predict what TransNetV2 takes of the time in which frames are added, both on one core.

    Args:
        timeline: The plan of the video and of its result, which adds frames.
        specs: The chain.
        sizes: The plan of the sizes of its frames.

    Returns:
        The share; 1 or more if it takes as long or longer.
    """
    finding_s = predict_finding_s(timeline, range(len(timeline.plan.segments)))
    at = next(position for position, spec in enumerate(specs) if spec.task is ModelTask.INTERPOLATION)
    pixels = prod(sizes.given) * prod(spec.scale for spec in specs[:at]) ** 2
    added = len(timeline.result.pts) - (timeline.plan.stop - timeline.plan.first)
    return finding_s / (max(added, 1) * pixels * ADDED_S_PER_PIXEL)


def predict_finding_s(timeline: Timeline, indices: Iterable[int]) -> float:
    """Predict how long TransNetV2 takes for some segments.

    Args:
        timeline: The plan of the video and of its result.
        indices: The segments.

    Returns:
        Seconds of one core.
    """
    parts = [timeline.plan.segments[index] for index in indices]
    return sum(LOAD_S + WINDOW_S * count_windows(part.start, part.stop) for part in parts)
