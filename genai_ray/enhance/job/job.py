"""The main job: what is to be done, the models for it, the scheduler, and the report."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
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
from genai_ray.enhance.job.claims import Claims
from genai_ray.enhance.job.clip_plan import ClipPlan
from genai_ray.enhance.job.progress import Meter
from genai_ray.enhance.job.records import Record, forget
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress, VideoReport
from genai_ray.enhance.job.results import Results
from genai_ray.enhance.job.scheduler import DO_AGAIN, Ended, Scheduler
from genai_ray.enhance.job.segment_store import discard_partials, node_kind
from genai_ray.enhance.job.steps import examine_clip, find_done_clip, open_clip
from genai_ray.enhance.plan.clip_target import ClipTarget, Targets, resolve_targets
from genai_ray.enhance.plan.options import EnhanceOptions, check_models
from genai_ray.enhance.plan.timeline import DEFAULT_FACTOR, count_results
from genai_ray.enhance.segment.segment import SegmentJob, find_requests
from genai_ray.errors import GenAIRayError, ResourceExhaustedError
from genai_ray.video import describe_video

__all__ = ["enhance_videos"]

_log = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 0.5

REQUEST_WITHIN_S = 24 * 3600.0
"""A batch of large frames may take hours on a CPU; a session that hangs is known by its silence long before."""

KINDS_EVERY_S = 5.0
"""How often the cache is asked which devices have the models, where they may be on several."""

LOOKS_AT_A_TIME = 16
"""Threads that look whether results of an earlier job are still there."""

LEASE_WITHIN_S = 30.0
"""A lease follows its sessions at once; a cluster that has died gives none, and the scheduler is the one to notice."""

JOIN_WITHIN_S = 5.0
"""A thread that still reads a video from a slow server is not waited for longer: it asks nothing of Ray any more."""

MOST_LISTED = 1000
"""Videos that a report lists; of larger jobs it lists those that failed."""


def enhance_videos(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    models: str | Path | Sequence[str | Path],
    options: EnhanceOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EnhanceReport:
    """Enhance one video or many with a model or a chain of them; frames, timestamps, colour tags, audio and subtitles are kept.

    A result appears under its name only when it is whole. An interrupted job leaves its finished segments in
    ``<output>.genai-ray``; the same call again goes on from there, and skips the videos that ``results.parquet`` has as done.

    Args:
        inputs: Video files, folders, patterns or URIs, one or several; or one manifest, a .csv or .parquet file with the column ``uri``.
        output: For one input file a file ending in .mp4, .mkv, .mov or .webm, a pattern of frames such as ``frames/%06d.png`` (or .jpg), or
            a .parquet file of frames; otherwise a folder, where results have the names that ``options.name`` makes, and
            ``results.parquet`` has a row for each.
        models: Model ids, aliases or paths of .onnx files, in the order in which frames pass them.
        options: Everything else; defaults are ONNX Runtime, FP32, and of the encoder what suits the output (libx264, preset medium, CRF 18).
        on_progress: Called about twice a second from a thread of the job.

    Returns:
        What was done, with counts and speeds. Of several videos those that failed are in it; a job of one raises its error.

    Raises:
        ConfigError: If an option, the output or the chain makes no sense; nothing was written.
        VideoError: If the input is missing, is not a video, is truncated (see ``allow_truncated``) or does not decode.
        ModelNotFoundError: If a model is not known.
        ModelLoadError: If a model cannot be loaded.
        GenAIRayError: Whatever else a session raises; of several videos with ``fail_fast`` the first error of any.
    """
    job = _Job(options or EnhanceOptions(), time.time())
    chain = [models] if isinstance(models, str | Path) else list(models)
    specs = check_models(chain, job.options)
    targets = resolve_targets([inputs] if isinstance(inputs, str | Path) else list(inputs), output, job.options)
    return job.run(targets, specs, on_progress)


@dataclass(slots=True)
class _Job:
    """One call of ``enhance_videos``: what has ended so far."""

    options: EnhanceOptions
    started_at: float
    first_at: float | None = None
    closed_at: float = 0.0
    claims: Claims = field(default_factory=Claims)
    reports: list[tuple[int, VideoReport]] = field(default_factory=list)
    outputs: list[tuple[int, str]] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("frames", "fresh", "inferred", "segments", "reused", "skipped", "failed"), 0
        )
    )

    def run(
        self, targets: Targets, specs: Sequence[ModelSpec], on_progress: Callable[[Progress], None] | None
    ) -> EnhanceReport:
        """Do everything; see ``enhance_videos``."""
        with self.claims as claims:
            claims.take_all(targets)
            results = Results(targets.folder) if targets.folder is not None else None
            if results is None:
                uses = self._run_one(targets, specs, on_progress)
            elif self._skip_all(targets, specs, results):
                uses = ()
            else:
                uses = self._run(targets, Meter(len(targets)), specs, results, on_progress)
        return self._report(targets, uses or _uses_of(specs, self.options), results)

    def _run_one(
        self, targets: Targets, specs: Sequence[ModelSpec], on_progress: Callable[[Progress], None] | None
    ) -> tuple[ModelUse, ...]:
        """Plan a single video here: its errors come before anything is started."""
        (target,) = targets
        self.claims.take(target)
        examined = examine_clip(target, specs, self.options)
        uses: tuple[ModelUse, ...] = ()
        if isinstance(examined, Record):
            self._note(Ended(target, examined, None, (), 0), len(targets))
        else:
            try:
                uses = self._run((), Meter(1), specs, None, on_progress, examined)
            except BaseException:
                _keep([target], None)
                raise
        forget([target])
        return uses

    def _skip_all(self, targets: Targets, specs: Sequence[ModelSpec], results: Results) -> bool:
        """Note every video as done before, where all of them are: nothing has to be started for that."""
        known = []
        for target in targets:
            record = results.recorded(target.output)
            if record is None or not record.key:
                return False
            known.append((target, record))
        with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:
            found = list(pool.map(lambda entry: find_done_clip(entry[0], specs, self.options, entry[1]), known))
        if not all(found):
            return False
        for (target, _), record in zip(known, found, strict=True):
            self._note(Ended(target, record, None, (), 0), len(targets))
        return True

    def _run(
        self,
        targets: Iterable[ClipTarget],
        meter: Meter,
        specs: Sequence[ModelSpec],
        results: Results | None,
        on_progress: Callable[[Progress], None] | None,
        examined: ClipPlan | None = None,
    ) -> tuple[ModelUse, ...]:
        tag, options = f"enhance-{uuid.uuid4().hex[:12]}", self.options
        with _death_told():
            cache = ModelCache(
                options.max_memory_bytes, name=options.cache_name, address=options.address, deadline_s=REQUEST_WITHIN_S
            )
        say_if_node_dies(DO_AGAIN)
        is_own = cache.is_embedded
        router = router_of(cache)
        router.tag = tag
        loading = _Loading(cache, options)
        recorded = results.recorded if results is not None else lambda _: None
        left: list[ClipTarget] = []
        scheduler: Scheduler | None = None
        try:
            kind = node_kind(is_gpu=uses_gpu(options.device, options.backend))
            job = SegmentJob(tuple(specs), (), options, cache, tag, kind)

            def check() -> None:
                self.claims.check()
                loading.follow(meter)

            scheduler = Scheduler(
                iter(targets), job, meter=meter, recorded=recorded, check=check, claim=self.claims.take
            )
            if results is not None:
                loading.prefetch(targets, specs, results)
            if examined is not None:
                scheduler.adopt(examined.target, *open_clip(examined, specs, kind))
            factor = options.factor or DEFAULT_FACTOR
            with _watch(meter, lambda: count_results(specs, router.count_frames(), factor=factor), on_progress):
                for ended in scheduler.run():
                    self._note(ended, meter.clips)
                    if ended.error is not None and self.claims.has(ended.target):
                        discard_partials(ended.target.work_dir)
                    if results is not None:
                        results.add(ended, loading.uses() if ended.results else (), loading.precision_db)
                    if ended.error is not None and (results is None or options.fail_fast):
                        raise ended.error
                    self.claims.release(ended.target)
            return loading.uses(is_last=True) if meter.first is not None else ()
        except BaseException:
            with _death_told():
                left = [
                    target for target in (scheduler.stop() if scheduler is not None else []) if self.claims.has(target)
                ]
                raise
        finally:
            if not has_own_node_died():
                loading.release()
                if is_own:
                    cache.shutdown()
            cache.close()
            loading.join()
            if is_own:
                disconnect()
            if results is not None:
                _keep(left, results)

    def _note(self, ended: Ended, clips: int) -> None:
        """Count what has ended."""
        self.closed_at = time.time()
        counts = self.counts
        counts["fresh"] += sum(result.frames for result in ended.results)
        counts["inferred"] += sum(result.frames_inferred for result in ended.results)
        for result in ended.results:
            self.first_at = result.started_at if self.first_at is None else min(self.first_at, result.started_at)
        if ended.record is not None:
            report = ended.record.report
            counts["skipped"] += report.status == "skipped"
        else:
            report = VideoReport(
                ended.target.source, ended.target.output, 0, 0, (0, 0), (0, 0), segments=ended.segments
            )
            report = replace(report, status="failed", error=str(ended.error), error_class=type(ended.error).__name__)
            counts["failed"] += 1
        for name, value in (
            ("frames", report.frames),
            ("segments", report.segments),
            ("reused", report.segments_reused),
        ):
            counts[name] += value
        if clips <= MOST_LISTED or report.status == "failed":
            self.reports.append((ended.target.index, report))

    def _report(self, targets: Targets, uses: tuple[ModelUse, ...], results: Results | None) -> EnhanceReport:
        first_at = self.closed_at if self.first_at is None else self.first_at
        videos = tuple(report for _, report in sorted(self.reports, key=lambda entry: entry[0]))
        seconds = self.closed_at - first_at
        return EnhanceReport(
            frames=self.counts["frames"],
            fps=self.counts["fresh"] / seconds if self.counts["fresh"] and seconds > 0 else 0.0,
            elapsed_s=self.closed_at - self.started_at,
            startup_s=first_at - self.started_at,
            outputs=tuple(report.output for report in videos if report.status != "failed"),
            segments=self.counts["segments"],
            segments_reused=self.counts["reused"],
            frames_inferred=self.counts["inferred"],
            models=uses,
            videos=videos,
            clips=len(targets),
            clips_skipped=self.counts["skipped"],
            clips_failed=self.counts["failed"],
            results=results.place if results is not None else None,
        )


class _Loading:
    """The lease of the chain: asked for beside the job when the first video is planned, given back at the end."""

    def __init__(self, cache: ModelCache, options: EnhanceOptions) -> None:
        self._cache = cache
        self._options = options
        self._lease: Future[Lease] | None = None
        self._uses: tuple[ModelUse, ...] = ()
        self._asked_at = float("-inf")
        self._is_over = False
        self._threads: list[threading.Thread] = []
        self.precision_db: float | None = None
        """The least PSNR of a converted precision from FP32 on calibration frames; None where nothing was converted."""

    def prefetch(self, targets: Iterable[ClipTarget], specs: Sequence[ModelSpec], results: Results) -> None:
        """Begin to load for the first of several videos while it is still planned; the lease finds its models on their way."""
        self._start(self._prefetch, targets, specs, results)

    def follow(self, meter: Meter) -> None:
        """Begin to load as soon as it is known for what; a model that does not load fails the job at once, with its own error."""
        if self._lease is not None and self._lease.done():
            self._lease.result()
        if self._lease is None and meter.first is not None:
            self._lease = Future()
            self._start(self._load, meter.first.requests, self._lease)

    def uses(self, *, is_last: bool = False) -> tuple[ModelUse, ...]:
        """Return the chain as it runs; nothing where the lease is not there soon after its sessions have computed."""
        is_old = self._options.replicas != 1 and time.monotonic() - self._asked_at > KINDS_EVERY_S
        if (not self._uses or is_old or is_last) and self._lease is not None:
            try:
                sessions = self._lease.result(timeout=LEASE_WITHIN_S).sessions
            except TimeoutError:
                return ()
            found = [session.status() for session in sessions]
            kinds, self._asked_at = self._kinds(), time.monotonic()
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
            self.precision_db = min(
                (float(status["precision_db"]) for status in found if status["precision_db"] is not None), default=None
            )
        return self._uses

    def _kinds(self) -> dict[str, str]:
        """Return the kinds of the devices that have each model, joined."""
        status = self._cache.status()
        kinds = {device.device: device.kind for device in status.devices}
        found: dict[str, set[str]] = defaultdict(set)
        for entry in status.models:
            if entry.leased and entry.placed_on in kinds:
                found[entry.model_id].add(kinds[entry.placed_on])
        return {model_id: "+".join(sorted(names)) for model_id, names in found.items()}

    def release(self) -> None:
        """Give the lease back; a job that has failed does not wait for one to come."""
        self._is_over = True
        if self._lease is not None:
            self._lease.add_done_callback(lambda done: None if done.exception() else done.result().release())

    def join(self) -> None:
        """Wait for the threads whose client is closed: where Ray is shut down under one the process may hang or crash."""
        for thread in self._threads:
            thread.join(JOIN_WITHIN_S)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=work, args=args, name="genai-ray-load", daemon=True))
        self._threads[-1].start()

    def _prefetch(self, targets: Iterable[ClipTarget], specs: Sequence[ModelSpec], results: Results) -> None:
        with suppress(GenAIRayError, RayError, ValueError):  # told by the planning of this video, and by the lease
            records = ((target, results.recorded(target.output)) for target in targets)
            first = next((target for target, record in records if record is None or not record.key), None)
            if first is not None:
                info, _ = describe_video(first.source, any_format=self._options.any_format)
                if not self._is_over and self._lease is None:
                    self._cache.prefetch(find_requests(info, specs, first.options(self._options)))

    def _load(self, requests: Sequence[SessionRequest], lease: Future[Lease]) -> None:
        options = self._options
        try:
            lease.set_result(self._cache.lease(requests, replicas=options.replicas, device_kinds=options.device_kinds))
        except BaseException as exc:  # noqa: BLE001 - it is the job's, which asks for the result
            lease.set_exception(exc)


@contextmanager
def _death_told() -> Iterator[None]:
    """Say that the node has died, if it has: what else is raised then only follows from it."""
    try:
        yield
    except Exception as exc:
        if has_own_node_died():
            raise ResourceExhaustedError(NODE_DIED, do=DO_AGAIN) from exc
        raise


def _uses_of(specs: Sequence[ModelSpec], options: EnhanceOptions) -> tuple[ModelUse, ...]:
    """Return the chain of a job that had nothing to compute."""
    return tuple(ModelUse(spec.model_id, options.backend.value, options.precision.value, "none") for spec in specs)


@contextmanager
def _watch(meter: Meter, computed: Callable[[], int], on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Tell ``on_progress`` how far the job is, about twice a second."""
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


def _keep(left: Sequence[ClipTarget], results: Results | None) -> None:
    """Record what is done, remove what is half-written, and say what is kept for the same job."""
    if results is not None:
        results.flush()
        if left:
            _log.warning("what is done is recorded in %s; the same job goes on from there", results.place)
    kept = [(discard_partials(target.work_dir), target) for target in left]
    for count, target in kept:
        if count:
            _log.warning(
                "%s: %d finished segments are kept in %s; the same job goes on from there",
                target.source,
                count,
                target.work_dir,
            )
