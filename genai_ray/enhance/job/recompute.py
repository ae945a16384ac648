"""Computes segments of a result again from its source, and compares them with the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import UNKNOWN_PROCESSOR, uses_gpu
from genai_ray.enhance.job.clip_plan import plan_timeline
from genai_ray.enhance.job.job_cache import job_cache
from genai_ray.enhance.job.records import build_note, describe_source, expand_times, find_late
from genai_ray.enhance.job.segment_store import hash_of_model, list_versions, node_kind
from genai_ray.enhance.plan.budget import give_budgets
from genai_ray.enhance.plan.cuts import FINDER_BYTES, plan_cuts
from genai_ray.enhance.plan.options import EnhanceOptions, Paths
from genai_ray.enhance.plan.size import FrameSizes
from genai_ray.enhance.plan.timeline import Timeline, check_chain
from genai_ray.enhance.segment.checks import predict_check_bytes
from genai_ray.enhance.segment.needs import find_requests, predict_segment_bytes
from genai_ray.enhance.segment.segment import JobContext, SegmentResult, enhance_segment
from genai_ray.errors import ConfigError, GenAIRayError, QualityError, ResourceExhaustedError, VideoError
from genai_ray.files import temporary_folder
from genai_ray.inspection import find_model
from genai_ray.video import VideoPlan, compare_frames, digest_part, validate_encoding

__all__ = ["Again", "Recomputation", "find_specs"]

TOLERANCE_DB = 30.0
"""Least PSNR of each frame if frames need not be equal: two encodings of one picture differ by what both lose."""

TASKS_SHARE = 0.4
"""Most of the cluster's ``memory`` for segments, as in a job."""


@dataclass(frozen=True, slots=True)
class Again:
    """What became of the segments that were computed again."""

    indices: tuple[int, ...]
    """The segments."""
    failures: tuple[str, ...]
    """One sentence for each one that differs, or why none was computed."""
    inexact_because: str = ""
    """Why frames needed only to be alike; empty if they had to be equal."""
    tolerance_db: float | None = None
    """Least PSNR of a frame then."""
    lowest_db: float | None = None
    """Lowest PSNR of any frame; ``inf`` if all are equal."""


def find_specs(record: Mapping[str, Any], models: Paths) -> list[tuple[ModelSpec, str]]:
    """Find the models of a record.

    Args:
        record: The record.
        models: Paths of .onnx files.

    Returns:
        For each model its spec and the hash that it has here: of the given files one that has the record's hash, else
        the first one of that name, else the catalog's.

    Raises:
        ConfigError: If it is a file, and none of its name or hash is given.
        ModelNotFoundError: If the catalog has no such model.
        ModelLoadError: If a file is corrupt.
    """
    given = [find_model(model)[0] for model in ([models] if isinstance(models, str | Path) else models)]
    hashes = [(spec, hash_of_model(spec)) for spec in given]
    found = []
    for known in record["models"]:
        name = str(known["model"])
        fitting = [pair for pair in hashes if pair[1] == known["sha256"]]
        fitting += [pair for pair in hashes if pair[0].is_path and Path(pair[0].file).name == name]
        if not fitting:
            if name.lower().endswith(".onnx"):
                raise ConfigError(
                    f"the record's model {name} is a file", "its path", "Pass --model PATH (models=[PATH])."
                )
            spec = find_model(name)[0]
            fitting = [(spec, hash_of_model(spec))]
        found.append(fitting[0])
    return found


class Recomputation:
    """The segments of one result, to be computed again.

    Args:
        record: Its record.
        result: The plan of its file.
        source: Path or URI of its source.
        options: The record's options, with the address of the cluster to join.
    """

    def __init__(self, record: Mapping[str, Any], result: VideoPlan, source: str, options: EnhanceOptions) -> None:
        self._record = record
        self._result = result
        self._source = source
        self._options = options
        self._parts: Sequence[Mapping[str, Any]] = record["segments"]

    def run(self, indices: Sequence[int], models: Sequence[tuple[ModelSpec, str]]) -> Again:
        """Compute segments again on Ray, and compare them.

        Args:
            indices: The segments, rising.
            models: From ``find_specs``.

        Returns:
            What differs.

        Raises:
            ConfigError: If an option of the record makes no sense, or its encoder is missing.
            VideoError: If the source is missing or does not decode.
            GenAIRayError: What a session raises.
        """
        specs = tuple(spec for spec, _ in models)
        check_chain(specs)
        options = self._options
        suffix = f".{self._result.path.rpartition('.')[2].lower()}"
        validate_encoding(options.encoding, suffix)
        timeline, sizes, _ = plan_timeline(self._source, specs, options, suffix)
        other = self._compare_source(timeline)
        if other:
            return Again((), (other,))
        timeline, _ = give_budgets(timeline, sizes.result, options.encoding, suffix)
        with job_cache(options) as cache:
            is_gpu = uses_gpu(options.device, options.backend)
            kind = node_kind(is_gpu=is_gpu)
            timeline, _ = plan_cuts(timeline, specs, options, sizes, is_gpu=is_gpu)
            requests = find_requests(timeline.plan.info, specs, options)
            with cache.lease(requests), temporary_folder("verify") as folder:
                job = JobContext(specs, requests, options, cache, f"verify-{folder.name}", kind)
                return self._compare_all(_compute(timeline, sizes, indices, job), indices, job, folder)

    def _compare_source(self, timeline: Timeline) -> str:
        """Return what differs of the source; empty if nothing does."""
        known, found = self._record["source"], describe_source(timeline.plan)
        if found["packets_sha256"] != known["packets_sha256"]:
            return (
                f"nothing was computed again: {self._source} is not the source: its packets are "
                f"sha256:{found['packets_sha256']}, those of the record sha256:{known['packets_sha256']}"
            )
        segments = [[part.start, part.stop] for part in timeline.plan.segments]
        if found != known or segments != [list(part["source_frames"]) for part in self._parts]:
            return f"nothing was computed again: {self._source} gives other segments than the record says"
        return self._compare_plan(timeline.result)

    def _compare_plan(self, planned: VideoPlan) -> str:
        """Return what the record says of the result that its source and options do not give."""
        wanted = self._record["result"]
        colour = planned.info.colour
        tags = [colour.matrix, colour.range, colour.primaries, colour.transfer]
        if tags != wanted["colour"]:
            return f"the source and options give the colour tags {tags}; the record says {wanted['colour']}"
        if planned.info.rotation % 360 != wanted["rotation"]:
            rotation = planned.info.rotation % 360
            return f"the source and options give a rotation of {rotation} degrees; the record says {wanted['rotation']}"
        times = [time * planned.info.time_base for time in planned.pts[: wanted["frames"]]]
        is_set_apart = len({round(time * 1000) for time in times}) < len(times)  # if Matroska holds them
        if len(times) != wanted["frames"]:
            return f"the source and options give {len(times)} frames; the record says {wanted['frames']}"
        if not is_set_apart and (late := find_late(expand_times(wanted), times, Fraction(0))):
            index, time, other = late[0]
            return (
                f"the source and options show frame {index} {float(other):.3f} s after the first one; the record says "
                f"{float(time):.3f} s"
            )
        return ""

    def _compare_all(
        self,
        computed: Iterator[tuple[int, SegmentResult | QualityError, npt.NDArray[np.uint8] | None]],
        indices: Sequence[int],
        job: JobContext,
        folder: Path,
    ) -> Again:
        because = self._find_difference(job)
        reasons: list[str] = []
        failures: dict[int, str] = {}
        lowest_db = math.inf
        for index, made, data in computed:
            part = self._parts[index]
            reason = because
            if isinstance(made, QualityError):
                failures[index] = f"fails the checks when it is computed again: {made.got}"
                continue
            is_known = UNKNOWN_PROCESSOR not in made.processors
            if not reason and not (is_known and made.processors == tuple(part["processors"])):
                reason = f"segment {index} was computed on another kind of processor or GPU"
            if reason:
                reasons.append(reason)
            if made.frames != part["frames"]:
                failures[index] = f"has {made.frames} frames when it is computed again, not {part['frames']}"
                continue
            if made.frames_digest == part["frames_sha256"] or data is None:
                note = build_note(made, job.requests[0])
                others = [name for name, value in note.items() if part.get(name) != value]
                if others and not reason:
                    failures[index] = f"has another {others[0]} in the record than when it is computed again"
                continue
            file = folder / f"{index}.segment"
            data.tofile(file)
            first = sum(int(other["frames"]) for other in self._parts[:index])
            try:
                segment_db = min(compare_frames(self._result, first, file))
            except VideoError as exc:
                failures[index] = f"cannot be compared with what is computed again: {exc.got}"
                continue
            lowest_db = min(lowest_db, segment_db)
            if not reason or segment_db < TOLERANCE_DB:
                allowed = f"at least {TOLERANCE_DB:g} dB" if reason else "equal frames"
                failures[index] = (
                    "has other frames when it is computed again from the source: "
                    f"PSNR {segment_db:.1f} dB at worst (allowed: {allowed})"
                )
        return Again(
            tuple(indices),
            tuple(f"segment {index} {text}" for index, text in sorted(failures.items())),
            min(reasons, default=""),
            TOLERANCE_DB if reasons else None,
            lowest_db,
        )

    def _find_difference(self, job: JobContext) -> str:
        """Say what may round in another way here; empty if nothing does."""
        here = set(list_versions(job.options.backend))
        known = set(self._record["versions"])
        if here != known:
            return f"versions here: {', '.join(sorted(here - known))}; of the record: {', '.join(sorted(known - here))}"
        if job.options.encoding.is_in_hardware:
            return f"{job.options.encoding.encoder} encodes in hardware"
        return ""


def _compute(
    timeline: Timeline, sizes: FrameSizes, indices: Sequence[int], job: JobContext
) -> Iterator[tuple[int, SegmentResult | QualityError, npt.NDArray[np.uint8] | None]]:
    """Compute segments in Ray tasks, as many at a time as there are CPUs and memory for; in any order."""
    refs = (ray.put(timeline), sizes, ray.put(job))
    waiting = list(reversed(indices))
    running: dict[Any, int] = {}
    most = _count_at_once(timeline, sizes, job.options)
    while waiting or running:
        while waiting and len(running) < most:
            index = waiting.pop()
            running[_run_again.remote(*refs, index)] = index
        (done,), _ = ray.wait(list(running))
        index = running.pop(done)
        try:
            made, data = ray.get(done)
        except RayError as exc:
            made, data = exc, None
        if isinstance(made, GenAIRayError) and not isinstance(made, QualityError):
            raise made
        if isinstance(made, Exception) and not isinstance(made, QualityError):
            do = "Try again; if it was memory, on a cluster with more of it."
            raise ResourceExhaustedError(f"segment {index} was not computed again: {made}", do=do) from made
        yield index, made, data


def _count_at_once(timeline: Timeline, sizes: FrameSizes, options: EnhanceOptions) -> int:
    info = timeline.plan.info
    num_bytes = predict_segment_bytes(
        sizes.result,
        info.bit_depth,
        sizes.made if sizes.is_resampled else None,
        (info.width, info.height) if sizes.given != (info.width, info.height) else None,
    )
    num_bytes += predict_check_bytes(info, sizes.scale, options.check)
    if timeline.scene_threshold is None:
        num_bytes = max(num_bytes, FINDER_BYTES)
    cluster_resources: Any = ray.cluster_resources
    resources = cluster_resources()
    return max(1, min(int(resources.get("CPU", 1)), int(TASKS_SHARE * resources.get("memory", 0)) // num_bytes))


@ray.remote(num_cpus=1, max_retries=2)
def _run_again(
    timeline: Timeline, sizes: FrameSizes, job: JobContext, index: int
) -> tuple[Any, npt.NDArray[np.uint8] | None]:
    try:
        with temporary_folder("verify") as folder:
            path = folder / "segment"
            result = enhance_segment(timeline, sizes, index, path, job)
            if not result.frames:
                return result, None
            _, frames_digest = digest_part(path)
            return replace(result, frames_digest=frames_digest), np.fromfile(path, np.uint8)
    except (GenAIRayError, RayError, OSError, MemoryError) as exc:
        return exc, None
