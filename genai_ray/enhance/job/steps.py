"""The steps that one video takes - begin, segments, finish - as plain functions; each of them is run in a task, and needs no scheduler.

Whatever a step needs comes in its arguments, and what it leaves behind is in the work folder, or goes there next: a step that is run twice does no
harm.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec
from genai_ray.enhance.distribution.shared_folders import check_there, find_shared_folders
from genai_ray.enhance.job.clip_plan import Begun, ClipPlan
from genai_ray.enhance.job.publish import publish as write_result
from genai_ray.enhance.job.records import Record, read_marker, write_marker
from genai_ray.enhance.job.report import VideoReport
from genai_ray.enhance.job.segment_store import PARTIAL_SUFFIX, SegmentStore, hash_segment, key_clip, key_segments
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.plan.options import EnhanceOptions, check_chain_options
from genai_ray.enhance.plan.timeline import Timeline, plan_result
from genai_ray.enhance.segment.segment import (
    SegmentJob,
    SegmentResult,
    enhance_segment,
    find_requests,
    predict_segment_bytes,
)
from genai_ray.errors import ConfigError, GenAIRayError, VideoError
from genai_ray.files import FileFacts, discard, fetch, file_errors, find_facts, is_remote, publish, temporary_folder
from genai_ray.session import describe_seams
from genai_ray.video import check_result, choose_pixel_format, count_frames, describe_losses, plan_video

__all__ = ["begin_clip", "examine_clip", "find_done_clip", "finish_clip", "name_segments", "open_clip", "run_segment"]

MAX_AT_ONCE_BYTES = 1024**3
"""Predicted bytes of a segment above which it is a task of its own, so that the scheduler knows how many of them run."""


def examine_clip(
    target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions, recorded: Record | None = None
) -> ClipPlan | Record:
    """Plan a video; nothing is written.

    Args:
        target: Input and output.
        specs: The chain.
        common: The options of the whole job.
        recorded: What an earlier job has recorded of this output.

    Returns:
        The plan, its segments still without names; or what is recorded of a video that is done.

    Raises:
        ConfigError: If the output is there and no file of an earlier job, or an option does not fit this video.
        VideoError: If the input is missing, is no video, or is truncated and that is not allowed.
    """
    options = _own_options(target, specs, common)
    source = find_facts(target.source)
    key = key_clip(source, specs, options)
    if done := _find_done(target, key, recorded, options):
        return done
    plan = plan_video(target.source, segment_frames=options.segment_frames, any_format=options.any_format)
    if plan.truncated and not options.allow_truncated:
        raise VideoError(
            f"{target.source} is truncated: {plan.truncated}", do="Pass --allow-truncated to enhance what is there."
        )
    timeline = plan_result(plan, specs, factor=options.factor, fps=options.fps, background=options.background)
    scale = math.prod(spec.scale for spec in specs)
    size_out = (plan.info.width * scale, plan.info.height * scale)
    has_alpha = timeline.result.info.has_alpha and options.encoding.has_alpha
    choose_pixel_format(options.encoding, size_out, plan.info.pix_fmt, has_alpha=has_alpha)
    check_result(
        timeline.result, size_out, options.encoding, os.path.splitext(target.output)[1].lower(), has_alpha=has_alpha
    )
    store = SegmentStore(target.work_dir, ())
    requests = find_requests(plan.info, specs, options)
    seams = (describe_seams(spec, request.max_frame) for spec, request in zip(specs, requests, strict=True))
    notes = tuple(dict.fromkeys(note for note in seams if note is not None))
    return ClipPlan(target, timeline, store, options, requests, {}, key, size_out, source, notes=notes)


def name_segments(planned: ClipPlan, specs: Sequence[ModelSpec], kind: str) -> ClipPlan:
    """Name the segments of a plan, and find those that an earlier job has finished; nothing is written.

    Args:
        planned: What ``examine_clip`` gives.
        specs: The chain.
        kind: What ``node_kind`` says of the node that the job was started on.

    Returns:
        The plan with names.

    Raises:
        VideoError: If the work folder cannot be read.
    """
    store = SegmentStore(planned.target.work_dir, key_segments(planned.timeline.plan, specs, planned.options, kind))
    reused, damaged = store.finished()
    return replace(planned, store=store, reused=reused, damaged=damaged)


def find_done_clip(
    target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions, recorded: Record
) -> Record | None:
    """Look whether a video is done, without opening it.

    Args:
        target: Input and output.
        specs: The chain.
        common: The options of the whole job.
        recorded: What an earlier job has recorded of this output.

    Returns:
        What is recorded; None where it is not done, or that cannot be told.
    """
    try:
        options = _own_options(target, specs, common)
        return _find_done(target, key_clip(find_facts(target.source), specs, options), recorded, options)
    except (GenAIRayError, OSError):  # for whoever begins it, and says so
        return None


def open_clip(planned: ClipPlan, specs: Sequence[ModelSpec], kind: str) -> tuple[Begun, ClipPlan]:
    """Name the segments of a plan, and make its folders.

    Args:
        planned: What ``examine_clip`` gives.
        specs: The chain.
        kind: What ``node_kind`` says of the node that the job was started on.

    Returns:
        What the scheduler needs; and what the next steps need.

    Raises:
        VideoError: If a folder cannot be made or read.
    """
    planned, target, timeline = name_segments(planned, specs, kind), planned.target, planned.timeline
    if not is_remote(target.place):
        with file_errors(target.place, "making its folder"):
            os.makedirs(os.path.dirname(target.place), exist_ok=True)
    planned.store.open(planned.reused)
    begun = Begun(
        frames=len(timeline.result.pts),
        frames_reused=sum(_planned_frames(timeline, index) for index in planned.reused),
        segments=len(timeline.plan.segments),
        todo=tuple(segment.index for segment in timeline.plan.segments if segment.index not in planned.reused),
        segment_bytes=predict_segment_bytes(planned.size_out, timeline.result.info.bit_depth),
        requests=planned.requests,
    )
    return begun, replace(planned, home=find_shared_folders(target))


def begin_clip(
    target: ClipTarget, job: SegmentJob, recorded: Record | None = None, *, at_once: bool = False
) -> tuple[Begun, ClipPlan | None]:
    """Plan a video, and make its folders.

    Args:
        target: Input and output.
        job: Models, options and cache.
        recorded: What an earlier job has recorded of this output.
        at_once: Whether a video of a single segment is to be done at once, if it is no large one.

    Returns:
        What the scheduler needs; and what the next steps need, None where nothing is left to do.

    Raises:
        ConfigError: As ``examine_clip``.
        VideoError: As ``examine_clip`` and ``open_clip``.
    """
    started = time.monotonic()
    check_there(target.source)
    examined = examine_clip(target, job.specs, job.options, recorded)
    if isinstance(examined, Record):
        return Begun(record=examined), None
    begun, planned = open_clip(examined, job.specs, job.kind)
    if not at_once or len(begun.todo) > 1 or begun.segment_bytes > MAX_AT_ONCE_BYTES:
        return begun, planned
    results = {}
    for index in begun.todo:
        results[index], away = run_segment(planned, index, job)
        if away is not None:
            planned.store.put(index, away.data)
    record = finish_clip(planned, results, time.monotonic() - started)
    return replace(begun, record=record, results=tuple(results.values())), None


def run_segment(planned: ClipPlan, index: int, job: SegmentJob) -> tuple[SegmentResult, npt.NDArray[np.uint8] | None]:
    """Enhance one segment and keep it in the work folder.

    Args:
        planned: The video.
        index: Which segment.
        job: Chain and cache.

    Returns:
        The counts; and the segment itself, (bytes,) uint8, where this machine lacks the work folder: for ``SegmentStore.put`` on one that has it.

    Raises:
        VideoError: If it does not decode to exactly the planned frames; or the input has been changed since it was planned, or is not here.
        GenAIRayError: Whatever a session raises.
    """
    check_there(planned.target.source)
    before = _check_unchanged(planned)
    own = replace(job, options=planned.options, requests=planned.requests)
    store = planned.store
    if not store.is_remote and planned.home.has_work():
        return _run_to(store.partial(index), planned, index, own, before), None
    with temporary_folder("segment") as folder:
        local = folder / "segment"
        if store.is_remote:
            return _run_to(local, planned, index, own, before), None
        result = enhance_segment(planned.timeline, index, local, own)
        _check_unchanged(planned, before)
        if not result.frames:
            return result, None
        return replace(result, digest=hash_segment(str(local)), is_away=True), np.fromfile(local, np.uint8)


def _run_to(partial: Path, planned: ClipPlan, index: int, job: SegmentJob, before: FileFacts | None) -> SegmentResult:
    """Enhance one segment into a file of this machine, and publish it in the work folder."""
    try:
        result = enhance_segment(planned.timeline, index, partial, job)
        _check_unchanged(planned, before)
        if not result.frames:
            return result
        digest = hash_segment(str(partial))
        publish(partial, planned.store.place(index, digest))
        return replace(result, digest=digest)
    finally:
        discard(partial)


def finish_clip(planned: ClipPlan, results: Mapping[int, SegmentResult], seconds: float) -> Record:
    """Join the segments and publish the result; the marker stays in the work folder until ``forget``.

    Args:
        planned: The video, all its segments finished.
        results: What came of the segments that were done now, by index; the others hold what was planned.
        seconds: That the video has taken before.

    Returns:
        What is to be recorded.

    Raises:
        VideoError: If a segment does not hold its frames, the input has been changed since it was planned, or writing fails.
    """
    started = time.monotonic()
    check_there(planned.target.source)
    _check_unchanged(planned)
    target, timeline, store = planned.target, planned.timeline, planned.store
    there = find_facts(target.place)
    earlier = read_marker(target) if there is not None else None
    if (
        there is not None and earlier is not None and earlier.key == planned.key and _is_of(earlier, there)
    ):  # an earlier try died after it had published
        store.clear()
        return replace(earlier, stamp=there.stamp)
    plan = timeline.plan
    frames = [
        results[index].frames if index in results else _planned_frames(timeline, index)
        for index in range(len(plan.segments))
    ]
    digests = {**planned.reused, **{index: result.digest for index, result in results.items() if result.digest}}
    with _room(target) as folder:
        parts = [folder / f"{index}.nut" for index in range(len(frames))]  # nothing reads those without frames
        for index, digest in digests.items():
            if store.is_remote:
                fetch(store.place(index, digest), parts[index])
            else:
                parts[index] = Path(store.place(index, digest))
        if planned.options.allow_truncated:  # segments of an earlier job may hold fewer frames than planned
            frames = [
                count_frames(part) if index in planned.reused else frames[index] for index, part in enumerate(parts)
            ]
        joined, output = _joined(target, folder)
        notes = write_result(timeline.result, parts, frames, output)
        report = VideoReport(
            source=target.source,
            output=target.output,
            frames=sum(frames),
            frames_expected=_frames_expected(timeline),
            size_in=(plan.info.width, plan.info.height),
            size_out=planned.size_out,
            notes=(*_notes(planned, sum(frames)), *notes),
            seconds=seconds + time.monotonic() - started,
            segments=len(frames),
            segments_reused=len(planned.reused),
            share_outside_rgb=_share(results.values()),
        )
        facts = joined.stat()
        record = Record(report, planned.key, facts.st_size, "" if is_remote(target.place) else str(facts.st_mtime_ns))
        write_marker(target, record)
        publish(joined, target.place)
    store.clear()
    if not is_remote(target.place):
        return record
    published = find_facts(target.place)
    return replace(record, stamp=published.stamp if published else "")


def _own_options(target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions) -> EnhanceOptions:
    """Return the options of one video."""
    options = target.options(common)
    options = replace(options, encoding=options.encoding.fit(os.path.splitext(target.output)[1].lower()))
    if target.changes:
        check_chain_options(specs, options)
    return options


def _find_done(target: ClipTarget, key: str, recorded: Record | None, options: EnhanceOptions) -> Record | None:
    """Return what an earlier job has published under the same key; raise where a file is in the way that is no job's."""
    there = find_facts(target.place)
    if there is None:
        return None
    known = [record for record in (recorded, read_marker(target)) if record is not None and _is_of(record, there)]
    for record in known:
        if record.key == key:
            return replace(record, report=replace(record.report, status="skipped"))
    if not known:
        _check_replaceable(target, options)
    return None


def _check_replaceable(target: ClipTarget, options: EnhanceOptions) -> None:
    """Refuse to replace what no job has made, and folders that hold anything but frames whatever the options."""
    folder, pattern = Path(target.place), os.path.basename(target.output)
    if target.place != target.output and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", f"a folder for {pattern}")
    if target.place == target.output and folder.is_dir():
        raise ConfigError(f"output {target.output} is a folder", "the name of a file")
    there = list(folder.iterdir()) if target.place != target.output else [folder]
    if there and not options.overwrite:
        what = (
            f"output folder {folder} is not empty"
            if target.place != target.output
            else f"output {target.output} exists"
        )
        raise ConfigError(what, do="Choose another name, or pass --overwrite.")
    name = re.compile(re.sub(r"%(0\d+)?d", r"\\d+", re.escape(pattern)))
    strange = [path.name for path in there if target.place != target.output and not name.fullmatch(path.name)]
    if strange:
        raise ConfigError(
            f"output folder {folder} holds {strange[0]}",
            f"nothing but {pattern}",
            "Choose another folder: this one would be replaced.",
        )


@contextmanager
def _room(target: ClipTarget) -> Iterator[Path]:
    """Give a folder for a result that is being made: for one of this machine on its own file system, where a rename publishes it."""
    if is_remote(target.place):
        with temporary_folder("join") as folder:
            yield folder
        return
    with file_errors(target.aside, "making the folder"):
        os.makedirs(target.aside, exist_ok=True)
        room = tempfile.TemporaryDirectory(dir=target.aside, suffix=PARTIAL_SUFFIX)
    with room as name:
        yield Path(name)


def _joined(target: ClipTarget, folder: Path) -> tuple[Path, Path]:
    """Return where a result is made before it is published: what is published, and the file or the pattern in it."""
    if target.place != target.output:
        return folder / "frames", folder / "frames" / os.path.basename(target.output)
    joined = folder / f"result{os.path.splitext(target.output)[1]}"
    return joined, joined


def _is_of(record: Record, there: FileFacts) -> bool:
    return record.size == there.size and (not record.stamp or record.stamp == there.stamp)


def _check_unchanged(planned: ClipPlan, before: FileFacts | None = None) -> FileFacts | None:
    """Refuse an input of another size than was planned, or of another time than before: times of two nodes need not be the same."""
    place = planned.target.source
    now = find_facts(place)
    is_other = planned.source is not None and (now is None or now.size != planned.source.size)
    if is_other or (
        before is not None and now != before and not place.startswith(("http://", "https://"))
    ):  # of two servers each may have its own
        raise VideoError(
            f"{place}: the file was changed while it was enhanced", do="Run the same again when it is whole."
        )
    return now


def _share(results: Collection[SegmentResult]) -> float | None:
    looked_at = sum(result.outside[1] for result in results)
    return sum(result.outside[0] for result in results) / looked_at if looked_at else None


def _planned_frames(timeline: Timeline, index: int) -> int:
    segment = timeline.result.segments[index]
    return segment.stop - segment.start


def _frames_expected(timeline: Timeline) -> int:
    """Return how many frames the result of the whole file would have, also of one that ends too early."""
    promised = max(len(timeline.plan.pts), timeline.plan.num_frames_from_header or 0)
    return promised * len(timeline.result.pts) // len(timeline.plan.pts)


def _notes(planned: ClipPlan, frames: int) -> Iterator[str]:
    """Say what a person could not see in the result."""
    info, expected = planned.timeline.plan.info, _frames_expected(planned.timeline)
    if frames < expected:
        yield f"truncated input: {frames} of {expected} frames"
    if planned.timeline.plan.skipped:
        yield f"{planned.timeline.plan.skipped} frames at the start do not decode: what they refer to is not in the file"
    if planned.damaged:
        yield f"{planned.damaged} finished segments of an earlier job were not what it had written, and were computed again"
    plan = planned.timeline.plan
    moved = len(plan.decoded_pts) - len(set(plan.decoded_pts))
    if moved:
        step_s = float(info.time_base)
        yield f"{moved} frames share a time with the one before them: each is shown {step_s:g} s after it"
    yield from planned.notes
    if info.colour.assumed:
        yield f"untagged colour: read and tagged as {info.colour.standard}, by its height of {info.height}"
    yield from describe_losses(planned.timeline.result.info, planned.options.encoding, planned.size_out)
