"""Converts subtitles of text to a format that the container of a result holds: mov_text, SubRip or WebVTT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.subtitle import SubtitleSet

__all__ = ["STYLED_CODECS", "TEXT_CODECS", "SubtitleConverter"]

TEXT_CODECS = ("subrip", "ass", "webvtt", "mov_text", "text")
"""FFmpeg's names of the codecs that are converted."""

STYLED_CODECS = ("ass",)
"""Of these, codecs with styles and positions that others lack."""

_UNIT = Fraction(1, 1000)
_TEXT_FIELD = 8
_STYLE_FIELD = 2
"""Places in a line of ASS as FFmpeg's decoders give it: order, layer, style, name, three margins, effect, text."""


@dataclass(frozen=True, slots=True)
class _Line:
    """Text that is shown for a while, in milliseconds of the result."""

    start: int
    stop: int
    ass: bytes


class SubtitleConverter:
    """One track of subtitles of a result that is converted.

    Args:
        sink: The result; its header is not written yet.
        source: The track of the source, of one of ``TEXT_CODECS``.
        encoder: FFmpeg's name of the encoder.
        late: Seconds by which all times move.
        span: Begin and end of the piece, in seconds of the source's times; None for all of it.
    """

    def __init__(
        self,
        sink: OutputContainer,
        source: Any,
        encoder: str,
        late: Fraction,
        span: tuple[Fraction, Fraction] | None,
    ) -> None:
        source.codec_context.open(strict=False)
        self._encoder: Any = sink.add_stream(encoder)
        codec: Any = self._encoder.codec_context
        codec.subtitle_header = source.codec_context.subtitle_header
        codec.time_base = _UNIT
        self._encoder.time_base = _UNIT
        self.stream: Stream = self._encoder
        self._source = source
        self._late = late
        self._span = span
        self._is_flat = encoder == "mov_text"
        self._shown: list[_Line] = []
        self._at = 0
        self._num_damaged = 0

    def feed(self, packet: Any) -> list[Any]:
        """Take a packet of the source.

        Args:
            packet: The next one; it is left as it is.

        Returns:
            Packets of ``stream``.
        """
        line = self._read(packet)
        if line is None:
            return []
        if not self._is_flat:
            return self._encode(line.start, line.stop, [line])
        made = self._show_until(line.start)
        if not self._shown:
            self._at = max(self._at, line.start)
        self._shown.append(line)
        return made

    def finish(self) -> list[Any]:
        """End the track.

        Returns:
            The last packets of ``stream``.
        """
        return self._show_until(None)

    def notes(self) -> Iterator[str]:
        """Say what the subtitles of the source lack.

        Yields:
            Sentences.
        """
        if self._num_damaged:
            yield f"{self._num_damaged} packets of subtitle stream {self._source.index} do not decode"

    def _read(self, packet: Any) -> _Line | None:
        """Decode a packet; return what is shown within the piece."""
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            return None
        try:
            found = self._source.codec_context.decode2(packet)
        except av.FFmpegError:
            self._num_damaged += 1
            return None
        texts = [rect.ass for rect in found if rect.type == b"ass" and rect.ass] if found is not None else []
        if not texts:
            return None
        start_s = time * packet.time_base
        stop_s = start_s + (packet.duration or 0) * packet.time_base
        if self._span is not None:
            is_left = start_s < self._span[1] and (stop_s > self._span[0] or start_s >= self._span[0])
            if not is_left:
                return None
            start_s, stop_s = max(start_s, self._span[0]), min(stop_s, self._span[1])
        start, stop = (round((moment - self._late) / _UNIT) for moment in (start_s, stop_s))
        return _Line(start, stop, _join(texts))

    def _show_until(self, time: int | None) -> list[Any]:
        """Write what is shown up to a time: a sample of mov_text has all lines, since it replaces the one before."""
        made = []
        while self._shown and (time is None or self._at < time):
            stop = min(line.stop for line in self._shown)
            stop = stop if time is None else min(stop, time)
            if stop > self._at:
                made += self._encode(self._at, stop, self._shown)
                self._at = stop
            self._shown = [line for line in self._shown if line.stop > stop]
        return made

    def _encode(self, start: int, stop: int, lines: list[_Line]) -> list[Any]:
        text = _join([line.ass for line in lines])
        packet = self._encoder.codec_context.encode_subtitle(SubtitleSet.create(text, 0, stop - start))
        if not packet.size:
            return []
        packet.pts = packet.dts = start
        packet.duration = stop - start
        packet.time_base = _UNIT
        packet.stream = self.stream
        return [packet]


def _join(texts: list[bytes]) -> bytes:
    """Join lines of ASS, each in its own style."""
    first, *others = texts
    for other in others:
        fields = other.split(b",", _TEXT_FIELD)
        first += b"\\N{\\r" + fields[_STYLE_FIELD] + b"}" + fields[_TEXT_FIELD]
    return first
