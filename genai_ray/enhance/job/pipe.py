"""``enhance_pipe``: a video comes through one pipe and goes enhanced into another, while it comes.

This process decodes, asks the sessions of the cache, and writes; nothing is planned, kept or read twice. Some batches
are in flight: a pipe that is not read any further stops the one that is read.
"""

from __future__ import annotations

import io
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import Lease, uses_gpu
from genai_ray.enhance.job.choice import Choice, choose_on_cluster
from genai_ray.enhance.job.clip_outcome import ClipOutcome
from genai_ray.enhance.job.clip_plan import settle_requests
from genai_ray.enhance.job.job_cache import job_cache
from genai_ray.enhance.job.report import EnhanceReport, ModelUse, Progress
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.options import EnhanceOptions, Paths, check_given, check_models, convert_params
from genai_ray.enhance.plan.pace import Pace, plan_pace
from genai_ray.enhance.plan.size import FrameSizes, plan_sizes
from genai_ray.enhance.plan.timeline import Moment, split_chain
from genai_ray.enhance.segment.chain import compose_results, gather, pass_chain, plan_batches
from genai_ray.enhance.segment.checks import SegmentChecks
from genai_ray.enhance.segment.cuts import SegmentCuts
from genai_ray.enhance.segment.needs import find_requests
from genai_ray.enhance.segment.resize import reduce_frames
from genai_ray.enhance.segment.segment import JobContext, open_stages
from genai_ray.errors import ConfigError, QualityError
from genai_ray.scenes import SCENE_THRESHOLD
from genai_ray.session import describe_seams
from genai_ray.types import CheckLevel, Deinterlace, ModelBackend, SceneDetector
from genai_ray.video import DecodedFrame, Encoding, PipeSink, PipeSource, VideoInfo, open_pipe

__all__ = ["check_pipe_options", "enhance_pipe"]

PROGRESS_PERIOD_S = 0.5

CHECKED_TOGETHER = 1024
"""Frames whose measures are kept: so many are checked together, as those of a segment are."""

NAME = "standard input"
"""What errors call the source."""

_CUT = "Cut it before the pipe: ffmpeg -ss 10 -t 5 -i in.mp4 -f yuv4mpegpipe -."
_ENCODE = "Pictures leave without compression. Encode them after the pipe: | ffmpeg -i - out.mp4."

_FIELDS = "Deinterlace it before the pipe: ffmpeg -i in.ts -vf bwdif -f yuv4mpegpipe -."

_REFUSED = {
    "start": _CUT,
    "end": _CUT,
    "duration": _CUT,
    "preview": "The middle of a pipe is not known before its end.",
    "work_dir": "Nothing is kept: what has gone through a pipe cannot be resumed.",
    "name": "There is one result, on standard output.",
    "overwrite": "There is no file to replace.",
    "any_format": "A pipe is Y4M or NUT.",
    "fail_fast": "There is one video.",
}
"""Options that need a length, a file or a second pass, and what to do instead."""


def check_pipe_options(options: EnhanceOptions) -> None:
    """Refuse what a pipe cannot do, before anything is read.

    Args:
        options: The options.

    Raises:
        ConfigError: If one needs the length of the video, a second pass, a file or an encoder.
    """
    usual = EnhanceOptions()
    for name, do in _REFUSED.items():
        if getattr(options, name) != getattr(usual, name):
            raise ConfigError(f"{name} of a video in a pipe", do=do)
    if options.check == CheckLevel.STRICT:
        raise ConfigError("check 'strict' of a video in a pipe", "default or off", "A record is about a whole file.")
    encoding = replace(options.encoding, threads=usual.encoding.threads)
    if encoding != usual.encoding:
        raise ConfigError("an encoder for a video in a pipe", do=_ENCODE)
    if options.scene_detector == SceneDetector.TRANSNETV2:
        raise ConfigError("scene detector 'transnetv2' of a video in a pipe", "auto or threshold: it looks ahead")
    if options.deinterlace not in (Deinterlace.AUTO, Deinterlace.OFF) or options.field_order is not None:
        raise ConfigError(f"deinterlace {options.deinterlace.value!r} of a video in a pipe", "auto or off", _FIELDS)
    if options.audio not in ("auto", "copy", "none"):
        raise ConfigError(f"audio {options.audio!r} of a video in a pipe", "auto, copy or none", _ENCODE)


def enhance_pipe(
    source: BinaryIO,
    sink: BinaryIO,
    *,
    models: Paths,
    options: EnhanceOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EnhanceReport:
    """Enhance a video that comes through a pipe, into another one, in order and with bounded memory.

    Args:
        source: The video, Y4M or NUT; only read forwards, and no further than frames are in flight. Neither file is
            closed.
        sink: Where the result goes, without a buffer of its own, in the format of the source; only written forwards.
        models: Model ids, aliases or paths of .onnx files, in the order in which frames pass them.
        options: Everything else; those of an encoder, a piece, a record and resuming are refused.
        on_progress: Called when a stage begins, and about twice a second while frames are written.

    Returns:
        What was done, with counts and speeds.

    Raises:
        ConfigError: If an option, the chain or a track makes no sense in a pipe, a pipe does not block, or the source
            is interlaced; nothing was written.
        VideoError: If the source is neither Y4M nor NUT, or ends too early, after its whole frames were written; or if
            the reader of the result has closed it.
        QualityError: If frames are wrong (see ``check``); those before are written.
        ModelNotFoundError: If a model is not known.
        ModelLoadError: If a model cannot be loaded.
        GenAIRayError: What a session raises.
    """
    started_at = time.time()
    options = options or EnhanceOptions()
    check_pipe_options(options)
    _check_blocking(source, sink)
    specs = check_models(models, options)
    check_given(specs, [options])
    options = convert_params(specs, options)
    tell = on_progress or (lambda _: None)
    tell(Progress(0, 0, "planning"))
    buffered = source if isinstance(source, io.BufferedReader) else io.BufferedReader(source)  # type: ignore[type-var]
    pipe = open_pipe(buffered, NAME, options.tracks, has_tracks=options.slow_motion is None)
    flow = _plan_flow(pipe, sink, specs, options)
    tell(Progress(0, 0, "starting", notes=flow.notes))
    choice: Choice | None = None
    with job_cache(options) as cache:
        requests = find_requests(pipe.info, specs, options)
        if options.backend is ModelBackend.AUTO:
            tell(Progress(0, 0, "measuring"))
            choice = choose_on_cluster(cache, requests, options)
            requests = settle_requests(requests, choice.way)
        with cache.lease(requests, replicas=options.replicas, device_kinds=options.device_kinds) as lease:
            kind = node_kind(is_gpu=uses_gpu(options.device, requests[0].backend))
            job = JobContext(specs, requests, options, cache, f"pipe-{uuid.uuid4().hex[:12]}", kind)
            sessions = options.replicas or len(cache.status().devices)
            flow.run(job, sessions, tell)
            uses = _uses_of(lease)
    return flow.report(started_at, uses, choice)


def _check_blocking(*pipes: BinaryIO) -> None:
    """Refuse a pipe that does not block: one without data for a moment would look ended."""
    for pipe in pipes:
        try:
            is_blocking = os.get_blocking(pipe.fileno())
        except (AttributeError, OSError):  # a file in memory
            continue
        if not is_blocking:
            raise ConfigError("a pipe that does not block", "one that does", "os.set_blocking(pipe.fileno(), True).")


def _plan_flow(pipe: PipeSource, sink: BinaryIO, specs: Sequence[ModelSpec], options: EnhanceOptions) -> _Flow:
    """Plan the result, and write its header."""
    info = pipe.info
    if info.is_interlaced and options.deinterlace is not Deinterlace.OFF:
        raise ConfigError(
            f"{NAME} is interlaced", "progressive video, or --deinterlace off for frames as they are", _FIELDS
        )
    kind = options.background.kind if options.background is not None else "colour"
    has_alpha = kind == "alpha" or (info.has_alpha and kind != "mask")
    scale = math.prod(spec.scale for spec in specs)
    # Raw pictures may have any size, as PNG: also odd ones of 4:2:0.
    sizes = plan_sizes(info, scale, options.result_size, Encoding(codec="png"), has_alpha=has_alpha)
    pace = plan_pace(info, specs, options)
    result = replace(
        info,
        time_base=pace.time_base,
        average_rate=pace.rate,
        has_alpha=has_alpha,
        sample_aspect_ratio=sizes.sample_aspect_ratio,
    )
    requests = find_requests(info, specs, options)
    seams = (describe_seams(spec, request.max_frame) for spec, request in zip(specs, requests, strict=True))
    notes = (
        *pipe.notes,
        *sizes.describe(info),
        *(note for note in dict.fromkeys(seams) if note is not None),
        *_describe(info),
    )
    return _Flow(pipe, pipe.open_sink(sink, result, sizes.result), result, sizes, pace, notes)


def _describe(info: VideoInfo) -> Iterator[str]:
    """Say what a person should know of the pictures."""
    if info.is_interlaced:
        yield "interlaced source: its fields are enhanced as whole frames"
    if info.colour.assumed:
        yield f"untagged colour: read and written as {info.colour.standard}, by its height of {info.height}"
    if info.rotation % 360 or info.is_mirrored:
        yield "the result is as it is stored: a pipe has no tag for rotation"


def _threshold_of(options: EnhanceOptions) -> float:
    return SCENE_THRESHOLD if options.scene_threshold is None else options.scene_threshold


def _uses_of(lease: Lease) -> tuple[ModelUse, ...]:
    found = [session.status() for session in lease.sessions]
    return tuple(
        ModelUse(status["model_id"], status["backend"], status["precision"], status["device"]) for status in found
    )


@dataclass(slots=True)
class _Flow:
    """One video on its way from pipe to pipe."""

    pipe: PipeSource
    sink: PipeSink
    result: VideoInfo
    sizes: FrameSizes
    pace: Pace
    notes: tuple[str, ...]
    written: int = 0
    inferred: int = 0
    num_checked: int = 0
    outside: list[int] = field(default_factory=lambda: [0, 0])
    first_at: float = math.inf
    ended_at: float = 0.0

    @property
    def info(self) -> VideoInfo:
        """Facts of the source, for the checks."""
        return self.pipe.info

    def seconds_of(self, index: int) -> float:
        """Return about when a frame is shown: the checks name frames by it."""
        return float(index / self.info.average_rate)

    def run(self, job: JobContext, sessions: int, tell: Callable[[Progress], None]) -> None:
        """Pass all frames; an input that ends too early is an error after its last whole frame."""
        options = job.options
        stages = open_stages(job)
        background = options.background or Background()
        parts = math.ceil(self.pace.rate / self.info.average_rate) if self.pace.step else self.pace.parts
        itemsize = 1 if self.info.bit_depth <= 8 else 2
        result_bytes = self.sizes.made[0] * self.sizes.made[1] * 3 * itemsize * parts
        batch_size, ahead = plan_batches(options, result_bytes, sessions)
        chain = split_chain(job.specs, stages)
        cuts = SegmentCuts(_threshold_of(options)) if chain.interpolation is not None else None
        batches = gather(self._timed(), batch_size, cuts)
        checks = self._checks(job)
        told_at = 0.0
        for pieces in pass_chain(batches, chain, ahead):
            if checks.num_checked >= CHECKED_TOGETHER:
                self.num_checked += checks.num_checked
                checks = self._checks(job)
            for pts, frame in compose_results(pieces, background, self.result.has_alpha, self.sizes, checks):
                if checks.has_failed:
                    do = "Use another model or precision; or pass --check off (check='off') to keep these frames."
                    raise QualityError(f"{NAME}: wrong frames: {checks.describe()}", do=do)
                self.sink.write(np.ascontiguousarray(frame), pts)
                self.written += 1
            del pieces  # its large results must not outlive it while the next ones are computed
            if time.monotonic() - told_at > PROGRESS_PERIOD_S:
                told_at = time.monotonic()
                tell(Progress(self.written, 0, "enhancing", fps=self._speed()))
        self.sink.close()
        self.num_checked += checks.num_checked
        self.inferred = sum(stage.frames_done for stage in stages)
        self.ended_at = time.time()
        if self.pipe.failure is not None:
            if not options.allow_truncated:
                raise self.pipe.failure
            self.notes = (*self.notes, f"truncated input: {self.pipe.failure.got}")

    def _checks(self, job: JobContext) -> SegmentChecks:
        return SegmentChecks(self, job.specs, job.options.check, self.sizes.given)

    def _timed(self) -> Iterator[tuple[DecodedFrame, list[Moment]]]:
        """Give each frame, as the first model gets it, with the frames of the result that are shown from it on."""
        first: int | None = None
        for frame, end in self.pipe.frames():
            self.first_at = min(self.first_at, time.time())
            first = frame.pts if first is None else first
            self.outside[0] += frame.outside[0]
            self.outside[1] += frame.outside[1]
            (reduced,) = reduce_frames(iter((frame,)), self.sizes)
            yield reduced, self.pace.moments(frame.index, frame.pts, end, first)

    def _speed(self) -> float:
        seconds = time.time() - self.first_at
        return self.written / seconds if seconds > 0 else 0.0

    def report(self, started_at: float, uses: tuple[ModelUse, ...], choice: Choice | None) -> EnhanceReport:
        """Return what was done."""
        info = self.info
        seconds = self.ended_at - min(self.first_at, self.ended_at)
        outcome = ClipOutcome(
            "-",
            "-",
            frames=self.written,
            frames_expected=self.written,
            size_in=(info.width, info.height),
            size_out=self.sizes.result,
            size_made=self.sizes.made,
            notes=self.notes,
            seconds=self.ended_at - started_at,
            share_outside_rgb=self.outside[0] / self.outside[1] if self.outside[1] else None,
            frames_checked=self.num_checked,
        )
        return EnhanceReport(
            frames=self.written,
            fps=self.written / seconds if seconds > 0 else 0.0,
            elapsed_s=self.ended_at - started_at,
            startup_s=min(self.first_at, self.ended_at) - started_at,
            outputs=("-",),
            segments=0,
            segments_reused=0,
            frames_inferred=self.inferred,
            models=uses,
            videos=(outcome,),
            frames_checked=self.num_checked,
            choice=choice,
        )
