"""How many bytes of a result there are for pictures: what the rest takes, and what each segment needs of it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from genai_ray.files import temporary_folder
from genai_ray.video.codecs import CODECS
from genai_ray.video.colour import resample
from genai_ray.video.container import open_video
from genai_ray.video.encoding.bounded import measure_part, read_sizes
from genai_ray.video.encoding.encode import SegmentWriter
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import main_stream
from genai_ray.video.joining.join import join_segments
from genai_ray.video.reading.plan import VideoPlan
from genai_ray.video.source import decode_source

__all__ = ["measure_least", "measure_rest", "weigh_segments"]

_SIDE = 64
"""Width and height of the pictures with which a result is tried."""

_FRAME_BYTES = 3
"""Bytes by which a larger packet may take more room in a container than the small one of the trial."""

_RECORD_BYTES = 400
"""Room for the words that name a record, and for what changes with the size of a file."""

_SAMPLES = 3
_SAMPLE_FRAMES = 8
"""Segments, and frames of each of them, that are encoded to find the smallest size."""

_LEAST_MARGIN = 1.15
"""What the smallest size is enlarged by: a model's pictures need more bits than enlarged ones."""


def weigh_segments(plan: VideoPlan) -> tuple[int, ...]:
    """Add up the packets of the pictures of each segment of a source, by their times.

    Args:
        plan: The source.

    Returns:
        Bytes for each segment; of pictures their numbers, which stand for bytes.

    Raises:
        VideoError: If the file does not open.
    """
    if plan.pictures is not None:
        return tuple(segment.stop - segment.start for segment in plan.segments)
    # Frames that are made of stored ones have other times, also in other units.
    times = (plan.stored or plan).decoded_pts
    stored_at = plan.deinterlacing.stored_at if plan.deinterlacing is not None else int
    starts = [times[stored_at(segment.start)] for segment in plan.segments]
    weights = [0] * len(starts)
    after = max(stored_at(plan.stop), stored_at(plan.stop - 1) + 1)
    stop = times[after] if plan.stop < len(plan.pts) and after < len(times) else None
    with open_video(plan.path, any_format=plan.any_format) as container:
        for packet in container.demux(main_stream(container)):
            time = packet.pts if packet.pts is not None else packet.dts
            if packet.size and time is not None and time >= starts[0] and (stop is None or time < stop):
                weights[bisect.bisect_right(starts, time) - 1] += packet.size
    return tuple(weights)


def measure_rest(plan: VideoPlan, encoding: Encoding, suffix: str) -> int:
    """Measure what a result takes beside its pictures, by writing it with tiny ones.

    So sound is encoded and subtitles are converted as they will be, and the container writes its tables.

    Args:
        plan: The planned result.
        encoding: The settings.
        suffix: Suffix of the output, lower case, with its dot.

    Returns:
        Bytes, with some to spare.

    Raises:
        ConfigError: As ``join_segments``.
        VideoError: As ``join_segments``.
    """
    counts = [segment.stop - segment.start for segment in plan.segments]
    with temporary_folder("budget") as folder:
        parts = {count: _write_tiny(folder / f"{count}.nut", plan, encoding, count) for count in set(counts)}
        taken = {count: measure_part(part) for count, part in parts.items() if count}
        result = folder / f"result{suffix}"
        join_segments(plan, [parts[count] for count in counts], counts, result)
        pictures = sum(taken.get(count, 0) for count in counts)
        return max(result.stat().st_size - pictures, 0) + _FRAME_BYTES * sum(counts) + _RECORD_BYTES


def _write_tiny(path: Path, plan: VideoPlan, encoding: Encoding, count: int) -> Path:
    """Write a segment of tiny pictures that move."""
    if not count:
        return path
    plain = replace(encoding, crf=None, video_bitrate=None, max_size=None)
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.uint8)
    picture = np.stack([x * y, x + 2 * y, 3 * x - y], -1)
    with SegmentWriter(path, info=plan.info, size=(_SIDE, _SIDE), encoding=plain) as writer:
        for index in range(count):
            writer.write(np.ascontiguousarray(np.roll(picture, index, axis=1)), index)
    return path


def measure_least(source: VideoPlan, result: VideoPlan, size: tuple[int, int], encoding: Encoding) -> int:
    """Measure how few bytes the pictures of a result could take, on a few frames of its source.

    Args:
        source: The source.
        result: The planned result.
        size: (width, height) of its pictures.
        encoding: The settings.

    Returns:
        Bytes, with some to spare: the frames are enlarged by a filter, not by the models.

    Raises:
        VideoError: If a frame does not decode.
    """
    worst = replace(encoding, crf=CODECS[encoding.encoder].max_crf, video_bitrate=None, max_size=None)
    segments = source.segments
    chosen = sorted({len(segments) * number // _SAMPLES for number in range(_SAMPLES)})
    first_bytes = next_bytes = num_next = 0
    with temporary_folder("budget") as folder:
        for index in chosen:
            sizes = _encode_sample(folder / "sample.nut", source, index, size, worst)
            first_bytes += sum(sizes[:1])
            next_bytes += sum(sizes[1:])
            num_next += len(sizes[1:])
    num_frames = sum(segment.stop - segment.start for segment in result.segments)
    average = next_bytes / num_next if num_next else first_bytes / len(chosen)
    return round(_LEAST_MARGIN * (len(segments) * first_bytes / len(chosen) + (num_frames - len(segments)) * average))


def _encode_sample(path: Path, source: VideoPlan, index: int, size: tuple[int, int], worst: Encoding) -> Sequence[int]:
    """Encode the first frames of a segment; return the bytes of each packet."""
    segment = source.segments[index]
    segment = replace(segment, stop=min(segment.stop, segment.start + _SAMPLE_FRAMES))
    frames = decode_source(source, segment, allow_truncated=True)
    with SegmentWriter(path, info=source.info, size=size, encoding=worst) as writer:
        for frame in islice(frames, _SAMPLE_FRAMES):
            writer.write(resample(frame.frame, size), frame.pts)
    return read_sizes(path)
