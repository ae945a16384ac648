"""``SegmentCuts``: the cuts of one segment, across which no frame is added."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.scenes import CutFinder, is_cut, thumbnail

__all__ = ["SegmentCuts", "find_segment_cuts"]


class SegmentCuts:
    """Tells, for each frame of a segment in turn, whether a cut lies before it.

    Args:
        threshold: Structural similarity of neighbours below which a cut lies between them; None if cuts are known.
        after: Frames after which there is a cut, if they are known.
    """

    def __init__(self, threshold: float | None, after: frozenset[int] = frozenset()) -> None:
        self._threshold = threshold
        self._after = after
        self._small: npt.NDArray[Any] | None = None

    def lies_before(self, index: int, frame: npt.NDArray[Any]) -> bool:
        """Take the next frame that differs from the one before it.

        Args:
            index: Its position in the video.
            frame: RGB (H, W, 3), uint8 or uint16.

        Returns:
            Whether a cut lies before it; False for the first one.
        """
        if self._threshold is None:
            return index - 1 in self._after
        before, self._small = self._small, thumbnail(frame)
        return before is not None and is_cut(before, self._small, self._threshold)


def find_segment_cuts(timeline: Timeline, index: int, *, allow_truncated: bool) -> SegmentCuts | None:
    """Find the cuts of a segment as the plan says.

    The last frame of the segment counts too: the pair of it and the next segment's first frame belongs to this one.
    TransNetV2 decodes frames around the segment, and finds the same cuts however a video is divided.

    Args:
        timeline: The plan of the video and of its result.
        index: Index of the segment.
        allow_truncated: As ``decode_segment``.

    Returns:
        The cuts; None if no frames are added.

    Raises:
        VideoError: If a frame does not decode.
        GenAIRayError: If TransNetV2 cannot be loaded or fails.
    """
    if not timeline.adds_frames:
        return None
    if timeline.scene_threshold is not None:
        return SegmentCuts(timeline.scene_threshold)
    segment = timeline.plan.segments[index]
    with CutFinder(threads=1) as finder:
        found = finder.find(timeline.plan, segment.start, segment.stop, allow_truncated=allow_truncated)
        return SegmentCuts(None, frozenset(found))
