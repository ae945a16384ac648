"""The plan of a video, from one pass over its packets: exact times, identity, segments."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from genai_ray.errors import VideoError
from genai_ray.files import find_facts
from genai_ray.video.container import open_video, read_sound_starts
from genai_ray.video.info import VideoInfo, describe_video, main_stream
from genai_ray.video.reading.deinterlace import Deinterlacing
from genai_ray.video.reading.packets import Decoded, Kind, PacketReader, decode_times
from genai_ray.video.reading.ranges import Segment, Span, cut_segments
from genai_ray.video.reading.truncation import is_whole
from genai_ray.video.track_options import TrackOptions

__all__ = ["PictureSource", "VideoPlan", "plan_video"]

END_TOLERANCE_S = 1.0
"""If a container's duration exceeds its last packet by more than this, its end is missing."""

_MAX_DENOMINATOR = 2**31 - 1
"""Largest denominator of a time base: containers store it in 32 bits."""

_TRANSPORT_PACKET_BYTES = (188, 192, 204)


@dataclass(frozen=True, slots=True)
class PictureSource:
    """What a source of pictures has beside its frames."""

    files: tuple[str, ...]
    """The file of each picture; of an animation its one file."""
    format: str = ""
    """``png``, ``jpeg``, ``webp`` or ``gif``; empty for a video."""
    icc_profile: bytes | None = None
    """Colour profile; None without one."""
    is_grey: bool = False
    """Whether results are grey."""
    is_opaque: bool = False
    """Whether it is one picture without a transparent pixel."""
    plays: int = 1
    """How often an animation is played; 0 for no end."""
    is_animation: bool = False
    """Whether all frames are in one file."""
    first_number: int = 1
    """Number of the first of numbered results: of a sequence that of its first picture."""
    losses: tuple[str, ...] = ()
    """What was converted, dropped or assumed in reading, a sentence each."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Every frame of a video, known before any is decoded."""

    path: str
    """The file: path or URI."""
    info: VideoInfo
    """The stream."""
    pts: tuple[int, ...]
    """Presentation times in display order, in ``info.time_base`` units."""
    duration: int
    """Duration of the last frame, in ``info.time_base`` units."""
    keys: tuple[int, ...]
    """Display positions of the key frames at which decoding may start."""
    is_counted: bool
    """Whether frames get their times by counting, because the file stores times in decode order (AVI with B-frames)."""
    content_hash: str
    """sha256 over packets and times: the identity of the input."""
    decoded_pts: tuple[int, ...]
    """Times from the decoder: ``pts``; in the stream's own units if several frames share a time."""
    skipped: int
    """Frames at the start that do not decode, because frames they refer to are missing; ``pts`` does not have them."""
    num_frames_from_header: int | None
    """Number of frames in the container's index; None if it has no index."""
    truncated: str | None
    """Why the file seems to end too early; None if it is whole."""
    segments: tuple[Segment, ...]
    """Ranges that together are the video, or a piece of it."""
    begins_s: Fraction
    """When the first picture or sound is shown, in seconds of the file's times: zero for a player."""
    tracks_s: tuple[tuple[int, float, float], ...]
    """Index of each other track that has packets, when its first one begins and when its last one ends, in seconds of
    the file's times."""
    any_format: bool = False
    """Whether the file may name other files, as playlists do."""
    span: Span | None = None
    """The piece that ``segments`` cover; None for the whole video."""
    tracks: TrackOptions = field(default_factory=TrackOptions)
    """What is asked of the tracks beside the pictures."""
    deinterlacing: Deinterlacing | None = None
    """How frames are made of the stored ones; None for the stored ones themselves."""
    stored: VideoPlan | None = None
    """The plan of the stored frames, if there are more or fewer of them; else None."""
    slow_motion: int = 1
    """Of a result: how many times as long as its source it is. All times of other tracks are multiplied by it."""
    pictures: PictureSource | None = None
    """What a source of pictures has beside its frames; None for a video."""

    @property
    def first(self) -> int:
        """First frame of the segments."""
        return self.segments[0].start

    @property
    def stop(self) -> int:
        """One past the last frame of the segments."""
        return self.segments[-1].stop

    @property
    def clock_s(self) -> float:
        """What a player's clock shows when the piece begins; 0 for the whole video."""
        return float(self.span.begin - self.begins_s) if self.span is not None else 0.0

    def seconds_of(self, index: int) -> float:
        """Return when a frame is shown.

        Args:
            index: Its index.

        Returns:
            Seconds of the file's times.
        """
        return float(self.pts[index] * self.info.time_base)

    def lacks_track(self, index: int) -> bool:
        """Tell whether a track ends before the piece or begins after it.

        Args:
            index: Index of the track.

        Returns:
            Whether nothing of it is in the piece; False for the whole video.
        """
        if self.span is None:
            return False
        begin_s, end_s = next(((begin_s, end_s) for track, begin_s, end_s in self.tracks_s if track == index), (0, 0))
        return end_s <= self.span.begin or begin_s >= self.span.tracks_end

    def from_zero(self) -> VideoPlan:
        """Return the plan of a result with the same frames.

        Returns:
            This plan; for a piece one whose frames and times are those of the piece, counted from zero.
        """
        if self.span is None:
            return self
        first = self.first
        pts = tuple(time - self.pts[first] for time in self.pts[first : self.stop])
        return replace(
            self,
            pts=pts,
            duration=int((self.span.end - self.span.begin) / self.info.time_base) - pts[-1],
            segments=tuple(Segment(part.index, part.start - first, part.stop - first) for part in self.segments),
        )

    def check_count(self, found: int, planned: int) -> None:
        """Check that a segment's file holds its frames.

        Args:
            found: Frames in the file.
            planned: Frames of the segment.

        Raises:
            VideoError: If the numbers differ.
        """
        if found != planned:
            raise VideoError(f"{self.path}: a segment holds {found} frames", f"{planned}", "Remove the work folder.")


@dataclass(slots=True)
class _Packets:
    """Result of one pass over the packets of a file."""

    times: list[tuple[int, int, bool]] = field(default_factory=list)
    """Presentation time, duration, and whether it is a key frame, in decode order; without frames that an edit list
    hides."""
    discarded: int = 0
    """Packets that an edit list hides."""
    parts: int = 0
    """Packets that are not frames of their own: second fields and hidden pictures."""
    timeless: int = 0
    """Packets without a time; their frames are not shown, or the file is refused."""
    last_s: float = 0.0
    """End of the last packet of any stream."""
    is_cut: bool = False
    """Whether the last packet is damaged."""
    is_telling: bool = True
    """Whether each of ``times`` is certainly one frame, and key frames are in display order."""
    digest: str = ""
    """sha256 over packets and times."""
    tracks_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Begin and end of the other tracks, by index."""

    @property
    def count(self) -> int:
        return len(self.times) + self.discarded + self.parts + self.timeless


@dataclass(frozen=True, slots=True)
class _Shown:
    """The frames that a decoder shows, in display order."""

    times: tuple[int, ...]
    """Their times."""
    keys: tuple[int, ...]
    """Positions of key frames."""
    duration: int
    """Duration of the last one."""
    is_counted: bool
    """Whether frames get their times by counting."""


def plan_video(path: str | Path, *, segment_frames: int = 128, any_format: bool = False) -> VideoPlan:
    """Plan a video; the plan depends only on the file and the options.

    The packets are read without decoding. If they do not tell which frames a decoder shows, the file is decoded once.

    Args:
        path: Path or URI of the file.
        segment_frames: Most frames in a segment, if key frames allow it.
        any_format: Whether the file may name other files and hosts, as playlists do, which are then opened.

    Returns:
        The plan.

    Raises:
        VideoError: If the file is missing or not a video, has no frames or no times, or its times go back.
    """
    path = str(path)
    with open_video(path, any_format=any_format) as container:
        stream = main_stream(container)
        packets = _read_packets(path, container, stream)
        info, first = describe_video(path, any_format=any_format)
        # AVI has no presentation times; those of the demuxer are right in number, but in wrong order with B-frames.
        is_avi = container.format.name == "avi"
        shown = _trust_packets(packets, first, is_counted=is_avi and stream.codec_context.has_b_frames)
        if not packets.is_telling or len(set(shown.times)) != len(shown.times):
            decoded = decode_times(path, any_format=any_format)
            if packets.timeless and None in decoded.shown:
                raise _no_time(path)
            shown = _follow_decoder(path, packets, shown, decoded, is_avi=is_avi, unit_s=info.time_base)
        whole = _count_all(path, packets, stream, container)
        promised = _count_promised(container, stream, whole, shown.times[-1])
        is_cut = packets.is_cut or (container.format.name == "mpegts" and _ends_within_packet(path))
        ends_s = _end_from_header(path, container, packets)
        sounds = [max(start, Fraction(0)) for start in read_sound_starts(container)]
        begins_s = min([shown.times[0] * info.time_base, *sounds])
    pts = shown.times
    keys = shown.keys
    duration = max(shown.duration, 1)
    occurrences = Counter(pts)
    if (most := max(occurrences.values())) > 1:
        info = replace(info, time_base=_divide(path, info.time_base, most))
        pts = _set_apart(pts, most)
        duration *= most
        # Seeking uses times: another frame of the same time would be taken for the key frame, or be missed.
        keys = tuple(key for key in keys if key == 0 or occurrences[shown.times[key]] == 1)
    return VideoPlan(
        path=path,
        info=info,
        pts=pts,
        decoded_pts=shown.times,
        duration=duration,
        keys=keys,
        is_counted=shown.is_counted,
        content_hash=packets.digest,
        skipped=packets.timeless + sum(time < shown.times[0] for time, _, _ in packets.times),
        num_frames_from_header=promised - (whole - len(pts)) if promised is not None else None,
        truncated=_find_cut(whole, promised, is_cut, packets.last_s, ends_s),
        segments=cut_segments(len(pts), keys, segment_frames),
        begins_s=begins_s,
        tracks_s=tuple((index, *times_s) for index, times_s in sorted(packets.tracks_s.items())),
        any_format=any_format,
    )


def _end_from_header(path: str, container: InputContainer, packets: _Packets) -> float | None:
    """Return the end in seconds that the container's header states; None without one, or if it is certainly wrong."""
    if container.duration is None:
        return None
    is_end = container.format.name.startswith("matroska")  # Matroska's duration counts from zero
    start = 0 if is_end else max(container.start_time or 0, 0)
    ends_s = (container.duration + start) / av.time_base
    if ends_s - packets.last_s > END_TOLERANCE_S and is_whole(path, container.format.name):
        return None
    return ends_s


def _read_packets(path: str, container: InputContainer, stream: VideoStream) -> _Packets:
    found = _Packets()
    digest = hashlib.sha256()
    reader = PacketReader(stream)
    latest = None
    spans: dict[int, tuple[int, int, Fraction]] = {}
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            end = packet.pts + (packet.duration or 0)
            first, last, unit = spans.get(packet.stream_index, (packet.pts, end, packet.time_base))
            spans[packet.stream_index] = min(first, packet.pts), max(last, end), unit
        if packet.stream_index != stream.index:
            continue
        found.is_cut = bool(packet.is_corrupt)
        time = packet.pts if packet.pts is not None else packet.dts
        data = bytes(packet)
        kind = reader.read(data)
        if time is None:  # of a cut open group of pictures; the decoder tells whether it shows them
            digest.update(data)
            found.timeless += 1
            found.is_telling = False
            continue
        if packet.is_discard:  # outside the edit list: no player shows it
            found.discarded += 1
            continue
        digest.update(data)
        digest.update(b"%d" % time)
        if kind is Kind.HIDDEN or (kind is Kind.SECOND_FIELD and found.times):
            found.parts += 1
            if kind is Kind.SECOND_FIELD:
                first, duration, is_key = found.times[-1]
                found.times[-1] = (first, duration + (packet.duration or 0), is_key)
            continue
        goes_back = packet.is_keyframe and latest is not None and time < latest
        found.is_telling = found.is_telling and kind is Kind.FRAME and not goes_back
        latest = time if latest is None else max(latest, time)
        found.times.append((time, packet.duration or 0, packet.is_keyframe))
    if not found.times:
        raise VideoError(f"{path}: no frames") if not found.timeless else _no_time(path)
    spans_s = {index: (float(first * unit), float(last * unit)) for index, (first, last, unit) in spans.items()}
    found.last_s = max([0.0, *(end_s for _, end_s in spans_s.values())])
    found.tracks_s = {index: span_s for index, span_s in spans_s.items() if index != stream.index}
    found.digest = digest.hexdigest()
    return found


def _no_time(path: str) -> VideoError:
    return VideoError(f"{path}: frames without a time", do="Remux the file first, for instance to .mkv.")


def _trust_packets(packets: _Packets, first: int | None, *, is_counted: bool) -> _Shown:
    """Take each packet for a frame, except those at the start that do not decode."""
    begins, _, begins_with_key = packets.times[0]
    leading = {entry[0] for entry in takewhile(lambda entry: entry[0] < begins, packets.times[1:])}
    times = sorted(packets.times, key=lambda entry: entry[0])
    # If a recording begins between two key frames, or was cut before an open group of pictures, frames before the first
    # key frame refer to missing frames, and do not decode.
    if first is not None and not begins_with_key:
        times = [entry for entry in times if entry[0] >= first]
    elif first == begins:
        times = [entry for entry in times if entry[0] not in leading]
    pts = tuple(entry[0] for entry in times)
    keys = (0,) if is_counted else tuple(index for index, entry in enumerate(times) if entry[2])
    return _Shown(pts, keys, times[-1][1] or (pts[-1] - pts[-2] if len(pts) > 1 else 1), is_counted)


def _follow_decoder(
    path: str,
    packets: _Packets,
    trusted: _Shown,
    decoded: Decoded,
    *,
    is_avi: bool,
    unit_s: Fraction,
) -> _Shown:
    """Return the frames that the decoder shows; ``trusted`` if they are those of the packets."""
    times = [time for time in decoded.shown if time is not None]
    is_ordered = len(times) == len(decoded.shown) and all(before <= after for before, after in pairwise(times))
    if is_ordered:
        times = sorted([*times, *decoded.failed])  # damaged frames are planned too; decoding a segment reports them
    if is_ordered and tuple(times) == trusted.times:
        return trusted
    if not is_ordered and is_avi:
        if len(decoded.shown) + len(decoded.failed) == len(trusted.times):
            return replace(trusted, keys=(0,), is_counted=True)
        times = _count_times(decoded.brought, sorted(time for time, _, _ in packets.times))
    elif not is_ordered:
        back = next((index for index, (before, after) in enumerate(pairwise(times)) if after < before), 0)
        before_s, after_s = (float(time * unit_s) for time in (*times, 0, 0)[back : back + 2])
        raise VideoError(
            f"{path}: times go back from {before_s:.3f} s to {after_s:.3f} s at frame {back + 1}, "
            "as if the file held several recordings",
            "ascending times",
            f"Put the frames in order first: ffmpeg -i {path} -c copy ordered.mkv",
        )
    if not times:
        raise VideoError(f"{path}: none of its frames decodes")
    places = {time: index for index, time in enumerate(times)}
    keys = sorted({places[time] for time, _, is_key in packets.times if is_key and time in places})
    ends = max((time + duration for time, duration, _ in packets.times if duration), default=times[-1])
    duration = ends - times[-1] if ends > times[-1] else times[-1] - times[-2] if len(times) > 1 else 1
    return _Shown(tuple(times), tuple(keys) if is_ordered else (0,), duration, not is_ordered)


def _count_times(brought: Sequence[int | None], slots: Sequence[int]) -> list[int]:
    """Give frames without times those of the packets that returned them, and later times to the last frames."""
    times = [time for time in brought if time is not None]
    left = len(brought) - len(times)
    later = [slot for slot in slots if not times or slot > times[-1]]
    return [*times, *later[:left], *range(slots[-1] + 1, slots[-1] + 1 + left - len(later[:left]))]


def _divide(path: str, time_base: Fraction, parts: int) -> Fraction:
    """Return a unit so small that all frames of one time fit before the next time."""
    if time_base.denominator * parts > _MAX_DENOMINATOR:
        do = f"Give frames their own times first: ffmpeg -i {path} -vf setpts=N/25/TB timed.mkv"
        raise VideoError(
            f"{path}: {parts} frames share one time", f"up to {_MAX_DENOMINATOR // time_base.denominator}", do
        )
    return time_base / parts


def _set_apart(times: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Convert times to units of 1/parts, and move frames of one time apart, by one unit each."""
    apart = [time * parts for time in times]
    for index in range(1, len(apart)):
        apart[index] = max(apart[index], apart[index - 1] + 1)
    return tuple(apart)


def _count_all(path: str, packets: _Packets, stream: VideoStream, container: InputContainer) -> int:
    """Count all packets, including those that an edit list hides."""
    if packets.count >= (stream.frames or 0) or not container.format.name.startswith("mov,"):
        return packets.count
    with open_video(path, options={"ignore_editlist": "1"}) as plain:
        return sum(packet.size > 0 for packet in plain.demux(plain.streams[stream.index]))


def _count_promised(container: InputContainer, stream: VideoStream, count: int, last: int) -> int | None:
    """Return the number of frames in the container's index.

    AVI's index also counts empty chunks, which repeat a frame and are not packets: there the last time tells whether
    all frames are in the file.
    """
    if container.format.name == "avi" and last + 1 >= stream.frames:
        return count
    return stream.frames or None


def _find_cut(count: int, promised: int | None, corrupt: bool, last_s: float, ends_s: float | None) -> str | None:
    if promised is not None and count < promised:
        return f"the file has {count} of {promised} frames"
    if corrupt:
        return f"the last of {count} frames is cut off"
    if ends_s is not None and ends_s - last_s > END_TOLERANCE_S:
        return f"{count} frames end at {last_s:.2f} s of {ends_s:.2f} s"
    return None


def _ends_within_packet(path: str) -> bool:
    """Tell whether a transport stream ends within a packet; without an index, no other truncation can be seen."""
    facts = find_facts(path)
    return facts is not None and facts.size > 0 and all(facts.size % size for size in _TRANSPORT_PACKET_BYTES)
