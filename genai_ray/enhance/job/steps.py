"""The steps of one video - begin, segments, finish - as plain functions, which a task or a test calls.

A step gets all that it needs as arguments, and leaves its work in the work folder; a step that runs twice does no harm.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.display import format_count
from genai_ray.enhance.distribution.shared_folders import check_there
from genai_ray.enhance.job.clip_outcome import ClipOutcome, read_marker, write_marker
from genai_ray.enhance.job.clip_plan import ClipPlan, examine_clip, open_clip
from genai_ray.enhance.job.records import build_note, build_record, write_record
from genai_ray.enhance.job.segment_store import PARTIAL_SUFFIX, hash_segment
from genai_ray.enhance.plan.budget import describe_size
from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.enhance.plan.fields import stored_at
from genai_ray.enhance.plan.timeline import Timeline
from genai_ray.enhance.segment.segment import JobContext, SegmentResult, enhance_segment
from genai_ray.errors import VideoError
from genai_ray.files import (
    FileFacts,
    discard,
    fetch,
    file_errors,
    find_facts,
    find_source_facts,
    is_remote,
    publish,
    remove,
    temporary_folder,
)
from genai_ray.tune import Way
from genai_ray.types import CheckLevel, ModelBackend, parse_bytes
from genai_ray.video import (
    ANIMATION_SUFFIXES,
    IMAGE_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIX,
    VideoPlan,
    count_frames,
    describe_leftovers,
    describe_losses,
    digest_part,
    join_segments,
    measure_part,
    read_pictures,
    write_images,
    write_pictures,
)

__all__ = ["begin_clip", "finish_clip", "note_of", "run_segment", "write_result"]

MAX_AT_ONCE_BYTES = 1024**3
"""A segment that is predicted to take more is a task of its own, so that the scheduler knows how many of them run."""

MAX_TABLE_BYTES = 64 * 1024**2
"""Bytes of frames in memory, and in a row group, at a time."""


def begin_clip(
    target: ClipTarget, job: JobContext, recorded: ClipOutcome | None = None, *, at_once: bool = False
) -> ClipPlan | ClipOutcome:
    """Plan a video, and make its folders.

    Args:
        target: Input and output.
        job: Models, options and cache.
        recorded: What an earlier job has recorded for this output.
        at_once: Whether to do a video of a single, small segment at once.

    Returns:
        The plan; or the outcome, if nothing is left to do.

    Raises:
        ConfigError: As ``examine_clip``.
        VideoError: As ``examine_clip`` and ``open_clip``.
    """
    started = time.monotonic()
    check_there(target.source)
    examined = examine_clip(target, job.specs, job.options, recorded)
    if isinstance(examined, ClipOutcome):
        return examined
    plan = open_clip(examined, job.specs, job.kind, job.way)
    if not at_once or len(plan.todo) > 1 or plan.segment_bytes > MAX_AT_ONCE_BYTES:
        return plan
    results = {}
    for index in plan.todo:
        results[index], data = run_segment(plan, index, job)
        if data is not None:
            plan.store.put(index, results[index].name, data.data, note_of(plan, results[index]))
    return finish_clip(plan, results, time.monotonic() - started)


def run_segment(plan: ClipPlan, index: int, job: JobContext) -> tuple[SegmentResult, npt.NDArray[np.uint8] | None]:
    """Enhance one segment and keep it in the work folder.

    Args:
        plan: The plan of the video.
        index: Index of the segment.
        job: Chain and cache.

    Returns:
        The counts; and the segment itself, (bytes,) uint8, if this machine lacks the work folder: ``SegmentStore.put``
        writes it on a machine that has it.

    Raises:
        VideoError: If it does not decode to the planned frames, or the input has changed since it was planned or is
            not here.
        GenAIRayError: What a session raises.
    """
    check_there(plan.target.source)
    before = _check_unchanged(plan)
    job = replace(job, options=plan.options, requests=plan.requests)
    store = plan.store
    if not store.is_remote and plan.home.has_work():
        return _enhance_into(store.partial(index), plan, index, job, before), None
    with temporary_folder("segment") as folder:
        local = folder / "segment"
        if store.is_remote:
            return _enhance_into(local, plan, index, job, before), None
        result = enhance_segment(plan.timeline, plan.sizes, index, local, job)
        _check_unchanged(plan, before)
        if not result.frames:
            return result, None
        return replace(_hashed(plan, index, result, local), is_away=True), np.fromfile(local, np.uint8)


def note_of(plan: ClipPlan, result: SegmentResult) -> dict[str, Any] | None:
    """Return a finished segment's part of the record.

    Args:
        plan: The plan of the video.
        result: What became of the segment.

    Returns:
        Fields of the record; None if the result gets no record.
    """
    return build_note(result, plan.requests[0]) if plan.making else None


def finish_clip(plan: ClipPlan, results: Mapping[int, SegmentResult], seconds: float) -> ClipOutcome:
    """Join the segments and publish the result; the marker stays in the work folder until ``forget``.

    Args:
        plan: The plan of the video, all of whose segments are finished.
        results: What became of the segments that were made now, by index; the others hold the planned frames.
        seconds: Time that the video has taken so far.

    Returns:
        The outcome.

    Raises:
        VideoError: If a segment does not hold its frames, the input has changed since it was planned, or writing fails.
    """
    started = time.monotonic()
    check_there(plan.target.source)
    _check_unchanged(plan)
    target = plan.target
    timeline = plan.timeline
    store = plan.store
    made = tuple(results.values())
    there = find_facts(target.place)
    earlier = read_marker(target) if there is not None else None
    has_record = not plan.making or find_facts(target.record) is not None
    if there is not None and earlier is not None and earlier.key == plan.key and earlier.is_of(there) and has_record:
        store.clear()  # an earlier try died after it had published
        return replace(earlier, stamp=there.stamp, results=made)
    with _result_folder(target) as folder:
        parts = _fetch_parts(plan, results, folder)
        counts = _count_parts(plan, results, parts)
        whole, output = _unpublished(target, folder)
        record = folder / "record.json"
        told = _read_notes(plan, results) if plan.making else ()
        tell = functools.partial(_write_record, plan, told, record) if plan.making else None
        quality = plan.options.encoding.image_quality
        notes = write_result(timeline.result, parts, counts, output, tell, image_quality=quality)
        facts = whole.stat()
        filled = _note_size(plan, parts, facts.st_size)
        info = timeline.plan.info
        outcome = ClipOutcome(
            source=target.source,
            output=target.output,
            frames=sum(counts),
            frames_expected=_frames_expected(timeline),
            size_in=(info.width, info.height),
            size_out=plan.sizes.result,
            size_made=plan.sizes.made,
            begins_s=timeline.plan.clock_s,
            notes=tuple(dict.fromkeys((*_notes(plan, sum(counts)), *_note_made(plan, results), *notes, *filled))),
            seconds=seconds + time.monotonic() - started,
            segments=len(counts),
            segments_reused=len(plan.reused),
            share_outside_rgb=_share_outside(made),
            frames_checked=sum(result.frames_checked for result in made),
            segments_recomputed=sum(bool(result.recomputed) for result in made),
            way=_way_of(plan),
            record=target.record if plan.making else "",
            key=plan.key,
            size_bytes=facts.st_size,
            stamp="" if is_remote(target.place) else str(facts.st_mtime_ns),
            results=made,
        )
        write_marker(target, outcome)
        if plan.making:
            publish(record, target.record)
        elif there is not None and target.suffix in SUFFIXES:
            remove([target.record])  # of the result that is replaced
        publish(whole, target.place)
    store.clear()
    if not is_remote(target.place):
        return outcome
    published = find_facts(target.place)
    return replace(outcome, stamp=published.stamp if published else "")


def write_result(
    plan: VideoPlan,
    parts: Sequence[Path],
    counts: Sequence[int],
    output: Path,
    record: Callable[[VideoPlan], str] | None = None,
    *,
    image_quality: int | None = None,
) -> tuple[str, ...]:
    """Write a result from its finished segments; it appears under its name only when it is whole.

    Args:
        plan: The plan of the result.
        parts: The segments' files in order; those without frames need not exist.
        counts: Frames in each of them.
        output: A video file, a picture, an animation, a pattern such as ``frames/%06d.png``, or a .parquet file;
            replaced if it exists.
        record: As ``join_segments``; for a video file only.
        image_quality: Quality of a JPEG or WebP picture, from 1 to 100; None for 92.

    Returns:
        Notes: what the result has no place for.

    Raises:
        VideoError: If other frames than the last ones are missing, a part does not hold its frames, or writing fails.
    """
    _check_counts(plan, counts)
    suffix = output.suffix.lower()
    if suffix in ANIMATION_SUFFIXES or (suffix in IMAGE_SUFFIXES and plan.pictures is not None):
        return write_images(plan, parts, counts, output, image_quality)
    if suffix in IMAGE_SUFFIXES:
        return write_pictures(plan, parts, counts, output)
    if suffix == TABLE_SUFFIX:
        _write_table(plan, parts, counts, output)
        return tuple(describe_leftovers(plan, "a table of frames"))
    return join_segments(plan, parts, counts, output, record)


def _enhance_into(
    partial: Path, plan: ClipPlan, index: int, job: JobContext, before: FileFacts | None
) -> SegmentResult:
    """Enhance one segment into a file of this machine, and publish it in the work folder."""
    try:
        result = enhance_segment(plan.timeline, plan.sizes, index, partial, job)
        _check_unchanged(plan, before)
        if not result.frames:
            return result
        result = _hashed(plan, index, result, partial)
        plan.store.finish(index, partial, result.name, note_of(plan, result))
        return result
    finally:
        discard(partial)


def _hashed(plan: ClipPlan, index: int, result: SegmentResult, path: Path) -> SegmentResult:
    """Hash a segment's file and, for a record, its frames: what the encoder made must decode to as many."""
    name = plan.store.name(index, hash_segment(str(path)), is_again=bool(result.recomputed))
    result = replace(result, name=name)
    if not plan.making:
        return result
    count, frames_digest = digest_part(path)
    plan.timeline.result.check_count(count, result.frames)
    return replace(result, frames_digest=frames_digest)


def _check_unchanged(plan: ClipPlan, before: FileFacts | None = None) -> FileFacts | None:
    """Refuse an input that has changed: in size since it was planned, or at all since ``before``.

    Two nodes may see different times of one file, and two servers of one address different versions.
    """
    place = plan.target.source
    now = find_source_facts(place)
    is_resized = plan.source is not None and (now is None or now.size != plan.source.size)
    is_other = before is not None and now != before and not place.startswith(("http://", "https://"))
    if is_resized or is_other:
        raise VideoError(
            f"{place}: the file was changed while it was enhanced", do="Run the job again when the file is whole."
        )
    return now


@contextmanager
def _result_folder(target: ClipTarget) -> Iterator[Path]:
    """Give a folder for a result that is being made: beside a local result, so that a rename publishes it."""
    if is_remote(target.place):
        with temporary_folder("join") as folder:
            yield folder
        return
    with file_errors(target.aside, "making the folder"):
        os.makedirs(target.aside, exist_ok=True)
        room = tempfile.TemporaryDirectory(dir=target.aside, suffix=PARTIAL_SUFFIX)
    with room as name:
        yield Path(name)


def _unpublished(target: ClipTarget, folder: Path) -> tuple[Path, Path]:
    """Return where a result is made: what is published, and the file or the pattern in it."""
    if target.place != target.output:
        return folder / "frames", folder / "frames" / os.path.basename(target.output)
    whole = folder / f"result{os.path.splitext(target.output)[1]}"
    return whole, whole


def _read_notes(plan: ClipPlan, results: Mapping[int, SegmentResult]) -> list[dict[str, Any]]:
    """Return each segment's part of the record; those of an earlier job are in the work folder."""
    notes = []
    for index in range(plan.segments):
        note = (
            plan.store.read_note(index, plan.reused[index])
            if index in plan.reused
            else build_note(results[index], plan.requests[0])
        )
        if note is None:
            raise VideoError(
                f"{plan.target.work_dir}: the note of segment {index} is damaged", do="Run the same job again."
            )
        notes.append(note)
    return notes


def _write_record(plan: ClipPlan, notes: Sequence[Mapping[str, Any]], path: Path, result: VideoPlan) -> str:
    return write_record(build_record(plan.timeline.plan, plan.making, notes, result), path)


def _fetch_parts(plan: ClipPlan, results: Mapping[int, SegmentResult], folder: Path) -> list[Path]:
    """Return the files of all segments, on this machine; a segment without frames has none."""
    store = plan.store
    names = {**plan.reused, **{index: result.name for index, result in results.items() if result.name}}
    parts = [folder / f"{index}.nut" for index in range(plan.segments)]
    for index, name in names.items():
        if store.is_remote:
            fetch(store.place(index, name), parts[index])
        else:
            parts[index] = Path(store.place(index, name))
    return parts


def _count_parts(plan: ClipPlan, results: Mapping[int, SegmentResult], parts: Sequence[Path]) -> list[int]:
    """Return the frames in each segment: of a truncated input, those of an earlier job may have fewer than planned."""
    timeline = plan.timeline
    counts = []
    for index, part in enumerate(parts):
        if plan.options.allow_truncated and index in plan.reused:
            counts.append(count_frames(part))
        else:
            counts.append(results[index].frames if index in results else timeline.count_frames(index))
    return counts


def _check_counts(plan: VideoPlan, counts: Sequence[int]) -> None:
    """Refuse frames that are missing before others: all later ones would be shown too early for the sound."""
    for segment, count in zip(plan.segments, counts, strict=True):
        if count < segment.stop - segment.start and any(counts[segment.index + 1 :]):
            first = segment.start + count
            at_s = float(plan.pts[first] * plan.info.time_base)
            raise VideoError(
                f"{plan.path}: frames {first} to {segment.stop - 1}, from {at_s:.3f} s, "
                "do not decode, and later ones do",
                "a file that is whole, or lacks its end",
            )


def _write_table(plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int], output: Path) -> None:
    from genai_ray.frames import TableWriter, build_table  # noqa: PLC0415 - Arrow takes 0.15 s of each process

    base = f"{plan.info.time_base.numerator}/{plan.info.time_base.denominator}"
    done = 0
    with TableWriter(output) as writer:
        for part, count in zip(parts, counts, strict=True):
            waiting = []
            for index, frame in enumerate(read_pictures(plan, part, count) if count else ()):
                waiting.append(frame)
                if (len(waiting) + 1) * frame.nbytes > MAX_TABLE_BYTES or index + 1 == count:
                    rows = range(done, done + len(waiting))
                    done = rows.stop
                    pts, frames = plan.pts[rows.start : rows.stop], np.stack(waiting)
                    writer.write(build_table(frames, video=plan.path, frame_index=rows, pts=pts, time_base=base))
                    waiting = []


def _share_outside(results: Iterable[SegmentResult]) -> float | None:
    pixels = [result.outside for result in results]
    checked = sum(total for _, total in pixels)
    return sum(outside for outside, _ in pixels) / checked if checked else None


def _frames_expected(timeline: Timeline) -> int:
    """Return how many frames the result would have if the file did not end too early."""
    plan = timeline.plan
    count = len(plan.pts)
    missing = max((plan.num_frames_from_header or 0) - count, 0) if plan.stop == count else 0
    planned = plan.stop - plan.first
    return (planned + missing) * len(timeline.result.pts) // planned


def _way_of(plan: ClipPlan) -> str:
    request = plan.requests[0]
    return str(Way(request.backend, request.precision)) if plan.options.backend is ModelBackend.AUTO else ""


def _note_size(plan: ClipPlan, parts: Sequence[Path], num_bytes: int) -> tuple[str, ...]:
    """Compare the size of a result, or of its pictures, with the one that is asked for."""
    encoding, budgets = plan.options.encoding, plan.timeline.budgets
    if not budgets:
        return ()
    if encoding.max_size is not None:
        return describe_size(encoding, num_bytes, parse_bytes(encoding.max_size), plan.target.output)
    taken = sum(measure_part(part) for part in parts if part.exists())
    return describe_size(encoding, taken, sum(budgets), plan.target.output)


def _note_made(plan: ClipPlan, results: Mapping[int, SegmentResult]) -> Iterator[str]:
    """Say how many frames were interlaced if not all of them were, and which segments had wrong frames."""
    source = plan.timeline.plan
    total = sum(source.segments[index].stop - source.segments[index].start for index in results)
    interlaced = sum(result.frames_deinterlaced for result in results.values())
    if 0 < interlaced < total:
        yield f"{interlaced} of {total} frames are flagged as interlaced: these were deinterlaced by bwdif"
    reasons = {index: result.recomputed for index, result in sorted(results.items()) if result.recomputed}
    if reasons:
        (index, reason), *_ = reasons.items()
        count = format_count(len(reasons), "segment")
        yield f"{count} computed again in fp32 by onnx because of wrong frames, such as segment {index}: {reason}"


def _notes(plan: ClipPlan, frames: int) -> Iterator[str]:
    """Say what a person could not see in the result."""
    timeline = plan.timeline
    source = timeline.plan
    if plan.options.check == CheckLevel.STRICT and not plan.making:
        yield "it has no record: only a video file can name one"
    expected = _frames_expected(timeline)
    if frames < expected:
        yield f"truncated input: {frames} of {expected} frames"
    if source.skipped and source.first == 0:
        yield f"{source.skipped} frames at the start do not decode: what they refer to is not in the file"
    if plan.damaged:
        yield f"{plan.damaged} finished segments of an earlier job were damaged, and were computed again"
    first, last = stored_at(source, source.first), stored_at(source, source.stop - 1)
    decoded = (source.stored or source).decoded_pts[first : last + 1]
    moved = len(decoded) - len(set(decoded))
    if moved:
        step_s = float(source.info.time_base)
        yield f"{moved} frames share a time with the one before them: each is shown {step_s:g} s after it"
    yield from plan.notes
    colour = source.info.colour
    if colour.assumed and not (source.pictures is not None and plan.target.is_picture):
        yield f"untagged colour: read and tagged as {colour.standard}, by its height of {source.info.height}"
    yield from describe_losses(timeline.result.info, plan.options.encoding, plan.sizes.result)
