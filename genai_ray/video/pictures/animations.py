"""Reads animations: GIF, APNG and WebP, with exact durations, loops and transparency.

A frame is what a player shows: the pictures before it, composed as the file says.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import lcm
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import Blend as PngBlend
from PIL.PngImagePlugin import PngImageFile

from genai_ray.errors import InvalidInputError
from genai_ray.types import full_range
from genai_ray.video.pictures.frame_files import to_deep_pixels
from genai_ray.video.pictures.images import open_image

__all__ = ["FOR_EVER", "UNSAID_S", "Animation", "decode_animation", "is_animation", "read_animation"]

Array = npt.NDArray[Any]

FOR_EVER = 0
"""Plays of an animation that does not end."""

UNSAID_S = Fraction(1, 10)
"""What players show a frame for that has no duration."""

_READ = ("GIF", "PNG", "WEBP")
_PNG_DEPTH_AT = 24
_PNG_COLOUR_AT = 25
_GREY = 0
_DEEP_BITS = 16
_PNG_HEADER_BYTES = 8
_GIF_UNIT_S = Fraction(1, 100)
_WEBP_UNIT_S = Fraction(1, 1000)
_MOST_UNITS_PER_S = 2**31 - 1
"""A time base has a denominator of 32 bits."""
_DEMUXERS = {"gif": "gif", "png": "apng"}


@dataclass(frozen=True, slots=True)
class Animation:
    """Facts of an animation."""

    format: str
    """``gif``, ``png`` or ``webp``."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    durations_s: tuple[Fraction, ...]
    """How long each frame is shown, in seconds; 0.1 if the file does not say."""
    plays: int
    """How often it is played; ``FOR_EVER`` for no end."""
    has_alpha: bool
    """Whether a pixel of a frame is transparent."""
    bit_depth: int
    """8, or 16 of an APNG."""
    icc_profile: bytes | None
    """Colour profile; None without one."""
    losses: tuple[str, ...]
    """What is converted, dropped or assumed, a sentence each."""


def is_animation(body: bytes, *, max_pixels: int) -> bool:
    """Tell whether a file is an animation: a GIF, or an APNG or WebP of several frames.

    Args:
        body: The whole file.
        max_pixels: Most pixels that a frame may have.

    Returns:
        Whether it is.

    Raises:
        InvalidInputError: If the file is empty, no picture or damaged, or has more pixels.
    """
    with open_image(body, max_pixels=max_pixels, formats=(*_READ, "JPEG")) as image:
        return image.format == "GIF" or (image.format in _READ and getattr(image, "n_frames", 1) > 1)


def read_animation(body: bytes, *, max_pixels: int) -> Animation:
    """Read an animation: every frame is decoded, so that a damaged file is refused here.

    Args:
        body: The whole file.
        max_pixels: Most pixels that a frame may have.

    Returns:
        Its facts.

    Raises:
        InvalidInputError: If it is no animation, is damaged, or has more pixels.
    """
    with open_image(body, max_pixels=max_pixels, formats=_READ) as image:
        kind = str(image.format).lower()
        if kind == "png":
            durations_s = _read_png_durations(body)
            for _ in _walk(image):  # a damaged one is an error for Pillow
                pass
        else:
            durations_s = [_read_duration(frame, kind) for frame in _walk(image)]
        plays = _read_plays(image)
        opaque = [bool((frame[..., 3] == full_range(frame.dtype)).all()) for frame in _compose(image, body)]
        if len(opaque) != len(durations_s):
            raise InvalidInputError(
                f"a damaged animation: {len(durations_s)} frames, of which {len(opaque)} decode", "a whole one"
            )
        unsaid = durations_s.count(Fraction(0))
        losses = [f"{unsaid} frames have no duration: each is shown for 0.1 s, as players do"] if unsaid else []
        if lcm(*(duration_s.denominator for duration_s in durations_s)) > _MOST_UNITS_PER_S:
            durations_s = [max(round(one * 1000), 1) * _WEBP_UNIT_S if one else one for one in durations_s]
            losses.append("durations were rounded to milliseconds: they have no common unit of 32 bits")
        return Animation(
            kind,
            *image.size,
            tuple(duration_s or UNSAID_S for duration_s in durations_s),
            plays,
            not all(opaque),
            _DEEP_BITS if kind == "png" and body[_PNG_DEPTH_AT] == _DEEP_BITS else 8,
            image.info.get("icc_profile"),
            tuple(losses),
        )


def decode_animation(body: bytes, start: int, stop: int, *, max_pixels: int) -> Iterator[Array]:
    """Decode some frames of an animation.

    Args:
        body: The whole file.
        start: First frame.
        stop: One past the last frame.
        max_pixels: Most pixels that a frame may have.

    Yields:
        RGBA (H, W, 4), uint8, or uint16 of an APNG of 16 bits, C-contiguous; alpha is straight.

    Raises:
        InvalidInputError: If it is damaged.
    """
    with open_image(body, max_pixels=max_pixels, formats=_READ) as image:
        yield from islice(_compose(image, body), start, stop)


def _compose(image: Image.Image, body: bytes) -> Iterator[Array]:
    """Decode the frames in order, as a player shows them: RGBA (H, W, 4), uint8 or uint16.

    FFmpeg composes GIF and APNG: Pillow (12) blends alpha with itself, clears to an opaque background, and clips 16
    bits. FFmpeg reads no animated WebP, and no grey PNG of less than 8 bits.
    """
    kind = str(image.format).lower()
    if kind not in _DEMUXERS or (kind == "png" and body[_PNG_COLOUR_AT] == _GREY and body[_PNG_DEPTH_AT] < 8):
        for frame in _walk(image):
            yield np.ascontiguousarray(np.asarray(frame.convert("RGBA")))
        return
    try:
        with av.open(io.BytesIO(body), "r", format=_DEMUXERS[kind]) as box:
            for picture in box.decode(video=0):
                is_deep = kind == "png" and body[_PNG_DEPTH_AT] == _DEEP_BITS
                yield _to_rgba(picture) if is_deep else np.ascontiguousarray(picture.to_ndarray(format="rgba"))
    except av.error.PatchWelcomeError as exc:
        do = "Save it with 8 bits per component, or with whole frames that replace those before."
        got = "frames that FFmpeg cannot blend, such as those of an APNG of 16 bits with alpha"
        raise InvalidInputError(got, "8 bits for such frames", do) from exc
    except av.error.FFmpegError as exc:
        raise InvalidInputError(f"a damaged animation: {exc.strerror}", "a whole one") from exc


def _to_rgba(picture: av.VideoFrame) -> Array:
    """Return a picture of 16 bits as RGBA (H, W, 4), uint16."""
    pixels = to_deep_pixels(picture)
    channels = pixels.shape[2]
    rgb = pixels[..., :3] if channels > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    alpha = pixels[..., -1:] if channels in (2, 4) else np.full_like(pixels[..., :1], full_range(pixels.dtype))
    return np.concatenate([rgb, alpha], axis=2)


def _walk(image: Image.Image) -> Iterator[Image.Image]:
    """Decode the frames in order; a default picture that is no frame of an APNG is left out."""
    hidden = int(bool(image.info.get("default_image", False)))
    for index in range(hidden, getattr(image, "n_frames", 1)):
        image.seek(index)
        if isinstance(image, PngImageFile) and image.mode == "I;16":
            image.blend_op = PngBlend.OP_SOURCE  # grey has nothing to blend, and Pillow (12) fails to
        image.load()
        yield image


def _read_duration(frame: Image.Image, kind: str) -> Fraction:
    milliseconds = int(frame.info.get("duration", 0))
    return milliseconds // 10 * _GIF_UNIT_S if kind == "gif" else milliseconds * _WEBP_UNIT_S


def _read_plays(image: Image.Image) -> int:
    """Return how often an animation is played: GIF stores how often it is repeated, or nothing for once."""
    if image.format != "GIF":
        return int(image.info.get("loop", FOR_EVER))
    repeats = image.info.get("loop")
    if repeats is None:
        return 1
    return FOR_EVER if repeats == 0 else int(repeats) + 1


def _read_png_durations(body: bytes) -> list[Fraction]:
    """Read the durations of an APNG from its chunks: Pillow gives them as floats."""
    durations_s = []
    at = _PNG_HEADER_BYTES
    while at + 12 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        if kind == b"fcTL":
            if length != 26 or at + 12 + length > len(body):
                raise InvalidInputError("a damaged animation: a frame's header is cut off", "a whole APNG")
            over, under = struct.unpack_from(">HH", body, at + 8 + 20)
            durations_s.append(Fraction(over, under or 100))
        at += 12 + length
    return durations_s
