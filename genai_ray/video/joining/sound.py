"""Encodes a track of sound that is not copied: its first sample stays at its time, and no sample is lost or added.

Decoders drop what their codec says is not heard, at the start and at the end. Encoders say the same of their own delay,
which MP4 and MOV keep in an edit list, and Matroska in the track's header. If times leave a hole in the sound, silence
is encoded there, so that everything after it stays with the pictures; the time of a single frame that no other confirms
is not followed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
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
from genai_ray.video.joining.samples import Converter
from genai_ray.video.reading.plan import VideoPlan
from genai_ray.video.reading.ranges import Span

__all__ = ["SoundEncoder", "SoundRecipe", "plan_sound", "read_layout", "read_sound"]

_MAX_DRIFT_S = Fraction(1, 10)
"""Times that are less apart from the count of samples follow the count, as in FFmpeg's ``aresample=async=1``."""

_PREROLL_S = 1
"""How long before a piece decoding begins: every decoder's sound is right by then."""

_LONGEST_S = 10
"""Length of a packet that does not say how long it is, at most."""

_MOST_READ = 100_000
"""Packets of all tracks that are read to find the first sample of one."""

_DTYPES: dict[str, type[np.generic]] = {"s16": np.int16, "s32": np.int32, "flt": np.float32}
"""Values of packed samples."""

_MAX_PLANES = 7
"""PyAV (18) counts the planes of a frame wrongly if it has more; samples are packed here."""

_SHORT_FORMATS = ("u8", "u8p", "s16", "s16p")
"""Sample formats of up to 16 bits."""

_MICROSECOND = Fraction(1, 1_000_000)
"""Unit of seeking."""

_LISTED = " channels ("
"""Part of the name of a layout without a name, such as "2 channels (FR+FL)"; all custom orders have one."""

_ORDER = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC"),
    *("TBR", "DL", "DR", "WL", "WR", "SDL", "SDR", "LFE2", "TSL", "TSR", "BFC", "BFL", "BFR"),
)
"""Channels in FFmpeg's own order, by its names (``libavutil/channel_layout.h``)."""


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
    times: int = 1
    """How many times as long it is made."""

    def __str__(self) -> str:
        bits = f"with {self.codec.bits[self.codec.formats.index(self.format)]} bits" if self.codec.bits else ""
        longer = f", {self.times} times as long" if self.times > 1 else ""
        return f"{self.codec.name} {bits or f'at {self.bit_rate // 1000} kb/s'}, {self.rate} Hz, {self.layout}{longer}"


def read_layout(owner: Any) -> Any:
    """Read the channel layout of a decoded frame or of a decoder, so that it is freed once.

    PyAV (18) copies the pointer of a custom order of channels (a MOV's ``chan`` atom may have one), and each copy frees
    what it points to. The copy of such an order is therefore never freed: about 100 bytes each.

    Args:
        owner: The frame or the codec context.

    Returns:
        Its ``AudioLayout``.
    """
    layout = owner.layout
    if _LISTED in layout.name:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return layout


def _decode(codec: Any, packet: Any) -> list[Any]:
    """Decode sound; None for the packet ends it."""
    frames: list[Any] = codec.decode(packet)
    for frame in frames:
        read_layout(frame)
    return frames


def read_sound(plan: VideoPlan, index: int) -> Any:
    """Decode the first sound of a track, or of its piece, which has the true rate, layout and format.

    Args:
        plan: The source.
        index: Index of the track.

    Returns:
        A frame of it; None if nothing near its start decodes.

    Raises:
        VideoError: If the source does not open.
    """
    begins_s = next((begin_s for track, begin_s, _ in plan.tracks_s if track == index), 0.0)
    wanted_s = begins_s if plan.span is None else max(begins_s, float(plan.span.begin))
    for goes_there in (True, False) if wanted_s > _PREROLL_S else (False,):
        with open_video(plan.path, any_format=plan.any_format) as container:
            stream: Any = container.streams[index]
            if stream.codec_context is None:
                return None
            if goes_there:
                with suppress(av.FFmpegError):  # not every file can be searched
                    container.seek(round((Fraction(wanted_s) - _PREROLL_S) / _MICROSECOND))
            frame = _find_frame(container, stream, None if plan.span is None else Fraction(wanted_s))
            if frame is not None:
                return frame
    return None


def _find_frame(container: Any, stream: Any, wanted_s: Fraction | None) -> Any:
    """Return the first frame that is heard at a time or later, else the last one before; None for the very first."""
    found: Any = None
    for packet in islice(container.demux(), _MOST_READ):
        if packet.stream_index != stream.index:
            continue
        try:
            frames = _decode(stream.codec_context, packet if packet.size else None)
        except av.FFmpegError:
            continue
        for frame in frames:
            if not frame.samples:
                continue
            found = frame
            if wanted_s is None or frame.pts is None:
                return found
            if frame.pts * Fraction(stream.time_base) + Fraction(frame.samples, frame.sample_rate) > wanted_s:
                return found
    return found


def plan_sound(frame: Any, name: str, times: int = 1) -> SoundRecipe | None:
    """Find how an encoder takes a track: with the rate and the layout of the source, or the nearest it has.

    Args:
        frame: From ``read_sound``; its time is lost.
        name: A word of ``SOUND_CODECS``.
        times: How many times as long it is made.

    Returns:
        How it is encoded; None if the encoder does not take so many channels, or FFmpeg converts them to nothing that
        it takes.
    """
    codec = SOUND_CODECS[name]
    if codec.encoder not in av.codecs_available:
        return None
    channels = frame.layout.nb_channels
    if _has_no_names(frame) and frame.format.is_planar and channels > _MAX_PLANES:
        return None
    rate = _choose_rate(codec, frame.sample_rate)
    is_long = frame.format.name not in _SHORT_FORMATS
    recipe = SoundRecipe(
        codec=codec,
        format=codec.formats[-1 if is_long else 0],
        layout=f"{channels}c",  # the default for this count of channels
        rate=rate,
        bit_rate=codec.bit_rate(rate, channels),
        source=_describe(frame),
        times=times,
    )
    own = _sort_channels(frame)
    for wanted in (recipe,) if own is None else (replace(recipe, layout=own), recipe):
        with av.open("nothing", "w", format="null") as sink:
            try:
                named = _add_stream(sink, wanted)
                named.codec_context.open(strict=False)
                fitted = replace(wanted, layout=named.layout.name)
                _Run(frame, fitted, Fraction(0)).convert(frame)
            except (av.FFmpegError, ValueError):
                continue
            return fitted
    return None


def _choose_rate(codec: SoundCodec, wanted: int) -> int:
    """Return the rate of the source, else the next higher one that the encoder has, else its highest."""
    known = [rate for rate in av.Codec(codec.encoder, "w").audio_rates or () if rate >= codec.min_rate]
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
        late: Seconds of the source's times by which all times move.
        span: The piece; None for all of it.
        ends_s: When the last picture ends, in seconds of the result: silence is not encoded beyond it.
    """

    def __init__(
        self,
        sink: OutputContainer,
        source: Any,
        recipe: SoundRecipe,
        late: Fraction,
        span: Span | None,
        ends_s: Fraction,
    ) -> None:
        self.stream: Stream = _add_stream(sink, recipe)
        self._encoder: Any = self.stream
        self._channels = int(self._encoder.codec_context.layout.nb_channels)
        self._source = source
        self._recipe = recipe
        self._per_s = recipe.rate * recipe.times  # samples of the result for a second of the source
        self._late = late
        self._span = span
        self._first = None if span is None else 0
        self._stop = None if span is None else round((span.tracks_end - span.begin) * self._per_s)
        self._last = round(ends_s * recipe.rate)
        self._run: _Run | None = None
        self._held: Any = None
        self._at: int | None = None
        self._drop = 0
        self._num_damaged = 0
        self._num_silent = 0
        self._num_unheard = 0
        self._num_dropped = 0
        self._num_wrong = 0
        self._num_strange = 0
        self._unlike_s = Fraction(0)

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
            if ends_s < self._span.begin - _PREROLL_S or time_s >= self._span.tracks_end:
                return
            is_early = time_s < self._span.begin
        try:
            frames = _decode(self._source.codec_context, packet)
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
                frames = _decode(self._source.codec_context, None)
        for frame in frames:
            yield from self._take(frame)
        yield from self._take_held(None)
        yield from self._end_run()
        yield from self._encoder.encode(None)

    def notes(self) -> Iterator[str]:
        """Say what the sound of the source lacks.

        Yields:
            Sentences.
        """
        name = f"audio stream {self._source.index}"
        rate = self._per_s
        if self._at is None:
            yield f"{name} has no sound that decodes"
        if self._num_damaged:
            yield f"{self._num_damaged} packets of {name} do not decode"
        if self._num_strange:
            yield f"{self._num_strange} frames of {name} have channels that cannot be converted: they were left out"
        if self._num_wrong:
            yield f"{self._num_wrong} times of {name} are wrong: the sound was put between its neighbours"
        if self._num_silent:
            yield f"{name} has holes of {self._num_silent / rate:.2f} s in all: silence was encoded there"
        if self._num_unheard:
            yield f"{name} has holes of {self._num_unheard / rate:.2f} s after the last picture: they were closed"
        if self._num_dropped:
            yield f"{self._num_dropped / rate:.2f} s of {name} were left out: times go back there"
        if self._unlike_s:
            yield (
                f"{float(self._unlike_s):.2f} s of {name} are not {self._recipe.source}: "
                "they were mixed or resampled like the rest"
            )

    def _take(self, frame: Any) -> Iterator[Any]:
        """Take a frame; the first one after a jump of times is held until the next one confirms it."""
        if not frame.samples:
            return
        starts_s = None if frame.pts is None else frame.pts * Fraction(self._source.time_base) - self._late
        yield from self._take_held(starts_s)
        run = self._run
        if run is not None and starts_s is not None and abs(starts_s - run.ends_s) > _MAX_DRIFT_S:
            self._held = (frame, starts_s)
        else:
            yield from self._append(frame, starts_s, is_jump=False)

    def _take_held(self, next_s: Fraction | None) -> Iterator[Any]:
        """Take the frame after a jump, at its time or, if the next one is nearer to the old count, without it."""
        if self._held is None:
            return
        (frame, starts_s), self._held = self._held, None
        run: Any = self._run
        length_s = Fraction(frame.samples, frame.sample_rate)
        is_wrong = next_s is not None and abs(next_s - run.ends_s - length_s) < abs(next_s - starts_s - length_s)
        self._num_wrong += is_wrong
        yield from self._append(frame, starts_s, is_jump=not is_wrong)

    def _append(self, frame: Any, starts_s: Fraction | None, *, is_jump: bool) -> Iterator[Any]:
        """Convert and encode a frame: at its time after a jump, else after the one before."""
        run = self._run
        if run is None or is_jump or not run.fits(frame):
            yield from self._end_run()
            if run is not None and not is_jump:
                starts_s = run.ends_s
            else:
                starts_s = Fraction(self._at or 0, self._per_s) if starts_s is None else starts_s
                yield from self._go_to(round(starts_s * self._per_s))
            run = self._run = _Run(frame, self._recipe, starts_s)
        begins_s = run.ends_s
        try:
            chunks = run.convert(frame)
        except av.FFmpegError:  # channels that cannot be mixed to those of the track
            self._run = None
            self._num_strange += 1
            return
        if _describe(frame) != self._recipe.source:
            self._unlike_s += self._within(begins_s, run.ends_s)
        for chunk in chunks:
            yield from self._put(chunk)

    def _within(self, begins_s: Fraction, ends_s: Fraction) -> Fraction:
        """Return how many seconds of a stretch are in the piece."""
        if self._stop is not None:
            begins_s, ends_s = max(begins_s, Fraction(0)), min(ends_s, Fraction(self._stop, self._per_s))
        return max(ends_s - begins_s, Fraction(0))

    def _end_run(self) -> Iterator[Any]:
        for chunk in self._run.converter.end() if self._run is not None else ():
            yield from self._put(chunk)

    def _go_to(self, target: int) -> Iterator[Any]:
        """Bring the count of samples to a time: by silence, or by leaving out what follows."""
        if self._at is None:
            self._at = target
            return
        if self._stop is None and target > max(self._at, self._last):
            self._num_unheard += target - max(self._at, self._last)
            target = max(self._at, self._last)
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
        self.converter = Converter(_packed(recipe.format), recipe.layout, recipe.rate, recipe.times)

    def fits(self, frame: Any) -> bool:
        """Tell whether a frame is of the same kind."""
        return _kind_of(frame) == self._kind

    def convert(self, frame: Any) -> list[npt.NDArray[Any]]:
        """Convert a frame to the encoder's samples."""
        self.ends_s += Fraction(frame.samples, frame.sample_rate)
        return self.converter.convert(_name_channels(frame))


def _kind_of(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _describe(frame: Any) -> str:
    return f"{frame.sample_rate} Hz, {frame.layout.name}"


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


def _sort_channels(frame: Any) -> str | None:
    """Name the layout of the same channels in FFmpeg's order: an encoder cannot be given others (``read_layout``)."""
    name = str(frame.layout.name)
    if _LISTED not in name:
        return None if _has_no_names(frame) else name
    listed = re.fullmatch(r"\d+ channels \((.*)\)", name)
    words = listed[1].split("+") if listed else []
    is_known = words and len(set(words)) == len(words) and set(words) <= set(_ORDER)
    return "+".join(sorted(words, key=_ORDER.index)) if is_known else None


def _packed(name: str) -> str:
    return name.removesuffix("p")
