"""``enhance_videos``: what is to be done, the models for it, the scheduler, and the report."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ray.exceptions import RayError

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import (
    NODE_DIED,
    Lease,
    ModelCache,
    SessionRequest,
    disconnect,
    has_own_node_died,
    router_of,
    say_if_node_dies,
    uses_gpu,
)
from genai_ray.enhance.job.choice import Choice, choose_on_cluster
from genai_ray.enhance.job.claims import Claims
from genai_ray.enhance.job.clip_outcome import ClipOutcome, forget
from genai_ray.enhance.job.clip_plan import (
    ClipPlan,
    examine_clip,
    find_begun,
    find_done_clip,
    open_clip,
    settle_requests,
)
from genai_ray.enhance.job.job_cache import open_cache
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress, ProgressMeter
from genai_ray.enhance.job.results import Results
from genai_ray.enhance.job.scheduler import DO_AGAIN, Scheduler
from genai_ray.enhance.job.segment_store import discard_partials, node_kind
from genai_ray.enhance.plan.clip_target import ClipTarget, Targets, resolve_targets
from genai_ray.enhance.plan.options import EnhanceOptions, Paths, check_given, check_models, convert_params
from genai_ray.enhance.plan.timeline import DEFAULT_FACTOR, count_results
from genai_ray.enhance.segment.needs import find_requests
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.errors import GenAIRayError, ResourceExhaustedError
from genai_ray.files import open_folder
from genai_ray.progress import telling
from genai_ray.tune import Way
from genai_ray.types import ModelBackend
from genai_ray.video import describe_source

__all__ = ["enhance_videos"]

_log = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 0.5

KINDS_EVERY_S = 5.0
"""How often the cache is asked which devices have the models, if several may have them."""

CHECKS_AT_A_TIME = 16
"""Threads that check whether results of an earlier job still exist."""

LEASE_WITHIN_S = 30.0
"""A lease follows its sessions at once; a cluster that has died gives none, and the scheduler reports that."""

JOIN_WITHIN_S = 5.0
"""Longest wait for a thread that reads a video from a slow server: it does not use Ray any more."""

MAX_LISTED = 1000
"""Videos that a report lists; of larger jobs it lists those that failed."""


def enhance_videos(
    inputs: Paths,
    output: str | Path,
    *,
    models: Paths,
    options: EnhanceOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EnhanceReport:
    """Enhance one video or many with one model or a chain; frames, times, colour tags, audio and subtitles are kept.

    A result appears under its name only when it is whole. An interrupted job leaves its finished segments in
    ``<output>.genai-ray``; the same call again goes on from there, and skips what ``results.parquet`` has as done.

    Args:
        inputs: Files of videos or pictures, folders, patterns or URIs, one or several, or numbered pictures such as
            ``frames/%05d.png``; or one manifest, a .csv or .parquet file with the column ``uri``.
        output: For one input file a file ending in .mp4, .mkv, .mov or .webm, a pattern of frames such as
            ``frames/%06d.png`` (or .jpg), a picture or animation (.png, .jpg, .webp, .gif, .apng), or a .parquet file
            of frames; otherwise a folder, where results have the names that ``options.name`` makes, and
            ``results.parquet`` has a row for each. Missing folders are created.
        models: Model ids, aliases or paths of .onnx files, in the order in which frames pass them.
        options: Everything else; by default ONNX Runtime, FP32, and the encoder that suits the output (libx264, preset
            medium, CRF 18).
        on_progress: Called when a stage begins, and about twice a second from a thread of the job. Without it a
            notebook shows a bar; ``show_progress()`` is one for scripts too.

    Returns:
        What was done, with counts and speeds. It lists videos that failed; a job of one video raises the error.

    Raises:
        ConfigError: If an option, the output or the chain makes no sense; nothing was written.
        VideoError: If the input is missing, is not a video, is truncated (see ``allow_truncated``) or does not decode.
        ModelNotFoundError: If a model is not known.
        ModelLoadError: If a model cannot be loaded.
        QualityError: If frames are wrong (see ``check``), and are so again in FP32 by ONNX Runtime.
        GenAIRayError: What a session raises; of several videos with ``fail_fast`` the first error of any.
    """
    started_at = time.time()
    options = options or EnhanceOptions()
    targets = resolve_targets(inputs, output, options)
    specs = check_models(models, options, has_sequence=targets.has_sequence)
    check_given(specs, (target.options(options) for target in targets))
    options = convert_params(specs, options)
    with telling(on_progress) as shown:
        return _Job(targets, specs, options, shown, started_at).run()


@dataclass(slots=True)
class _Job:
    """One call of ``enhance_videos``, and what has ended so far."""

    targets: Targets
    specs: tuple[ModelSpec, ...]
    options: EnhanceOptions
    on_progress: Callable[[Progress], None] | None
    started_at: float
    results: Results | None = None
    claims: Claims = field(default_factory=Claims)
    outcomes: list[tuple[int, ClipOutcome]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    choice: Choice | None = None
    first_at: float = float("inf")
    closed_at: float = 0.0

    def run(self) -> EnhanceReport:
        """Do everything; see ``enhance_videos``."""
        with open_folder(self.targets.parent), self.claims as claims:
            claims.take_all(self.targets)
            if self.targets.folder is None:
                uses = self._run_one()
            else:
                self.results = Results(self.targets.folder)
                uses = () if self._skip_all() else self._run()
        return self._report(uses)

    def _run_one(self) -> tuple[ModelUse, ...]:
        """Plan a single video here: its errors come before anything is started."""
        (target,) = self.targets
        self.claims.take(target)
        self._tell("planning")
        examined = examine_clip(target, self.specs, self.options)
        uses: tuple[ModelUse, ...] = ()
        if isinstance(examined, ClipOutcome):
            self._note(target, examined)
        else:
            try:
                uses = self._run(examined)
            except BaseException:
                _discard_partials([target])
                raise
        forget([target])
        return uses

    def _tell(self, stage: str) -> None:
        """Report what is done before there is anything to count."""
        if self.on_progress is not None:
            self.on_progress(Progress(0, 0, stage, clips_total=len(self.targets)))

    def _skip_all(self) -> bool:
        """Note every video as skipped, if an earlier job has done them all: nothing has to be started for that."""
        known = []
        for target in self.targets:
            recorded = self.results.recorded(target.output) if self.results is not None else None
            if recorded is None or not recorded.key:
                return False
            known.append((target, recorded))
        with ThreadPoolExecutor(CHECKS_AT_A_TIME) as pool:
            outcomes = list(pool.map(lambda entry: find_done_clip(entry[0], self.specs, self.options, entry[1]), known))
        done = [outcome for outcome in outcomes if outcome is not None]
        if len(done) < len(known):
            return False
        for (target, _), outcome in zip(known, done, strict=True):
            self._note(target, outcome)
        return True

    def _run(self, plan: ClipPlan | None = None) -> tuple[ModelUse, ...]:
        """Run all videos, or the one of ``plan``; return the models as they ran."""
        options = self.options
        tag = f"enhance-{uuid.uuid4().hex[:12]}"
        self._tell("starting")
        with _node_death_named():
            cache = open_cache(options)
        say_if_node_dies(DO_AGAIN)
        router = router_of(cache)
        router.tag = tag
        lease = _ChainLease(cache, options)
        meter = ProgressMeter(len(self.targets))
        left: list[ClipTarget] = []
        scheduler: Scheduler | None = None
        try:
            is_auto = options.backend is ModelBackend.AUTO
            kind = node_kind(is_gpu=uses_gpu(options.device, ModelBackend.ONNX if is_auto else options.backend))
            self.choice = self._choose(cache, plan, kind) if is_auto else None
            way = self.choice.way if self.choice is not None else None
            job = JobContext(self.specs, (), options, cache, tag, kind, way)
            scheduler = self._schedule(job, meter, lease, plan)
            factor = options.slow_motion or options.factor or DEFAULT_FACTOR
            with _watch(
                meter, lambda: count_results(self.specs, router.count_frames(), factor=factor), self.on_progress
            ):
                for target, outcome in scheduler.run():
                    self._end(target, outcome, lease)
            return lease.uses(is_last=True) if meter.first_plan is not None else ()
        except BaseException:
            with _node_death_named():
                left = [
                    target for target in (scheduler.stop() if scheduler is not None else []) if self.claims.has(target)
                ]
                raise
        finally:
            if not has_own_node_died():
                lease.release()
                if cache.is_embedded:
                    cache.shutdown()
            cache.close()
            lease.join()
            if cache.is_embedded:
                disconnect()
            if self.results is not None:
                self.results.flush()
                if left:
                    _log.warning("what is done is recorded in %s; the same job goes on from there", self.results.place)
                _discard_partials(left)

    def _choose(self, cache: ModelCache, plan: ClipPlan | None, kind: str) -> Choice:
        """Choose runtime and number format for the first video that is to be done."""
        if plan is not None and (way := find_begun(plan, self.specs, kind)) is not None:
            return Choice(way, "begun")
        self._tell("measuring")
        requests = plan.requests if plan is not None else ()
        if self.results is not None:
            with suppress(GenAIRayError):  # the step that plans this video raises it
                requests = _first_requests(self.targets, self.specs, self.options, self.results)
        if not requests:  # nobody knows the size of the frames
            options = self.options
            requests = tuple(SessionRequest(one.model_id, options.backend, options.precision) for one in self.specs)
        return choose_on_cluster(cache, requests, self.options)

    def _schedule(self, job: JobContext, meter: ProgressMeter, lease: _ChainLease, plan: ClipPlan | None) -> Scheduler:
        def check() -> None:
            self.claims.check()
            lease.follow(meter, job.way)

        scheduler = Scheduler(
            iter(self.targets if plan is None else ()),
            job,
            meter=meter,
            recorded=self.results.recorded if self.results is not None else lambda _: None,
            check=check,
            claim=self.claims.take,
        )
        if self.results is not None:
            lease.prefetch(self.targets, job, self.results)
        if plan is not None:
            scheduler.add_planned(open_clip(plan, self.specs, job.kind, job.way))
            lease.follow(meter, job.way)  # at once, so that models are loaded while the processes of segments start
        return scheduler

    def _end(self, target: ClipTarget, outcome: ClipOutcome, lease: _ChainLease) -> None:
        """Record a video that has ended, and raise its error if that ends the job."""
        self._note(target, outcome)
        if outcome.exception is not None and self.claims.has(target):
            discard_partials(target.work_dir)
        if self.results is not None:
            self.results.add(target, outcome, lease.uses() if outcome.results else (), lease.precision_db)
        if outcome.exception is not None and (self.results is None or self.options.fail_fast):
            raise outcome.exception
        self.claims.release(target)

    def _note(self, target: ClipTarget, outcome: ClipOutcome) -> None:
        """Count a video that has ended."""
        self.closed_at = time.time()
        self.counts.update(
            {
                outcome.status: 1,
                "frames": outcome.frames,
                "made": sum(result.frames for result in outcome.results),
                "inferred": sum(result.frames_inferred for result in outcome.results),
                "segments": outcome.segments,
                "reused": outcome.segments_reused,
                "checked": sum(result.frames_checked for result in outcome.results),
                "recomputed": sum(bool(result.recomputed) for result in outcome.results),
                "wrong": outcome.segments_failed,
            }
        )
        self.first_at = min([self.first_at, *(result.started_at for result in outcome.results)])
        if len(self.targets) <= MAX_LISTED or outcome.status == "failed":
            self.outcomes.append((target.index, replace(outcome, results=(), exception=None)))

    def _report(self, uses: tuple[ModelUse, ...]) -> EnhanceReport:
        options = self.options
        if not uses:  # nothing was computed
            uses = tuple(
                ModelUse(spec.model_id, options.backend.value, options.precision.value, "none") for spec in self.specs
            )
        counts = self.counts
        first_at = min(self.first_at, self.closed_at)
        seconds = self.closed_at - first_at
        videos = tuple(outcome for _, outcome in sorted(self.outcomes, key=lambda entry: entry[0]))
        return EnhanceReport(
            frames=counts["frames"],
            fps=counts["made"] / seconds if counts["made"] and seconds > 0 else 0.0,
            elapsed_s=self.closed_at - self.started_at,
            startup_s=first_at - self.started_at,
            outputs=tuple(outcome.output for outcome in videos if outcome.status != "failed"),
            segments=counts["segments"],
            segments_reused=counts["reused"],
            frames_inferred=counts["inferred"],
            frames_checked=counts["checked"],
            segments_recomputed=counts["recomputed"],
            segments_failed=counts["wrong"],
            models=uses,
            videos=videos,
            clips=len(self.targets),
            clips_skipped=counts["skipped"],
            clips_failed=counts["failed"],
            results=self.results.place if self.results is not None else None,
            choice=self.choice,
        )


def _first_requests(
    targets: Iterable[ClipTarget], specs: Sequence[ModelSpec], options: EnhanceOptions, results: Results
) -> tuple[SessionRequest, ...]:
    """Return the sessions for the first of several videos that is to be done; none if all are done."""
    records = ((target, results.recorded(target.output)) for target in targets)
    first = next((target for target, record in records if record is None or not record.key), None)
    if first is None:
        return ()
    info = describe_source(first.source, any_format=options.any_format)
    return find_requests(info, specs, first.options(options))


class _ChainLease:
    """The models of the chain in the cache: leased when the first video is planned, released at the end of the job."""

    def __init__(self, cache: ModelCache, options: EnhanceOptions) -> None:
        self._cache = cache
        self._options = options
        self._lease: Future[Lease] | None = None
        self._uses: tuple[ModelUse, ...] = ()
        self._asked_at = float("-inf")
        self._is_over = False
        self._threads: list[threading.Thread] = []
        self.precision_db: float | None = None
        """The least PSNR of a converted precision from FP32 on calibration frames; None if nothing was converted."""

    def prefetch(self, targets: Iterable[ClipTarget], job: JobContext, results: Results) -> None:
        """Begin to load for the first of several videos while it is planned; the lease finds models being loaded."""
        self._start(self._prefetch, targets, job, results)

    def follow(self, meter: ProgressMeter, way: Way | None) -> None:
        """Ask for the lease when the first video is planned; raise the error of a model that does not load.

        That video may have been begun in another way than the job's: its sessions are leased by nobody.
        """
        if self._lease is not None and self._lease.done():
            self._lease.result()
        if self._lease is None and meter.first_plan is not None:
            self._lease = Future()
            requests = meter.first_plan.requests
            self._start(self._load, requests if way is None else settle_requests(requests, way), self._lease)

    def uses(self, *, is_last: bool = False) -> tuple[ModelUse, ...]:
        """Return the chain as it runs; nothing if the lease does not follow its sessions soon."""
        is_old = self._options.replicas != 1 and time.monotonic() - self._asked_at > KINDS_EVERY_S
        if self._lease is None or not (is_last or is_old or not self._uses):
            return self._uses
        try:
            sessions = self._lease.result(timeout=LEASE_WITHIN_S).sessions
        except TimeoutError:
            return ()
        found = [session.status() for session in sessions]
        kinds = self._kinds()
        self._asked_at = time.monotonic()
        self._uses = tuple(
            ModelUse(
                status["model_id"],
                status["backend"],
                status["precision"],
                status["device"],
                kinds.get(status["model_id"], ""),
            )
            for status in found
        )
        measured = [float(status["precision_db"]) for status in found if status["precision_db"] is not None]
        self.precision_db = min(measured, default=None)
        return self._uses

    def release(self) -> None:
        """Release the lease as soon as it comes; a job that has failed does not wait for that."""
        self._is_over = True
        if self._lease is not None:
            self._lease.add_done_callback(lambda done: None if done.exception() else done.result().release())

    def join(self) -> None:
        """Wait for the threads whose client is closed: if Ray is shut down under one, the process may hang or crash."""
        for thread in self._threads:
            thread.join(JOIN_WITHIN_S)
        if self._lease is not None and self._lease.done() and not self._lease.exception():
            self._lease.result().leave()  # of a node that has died it was not released

    def _kinds(self) -> dict[str, str]:
        """Return the kinds of the devices that have each model, joined."""
        status = self._cache.status()
        kinds = {device.device: device.kind for device in status.devices}
        found: dict[str, set[str]] = defaultdict(set)
        for entry in status.models:
            if entry.leased and entry.placed_on in kinds:
                found[entry.model_id].add(kinds[entry.placed_on])
        return {model_id: "+".join(sorted(names)) for model_id, names in found.items()}

    def _start(self, work: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=work, args=args, name="genai-ray-load", daemon=True))
        self._threads[-1].start()

    def _prefetch(self, targets: Iterable[ClipTarget], job: JobContext, results: Results) -> None:
        with suppress(GenAIRayError, RayError, ValueError):  # the step that plans this video, or the lease, raises it
            requests = _first_requests(targets, job.specs, self._options, results)
            requests = requests if job.way is None else settle_requests(requests, job.way)
            if requests and not self._is_over and self._lease is None:
                self._cache.prefetch(requests)

    def _load(self, requests: Sequence[SessionRequest], lease: Future[Lease]) -> None:
        options = self._options
        try:
            lease.set_result(self._cache.lease(requests, replicas=options.replicas, device_kinds=options.device_kinds))
        except BaseException as exc:  # noqa: BLE001 - the job raises it when it asks for the result
            lease.set_exception(exc)


@contextmanager
def _node_death_named() -> Iterator[None]:
    """If this process's node has died, raise that: any other error only follows from it."""
    try:
        yield
    except Exception as exc:
        if has_own_node_died():
            raise ResourceExhaustedError(NODE_DIED, do=DO_AGAIN) from exc
        raise


@contextmanager
def _watch(
    meter: ProgressMeter, computed: Callable[[], int], on_progress: Callable[[Progress], None] | None
) -> Iterator[None]:
    """Call ``on_progress`` about twice a second."""
    if on_progress is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PROGRESS_PERIOD_S):
            on_progress(meter.read(computed()))

    thread = threading.Thread(target=watch, name="genai-ray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    on_progress(meter.read(0))


def _discard_partials(left: Sequence[ClipTarget]) -> None:
    """Remove half-written segments, and say which videos have finished ones."""
    kept = [(target, discard_partials(target.work_dir)) for target in left]
    for target, count in kept:
        if count:
            _log.warning(
                "%s: %d finished segments are kept in %s; the same job goes on from there",
                target.source,
                count,
                target.work_dir,
            )
