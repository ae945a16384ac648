"""The plan of a video, from one pass over its packets without decoding: exact times, identity, segments."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from genai_ray.errors import VideoError
from genai_ray.video.container import open_video

__all__ = ["Colour", "Segment", "VideoInfo", "VideoPlan", "main_stream", "plan_video"]

UNSPECIFIED, BT709, SMPTE170M = 2, 1, 6
LIMITED, FULL = 1, 2
HD_LINES = 720
"""An untagged picture of this height or more is BT.709, below it is BT.601."""

END_TOLERANCE_S = 1.0
"""A container that promises more than this beyond its last packet has lost its end."""

_TRANSPORT_PACKET_BYTES = (188, 192, 204)


@dataclass(frozen=True, slots=True)
class Colour:
    """How numbers mean colours; FFmpeg's (and ITU-T H.273's) code points."""

    matrix: int
    """Matrix coefficients: 1 BT.709, 5 and 6 BT.601, 9 BT.2020."""
    range: int
    """1 limited, 2 full."""
    primaries: int
    """Colour primaries; 2 is unspecified."""
    transfer: int
    """Transfer characteristics; 2 is unspecified."""
    assumed: bool
    """Whether the matrix was not tagged and follows from the height."""

    @property
    def standard(self) -> str:
        """The matrix in words, such as BT.709."""
        return {1: "BT.709", 5: "BT.601", 6: "BT.601", 9: "BT.2020", 10: "BT.2020"}.get(self.matrix, f"matrix {self.matrix}")

    def tag(self, codec: Any) -> None:
        """Write the code points on a stream to be written.

        Args:
            codec: PyAV's codec context of that stream.
        """
        codec.colorspace, codec.color_range = self.matrix, self.range
        codec.color_primaries, codec.color_trc = self.primaries, self.transfer


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video stream is."""

    width: int
    """Of the decoded picture, in pixels."""
    height: int
    """Of the decoded picture, in pixels."""
    time_base: Fraction
    """Seconds of one unit of pts."""
    average_rate: Fraction
    """Frames per second, on average."""
    codec: str
    """FFmpeg's name of the codec."""
    pix_fmt: str
    """FFmpeg's name of the pixel format."""
    bit_depth: int
    """Bits of one component."""
    sample_aspect_ratio: Fraction
    """Width of a pixel over its height; 1 where unknown."""
    rotation: int
    """Degrees that a player turns the picture by."""
    colour: Colour
    """Matrix, range, primaries, transfer."""


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

    path: Path
    """The file."""
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
    num_frames_from_header: int | None
    """Frames that the container's own index promises; None where it has none."""
    truncated: str | None
    """Why the file is believed to end too early; None where it is whole."""
    segments: tuple[Segment, ...]
    """Ranges that together are the video."""


def main_stream(container: InputContainer) -> VideoStream:
    """Return the stream that is the video: the first that is not a cover picture.

    Args:
        container: An open container with a video stream.

    Returns:
        The stream.
    """
    return next(stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic)


def plan_video(path: Path, *, segment_frames: int = 128) -> VideoPlan:
    """Plan a video; the plan follows from the file and the options alone.

    Args:
        path: The file.
        segment_frames: Most frames in a segment, where key frames allow it.

    Returns:
        The plan.

    Raises:
        VideoError: If the file is missing, not a video, has no frames, or no times.
    """
    digest, last_s = hashlib.sha256(), 0.0
    times: list[tuple[int, int, bool]] = []
    with open_video(path) as container:
        stream = main_stream(container)
        corrupt = False
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
            if packet.is_discard:
                continue
            times.append((time, packet.duration or 0, packet.is_keyframe))
            digest.update(bytes(packet))
            digest.update(b"%d" % time)
        if not times:
            raise VideoError(f"{path}: no frames")
        times.sort(key=lambda entry: entry[0])
        pts = tuple(entry[0] for entry in times)
        if len(set(pts)) != len(pts):
            raise VideoError(f"{path}: {len(pts) - len(set(pts))} frames share a time with another one")
        promised = stream.frames or None
        corrupt = corrupt or (container.format.name == "mpegts" and _ends_within_packet(path))
        # AVI has no presentation times: what the demuxer makes up is right in number and wrong in order where frames are reordered.
        is_counted = container.format.name == "avi" and stream.codec_context.has_b_frames
        ends_s = None if container.duration is None else (container.duration + max(container.start_time or 0, 0)) / av.time_base
    keys = (0,) if is_counted else tuple(index for index, entry in enumerate(times) if entry[2])
    return VideoPlan(
        path=path,
        info=_describe(path),
        pts=pts,
        duration=times[-1][1] or (pts[-1] - pts[-2] if len(pts) > 1 else 1),
        keys=keys,
        is_counted=is_counted,
        content_hash=digest.hexdigest(),
        num_frames_from_header=promised,
        truncated=_find_cut(len(pts), promised, corrupt, last_s, ends_s),
        segments=_cut(len(pts), keys, segment_frames),
    )


def _find_cut(count: int, promised: int | None, corrupt: bool, last_s: float, ends_s: float | None) -> str | None:
    if promised is not None and count < promised:
        return f"{count} of {promised} frames are there"
    if corrupt:
        return f"the last of {count} frames is cut off"
    if ends_s is not None and ends_s - last_s > END_TOLERANCE_S:
        return f"{count} frames end at {last_s:.2f} s of {ends_s:.2f} s"
    return None


def _ends_within_packet(path: Path) -> bool:
    """Tell whether a transport stream ends in the middle of one of its packets, the only cut that shows in a file without an index."""
    return all(path.stat().st_size % size for size in _TRANSPORT_PACKET_BYTES)


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


def _describe(path: Path) -> VideoInfo:
    """Read the facts of a stream from its header and its first frame, which knows size, format and rotation for certain."""
    with open_video(path) as container:
        stream = main_stream(container)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError(f"{path}: no frame of it decodes")
        codec = stream.codec_context
        matrix, span, assumed = int(codec.colorspace), int(codec.color_range), False
        if matrix == UNSPECIFIED:
            matrix, assumed = (BT709 if frame.height >= HD_LINES else SMPTE170M), True
        if frame.format.is_rgb:  # results are YUV, of the matrix that players assume by the height
            matrix, span, assumed = (BT709 if frame.height >= HD_LINES else SMPTE170M), LIMITED, True
        if span not in (LIMITED, FULL):
            span = FULL if frame.format.name.startswith("yuvj") else LIMITED
        return VideoInfo(
            width=frame.width,
            height=frame.height,
            time_base=Fraction(stream.time_base or Fraction(1, 1000)),
            average_rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
            codec=codec.name,
            pix_fmt=frame.format.name,
            bit_depth=frame.format.components[0].bits,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            rotation=frame.rotation,
            colour=Colour(matrix, span, int(codec.color_primaries), int(codec.color_trc), assumed),
        )
