"""Frames of a segment, exactly those of the plan, as RGB."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, dropwhile
from typing import Any

import av
import numpy.typing as npt

from genai_ray.errors import VideoError
from genai_ray.video.colour import to_rgb
from genai_ray.video.container import open_video
from genai_ray.video.plan import Segment, VideoPlan, main_stream

__all__ = ["DecodedFrame", "decode_segment"]

SEEK_TRIES = 2
"""Key frames that are sought before decoding starts at the beginning."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame of a segment."""

    index: int
    """Position in the video, in display order."""
    pts: int
    """Presentation time in the plan's ``time_base`` units."""
    frame: npt.NDArray[Any]
    """RGB (H, W, 3), C-contiguous: uint8, or uint16 in [0, 65535] where the source has more than 8 bits."""


def decode_segment(plan: VideoPlan, segment: Segment, *, allow_truncated: bool = False) -> Iterator[DecodedFrame]:
    """Decode one segment from the original file: from the key frame at or before it, dropping what is before it.

    Args:
        plan: The planned video.
        segment: The range.
        allow_truncated: Whether to end at the last frame that decodes instead of failing.

    Yields:
        The frames of the range in display order, with the planned times.

    Raises:
        VideoError: If a frame is missing, additional, of another size, or does not decode; names the file and the counts.
    """
    wanted = plan.pts[segment.start : segment.stop]
    position = 0
    try:
        for frame in _decode_from(plan, segment.start):
            if frame.pts is None or frame.pts < wanted[0]:
                continue
            if position == len(wanted):
                break
            if frame.pts != wanted[position]:
                raise VideoError(f"{plan.path}: frame {segment.start + position} has pts {frame.pts}", f"pts {wanted[position]}, as planned")
            if (frame.width, frame.height) != (plan.info.width, plan.info.height):
                got = f"{plan.path}: frame {segment.start + position} is {frame.width}x{frame.height}"
                raise VideoError(got, f"{plan.info.width}x{plan.info.height} throughout")
            yield DecodedFrame(segment.start + position, frame.pts, to_rgb(frame, plan.info.colour))
            position += 1
    except VideoError as exc:
        if allow_truncated:
            return
        counts = f"{segment.start + position} of {len(plan.pts)} frames decode"
        raise VideoError(f"{exc.got} ({counts})", exc.allowed, exc.do) from exc
    if position < len(wanted) and not allow_truncated:
        raise VideoError(
            f"{plan.path}: {segment.start + position} of {len(plan.pts)} frames decode",
            do="Pass --allow-truncated to enhance what is there.",
        )


def _decode_from(plan: VideoPlan, start: int) -> Iterator[av.VideoFrame]:
    """Decode from the key frame at or before a frame; where a seek misses it (MPEG-TS has no index), from an earlier one."""
    before = bisect.bisect_right(plan.keys, start)
    for key in (*reversed(plan.keys[max(before - SEEK_TRIES, 0) : before]), 0):
        with open_video(plan.path) as container:
            stream = main_stream(container)
            stream.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            packets: Iterator[av.Packet[Any]] = container.demux(stream)
            if key > 0:
                container.seek(plan.pts[key], stream=stream, backward=True, any_frame=False)
                packets = dropwhile(lambda packet: not packet.is_keyframe, packets)
                first = next(packets, None)
                if first is None or first.pts is None or first.pts > plan.pts[start]:
                    continue
                packets = chain([first], packets)
            frames = (frame for packet in packets for frame in stream.codec_context.decode(packet))
            for index, frame in enumerate(frames):
                if plan.is_counted:
                    frame.pts = plan.pts[index] if index < len(plan.pts) else None
                yield frame
            return
