"""``verify_video``: is a result what its record says, and does its source give it again?"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelSpec
from genai_ray.display import describe_fields, to_html
from genai_ray.enhance.job.recompute import Recomputation, find_specs
from genai_ray.enhance.job.records import RECORD_FORMAT, expand_times, find_late, options_of
from genai_ray.enhance.plan.clip_target import RECORD_SUFFIX
from genai_ray.enhance.plan.options import Paths
from genai_ray.errors import ConfigError, GenAIRayError, VideoError
from genai_ray.files import find_facts, open_to_read, to_place
from genai_ray.video import VideoPlan, digest_ranges, plan_video, read_record_name

__all__ = ["VerifyReport", "count_sampled", "miss_rate", "verify_video"]

MOST_NAMED = 3
"""Segments that a sentence names one by one."""

_SHARES = (0.01, 0.1)
"""Shares of wrong segments for which a report says how often a sample misses them all, beside a single one."""

_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, RecursionError)
"""What reading a record raises if it has another form."""

_DEFAULT_SAMPLE = "1%"


@describe_fields
@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify_video`` found; ``to_dict`` is what ``--json`` prints."""

    output: str
    """Path or URI of the result."""
    record: str
    """Path or URI of its record."""
    failures: tuple[str, ...]
    """One sentence for everything that differs; empty if nothing does."""
    frames: int
    """Frames of the result, by its record."""
    segments: int
    """Segments of the result, by its record."""
    sampled: tuple[int, ...] = ()
    """Segments that were computed again from the source; empty without a source."""
    seed: int | None = None
    """What chose them; None without a source."""
    is_exact: bool = False
    """Whether their frames had to be equal: versions, runtime, number format and kind of node are those of the
    record."""
    inexact_because: str = ""
    """What differs, if frames needed only to be alike; ``tolerance_db`` is the limit then."""
    tolerance_db: float | None = None
    """Least PSNR in dB of a frame from the one that was computed again; None if frames had to be equal."""
    lowest_db: float | None = None
    """Lowest PSNR of any frame from the one that was computed again; ``inf`` if all are equal, None without a
    source."""
    miss_rates: tuple[tuple[int, float], ...] = field(default=())
    """Pairs: if so many segments had been computed wrongly, this is the probability that the sample has none of
    them. Empty if frames needed only to be alike: a wrong segment of the sample might agree by as much."""

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.failures

    def __repr__(self) -> str:
        found = self.describe()
        return f"VerifyReport({self.output}: {found}; {len(self.sampled)} of {self.segments} segments computed again)"

    def describe(self) -> str:
        """Say the result in a few words.

        Returns:
            What differs first, or that the video is as its record says, and how well that is known.
        """
        if not self.passed:
            return self.failures[0]
        if self.sampled and not self.is_exact:
            return f"as its record says; computed again it agrees by {self.tolerance_db:g} dB, which proves no model"
        return "as its record says"

    def _repr_html_(self) -> str:
        return to_html(repr(self), [("failure", text) for text in self.failures])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON.

        Returns:
            The fields by name, and ``passed``; the text ``inf`` for an infinite number.
        """
        lowest = self.lowest_db
        return asdict(self) | {
            "passed": self.passed,
            "lowest_db": "inf" if lowest is not None and math.isinf(lowest) else lowest,
        }


def verify_video(
    output: str | Path,
    source: str | Path | None = None,
    *,
    sample: str | None = None,
    seed: int | None = None,
    models: Paths = (),
    address: str | None = None,
    trust_encoder_options: bool = False,
) -> VerifyReport:
    """Check that a result of ``check="strict"`` is what its record says; with its source, compute some of it again.

    The record must be the one that the file names; every frame must decode to the record's hashes, at the record's
    times, counted from the first frame. Of the source's segments, a random sample is computed again on Ray.

    Args:
        output: Path or URI of the result; its record lies beside it.
        source: Path or URI of the source; None to compute nothing again.
        sample: How many segments are computed again: a share such as ``"1%"``, at least one, or a number; None for
            1 %.
        seed: Chooses them; None for a random one, which the report names.
        models: Paths of .onnx files, for models of the record that are not of the catalog.
        address: Ray cluster to join; None for a running one, or else one of this process alone.
        trust_encoder_options: Pass the record's own options to the encoder; some of them name files that it writes.

    Returns:
        What differs, if anything does.

    Raises:
        ConfigError: If the sample is no share or number, one of the options above is given without a source, a model of
            the record is a file that was not given, or the record's encoder options are not trusted.
        ModelNotFoundError: If a model of the record is not known here.
        VideoError: If a file is missing or is not a video, or the record cannot be read.
        GenAIRayError: What a session raises.
    """
    place = to_place(output)
    given = {"sample": sample, "seed": seed, "models": models, "address": address}
    unused = [name for name, value in given.items() if value not in (None, (), [])]
    if source is None and unused:
        do = "Pass --source FILE (source=...): without it nothing is computed again."
        raise ConfigError(f"{' and '.join(unused)} without a source", do=do)
    sample = _DEFAULT_SAMPLE if sample is None else sample
    count_sampled(sample, 1)  # raises
    content = _read(place + RECORD_SUFFIX, place)
    failures = _check_name(place, content)
    record = _parse(content, place + RECORD_SUFFIX)
    parts: Sequence[Mapping[str, Any]] = record["segments"]
    counts = [part["frames"] for part in parts]
    plan = plan_video(place)
    failures += _check_pictures(plan, record["result"])
    if len(plan.pts) == sum(counts):
        failures += _check_frames(plan, parts, counts)
    if source is None:
        return VerifyReport(place, place + RECORD_SUFFIX, tuple(failures), sum(counts), len(parts))
    options = options_of(record, is_trusted=trust_encoder_options)
    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = sorted(random.Random(seed).sample(range(len(parts)), count_sampled(sample, len(parts))))
    specs = find_specs(record, models)
    wrong = _check_models(specs, record)
    again = None
    if not wrong:
        options = replace(options, address=address)
        again = Recomputation(record, plan, to_place(source), options).run(chosen, specs)
    done = again.indices if again is not None else ()
    is_exact = again is not None and not again.inexact_because
    return VerifyReport(
        place,
        place + RECORD_SUFFIX,
        (*failures, *wrong, *(again.failures if again is not None else ())),
        sum(counts),
        len(parts),
        sampled=done,
        seed=seed,
        is_exact=is_exact,
        inexact_because=again.inexact_because if again is not None else "",
        tolerance_db=again.tolerance_db if again is not None else None,
        lowest_db=again.lowest_db if again is not None else None,
        miss_rates=_list_miss_rates(len(parts), len(done)) if done and is_exact else (),
    )


def count_sampled(sample: str, segments: int) -> int:
    """Return how many segments a sample has.

    Args:
        sample: A share such as ``1%``, or a number.
        segments: Segments of the result, one or more.

    Returns:
        From 1 to ``segments``; a share is rounded up.

    Raises:
        ConfigError: If it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", sample.strip())
    number = float(match[1]) if match is not None else 0.0
    is_share = match is not None and bool(match[2])
    if match is None or number <= 0 or (is_share and number > 100) or not (is_share or number.is_integer()):
        raise ConfigError(
            f"sample {sample!r}", "a share such as 1%, above 0 % and up to 100 %, or a number of segments"
        )
    # A share of 7 % of 100 is 7.000000000000001 in binary numbers.
    return min(segments, max(1, math.ceil(round(number * segments / 100, 9)) if is_share else int(number)))


def miss_rate(segments: int, wrong: int, sampled: int) -> float:
    """Return the probability that a random sample has none of the wrong segments.

    It is hypergeometric: ``C(N - F, n) / C(N, n)``.

    Args:
        segments: N, segments of the result.
        wrong: F, of these those that are wrong.
        sampled: n, of these those that are computed again.

    Returns:
        From 0 to 1.
    """
    return math.comb(segments - wrong, sampled) / math.comb(segments, sampled)


def _list_miss_rates(segments: int, sampled: int) -> tuple[tuple[int, float], ...]:
    wrong = dict.fromkeys((1, *(math.ceil(share * segments) for share in _SHARES)))
    return tuple((count, miss_rate(segments, count, sampled)) for count in wrong)


def _read(place: str, output: str) -> bytes:
    if find_facts(output) is None:
        raise VideoError(f"{output}: no such file", "a video")
    if find_facts(place) is None:
        do = "Only --check strict (check='strict') writes one; it must lie beside the video."
        raise VideoError(f"{output} has no record: no file {place}", do=do)
    with open_to_read(place) as file:
        return file.read()


def _parse(content: bytes, place: str) -> Mapping[str, Any]:
    """Read a record whose numbers agree with each other."""
    try:
        record = json.loads(content)
        if record["format"] != RECORD_FORMAT:
            raise VideoError(f"{place}: a record of format {record['format']!r}", RECORD_FORMAT)
        counts = [part["frames"] for part in record["segments"]]
        frames = record["result"]["frames"]
        steps = record["result"]["steps"]
        kinds = {type(number) for number in (*counts, frames, *(number for step in steps for number in step))}
        if kinds != {int} or min(counts) < 0 or sum(counts) != frames:
            raise ValueError(f"{len(counts)} segments of {counts[:MOST_NAMED]} frames for a result of {frames}")
        if min((count for count, _ in steps), default=1) < 1 or 1 + sum(count for count, _ in steps) != frames:
            raise ValueError(f"its times are not those of {frames} frames")
        for part in record["segments"]:
            _ = (str(part["frames_sha256"]), [int(number) for number in part["source_frames"]], part["measured"])
            _ = sorted(part["processors"])
        for known in record["models"]:
            _ = (str(known["model"]), str(known["sha256"]))
        for name in ("source", "options", "backend", "precision", "versions"):
            _ = record[name]
        expand_times(record["result"])
        _ = (record["source"]["packets_sha256"], record["result"]["colour"][3], record["result"]["rotation"])
    except _BROKEN as exc:
        if isinstance(exc, GenAIRayError):
            raise
        raise VideoError(f"{place}: not a whole record ({type(exc).__name__}: {exc})") from exc
    return dict(record)


def _check_name(output: str, content: bytes) -> list[str]:
    """Check that a file names this record."""
    named = read_record_name(output)
    digest = hashlib.sha256(content).hexdigest()
    if not named:
        return ["the file names no record in its metadata"]
    if named != digest:
        return [f"the file names the record sha256:{named}, but the record beside it is sha256:{digest}"]
    return []


def _check_pictures(plan: VideoPlan, wanted: Mapping[str, Any]) -> list[str]:
    """Check number, times, colour tags and rotation of the frames."""
    failures = []
    colour = plan.info.colour
    tags = [colour.matrix, colour.range, colour.primaries, colour.transfer]
    if tags != wanted["colour"]:
        failures.append(
            f"its colour tags (matrix, range, primaries, transfer) are {tags}; the record says {wanted['colour']}"
        )
    if plan.info.rotation % 360 != wanted["rotation"]:
        failures.append(
            f"players rotate it by {plan.info.rotation % 360} degrees; the record says {wanted['rotation']}"
        )
    if plan.truncated:
        failures.append(f"it ends too early: {plan.truncated}")
    if len(plan.pts) != wanted["frames"]:
        return [*failures, f"it has {len(plan.pts)} frames; the record says {wanted['frames']}"]
    late = find_late([time * plan.info.time_base for time in plan.pts], expand_times(wanted), plan.info.time_base)
    if late:
        index, time, planned = late[0]
        others = f", and {len(late) - 1} more frames are shown at other times" if len(late) > 1 else ""
        failures.append(
            f"frame {index} is shown {float(time):.3f} s after the first one; the record says "
            f"{float(planned):.3f} s{others}"
        )
    return failures


def _check_frames(plan: VideoPlan, parts: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> list[str]:
    """Check that every segment decodes to the frames of the record."""
    wrong: list[int] = []
    index = 0
    try:
        for part, digest in zip(parts, digest_ranges(plan, counts), strict=True):
            if digest != part["frames_sha256"]:
                wrong.append(index)
            index += 1
    except VideoError as exc:
        return [f"segment {index} does not decode: {exc.got}"]
    if not wrong:
        return []
    first = sum(counts[: wrong[0]])
    at_s = float(plan.pts[first] * plan.info.time_base)
    named = ", ".join(map(str, wrong[:MOST_NAMED])) + (", ..." if len(wrong) > MOST_NAMED else "")
    words = f"{len(wrong)} of {len(counts)} segments have other frames than the record says: {named}"
    return [f"{words}; the first one begins with frame {first} at {at_s:.3f} s"]


def _check_models(specs: Sequence[tuple[ModelSpec, str]], record: Mapping[str, Any]) -> list[str]:
    return [
        f"nothing was computed again: model {known['model']} is sha256:{digest} here, and sha256:{known['sha256']} in "
        "the record"
        for (_, digest), known in zip(specs, record["models"], strict=True)
        if digest != known["sha256"]
    ]
