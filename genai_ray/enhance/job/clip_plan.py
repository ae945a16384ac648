"""What is known of one video while it is on its way: its plan, and what the scheduler has to know of it."""

from __future__ import annotations

import lzma
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field

from genai_ray.cluster import SessionRequest
from genai_ray.enhance.distribution.shared_folders import SharedFolders
from genai_ray.enhance.job.records import Record
from genai_ray.enhance.job.segment_store import SegmentStore
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.enhance.segment.segment import SegmentResult
from genai_ray.files import FileFacts

__all__ = ["Begun", "ClipPlan", "pack", "unpack"]

_FILTERS = ({"id": lzma.FILTER_DELTA, "dist": 5}, {"id": lzma.FILTER_LZMA2, "preset": 0})
"""Times take five bytes each in a pickle, and most differ from the one before by the same."""


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """A video that has been begun; what its segments and its end need."""

    target: ClipTarget
    """Input and output."""
    timeline: Timeline
    """Every frame of the source, and every frame of the result."""
    store: SegmentStore
    """Where finished segments are."""
    options: EnhanceOptions
    """The options of this video."""
    requests: tuple[SessionRequest, ...]
    """Which sessions it needs, each for the largest frame that comes to it."""
    reused: Mapping[int, str]
    """Segments that were finished before: their hashes by index."""
    key: str
    """Input, models and options."""
    size_out: tuple[int, int]
    """(width, height) of the result in pixels."""
    source: FileFacts | None
    """Size and version of the input as it was planned."""
    damaged: int = 0
    """Finished segments that were not what was written, and are computed again."""
    notes: tuple[str, ...] = ()
    """What is to be said of the chain at frames of this size."""
    home: SharedFolders = field(default_factory=SharedFolders)
    """The folders that result and segments go to."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What the scheduler has to know of a video that has been begun."""

    frames: int = 0
    """Frames of its plan."""
    frames_reused: int = 0
    """Of them in segments that were finished before."""
    segments: int = 0
    """Segments of its plan."""
    todo: tuple[int, ...] = ()
    """Segments that are to be done."""
    segment_bytes: int = 0
    """What the task of one of them is predicted to take."""
    requests: tuple[SessionRequest, ...] = ()
    """Which sessions it needs."""
    record: Record | None = None
    """Set where it is finished already."""
    plan_bytes: int = 0
    """Size of its packed plan."""
    results: tuple[SegmentResult, ...] = ()
    """What came of segments that were done with it."""


def pack(planned: ClipPlan) -> bytes:
    """Make a plan small, to be kept with the driver: it outlives the node that made it. A plan of ten hours takes less than 100 KB.

    Args:
        planned: The plan.

    Returns:
        Its bytes.
    """
    return lzma.compress(pickle.dumps(planned, pickle.HIGHEST_PROTOCOL), filters=_FILTERS)


def unpack(packed: bytes) -> ClipPlan:
    """Return the plan that ``pack`` made small.

    Args:
        packed: Its bytes.

    Returns:
        The plan.
    """
    planned: ClipPlan = pickle.loads(lzma.decompress(packed))
    return planned
