"""Writes animations frame by frame: GIF with 256 colours a frame, APNG with exact durations, and WebP."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from genai_ray.errors import VideoError
from genai_ray.video.pictures.animations import FOR_EVER
from genai_ray.video.pictures.images import DEFAULT_QUALITY, Picture, encode_picture

__all__ = ["ANIMATED", "AnimationFormat", "check_webp", "round_durations", "write_animation"]

Array = npt.NDArray[Any]

OPAQUE_FROM = 128
"""A pixel of a GIF is shown if its alpha is at least this, and else transparent."""

MAX_WEBP_PX = 256 * 1024**2
"""Most pixels in all frames of a WebP animation: its encoder takes all of them at once, at 4 bytes each."""

_TRANSPARENT = 255
_COLOURS = 256
_GIF_FORWARD = struct.Struct("<BHB")
_KEEP, _CLEAR = 1, 2
"""Disposal of a GIF's frame: the next one is put over it, or over nothing."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class AnimationFormat:
    """What an animation of one format can say."""

    max_side_px: int
    """Longest side of a frame."""
    unit_s: Fraction | None
    """Unit of durations; None for any fraction of 16 bits."""
    max_units: int
    """Longest duration of a frame."""
    max_plays: int
    """Most plays, beside no end."""


ANIMATED = {
    "gif": AnimationFormat(65535, Fraction(1, 100), 65535, 65536),
    "webp": AnimationFormat(16383, Fraction(1, 1000), 2**24 - 1, 65535),
    "png": AnimationFormat(2**31 - 1, None, 65535, 2**31 - 1),
}
"""Formats by name."""


def round_durations(times_s: Sequence[Fraction], format_name: str) -> list[Fraction]:
    """Round the times of an animation to what its format can say; errors do not add up.

    Args:
        times_s: When each frame begins, and when the last one ends, ascending.
        format_name: A key of ``ANIMATED``.

    Returns:
        How long each frame is shown, in seconds.

    Raises:
        VideoError: If a frame would be shown for no time, or longer than the format can say.
    """
    kind = ANIMATED[format_name]
    if kind.unit_s is not None:
        ticks = [round(time_s / kind.unit_s) for time_s in times_s]
        found = [(after - before) * kind.unit_s for before, after in pairwise(ticks)]
        longest_s = kind.max_units * kind.unit_s
    else:
        found = [_limit(after - before, kind.max_units) for before, after in pairwise(times_s)]
        longest_s = Fraction(kind.max_units)
    if not all(0 < duration_s <= longest_s for duration_s in found):
        index = next(index for index, duration_s in enumerate(found) if not 0 < duration_s <= longest_s)
        wanted_s = float(times_s[index + 1] - times_s[index])
        raise VideoError(
            f"frame {index} is shown for {wanted_s:g} s, which {format_name} cannot say",
            f"up to {float(longest_s):g} s" + (f", at least {float(kind.unit_s):g} s" if kind.unit_s else ""),
            "Write a video instead.",
        )
    return found


def check_webp(size: tuple[int, int], count: int) -> None:
    """Check that WebP's encoder takes all frames at once.

    Args:
        size: (width, height) of a frame in pixels.
        count: Number of frames.

    Raises:
        VideoError: If it is too large.
    """
    width, height = size
    if width * height * count > MAX_WEBP_PX:
        raise VideoError(
            f"a WebP animation of {count} frames of {width}x{height}",
            f"{MAX_WEBP_PX} pixels in all frames: its encoder takes all of them at once",
            "Write .png (an animated PNG), .gif or a video.",
        )


def write_animation(
    frames: Iterator[Picture],
    durations_s: Sequence[Fraction],
    plays: int,
    path: Path,
    format_name: str,
    quality: int | None = None,
) -> None:
    """Write an animation.

    Args:
        frames: Pictures of one size and dtype, all with alpha or none; WebP and GIF have 8 bits.
        durations_s: How long each of them is shown, from ``round_durations``.
        plays: How often it is played; ``FOR_EVER`` for no end.
        path: The file.
        format_name: A key of ``ANIMATED``.
        quality: Quality of WebP, from 1 to 100; None for 92.

    Raises:
        VideoError: If it is too large for WebP's encoder.
        OSError: If writing fails.
    """
    with path.open("wb") as file:
        if format_name == "gif":
            _write_gif(frames, durations_s, plays, file)
        elif format_name == "png":
            _write_png(frames, durations_s, plays, file)
        else:
            _write_webp(frames, durations_s, plays, file, quality or DEFAULT_QUALITY)


def _limit(duration_s: Fraction, most: int) -> Fraction:
    """Return the nearest fraction whose numbers are at most ``most``."""
    return duration_s.limit_denominator(max(int(most / max(duration_s, Fraction(1))), 1))


def _write_gif(frames: Iterator[Picture], durations_s: Sequence[Fraction], plays: int, file: BinaryIO) -> None:
    """Write full frames, each with a palette of its own; frames with transparent pixels do not cover each other."""
    for index, (picture, duration_s) in enumerate(zip(frames, durations_s, strict=True)):
        if index == 0:
            height, width = picture.rgb.shape[:2]
            file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
            if plays != 1:
                repeats = 0 if plays == FOR_EVER else plays - 1
                file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", repeats, 0))
        palette, data = _encode_gif(picture)
        has_alpha = picture.alpha is not None
        flags = (_CLEAR if has_alpha else _KEEP) << 2 | has_alpha
        units = int(duration_s / (ANIMATED["gif"].unit_s or 1))
        file.write(b"\x21\xf9\x04" + _GIF_FORWARD.pack(flags, units, _TRANSPARENT) + b"\0")
        file.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0x87) + palette + data)
    file.write(b"\x3b")


def _encode_gif(picture: Picture) -> tuple[bytes, bytes]:
    """Return the palette of a frame, 768 bytes, and its pixels as blocks of LZW."""
    image = Image.fromarray(picture.rgb)
    most = _COLOURS - (picture.alpha is not None)
    if image.getcolors(most) is not None:
        colours, indices = _index_exactly(picture.rgb)
    else:
        chosen = image.quantize(most, method=Image.Quantize.MEDIANCUT)
        indices = np.array(image.quantize(palette=chosen, dither=Image.Dither.FLOYDSTEINBERG))
        colours = bytes(chosen.getpalette("RGB") or [])
    table = colours.ljust(3 * _COLOURS, b"\0")[: 3 * _COLOURS]
    if picture.alpha is not None:
        indices[picture.alpha < OPAQUE_FROM] = _TRANSPARENT
    plain = Image.frombytes("P", image.size, indices.tobytes())
    plain.putpalette(table)
    buffer = io.BytesIO()
    plain.save(buffer, "GIF", optimize=False, interlace=0)
    return table, _find_gif_pixels(buffer.getvalue())


def _index_exactly(rgb: Array) -> tuple[bytes, Array]:
    """Return the colours of a picture that has at most 256, and (H, W) their indices: Pillow's search is not exact."""
    channels = rgb.astype(np.uint32)
    packed = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    values, indices = np.unique(packed, return_inverse=True)
    colours = b"".join(int(value).to_bytes(3, "big") for value in values)
    return colours, indices.reshape(packed.shape).astype(np.uint8)


def _find_gif_pixels(body: bytes) -> bytes:
    """Return the blocks of pixels of a GIF of one frame: from the size of its codes to the end of the last block."""
    at = 13 + (3 << (body[10] & 7) + 1 if body[10] & 0x80 else 0)
    while body[at] == 0x21:  # extensions
        at += 2
        while body[at]:
            at += 1 + body[at]
        at += 1
    at += 10 + (3 << (body[at + 9] & 7) + 1 if body[at + 9] & 0x80 else 0)
    end = at + 1
    while body[end]:
        end += 1 + body[end]
    return body[at : end + 1]


def _write_png(frames: Iterator[Picture], durations_s: Sequence[Fraction], plays: int, file: BinaryIO) -> None:
    """Write full frames, each in place of the one before it."""
    number = 0

    def write(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    for index, (picture, duration_s) in enumerate(zip(frames, durations_s, strict=True)):
        chunks = list(_chunks_of(encode_picture(picture, "png")))
        height, width = picture.rgb.shape[:2]
        if index == 0:
            file.write(_PNG_SIGNATURE)
            write(*chunks[0])
            write(b"acTL", struct.pack(">II", len(durations_s), plays))
            for kind, data in chunks:
                if kind == b"iCCP":
                    write(kind, data)
        delay = struct.pack(">HHBB", duration_s.numerator, duration_s.denominator, 0, 0)
        write(b"fcTL", struct.pack(">IIIII", number, width, height, 0, 0) + delay)
        number += 1
        for data in (data for kind, data in chunks if kind == b"IDAT"):
            if index == 0:
                write(b"IDAT", data)
            else:
                write(b"fdAT", struct.pack(">I", number) + data)
                number += 1
    write(b"IEND", b"")


def _chunks_of(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG_SIGNATURE)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at + 8 : at + 8 + length]
        at += 12 + length


def _write_webp(
    frames: Iterator[Picture], durations_s: Sequence[Fraction], plays: int, file: BinaryIO, quality: int
) -> None:
    images: list[Image.Image] = []
    profile = None
    for picture in frames:
        height, width = picture.rgb.shape[:2]
        check_webp((width, height), len(durations_s))
        profile = picture.icc_profile
        planes = (picture.rgb,) if picture.alpha is None else (picture.rgb, picture.alpha[..., None])
        images.append(Image.fromarray(np.concatenate(planes, axis=2)))
    unit_s = ANIMATED["webp"].unit_s or 1
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    images[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=[int(duration_s / unit_s) for duration_s in durations_s],
        loop=plays,
        quality=quality,
        **options,
    )
