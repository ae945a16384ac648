"""``ClipPlan``: what is planned for one video; how it is planned, and how the work of an earlier job is found."""

from __future__ import annotations

import lzma
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.distribution.shared_folders import SharedFolders, find_shared_folders
from genai_ray.enhance.job.clip_outcome import ClipOutcome, read_marker
from genai_ray.enhance.job.records import describe_making
from genai_ray.enhance.job.segment_store import SegmentStore, is_gpu_kind, key_clip, key_segments
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.budget import give_budgets
from genai_ray.enhance.plan.clip_target import RECORD_SUFFIX, ClipTarget
from genai_ray.enhance.plan.cuts import FINDER_BYTES, plan_cuts
from genai_ray.enhance.plan.fields import plan_fields
from genai_ray.enhance.plan.options import EnhanceOptions, check_chain_options, convert_params
from genai_ray.enhance.plan.piece import take_piece
from genai_ray.enhance.plan.size import FrameSizes, plan_sizes
from genai_ray.enhance.plan.timeline import Timeline, check_rate, has_mask, plan_result
from genai_ray.enhance.segment.checks import predict_check_bytes
from genai_ray.enhance.segment.needs import find_requests, predict_segment_bytes
from genai_ray.errors import ConfigError, GenAIRayError, VideoError
from genai_ray.files import FileFacts, file_errors, find_facts, find_source_facts, is_remote, list_names
from genai_ray.session import describe_seams
from genai_ray.tune import Way, candidates
from genai_ray.types import CheckLevel, ModelTask
from genai_ray.video import (
    LIMITED,
    VideoPlan,
    check_images,
    check_result,
    choose_pixel_format,
    holds_alpha,
    is_sequence,
    plan_source,
)

__all__ = [
    "ClipPlan",
    "Packed",
    "examine_clip",
    "find_begun",
    "find_done_clip",
    "lay_timeline",
    "name_segments",
    "open_clip",
    "plan_timeline",
    "settle_requests",
]

_FILTERS = ({"id": lzma.FILTER_DELTA, "dist": 5}, {"id": lzma.FILTER_LZMA2, "preset": 0})
"""Times take five bytes each in a pickle, and most differ from the one before by the same."""


class Packed:
    """The large part of a plan: compressed on its way between processes, and unpacked only where it is asked for.

    The process that starts the job keeps plans without reading them: one of ten hours takes less than 100 KB there.

    Args:
        value: Timeline and store; None if ``data`` is given.
        data: Both, compressed.
    """

    __slots__ = ("_data", "_value")

    def __init__(self, value: tuple[Timeline, SegmentStore] | None, data: bytes = b"") -> None:
        self._value = value
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        data = self._data or lzma.compress(pickle.dumps(self._value, pickle.HIGHEST_PROTOCOL), filters=_FILTERS)
        return Packed, (None, data)

    def get(self) -> tuple[Timeline, SegmentStore]:
        """Return timeline and store.

        Returns:
            Both.
        """
        if self._value is None:
            self._value = pickle.loads(lzma.decompress(self._data))
        return self._value


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """What is planned for one video: all that its segments, its end and the scheduler need."""

    target: ClipTarget
    """Input and output."""
    options: EnhanceOptions
    """The options of this video."""
    requests: tuple[SessionRequest, ...]
    """The sessions that it needs, each for the largest frame that it will get. With backend ``auto`` they say what was
    chosen, once its segments have names."""
    key: str
    """Hash of input, models and options."""
    sizes: FrameSizes
    """Sizes of its frames, from the first model to the result."""
    source: FileFacts | None
    """Size and version of the input when it was planned."""
    packed: Packed
    """``timeline`` and ``store``."""
    frames: int = 0
    """Frames of the result."""
    segments: int = 0
    """Number of segments."""
    segment_bytes: int = 0
    """Predicted memory of the task of one segment."""
    reused: Mapping[int, str] = field(default_factory=dict)
    """Names of finished segments of an earlier job, by index; see ``SegmentStore``."""
    frames_reused: int = 0
    """Frames of the result in those segments."""
    damaged: int = 0
    """Finished segments that are not what was written, and are computed again."""
    notes: tuple[str, ...] = ()
    """What the report should say about piece and size, the tracks that are not copied, and the chain at frames of this
    size."""
    home: SharedFolders = field(default_factory=SharedFolders)
    """The folders of result and segments."""
    making: Mapping[str, Any] = field(default_factory=dict)
    """How it is made, for the record; empty if the result gets none."""

    @property
    def timeline(self) -> Timeline:
        """Every frame of the source, and every frame of the result."""
        return self.packed.get()[0]

    @property
    def store(self) -> SegmentStore:
        """Where finished segments are."""
        return self.packed.get()[1]

    @property
    def todo(self) -> list[int]:
        """Indices of the segments that are still to be made."""
        return [index for index in range(self.segments) if index not in self.reused]


def examine_clip(
    target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions, recorded: ClipOutcome | None = None
) -> ClipPlan | ClipOutcome:
    """Plan a video; nothing is written.

    Args:
        target: Input and output.
        specs: The chain.
        common: The options of the whole job.
        recorded: What an earlier job has recorded for this output.

    Returns:
        The plan, its segments still without names; or the outcome, if an earlier job has done this video.

    Raises:
        ConfigError: If the output exists and no job has made it, or an option does not fit this video.
        VideoError: If the input is missing, is no video, or is truncated and that is not allowed.
    """
    options = _own_options(target, specs, common)
    source = find_source_facts(target.source)
    key = key_clip(source, specs, options)
    if done := _find_done(target, key, recorded, options):
        return done
    if target.has_record(options):
        target.check_name(RECORD_SUFFIX)
    timeline, sizes, told = plan_timeline(target.source, specs, options, target.coded_as)
    plan = timeline.plan
    has_alpha = timeline.result.info.has_alpha and options.encoding.has_alpha
    choose_pixel_format(options.encoding, sizes.result, plan.info.pix_fmt, has_alpha=has_alpha)
    if target.is_picture:
        check_images(timeline.result, sizes.result, target.output, has_alpha=has_alpha)
    others = check_result(timeline.result, sizes.result, options.encoding, target.suffix, has_alpha=has_alpha)
    timeline, spent = give_budgets(timeline, sizes.result, options.encoding, target.suffix)
    requests = find_requests(plan.info, specs, options)
    seams = (describe_seams(spec, request.max_frame) for spec, request in zip(specs, requests, strict=True))
    return ClipPlan(
        target,
        options,
        requests,
        key,
        sizes,
        source,
        Packed((timeline, SegmentStore(target.work_dir, ()))),
        frames=len(timeline.result.pts),
        segments=len(plan.segments),
        segment_bytes=predict_segment_bytes(
            sizes.result,
            timeline.result.info.bit_depth,
            sizes.made if sizes.is_resampled else None,
            (plan.info.width, plan.info.height) if sizes.given != (plan.info.width, plan.info.height) else None,
        )
        + predict_check_bytes(plan.info, sizes.scale, options.check),
        notes=(*told, *others, *spent, *dict.fromkeys(note for note in seams if note is not None)),
    )


def plan_timeline(
    source: str, specs: Sequence[ModelSpec], options: EnhanceOptions, suffix: str
) -> tuple[Timeline, FrameSizes, tuple[str, ...]]:
    """Plan a video and its result.

    Args:
        source: Path or URI of the video.
        specs: The chain.
        options: The options of this video.
        suffix: Suffix for which its segments are coded (``ClipTarget.coded_as``).

    Returns:
        Both plans, the sizes of frames on their way, and notes about fields, piece and size.

    Raises:
        ConfigError: If an option does not fit this video.
        VideoError: If it is missing, is no video, or is truncated and that is not allowed.
    """
    is_sequenced = is_sequence(source)
    check_rate(specs, options.factor, options.fps, has_sequence=is_sequenced)
    plan = plan_source(source, segment_frames=options.segment_frames, any_format=options.any_format, rate=options.fps)
    _check_moving(plan, specs, options)
    if plan.truncated and not options.allow_truncated:
        raise VideoError(
            f"{source} is truncated: {plan.truncated}",
            do="Pass --allow-truncated (allow_truncated=True) to enhance what is there.",
        )
    plan, made = plan_fields(plan, options.deinterlace, options.field_order, segment_frames=options.segment_frames)
    timeline, sizes, told = lay_timeline(plan, specs, options)
    result = timeline.result
    if result.info.has_alpha and options.encoding.has_alpha and not holds_alpha(options.encoding, suffix):
        # It is not encoded: a record has the frames that the file gives.
        timeline = replace(timeline, result=replace(result, info=replace(result.info, has_alpha=False)))
        told = (*told, f"alpha was left out: {suffix} cannot hold it with {options.encoding.encoder}")
    return timeline, sizes, (*made, *told)


def lay_timeline(
    plan: VideoPlan, specs: Sequence[ModelSpec], options: EnhanceOptions
) -> tuple[Timeline, FrameSizes, tuple[str, ...]]:
    """Plan the result of a planned video.

    Args:
        plan: The whole video.
        specs: As ``plan_timeline``; none for a result that has the frames of the source.
        options: As ``plan_timeline``.

    Returns:
        As ``plan_timeline``.

    Raises:
        ConfigError: As ``plan_timeline``.
    """
    plan, told = take_piece(plan, options.piece, segment_frames=options.segment_frames)
    plan = replace(plan, tracks=options.tracks)
    fps = None if is_sequence(plan.path) else options.fps
    timeline = plan_result(
        plan,
        specs,
        factor=options.factor,
        fps=fps,
        slow_motion=options.slow_motion,
        background=options.background,
    )
    info = timeline.result.info
    if not options.encoding.has_full_range and info.colour.range != LIMITED:
        info = replace(info, colour=replace(info.colour, range=LIMITED))
    has_alpha = info.has_alpha and options.encoding.has_alpha
    scale = math.prod(spec.scale for spec in specs)
    sizes = plan_sizes(plan.info, scale, options.result_size, options.encoding, has_alpha=has_alpha)
    info = replace(info, sample_aspect_ratio=sizes.sample_aspect_ratio)
    pictures = plan.pictures
    if pictures is not None and not timeline.adds_frames:
        pictures = replace(pictures, first_number=pictures.first_number + plan.first)
    if pictures is not None and has_mask(specs):
        kind = (options.background or Background()).kind
        pictures = replace(
            pictures, is_grey=pictures.is_grey and kind != "colour", is_opaque=pictures.is_opaque and kind != "alpha"
        )
    timeline = replace(timeline, result=replace(timeline.result, info=info, pictures=pictures))
    losses = pictures.losses if pictures is not None else ()
    return timeline, sizes, (*losses, *told, *sizes.describe(plan.info))


def _check_moving(plan: VideoPlan, specs: Sequence[ModelSpec], options: EnhanceOptions) -> None:
    """Refuse what asks for times of a single picture."""
    if plan.pictures is None or len(plan.pts) > 1:
        return
    if options.piece is not None:
        raise ConfigError(f"a piece of {plan.path}, which is one picture", "a video, an animation or a sequence")
    interpolation = next((spec.model_id for spec in specs if spec.task is ModelTask.INTERPOLATION), None)
    if interpolation is not None:
        raise ConfigError(
            f"{interpolation} for {plan.path}, which is one picture",
            "a video, an animation or a sequence: it adds frames between others",
        )


def find_begun(plan: ClipPlan, specs: Sequence[ModelSpec], kind: str) -> Way | None:
    """Return in which runtime and number format an earlier job with backend ``auto`` began a video.

    Args:
        plan: From ``examine_clip``.
        specs: The chain.
        kind: ``node_kind`` of the node that the job was started on.

    Returns:
        The way of most of its finished segments; None if there is none that this job can use.

    Raises:
        VideoError: If the work folder cannot be read.
    """
    if not list_names(plan.target.work_dir):
        return None
    precision = plan.options.precision
    counts: dict[Way, int] = {}
    for way in (*candidates(precision, is_gpu=False), *candidates(precision, is_gpu=True)):
        store, stricter = _find_store(plan, specs, kind, way)
        counts[way] = len(store.finished(stricter)[0])
    most = max(counts, key=lambda way: counts[way])
    return most if counts[most] else None


def name_segments(plan: ClipPlan, specs: Sequence[ModelSpec], kind: str, way: Way | None = None) -> ClipPlan:
    """Name the segments of a plan, and find those that an earlier job has finished; nothing is written.

    Args:
        plan: From ``examine_clip``.
        specs: The chain.
        kind: ``node_kind`` of the node that the job was started on.
        way: What the job has chosen with backend ``auto``; a video that was begun in another way goes on in that.
            None for another backend.

    Returns:
        The plan with names.

    Raises:
        VideoError: If the work folder cannot be read.
    """
    timeline, told = plan_cuts(plan.timeline, specs, plan.options, plan.sizes, is_gpu=is_gpu_kind(kind))
    plan = replace(plan, notes=(*plan.notes, *told))
    if timeline.scene_threshold is None:
        plan = replace(plan, segment_bytes=max(plan.segment_bytes, FINDER_BYTES))
    if way is not None:
        begun = find_begun(plan, specs, kind) or way
        if begun != way:
            plan = replace(
                plan, notes=(*plan.notes, f"it was begun in {begun}, and goes on in it; the job is in {way}")
            )
        way = begun
        plan = replace(plan, requests=settle_requests(plan.requests, way))
    if plan.target.has_record(plan.options):
        plan = replace(plan, making=describe_making(specs, plan.options, plan.requests[0]))
    store, stricter = _find_store(plan, specs, kind, way)
    reused, damaged = store.finished(stricter)
    frames_reused = sum(timeline.count_frames(index) for index in reused)
    return replace(plan, packed=Packed((timeline, store)), reused=reused, frames_reused=frames_reused, damaged=damaged)


def _find_store(
    plan: ClipPlan, specs: Sequence[ModelSpec], kind: str, way: Way | None
) -> tuple[SegmentStore, list[tuple[str, ...]]]:
    """Return the store of a video's segments, and the keys of those that passed stricter checks."""
    timeline = plan.timeline
    levels = list(CheckLevel)
    keys, *stricter = (
        key_segments(timeline.plan, specs, replace(plan.options, check=level), kind, way, timeline.budgets)
        for level in levels[levels.index(plan.options.check) :]
    )
    return SegmentStore(plan.target.work_dir, keys, has_notes=bool(plan.making)), stricter


def settle_requests(requests: Sequence[SessionRequest], way: Way) -> tuple[SessionRequest, ...]:
    """Return requests for a way that was chosen.

    Args:
        requests: With backend ``auto``.
        way: The runtime and the number format.

    Returns:
        The same for this way.
    """
    return tuple(replace(request, backend=way.backend, precision=way.precision) for request in requests)


def open_clip(plan: ClipPlan, specs: Sequence[ModelSpec], kind: str, way: Way | None = None) -> ClipPlan:
    """Name the segments of a plan, and make its folders.

    Args:
        plan: From ``examine_clip``.
        specs: The chain.
        kind: ``node_kind`` of the node that the job was started on.
        way: As ``name_segments``.

    Returns:
        The plan, ready for its segments.

    Raises:
        VideoError: If a folder cannot be made or read.
    """
    plan = name_segments(plan, specs, kind, way)
    place = plan.target.place
    if not is_remote(place):
        with file_errors(place, "making its folder"):
            os.makedirs(os.path.dirname(place), exist_ok=True)
    plan.store.open(plan.reused)
    return replace(plan, home=find_shared_folders(plan.target))


def find_done_clip(
    target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions, recorded: ClipOutcome
) -> ClipOutcome | None:
    """Tell whether an earlier job has done a video, without opening it.

    Args:
        target: Input and output.
        specs: The chain.
        common: The options of the whole job.
        recorded: What an earlier job has recorded for this output.

    Returns:
        The outcome; None if the video is not done, or nobody can tell without opening it.
    """
    try:
        options = _own_options(target, specs, common)
        return _find_done(target, key_clip(find_source_facts(target.source), specs, options), recorded, options)
    except (GenAIRayError, OSError):  # the step that plans this video raises it again
        return None


def _own_options(target: ClipTarget, specs: Sequence[ModelSpec], common: EnhanceOptions) -> EnhanceOptions:
    """Return the options of one video."""
    options = target.options(common)
    options = replace(options, encoding=options.encoding.fit(target.coded_as))
    if target.changes:
        check_chain_options(specs, options, has_sequence=is_sequence(target.source))
        options = convert_params(specs, options)
    return options


def _find_done(
    target: ClipTarget, key: str, recorded: ClipOutcome | None, options: EnhanceOptions
) -> ClipOutcome | None:
    """Return what an earlier job has published under the same key; refuse to replace a file that no job has made."""
    there = find_facts(target.place)
    if there is None:
        return None
    known = [outcome for outcome in (recorded, read_marker(target)) if outcome is not None and outcome.is_of(there)]
    for outcome in known:
        if outcome.key == key and (not target.has_record(options) or find_facts(target.record) is not None):
            return replace(outcome, status="skipped")
    if not known:
        _check_replaceable(target, options)
    return None


def _check_replaceable(target: ClipTarget, options: EnhanceOptions) -> None:
    """Refuse to replace what no job has made; with ``overwrite`` still refuse folders with other files than frames."""
    folder = Path(target.place)
    pattern = os.path.basename(target.output)
    if target.place == target.output:
        if folder.is_dir():
            raise ConfigError(f"output {target.output} is a folder", "the name of a file")
        if not options.overwrite:
            raise ConfigError(
                f"output {target.output} exists", do="Choose another name, or pass --overwrite (overwrite=True)."
            )
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file", f"a folder for {pattern}")
    there = list(folder.iterdir())
    if there and not options.overwrite:
        raise ConfigError(
            f"output folder {folder} is not empty", do="Choose another name, or pass --overwrite (overwrite=True)."
        )
    frame_name = re.compile(re.sub(r"%(0\d+)?d", r"\\d+", re.escape(pattern)))
    strange = [path.name for path in there if not frame_name.fullmatch(path.name)]
    if strange:
        raise ConfigError(
            f"output folder {folder} holds {strange[0]}",
            f"nothing but {pattern}",
            "Choose another folder: this one would be replaced.",
        )
