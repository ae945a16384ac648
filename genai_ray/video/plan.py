"""The plan of a video, from one pass over its packets: exact times, identity, segments."""

from __future__ import annotations

import bisect
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
from genai_ray.video.container import open_video
from genai_ray.video.ends import is_whole
from genai_ray.video.info import VideoInfo, describe_video, main_stream
from genai_ray.video.shown import Decoded, Kind, PacketReader, decode_times

__all__ = ["Segment", "VideoPlan", "plan_video"]

END_TOLERANCE_S = 1.0
"""A container that promises more than this beyond its last packet has lost its end."""

_MAX_DENOMINATOR = 2**31 - 1
"""Of a time base: containers have 32 bits for it."""

_TRANSPORT_PACKET_BYTES = (188, 192, 204)


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open range of frames in display order."""

    index: int
    """Position in the plan."""
    start: int
    """First frame."""
    stop: int
    """One past the last frame."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Every frame of a video before any is decoded."""

    path: str
    """The file: path or URI."""
    info: VideoInfo
    """The stream."""
    pts: tuple[int, ...]
    """Presentation times in display order, in ``info.time_base`` units."""
    duration: int
    """Of the last frame, in ``info.time_base`` units."""
    keys: tuple[int, ...]
    """Display positions of the key frames that decoding may start at."""
    is_counted: bool
    """Whether frames get their times by counting, since the file keeps them in decode order (AVI with B-frames)."""
    content_hash: str
    """sha256 over packets and times: the identity of the input."""
    decoded_pts: tuple[int, ...]
    """Times as the decoder gives them: ``pts``, unless frames share a time; in the stream's own units then."""
    skipped: int
    """Frames at the start that do not decode, since what they refer to is not in the file; they are not among ``pts``."""
    num_frames_from_header: int | None
    """Frames that the container's own index promises; None where it has none."""
    truncated: str | None
    """Why the file is believed to end too early; None where it is whole."""
    segments: tuple[Segment, ...]
    """Ranges that together are the video."""
    any_format: bool = False
    """Whether the file may name others, such as a playlist."""


@dataclass(slots=True)
class _Packets:
    """What one pass over the packets of a file finds."""

    times: list[tuple[int, int, bool]] = field(default_factory=list)
    """Presentation time, duration and whether it is a key frame, in the order of decoding; none that an edit list hides."""
    discarded: int = 0
    """Packets that an edit list hides."""
    parts: int = 0
    """Packets that are no frames of their own: second fields and hidden pictures."""
    last_s: float = 0.0
    """End of the last packet of any stream."""
    is_cut: bool = False
    """Whether the last packet is damaged."""
    is_telling: bool = True
    """Whether each of ``times`` surely is one frame, and key frames come in the order in which they are shown."""
    digest: str = ""
    """sha256 over packets and times."""

    @property
    def count(self) -> int:
        return len(self.times) + self.discarded + self.parts


@dataclass(frozen=True, slots=True)
class _Shown:
    """The frames that a decoder shows, in display order."""

    times: tuple[int, ...]
    """Their times."""
    keys: tuple[int, ...]
    """Positions of key frames."""
    duration: int
    """Of the last one."""
    is_counted: bool
    """Whether frames get their times by counting."""


def plan_video(path: str | Path, *, segment_frames: int = 128, any_format: bool = False) -> VideoPlan:
    """Plan a video; the plan follows from the file and the options alone.

    Its packets are read without decoding. Where they do not tell what a decoder shows, the file is decoded once.

    Args:
        path: Path or URI of the file.
        segment_frames: Most frames in a segment, where key frames allow it.
        any_format: Whether the file may name other files and hosts, as playlists do; they are opened then.

    Returns:
        The plan.

    Raises:
        VideoError: If the file is missing, not a video, has no frames or no times, or its times go back.
    """
    path = str(path)
    with open_video(path, any_format=any_format) as container:
        stream = main_stream(container)
        packets = _read_packets(path, container, stream)
        info, first = describe_video(path, any_format=any_format)
        # AVI has no presentation times: what the demuxer makes up is right in number and wrong in order where frames are reordered.
        is_avi = container.format.name == "avi"
        shown = _trust_packets(packets, first, is_counted=is_avi and stream.codec_context.has_b_frames)
        if not packets.is_telling or len(set(shown.times)) != len(shown.times):
            decoded = decode_times(path, any_format=any_format)
            shown = _follow_decoder(path, packets, shown, decoded, is_avi=is_avi, unit_s=info.time_base)
        whole = _count_all(path, packets, stream, container)
        promised = _count_promised(container, stream, whole, shown.times[-1])
        is_cut = packets.is_cut or (container.format.name == "mpegts" and _ends_within_packet(path))
        starts = (
            0 if container.format.name.startswith("matroska") else max(container.start_time or 0, 0)
        )  # Matroska's duration is its end
        ends_s = None if container.duration is None else (container.duration + starts) / av.time_base
        if ends_s is not None and ends_s - packets.last_s > END_TOLERANCE_S and is_whole(path, container.format.name):
            ends_s = None  # the header is wrong
    pts, keys, duration = shown.times, shown.keys, max(shown.duration, 1)
    occurrences = Counter(pts)
    if (most := max(occurrences.values())) > 1:
        info = replace(info, time_base=_divide(path, info.time_base, most))
        pts, duration = _set_apart(pts, most), duration * most
        # A seek goes by the time: what else has it would be taken for the key frame, or be missed.
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
        skipped=sum(time < shown.times[0] for time, _, _ in packets.times),
        num_frames_from_header=promised - (whole - len(pts)) if promised is not None else None,
        truncated=_find_cut(whole, promised, is_cut, packets.last_s, ends_s),
        segments=_cut(len(pts), keys, segment_frames),
        any_format=any_format,
    )


def _read_packets(path: str, container: InputContainer, stream: VideoStream) -> _Packets:
    found, digest, reader, latest = _Packets(), hashlib.sha256(), PacketReader(stream), None
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            found.last_s = max(found.last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        found.is_cut = bool(packet.is_corrupt)
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            raise VideoError(
                f"{path}: packet {len(found.times)} has no time", do="Remux it first, for instance into .mkv."
            )
        data = bytes(packet)
        kind = reader.read(data)
        if packet.is_discard:  # outside what an edit list says: no player shows it
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
        raise VideoError(f"{path}: no frames")
    found.digest = digest.hexdigest()
    return found


def _trust_packets(packets: _Packets, first: int | None, *, is_counted: bool) -> _Shown:
    """Take each packet for a frame, but those at the start that do not decode."""
    times, (begins, _, begins_with_key) = packets.times, packets.times[0]
    leading = {entry[0] for entry in takewhile(lambda entry: entry[0] < begins, times[1:])}
    times = sorted(times, key=lambda entry: entry[0])
    # A recording begins between two key frames, or a cut was made before an open group of pictures: what is shown before the
    # first key frame refers to what is gone, and does not decode.
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
    """Count what a decoder shows; ``trusted``, where that is just what the packets say."""
    times = [time for time in decoded.shown if time is not None]
    is_ordered = len(times) == len(decoded.shown) and all(before <= after for before, after in pairwise(times))
    if is_ordered:
        times = sorted(
            [*times, *decoded.failed]
        )  # a damaged frame is planned all the same, and found when it is its turn
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
            f"{path}: times go back from {before_s:.3f} s to {after_s:.3f} s at frame {back + 1}, as if it were several recordings",
            "times that rise",
            f"Put them in order first: ffmpeg -i {path} -c copy ordered.mkv",
        )
    if not times:
        raise VideoError(f"{path}: no frame of it decodes")
    places = {time: index for index, time in enumerate(times)}
    keys = sorted({places[time] for time, _, is_key in packets.times if is_key and time in places})
    ends = max((time + duration for time, duration, _ in packets.times if duration), default=times[-1])
    duration = ends - times[-1] if ends > times[-1] else times[-1] - times[-2] if len(times) > 1 else 1
    return _Shown(tuple(times), tuple(keys) if is_ordered else (0,), duration, not is_ordered)


def _count_times(brought: Sequence[int | None], slots: Sequence[int]) -> list[int]:
    """Give frames without presentation times those of the packets that brought them out; the end brings the last ones."""
    times = [time for time in brought if time is not None]
    left = len(brought) - len(times)
    later = [slot for slot in slots if not times or slot > times[-1]]
    return [*times, *later[:left], *range(slots[-1] + 1, slots[-1] + 1 + left - len(later[:left]))]


def _divide(path: str, time_base: Fraction, parts: int) -> Fraction:
    """Make units so small that all frames of one time come before those of the next."""
    if time_base.denominator * parts > _MAX_DENOMINATOR:
        do = f"Give them times first: ffmpeg -i {path} -vf setpts=N/25/TB timed.mkv"
        raise VideoError(
            f"{path}: {parts} frames share one time", f"up to {_MAX_DENOMINATOR // time_base.denominator}", do
        )
    return time_base / parts


def _set_apart(times: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Set frames of one time apart, each by one unit after the one before it, in units of which a time has so many."""
    apart = [time * parts for time in times]
    for index in range(1, len(apart)):
        apart[index] = max(apart[index], apart[index - 1] + 1)
    return tuple(apart)


def _count_all(path: str, packets: _Packets, stream: VideoStream, container: InputContainer) -> int:
    """Count the packets that are there, those that an edit list leaves out with the others."""
    if packets.count >= (stream.frames or 0) or not container.format.name.startswith("mov,"):
        return packets.count
    with open_video(path, options={"ignore_editlist": "1"}) as plain:
        return sum(packet.size > 0 for packet in plain.demux(plain.streams[stream.index]))


def _count_promised(container: InputContainer, stream: VideoStream, count: int, last: int) -> int | None:
    """Return how many frames the container's own index promises.

    AVI counts empty chunks as well, which stand for a frame that is shown on and are no packets: there the last time tells whether all are there.
    """
    if container.format.name == "avi" and last + 1 >= stream.frames:
        return count
    return stream.frames or None


def _find_cut(count: int, promised: int | None, corrupt: bool, last_s: float, ends_s: float | None) -> str | None:
    if promised is not None and count < promised:
        return f"{count} of {promised} frames are there"
    if corrupt:
        return f"the last of {count} frames is cut off"
    if ends_s is not None and ends_s - last_s > END_TOLERANCE_S:
        return f"{count} frames end at {last_s:.2f} s of {ends_s:.2f} s"
    return None


def _ends_within_packet(path: str) -> bool:
    """Tell whether a transport stream ends in the middle of one of its packets, the only cut that shows in a file without an index."""
    facts = find_facts(path)
    return facts is not None and facts.size > 0 and all(facts.size % size for size in _TRANSPORT_PACKET_BYTES)


def _cut(count: int, keys: tuple[int, ...], most: int) -> tuple[Segment, ...]:
    """Cut evenly, at a key frame where one is near; fewer cuts where more would be decoded to be dropped than there are frames."""
    number = -(-count // most)
    while True:
        cuts = [0]
        for index in range(1, number):
            wanted, slack = round(count * index / number), max(count // number // 4, 1)
            near = keys[bisect.bisect_left(keys, wanted - slack) : bisect.bisect_right(keys, wanted)]
            cut = near[-1] if near else wanted
            if cut > cuts[-1]:
                cuts.append(cut)
        dropped = sum(cut - keys[max(bisect.bisect_right(keys, cut) - 1, 0)] for cut in cuts) if keys else 0
        if number == 1 or dropped <= count:
            break
        number -= 1
    return tuple(
        Segment(index, start, stop) for index, (start, stop) in enumerate(zip(cuts, [*cuts[1:], count], strict=True))
    )
