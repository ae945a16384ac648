"""The record of a result: a JSON file that says what it was made of and how, with hashes of its frames.

It holds nothing of the run: no time, no machine's name, no path but those in the encoder's own options. So the same job
gives the same record, and the hash in the video's metadata is the same too. ``docs/quality.md`` describes its fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.job.segment_store import hash_of_model, list_versions
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.segment.segment import SegmentResult
from genai_ray.errors import ConfigError, GenAIRayError, VideoError
from genai_ray.types import ModelBackend, ModelPrecision, ParamPicture
from genai_ray.video import Encoding, VideoPlan, is_picture_text, parse_picture_text, to_picture_text

__all__ = [
    "RECORD_FORMAT",
    "build_note",
    "build_record",
    "describe_making",
    "describe_source",
    "expand_times",
    "find_late",
    "options_of",
    "write_record",
]

RECORD_FORMAT = "genai-ray record 1"
"""What a record's field ``format`` says."""

_RECORDED = {item.name for item in fields(EnhanceOptions)} - {
    *("address", "any_format", "batch_size", "cache_name", "fail_fast"),
    *("max_memory_bytes", "name", "overwrite", "replicas", "work_dir"),
}
"""Options that frames depend on."""


def describe_making(specs: Sequence[ModelSpec], options: EnhanceOptions, request: SessionRequest) -> dict[str, Any]:
    """Return the parts of a record that say how a result is made.

    Args:
        specs: The chain.
        options: The options of the video.
        request: A session of the job, which has its runtime and number format.

    Returns:
        Fields of the record, fit for JSON.
    """
    return {
        "models": [
            {"model": Path(spec.file).name if spec.is_path else spec.model_id, "sha256": hash_of_model(spec)}
            for spec in specs
        ],
        "backend": request.backend.value,
        "precision": request.precision.value,
        "options": {
            item.name: _to_plain(getattr(options, item.name)) for item in fields(options) if item.name in _RECORDED
        },
        "versions": list(list_versions(request.backend)),
    }


def describe_source(plan: VideoPlan) -> dict[str, Any]:
    """Return the part of a record that says what a result is made of.

    Args:
        plan: The source.

    Returns:
        Fields of the record, fit for JSON.
    """
    return {
        "packets_sha256": plan.content_hash,
        "size": [plan.info.width, plan.info.height],
        "frames": [plan.first, plan.stop],
    }


def build_note(result: SegmentResult, request: SessionRequest) -> dict[str, Any]:
    """Build a segment's part of a record.

    Args:
        result: What became of the segment.
        request: A session of the job.

    Returns:
        Fields of the record, fit for JSON.
    """
    backend, precision = request.backend, request.precision
    if result.recomputed:
        backend, precision = ModelBackend.ONNX, ModelPrecision.FP32
    return {
        "frames": result.frames,
        "frames_sha256": result.frames_digest,
        "backend": backend.value,
        "precision": precision.value,
        "processors": list(result.processors),
        "frames_checked": result.frames_checked,
        "measured": dict(result.measured),
    }


def build_record(
    source: VideoPlan, making: Mapping[str, Any], notes: Iterable[Mapping[str, Any]], result: VideoPlan
) -> dict[str, Any]:
    """Build the record of a result.

    Args:
        source: The plan of the source.
        making: From ``describe_making``.
        notes: From ``build_note``, of each segment in order.
        result: The plan of the result, with the times that its file gets.

    Returns:
        The record, fit for JSON.
    """
    info = result.info
    parts = [
        {"source_frames": [part.start, part.stop], **note} for part, note in zip(source.segments, notes, strict=True)
    ]
    count = sum(int(part["frames"]) for part in parts)
    steps = (after - before for before, after in pairwise(result.pts[:count]))
    return {
        "format": RECORD_FORMAT,
        "source": describe_source(source),
        **making,
        "result": {
            "frames": count,
            "time_base": str(info.time_base),
            "first_pts": result.pts[0],
            "steps": [[len(list(group)), step] for step, group in groupby(steps)],
            "colour": [info.colour.matrix, info.colour.range, info.colour.primaries, info.colour.transfer],
            "rotation": info.rotation % 360,
        },
        "segments": parts,
    }


def expand_times(result: Mapping[str, Any]) -> list[Fraction]:
    """Return the times that a record says.

    Args:
        result: The field ``result`` of the record.

    Returns:
        Seconds of each frame.
    """
    unit = Fraction(result["time_base"])
    pts = [int(result["first_pts"])]
    for count, step in result["steps"]:
        pts += [pts[-1] + step * number for number in range(1, count + 1)]
    return [time * unit for time in pts]


def find_late(
    times: Sequence[Fraction], planned: Sequence[Fraction], unit: Fraction
) -> list[tuple[int, Fraction, Fraction]]:
    """Find frames that are shown at another time than planned, counted from the first one.

    Matroska moves all tracks if one begins before zero, as AAC does, so only distances are compared.

    Args:
        times: Seconds of each frame.
        planned: What is wanted, of as many frames.
        unit: The unit in seconds to which a container rounds times.

    Returns:
        Index, time and planned time, in seconds after the first frame, of each frame that is off by more than a unit.
    """
    return [
        (index, time - times[0], wanted - planned[0])
        for index, (time, wanted) in enumerate(zip(times, planned, strict=True))
        if abs((time - times[0]) - (wanted - planned[0])) > unit
    ]


def write_record(record: Mapping[str, Any], path: Path) -> str:
    """Write a record.

    Args:
        record: From ``build_record``.
        path: The file.

    Returns:
        sha256 of the file, hexadecimal.

    Raises:
        OSError: If it cannot be written.
    """
    content = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def options_of(record: Mapping[str, Any], *, is_trusted: bool = True) -> EnhanceOptions:
    """Return the options that a record says, with the runtime and number format that were really used.

    Args:
        record: A record.
        is_trusted: Whether its own options may go to the encoder.

    Returns:
        The options, params in each model's own unit.

    Raises:
        VideoError: If it has an option that this version does not know.
        ConfigError: If an option has a wrong value, or the encoder's options are not trusted.
    """
    try:
        if strange := sorted(set(record["options"]) - _RECORDED):
            raise VideoError(f"a record with the option {strange[0]!r}, which no record has", RECORD_FORMAT)
        found = {name: _from_plain(name, value) for name, value in record["options"].items()}
        found |= {"backend": record["backend"], "precision": record["precision"], "min_quality_db": None}
        found = {"deinterlace": "off"} | found  # records without this option are of versions without it
        options = EnhanceOptions(**found)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as exc:
        if isinstance(exc, GenAIRayError):
            raise
        raise VideoError(f"a record with an option of another version ({exc})", RECORD_FORMAT) from exc
    if options.encoding.options and not is_trusted:
        given = " ".join(f"{name}={value}" for name, value in options.encoding.options.items())
        do = "If you know who made it, pass --trust-encoder-options (trust_encoder_options=True)."
        raise ConfigError(f"a record that passes {given} to the encoder, whose options may name files to write", do=do)
    return options


def _to_plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, ParamPicture):
        return to_picture_text(value)
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _to_plain(item) for name, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _to_plain(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(name: str, value: Any) -> Any:
    if name == "encoding":
        return Encoding(**value)
    if name == "params":
        return {key: parse_picture_text(one) if is_picture_text(one) else one for key, one in value.items()}
    if name == "background" and value is not None:
        return Background(**value | {"colour": tuple(value["colour"])})
    if name in ("start", "end", "duration", "fps") and isinstance(value, str) and "/" in value:
        return Fraction(value)
    return tuple(value) if isinstance(value, list) else value
