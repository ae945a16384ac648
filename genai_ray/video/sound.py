"""Encodes a track of sound that is not copied: its first sample stays at its time, and no sample is lost or added.

Decoders drop what their codec says is not heard, at the start and at the end. Encoders say the same of their own delay,
which MP4 and MOV keep in an edit list, and Matroska in the track's header. If times leave a hole in the sound, silence
is encoded there, so that everything after it stays with the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.stream import Stream

from genai_ray.video.codecs import SOUND_CODECS, SoundCodec
from genai_ray.video.container import open_video
from genai_ray.video.plan import VideoPlan

__all__ = ["SoundEncoder", "SoundRecipe", "plan_sound", "read_sound"]

_MAX_DRIFT_S = Fraction(1, 10)
"""Times that are less apart from the count of samples follow the count, as in FFmpeg's ``aresample=async=1``."""

_PREROLL_S = 1
"""How long before a piece decoding begins: every decoder's sound is right by then."""

_LONGEST_S = 10
"""Length of a packet that does not say how long it is, at most."""

_MOST_READ = 20_000
"""Packets that are read to find the first sample of a track."""

_DTYPES: dict[str, type[np.generic]] = {"s16": np.int16, "s32": np.int32, "flt": np.float32}
"""Values of packed samples."""

_MAX_PLANES = 7
"""PyAV (18) counts the planes of a frame wrongly if it has more; samples are packed here."""

_SHORT_FORMATS = ("u8", "u8p", "s16", "s16p")
"""Sample formats of up to 16 bits."""


@dataclass(frozen=True, slots=True)
class SoundRecipe:
    """How a track is encoded."""

    codec: SoundCodec
    """The encoder."""
    format: str
    """FFmpeg's name of its sample format."""
    layout: str
    """FFmpeg's name of its channel layout."""
    rate: int
    """Samples per second."""
    bit_rate: int
    """Bits per second; 0 if it is lossless."""
    source: str
    """The source in words."""

    def __str__(self) -> str:
        bits = f"with {self.codec.bits[self.codec.formats.index(self.format)]} bits" if self.codec.bits else ""
        return f"{self.codec.name} {bits or f'at {self.bit_rate // 1000} kb/s'}, {self.rate} Hz, {self.layout}"


def read_sound(plan: VideoPlan, index: int) -> Any:
    """Decode the first sound of a track, which has the true rate, layout and format.

    Args:
        plan: The source.
        index: Index of the track.

    Returns:
        A frame of it; None if nothing near its start decodes.

    Raises:
        VideoError: If the source does not open.
    """
    with open_video(plan.path, any_format=plan.any_format) as container:
        stream: Any = container.streams[index]
        if stream.codec_context is None:
            return None
        for packet in islice(container.demux(stream), _MOST_READ):
            try:
                for frame in stream.codec_context.decode(packet if packet.size else None):
                    if frame.samples:
                        return frame
            except av.FFmpegError:
                continue
    return None


def plan_sound(frame: Any, name: str) -> SoundRecipe | None:
    """Find how an encoder takes a track: with the rate and the layout of the source, or the nearest it has.

    Args:
        frame: From ``read_sound``.
        name: A word of ``SOUND_CODECS``.

    Returns:
        How it is encoded; None if the encoder does not take so many channels.
    """
    codec = SOUND_CODECS[name]
    if codec.encoder not in av.codecs_available:
        return None
    channels = frame.layout.nb_channels
    if _has_no_names(frame) and frame.format.is_planar and channels > _MAX_PLANES:
        return None
    rate = _choose_rate(codec, frame.sample_rate)
    is_long = frame.format.name not in _SHORT_FORMATS
    for layout in (frame.layout.name, f"{channels}c"):  # the default for this count of channels
        recipe = SoundRecipe(
            codec=codec,
            format=codec.formats[-1 if is_long else 0],
            layout=layout,
            rate=rate,
            bit_rate=codec.bit_rate(rate, channels),
            source=f"{frame.sample_rate} Hz, {frame.layout.name}",
        )
        if layout == frame.layout.name and _has_no_names(frame):
            continue
        with av.open("nothing", "w", format="null") as sink:
            try:
                named = _add_stream(sink, recipe)
                named.codec_context.open(strict=False)
            except (av.FFmpegError, ValueError):
                continue
            return SoundRecipe(codec, recipe.format, named.layout.name, rate, recipe.bit_rate, recipe.source)
    return None


def _choose_rate(codec: SoundCodec, wanted: int) -> int:
    """Return the rate of the source, else the next higher one that the encoder has, else its highest."""
    known = av.Codec(codec.encoder, "w").audio_rates
    if not known or wanted in known:
        return wanted
    return min((rate for rate in known if rate > wanted), default=max(known))


def _add_stream(sink: OutputContainer, recipe: SoundRecipe) -> Any:
    stream: Any = sink.add_stream(recipe.codec.encoder, rate=recipe.rate, options={"flags": "+bitexact"})
    codec = stream.codec_context
    codec.format = recipe.format
    codec.layout = recipe.layout
    codec.time_base = Fraction(1, recipe.rate)
    codec.thread_count = 1
    if recipe.bit_rate:
        codec.bit_rate = recipe.bit_rate
    stream.time_base = codec.time_base
    return stream


class SoundEncoder:
    """One track of a result that is encoded.

    Args:
        sink: The result; its header is not written yet.
        source: The track of the source.
        recipe: From ``plan_sound``.
        late: Seconds by which all times move.
        span: Begin and end of the piece, in seconds of the source's times; None for all of it.
    """

    def __init__(
        self,
        sink: OutputContainer,
        source: Any,
        recipe: SoundRecipe,
        late: Fraction,
        span: tuple[Fraction, Fraction] | None,
    ) -> None:
        self.stream: Stream = _add_stream(sink, recipe)
        self._encoder: Any = self.stream
        self._channels = int(self._encoder.codec_context.layout.nb_channels)
        self._source = source
        self._recipe = recipe
        self._late = late
        self._span = span
        self._first = None if span is None else 0
        self._stop = None if span is None else round((span[1] - span[0]) * recipe.rate)
        self._run: _Run | None = None
        self._at: int | None = None
        self._drop = 0
        self._num_damaged = 0
        self._num_silent = 0
        self._num_dropped = 0

    def feed(self, packet: Any) -> Iterator[Any]:
        """Take a packet of the source.

        Args:
            packet: The next one; it is left as it is.

        Yields:
            Packets of ``stream``.
        """
        time = packet.pts if packet.pts is not None else packet.dts
        is_early = False
        if self._span is not None and time is not None:
            time_s = time * packet.time_base
            ends_s = time_s + (packet.duration * packet.time_base if packet.duration else _LONGEST_S)
            if ends_s < self._span[0] - _PREROLL_S or time_s >= self._span[1]:
                return
            is_early = time_s < self._span[0]
        try:
            frames = self._source.codec_context.decode(packet)
        except av.FFmpegError:  # damaged, or in the midst of what belongs together
            self._num_damaged += not is_early
            return
        for frame in frames:
            yield from self._take(frame)

    def finish(self) -> Iterator[Any]:
        """End the track.

        Yields:
            The last packets of ``stream``.
        """
        frames: list[Any] = []
        if self._source.codec_context.is_open:
            with suppress(av.FFmpegError):  # of a decoder that has already complained
                frames = self._source.codec_context.decode(None)
        for frame in frames:
            yield from self._take(frame)
        yield from self._end_run()
        yield from self._encoder.encode(None)

    def notes(self) -> Iterator[str]:
        """Say what the sound of the source lacks.

        Yields:
            Sentences.
        """
        name = f"audio stream {self._source.index}"
        if self._at is None:
            yield f"{name} has no sound that decodes"
        if self._num_damaged:
            yield f"{self._num_damaged} packets of {name} do not decode"
        if self._num_silent:
            silent_s = self._num_silent / self._recipe.rate
            yield f"{name} has holes of {silent_s:.2f} s in all: silence was encoded there"
        if self._num_dropped:
            dropped_s = self._num_dropped / self._recipe.rate
            yield f"{dropped_s:.2f} s of {name} were left out: times go back there"

    def _take(self, frame: Any) -> Iterator[Any]:
        if not frame.samples:
            return
        starts_s = None if frame.pts is None else frame.pts * Fraction(self._source.time_base) - self._late
        run = self._run
        is_hole = run is None or (starts_s is not None and abs(starts_s - run.ends_s) > _MAX_DRIFT_S)
        if run is None or is_hole or not run.fits(frame):
            yield from self._end_run()
            if starts_s is None or not is_hole:
                starts_s = run.ends_s if run is not None else Fraction(0)
            if is_hole:
                yield from self._go_to(round(starts_s * self._recipe.rate))
            run = self._run = _Run(frame, self._recipe, starts_s)
        for chunk in run.convert(frame):
            yield from self._put(chunk)

    def _end_run(self) -> Iterator[Any]:
        for chunk in self._run.end() if self._run is not None else ():
            yield from self._put(chunk)

    def _go_to(self, target: int) -> Iterator[Any]:
        """Bring the count of samples to a time: by silence, or by leaving out what follows."""
        if self._at is None:
            self._at = target
            return
        self._drop = max(self._at - target, 0)
        stop = target if self._stop is None else min(target, self._stop)
        while self._at < stop:
            count = min(stop - self._at, self._recipe.rate)
            self._num_silent += max(min(count, self._at + count - (self._first or 0)), 0)
            yield from self._put(np.zeros((1, count * self._channels), _DTYPES[_packed(self._recipe.format)]))
        self._at = max(self._at, target)

    def _put(self, samples: npt.NDArray[Any]) -> list[Any]:
        """Encode the part of samples that is wanted."""
        width = self._channels
        count = samples.shape[1] // width
        skipped = min(self._drop, count)
        self._drop -= skipped
        self._num_dropped += skipped
        count -= skipped
        at = self._at or 0
        self._at = at + count
        first = 0 if self._first is None else min(max(self._first - at, 0), count)
        stop = count if self._stop is None else min(max(self._stop - at, first), count)
        if first == stop:
            return []
        wanted = np.ascontiguousarray(samples[:, (skipped + first) * width : (skipped + stop) * width])
        frame = av.AudioFrame.from_ndarray(wanted, format=_packed(self._recipe.format), layout=self._recipe.layout)
        frame.rate = self._recipe.rate
        frame.pts = at + first
        frame.time_base = Fraction(1, self._recipe.rate)
        return list(self._encoder.encode(frame))


class _Run:
    """Sound without a hole, and of one rate, layout and format."""

    def __init__(self, first: Any, recipe: SoundRecipe, starts_s: Fraction) -> None:
        self._kind = _kind_of(first)
        self.ends_s = starts_s
        self._converter = av.AudioResampler(format=_packed(recipe.format), layout=recipe.layout, rate=recipe.rate)

    def fits(self, frame: Any) -> bool:
        """Tell whether a frame is of the same kind."""
        return _kind_of(frame) == self._kind

    def convert(self, frame: Any) -> list[npt.NDArray[Any]]:
        """Convert a frame to the encoder's samples."""
        self.ends_s += Fraction(frame.samples, frame.sample_rate)
        return [one.to_ndarray() for one in self._converter.resample(_name_channels(frame))]

    def end(self) -> list[npt.NDArray[Any]]:
        """Return what the converter still holds."""
        rest: list[Any] = self._converter.resample(None)
        return [one.to_ndarray() for one in rest if one is not None]


def _kind_of(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _name_channels(frame: Any) -> Any:
    """Give a frame whose layout is only a number of channels the default layout, and no time: samples are counted."""
    if not _has_no_names(frame):
        frame.pts = None
        return frame
    named = av.AudioFrame.from_ndarray(
        frame.to_ndarray(), format=frame.format.name, layout=f"{frame.layout.nb_channels}c"
    )
    named.rate = frame.sample_rate
    return named


def _has_no_names(frame: Any) -> bool:
    """Tell whether the layout is only a number of channels."""
    return bool(frame.layout.name.endswith("channels"))


def _packed(name: str) -> str:
    return name.removesuffix("p")
