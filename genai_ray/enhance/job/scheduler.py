"""Which step of which video runs next: tasks of Ray, as many at a time as the cluster has CPUs for, each tried a few times.

Plain tasks rather than Ray Data: at 10,000 short clips its executor takes 10 ms of the driver for a task, these 0.5 ms; it cannot say which row
killed its worker; and a join that waits for the segments of one video alone has no place in its plan.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from genai_ray.cluster import NODE_DIED, has_own_node_died
from genai_ray.enhance.distribution.shared_folders import find_shared_folders
from genai_ray.enhance.job.clip_plan import Begun, ClipPlan, pack
from genai_ray.enhance.job.progress import Meter
from genai_ray.enhance.job.records import Record
from genai_ray.enhance.job.tasks import AWAY, Shared, Tasks
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.segment.segment import SegmentJob, SegmentResult, cancel_job, clear_cancellation
from genai_ray.errors import GenAIRayError, ResourceExhaustedError, VideoError
from genai_ray.files import is_remote

__all__ = ["DO_AGAIN", "Ended", "Scheduler"]

_log = logging.getLogger(__name__)

DO_AGAIN = "Run the same again: finished segments are kept."

MAX_TRIES = 3
"""A step that fails by chance, or whose worker dies, this often fails its video."""

POLL_S = 0.5
"""Longest wait before the caller's ``check`` is called again."""

STOP_WITHIN_S = 5.0
"""A step of a job that is over stops at the next frame; a join is done, and whatever takes longer is left to the end of the cluster, or to itself."""

CPUS_EVERY_S = 5.0

TASKS_SHARE = 0.4
"""Of the cluster's ``memory``, what segments are predicted to take together at the most; sessions have the rest."""

NO_CPU_WITHIN_S = 600.0
"""A cluster that grows on demand has its first node by then."""

SMALL_BYTES = 50_000
"""Of what tasks give, Ray keeps with the driver what is smaller; its own limit is 100 KB."""

_DEATHS = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


@dataclass(frozen=True, slots=True)
class Ended:
    """A video that has come to its end."""

    target: ClipTarget
    """Input and output."""
    record: Record | None
    """What was done; None where it failed."""
    error: BaseException | None
    """Why it failed."""
    results: tuple[SegmentResult, ...]
    """Segments that were done in this job."""
    segments: int
    """Segments of its plan."""


@dataclass(slots=True, eq=False)
class _Clip:
    """A video on its way."""

    target: ClipTarget
    recorded: Record | None
    begun_at: float = field(default_factory=time.monotonic)
    begun: Begun = field(default_factory=Begun)
    planned: Any = None
    results: dict[int, SegmentResult] = field(default_factory=dict)
    away: dict[int, tuple[SegmentResult, Any]] = field(default_factory=dict)
    tries: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_flight: int = 0
    error: BaseException | None = None
    failed_at: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    clip: _Clip
    kind: str
    index: int = -1
    at_home: bool = False

    @property
    def bytes(self) -> int:
        """What it is predicted to take; only segments take much."""
        return self.clip.begun.segment_bytes if self.kind == "segment" else 0


class Scheduler:
    """Runs the videos of one job; no frame or segment comes to the driver, and of plans those of many hours.

    Args:
        targets: The videos, read as they are begun.
        job: The chain, the options and the cache.
        meter: Told what is done.
        recorded: Gives what an earlier job has recorded of an output.
        check: Called twice a second; what it raises ends the job.
        claim: Called with each video before it is begun; one that it refuses has failed.
    """

    def __init__(
        self,
        targets: Iterator[ClipTarget],
        job: SegmentJob,
        *,
        meter: Meter,
        recorded: Callable[[str], Record | None],
        check: Callable[[], None],
        claim: Callable[[ClipTarget], None],
    ) -> None:
        self._targets, self._tag = targets, job.tag
        self._tasks = Tasks(Shared(job.tag, ray.put(job)))
        self._meter, self._recorded, self._check, self._claim = meter, recorded, check, claim
        self._refused: deque[_Clip] = deque()
        self._ready: deque[_Step] = deque()
        self._urgent: deque[_Step] = deque()
        self._in_flight: dict[Any, tuple[_Step, Any]] = {}
        self._open: set[_Clip] = set()
        self._cpus, self._cpus_at, self._alive_at = 1, float("-inf"), time.monotonic()
        self._room_bytes = self._taken_bytes = 0
        self._all_begun = self._is_split = False
        self._at_home = 0

    def adopt(self, target: ClipTarget, begun: Begun, planned: ClipPlan) -> None:
        """Take a video that was begun elsewhere.

        Args:
            target: The video.
            begun: What came of it.
            planned: What its segments need.
        """
        clip = _Clip(target, None)
        self._open.add(clip)
        self._go_on(clip, begun, ray.put(pack(planned)))

    def run(self) -> Iterator[Ended]:
        """Run everything.

        Yields:
            Videos as they end, in any order.

        Raises:
            ResourceExhaustedError: If the cluster has lost its CPUs or, where it is this process's own, its node.
        """
        while True:
            self._fill()
            while self._refused:
                if (ended := self._end(self._refused.popleft())) is not None:
                    yield ended
            if not self._in_flight:
                return
            refs = list(self._in_flight)
            done, rest = ray.wait(refs, num_returns=1, timeout=POLL_S)
            if done and rest:
                done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            if has_own_node_died():
                raise ResourceExhaustedError(NODE_DIED, do=DO_AGAIN)
            self._check()
            for ref in done:
                step, planned = self._in_flight.pop(ref)
                step.clip.in_flight -= 1
                self._at_home -= step.at_home
                self._taken_bytes -= step.bytes
                self._settle(step, ref, planned)
                if (ended := self._end(step.clip)) is not None:
                    yield ended

    def stop(self) -> list[ClipTarget]:
        """End what is in flight, and start nothing more.

        Returns:
            The videos that were begun and have not ended.
        """
        refs = [] if has_own_node_died() else list(self._in_flight)
        with suppress(RayError):
            for step in [step for step in self._urgent if refs and step.kind == "keep" and step.clip.error is None]:
                self._submit(step)  # it is finished, and would be lost
            refs = list(self._in_flight) if refs else []
            if refs:
                cancel_job(self._tag)
                _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP_WITHIN_S)
                if not left:
                    clear_cancellation(self._tag)
        self._in_flight.clear()
        return [clip.target for clip in self._open]

    def _fill(self) -> None:
        """Submit what is ready, joins first, while there is room; begin a video where nothing else is ready.

        Segments that were made elsewhere are waited for: until the job's own machine has them they take memory.
        """
        now = time.monotonic()
        if now - self._cpus_at > CPUS_EVERY_S:
            self._count_cpus(now)
        while len(self._in_flight) < 2 * self._cpus + 2:
            if self._urgent:
                if self._urgent[0].clip.error is not None:
                    self._urgent.popleft()
                    continue
                if not self._urgent[0].at_home or self._at_home < 2 * self._tasks.cpus_at_home + 2:
                    self._submit(self._urgent.popleft())
                    continue
                if self._urgent[0].kind == "keep":
                    return
            if self._ready:
                if self._taken_bytes and self._taken_bytes + self._ready[0].bytes > self._room_bytes:
                    return  # the first of them is let in whatever it takes
                step = self._ready.popleft()
                if step.clip.error is None:
                    self._submit(step)
            elif self._urgent or not self._begin_next():
                return

    def _count_cpus(self, now: float) -> None:
        """Ask how many CPUs there are; a cluster that has none for long does nothing any more, and says nothing of it."""
        resources = _cluster_resources()
        found, self._room_bytes = int(resources.get("CPU", 0)), int(TASKS_SHARE * resources.get("memory", 0))
        self._cpus, self._cpus_at = max(found, 1), now
        if found:
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
        clip = _Clip(target, self._recorded(target.output))
        self._open.add(clip)
        try:
            self._claim(target)
            self._urgent.append(_Step(clip, "begin", at_home=self._is_split))
        except GenAIRayError as exc:
            clip.error = exc
            self._refused.append(clip)
        return True

    def _submit(self, step: _Step) -> None:
        clip = step.clip
        second: Any = None
        if step.kind == "begin":
            # The first videos are planned only, so that models are loaded for their size while others are planned.
            at_once = self._meter.first is not None and not step.at_home
            ref, second = self._tasks.begin(
                clip.target, find_shared_folders(clip.target), clip.recorded, at_once=at_once, at_home=step.at_home
            )
        elif step.kind == "segment":
            ref, second = self._tasks.segment(clip.planned, step.index)
        elif step.kind == "keep":
            ref = self._tasks.keep(clip.planned, step.index, clip.away[step.index][1])
        else:
            ref = self._tasks.finish(clip.planned, clip.results, time.monotonic() - clip.begun_at, at_home=step.at_home)
        clip.in_flight += 1
        self._at_home += step.at_home
        self._taken_bytes += step.bytes
        self._in_flight[ref] = (step, second)

    def _settle(self, step: _Step, ref: Any, second: Any) -> None:
        clip = step.clip
        try:
            outcome = ray.get(ref)
            if isinstance(outcome, Begun) and outcome.plan_bytes > SMALL_BYTES:  # it is still on the node that made it
                second = ray.put(ray.get(second))
        except RayTaskError as exc:
            if not isinstance(exc.cause, ObjectLostError):  # a fault of ours: not tried again
                self._blame(step, exc.cause if isinstance(exc.cause, GenAIRayError) else exc)
                return
            outcome = exc.cause
        except RayError as exc:
            outcome = exc
        if isinstance(outcome, BaseException):
            self._fail(step, outcome)
        elif outcome == AWAY:
            self._split(step)
        elif step.kind == "begin":
            self._go_on(clip, outcome, second)
        elif step.kind == "segment" and outcome.is_away:
            clip.away[step.index] = (outcome, second)
            self._urgent.append(_Step(clip, "keep", step.index, at_home=True))
        elif step.kind == "segment":
            self._keep(clip, step.index, outcome)
        elif step.kind == "keep":
            self._keep(clip, step.index, clip.away.pop(step.index)[0])
        else:
            clip.begun = Begun(segments=clip.begun.segments, record=outcome)

    def _split(self, step: _Step) -> None:
        """Run a step where the job was started; from now on every video is begun and joined there."""
        if not self._is_split:
            _log.warning(
                "not every node has the folders of this job: videos are planned and joined on this one, and segments are brought to it"
            )
        self._is_split = True
        self._urgent.append(replace(step, at_home=True))

    def _keep(self, clip: _Clip, index: int, result: SegmentResult) -> None:
        """Count a segment that is in the work folder; the last one makes the video ready to be joined."""
        clip.results[index] = result
        self._meter.add_frames(result.frames)
        if len(clip.results) == len(clip.begun.todo) and clip.error is None:
            self._urgent.append(_Step(clip, "finish", at_home=self._is_split))

    def _go_on(self, clip: _Clip, begun: Begun, planned: Any) -> None:
        clip.begun, clip.planned = begun, planned
        clip.results.update(enumerate(begun.results))
        self._meter.begin(begun)
        if begun.record is not None:
            return
        self._ready.extend(_Step(clip, "segment", index) for index in begun.todo)
        if not begun.todo:
            self._urgent.append(_Step(clip, "finish", at_home=self._is_split))

    def _fail(self, step: _Step, error: BaseException) -> None:
        """Try a step again that failed by chance; else its video has failed."""
        clip, source = step.clip, step.clip.target.source
        if step.kind == "keep" and isinstance(
            error, ObjectLostError
        ):  # its node died before it was brought to the work folder: it is made again
            clip.away.pop(step.index, None)
            step = _Step(clip, "segment", step.index)
        clip.tries[step.kind, step.index] += 1
        is_chance = not isinstance(error, GenAIRayError) or (
            isinstance(error, VideoError) and any(map(is_remote, (source, clip.target.output)))
        )
        if is_chance and clip.error is None and clip.tries[step.kind, step.index] < MAX_TRIES:
            (self._ready if step.kind == "segment" else self._urgent).appendleft(step)
            return
        if isinstance(error, _DEATHS):
            what = (
                f"segments [{step.index}]"
                if step.kind in ("segment", "keep")
                else "its end"
                if step.kind == "finish"
                else "it"
            )
            error = VideoError(f"{source}: the worker died {MAX_TRIES} times on {what}")
        if clip.error is None or not is_chance:
            self._blame(step, error)

    def _blame(self, step: _Step, error: BaseException) -> None:
        """Enter why a video has failed: of several segments, the first in the video, whichever came first."""
        clip = step.clip
        if clip.error is None or step.index < clip.failed_at:
            clip.error, clip.failed_at = error, step.index

    def _end(self, clip: _Clip) -> Ended | None:
        """Return the end of a video where it has come: nothing of it is in flight any more."""
        is_over = clip.begun.record is not None or clip.error is not None
        if not is_over or clip.in_flight or clip not in self._open:
            return None
        self._open.discard(clip)
        self._meter.end(is_failed=clip.error is not None, was_begun=clip.begun != Begun())
        return Ended(
            clip.target,
            None if clip.error else clip.begun.record,
            clip.error,
            tuple(clip.results.values()),
            clip.begun.segments,
        )


def _cluster_resources() -> dict[str, float]:
    resources: Any = ray.cluster_resources
    return dict(resources())
