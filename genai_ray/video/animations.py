"""Reads animations: GIF, APNG and WebP, with exact durations, loops and transparency.

A frame is what a player shows: the pictures before it, composed as the file says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from genai_ray.errors import InvalidInputError
from genai_ray.video.images import open_image

__all__ = ["FOR_EVER", "UNSAID_S", "Animation", "decode_animation", "is_animation", "read_animation"]

Array = npt.NDArray[Any]

FOR_EVER = 0
"""Plays of an animation that does not end."""

UNSAID_S = Fraction(1, 10)
"""What players show a frame for that has no duration."""

_READ = ("GIF", "PNG", "WEBP")
_PNG_DEPTH_AT = 24
_DEEP_BITS = 16
_PNG_HEADER_BYTES = 8
_GIF_UNIT_S = Fraction(1, 100)
_WEBP_UNIT_S = Fraction(1, 1000)


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
    durations_s: list[Fraction] = []
    has_alpha = False
    with open_image(body, max_pixels=max_pixels, formats=_READ) as image:
        kind = str(image.format).lower()
        told_s = _read_png_durations(body) if kind == "png" else None
        plays = _read_plays(image)
        for frame in _walk(image):
            has_alpha = has_alpha or bool((_to_rgba(frame)[..., 3] < 255).any())
            durations_s.append(told_s[len(durations_s)] if told_s is not None else _read_duration(frame, kind))
        unsaid = durations_s.count(Fraction(0))
        losses = [f"{unsaid} frames have no duration: each is shown for 0.1 s, as players do"] if unsaid else []
        if kind == "png" and body[_PNG_DEPTH_AT] == _DEEP_BITS:
            losses.append("16 bits per component were reduced to 8: animations are read with 8")
        return Animation(
            kind,
            *image.size,
            tuple(duration_s or UNSAID_S for duration_s in durations_s),
            plays,
            has_alpha,
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
        RGBA (H, W, 4), uint8, C-contiguous; alpha is straight.

    Raises:
        InvalidInputError: If it is damaged.
    """
    with open_image(body, max_pixels=max_pixels, formats=_READ) as image:
        for index, frame in enumerate(_walk(image)):
            if index >= stop:
                return
            if index >= start:
                yield _to_rgba(frame)


def _walk(image: Image.Image) -> Iterator[Image.Image]:
    """Decode the frames in order; a default picture that is no frame of an APNG is left out."""
    hidden = int(bool(image.info.get("default_image", False)))
    for index in range(hidden, getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        yield image


def _to_rgba(frame: Image.Image) -> Array:
    return np.ascontiguousarray(np.asarray(frame.convert("RGBA")))


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
