"""Which step of which video runs next: Ray tasks, as many at a time as there are CPUs for, each tried a few times.

Plain tasks rather than Ray Data: with 10,000 short clips its executor needs 10 ms of the driver for each task, these
0.5 ms; it cannot say which row killed its worker; and its plans have no join that waits for the segments of one video.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from genai_ray.cluster import NODE_DIED, has_own_node_died
from genai_ray.enhance.distribution.shared_folders import AWAY, HomeNode, SharedFolders, find_shared_folders
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.clip_plan import ClipPlan
from genai_ray.enhance.job.report import ProgressMeter
from genai_ray.enhance.job.steps import begin_clip, finish_clip, note_of, run_segment
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.segment.cancellation import cancel_job, check_cancelled, clear_cancellation
from genai_ray.enhance.segment.segment import JobContext, SegmentResult
from genai_ray.errors import GenAIRayError, QualityError, ResourceExhaustedError, VideoError
from genai_ray.files import is_remote

__all__ = ["DO_AGAIN", "Scheduler"]

DO_AGAIN = "Run the same again: finished segments are kept."

MAX_TRIES = 3
"""A video fails if one of its steps loses its worker, or fails by a store's or system's error, this often."""

POLL_S = 0.5
"""Longest wait before the caller's ``check`` is called again."""

STOP_WITHIN_S = 5.0
"""A job that is over waits this long for its steps: a segment stops at its next frame, a join is finished."""

CPUS_EVERY_S = 5.0

TASKS_SHARE = 0.4
"""Most of the cluster's ``memory`` that segments are predicted to take together; sessions have the rest."""

NO_CPU_WITHIN_S = 600.0
"""A cluster that grows on demand has its first node by then."""

_DEATHS = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)

_FAILURES = (GenAIRayError, RayError, OSError, MemoryError)
"""Errors that a task returns as values, so that Ray raises nothing but deaths."""


@dataclass(slots=True, eq=False)
class _OpenClip:
    """The state of a video whose steps are running."""

    target: ClipTarget
    recorded: ClipOutcome | None = None
    plan: ClipPlan | None = None
    plan_ref: Any = None
    outcome: ClipOutcome | None = None
    error: BaseException | None = None
    failed_at: int = -1
    segments_failed: int = 0
    """Segments whose frames fail the checks."""
    results: dict[int, SegmentResult] = field(default_factory=dict)
    away: dict[int, tuple[SegmentResult, Any]] = field(default_factory=dict)
    """Segments made on a node without the work folder, with references of their bytes."""
    tries: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_flight: int = 0
    begun_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One Ray task of a video."""

    clip: _OpenClip
    kind: Literal["begin", "segment", "bring", "finish"]
    index: int = -1
    at_home: bool = False

    @property
    def bytes(self) -> int:
        """Predicted memory; only segments take much."""
        return self.clip.plan.segment_bytes if self.kind == "segment" and self.clip.plan is not None else 0


class Scheduler:
    """Runs the videos of one job; no frame or segment comes to this process.

    Args:
        targets: The videos, read as they are begun.
        job: The chain, the options and the cache.
        meter: Counts what is done.
        recorded: Returns what an earlier job has recorded for an output.
        check: Called twice a second; an error that it raises ends the job.
        claim: Called with each video before it is begun; if it raises, the video has failed.
    """

    def __init__(
        self,
        targets: Iterator[ClipTarget],
        job: JobContext,
        *,
        meter: ProgressMeter,
        recorded: Callable[[str], ClipOutcome | None],
        check: Callable[[], None],
        claim: Callable[[ClipTarget], None],
    ) -> None:
        self._targets = targets
        self._job = _JobRef(job.tag, ray.put(job))
        self._meter = meter
        self._recorded = recorded
        self._check = check
        self._claim = claim
        self._home = HomeNode()
        self._open: set[_OpenClip] = set()
        self._refused: deque[_OpenClip] = deque()
        self._urgent: deque[_Step] = deque()
        self._ready: deque[_Step] = deque()
        self._in_flight: dict[Any, tuple[_Step, Any]] = {}
        self._all_begun = False
        self._cpus = 1
        self._cpus_at = float("-inf")
        self._alive_at = time.monotonic()
        self._room_bytes = 0
        self._taken_bytes = 0

    def add_planned(self, plan: ClipPlan) -> None:
        """Take a video that is planned already.

        Args:
            plan: Its plan, ready for its segments.
        """
        clip = _OpenClip(plan.target)
        self._open.add(clip)
        self._start_segments(clip, plan)

    def run(self) -> Iterator[tuple[ClipTarget, ClipOutcome]]:
        """Run everything.

        Yields:
            Videos as they end, in any order, with what became of them.

        Raises:
            ResourceExhaustedError: If the cluster has lost its CPUs, or this process's own node has died.
        """
        while True:
            self._fill()
            while self._refused:
                if (ended := self._end(self._refused.popleft())) is not None:
                    yield ended
            if not self._in_flight:
                return
            done, rest = ray.wait(list(self._in_flight), num_returns=1, timeout=POLL_S)
            if done and rest:
                done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            if has_own_node_died():
                raise ResourceExhaustedError(NODE_DIED, do=DO_AGAIN)
            self._check()
            for ref in done:
                step, data = self._in_flight.pop(ref)
                step.clip.in_flight -= 1
                self._home.num_steps -= step.at_home
                self._taken_bytes -= step.bytes
                self._take_result(step, ref, data)
                if (ended := self._end(step.clip)) is not None:
                    yield ended

    def stop(self) -> list[ClipTarget]:
        """Cancel what is in flight, and start nothing more.

        Returns:
            The videos that were begun and have not ended.
        """
        if self._in_flight and not has_own_node_died():
            with suppress(RayError):
                for step in self._urgent:
                    if step.kind == "bring" and step.clip.error is None:
                        self._submit(step)  # a finished segment, which would be lost
                cancel_job(self._job.tag)
                refs = list(self._in_flight)
                _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP_WITHIN_S)
                if not left:
                    clear_cancellation(self._job.tag)
        self._in_flight.clear()
        return [clip.target for clip in self._open]

    def _fill(self) -> None:
        """Submit what is ready, joins first, while there is room; begin a video if nothing else is ready.

        Segments from other nodes come before new ones: they take memory until home has them.
        """
        now = time.monotonic()
        if now - self._cpus_at > CPUS_EVERY_S:
            self._count_cpus(now)
        while len(self._in_flight) < 2 * self._cpus + 2:
            if self._urgent:
                step = self._urgent[0]
                if step.clip.error is not None:
                    self._urgent.popleft()
                    continue
                if not step.at_home or self._home.has_room():
                    self._submit(self._urgent.popleft())
                    continue
                if step.kind == "bring":
                    return
            if self._ready:
                if self._taken_bytes and self._taken_bytes + self._ready[0].bytes > self._room_bytes:
                    return  # a segment alone may take more than there is room for
                step = self._ready.popleft()
                if step.clip.error is None:
                    self._submit(step)
            elif self._urgent or not self._begin_next():
                return

    def _count_cpus(self, now: float) -> None:
        """Ask how many CPUs there are; a cluster without any runs nothing, and raises nothing."""
        cluster_resources: Any = ray.cluster_resources
        resources = cluster_resources()
        cpus = int(resources.get("CPU", 0))
        self._room_bytes = int(TASKS_SHARE * resources.get("memory", 0))
        self._cpus = max(cpus, 1)
        self._cpus_at = now
        if cpus:
            self._alive_at = now
        elif now - self._alive_at > NO_CPU_WITHIN_S:
            raise ResourceExhaustedError(
                f"the cluster has had no CPU for {NO_CPU_WITHIN_S:.0f} s", "at least one", "Its nodes may have died."
            )

    def _begin_next(self) -> bool:
        target = None if self._all_begun else next(self._targets, None)
        if target is None:
            self._all_begun = True
            return False
        clip = _OpenClip(target, self._recorded(target.output))
        self._open.add(clip)
        try:
            self._claim(target)
            self._urgent.append(_Step(clip, "begin", at_home=self._home.is_needed))
        except GenAIRayError as exc:
            clip.error = exc
            self._refused.append(clip)
        return True

    def _submit(self, step: _Step) -> None:
        clip = step.clip
        task = _TASKS[step.kind].options(**self._home.options) if step.at_home else _TASKS[step.kind]
        data = None
        if step.kind == "begin":
            # The first video is planned only, so that models are loaded for its size while others are planned.
            at_once = self._meter.first_plan is not None and not step.at_home
            folders = find_shared_folders(clip.target)
            ref = task.remote(clip.target, folders, clip.recorded, self._job, at_once, step.at_home)
        elif step.kind == "segment":
            ref, data = task.remote(clip.plan_ref, step.index, self._job)
        elif step.kind == "bring":
            ref = task.remote(clip.plan_ref, step.index, *clip.away[step.index])
        else:
            ref = task.remote(clip.plan_ref, clip.results, time.monotonic() - clip.begun_at, step.at_home)
        clip.in_flight += 1
        self._home.num_steps += step.at_home
        self._taken_bytes += step.bytes
        self._in_flight[ref] = (step, data)

    def _take_result(self, step: _Step, ref: Any, data: Any) -> None:
        """Take what a step has returned."""
        clip = step.clip
        try:
            given = ray.get(ref)
        except RayTaskError as exc:
            if not isinstance(exc.cause, ObjectLostError):  # a fault of this package: not tried again
                self._blame(step, exc.cause if isinstance(exc.cause, GenAIRayError) else exc)
                return
            given = exc.cause
        except RayError as exc:
            given = exc
        if isinstance(given, BaseException):
            self._fail(step, given)
        elif given == AWAY:
            self._home.require()
            self._urgent.append(replace(step, at_home=True))
        elif isinstance(given, ClipPlan):
            self._start_segments(clip, given)
        elif isinstance(given, ClipOutcome):
            clip.outcome = given
            if step.kind == "begin":
                self._meter.add_outcome(given)
        elif step.kind == "segment" and given.is_away:
            clip.away[step.index] = (given, data)
            self._urgent.append(_Step(clip, "bring", step.index, at_home=True))
        else:
            result = given if step.kind == "segment" else clip.away.pop(step.index)[0]
            clip.results[step.index] = result
            self._meter.add_segment(result)
            self._join_if_complete(clip)

    def _start_segments(self, clip: _OpenClip, plan: ClipPlan) -> None:
        clip.plan = plan
        clip.plan_ref = ray.put(plan)  # in this process's store: it outlives the node that made it
        self._meter.add_plan(plan)
        self._ready.extend(_Step(clip, "segment", index) for index in plan.todo)
        self._join_if_complete(clip)

    def _join_if_complete(self, clip: _OpenClip) -> None:
        plan = clip.plan
        if plan is not None and len(clip.results) == plan.segments - len(plan.reused) and clip.error is None:
            self._urgent.append(_Step(clip, "finish", at_home=self._home.is_needed))

    def _fail(self, step: _Step, error: BaseException) -> None:
        """Try a step again after a lost worker, or a store's or system's error; otherwise its video has failed."""
        clip = step.clip
        source = clip.target.source
        if step.kind == "bring" and isinstance(error, ObjectLostError):  # its node died: the segment is made again
            clip.away.pop(step.index, None)
            step = _Step(clip, "segment", step.index)
        clip.tries[step.kind, step.index] += 1
        is_of_store = isinstance(error, VideoError) and any(map(is_remote, (source, clip.target.output)))
        is_chance = is_of_store or not isinstance(error, GenAIRayError)
        if is_chance and clip.error is None and clip.tries[step.kind, step.index] < MAX_TRIES:
            (self._ready if step.kind == "segment" else self._urgent).appendleft(step)
            return
        if isinstance(error, _DEATHS):
            what = {"begin": "it", "finish": "its end"}.get(step.kind, f"segments [{step.index}]")
            error = VideoError(f"{source}: the worker died {MAX_TRIES} times on {what}")
        if clip.error is None or not is_chance:
            self._blame(step, error)

    def _blame(self, step: _Step, error: BaseException) -> None:
        """Note why a video has failed: if several segments did, the first one in the video counts."""
        clip = step.clip
        clip.segments_failed += isinstance(error, QualityError)
        if clip.error is None or step.index < clip.failed_at:
            clip.error = error
            clip.failed_at = step.index

    def _end(self, clip: _OpenClip) -> tuple[ClipTarget, ClipOutcome] | None:
        """Return what became of a video, if none of its steps is in flight any more."""
        is_over = clip.outcome is not None or clip.error is not None
        if not is_over or clip.in_flight or clip not in self._open:
            return None
        self._open.discard(clip)
        was_planned = clip.plan is not None or clip.outcome is not None
        self._meter.end(is_failed=clip.error is not None, was_planned=was_planned)
        outcome = clip.outcome
        if outcome is None or clip.error is not None:
            outcome = ClipOutcome(
                clip.target.source,
                clip.target.output,
                status="failed",
                error=str(clip.error),
                error_class=type(clip.error).__name__,
                segments=clip.plan.segments if clip.plan is not None else clip.segments_failed,
                frames_checked=sum(result.frames_checked for result in clip.results.values()),
                segments_recomputed=sum(bool(result.recomputed) for result in clip.results.values()),
                segments_failed=clip.segments_failed,
                results=tuple(clip.results.values()),
                exception=clip.error,
            )
        return clip.target, outcome


@dataclass(frozen=True, slots=True)
class _JobRef:
    """The job as tasks get it: fetched from the object store once in each process."""

    tag: str
    job: Any

    def fetch(self) -> JobContext:
        if self.tag not in _contexts:
            _contexts.clear()
            _contexts[self.tag] = ray.get(self.job)
        check_cancelled(self.tag)
        return _contexts[self.tag]


_contexts: dict[str, JobContext] = {}


@ray.remote(num_cpus=1, max_retries=0)
def _run_begin(
    target: ClipTarget, home: SharedFolders, recorded: ClipOutcome | None, job: _JobRef, at_once: bool, at_home: bool
) -> Any:
    try:
        if home.is_away(at_home=at_home):
            return AWAY
        return begin_clip(target, job.fetch(), recorded, at_once=at_once)
    except _FAILURES as exc:
        return exc


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _run_segment(plan: ClipPlan, index: int, job: _JobRef) -> tuple[Any, npt.NDArray[np.uint8] | None]:
    try:
        return run_segment(plan, index, job.fetch())
    except _FAILURES as exc:
        return exc, None


@ray.remote(num_cpus=1, max_retries=0)
def _run_bring(plan: ClipPlan, index: int, result: SegmentResult, data: npt.NDArray[np.uint8]) -> Any:
    try:
        plan.store.put(index, result.name, data.data, note_of(plan, result))
    except _FAILURES as exc:
        return exc
    return None


@ray.remote(num_cpus=1, max_retries=0)
def _run_finish(plan: ClipPlan, results: dict[int, SegmentResult], seconds: float, at_home: bool) -> Any:
    try:
        if plan.home.is_away(at_home=at_home):
            return AWAY
        return finish_clip(plan, results, seconds)
    except _FAILURES as exc:
        return exc


_TASKS: dict[str, Any] = {"begin": _run_begin, "segment": _run_segment, "bring": _run_bring, "finish": _run_finish}
