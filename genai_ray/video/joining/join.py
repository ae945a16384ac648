"""Joins segments to the result: packets get their planned times, and everything else is copied from the source."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer, OutputContainer
from av.format import Flags
from av.stream import Stream
from av.video.stream import VideoStream

from genai_ray.errors import VideoError
from genai_ray.files import sync_file
from genai_ray.video.container import av_errors, open_video, read_sound_starts
from genai_ray.video.info import is_alpha_beside, main_stream, rate_of
from genai_ray.video.joining.excerpt import Excerpt, cut_chapters
from genai_ray.video.joining.metadata import TECHNICAL_KEYS, describe_lost_metadata, read_metadata
from genai_ray.video.joining.order import Order, rescale
from genai_ray.video.joining.tracks import Tracks, add_tracks
from genai_ray.video.reading.digest import name_record
from genai_ray.video.reading.plan import VideoPlan
from genai_ray.video.timecode import move_timecode

__all__ = ["count_frames", "join_segments"]

_MILLISECOND = Fraction(1, 1000)

MAX_MOVIE_SCALE = 1_000_000
"""Most units in a second of MP4's edit lists for the sake of sound: an hour still has 32 bits."""

_MAX_TIMECODE_RATE = 255
"""Most frames in a second of MP4's timecode tracks, which store the number in a byte."""

MAX_PAUSE_S = 60
"""If the first time of a source is later than this, its times are those of a clock."""

_NO_ASPECT = ("ffv1", "prores", "prores_ks", "vp9", "libvpx-vp9")
"""Codecs whose streams do not hold the pixel aspect ratio, or only for their decoder: the container must hold it, as
MP4 and MOV do."""


def count_frames(part: Path) -> int:
    """Count the frames of a finished segment.

    Args:
        part: Its file.

    Returns:
        The number of its packets.

    Raises:
        VideoError: If the file does not open.
    """
    with av_errors(part, "reading"), av.open(str(part)) as box:
        return sum(packet.size > 0 for packet in box.demux(box.streams.video[0]))


def join_segments(
    plan: VideoPlan,
    parts: Sequence[Path],
    counts: Sequence[int],
    output: Path,
    record: Callable[[VideoPlan], str] | None = None,
) -> tuple[str, ...]:
    """Write the result: the n-th frame gets the n-th planned time; other tracks are added.

    The file appears under its name only when it is whole and on disk. Two joins of the same parts give the same bytes.

    Args:
        plan: The planned video.
        parts: Files of the segments in order; those without frames are skipped.
        counts: Frames in each of them; fewer than planned only at the end of a truncated video.
        output: A file ending in one of ``SUFFIXES``; an existing one is replaced.
        record: Writes the record of the result, whose times are those of the plan that it gets; returns the record's
            hash for the file's metadata. None for a result without a record.

    Returns:
        Notes, such as the streams that the container cannot hold.

    Raises:
        VideoError: If a part does not hold its frames, parts were encoded differently, or writing fails.
    """
    partial = output.with_name(f".{output.name}.partial{output.suffix}")
    try:
        with ExitStack() as stack:
            # Pictures have no other tracks: a segment stands for a source that has none either.
            place = plan.path if plan.pictures is None else next(p for p, n in zip(parts, counts, strict=True) if n)
            source = stack.enter_context(open_video(place, any_format=plan.any_format))
            stack.enter_context(av_errors(plan.path, f"writing its result in {output.parent}"))
            sink = stack.enter_context(av.open(str(partial), "w", options=_options(source, output.suffix.lower())))
            kept = [_scan(part, count, plan) for part, count in zip(parts, counts, strict=True) if count]
            if not kept:
                raise VideoError(f"{plan.path}: no frame was enhanced")
            template = stack.enter_context(av.open(str(kept[0].path))).streams.video[0]
            late, plan = _begin_at_zero(plan, source, sink)
            moved, plan = _set_apart(plan, sink)
            video = _add_video(sink, template, kept, plan, source)
            name_record(sink.metadata, record(plan) if record is not None else "")
            tracks = add_tracks(sink, source, plan, late=late)
            if sink.format.name in ("mp4", "mov"):
                sink.options["movie_timescale"] = str(_choose_movie_scale(plan, source, tracks, late))
            excerpt = Excerpt(plan.span, source, sink, tracks.copies) if plan.span is not None else None
            chapters = _move_chapters(source, late) if plan.span is None else cut_chapters(source, plan.span)
            sink.set_chapters(_slow_down(chapters, plan.slow_motion))
            sink.start_encoding()  # now streams have the units of their container
            others = _other_packets(source, tracks, late, excerpt, plan.slow_motion)
            streams = heapq.merge(_video_packets(kept, plan, video), others, key=lambda entry: entry[0])
            order = Order(sink, tracks.streams)
            for _, packet in streams:
                order.keep(packet)
                sink.mux_one(packet)
            cut = excerpt.notes() if excerpt is not None else ()
            lacks = (note for one in tracks.made.values() for note in one.notes())
            notes = (*_describe(plan, sink, video, late), *moved, *tracks.notes, *cut, *lacks, *order.notes())
            sink.close()
            notes = (*notes, *describe_lost_metadata(source, {main_stream(source).index, *tracks.streams}, partial))
            sync_file(partial)
            partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return notes


def _options(source: InputContainer, suffix: str) -> dict[str, str]:
    options = {"fflags": "+bitexact"}
    if suffix in (".mp4", ".mov"):
        # FFmpeg writes QuickTime's own keys (com.apple.quicktime.make) only with this flag.
        flags = "+faststart" + ("+use_metadata_tags" if any(key.startswith("com.") for key in source.metadata) else "")
        options["movflags"] = flags
    return options


def _choose_movie_scale(plan: VideoPlan, source: InputContainer, tracks: Tracks, late: Fraction) -> int:
    """Choose the units in a second of edit lists: the pictures', and finer ones for sound whose edits they would round.

    These are the edits of a piece, of an encoder's delay, and of sound that begins later than the result.
    """
    scale = pictures = max(plan.info.time_base.denominator, 1000)
    stream: Any
    for stream in source.streams.audio:
        rate = stream.codec_context.sample_rate if stream.codec_context is not None else 0
        if stream.index not in tracks.streams or not rate:
            continue
        starts_s = stream.start_time * stream.time_base - late if stream.start_time is not None else Fraction(0)
        is_late = starts_s > 0 and (starts_s * pictures).denominator > 1
        is_edited = plan.span is not None or stream.index in tracks.made or is_late
        if is_edited and math.lcm(scale, rate) <= MAX_MOVIE_SCALE:
            scale = math.lcm(scale, rate)
    return scale


def _begin_at_zero(plan: VideoPlan, source: InputContainer, sink: OutputContainer) -> tuple[Fraction, VideoPlan]:
    """Let a piece and slow motion begin at zero, and a result in MP4 or MOV if the source has a clock's times.

    Returns:
        Seconds of the source's times by which all tracks move, a multiple of the video's unit; and the moved plan.
    """
    base = plan.info.time_base
    discontinuous = cast(Any, Flags.ts_discont).value
    if plan.span is not None:
        return plan.span.begin, plan
    if plan.slow_motion > 1:
        units = plan.begins_s * plan.slow_motion // base
        return units * base / plan.slow_motion, replace(plan, pts=tuple(time - units for time in plan.pts))
    starts = read_sound_starts(source)
    first = min(plan.pts[0] * base, *starts) if starts else plan.pts[0] * base
    is_clock = bool(source.format.flags & discontinuous) or first > MAX_PAUSE_S
    units = first // base if is_clock and sink.format.name in ("mp4", "mov") else 0
    return units * base, replace(plan, pts=tuple(time - units for time in plan.pts)) if units else plan


def _set_apart(plan: VideoPlan, sink: OutputContainer) -> tuple[tuple[str, ...], VideoPlan]:
    """Move frames that would share a millisecond in Matroska apart; return a note about it, and the plan."""
    times = [rescale(time, plan.info.time_base, _MILLISECOND) for time in plan.pts]
    if sink.format.name not in ("matroska", "webm") or len(set(times)) == len(times):
        return (), plan
    apart = times[:1]
    for time in times[1:]:
        apart.append(max(time, apart[-1] + 1))
    count = sum(before != after for before, after in zip(times, apart, strict=True))
    note = (
        f"{count} frames follow others by less than a millisecond, the unit of {sink.format.name}: "
        "each is shown 1 ms after the one before it"
    )
    duration = max(rescale(plan.duration, plan.info.time_base, _MILLISECOND), 1)
    return (note,), replace(plan, info=replace(plan.info, time_base=_MILLISECOND), pts=tuple(apart), duration=duration)


def _move_chapters(source: InputContainer, late: Fraction) -> Any:
    chapters: Any = source.chapters()
    for chapter in chapters if late else ():
        for end in ("start", "end"):
            chapter[end] = max(round(chapter[end] - late / chapter["time_base"]), 0)
    return chapters


def _slow_down(chapters: Any, times: int) -> Any:
    return [{**one, "start": one["start"] * times, "end": one["end"] * times} for one in chapters]


def _describe(plan: VideoPlan, sink: OutputContainer, video: Any, late: Fraction) -> Iterator[str]:
    """Say what the container cannot keep of the pictures."""
    name = sink.format.name
    is_matroska = name in ("matroska", "webm")
    if plan.info.sample_aspect_ratio != 1 and is_matroska and video.codec_context.name in _NO_ASPECT:
        ratio = plan.info.sample_aspect_ratio
        words = f"{ratio.numerator}:{ratio.denominator}"
        yield f"sample aspect ratio {words} was left out: PyAV cannot write it to Matroska"
    step = plan.info.time_base * 1000
    if is_matroska and any(pts * step.numerator % step.denominator for pts in plan.pts):
        yield f"times are rounded to whole milliseconds, the unit of {name}"
    if late and plan.span is None:
        yield f"times begin at zero; in the source they begin at {float(late):.3f} s"


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment's file, closed: only one segment is open at a time, and no packet is kept."""

    path: Path
    """The file."""
    times: tuple[int, ...]
    """Times of its packets, in decode order."""
    extradata: bytes
    """The encoder's extradata."""

    def ranks(self) -> dict[int, int]:
        """Return the position of each packet in display order, by its time."""
        return {time: rank for rank, time in enumerate(sorted(self.times))}


def _scan(path: Path, count: int, plan: VideoPlan) -> _Part:
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        times: list[Any] = [packet.pts for packet in box.demux(stream) if packet.size]
        part = _Part(path, tuple(times), bytes(stream.codec_context.extradata or b""))
    plan.check_count(len(times), count)
    return part


def _add_video(
    sink: OutputContainer, template: VideoStream, parts: Sequence[_Part], plan: VideoPlan, source: InputContainer
) -> Stream:
    extradata = {part.extradata for part in parts}
    if len(extradata) != 1:
        raise VideoError(
            f"{plan.path}: its segments were encoded in {len(extradata)} different ways",
            "one",
            "Remove the work folder.",
        )
    # A stream cannot be made from AV1's decoder libdav1d, which has no encoder of its name.
    is_opaque = template.codec_context.name == "libdav1d"
    stream = sink.add_stream_from_template(template, opaque=is_opaque)
    if not is_opaque:
        plan.info.colour.tag(stream.codec_context)  # FFV1 and NUT do not keep it
    stream.time_base = plan.info.time_base
    if is_alpha_beside(template):
        stream.metadata["alpha_mode"] = "1"
    if template.codec_context.codec.canonical_name == "hevc" and sink.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # Apple's players do not know hev1, FFmpeg's default
    if template.codec_context.codec.canonical_name == "prores" and sink.format.name == "mov":
        stream.codec_context.codec_tag = template.codec_context.codec_tag  # of the profile: ap4h has alpha, apch none
    kept = {key: value for key, value in source.metadata.items() if key not in TECHNICAL_KEYS}
    if plan.span is not None and "timecode" in kept:
        kept["timecode"] = _move_timecode(kept["timecode"], source, plan.span.begin)
    if sink.format.name in ("mp4", "mov") and "timecode" in kept:
        if plan.info.average_rate > _MAX_TIMECODE_RATE:
            del kept["timecode"]
        elif not is_opaque:
            stream.codec_context.framerate = plan.info.average_rate  # of the track that is made of it
    sink.metadata.update(kept)
    if plan.info.rotation:
        stream.set_display_rotation(plan.info.rotation)
    original = main_stream(source)
    stream.metadata.update(
        {key: value for key, value in read_metadata(original).items() if key in ("language", "title")}
    )
    stream.disposition = original.disposition
    return stream


def _move_timecode(text: str, source: InputContainer, begin: Fraction) -> str:
    """Return the timecode of a piece's first frame, from that of the file's."""
    original = main_stream(source)
    rate = rate_of(original)
    first = Fraction(original.start_time or 0) * Fraction(original.time_base or 1)
    return move_timecode(text, round((begin - first) * rate), rate) or text


def _video_packets(parts: Sequence[_Part], plan: VideoPlan, stream: Stream) -> Iterator[tuple[float, Any]]:
    """Give every packet its planned time, and an ascending decode time that is never later.

    The dts of packet k is the pts of frame k - d; d is the reorder depth. Before the first frame, decode times continue
    backwards in steps of the first frame's duration.
    """
    depth = max(_reorder_depth(part) for part in parts)
    pts = plan.pts
    base = plan.info.time_base
    done = 0
    step = max(pts[1] - pts[0], 1) if len(pts) > 1 else 1
    packet: Any
    for part in parts:
        ranks = part.ranks()
        with av.open(str(part.path)) as box:
            for position, packet in enumerate(packet for packet in box.demux(box.streams.video[0]) if packet.size):
                index = done + ranks[packet.pts]
                order = done + position - depth
                packet.stream = stream
                packet.time_base = base
                packet.pts = pts[index]
                packet.dts = pts[order] if order >= 0 else pts[0] + order * step
                packet.duration = pts[index + 1] - pts[index] if index + 1 < len(pts) else plan.duration
                yield float(packet.dts * base), packet
        done += len(part.times)


def _reorder_depth(part: _Part) -> int:
    """Return by how many positions a packet of a segment precedes its position in display order, at most."""
    ranks = part.ranks()
    return max(position - ranks[time] for position, time in enumerate(part.times))


def _other_packets(
    source: InputContainer, tracks: Tracks, late: Fraction, excerpt: Excerpt | None, times: int
) -> Iterator[tuple[float, Any]]:
    """Give the packets of all tracks beside the pictures; those that are copied are shown so many times as long."""
    streams = tracks.streams
    if not streams:
        return
    latest = float("-inf")

    def in_time(packets: Iterable[Any]) -> Iterator[tuple[float, Any]]:
        nonlocal latest
        for packet in packets:
            time: Any = packet.dts if packet.dts is not None else packet.pts
            latest = max(latest, float(time * packet.time_base)) if time is not None else latest
            yield latest, packet

    for packet in source.demux([source.streams[index] for index in streams]):
        if packet.size == 0:
            continue
        if packet.stream_index in tracks.made:
            yield from in_time(tracks.made[packet.stream_index].feed(packet))
        elif excerpt is not None:
            yield from in_time(_stretched(excerpt.cut(packet), times))
        else:
            yield from in_time(_stretched([_move(packet, streams[packet.stream_index], late)], times))
    if excerpt is not None:
        yield from in_time(_stretched(excerpt.finish(), times))
    for ending in tracks.made.values():
        yield from in_time(ending.finish())


def _stretched(packets: list[Any], times: int) -> list[Any]:
    """Multiply the times of copied packets."""
    for packet in packets if times > 1 else ():
        packet.pts, packet.dts = (None if time is None else time * times for time in (packet.pts, packet.dts))
        packet.duration = (packet.duration or 0) * times
    return packets


def _move(packet: Any, stream: Stream, late: Fraction) -> Any:
    """Move a copied packet to its stream of the result."""
    if late:
        units = round(late / packet.time_base)
        packet.pts, packet.dts = (None if time is None else time - units for time in (packet.pts, packet.dts))
    packet.stream = stream
    return packet
