"""The main job: plan, schedule segments over Ray Data, join, publish."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import ModelCache, disconnect
from genai_ray.enhance.options import EnhanceOptions, Target, check_models, resolve_targets
from genai_ray.enhance.report import EnhanceReport, ModelUse, Progress, VideoReport
from genai_ray.enhance.segment import SegmentJob, SegmentResult, enhance_segment
from genai_ray.enhance.store import SegmentStore, key_segments
from genai_ray.errors import GenAIRayError, VideoError
from genai_ray.video import Encoding, VideoPlan, choose_pixel_format, join_segments, plan_video

__all__ = ["enhance_videos"]

_log = logging.getLogger(__name__)

MAX_SEGMENT_TRIES = 3
"""A segment whose worker dies this often fails its video."""

PROGRESS_PERIOD_S = 0.5

REQUEST_WITHIN_S = 24 * 3600.0
"""A batch of large frames may take hours on a CPU; a session that hangs is known by its silence long before."""


@dataclass(slots=True)
class _Video:
    """One video on its way through the job."""

    target: Target
    plan: VideoPlan
    store: SegmentStore
    reused: frozenset[int]
    size_out: tuple[int, int]
    results: dict[int, SegmentResult] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: BaseException | None = None

    def frames_reused(self) -> int:
        return sum(self.plan.segments[index].stop - self.plan.segments[index].start for index in self.reused)

    def frames_expected(self) -> int:
        return max(len(self.plan.pts), self.plan.num_frames_from_header or 0)

    def counts(self) -> list[int]:
        """Frames of each segment, as they are in its file."""
        return [self.results[segment.index].frames if segment.index in self.results else segment.stop - segment.start for segment in self.plan.segments]


def enhance_videos(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    models: str | Path | Sequence[str | Path],
    options: EnhanceOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    started_at: float | None = None,
) -> EnhanceReport:
    """Enhance one video or many with a model or a chain of them; frames, timestamps, colour tags, audio and subtitles are kept.

    A result appears under its name only when it is whole. An interrupted job leaves its finished segments in
    ``<output>.genai-ray``; the same call again goes on from there.

    Args:
        inputs: One video file or several.
        output: For one input a file ending in .mp4, .mkv, .mov or .webm; for several a folder, where each result keeps its input's name.
        models: Model ids, aliases or paths of .onnx files, in the order in which frames pass them.
        options: Everything else; defaults are ONNX Runtime, FP32, libx264, preset medium, CRF 18.
        on_progress: Called about twice a second from a thread of the job.
        started_at: ``time.time()`` that ``elapsed_s`` counts from; now, when left out.

    Returns:
        What was done, with counts and speeds.

    Raises:
        ConfigError: If an option, the output or the chain makes no sense; nothing was written.
        VideoError: If an input is missing, is not a video, is truncated (see ``allow_truncated``) or does not decode.
        ModelNotFoundError: If a model is not known.
        ModelLoadError: If a model cannot be loaded.
        GenAIRayError: Whatever else a session raises.
    """
    started_at = time.time() if started_at is None else started_at
    options = options or EnhanceOptions()
    chain = [models] if isinstance(models, str | Path) else list(models)
    paths = [Path(path).absolute() for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    specs = check_models(chain, options)
    targets = resolve_targets(paths, Path(output).absolute(), options)
    videos = [_open_video(target, specs, options) for target in targets]
    try:
        uses, closed_at = _run(videos, specs, options, on_progress)
    except BaseException:
        for video in videos:
            if kept := video.store.discard_partials():
                _log.warning("%s: %d finished segments are kept in %s; the same job goes on from there", video.target.source, kept, video.target.work_dir)
        raise
    return _report(videos, uses, started_at, closed_at)


def _open_video(target: Target, specs: Sequence[ModelSpec], options: EnhanceOptions) -> _Video:
    plan = plan_video(target.source, segment_frames=options.segment_frames)
    if plan.truncated and not options.allow_truncated:
        raise VideoError(f"{target.source} is truncated: {plan.truncated}", do="Pass --allow-truncated to enhance what is there.")
    scale = math.prod(spec.scale for spec in specs)
    size_out = (plan.info.width * scale, plan.info.height * scale)
    choose_pixel_format(options.encoding, size_out, plan.info.bit_depth)
    store = SegmentStore(target, key_segments(plan, specs, options))
    return _Video(target, plan, store, store.open(), size_out)


def _run(
    videos: Sequence[_Video], specs: Sequence[ModelSpec], options: EnhanceOptions, on_progress: Callable[[Progress], None] | None
) -> tuple[tuple[ModelUse, ...], float]:
    tag = f"enhance-{uuid.uuid4().hex[:12]}"
    cache = ModelCache(options.max_memory_bytes, address=options.address, deadline_s=REQUEST_WITHIN_S)
    is_own = cache.is_embedded
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="genai-ray-load") as loader, _watch(videos, cache, tag, on_progress):
            loading = loader.submit(_load, cache, videos, specs, options)
            _enhance(videos, SegmentJob(tuple(specs), options, cache, tag), loading)
            uses = loading.result()
            _join(videos, options)
            return uses, time.time()
    finally:
        if is_own:
            cache.shutdown()
            disconnect()


def _load(cache: ModelCache, videos: Sequence[_Video], specs: Sequence[ModelSpec], options: EnhanceOptions) -> tuple[ModelUse, ...]:
    """Load the chain for the largest frame that will come to each of its models."""
    height = max(video.plan.info.height for video in videos)
    width = max(video.plan.info.width for video in videos)
    uses = []
    for spec in specs:
        cache.load_model(
            spec.model_id,
            options.backend,
            options.precision,
            device=options.device,
            max_frame=(height, width),
            tile_size_px=options.tile_size_px,
        )
        status = cache.get_session(spec.model_id, options.backend, options.precision, device=options.device).status()
        uses.append(ModelUse(spec.model_id, status["backend"], status["precision"], status["device"]))
        height, width = height * spec.scale, width * spec.scale
    return tuple(uses)


def _enhance(videos: Sequence[_Video], job: SegmentJob, loading: Future[Any]) -> None:
    """Run every segment that is not finished yet as one task of Ray Data, and gather what came of them."""
    todo = [
        {"video": number, "segment": index} for number, video in enumerate(videos) for index in range(len(video.plan.segments)) if index not in video.reused
    ]
    if not todo:
        return
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    plans = ray.put([(video.plan, video.store.paths) for video in videos])
    common = _Common(plans, ray.put(job))
    with warnings.catch_warnings():
        # Ray Data has no other word for max_retries yet (2.60); without it a segment that kills its worker is tried for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo))
        rows = dataset.map(functools.partial(_segment_task, common=common), num_cpus=1, max_retries=MAX_SEGMENT_TRIES - 1)
    failures: dict[int, list[BaseException]] = defaultdict(list)
    for row in rows.iter_rows():
        if loading.done():
            loading.result()  # a model that does not load fails the job at once, with its own error
        outcome = row["outcome"]
        if isinstance(outcome, SegmentResult):
            videos[row["video"]].results[row["segment"]] = outcome
        else:
            failures[row["video"]].append(outcome)
    for number, video in enumerate(videos):
        missing = sorted(set(range(len(video.plan.segments))) - video.reused - set(video.results))
        if failures[number]:
            video.error = failures[number][0]
        elif missing:
            video.error = VideoError(f"{video.target.source}: the worker died {MAX_SEGMENT_TRIES} times on segments {missing}")


@dataclass(frozen=True, slots=True)
class _Common:
    """What all tasks share, put into the object store once."""

    plans: Any
    job: Any


def _segment_task(row: dict[str, Any], common: _Common) -> dict[str, Any]:
    """Enhance one segment in a worker; its errors are values, since an exception would end the whole job."""
    job: SegmentJob = ray.get(common.job)
    plan, paths = ray.get(common.plans)[row["video"]]
    outcome: SegmentResult | Exception
    try:
        outcome = enhance_segment(plan, row["segment"], paths[row["segment"]], job)
    except (GenAIRayError, RayError, OSError, MemoryError) as exc:
        outcome = exc
    return {**row, "outcome": outcome}


def _join(videos: Sequence[_Video], options: EnhanceOptions) -> None:
    """Publish every video that is whole, then fail with the first error of those that are not."""
    for video in videos:
        if video.error is None:
            notes = join_segments(video.plan, video.store.paths, video.counts(), video.target.output)
            video.notes = (*_notes(video, options.encoding), *notes)
            video.store.clear()
    for video in videos:
        if video.error is not None:
            raise video.error


def _notes(video: _Video, encoding: Encoding) -> Iterator[str]:
    """Say what a person could not see in the result."""
    info, frames, expected = video.plan.info, sum(video.counts()), video.frames_expected()
    if frames < expected:
        yield f"truncated input: {frames} of {expected} frames"
    if info.colour.assumed:
        yield f"untagged colour: read and tagged as {info.colour.standard}, by its height of {info.height}"
    bits = 10 if choose_pixel_format(encoding, video.size_out, info.bit_depth).endswith("10le") else 8
    if info.bit_depth > bits:
        yield f"{info.bit_depth} bits a component were reduced to {bits}"


@contextmanager
def _watch(videos: Sequence[_Video], cache: ModelCache, tag: str, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Tell ``on_progress`` how many frames the sessions have computed for this job, about twice a second."""
    if on_progress is None:
        yield
        return
    total = sum(len(video.plan.pts) for video in videos)
    reused = sum(video.frames_reused() for video in videos)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PROGRESS_PERIOD_S):
            counts = cache.progress(tag)
            done = min(counts.values(), default=0)
            stage = "joining" if reused + done >= total else "enhancing" if done else "starting"
            on_progress(Progress(min(reused + done, total), total, stage))

    thread = threading.Thread(target=watch, name="genai-ray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    on_progress(Progress(total, total, "joining"))


def _report(videos: Sequence[_Video], uses: tuple[ModelUse, ...], started_at: float, closed_at: float) -> EnhanceReport:
    results = [result for video in videos for result in video.results.values()]
    first = min((result.started_at for result in results), default=closed_at)
    fresh = sum(result.frames for result in results)
    reports = tuple(
        VideoReport(
            source=str(video.target.source),
            output=str(video.target.output),
            frames=sum(video.counts()),
            frames_expected=video.frames_expected(),
            size_in=(video.plan.info.width, video.plan.info.height),
            size_out=video.size_out,
            notes=video.notes,
        )
        for video in videos
    )
    return EnhanceReport(
        frames=sum(report.frames for report in reports),
        fps=fresh / (closed_at - first) if results else 0.0,
        elapsed_s=closed_at - started_at,
        startup_s=first - started_at,
        outputs=tuple(report.output for report in reports),
        segments=sum(len(video.plan.segments) for video in videos),
        segments_reused=sum(len(video.reused) for video in videos),
        frames_inferred=sum(result.frames_inferred for result in results),
        models=uses,
        videos=reports,
    )
