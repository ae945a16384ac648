"""Converts subtitles of text to a format that the container of a result holds: mov_text, SubRip or WebVTT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.subtitle import SubtitleSet

from genai_ray.video.reading.plan import VideoPlan

__all__ = ["STYLED_CODECS", "TEXT_CODECS", "TIMED_CODECS", "SubtitleConverter"]

TEXT_CODECS = ("subrip", "ass", "webvtt", "mov_text", "text")
"""FFmpeg's names of the codecs that are converted."""

STYLED_CODECS = ("ass",)
"""Of these, codecs with styles and positions that others lack."""

TIMED_CODECS = ("dvd_subtitle", "dvb_subtitle")
"""Codecs of pictures that hold how long they are shown, beside the times of their packets."""

_LONGEST_S = 10
"""How long a text without an end is shown, at most."""

_PLACES = re.compile(rb"\{[^}]*\\(?:an?\d|pos\(|move\()")
"""Positions in a line of ASS; of the encoders, only SubRip's keeps them."""

_CLASSES = re.compile(rb"<(?:c|lang|ruby|v)[.\s>]")
"""Marks of WebVTT that FFmpeg's decoder leaves out."""

_UNIT = Fraction(1, 1000)
_TEXT_FIELD = 8
_STYLE_FIELD = 2
"""Places in a line of ASS as FFmpeg's decoders give it: order, layer, style, name, three margins, effect, text."""


@dataclass(frozen=True, slots=True)
class _Text:
    """What a packet of the source shows, in seconds of its times."""

    start_s: Fraction
    stop_s: Fraction | None
    """None if the source does not say it."""
    lines: list[bytes]
    """In ASS."""
    is_styled: bool
    """Whether it has positions or styles that are lost."""


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
        plan: The planned result: a text without an end is not shown beyond its last picture.
        late: Seconds of the source's times by which all times move.
    """

    def __init__(
        self,
        sink: OutputContainer,
        source: Any,
        encoder: str,
        plan: VideoPlan,
        late: Fraction,
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
        self._span = plan.span
        self._times = plan.slow_motion
        self._ends_s = (plan.pts[-1] + plan.duration) * plan.info.time_base / plan.slow_motion + late
        self._name = encoder
        self._is_flat = encoder == "mov_text"
        self._open: list[_Text] = []
        self._shown: list[_Line] = []
        self._at = 0
        self._num_damaged = 0
        self._num_endless = 0
        self._num_drawn = 0
        self._num_styled = 0
        self._num_late = 0
        self._num_long = 0

    def feed(self, packet: Any) -> list[Any]:
        """Take a packet of the source.

        Args:
            packet: The next one; it is left as it is.

        Returns:
            Packets of ``stream``.
        """
        text = self._read(packet)
        if text is None:
            return []
        made = self._end_open(text.start_s)
        if text.stop_s is None:
            self._open.append(text)
            return made
        return made + self._show(text, text.stop_s)

    def finish(self) -> list[Any]:
        """End the track.

        Returns:
            The last packets of ``stream``.
        """
        return self._end_open(None) + self._show_until(None)

    def notes(self) -> Iterator[str]:
        """Say what the subtitles of the source lack, and what of them is lost.

        Yields:
            Sentences.
        """
        name = f"subtitle stream {self._source.index}"
        if self._num_damaged:
            yield f"{self._num_damaged} packets of {name} do not decode"
        if self._num_endless:
            yield (
                f"{self._num_endless} texts of {name} have no end: "
                f"each is shown until the next one, {_LONGEST_S} s at most"
            )
        if self._num_drawn:
            yield f"drawings in {self._num_drawn} lines of {name} were left out"
        if self._num_styled:
            yield f"{self._num_styled} texts of {name} have positions or styles that are lost in {self._name}"
        if self._num_late:
            yield f"{self._num_late} texts of {name} were left out: they end before others that come first"
        if self._num_long:
            yield f"{self._num_long} texts of {name} were left out: they are too long for {self._name}"

    def _read(self, packet: Any) -> _Text | None:
        """Decode a packet; one without lines ends texts that have no end."""
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            return None
        codec = self._source.codec_context
        try:
            found = codec.decode2(packet)
        except av.FFmpegError:
            self._num_damaged += 1
            return None
        lines = [rect.ass for rect in found if rect.type == b"ass" and rect.ass] if found is not None else []
        start_s = time * packet.time_base
        length = packet.duration or 0
        stop_s = start_s + length * packet.time_base if length > 0 or not lines else None
        kind = codec.codec.canonical_name
        if kind == "webvtt":
            is_styled = bool(bytes(packet.get_sidedata("webvtt_settings")).strip() or _CLASSES.search(bytes(packet)))
        else:  # for ASS, the note at the start says it
            is_styled = kind not in STYLED_CODECS and self._name != "subrip" and any(map(_PLACES.search, lines))
        return _Text(start_s, stop_s, lines, is_styled)

    def _end_open(self, time_s: Fraction | None) -> list[Any]:
        """Show texts without an end: until the next one begins, or for a while."""
        made = []
        for text in [text for text in self._open if time_s is None or text.start_s < time_s]:
            self._open.remove(text)
            stop_s = min(text.start_s + _LONGEST_S, max(self._ends_s, text.start_s) if time_s is None else time_s)
            if self._span is None or (text.start_s < self._span.tracks_end and stop_s > self._span.begin):
                self._num_endless += 1
            made += self._show(text, stop_s)
        return made

    def _show(self, text: _Text, stop_s: Fraction) -> list[Any]:
        """Begin to show what of a text is within the piece."""
        start_s = text.start_s
        if self._span is not None:
            start_s, stop_s = max(start_s, self._span.begin), min(stop_s, self._span.tracks_end)
            if start_s >= stop_s:
                return []
        lines = [_drop_drawing(line) for line in text.lines]
        self._num_drawn += sum(kept != line for kept, line in zip(lines, text.lines, strict=True))
        lines = [line for line in lines if line]
        if not lines:
            return []
        self._num_styled += text.is_styled
        start, stop = (round((moment - self._late) * self._times / _UNIT) for moment in (start_s, stop_s))
        line = _Line(start, max(stop, start + 1), _join(lines))
        if not self._is_flat:
            return self._encode(line.start, line.stop, [line])
        made = self._show_until(line.start)
        if not self._shown:
            self._at = max(self._at, line.start)
        if line.stop <= self._at:
            self._num_late += 1
        else:
            self._shown.append(line)
        return made

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
        try:
            packet = self._encoder.codec_context.encode_subtitle(SubtitleSet.create(text, 0, stop - start))
        except (av.FFmpegError, OverflowError):
            self._num_long += 1
            return []
        if not packet.size:
            return []
        packet.pts = packet.dts = start
        packet.duration = stop - start
        packet.time_base = _UNIT
        packet.stream = self.stream
        return [packet]


def _drop_drawing(line: bytes) -> bytes:
    r"""Leave drawings out of a line of ASS (from ``\p1`` to ``\p0``); return nothing if no text is left."""
    *fields, text = line.split(b",", _TEXT_FIELD)
    kept: list[bytes] = []
    draws = has_drawn = False
    for part in re.split(rb"(\{[^}]*\})", text):
        if part.startswith(b"{"):
            for scale in re.findall(rb"\\p(\d+)", part):
                draws = int(scale) > 0
        elif draws and part:
            has_drawn = True
            continue
        kept.append(part)
    if not has_drawn:
        return line
    is_left = any(part.strip() and not part.startswith(b"{") for part in kept)
    return b",".join([*fields, b"".join(kept)]) if is_left else b""


def _join(texts: list[bytes]) -> bytes:
    """Join lines of ASS, each in its own style."""
    first, *others = texts
    for other in others:
        fields = other.split(b",", _TEXT_FIELD)
        first += b"\\N{\\r" + fields[_STYLE_FIELD] + b"}" + fields[_TEXT_FIELD]
    return first
