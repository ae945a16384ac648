"""``VideoReader``: the frames of one video by index and by time, exactly those that a player shows."""

from __future__ import annotations

import bisect
import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields, format_array, format_count, to_html
from genai_ray.errors import FrameNotFoundError, VideoError
from genai_ray.video.info import VideoInfo
from genai_ray.video.reading.decode import SEEK_BEYOND_FRAMES, DecodedFrame, decode_frames, decode_segment
from genai_ray.video.reading.plan import plan_video
from genai_ray.video.reading.ranges import Segment

__all__ = ["VideoFrame", "VideoFrames", "VideoReader"]


@describe_fields
@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """One frame of a video."""

    index: int
    """Position in the video, in display order, from 0."""
    pts: int
    """Presentation time in units of ``info.time_base``."""
    pts_seconds: float
    """The same in seconds."""
    frame: npt.NDArray[Any]
    """(H, W, 3), RGB, C-contiguous: uint8 in [0, 255], or uint16 in [0, 65535] if the source has more than 8 bits."""
    alpha: npt.NDArray[Any] | None = None
    """(H, W, 1) of the same dtype, 0 for transparent; None if the source has no alpha."""

    def __repr__(self) -> str:
        alpha = "" if self.alpha is None else ", with alpha"
        return f"VideoFrame({self.index}, {self.pts_seconds:.3f} s, {format_array(self.frame)}{alpha})"


@describe_fields
@dataclass(frozen=True, slots=True, eq=False)
class VideoFrames:
    """Several frames of a video, stacked."""

    indices: npt.NDArray[np.int64]
    """(N,): positions in the video, in display order, from 0."""
    pts: npt.NDArray[np.int64]
    """(N,): presentation times in units of ``info.time_base``."""
    pts_seconds: npt.NDArray[np.float64]
    """(N,): the same in seconds."""
    frames: npt.NDArray[Any]
    """(N, H, W, 3), RGB, C-contiguous: uint8 in [0, 255], or uint16 in [0, 65535] if the source has more than 8
    bits."""
    alpha: npt.NDArray[Any] | None = None
    """(N, H, W, 1) of the same dtype, 0 for transparent; None if the source has no alpha."""

    def __repr__(self) -> str:
        alpha = "" if self.alpha is None else ", with alpha"
        return f"VideoFrames({format_array(self.frames)}{alpha})"

    def __len__(self) -> int:
        return len(self.indices)


class VideoReader:
    """Frames of one video file, decoded when they are asked for.

    Opening reads the packets of the file, so that number, order and times of the frames are exact, also with a variable
    frame rate, B-frames and edit lists. Frames are as they are stored: ``info.rotation`` tells how a player turns them.
    A reader is for one thread at a time; reading forward does not decode anything twice.

    Args:
        path: Path or URI of the file.
        any_format: Whether the file may name other files and hosts, as playlists do; they are opened then.

    Raises:
        VideoError: If the file is missing, is not a video, has no frames or no times, or its times go back.

    Example:
        >>> with VideoReader("samples/bigbuckbunny-360p.mp4") as video:
        ...     len(video), video[-1].pts_seconds, video[10:20].frames.shape, video.frame_at(2.0).index
        (132, 5.24, (10, 360, 640, 3), 50)
    """

    def __init__(self, path: str | Path, *, any_format: bool = False) -> None:
        self._plan = plan_video(path, any_format=any_format)
        base = self._plan.info.time_base
        self._seconds = [pts * base.numerator / base.denominator for pts in self._plan.pts]
        self._end_seconds = (self._plan.pts[-1] + self._plan.duration) * base.numerator / base.denominator
        self._decoding: Iterator[DecodedFrame] = iter(())
        self._next = len(self)
        """The frame that ``_decoding`` gives next."""
        self._is_closed = False

    def __repr__(self) -> str:
        info, frames = self.info, format_count(len(self), "frame")
        return f"VideoReader({self._plan.path}: {frames} of {info.width}x{info.height}, {info.codec})"

    def _repr_html_(self) -> str:
        info = self.info
        rows = [
            ("seconds", f"{self.begin_seconds:.3f} to {self.end_seconds:.3f}"),
            ("frames/s", f"{float(info.average_rate):.6g} on average"),
            ("pixels", f"{info.pix_fmt}, {info.bit_depth} bits, {info.colour.standard}"),
            ("rotation", info.rotation),
        ]
        return to_html(repr(self), rows)

    @property
    def info(self) -> VideoInfo:
        """Size, time base, codec, bit depth, colour and rotation of the stream."""
        return self._plan.info

    @property
    def seconds(self) -> tuple[float, ...]:
        """Time of each frame, as ``VideoFrame.pts_seconds``."""
        return tuple(self._seconds)

    @property
    def begin_seconds(self) -> float:
        """Time of the first frame, which need not be 0."""
        return self._seconds[0]

    @property
    def end_seconds(self) -> float:
        """Time at which the last frame ends."""
        return self._end_seconds

    def frame_at(self, seconds: float) -> VideoFrame:
        """Return the frame that a player shows at a time.

        Args:
            seconds: The time, from ``begin_seconds`` up to, but not including, ``end_seconds``.

        Returns:
            The last frame whose ``pts_seconds`` is not later.

        Raises:
            FrameNotFoundError: If the video shows no frame at this time.
            VideoError: If the frame does not decode, or the reader is closed.
        """
        if not self.begin_seconds <= seconds < self.end_seconds:
            raise FrameNotFoundError(
                f"{self._plan.path}: no frame at {seconds} s", f"{self.begin_seconds} s to before {self.end_seconds} s"
            )
        return self[bisect.bisect_right(self._seconds, seconds) - 1]

    def frames_between(self, start_s: float, stop_s: float) -> VideoFrames:
        """Return the frames that a player shows in a half-open range of time.

        Args:
            start_s: Begin of the range in seconds; the frame that is shown at this time is the first one.
            stop_s: End of the range in seconds; a frame that begins at this time is not included.

        Returns:
            The frames, in order; none if both times are equal.

        Raises:
            FrameNotFoundError: If the range does not lie within ``begin_seconds`` and ``end_seconds``.
            VideoError: If a frame does not decode, or the reader is closed.
        """
        if not self.begin_seconds <= start_s <= stop_s <= self.end_seconds:
            raise FrameNotFoundError(
                f"{self._plan.path}: no frames between {start_s} s and {stop_s} s",
                f"a range within {self.begin_seconds} s and {self.end_seconds} s",
            )
        if start_s == stop_s:
            return self[0:0]
        return self[bisect.bisect_right(self._seconds, start_s) - 1 : bisect.bisect_left(self._seconds, stop_s)]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._is_closed = True
        self._decoding = iter(())

    def __len__(self) -> int:
        return len(self._plan.pts)

    @overload
    def __getitem__(self, index: int) -> VideoFrame: ...

    @overload
    def __getitem__(self, index: slice) -> VideoFrames: ...

    def __getitem__(self, index: int | slice) -> VideoFrame | VideoFrames:
        self._check_open()
        if isinstance(index, slice):
            return self._stack(range(*index.indices(len(self))))
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise FrameNotFoundError(
                f"{self._plan.path}: no frame {position}", f"{-len(self)} to {len(self) - 1}, of {len(self)} frames"
            )
        return self._to_frame(self._decode(position % len(self)))

    def __iter__(self) -> Iterator[VideoFrame]:
        self._check_open()
        for decoded in decode_frames(self._plan, range(len(self))):
            self._check_open()
            yield self._to_frame(decoded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise VideoError(f"{self._plan.path}: this reader is closed", do="Open a new VideoReader.")

    def _decode(self, index: int) -> DecodedFrame:
        """Decode one frame: go on from the last one if that is near, else seek."""
        keys = self._plan.keys
        key = keys[max(bisect.bisect_right(keys, index) - 1, 0)] if keys else 0
        if self._next <= index and key <= self._next + SEEK_BEYOND_FRAMES:
            with contextlib.suppress(VideoError):  # perhaps of a frame between, which this one does not need
                return self._advance(index)
        self._decoding = decode_segment(self._plan, Segment(0, index, len(self)))
        return self._advance(index)

    def _advance(self, index: int) -> DecodedFrame:
        self._next = len(self)  # an error ends the decoding: the next call seeks
        for decoded in self._decoding:
            if decoded.index == index:
                self._next = index + 1
                return decoded
        raise VideoError(f"{self._plan.path}: frame {index} of {len(self)} does not decode")

    def _stack(self, chosen: range) -> VideoFrames:
        dtype = np.uint8 if self.info.bit_depth <= 8 else np.uint16
        shape = (len(chosen), self.info.height, self.info.width)
        frames = np.empty((*shape, 3), dtype)
        alpha = np.empty((*shape, 1), dtype) if self.info.has_alpha else None
        for decoded in decode_frames(self._plan, chosen if chosen.step > 0 else chosen[::-1]):
            position = chosen.index(decoded.index)
            frames[position] = decoded.frame
            if alpha is not None:
                alpha[position] = decoded.alpha
        return VideoFrames(
            np.array(chosen, np.int64),
            np.array([self._plan.pts[index] for index in chosen], np.int64),
            np.array([self._seconds[index] for index in chosen], np.float64),
            frames,
            alpha,
        )

    def _to_frame(self, decoded: DecodedFrame) -> VideoFrame:
        return VideoFrame(decoded.index, decoded.pts, self._seconds[decoded.index], decoded.frame, decoded.alpha)
