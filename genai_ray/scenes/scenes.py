"""``find_scenes``: the scenes of a video, with frames and exact times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from genai_ray.display import describe_fields, format_count, to_html
from genai_ray.errors import VideoError
from genai_ray.scenes.transnet import PROBABILITY, CutFinder, check_probability
from genai_ray.video import VideoPlan, plan_source

__all__ = ["Scene", "SceneList", "find_scenes", "list_scenes"]

TELL_EVERY = 500
"""Frames after which progress is told."""


@describe_fields
@dataclass(frozen=True, slots=True)
class Scene:
    """One scene: a half-open range of frames."""

    index: int
    """Position in the video, from 0."""
    start: int
    """First frame, in display order from 0."""
    stop: int
    """One past the last frame."""
    start_s: Fraction
    """When a player's clock shows the first frame, exactly: zero is the beginning of the file."""
    stop_s: Fraction
    """When the next scene begins, or the video ends."""

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain values, fit for JSON.

        Returns:
            The fields by name; times in seconds as numbers, and exactly as text such as ``1001/30000``.
        """
        return {
            "index": self.index,
            "start": self.start,
            "stop": self.stop,
            "frames": self.stop - self.start,
            "start_s": float(self.start_s),
            "stop_s": float(self.stop_s),
            "start_exact": str(self.start_s),
            "stop_exact": str(self.stop_s),
        }


@describe_fields
@dataclass(frozen=True, slots=True)
class SceneList(Sequence[Scene]):
    """The scenes of a video in order; together they are the video."""

    plan: VideoPlan
    """Every frame of the video, with its time."""
    scenes: tuple[Scene, ...]
    """The scenes."""

    @property
    def path(self) -> str:
        """Path or URI of the video."""
        return self.plan.path

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: Any) -> Any:
        return self.scenes[index]

    def __iter__(self) -> Iterator[Scene]:
        return iter(self.scenes)

    def __repr__(self) -> str:
        scenes, frames = format_count(len(self), "scene"), format_count(len(self.plan.pts), "frame")
        return f"SceneList({self.path}: {scenes} of {frames})"

    def _repr_html_(self) -> str:
        rows = [
            (f"{scene.index}", f"frames {scene.start} to {scene.stop - 1}, from {float(scene.start_s):.3f} s")
            for scene in self.scenes[:20]
        ]
        return to_html(repr(self), [*rows, *([("...", "")] if len(self) > 20 else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the list as plain values, fit for JSON.

        Returns:
            Path, number of frames, average frame rate as text, and the scenes.
        """
        return {
            "path": self.path,
            "frames": len(self.plan.pts),
            "average_rate": str(self.plan.info.average_rate),
            "scenes": [scene.to_dict() for scene in self.scenes],
        }


def find_scenes(
    path: str | Path,
    *,
    probability: float = PROBABILITY,
    any_format: bool = False,
    allow_truncated: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SceneList:
    """Find the scenes of a video by TransNetV2: hard cuts, fades and dissolves.

    It runs on the CPU of this machine, and decodes every frame. Memory does not depend on the length of the video. The
    frames of a dissolve belong to the scene after it, but for the first one.

    Args:
        path: Path or URI of the video, or of an animation.
        probability: The least probability of a cut, between 0 and 1: less finds more cuts.
        any_format: Whether the file may name other files and hosts, as playlists do; they are opened then.
        allow_truncated: Whether a file that ends too early is searched as far as it goes.
        on_progress: Called with the frames that are searched and those of the video, now and then.

    Returns:
        The scenes; one for a video without a cut.

    Raises:
        ConfigError: If the probability is out of its range.
        VideoError: If the file is missing, is not a video, is truncated and that is not allowed, or does not decode.

    Example:
        >>> import genai_ray
        >>> genai_ray.find_scenes("samples/bigbuckbunny-360p.mp4")
        SceneList(samples/bigbuckbunny-360p.mp4: 1 scene of 132 frames)
    """
    check_probability(probability)
    plan = plan_source(str(path), any_format=any_format)
    if plan.truncated and not allow_truncated:
        raise VideoError(
            f"{path} is truncated: {plan.truncated}",
            do="Pass --allow-truncated (allow_truncated=True) to search what is there.",
        )
    count = len(plan.pts)
    cuts: list[int] = []
    with CutFinder(probability=probability) as finder:
        for index, is_last in finder.judge(plan, 0, count, allow_truncated=allow_truncated):
            if is_last:
                cuts.append(index)
            if on_progress is not None and (index + 1) % TELL_EVERY == 0:
                on_progress(index + 1, count)
    return list_scenes(plan, cuts)


def list_scenes(plan: VideoPlan, cuts: Sequence[int]) -> SceneList:
    """List the scenes of a video whose cuts are known.

    Args:
        plan: The planned video.
        cuts: Last frame of each scene but the last one, ascending.

    Returns:
        The scenes.
    """
    base = plan.info.time_base
    times = (*plan.pts, plan.pts[-1] + plan.duration)
    starts = [0, *(cut + 1 for cut in cuts), len(plan.pts)]
    scenes = (
        Scene(index, start, stop, times[start] * base - plan.begins_s, times[stop] * base - plan.begins_s)
        for index, (start, stop) in enumerate(pairwise(starts))
    )
    return SceneList(plan, tuple(scenes))
