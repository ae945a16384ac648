"""Decodes exactly the planned frames of a segment, as RGB."""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from genai_ray.errors import VideoError
from genai_ray.files import find_facts
from genai_ray.types import Deinterlace
from genai_ray.video.colour import count_outside, planes_of, read_alpha, to_rgb, to_small_rgb
from genai_ray.video.container import open_video
from genai_ray.video.info import VideoInfo, build_decoder, decode_packet, main_stream
from genai_ray.video.reading.deinterlace import CYCLE, Deinterlacing, deinterlace
from genai_ray.video.reading.plan import VideoPlan
from genai_ray.video.reading.ranges import Segment
from genai_ray.video.reading.telecine import count_repeating, undo_telecine

__all__ = [
    "COUNT_EVERY",
    "DecodedFrame",
    "StoredFrame",
    "count_repeats",
    "decode_frames",
    "decode_from",
    "decode_segment",
    "decode_segment_small",
    "decode_stored",
    "to_arrays",
]

_TRIAL_FRAMES = 6 * CYCLE + 1
"""Pictures of a part that is looked at for repetitions."""

SEEK_TRIES = 2
"""Key frames to which decoding seeks before it starts at the beginning of the file."""

COUNT_EVERY = 32
"""One of so many frames is checked for colours outside the RGB gamut; to check all would add a tenth to decoding."""

SEEK_BEYOND_FRAMES = 32
"""Most frames that are decoded and dropped; for more, opening the file again and seeking is cheaper."""

TAKE_WHAT_IS_THERE = (
    "Pass --allow-truncated (allow_truncated=True of EnhanceOptions or decode_segment) to take what is there."
)
"""Advice for a video of which not every frame decodes."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame of a segment."""

    index: int
    """Position in the video, in display order."""
    pts: int
    """Presentation time in the plan's ``time_base`` units."""
    frame: npt.NDArray[Any]
    """RGB (H, W, 3), C-contiguous: uint8, or uint16 in [0, 65535] if the source has more than 8 bits."""
    alpha: npt.NDArray[Any] | None = None
    """(H, W, 1) of the same dtype, 0 for transparent; None if the source has no alpha."""
    outside: tuple[int, int] = (0, 0)
    """Pixels outside the RGB gamut, and pixels checked for it: none in most frames, see ``COUNT_EVERY``."""
    is_deinterlaced: bool = False
    """Whether it was made of an interlaced frame and its neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """One decoded frame before any conversion."""

    index: int
    """Position in the video, in display order."""
    picture: av.VideoFrame
    """As the decoder returns it."""
    info: VideoInfo
    """The stream."""

    def to_rgb(self) -> npt.NDArray[Any]:
        """Convert it.

        Returns:
            As ``DecodedFrame.frame``.
        """
        rgb = to_rgb(self.picture, self.info.colour)
        return np.ascontiguousarray(rgb[:, ::-1]) if self.info.is_mirrored else rgb

    def planes(self) -> list[npt.NDArray[Any]]:
        """Return its values as they are stored.

        Returns:
            Each plane, (rows, values), in the order of the pixel format: Y, Cb, Cr and alpha of planar YUV; uint8, or
            uint16 for more than 8 bits. Mirrored if a player mirrors the picture.

        Raises:
            VideoError: If its pixel format is not that of the stream.
        """
        if self.picture.format.name != self.info.pix_fmt:
            got = f"frame {self.index} is {self.picture.format.name}"
            raise VideoError(got, f"{self.info.pix_fmt} throughout")
        planes = planes_of(self.picture)
        return [plane[:, ::-1] for plane in planes] if self.info.is_mirrored else planes


def decode_stored(plan: VideoPlan) -> Iterator[StoredFrame]:
    """Decode every frame of a video, without conversion.

    Args:
        plan: The planned video.

    Yields:
        The frames in display order.

    Raises:
        VideoError: As ``decode_segment``.
    """
    for index, picture in _stored_pictures(plan, 0, len(plan.pts), allow_truncated=False):
        yield StoredFrame(index, picture, plan.info)


def decode_segment(plan: VideoPlan, segment: Segment, *, allow_truncated: bool = False) -> Iterator[DecodedFrame]:
    """Decode one segment from the original file: from the key frame at or before it, without the frames before it.

    Args:
        plan: The planned video.
        segment: The range.
        allow_truncated: Whether to end at the last frame that decodes instead of failing, and to take damaged frames as
            the decoder repairs them. A missing frame before others that decode is still an error: the others would be
            lost.

    Yields:
        The frames of the range in display order, with the planned times.

    Raises:
        VideoError: If a frame is missing, not planned, of another size, or does not decode; the error has the file and
            the counts. Also if the file cannot be read, even with ``allow_truncated``.
    """
    for index, picture, is_deinterlaced in _pictures(plan, segment, allow_truncated):
        outside = count_outside(picture, plan.info.colour) if index % COUNT_EVERY == 0 else (0, 0)
        yield to_arrays(picture, index, plan.pts[index], plan.info, outside, is_deinterlaced)


def decode_segment_small(
    plan: VideoPlan, segment: Segment, size: tuple[int, int], *, allow_truncated: bool = False
) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode one segment as small pictures, for what looks at a whole video: stretched by swscale's bicubic filter.

    Args:
        plan: The planned video.
        segment: The range.
        size: (width, height) of the pictures, as a player turns them.
        allow_truncated: As ``decode_segment``.

    Yields:
        The frames of the range in display order: RGB (height, width, 3), uint8, read-only.

    Raises:
        VideoError: As ``decode_segment``.
    """
    turns = round(plan.info.rotation / 90) % 4  # counter-clockwise
    width, height = size if turns % 2 == 0 else size[::-1]
    for _, picture, _ in _pictures(plan, segment, allow_truncated):
        small = to_small_rgb(picture, plan.info.colour, (width, height))
        yield np.rot90(small[:, ::-1] if plan.info.is_mirrored else small, turns)


def count_repeats(plan: VideoPlan, deinterlacing: Deinterlacing) -> tuple[int, int]:
    """Look at three parts of a video for the repetitions that telecine leaves, one in each five pictures.

    Args:
        plan: The stored pictures of the whole video.
        deinterlacing: How they are deinterlaced.

    Returns:
        (fives with motion and a repetition, fives with motion); parts that do not decode count as nothing.
    """
    count = len(plan.pts)
    decode = functools.partial(_stored_pictures, plan, allow_truncated=True)
    repeating = moving = 0
    for start in sorted({max(count - _TRIAL_FRAMES, 0) * part // 4 for part in (1, 2, 3)}):
        stop = min(start + _TRIAL_FRAMES, count)
        with contextlib.suppress(VideoError):
            found = count_repeating(plan.path, decode, start, stop, count, deinterlacing)
            repeating, moving = repeating + found[0], moving + found[1]
    return repeating, moving


def _pictures(plan: VideoPlan, segment: Segment, allow_truncated: bool) -> Iterator[tuple[int, av.VideoFrame, bool]]:
    """Give position and picture of each frame of a range, and whether it is deinterlaced."""
    if plan.deinterlacing is None:
        for index, picture in _stored_pictures(plan, segment.start, segment.stop, allow_truncated):
            yield index, picture, False
        return
    how = plan.deinterlacing
    stored = plan.stored or plan
    count = len(stored.pts)
    decode = functools.partial(_stored_pictures, stored, allow_truncated=allow_truncated)
    if how.how is Deinterlace.IVTC:
        for position, picture in undo_telecine(plan.path, decode, segment.start, segment.stop, count, how):
            yield position, picture, True
        return
    first, stop = how.stored_at(segment.start), how.stored_at(segment.stop - 1) + 1
    for index, field, picture in deinterlace(plan.path, decode, first, stop, count, how):
        position = how.count_made(index) + (field or 0)
        if segment.start <= position < segment.stop:
            yield position, picture, field is not None


def _stored_pictures(
    plan: VideoPlan, start: int, stop: int, allow_truncated: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give position and picture of each stored frame of a range, as ``decode_segment`` promises."""
    wanted = plan.pts[start:stop]
    position = 0
    unplanned = None
    try:
        for frame in decode_from(plan, start):
            if frame.pts is None or frame.pts < wanted[0]:
                continue
            if position == len(wanted):
                break
            if frame.pts != wanted[position]:
                unplanned = frame.pts
                break
            _check_frame(frame, start + position, plan, allow_truncated)
            yield start + position, frame
            position += 1
    except VideoError as exc:
        if _is_reading_at_fault(exc, plan.path):
            raise
        if allow_truncated:
            return
        counts = f"{start + position} of {len(plan.pts)} frames decode"
        raise VideoError(f"{exc.got} ({counts})", exc.allowed, exc.do or TAKE_WHAT_IS_THERE) from exc
    if unplanned is not None:
        raise VideoError(
            f"{plan.path}: frame {start + position} has pts {unplanned}",
            f"the planned pts {wanted[position]}",
            f"Write the frames that decode to a new file first: ffmpeg -i {plan.path} -c:v ffv1 -c:a copy decoded.mkv",
        )
    if position < len(wanted) and not allow_truncated:
        raise VideoError(f"{plan.path}: {start + position} of {len(plan.pts)} frames decode", do=TAKE_WHAT_IS_THERE)


def to_arrays(
    frame: av.VideoFrame,
    index: int,
    pts: int,
    info: VideoInfo,
    outside: tuple[int, int] = (0, 0),
    is_deinterlaced: bool = False,
) -> DecodedFrame:
    """Convert a decoded picture.

    Args:
        frame: The picture.
        index: Its position in the video.
        pts: When it is shown, in ``info.time_base`` units.
        info: Facts of the video.
        outside: Pixels outside the RGB gamut, and pixels checked for it.
        is_deinterlaced: Whether it was made of an interlaced one.

    Returns:
        The frame.
    """
    rgb = to_rgb(frame, info.colour)
    alpha = read_alpha(frame) if info.has_alpha else None
    if info.is_mirrored:
        rgb = np.ascontiguousarray(rgb[:, ::-1])
        alpha = None if alpha is None else np.ascontiguousarray(alpha[:, ::-1])
    return DecodedFrame(index, pts, rgb, alpha, outside, is_deinterlaced)


def _is_reading_at_fault(error: VideoError, path: str) -> bool:
    """Tell whether the file is gone or its disk or store fails; if not, pictures do not decode."""
    cause = error.__cause__
    if cause is None:
        return find_facts(path) is None
    if isinstance(cause, av.FFmpegError):
        # Old decoders report a damaged picture as -1, which is EPERM.
        return isinstance(cause, OSError) and cause.errno != errno.EPERM
    return True


def _check_frame(frame: av.VideoFrame, index: int, plan: VideoPlan, allow_damaged: bool) -> None:
    info = plan.info
    parts = frame.format.components
    got, allowed, do = "", "", ""
    if (frame.width, frame.height) != (info.width, info.height):
        got, allowed = f"{frame.width}x{frame.height}", f"{info.width}x{info.height} throughout"
    elif parts[0].bits != info.bit_depth or any(part.is_alpha for part in parts) != info.has_alpha:
        got, allowed = frame.format.name, f"{info.pix_fmt} throughout"
    elif frame.is_corrupt and not allow_damaged:
        got, do = "damaged", TAKE_WHAT_IS_THERE
    if got:
        at_s = float(plan.pts[index] * info.time_base)
        raise VideoError(f"{plan.path}: frame {index} at {at_s:.3f} s is {got}", allowed, do)


def decode_frames(plan: VideoPlan, indices: Sequence[int]) -> Iterator[DecodedFrame]:
    """Decode chosen frames. Frames between them are decoded only if the codec needs them; key frames need none.

    Args:
        plan: The planned video.
        indices: Positions in display order, ascending.

    Yields:
        The frames, with the planned times.

    Raises:
        VideoError: If one is missing, of another size, or does not decode; names the file and the frame.
    """
    runs: list[list[int]] = []
    for index in indices:
        # If a key frame lies far enough after the last chosen frame, opening the file and seeking is cheaper than
        # decoding.
        last = runs[-1][-1] if runs else 0
        near = plan.keys[max(bisect.bisect_right(plan.keys, index) - 1, 0)] if plan.keys else 0
        if not runs or near > last + SEEK_BEYOND_FRAMES:
            runs.append([])
        runs[-1].append(index)
    keys_only = bool(runs) and not plan.is_counted and set(indices) <= set(plan.keys)
    for run in [list(indices)] if keys_only else runs:
        waiting = deque(run)
        for frame in decode_from(plan, run[0], keys_only=keys_only):
            if frame.pts is None or frame.pts < plan.pts[waiting[0]]:
                continue
            if frame.pts > plan.pts[waiting[0]]:
                break
            index = waiting.popleft()
            _check_frame(frame, index, plan, allow_damaged=False)
            yield to_arrays(frame, index, plan.pts[index], plan.info)
            if not waiting:
                break
        if waiting:
            raise VideoError(f"{plan.path}: frame {waiting[0]} of {len(plan.pts)} does not decode")


def decode_from(plan: VideoPlan, start: int, *, keys_only: bool = False) -> Iterator[av.VideoFrame]:
    """Decode from the key frame at or before a frame, or an earlier one if a seek misses it (MPEG-TS has no index).

    Args:
        plan: The planned video.
        start: Position of the frame in display order.
        keys_only: Whether to decode key frames alone.

    Yields:
        Pictures as they are stored, with the planned times, or None for one that is not planned; those before ``start``
        too.

    Raises:
        VideoError: If the file cannot be read, or a picture does not decode.
    """
    before = bisect.bisect_right(plan.keys, start)
    for key in (*reversed(plan.keys[max(before - SEEK_TRIES, 0) : before]), 0):
        with open_video(plan.path, any_format=plan.any_format) as container:
            stream = main_stream(container)
            decoder = build_decoder(stream)
            if keys_only:
                decoder.skip_frame = "NONKEY"
            packets: Iterator[av.Packet[Any]] = container.demux(stream)
            if key > 0:
                try:
                    container.seek(plan.decoded_pts[key], stream=stream, backward=True, any_frame=False)
                except av.FFmpegError:  # the file has no index; if it cannot be read, decoding says so
                    continue
                packets = dropwhile(lambda packet: not packet.is_keyframe, packets)
                first = next(packets, None)
                if first is None or first.pts is None or first.pts > plan.decoded_pts[start]:
                    continue
                packets = chain([first], packets)
            yield from _give_times(plan, (frame for packet in packets for frame in decode_packet(decoder, packet)))
            return


def _give_times(plan: VideoPlan, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Give frames their planned times, if these differ from those of the decoder."""
    if not plan.is_counted and plan.decoded_pts is plan.pts:
        yield from frames
        return
    seen: Counter[int] = Counter()
    for number, frame in enumerate(frames):
        index = number
        if not plan.is_counted and frame.pts is not None:  # frames of equal times follow each other
            index = bisect.bisect_left(plan.decoded_pts, frame.pts) + seen[frame.pts]
            seen[frame.pts] += 1
        is_planned = index < len(plan.pts) and (plan.is_counted or plan.decoded_pts[index] == frame.pts)
        frame.pts = plan.pts[index] if is_planned else None
        yield frame
