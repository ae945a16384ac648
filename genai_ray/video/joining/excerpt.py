"""Cuts what is copied beside the pictures - sound, subtitles, chapters - to a piece of a video, and moves it to zero.

Packets are never changed. MP4 and MOV say by an edit list which samples of the first packet are not heard, so sound is
exact there; in Matroska and WebM it begins with the first packet that lies within the piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream

from genai_ray.video.reading.ranges import Span

__all__ = ["Excerpt", "cut_chapters", "drop_statistics"]

_STATISTICS = ("bps", "duration", "number_of_", "_statistics")
"""First letters of Matroska's tags about a whole track: they would be wrong for a piece."""

_PREROLL_S = {"opus": Fraction(8, 100), "mp3": Fraction(2, 10)}
"""How long a decoder needs packets until its sound is right: Opus by RFC 7845, 4.6; MP3 because of its bit reservoir.
Other codecs need at most the packet before."""

_NO_PREROLL = ("pcm_", "adpcm_", "flac", "alac", "tta", "wavpack")
"""First letters of codecs of which every packet decodes by itself."""

_MOST_APART_S = Fraction(1)
"""Packets further apart do not join, if they do not say how long they are; otherwise the longer one's length is the
limit."""


def cut_chapters(source: InputContainer, span: Span) -> Any:
    """Cut the chapters of a source to a piece.

    Args:
        source: The source, open.
        span: The piece.

    Returns:
        Chapters as PyAV takes them: those that lie partly within the piece, from zero.
    """
    begin, end = span.begin, span.end
    chapters = []
    chapter: Any
    for chapter in source.chapters():
        unit = chapter["time_base"]
        starts, stops = (
            round((min(max(chapter[name] * unit, begin), end) - begin) / unit) for name in ("start", "end")
        )
        if stops > starts:
            chapters.append({**chapter, "start": starts, "end": stops})
    return chapters


def drop_statistics(stream: Stream) -> None:
    """Remove Matroska's tags about a whole track from a track of other packets.

    Args:
        stream: A stream of the result.
    """
    for key in [key for key in stream.metadata if key.lower().startswith(_STATISTICS)]:
        stream.metadata.pop(key)


@dataclass(slots=True)
class _Track:
    """One copied track; times are in units of the source's stream."""

    name: str
    """For notes."""
    kind: str
    """``audio``, ``subtitle``, or ``cover``."""
    unit: Fraction
    """Seconds of a unit."""
    begin: int
    """Begin of the piece: this time becomes zero."""
    end: int
    """End of what is kept of the track."""
    pictures_end: int
    """End of the piece's pictures."""
    preroll: int | None
    """How long before the begin packets are needed; None for the packet before."""
    lead: int = 0
    """What a decoder drops of a track's first packets; Matroska's times do not count it, so packets may begin so much
    before zero."""
    early: list[Any] = field(default_factory=list)
    """Packets that are needed if the piece begins soon."""
    first: int | None = None
    """When the first packet that is written begins, from zero."""
    last: int = 0
    """When the last one ends, from zero."""


class Excerpt:
    """The packets of a piece, of all copied tracks.

    Args:
        span: The piece.
        source: The source, open.
        sink: The result.
        copies: Its copied streams by the source's index; tags about the whole track are removed from them.
    """

    def __init__(
        self,
        span: Span,
        source: InputContainer,
        sink: OutputContainer,
        copies: Mapping[int, Stream],
    ) -> None:
        self._copies = copies
        self._has_edit_lists = sink.format.name in ("mp4", "mov")
        self._tracks = {index: _describe(source.streams[index], span) for index in copies}
        for copy in copies.values():
            drop_statistics(copy)

    def cut(self, packet: Any) -> list[Any]:
        """Take a packet of the source.

        Args:
            packet: The next one of a copied track.

        Returns:
            Packets to write now, from the begin of the piece, that belong to their stream of the result.
        """
        return self._give(packet.stream_index, self._cut(packet, self._tracks[packet.stream_index]))

    def finish(self) -> list[Any]:
        """End all tracks.

        Returns:
            The last packets.
        """
        return [packet for index, track in self._tracks.items() for packet in self._give(index, self._finish(track))]

    def _give(self, index: int, packets: list[Any]) -> list[Any]:
        for packet in packets:
            packet.stream = self._copies[index]
        return packets

    def notes(self) -> Iterator[str]:
        """Describe how the sound was cut.

        Yields:
            A sentence for each track that does not begin and end with the pictures, or is empty.
        """
        for track in self._tracks.values():
            if track.kind != "audio":
                continue
            if track.first is None:
                yield f"{track.name} has no sound in this piece"
            elif not self._has_edit_lists:
                starts_ms, stops_ms = (
                    float(time * track.unit * 1000)
                    for time in (track.first + track.lead, track.last - (track.pictures_end - track.begin))
                )
                yield (
                    f"{track.name} is cut to whole packets: it begins {_say(starts_ms)} the pictures "
                    f"and ends {_say(stops_ms)} them"
                )

    def _cut(self, packet: Any, track: _Track) -> list[Any]:
        """Return the packets to write now, moved to zero."""
        if track.kind == "cover":
            return [packet]
        if track.kind == "subtitle":
            return [packet] if _cut_subtitle(packet, track) else []
        time = _time_of(packet)
        if time is None:
            return []
        if time >= track.end:
            return self._finish(track)
        if self._has_edit_lists:
            _keep_early(packet, track)
            if time < track.begin:
                return []
        elif time >= track.begin - track.lead and (track.first is not None or packet.is_keyframe):
            track.early.append(packet)
        return self._take_early(track)

    def _finish(self, track: _Track) -> list[Any]:
        """Return the packets to write if no more begin within the piece: the last one may begin before and reach it."""
        return self._take_early(track) if track.early and _end_of(track.early[-1]) > track.begin else []

    def _take_early(self, track: _Track) -> list[Any]:
        ready, track.early = track.early, []
        for kept in ready:
            self._move(kept, track)
        return ready

    def _move(self, packet: Any, track: _Track) -> None:
        """Move a packet of sound; if an edit list says when a track ends, the last one is shortened to the end."""
        time: Any = _time_of(packet)
        packet.pts, packet.dts = (None if t is None else t - track.begin for t in (packet.pts, packet.dts))
        if self._has_edit_lists and packet.duration:
            packet.duration = min(packet.duration, track.end - time)
        track.first = time - track.begin if track.first is None else track.first
        track.last = time - track.begin + (packet.duration or 0)


def _describe(stream: Any, span: Span) -> _Track:
    unit = Fraction(stream.time_base)
    is_cover = bool(stream.disposition & Disposition.attached_pic)
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else ""
    preroll_s = Fraction(0) if codec.startswith(_NO_PREROLL) else _PREROLL_S.get(codec)
    return _Track(
        name=f"{stream.type} stream {stream.index}",
        kind="cover" if is_cover else stream.type,
        unit=unit,
        begin=round(span.begin / unit),
        end=round(span.tracks_end / unit),
        pictures_end=round(span.end / unit),
        preroll=None if preroll_s is None else math.ceil(preroll_s / unit),
        lead=math.ceil(_read_pre_skip(bytes(stream.codec_context.extradata or b"")) / unit) if codec == "opus" else 0,
    )


def _read_pre_skip(head: bytes) -> Fraction:
    """Read the seconds that an Opus decoder drops at the start (RFC 7845, 5.1)."""
    return Fraction(int.from_bytes(head[10:12], "little"), 48000)


def _time_of(packet: Any) -> int | None:
    time: int | None = packet.pts if packet.pts is not None else packet.dts
    return time


def _end_of(packet: Any) -> int:
    end: int = (_time_of(packet) or 0) + (packet.duration or 0)
    return end


def _keep_early(packet: Any, track: _Track) -> None:
    """Keep a packet, and forget those before the last key frame that is early enough for a decoder, or before a gap."""
    preroll = (packet.duration or 0) if track.preroll is None else track.preroll
    if track.early and (ends := _end_of(track.early[-1])) <= track.begin:
        lengths = (track.early[-1].duration, packet.duration)
        most = max(lengths) if all(lengths) else math.ceil(_MOST_APART_S / track.unit)
        if (_time_of(packet) or 0) - ends > most:
            track.early.clear()
    track.early.append(packet)
    enough = [
        place
        for place, early in enumerate(track.early)
        if early.is_keyframe and (_time_of(early) or 0) <= track.begin - preroll
    ]
    if enough:
        del track.early[: enough[-1]]


def _cut_subtitle(packet: Any, track: _Track) -> bool:
    """Shorten a subtitle to the piece, and move it to zero; return whether something of it is left."""
    time = _time_of(packet)
    if time is None:
        return False
    starts = max(time, track.begin)
    if packet.duration:
        stops: int = min(time + packet.duration, track.end)
        packet.duration = max(stops - starts, 0)
        is_left = stops > starts
    else:
        is_left = track.begin <= time < track.end
    packet.pts = packet.dts = starts - track.begin
    return is_left


def _say(late_ms: float) -> str:
    return f"{abs(late_ms):.1f} ms {'after' if late_ms >= 0 else 'before'}"
