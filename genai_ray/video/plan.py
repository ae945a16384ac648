"""The plan of a video, from one pass over its packets without decoding: exact times, identity, segments."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from genai_ray.errors import VideoError
from genai_ray.files import find_facts
from genai_ray.video.container import open_video
from genai_ray.video.info import VideoInfo, describe_video, main_stream

__all__ = ["Segment", "VideoPlan", "plan_video"]

END_TOLERANCE_S = 1.0
"""A container that promises more than this beyond its last packet has lost its end."""

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
    skipped: int
    """Frames at the start that do not decode, since what they refer to is not in the file; they are not among ``pts``."""
    num_frames_from_header: int | None
    """Frames that the container's own index promises; None where it has none."""
    truncated: str | None
    """Why the file is believed to end too early; None where it is whole."""
    segments: tuple[Segment, ...]
    """Ranges that together are the video."""


def plan_video(path: str | Path, *, segment_frames: int = 128) -> VideoPlan:
    """Plan a video; the plan follows from the file and the options alone.

    Args:
        path: Path or URI of the file.
        segment_frames: Most frames in a segment, where key frames allow it.

    Returns:
        The plan.

    Raises:
        VideoError: If the file is missing, not a video, has no frames, or no times.
    """
    path = str(path)
    digest, last_s = hashlib.sha256(), 0.0
    times: list[tuple[int, int, bool]] = []
    with open_video(path) as container:
        stream = main_stream(container)
        corrupt, discarded = False, 0
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None and packet.time_base is not None:
                last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            corrupt = bool(packet.is_corrupt)
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:
                raise VideoError(f"{path}: packet {len(times)} has no time", do="Remux it first, for instance into .mkv.")
            if packet.is_discard:  # before the start that an edit list says: no player shows it
                discarded += 1
                continue
            times.append((time, packet.duration or 0, packet.is_keyframe))
            digest.update(bytes(packet))
            digest.update(b"%d" % time)
        if not times:
            raise VideoError(f"{path}: no frames")
        info, first = describe_video(path)
        whole, (begins, _, begins_with_key) = len(times) + discarded, times[0]
        leading = {entry[0] for entry in takewhile(lambda entry: entry[0] < begins, times[1:])}
        times.sort(key=lambda entry: entry[0])
        # A recording begins between two key frames, or a cut was made before an open group of pictures: what is shown before the first key frame
        # refers to what is gone, and does not decode.
        if first is not None and not begins_with_key:
            times = [entry for entry in times if entry[0] >= first]
        elif first == begins:
            times = [entry for entry in times if entry[0] not in leading]
        pts = tuple(entry[0] for entry in times)
        if len(set(pts)) != len(pts):
            raise VideoError(f"{path}: {len(pts) - len(set(pts))} frames share a time with another one")
        promised = _count_promised(container, stream, whole, pts[-1])
        corrupt = corrupt or (container.format.name == "mpegts" and _ends_within_packet(path))
        # AVI has no presentation times: what the demuxer makes up is right in number and wrong in order where frames are reordered.
        is_counted = container.format.name == "avi" and stream.codec_context.has_b_frames
        starts = 0 if container.format.name.startswith("matroska") else max(container.start_time or 0, 0)  # Matroska's duration is its end
        ends_s = None if container.duration is None else (container.duration + starts) / av.time_base
    keys = (0,) if is_counted else tuple(index for index, entry in enumerate(times) if entry[2])
    return VideoPlan(
        path=path,
        info=info,
        pts=pts,
        duration=times[-1][1] or (pts[-1] - pts[-2] if len(pts) > 1 else 1),
        keys=keys,
        is_counted=is_counted,
        content_hash=digest.hexdigest(),
        skipped=whole - discarded - len(pts),
        num_frames_from_header=promised - (whole - len(pts)) if promised is not None else None,
        truncated=_find_cut(whole, promised, corrupt, last_s, ends_s),
        segments=_cut(len(pts), keys, segment_frames),
    )


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
    return tuple(Segment(index, start, stop) for index, (start, stop) in enumerate(zip(cuts, [*cuts[1:], count], strict=True)))
