"""The steps of one video as tasks of Ray; what fails comes back as a value, so that only deaths are Ray's to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.enhance.distribution.shared_folders import SharedFolders
from genai_ray.enhance.job.clip_plan import pack, unpack
from genai_ray.enhance.job.records import Record
from genai_ray.enhance.job.steps import begin_clip, finish_clip, run_segment
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.segment.segment import SegmentJob, SegmentResult, check_cancelled
from genai_ray.errors import GenAIRayError

__all__ = ["AWAY", "Shared", "Tasks"]

AWAY = "away"
"""What a step gives, having done nothing, on a node that lacks the folders of its video."""

_FAILURES = (GenAIRayError, RayError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class Shared:
    """The job as tasks get it: fetched from the object store once a process."""

    tag: str
    """Name of the job."""
    job: Any
    """Reference of its ``SegmentJob``."""


class Tasks:
    """Submits steps: anywhere in the cluster, or on the node that the job was started on.

    Args:
        shared: The job.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        node = ray.get_runtime_context().get_node_id()
        self.cpus_at_home = next(
            (int(found["Resources"].get("CPU", 0)) for found in _nodes() if found["NodeID"] == node), 0
        )
        """CPUs of the node that the job was started on."""
        self._at_home = {
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            "num_cpus": min(1, self.cpus_at_home),
        }

    def begin(
        self, target: ClipTarget, home: SharedFolders, recorded: Record | None, *, at_once: bool, at_home: bool
    ) -> tuple[Any, Any]:
        """Plan a video.

        Args:
            target: Input and output.
            home: Its folders, as the job's own machine has them.
            recorded: What an earlier job has recorded of this output.
            at_once: Whether a small one is to be done at once.
            at_home: Where.

        Returns:
            References of what the scheduler needs, the exception or ``AWAY``; and of the packed plan.
        """
        task: Any = _run_begin.options(**self._at_home) if at_home else _run_begin
        first, second = task.remote(target, home, recorded, self._shared, at_once, at_home)
        return first, second

    def segment(self, planned: Any, index: int) -> tuple[Any, Any]:
        """Enhance one segment.

        Args:
            planned: Reference of the packed plan.
            index: Which.

        Returns:
            References of the result or the exception; and of the segment's bytes, where it was made away from the work folder.
        """
        task: Any = _run_segment
        first, second = task.remote(planned, index, self._shared)
        return first, second

    def keep(self, planned: Any, index: int, data: Any) -> Any:
        """Bring a segment that was made elsewhere to the work folder.

        Args:
            planned: Reference of the packed plan.
            index: Which.
            data: Reference of its bytes.

        Returns:
            Reference of None, or the exception.
        """
        return _run_keep.options(**self._at_home).remote(planned, index, data)

    def finish(self, planned: Any, results: Mapping[int, SegmentResult], seconds: float, *, at_home: bool) -> Any:
        """Join and publish a video.

        Args:
            planned: Reference of the packed plan.
            results: What came of its segments.
            seconds: That it has taken before.
            at_home: Where.

        Returns:
            Reference of the record, the exception or ``AWAY``.
        """
        task: Any = _run_finish.options(**self._at_home) if at_home else _run_finish
        return task.remote(planned, results, seconds, at_home)


_jobs: dict[str, SegmentJob] = {}


def _job_of(shared: Shared) -> SegmentJob:
    if shared.tag not in _jobs:
        _jobs.clear()
        _jobs[shared.tag] = ray.get(shared.job)
    check_cancelled(shared.tag)
    return _jobs[shared.tag]


def _nodes() -> list[dict[str, Any]]:
    nodes: Any = ray.nodes
    return list(nodes())


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _run_begin(
    target: ClipTarget, home: SharedFolders, recorded: Record | None, shared: Shared, at_once: bool, at_home: bool
) -> tuple[Any, bytes | None]:
    try:
        if not at_home and not home.is_here():
            return AWAY, None
        home.check()
        begun, planned = begin_clip(target, _job_of(shared), recorded, at_once=at_once)
        packed = None if planned is None else pack(planned)
        return replace(begun, plan_bytes=len(packed or b"")), packed
    except _FAILURES as exc:
        return exc, None


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _run_segment(
    planned: bytes, index: int, shared: Shared
) -> tuple[SegmentResult | BaseException, npt.NDArray[np.uint8] | None]:
    try:
        return run_segment(unpack(planned), index, _job_of(shared))
    except _FAILURES as exc:
        return exc, None


@ray.remote(num_cpus=1, max_retries=0)
def _run_keep(planned: bytes, index: int, data: npt.NDArray[np.uint8]) -> BaseException | None:
    try:
        unpack(planned).store.put(index, data.data)
    except _FAILURES as exc:
        return exc
    return None


@ray.remote(num_cpus=1, max_retries=0)
def _run_finish(planned: bytes, results: dict[int, SegmentResult], seconds: float, at_home: bool) -> Any:
    try:
        found = unpack(planned)
        if not at_home and not found.home.is_here():
            return AWAY
        found.home.check()
        return finish_clip(found, results, seconds)
    except _FAILURES as exc:
        return exc
