"""What comes into a result beside its pictures: sound, subtitles, covers, attachments. The container itself is asked, before the first frame."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.format import Flags
from av.stream import Disposition, Stream

from genai_ray.errors import ConfigError
from genai_ray.video.codecs import CODECS, SUFFIXES
from genai_ray.video.container import explain, open_video
from genai_ray.video.encode import Encoding, add_encoder, choose_pixel_format
from genai_ray.video.info import main_stream
from genai_ray.video.plan import VideoPlan
from genai_ray.video.words import read_words

__all__ = ["Order", "add_copies", "check_result", "rescale"]

_FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov", ".webm": "webm"}
"""FFmpeg's name of the container that a suffix stands for."""

_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
"""Names of cover pictures in Matroska, where they are attachments."""

_WIDE_ENCODERS = ("libvpx-vp9", "libsvtav1")
"""Encoders that take gigabytes when they open for large pictures: they are tried with the width and with the height alone."""

_NARROW_PX = 128
"""The other side of such a picture."""

MOST_LOOKED_AT = 20_000
"""Packets in which the first of every track is looked for."""


def check_result(
    plan: VideoPlan, size: tuple[int, int], encoding: Encoding, suffix: str, *, has_alpha: bool = False
) -> None:
    """Try the beginning of a result: the encoder for pictures of its size, and a header with every track that is copied.

    Args:
        plan: The planned result.
        size: (width, height) of its pictures.
        encoding: The settings, validated.
        suffix: Of the output, lower case, with its dot.
        has_alpha: Whether alpha is stored.

    Raises:
        ConfigError: If the encoder does not take the size, or the container does not take a track with sound; names those that do.
        VideoError: If the source does not open.
    """
    if not _opens(plan, size, encoding, has_alpha):
        others = [
            Encoding(codec=name)
            for name, codec in CODECS.items()
            if suffix in codec.suffixes and (codec.alpha_formats or not has_alpha)
        ]
        takers = [
            other.encoder
            for other in others
            if other.encoder != encoding.encoder and _opens(plan, size, other, has_alpha)
        ]
        raise ConfigError(
            f"{plan.path}: {encoding.encoder} does not take pictures of {size[0]}x{size[1]}",
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
                f"{plan.path}: {suffix} does not take {encoding.encoder} and the tracks of this file ({explain(exc)})",
                do="Try .mkv.",
            ) from exc
        finally:
            with suppress(av.FFmpegError, ValueError):  # the end of a file without frames is no matter
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
    """Return the sizes that tell whether an encoder takes a size."""
    if encoding.encoder not in _WIDE_ENCODERS:
        return [size]
    width, height = size
    return [(width, min(height, _NARROW_PX)), (min(width, _NARROW_PX), height)]


def _open_encoder(
    sink: OutputContainer, plan: VideoPlan, size: tuple[int, int], encoding: Encoding, has_alpha: bool
) -> None:
    pix_fmt = choose_pixel_format(encoding, size, plan.info.pix_fmt, has_alpha=has_alpha)
    add_encoder(sink, encoding, plan.info, size, pix_fmt).codec_context.open(strict=False)


def add_copies(
    sink: OutputContainer, source: InputContainer, plan: VideoPlan, suffixes: Sequence[str] = SUFFIXES
) -> tuple[dict[int, Stream], tuple[str, ...]]:
    """Add everything to a result that is copied from its source.

    Args:
        sink: The result, which has its video stream.
        source: The source, open.
        plan: Its plan.
        suffixes: Outputs that take the pictures.

    Returns:
        The new streams by index of the source's, and notes: what the container cannot take, each by name.

    Raises:
        ConfigError: If the container does not take a track with sound, and another one does; WebM, which has two codecs of sound, goes without.
        VideoError: If the source does not open.
    """
    copies: dict[int, Stream] = {}
    notes: list[str] = []
    firsts = _first_packets(source, plan)
    stream: Any
    for stream in source.streams:
        if stream.type == "video" and stream.index == main_stream(source).index:
            continue
        codec, is_cover = getattr(stream, "codec_context", None), bool(stream.disposition & Disposition.attached_pic)
        name = f"{'cover' if is_cover else stream.type} stream {stream.index}"
        if stream.type == "video" and not is_cover:
            notes.append(f"{name} was left out: only stream {main_stream(source).index} is enhanced")
            continue
        if sink.format.name == "matroska" and _attach(sink, stream, firsts):
            continue
        has_sound, words = stream.type == "audio", _name_codec(stream)
        if stream.type in ("audio", "subtitle") or (is_cover and codec is not None):
            guesses = _find_way(stream, sink.format.name, firsts)
            if guesses is not None:
                copies[stream.index] = _add_copy(sink, stream, guesses_layout=guesses)
                continue
            takers = (
                [
                    other
                    for other in suffixes
                    if _FORMATS[other] != "webm" and _find_way(stream, _FORMATS[other], firsts) is not None
                ]
                if has_sound
                else []
            )
            if takers and sink.format.name != "webm":
                own = next(suffix for suffix, kind in _FORMATS.items() if kind == sink.format.name)
                kinds = " or ".join(takers)
                do = f"Choose an output of that kind; for those of a folder pass --name '{{folder}}{{stem}}{takers[-1]}'."
                raise ConfigError(f"{plan.path}: {own} does not take {name} ({words})", kinds, do)
        notes.append(f"{name} was left out: {sink.format.name} cannot take it ({words})")
    return copies, tuple(notes)


def _name_codec(stream: Any) -> str:
    if getattr(stream, "codec_context", None) is not None:
        return str(stream.codec_context.codec.canonical_name)
    return "unknown codec" if stream.type in ("audio", "subtitle") else "data"


def _first_packets(source: InputContainer, plan: VideoPlan) -> Mapping[int, Any]:
    """Return the first packet of every track that has one near the start."""
    wanted = {
        stream.index
        for stream in source.streams
        if stream.type == "audio" or stream.disposition & Disposition.attached_pic
    }
    found: dict[int, Any] = {}
    if wanted:
        with open_video(plan.path, any_format=plan.any_format) as container:
            for packet in islice(
                container.demux([container.streams[index] for index in sorted(wanted)]), MOST_LOOKED_AT
            ):
                if packet.size:
                    found.setdefault(packet.stream_index, packet)
                if found.keys() == wanted:
                    break
    return found


def _attach(sink: OutputContainer, stream: Any, firsts: Mapping[int, Any]) -> bool:
    """Make a cover or an attachment one of Matroska's attachments; tell whether it was one."""
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
    """Find how a container takes a track: False for as it is, True if its layout of channels is guessed, None for not at all.

    Some muxers write what they say of a track at the end only: a whole file of one packet is made.
    """
    for guesses_layout in (False, True) if stream.type == "audio" and stream.codec_context is not None else (False,):
        try:
            with av.open(io.BytesIO(), "w", format=name) as sink:
                copy, packet = _add_copy(sink, stream, guesses_layout=guesses_layout), firsts.get(stream.index)
                sink.start_encoding()
                if packet is not None:
                    packet.stream, packet.pts, packet.dts = copy, 0, 0
                    sink.mux_one(packet)
        except (ValueError, av.FFmpegError):
            continue
        return guesses_layout
    return None


def _add_copy(sink: OutputContainer, stream: Any, *, guesses_layout: bool) -> Stream:
    copy: Any
    codec = stream.codec_context
    # FFmpeg denies what Matroska holds by Microsoft's numbers of codecs (A_MS/ACM), and its muxer writes it; PyAV copies no
    # stream that it has no decoder of. For both, a stream of another codec gets the parameters, and the header decides.
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
        copy.codec_context.layout = f"{stream.codec_context.layout.nb_channels}c"  # the usual one of so many channels
    copy.time_base = stream.time_base
    copy.metadata.update(read_words(stream))
    copy.disposition = stream.disposition
    added: Stream = copy
    return added


class Order:
    """Decode times of copied tracks rise as their container wants it; those that do not are moved by the least that helps, as FFmpeg does.

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
        """Move a packet's times if they do not rise.

        Args:
            packet: Of any stream of the result, in the order of writing.
        """
        index, unit = packet.stream_index, packet.stream.time_base
        if index not in self._names or packet.dts is None:
            return
        dts = rescale(packet.dts, packet.time_base, unit)
        pts = dts if packet.pts is None else rescale(packet.pts, packet.time_base, unit)
        step = self._steps[index]
        wanted = max(min(dts, pts), self._last.get(index, dts - step) + step)
        if wanted != dts:
            duration = rescale(packet.duration or 0, packet.time_base, unit)
            packet.dts, packet.pts, packet.duration, packet.time_base = wanted, max(pts, wanted), duration, unit
            self._moved[index] = self._moved.get(index, 0) + 1
        self._last[index] = wanted

    def notes(self) -> Iterator[str]:
        """Say what was moved.

        Yields:
            One sentence a stream.
        """
        for index, count in self._moved.items():
            yield f"times of {count} packets of {self._names[index]} were moved: they did not rise"


def rescale(time: int, base: Fraction, unit: Fraction) -> int:
    """Express a time in another unit, halves away from zero, as FFmpeg does.

    Args:
        time: In units of ``base``.
        base: Seconds.
        unit: Seconds.

    Returns:
        The nearest number of ``unit``.
    """
    numerator, denominator = abs(time) * base.numerator * unit.denominator, base.denominator * unit.numerator
    rounded = (2 * numerator + denominator) // (2 * denominator)
    return rounded if time >= 0 else -rounded
