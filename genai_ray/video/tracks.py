"""Everything that a result copies beside the pictures: sound, subtitles, covers, attachments and their metadata.

What a container can hold is found out before the first frame, by writing a header or a short file.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.format import Flags
from av.stream import Disposition, Stream

from genai_ray.errors import ConfigError
from genai_ray.video.codecs import CODECS, SUFFIXES, keep_scheduling
from genai_ray.video.container import explain, open_video
from genai_ray.video.encode import Encoding, add_encoder, choose_pixel_format
from genai_ray.video.info import main_stream
from genai_ray.video.plan import VideoPlan

__all__ = [
    "TECHNICAL_KEYS",
    "Order",
    "add_copies",
    "check_result",
    "describe_lost_metadata",
    "read_metadata",
    "rescale",
]

_FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov", ".webm": "webm"}
"""FFmpeg's name of the container by suffix."""

_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
"""Names of cover pictures in Matroska, where they are attachments."""

_WIDE_ENCODERS = ("libvpx-vp9", "libsvtav1")
"""Encoders that take gigabytes to open for large pictures: width and height are tried one after the other."""

_NARROW_PX = 128
"""The other side of such a trial."""

TECHNICAL_KEYS = ("encoder", "major_brand", "minor_version", "compatible_brands")
"""Metadata about how a file was written; a result has its own."""

_IGNORED_KEYS = (*TECHNICAL_KEYS, "duration", "software")

_TRACK_KEYS = ("title", "language")
"""Metadata by which a person chooses a track."""

_UNKNOWN = ("", "und")
"""Values that mean no language."""

MOST_LOOKED_AT = 20_000
"""Packets that are read to find the first one of every track."""


def check_result(
    plan: VideoPlan, size: tuple[int, int], encoding: Encoding, suffix: str, *, has_alpha: bool = False
) -> None:
    """Try the start of a result: open the encoder for its size, and write a header with every copied track.

    Args:
        plan: The planned result.
        size: (width, height) of its pictures.
        encoding: The settings, validated.
        suffix: Suffix of the output, lower case, with its dot.
        has_alpha: Whether alpha is stored.

    Raises:
        ConfigError: If the encoder does not support the size, or the container cannot hold an audio track; the error
            names those that can.
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
    if suffix not in _FORMATS:
        return
    part = _parts_of(encoding, size)[0]
    with open_video(plan.path, any_format=plan.any_format) as source:
        sink = av.open(io.BytesIO(), "w", format=_FORMATS[suffix])
        try:
            _open_encoder(sink, plan, part, encoding, has_alpha)
            add_copies(sink, source, plan, CODECS[encoding.encoder].suffixes)
            sink.start_encoding()
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


def add_copies(
    sink: OutputContainer, source: InputContainer, plan: VideoPlan, suffixes: Sequence[str] = SUFFIXES
) -> tuple[dict[int, Stream], tuple[str, ...]]:
    """Add all copied streams to a result.

    Args:
        sink: The result, which has its video stream.
        source: The source, open.
        plan: Its plan.
        suffixes: Outputs that can hold the pictures.

    Returns:
        The new streams by the source's index, and notes on the streams that the container cannot hold.

    Raises:
        ConfigError: If the container cannot hold an audio track and another one can. WebM, which holds only two audio
            codecs, leaves such tracks out.
        VideoError: If the source does not open.
    """
    copies: dict[int, Stream] = {}
    notes: list[str] = []
    firsts = _first_packets(source, plan)
    stream: Any
    for stream in source.streams:
        if stream.type == "video" and stream.index == main_stream(source).index:
            continue
        codec = getattr(stream, "codec_context", None)
        is_cover = bool(stream.disposition & Disposition.attached_pic)
        name = f"{'cover' if is_cover else stream.type} stream {stream.index}"
        if stream.type == "video" and not is_cover:
            notes.append(f"{name} was left out: only stream {main_stream(source).index} is enhanced")
            continue
        if stream.type == "audio" and plan.lacks_track(stream.index):  # MP4 cannot hold some codecs without a packet
            notes.append(f"{name} was left out: it has no sound in this piece")
            continue
        if sink.format.name == "matroska" and _attach(sink, stream, firsts):
            continue
        if stream.type in ("audio", "subtitle") or (is_cover and codec is not None):
            guesses = _find_way(stream, sink.format.name, firsts)
            if guesses is not None:
                copies[stream.index] = _add_copy(sink, stream, guesses_layout=guesses)
                continue
            takers = _find_takers(stream, suffixes, firsts) if stream.type == "audio" else []
            if takers and sink.format.name != "webm":
                own = next(suffix for suffix, kind in _FORMATS.items() if kind == sink.format.name)
                raise ConfigError(
                    f"{plan.path}: {own} cannot hold {name} ({_name_codec(stream)})",
                    " or ".join(takers),
                    f"Choose such an output; for the files of a folder pass --name '{{folder}}{{stem}}{takers[-1]}'.",
                )
        notes.append(f"{name} was left out: {sink.format.name} cannot hold it ({_name_codec(stream)})")
    return copies, tuple(notes)


def _find_takers(stream: Any, suffixes: Sequence[str], firsts: Mapping[int, Any]) -> list[str]:
    """Return the outputs, other than WebM, that can hold an audio track."""
    return [
        suffix
        for suffix in suffixes
        if _FORMATS[suffix] != "webm" and _find_way(stream, _FORMATS[suffix], firsts) is not None
    ]


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
        copy.codec_context.layout = f"{stream.codec_context.layout.nb_channels}c"  # the default for this channel count
    copy.time_base = stream.time_base
    copy.metadata.update(read_metadata(stream))
    copy.disposition = stream.disposition
    added: Stream = copy
    return added


def read_metadata(stream: Any) -> dict[str, str]:
    """Read the metadata of a track.

    Args:
        stream: The track.

    Returns:
        Its metadata; MP4's and MOV's ``name`` becomes ``title``.
    """
    metadata = dict(stream.metadata)
    if "title" not in metadata and "name" in metadata:
        metadata["title"] = metadata.pop("name")
    return metadata


def describe_lost_metadata(source: InputContainer, tracks: Collection[int], result: Path) -> Iterator[str]:
    """Say which metadata of a source is missing in its result.

    Args:
        source: The source, open.
        tracks: Indices of its streams that are in the result, in the same order.
        result: The finished file.

    Yields:
        One sentence for the file, and one for each track.

    Raises:
        av.FFmpegError: If the result does not open.
    """
    name = "matroska" if result.suffix.lower() == ".mkv" else result.suffix[1:].lower()
    with av.open(str(result)) as box:
        there = {key.lower() for key in box.metadata}
        lost = sorted(key for key in source.metadata if key.lower() not in there and key.lower() not in _IGNORED_KEYS)
        if lost:
            yield f"metadata {', '.join(lost)} was left out: {name} cannot hold it"
        for kind in ("video", "audio", "subtitle"):
            copied = (stream for stream in source.streams if stream.index in tracks and _is_track(stream, kind))
            for stream, copy in zip(
                copied, (stream for stream in box.streams if _is_track(stream, kind)), strict=False
            ):
                before = read_metadata(stream)
                after = read_metadata(copy)
                for word in _TRACK_KEYS:
                    value = before.get(word, "")
                    if value not in _UNKNOWN and after.get(word) != value:
                        yield f"{word} {value!r} of {kind} stream {stream.index} was left out: {name} cannot hold it"


def _is_track(stream: Any, kind: str) -> bool:
    return bool(stream.type == kind) and not stream.disposition & Disposition.attached_pic


class Order:
    """Makes the decode times of copied tracks ascend as the container requires, by the smallest moves, as FFmpeg does.

    Args:
        sink: The result; its header is written.
        copies: Its copied streams.
    """

    def __init__(self, sink: OutputContainer, copies: Mapping[int, Stream]) -> None:
        nonstrict: Any = Flags.ts_nonstrict
        is_strict = not sink.format.flags & nonstrict.value
        self._names = {copy.index: f"{copy.type} stream {index}" for index, copy in copies.items()}
        self._steps = {copy.index: int(is_strict and copy.type != "subtitle") for copy in copies.values()}
        self._last: dict[int, int] = {}
        self._moved: dict[int, int] = {}

    def keep(self, packet: Any) -> None:
        """Move a packet's times if they do not ascend.

        Args:
            packet: The next packet to write, of any stream of the result.
        """
        index = packet.stream_index
        unit = packet.stream.time_base
        if index not in self._names or packet.dts is None:
            return
        dts = rescale(packet.dts, packet.time_base, unit)
        pts = dts if packet.pts is None else rescale(packet.pts, packet.time_base, unit)
        step = self._steps[index]
        wanted = max(min(dts, pts), self._last.get(index, dts - step) + step)
        if wanted != dts:
            packet.duration = rescale(packet.duration or 0, packet.time_base, unit)
            packet.dts = wanted
            packet.pts = max(pts, wanted)
            packet.time_base = unit
            self._moved[index] = self._moved.get(index, 0) + 1
        self._last[index] = wanted

    def notes(self) -> Iterator[str]:
        """Describe the moves.

        Yields:
            One sentence for each stream.
        """
        for index, count in self._moved.items():
            yield f"times of {count} packets of {self._names[index]} were moved: they did not ascend"


def rescale(time: int, base: Fraction, unit: Fraction) -> int:
    """Convert a time to another unit, rounding halves away from zero, as FFmpeg does.

    Args:
        time: The time, in units of ``base``.
        base: Seconds per unit of ``time``.
        unit: Seconds per unit of the result.

    Returns:
        The time, in units of ``unit``.
    """
    numerator = abs(time) * base.numerator * unit.denominator
    denominator = base.denominator * unit.numerator
    rounded = (2 * numerator + denominator) // (2 * denominator)
    return rounded if time >= 0 else -rounded
