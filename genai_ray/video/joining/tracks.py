"""Everything that a result has beside the pictures: sound, subtitles, covers, attachments and their metadata.

A track is copied if the container holds it. What a container can hold is found out before the first frame, by writing a
header or a short file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any, NoReturn

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream

from genai_ray.display import format_count
from genai_ray.errors import ConfigError
from genai_ray.video.codecs import CODECS, SOUND_CODECS, SOUND_FOR, SUFFIXES, TEXT_FOR, keep_scheduling
from genai_ray.video.container import explain, open_video
from genai_ray.video.encoding.encode import add_encoder, choose_pixel_format
from genai_ray.video.encoding.hardware import find_codec
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import main_stream
from genai_ray.video.joining.excerpt import drop_statistics
from genai_ray.video.joining.metadata import read_metadata
from genai_ray.video.joining.sound import SoundEncoder, plan_sound, read_layout, read_sound
from genai_ray.video.joining.subtitles import STYLED_CODECS, TEXT_CODECS, TIMED_CODECS, SubtitleConverter
from genai_ray.video.pictures.picture_writer import describe_plays
from genai_ray.video.reading.plan import VideoPlan
from genai_ray.video.track_options import STRETCH

__all__ = ["Tracks", "add_tracks", "check_result"]

_FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov", ".webm": "webm"}
"""FFmpeg's name of the container by suffix."""

_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
"""Names of cover pictures in Matroska, where they are attachments."""

_WIDE_ENCODERS = ("libvpx-vp9", "libsvtav1")
"""Encoders that take gigabytes to open for large pictures: width and height are tried one after the other."""

_NARROW_PX = 128
"""The other side of such a trial."""

MOST_LOOKED_AT = 20_000
"""Packets that are read to find the first one of every track."""


def check_result(
    plan: VideoPlan, size: tuple[int, int], encoding: Encoding, suffix: str, *, has_alpha: bool = False
) -> tuple[str, ...]:
    """Try the start of a result: open the encoder for its size, and write a header with every track.

    Args:
        plan: The planned result.
        size: (width, height) of its pictures.
        encoding: The settings, validated.
        suffix: Suffix of the output, lower case, with its dot.
        has_alpha: Whether alpha is stored.

    Returns:
        Notes on tracks that are not copied, and on what a video cannot keep of pictures; none for frames without a
        container.

    Raises:
        ConfigError: If the encoder does not support the size, a track that is asked for is not there, or the container
            can hold one neither as it is nor as it is asked for; the error names containers that can.
        VideoError: If the source does not open.
    """
    if not _opens(plan, size, encoding, has_alpha):
        others = [
            name
            for name, codec in CODECS.items()
            if name != encoding.encoder and suffix in codec.suffixes and (codec.alpha_formats or not has_alpha)
        ]
        takers = [name for name in others if _opens(plan, size, Encoding(codec=name), has_alpha)]
        raise ConfigError(
            f"{plan.path}: {encoding.encoder} does not support pictures of {size[0]}x{size[1]}",
            " or ".join(takers) or "smaller pictures",
            "Choose another codec.",
        )
    if plan.pictures is not None:
        return tuple(describe_plays(plan.pictures)) if suffix in _FORMATS else ()
    if suffix not in _FORMATS:
        if plan.tracks.streams:
            with open_video(plan.path, any_format=plan.any_format) as source:
                plan.tracks.choose(source, plan.path)
        return ()
    part = _parts_of(encoding, size)[0]
    with open_video(plan.path, any_format=plan.any_format) as source:
        sink = av.open(io.BytesIO(), "w", format=_FORMATS[suffix])
        try:
            _open_encoder(sink, plan, part, encoding, has_alpha)
            tracks = add_tracks(sink, source, plan, suffixes=find_codec(encoding.encoder).suffixes)
            sink.start_encoding()
            return tracks.notes
        except (av.FFmpegError, ValueError) as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError(
                f"{plan.path}: {suffix} cannot hold {encoding.encoder} and the tracks of this file ({explain(exc)})",
                do="Try .mkv.",
            ) from exc
        finally:
            with suppress(av.FFmpegError, ValueError):  # a file without frames need not end well
                sink.close()


def _opens(plan: VideoPlan, size: tuple[int, int], encoding: Encoding, has_alpha: bool) -> bool:
    for part in _parts_of(encoding, size):
        with av.open(io.BytesIO(), "w", format="mov" if encoding.encoder == "prores_ks" else "nut") as sink:
            try:
                _open_encoder(sink, plan, part, encoding, has_alpha)
            except (av.FFmpegError, ValueError):
                return False
    return True


def _parts_of(encoding: Encoding, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes to try for an encoder and a size."""
    if encoding.encoder not in _WIDE_ENCODERS:
        return [size]
    width, height = size
    return [(width, min(height, _NARROW_PX)), (min(width, _NARROW_PX), height)]


def _open_encoder(
    sink: OutputContainer, plan: VideoPlan, size: tuple[int, int], encoding: Encoding, has_alpha: bool
) -> None:
    pix_fmt = choose_pixel_format(encoding, size, plan.info.pix_fmt, has_alpha=has_alpha)
    with keep_scheduling():
        add_encoder(sink, encoding, plan.info, size, pix_fmt).codec_context.open(strict=False)


@dataclass(frozen=True, slots=True)
class Tracks:
    """The tracks of a result beside its pictures, by the source's index."""

    copies: Mapping[int, Stream]
    """Those that are copied."""
    made: Mapping[int, SoundEncoder | SubtitleConverter]
    """Those that are encoded or converted."""
    notes: tuple[str, ...]
    """What is not copied, and why."""

    @property
    def streams(self) -> dict[int, Stream]:
        """The streams of the result."""
        return {**self.copies, **{index: one.stream for index, one in self.made.items()}}


def add_tracks(
    sink: OutputContainer,
    source: InputContainer,
    plan: VideoPlan,
    *,
    suffixes: Sequence[str] = SUFFIXES,
    late: Fraction = Fraction(0),
) -> Tracks:
    """Add all streams beside the pictures to a result.

    Args:
        sink: The result, which has its video stream.
        source: The source, open.
        plan: Its plan.
        suffixes: Outputs that can hold the pictures.
        late: Seconds of the source's times by which all times move.

    Returns:
        The tracks.

    Raises:
        ConfigError: If a track that is asked for is not there, or the container can hold one neither as it is nor as
            it is asked for.
        VideoError: If the source does not open.
    """
    adder = _Adder(sink, source, plan, suffixes, late)
    for stream in source.streams:
        if stream.index != adder.main:
            adder.add(stream)
    return Tracks(adder.copies, adder.made, tuple(adder.notes))


@dataclass(slots=True)
class _Adder:
    """Adds one stream after the other."""

    sink: OutputContainer
    source: InputContainer
    plan: VideoPlan
    suffixes: Sequence[str]
    late: Fraction
    copies: dict[int, Stream] = field(default_factory=dict)
    made: dict[int, SoundEncoder | SubtitleConverter] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    main: int = field(init=False)
    chosen: frozenset[int] = field(init=False)
    firsts: Mapping[int, Any] = field(init=False)
    own: str = field(init=False)

    def __post_init__(self) -> None:
        self.main = main_stream(self.source).index
        self.chosen = self.plan.tracks.choose(self.source, self.plan.path)
        self.firsts = _first_packets(self.source, self.plan)
        self.own = next(suffix for suffix, kind in _FORMATS.items() if kind == self.sink.format.name)

    def add(self, stream: Any) -> None:
        is_track = stream.type in ("audio", "subtitle")
        is_cover = bool(stream.disposition & Disposition.attached_pic)
        name = f"{'cover' if is_cover else stream.type} stream {stream.index}"
        if is_track and stream.index not in self.chosen:
            return
        if stream.type == "video" and not is_cover:
            self.notes.append(f"{name} was left out: only stream {self.main} is enhanced")
        elif stream.type == "audio" and self.plan.lacks_track(stream.index):  # MP4 needs a packet of some codecs
            self.notes.append(f"{name} was left out: it has no sound in this piece")
        elif self.sink.format.name == "matroska" and _attach(self.sink, stream, self.firsts):
            pass
        elif stream.type == "audio":
            self._add_sound(stream, name)
        elif stream.type == "subtitle":
            self._add_subtitles(stream, name)
        elif not (is_cover and getattr(stream, "codec_context", None) is not None and self._copy(stream)):
            self._leave_out(stream, name)

    def _copy(self, stream: Any) -> bool:
        guesses = _find_way(stream, self.sink.format.name, self.firsts)
        if guesses is not None:
            copy = self.copies[stream.index] = _add_copy(self.sink, stream, guesses_layout=guesses)
            if self.plan.slow_motion > 1:
                drop_statistics(copy)
        return guesses is not None

    def _add_sound(self, stream: Any, name: str) -> None:
        mode = self.plan.tracks.audio
        times = self.plan.slow_motion
        if times > 1 and mode != STRETCH:
            self.notes.append(f"{name} was left out: slow motion; --audio stretch makes it {times} times as long")
            return
        codec = SOUND_CODECS.get(mode)
        is_wanted = codec is None or _name_codec(stream) == av.Codec(codec.encoder, "w").canonical_name
        if is_wanted and times == 1 and self._copy(stream):
            return
        is_forced = is_wanted and times == 1
        if mode != "copy" and self._encode(stream, name, why=f": {self.own} cannot hold it" if is_forced else ""):
            return
        if codec is not None or times > 1:
            self._refuse_sound(stream, name)
        takers = self._find_takers(stream, self.suffixes)
        if takers or mode == "copy":
            self._refuse(stream, name, takers, mode)
        self._leave_out(stream, name)

    def _refuse_sound(self, stream: Any, name: str) -> NoReturn:
        """Say why sound cannot be encoded as it is asked for, and what can be asked for instead."""
        words = ["none"]
        frame = read_sound(self.plan, stream.index)
        if self.plan.slow_motion == 1:
            can_copy = _find_way(stream, self.sink.format.name, self.firsts) is not None
            codecs = [word for word, codec in SOUND_CODECS.items() if frame is not None and self.own in codec.suffixes]
            takers = [word for word in codecs if plan_sound(frame, word) is not None]
            others = (("auto", can_copy or frame is not None), ("copy", can_copy))
            words = [*(word for word, is_possible in others if is_possible), "none", *takers]
        why = ", which does not decode" if frame is None else f" with {_describe_channels(frame.layout)}"
        raise ConfigError(
            f"{self.plan.path}: audio {self.plan.tracks.audio!r} for {name} ({_name_codec(stream)}){why}",
            ", ".join(words),
            "Or choose tracks with --streams (streams=...).",
        )

    def _encode(self, stream: Any, name: str, why: str) -> bool:
        frame = read_sound(self.plan, stream.index)
        if frame is None:
            return False
        mode = self.plan.tracks.audio
        words = (mode,) if mode in SOUND_CODECS else SOUND_FOR[self.own][_is_lossless(stream)]
        times = self.plan.slow_motion
        recipe = next((recipe for word in words if (recipe := plan_sound(frame, word, times)) is not None), None)
        if recipe is None:
            return False
        ends_s = (self.plan.pts[-1] + self.plan.duration) * self.plan.info.time_base
        self._add_made(stream, SoundEncoder(self.sink, stream, recipe, self.late, self.plan.span, ends_s))
        self.notes.append(f"{name} ({_name_codec(stream)}, {recipe.source}) is encoded as {recipe}{why}")
        return True

    def _add_subtitles(self, stream: Any, name: str) -> None:
        if self._copy(stream):
            if self.plan.slow_motion > 1 and (codec := _name_codec(stream)) in TIMED_CODECS:
                self.notes.append(f"{name} ({codec}) says how long it is shown: no longer than in the source")
            return
        if self.plan.tracks.subtitles == "copy":
            self._refuse(stream, name, self._find_takers(stream, self.suffixes), "copy")
        codec = _name_codec(stream)
        if stream.codec_context is None or codec not in TEXT_CODECS:
            self._leave_out(stream, name)
            return
        encoder = TEXT_FOR[self.own]
        made = SubtitleConverter(self.sink, stream, encoder, self.plan, self.late)
        self._add_made(stream, made)
        lost = "; its positions and most of its styles are lost" if codec in STYLED_CODECS else ""
        self.notes.append(f"{name} ({codec}) is converted to {encoder}: {self.own} cannot hold it{lost}")

    def _add_made(self, stream: Any, made: SoundEncoder | SubtitleConverter) -> None:
        made.stream.metadata.update(read_metadata(stream))
        drop_statistics(made.stream)
        made.stream.disposition = stream.disposition
        self.made[stream.index] = made

    def _find_takers(self, stream: Any, suffixes: Sequence[str]) -> list[str]:
        return [
            suffix
            for suffix in suffixes
            if suffix != self.own and _find_way(stream, _FORMATS[suffix], self.firsts) is not None
        ]

    def _refuse(self, stream: Any, name: str, takers: Sequence[str], mode: str) -> NoReturn:
        """Say which outputs can hold a track and the pictures."""
        kind = "subtitles" if stream.type == "subtitle" else "audio"
        other = f"pass --{kind} auto or none ({kind}='auto'), or choose tracks with --streams (streams=...)."
        do = (
            f"Choose such an output; for files of a folder pass --name '{{folder}}{{stem}}{takers[-1]}'."
            if takers
            else ""
        )
        if mode == "copy":
            do = f"{do} Or {other}" if takers else other.capitalize()
        raise ConfigError(
            f"{self.plan.path}: {self.own} cannot hold {name} ({_name_codec(stream)})",
            " or ".join(takers) or "tracks that a result can hold",
            do,
        )

    def _leave_out(self, stream: Any, name: str) -> None:
        takers = self._find_takers(stream, SUFFIXES) if stream.type in ("audio", "subtitle") else []
        words = f"{self.sink.format.name} cannot hold it ({_name_codec(stream)})"
        others = f", {' and '.join(takers)} can" if takers else ""
        self.notes.append(f"{name} was left out: {words}{others}")


def _is_lossless(stream: Any) -> bool:
    """Tell whether a codec of sound loses nothing; of DTS only an extension does, which is rare."""
    codec = stream.codec_context.codec
    return bool(codec.lossless) and codec.canonical_name != "dts"


def _describe_channels(layout: Any) -> str:
    """Return such as "6 channels (5.1)"; the name of an unusual layout has their number already."""
    name, count = str(layout.name), int(layout.nb_channels)
    return name if "channel" in name else f"{format_count(count, 'channel')} ({name})"


def _name_codec(stream: Any) -> str:
    if getattr(stream, "codec_context", None) is not None:
        return str(stream.codec_context.codec.canonical_name)
    return "unknown codec" if stream.type in ("audio", "subtitle") else "data"


def _first_packets(source: InputContainer, plan: VideoPlan) -> Mapping[int, Any]:
    """Return the first packet of every track that has a packet near the start."""
    wanted = {
        stream.index
        for stream in source.streams
        if stream.type == "audio" or stream.disposition & Disposition.attached_pic
    }
    found: dict[int, Any] = {}
    if wanted:
        with open_video(plan.path, any_format=plan.any_format) as container:
            streams = [container.streams[index] for index in sorted(wanted)]
            for packet in islice(container.demux(streams), MOST_LOOKED_AT):
                if packet.size:
                    found.setdefault(packet.stream_index, packet)
                if found.keys() == wanted:
                    break
    return found


def _attach(sink: OutputContainer, stream: Any, firsts: Mapping[int, Any]) -> bool:
    """Add a cover or an attachment as an attachment of Matroska; return whether the stream was one."""
    if stream.type == "attachment":
        sink.add_attachment(stream.name or "attachment", stream.mimetype or "application/octet-stream", stream.data)
        return True
    if not stream.disposition & Disposition.attached_pic or stream.index not in firsts or stream.codec_context is None:
        return False
    file_name, mime_type = _COVERS.get(
        stream.codec_context.codec.canonical_name, ("cover.bin", "application/octet-stream")
    )
    sink.add_attachment(
        stream.metadata.get("filename", file_name),
        stream.metadata.get("mimetype", mime_type),
        bytes(firsts[stream.index]),
    )
    return True


def _find_way(stream: Any, name: str, firsts: Mapping[int, Any]) -> bool | None:
    """Find how a container can hold a track: False is as it is, True with a guessed channel layout, None not at all.

    Some muxers check a track only at the end, so this writes a whole file of one packet.
    """
    for guesses_layout in (False, True) if stream.type == "audio" and stream.codec_context is not None else (False,):
        try:
            with av.open(io.BytesIO(), "w", format=name) as sink:
                copy = _add_copy(sink, stream, guesses_layout=guesses_layout)
                packet = firsts.get(stream.index)
                sink.start_encoding()
                if packet is not None:
                    packet.stream = copy
                    packet.pts = 0
                    packet.dts = 0
                    sink.mux_one(packet)
        except (ValueError, av.FFmpegError):
            continue
        return guesses_layout
    return None


def _add_copy(sink: OutputContainer, stream: Any, *, guesses_layout: bool) -> Stream:
    copy: Any
    codec = stream.codec_context
    # FFmpeg says that Matroska cannot hold codecs by Microsoft's numbers (A_MS/ACM), but its muxer writes them; and
    # PyAV copies no stream without a decoder. In both cases a stream of another codec gets the parameters; the header
    # decides.
    try:
        if codec is None:
            raise ValueError("no decoder")
        copy = sink.add_stream_from_template(stream, opaque=True)
    except ValueError:
        if codec is not None and (sink.format.name != "matroska" or stream.type != "audio"):
            raise
        with av.open(io.BytesIO(), "w", format="matroska") as other:
            copy = sink.add_stream_from_template(other.add_stream("pcm_s16le"), opaque=True)
        BitStreamFilterContext("null", stream, copy)
        copy.codec_context.codec_tag = "\0\0\0\0"
    if guesses_layout:
        channels = read_layout(stream.codec_context).nb_channels
        copy.codec_context.layout = f"{channels}c"  # the default for this channel count
    copy.time_base = stream.time_base
    copy.metadata.update(read_metadata(stream))
    copy.disposition = stream.disposition
    added: Stream = copy
    return added
