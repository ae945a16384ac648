"""Videos that come and go through pipes: Y4M, and NUT with its other tracks; forwards only, a frame at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO, Protocol

import av
import numpy.typing as npt
from av.container import InputContainer, OutputContainer
from av.stream import Stream

from genai_ray.errors import ConfigError, VideoError
from genai_ray.video.colour import count_outside, from_rgb
from genai_ray.video.container import explain
from genai_ray.video.info import LIMITED, VideoInfo, build_decoder, decode_packet, describe_stream, main_stream
from genai_ray.video.pipes.y4m import Y4M_MAGIC, Y4mReader, Y4mWriter
from genai_ray.video.reading.decode import COUNT_EVERY, DecodedFrame, to_arrays
from genai_ray.video.track_options import TrackOptions

__all__ = ["NutSource", "PipeSink", "PipeSource", "Y4mSource", "open_pipe"]

_NUT_MAGIC = b"nut/multimedia container\0"
_NUT_INDEX = b"NX\xdd\x67\x2f\x23\xe6\x4e"
"""How the index begins, which FFmpeg writes after the last packet. Its demuxer gives a packet that is cut off as if it
were whole, so that this alone tells a stream that ended from one that was cut."""


class PipeSink(Protocol):
    """Where a result goes."""

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        """Write a frame at once.

        Args:
            frame: RGB (H, W, 3), or RGBA (H, W, 4) with alpha; uint8 or uint16, C-contiguous.
            pts: When it is shown, in units of the result; rising.

        Raises:
            VideoError: If the reader of the pipe has gone, or writing fails.
        """

    def close(self) -> None:
        """End the result; the pipe itself stays open.

        Raises:
            VideoError: As ``write``.
        """


class PipeSource(Protocol):
    """Where a video comes from."""

    info: VideoInfo
    """Its facts."""
    notes: tuple[str, ...]
    """What of it is not in the result."""

    @property
    def failure(self) -> VideoError | None:
        """Why it ended too early, once it has ended; all frames before are whole."""

    def frames(self) -> Iterator[tuple[DecodedFrame, int]]:
        """Read all frames, each when it is asked for.

        Yields:
            Frames, and when each ends, in ``info.time_base`` units.
        """

    def open_sink(self, sink: BinaryIO, result: VideoInfo, size: tuple[int, int]) -> PipeSink:
        """Begin a result of the same format.

        Args:
            sink: A pipe or file without a buffer.
            result: Facts of the result.
            size: (width, height) of its frames in pixels.

        Returns:
            Where its frames go.

        Raises:
            ConfigError: If the format cannot hold alpha that is asked for, or a track.
            VideoError: As ``PipeSink.write``.
        """


def open_pipe(source: BinaryIO, name: str, tracks: TrackOptions, *, has_tracks: bool) -> PipeSource:
    """Read the beginning of a video from a pipe; this waits for it.

    Args:
        source: The pipe, with a buffer; only read forwards.
        name: Its name, for errors.
        tracks: What is asked of its sound and subtitles.
        has_tracks: Whether the result has them: it has the times of the source.

    Returns:
        The video.

    Raises:
        ConfigError: If a track that is asked for is not there.
        VideoError: If it is empty, or neither Y4M nor NUT that can be decoded.
    """
    magic = source.read(len(Y4M_MAGIC))
    if magic == Y4M_MAGIC:
        if tracks.streams:
            raise ConfigError(f"streams {','.join(tracks.streams)!r} of Y4M", "none: it has only pictures")
        return Y4mSource(Y4mReader(source, name))
    if magic == _NUT_MAGIC[: len(magic)] and magic:
        return NutSource(source, magic, name, tracks, has_tracks=has_tracks)
    raise VideoError(
        f"{name} is empty" if not magic else f"{name} begins with {magic!r}",
        "Y4M or NUT",
        "Write one: ffmpeg -i in.mp4 -f yuv4mpegpipe - (or -f nut -c:v rawvideo -c:a copy).",
    )


class Y4mSource:
    """A ``PipeSource`` of Y4M.

    Args:
        reader: The stream.
    """

    def __init__(self, reader: Y4mReader) -> None:
        self._reader = reader
        self.info = reader.header.to_info()
        self.notes: tuple[str, ...] = ()

    @property
    def failure(self) -> VideoError | None:
        """As ``PipeSource``."""
        return self._reader.failure

    def frames(self) -> Iterator[tuple[DecodedFrame, int]]:
        """As ``PipeSource``.

        Yields:
            Frames, and when each ends.
        """
        for index, picture in enumerate(self._reader.frames()):
            yield _decode(picture, index, self.info), index + 1

    def open_sink(self, sink: BinaryIO, result: VideoInfo, size: tuple[int, int]) -> PipeSink:
        """As ``PipeSource``.

        Args:
            sink: A pipe or file without a buffer.
            result: Facts of the result.
            size: (width, height) of its frames in pixels.

        Returns:
            Where its frames go.

        Raises:
            ConfigError: If alpha is asked for, and the source has none.
            VideoError: As ``PipeSink.write``.
        """
        header = self._reader.header
        if result.has_alpha and not self.info.has_alpha:
            raise ConfigError(f"alpha in C{header.format} of Y4M", "NUT, or C444alpha")
        is_same = size[1] == header.height and result.average_rate == header.rate
        written = replace(
            header,
            width=size[0],
            height=size[1],
            rate=result.average_rate,
            scan=header.scan if is_same or not self.info.is_interlaced else "?",
            aspect=header.aspect
            if result.sample_aspect_ratio == 1 and not header.aspect
            else result.sample_aspect_ratio,
            format="444" if self.info.has_alpha and not result.has_alpha else header.format,
        )
        return _Y4mSink(Y4mWriter(_Outlet(sink), written), result, written.pix_fmt)


class _Y4mSink:
    def __init__(self, writer: Y4mWriter, result: VideoInfo, pix_fmt: str) -> None:
        self._writer = writer
        self._colour = result.colour
        self._pix_fmt = pix_fmt

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        self._writer.write(from_rgb(frame, self._colour, self._pix_fmt))

    def close(self) -> None:
        pass


class NutSource:
    """A ``PipeSource`` of NUT, with any codec; sound and subtitles are copied.

    Args:
        source: The pipe after ``magic``.
        magic: What was read of it.
        name: Its name, for errors.
        tracks: What is asked of its sound and subtitles.
        has_tracks: Whether the result has them.

    Raises:
        ConfigError: If a track that is asked for is not there.
        VideoError: If none of its pictures decodes.
    """

    def __init__(self, source: BinaryIO, magic: bytes, name: str, tracks: TrackOptions, *, has_tracks: bool) -> None:
        self._name = name
        self.failure: VideoError | None = None
        self._pipe = _Forward(magic, source)
        with _naming(name):
            self._container: InputContainer = av.open(self._pipe, "r", format="nut")
        if not self._container.streams.video:
            raise VideoError(f"{name}: no video stream", "a video")
        self._stream = main_stream(self._container)
        chosen = tracks.choose(self._container, name)
        others = [stream for stream in self._container.streams if stream.index != self._stream.index]
        self.copied = {stream.index: stream for stream in others if stream.index in chosen and has_tracks}
        left = [stream for stream in others if stream.index in chosen and not has_tracks]
        self.notes = tuple(
            f"{stream.type} stream {stream.index} was left out: slow motion; a pipe has no --audio stretch"
            for stream in left
        )
        self.waiting: deque[Any] = deque()
        """Packets of the other tracks that are not written yet: those that came before pictures in flight."""
        self._pictures = self._decode_all()
        first: Any = next(self._pictures, None)
        if first is None or first.pts is None:
            raise self._explain_nothing()
        self._first = first
        self.info = describe_stream(self._container, self._stream, first)
        self.notes = (*self.notes, *_describe_change(self.info))

    def frames(self) -> Iterator[tuple[DecodedFrame, int]]:
        """As ``PipeSource``.

        Yields:
            Frames, and when each ends.
        """
        before: Any = self._first
        index = 0
        for picture in self._pictures:
            if self._finds_fault(before, picture, index + 1):
                break
            after: Any = picture.pts
            yield _decode(before, index, self.info), after
            before = picture
            index += 1
        step = round(1 / (self.info.average_rate * self.info.time_base))
        yield _decode(before, index, self.info), before.pts + max(before.duration or step, 1)

    def open_sink(self, sink: BinaryIO, result: VideoInfo, size: tuple[int, int]) -> PipeSink:
        """As ``PipeSource``.

        Args:
            sink: A pipe or file without a buffer.
            result: Facts of the result.
            size: (width, height) of its frames in pixels.

        Returns:
            Where its frames go.

        Raises:
            ConfigError: If NUT cannot hold a track.
            VideoError: As ``PipeSink.write``.
        """
        return _NutSink(_Outlet(sink), self, result, size)

    def _explain_nothing(self) -> VideoError:
        return self.failure or VideoError(f"{self._name}: none of its frames decodes, or they have no times")

    def _finds_fault(self, before: Any, picture: Any, index: int) -> bool:
        """Tell whether a picture cannot follow another one, and note why."""
        if fault := _find_fault(before, picture):
            self.failure = VideoError(f"{self._name}: frame {index} {fault}")
        return bool(fault)

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        """Decode pictures in the order in which they are shown, and keep the packets of other tracks."""
        decoder = build_decoder(self._stream)
        try:
            for packet in self._container.demux([self._stream, *self.copied.values()]):
                if packet.stream_index == self._stream.index:
                    yield from decode_packet(decoder, packet)
                elif packet.size:
                    self.waiting.append(packet)
        except av.EOFError:  # the decoder has ended: a file's index gives packets without bytes after the last one
            return
        except (av.FFmpegError, OSError) as exc:
            self.failure = VideoError(f"{self._name}: it cannot be read to its end: {explain(exc)}")
            return
        finally:
            self._find_cut()

    def _find_cut(self) -> None:
        """Note that the stream has no index at its end."""
        if self.failure is None and self._pipe.has_ended and not self._pipe.has_index:
            do = "Pass --allow-truncated (allow_truncated=True) if it was written without one."
            self.failure = VideoError(f"{self._name}: cut off: it ends without an index", "a whole NUT", do)


class _NutSink:
    """A result in NUT: pictures without compression, and copies of the other tracks."""

    def __init__(self, outlet: _Outlet, source: NutSource, result: VideoInfo, size: tuple[int, int]) -> None:
        self._source = source
        self._time_base = result.time_base
        # NUT says neither the range of numbers nor the matrix: readers take them for limited.
        self._colour = replace(result.colour, range=LIMITED)
        with _naming("standard output"):
            self._sink: OutputContainer = av.open(
                outlet, "w", format="nut", options={"fflags": "+bitexact+flush_packets"}
            )
            stream: Any = self._sink.add_stream("rawvideo", rate=result.average_rate)
            stream.width, stream.height = size
            stream.pix_fmt = _choose_format(source.info, result)
            stream.codec_context.time_base = stream.time_base = result.time_base
            stream.codec_context.sample_aspect_ratio = result.sample_aspect_ratio
            self._stream = stream
            self._copies = {index: _add_copy(self._sink, track) for index, track in source.copied.items()}
            self._sink.start_encoding()

    def write(self, frame: npt.NDArray[Any], pts: int) -> None:
        with _naming("standard output"):
            self._copy_until(pts * self._time_base)
            picture = from_rgb(frame, self._colour, self._stream.pix_fmt)
            picture.pts, picture.time_base = pts, self._time_base
            for packet in self._stream.encode(picture):
                self._sink.mux_one(packet)

    def close(self) -> None:
        with _naming("standard output"):
            for packet in self._stream.encode(None):
                self._sink.mux_one(packet)
            self._copy_until(None)
            self._sink.close()

    def _copy_until(self, time_s: Fraction | None) -> None:
        """Write the packets of other tracks that begin up to a time, or all."""
        waiting = self._source.waiting
        while waiting and (time_s is None or _begin_of(waiting[0]) <= time_s):
            packet = waiting.popleft()
            packet.stream = self._copies[packet.stream_index]
            self._sink.mux_one(packet)


class _Forward:
    """A pipe as PyAV reads it: it cannot seek."""

    def __init__(self, magic: bytes, source: Any) -> None:
        self._magic = magic
        self._source = source
        self._last = b""
        self.has_ended = False
        """Whether all of it was read."""
        self.has_index = False
        """Whether the index of a NUT was among it."""

    def read(self, count: int) -> bytes:
        if self._magic:
            magic, self._magic = self._magic[:count], self._magic[count:]
            return magic
        data: bytes = self._source.read1(count)
        self.has_ended = not data
        joint = self._last + data
        self.has_index = self.has_index or _NUT_INDEX in joint
        self._last = joint[1 - len(_NUT_INDEX) :]
        return data


class _Outlet:
    """A pipe that is written to: everything, at once."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def write(self, data: Any) -> int:
        left = memoryview(data)
        with _naming("standard output"):
            while left:
                left = left[self._sink.write(left) :]
        return len(data)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn errors of PyAV and of the system into ``VideoError``."""
    try:
        yield
    except BrokenPipeError as exc:
        raise VideoError(f"{name}: its reader has closed it before the end") from exc
    except (av.FFmpegError, OSError) as exc:
        raise VideoError(f"{name}: {explain(exc)}") from exc


def _decode(picture: av.VideoFrame, index: int, info: VideoInfo) -> DecodedFrame:
    outside = count_outside(picture, info.colour) if index % COUNT_EVERY == 0 else (0, 0)
    pts: Any = picture.pts
    return to_arrays(picture, index, pts, info, outside)


def _find_fault(before: Any, picture: Any) -> str:
    """Say why a picture cannot follow another one; empty if it can."""
    if picture.pts is None or picture.pts <= before.pts:
        return f"has the time {picture.pts}, and the one before it {before.pts}: times must rise"
    if (picture.width, picture.height, picture.format.name) != (before.width, before.height, before.format.name):
        return f"is another kind of picture than those before it: {_say_kind(picture)} after {_say_kind(before)}"
    return "is damaged" if picture.is_corrupt else ""


def _say_kind(picture: Any) -> str:
    return f"{picture.width}x{picture.height} {picture.format.name}"


def _begin_of(packet: Any) -> Fraction:
    time = packet.dts if packet.dts is not None else packet.pts
    return Fraction(0) if time is None else time * packet.time_base


def _choose_format(source: VideoInfo, result: VideoInfo) -> str:
    """Return the pixel format of a result: that of the source, planar or packed as ``from_rgb`` writes it."""
    described = av.VideoFormat(source.pix_fmt)
    bits = source.bit_depth
    if described.is_rgb or described.has_palette:
        return ("rgba" if bits <= 8 else "rgba64le") if result.has_alpha else ("rgb24" if bits <= 8 else "rgb48le")
    shape = described.chroma_width(4), described.chroma_height(4)
    sampling = {(4, 4): "444", (2, 4): "422"}.get(shape, "420")
    return f"yuv{'a' if result.has_alpha else ''}{sampling}p{f'{bits}le' if bits > 8 else ''}"


def _describe_change(info: VideoInfo) -> Iterator[str]:
    """Say what uncompressed pictures in NUT do not keep of those of the source."""
    written = _choose_format(info, info)
    if written != info.pix_fmt:
        yield f"pictures of {info.pix_fmt} leave as {written}"
    if info.colour.range != LIMITED:
        yield "numbers of full range leave in limited range: NUT does not say which they are"


def _add_copy(sink: OutputContainer, track: Any) -> Stream:
    try:
        copy = sink.add_stream_from_template(track, opaque=True)
    except (ValueError, av.FFmpegError) as exc:
        raise ConfigError(
            f"{track.type} stream {track.index} in NUT ({explain(exc)})", do="Pass --audio none (audio='none')."
        ) from exc
    copy.time_base = track.time_base
    copy.metadata.update(track.metadata)
    copied: Stream = copy
    return copied
