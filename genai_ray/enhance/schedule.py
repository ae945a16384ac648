"""Which step of which video runs next: tasks of Ray, as many at a time as the cluster has CPUs for, each tried a few times.

Plain tasks rather than Ray Data: at 10,000 short clips its executor takes 10 ms of the driver for a task, these 0.5 ms; it cannot say which row
killed its worker; and a join that waits for the segments of one video alone has no place in its plan.
"""

from __future__ import annotations

import lzma
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from genai_ray.cluster import has_own_node_died
from genai_ray.enhance.halt import check_halted, forget_halted, halt
from genai_ray.enhance.progress import Meter
from genai_ray.enhance.records import Record
from genai_ray.enhance.segment import SegmentJob, SegmentResult
from genai_ray.enhance.targets import Target
from genai_ray.enhance.work import Begun, Planned, begin_clip, finish_clip, run_segment
from genai_ray.errors import GenAIRayError, ResourceExhaustedError, VideoError
from genai_ray.files import is_remote

__all__ = ["Ended", "Scheduler"]

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

_DEATHS = (WorkerCrashedError, NodeDiedError, OutOfMemoryError)


@dataclass(frozen=True, slots=True)
class Ended:
    """A video that has come to its end."""

    target: Target
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

    target: Target
    recorded: Record | None
    begun_at: float = field(default_factory=time.monotonic)
    begun: Begun = field(default_factory=Begun)
    planned: Any = None
    results: dict[int, SegmentResult] = field(default_factory=dict)
    tries: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_flight: int = 0
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    clip: _Clip
    kind: str
    index: int = -1

    @property
    def bytes(self) -> int:
        """What it is predicted to take; only segments take much."""
        return self.clip.begun.segment_bytes if self.kind == "segment" else 0


@dataclass(frozen=True, slots=True)
class _Shared:
    """The job as tasks get it: fetched from the object store once a process."""

    tag: str
    job: Any


class Scheduler:
    """Runs the videos of one job; nothing but small values comes to the driver.

    Args:
        targets: The videos, read as they are begun.
        job: The chain, the options and the cache.
        meter: Told what is done.
        recorded: Gives what an earlier job has recorded of an output.
        check: Called twice a second; what it raises ends the job.
    """

    def __init__(
        self, targets: Iterator[Target], job: SegmentJob, *, meter: Meter, recorded: Callable[[str], Record | None], check: Callable[[], None]
    ) -> None:
        self._targets, self._shared = targets, _Shared(job.tag, ray.put(job))
        self._meter, self._recorded, self._check = meter, recorded, check
        self._ready: deque[_Step] = deque()
        self._finishing: deque[_Step] = deque()
        self._in_flight: dict[Any, tuple[_Step, Any]] = {}
        self._open: set[_Clip] = set()
        self._cpus, self._cpus_at, self._alive_at = 1, float("-inf"), time.monotonic()
        self._room_bytes = self._taken_bytes = 0
        self._all_begun = False

    def adopt(self, target: Target, begun: Begun, planned: Planned) -> None:
        """Take a video that was begun elsewhere.

        Args:
            target: The video.
            begun: What came of it.
            planned: What its segments need.
        """
        clip = _Clip(target, None)
        self._open.add(clip)
        self._go_on(clip, begun, ray.put(_pack(planned)))

    def run(self) -> Iterator[Ended]:
        """Run everything.

        Yields:
            Videos as they end, in any order.

        Raises:
            ResourceExhaustedError: If the cluster has lost its CPUs or, where it is this process's own, its node.
        """
        while True:
            self._fill()
            if not self._in_flight:
                return
            refs = list(self._in_flight)
            done, rest = ray.wait(refs, num_returns=1, timeout=POLL_S)
            if done and rest:
                done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            if has_own_node_died():
                raise ResourceExhaustedError("the Ray node that this process started has died", do="Run the same again: finished segments are kept.")
            self._check()
            for ref in done:
                step, planned = self._in_flight.pop(ref)
                step.clip.in_flight -= 1
                self._taken_bytes -= step.bytes
                self._settle(step, ref, planned)
                if (ended := self._end(step.clip)) is not None:
                    yield ended

    def stop(self) -> list[Target]:
        """End what is in flight, and start nothing more.

        Returns:
            The videos that were begun and have not ended.
        """
        refs = [] if has_own_node_died() else list(self._in_flight)
        with suppress(RayError):
            if refs:
                halt(self._shared.tag)
                _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP_WITHIN_S)
                if not left:
                    forget_halted(self._shared.tag)
        self._in_flight.clear()
        return [clip.target for clip in self._open]

    def _fill(self) -> None:
        """Submit what is ready, joins first, while there is room; begin a video where nothing else is ready."""
        now = time.monotonic()
        if now - self._cpus_at > CPUS_EVERY_S:
            self._count_cpus(now)
        while len(self._in_flight) < 2 * self._cpus + 2:
            if self._finishing:
                self._submit(self._finishing.popleft())
            elif self._ready:
                if self._taken_bytes and self._taken_bytes + self._ready[0].bytes > self._room_bytes:
                    return  # the first of them is let in whatever it takes
                step = self._ready.popleft()
                if step.clip.error is None:
                    self._submit(step)
            elif not self._begin_next():
                return

    def _count_cpus(self, now: float) -> None:
        """Ask how many CPUs there are; a cluster that has none for long does nothing any more, and says nothing of it."""
        resources = _cluster_resources()
        found, self._room_bytes = int(resources.get("CPU", 0)), int(TASKS_SHARE * resources.get("memory", 0))
        self._cpus, self._cpus_at = max(found, 1), now
        if found:
            self._alive_at = now
        elif now - self._alive_at > NO_CPU_WITHIN_S:
            raise ResourceExhaustedError(f"the cluster has had no CPU for {NO_CPU_WITHIN_S:.0f} s", "at least one", "Its nodes may have died.")

    def _begin_next(self) -> bool:
        target = None if self._all_begun else next(self._targets, None)
        if target is None:
            self._all_begun = True
            return False
        clip = _Clip(target, self._recorded(target.output))
        self._open.add(clip)
        self._submit(_Step(clip, "begin"))
        return True

    def _submit(self, step: _Step) -> None:
        clip = step.clip
        ref: Any
        planned: Any = None
        if step.kind == "begin":
            # The first videos are planned only, so that models are loaded for their size while others are planned.
            begin: Any = _run_begin
            ref, planned = begin.remote(clip.target, clip.recorded, self._shared, self._meter.first is not None)
        elif step.kind == "segment":
            ref = _run_segment.remote(clip.planned, step.index, self._shared)
        else:
            ref = _run_finish.remote(clip.planned, clip.results, time.monotonic() - clip.begun_at)
        clip.in_flight += 1
        self._taken_bytes += step.bytes
        self._in_flight[ref] = (step, planned)

    def _settle(self, step: _Step, ref: Any, planned: Any) -> None:
        clip = step.clip
        try:
            outcome = ray.get(ref)
        except RayTaskError as exc:
            outcome = exc.cause if isinstance(exc.cause, GenAIRayError) else exc  # a fault of ours: not tried again
            if isinstance(exc.cause, ObjectLostError):
                outcome = VideoError(
                    f"{clip.target.source}: its plan was lost with the node that made it", do="Run the same again: finished segments are kept."
                )
            clip.error = clip.error or outcome
            return
        except RayError as exc:
            outcome = exc
        if isinstance(outcome, BaseException):
            self._fail(step, outcome)
        elif step.kind == "begin":
            self._go_on(clip, outcome, planned)
        elif step.kind == "segment":
            clip.results[step.index] = outcome
            self._meter.add_frames(outcome.frames)
            if len(clip.results) == len(clip.begun.todo) and clip.error is None:
                self._finishing.append(_Step(clip, "finish"))
        else:
            clip.begun = Begun(segments=clip.begun.segments, record=outcome)

    def _go_on(self, clip: _Clip, begun: Begun, planned: Any) -> None:
        clip.begun, clip.planned = begun, planned
        clip.results.update(enumerate(begun.results))
        self._meter.begin(begun)
        if begun.record is not None:
            return
        self._ready.extend(_Step(clip, "segment", index) for index in begun.todo)
        if not begun.todo:
            self._finishing.append(_Step(clip, "finish"))

    def _fail(self, step: _Step, error: BaseException) -> None:
        """Try a step again that failed by chance; else its video has failed."""
        clip, source = step.clip, step.clip.target.source
        clip.tries[step.kind, step.index] += 1
        is_chance = not isinstance(error, GenAIRayError) or (isinstance(error, VideoError) and any(map(is_remote, (source, clip.target.output))))
        if is_chance and clip.error is None and clip.tries[step.kind, step.index] < MAX_TRIES:
            (self._finishing if step.kind == "finish" else self._ready).appendleft(step)
            return
        if isinstance(error, _DEATHS):
            what = f"segments [{step.index}]" if step.kind == "segment" else "its end" if step.kind == "finish" else "it"
            error = VideoError(f"{source}: the worker died {MAX_TRIES} times on {what}")
        clip.error = clip.error or error

    def _end(self, clip: _Clip) -> Ended | None:
        """Return the end of a video where it has come: nothing of it is in flight any more."""
        is_over = clip.begun.record is not None or clip.error is not None
        if not is_over or clip.in_flight or clip not in self._open:
            return None
        self._open.discard(clip)
        self._meter.end(is_failed=clip.error is not None, was_begun=clip.begun != Begun())
        return Ended(clip.target, None if clip.error else clip.begun.record, clip.error, tuple(clip.results.values()), clip.begun.segments)


def _cluster_resources() -> dict[str, float]:
    resources: Any = ray.cluster_resources
    return dict(resources())


_FILTERS = ({"id": lzma.FILTER_DELTA, "dist": 5}, {"id": lzma.FILTER_LZMA2, "preset": 0})
"""Times take five bytes each in a pickle, and most differ from the one before by the same."""


def _pack(planned: Planned) -> bytes:
    """Make a plan small: up to 100 KB, which are many hours, Ray keeps it with the driver, so that it outlives the node that made it."""
    return lzma.compress(pickle.dumps(planned, pickle.HIGHEST_PROTOCOL), filters=_FILTERS)


def _unpack(packed: bytes) -> Planned:
    planned: Planned = pickle.loads(lzma.decompress(packed))
    return planned


_jobs: dict[str, SegmentJob] = {}


def _job_of(shared: _Shared) -> SegmentJob:
    if shared.tag not in _jobs:
        _jobs.clear()
        _jobs[shared.tag] = ray.get(shared.job)
    check_halted(shared.tag)
    return _jobs[shared.tag]


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _run_begin(target: Target, recorded: Record | None, shared: _Shared, may_finish: bool) -> tuple[Begun | BaseException, bytes | None]:
    try:
        job = _job_of(shared)
        begun, planned = begin_clip(target, job.specs, job.options, recorded=recorded, job=job if may_finish else None, node=job.node)
        return begun, None if planned is None else _pack(planned)
    except (GenAIRayError, RayError, OSError, MemoryError) as exc:
        return exc, None


@ray.remote(num_cpus=1, max_retries=0)
def _run_segment(planned: bytes, index: int, shared: _Shared) -> SegmentResult | BaseException:
    try:
        return run_segment(_unpack(planned), index, _job_of(shared))
    except (GenAIRayError, RayError, OSError, MemoryError) as exc:
        return exc


@ray.remote(num_cpus=1, max_retries=0)
def _run_finish(planned: bytes, results: dict[int, SegmentResult], seconds: float) -> Record | BaseException:
    try:
        return finish_clip(_unpack(planned), results, seconds)
    except (GenAIRayError, RayError, OSError, MemoryError) as exc:
        return exc
