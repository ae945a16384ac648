"""Which models may follow each other, and where a chain is cut: before, at and after the model that adds frames, and the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Generic, TypeVar

from genai_ray.catalog import ModelSpec
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.frame_rate import MAX_FACTOR, MAX_FPS, Timeline, retime
from genai_ray.errors import ConfigError
from genai_ray.types import ModelTask
from genai_ray.video import VideoPlan

__all__ = [
    "DEFAULT_FACTOR",
    "TIMESTEP",
    "Chain",
    "check_chain",
    "check_rate",
    "count_results",
    "has_mask",
    "plan_result",
    "split_chain",
]

TIMESTEP = "timestep"
"""The input of a model that adds frames that says where between its neighbours."""

DEFAULT_FACTOR = 2
"""Frames for one of the source where nothing else is asked for."""

Stage = TypeVar("Stage")


@dataclass(frozen=True, slots=True)
class Chain(Generic[Stage]):
    """The stages of a chain by what they do to a stream of frames."""

    before: tuple[Stage, ...]
    """Frame by frame, over the frames of the source."""
    between: Stage | None
    """Adds frames between neighbours."""
    after: tuple[Stage, ...]
    """Frame by frame, over the frames of the source and those that were added."""
    mask: Stage | None
    """Tells subject and background apart, at the end."""


def split_chain(specs: Sequence[ModelSpec], stages: Sequence[Stage]) -> Chain[Stage]:
    """Cut a chain into its parts.

    Args:
        specs: The models, a chain that ``check_chain`` lets pass.
        stages: One thing a model.

    Returns:
        The stages by part.
    """
    tasks = [spec.task for spec in specs]
    mask = stages[-1] if tasks[-1] is ModelTask.BACKGROUND_REMOVAL else None
    end = len(stages) - (mask is not None)
    if ModelTask.INTERPOLATION not in tasks:
        return Chain(tuple(stages[:end]), None, (), mask)
    at = tasks.index(ModelTask.INTERPOLATION)
    return Chain(tuple(stages[:at]), stages[at], tuple(stages[at + 1 : end]), mask)


def check_chain(specs: Sequence[ModelSpec]) -> None:
    """Refuse chains that make no sense.

    Args:
        specs: The models in the order in which frames pass them.

    Raises:
        ConfigError: If a model is no image model, or the order makes no sense.
    """
    for position, spec in enumerate(specs):
        earlier = {other.task: other.model_id for other in specs[:position]}
        if not spec.is_image_model or spec.task is ModelTask.OTHER:
            raise ConfigError(f"{spec.model_id} ({spec.task.value}) in enhance", "models that make frames of frames")
        if ModelTask.BACKGROUND_REMOVAL in earlier:
            raise ConfigError(
                f"{spec.model_id} after {earlier[ModelTask.BACKGROUND_REMOVAL]}",
                "one model that removes the background, as the last of the chain",
                "Put it last: its mask belongs to the frames that are written.",
            )
        if spec.task is ModelTask.INTERPOLATION and spec.task in earlier:
            raise ConfigError(
                f"{earlier[spec.task]} and {spec.model_id} in one chain",
                "one model that adds frames",
                "Use --factor 4 instead.",
            )


def check_rate(specs: Sequence[ModelSpec], factor: int | None, fps: Fraction | None) -> None:
    """Check what is asked of the model that adds frames.

    Args:
        specs: The chain.
        factor: Frames of the result for one of the source; None where not asked for.
        fps: Frames per second of the result; None where not asked for.

    Raises:
        ConfigError: If both are given, one is out of its range, or no model of the chain adds frames.
    """
    if factor is None and fps is None:
        return
    if factor is not None and fps is not None:
        raise ConfigError(f"factor {factor} and {fps} frames per second", "one of them")
    if factor is not None and factor not in range(2, MAX_FACTOR + 1):
        raise ConfigError(f"factor {factor}", f"a whole number from 2 to {MAX_FACTOR}")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ConfigError(f"{fps} frames per second", f"above 0, up to {MAX_FPS}")
    if not any(spec.task is ModelTask.INTERPOLATION for spec in specs):
        raise ConfigError("factor or fps without a model that adds frames", "a chain with one", "Add --model rife.")


def count_results(specs: Sequence[ModelSpec], computed: Mapping[str, int], *, factor: int) -> int:
    """Estimate how many frames of results a chain has made, from what its models have.

    Args:
        specs: The chain.
        computed: Frames by model id.
        factor: Frames of a result for one of the source, where the chain adds frames.

    Returns:
        Frames: those of the model that is least far.
    """
    tasks = [spec.task for spec in specs]
    at = tasks.index(ModelTask.INTERPOLATION) if ModelTask.INTERPOLATION in tasks else -1
    results = []
    for position, spec in enumerate(specs):
        frames = computed.get(spec.model_id, 0)
        if position < at:
            frames *= factor
        elif position == at:
            frames = frames * factor // (factor - 1)  # it makes those between only
        results.append(frames)
    return min(results)


def has_mask(specs: Sequence[ModelSpec]) -> bool:
    """Tell whether a chain removes the background.

    Args:
        specs: The chain.

    Returns:
        Whether it does.
    """
    return any(spec.task is ModelTask.BACKGROUND_REMOVAL for spec in specs)


def plan_result(
    plan: VideoPlan,
    specs: Sequence[ModelSpec],
    *,
    factor: int | None = None,
    fps: Fraction | None = None,
    background: Background | None = None,
) -> Timeline:
    """Plan what a chain makes of a video.

    Args:
        plan: The video.
        specs: The chain.
        factor: Frames of the result for one of the source, where the chain adds frames; None for 2.
        fps: Frames per second of the result instead.
        background: What takes the background's place, where the chain removes it.

    Returns:
        The plan of the video and the plan of its result.

    Raises:
        ConfigError: As ``retime``.
    """
    adds_frames = any(spec.task is ModelTask.INTERPOLATION for spec in specs)
    factor = int(factor or DEFAULT_FACTOR)  # a table's whole numbers may be floats
    timeline = retime(plan, factor=factor, fps=fps) if adds_frames else retime(plan)
    kind = background.kind if background is not None else "colour"
    has_alpha = kind == "alpha" or (plan.info.has_alpha and kind != "mask")
    if has_alpha == plan.info.has_alpha:
        return timeline
    return replace(timeline, result=replace(timeline.result, info=replace(timeline.result.info, has_alpha=has_alpha)))
