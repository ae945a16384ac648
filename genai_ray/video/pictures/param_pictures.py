"""Pictures as extra inputs of models: from files, and from text for those whose files must not be named."""

from __future__ import annotations

import base64
import binascii
import math
import re
from pathlib import Path
from typing import Any, TypeGuard

from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.types import ParamPicture, full_range
from genai_ray.video.pictures.images import FORMATS, Picture, decode_picture, encode_picture, measure_picture

__all__ = [
    "PICTURE_PARAM_SUFFIXES",
    "decode_param_picture",
    "is_picture_text",
    "load_param_picture",
    "parse_picture_text",
    "to_picture_text",
]

PICTURE_PARAM_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of files that are read as pictures for models."""
MAX_PIXELS = 2**26
"""Most pixels of a file of one's own."""
MAX_STRANGERS_PIXELS = 2**22
"""Most pixels of one that may come from strangers: models take a few hundred pixels a side."""
_LONGEST_SIDE = 4
"""Longest side, in sides of the square with the most pixels: resizing needs memory for its product with the new one."""
_START = re.compile(r"data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE)
_WHAT = "a PNG, JPEG or WebP file without alpha"


def load_param_picture(path: str | Path) -> ParamPicture:
    """Read a picture for a model.

    Args:
        path: A PNG, JPEG or WebP file. It is turned upright; its colour profile is not applied.

    Returns:
        The picture.

    Raises:
        ConfigError: If it cannot be read, is no such file, has alpha, or has more than 2**26 pixels or 2**15 on a side.
    """
    try:
        return decode_param_picture(Path(path).read_bytes(), MAX_PIXELS)
    except InvalidInputError as exc:
        raise ConfigError(f"{path} cannot be read as a picture: {exc.got}", exc.allowed, exc.do) from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read as a picture: {exc.strerror or exc}", _WHAT) from exc


def is_picture_text(value: Any) -> TypeGuard[str]:
    """Tell whether a value is meant as the text of a picture.

    Args:
        value: Anything.

    Returns:
        Whether it is text that begins with ``data:``.
    """
    return isinstance(value, str) and value[:5].lower() == "data:"


def parse_picture_text(text: str) -> ParamPicture:
    """Read a picture for a model from a text.

    Args:
        text: ``data:image/png;base64,`` (or jpeg, webp) and the bytes of the file in base64, as in RFC 2397.

    Returns:
        The picture.

    Raises:
        InvalidInputError: If it is no such text, or the file is none of ``load_param_picture`` with at most 2**22
            pixels and 2**13 on a side.
    """
    found = _START.match(text)
    try:
        body = base64.b64decode(text[found.end() :], validate=True) if found else None
    except (binascii.Error, ValueError):
        body = None
    if not body:
        raise InvalidInputError(f"the text {text[:40]!r} of a picture", "data:image/png;base64,... (or jpeg, webp)")
    return decode_param_picture(body)


def to_picture_text(picture: ParamPicture) -> str:
    """Write a picture as text, without loss.

    Args:
        picture: The picture.

    Returns:
        A text for ``parse_picture_text``, of a PNG.
    """
    body = encode_picture(Picture(picture.pixels), "png")
    return f"data:{FORMATS['png']};base64,{base64.b64encode(body).decode()}"


def decode_param_picture(body: bytes, max_pixels: int = MAX_STRANGERS_PIXELS) -> ParamPicture:
    """Decode a picture for a model.

    Args:
        body: A PNG, JPEG or WebP file. It is turned upright; its colour profile is not applied.
        max_pixels: Most pixels that it may have.

    Returns:
        The picture.

    Raises:
        InvalidInputError: If it is no such file, has alpha, has more pixels, or has a side of more than four times the
            square root of ``max_pixels``.
    """
    size = measure_picture(body, max_pixels=max_pixels)
    longest = _LONGEST_SIDE * math.isqrt(max_pixels)
    if max(size.width, size.height) > longest:
        raise InvalidInputError(f"a picture of {size.width}x{size.height}", f"sides of at most {longest} px")
    picture = decode_picture(body, max_pixels=max_pixels)
    if picture.alpha is not None and bool((picture.alpha != full_range(picture.alpha.dtype)).any()):
        raise InvalidInputError("a picture that is transparent in places", _WHAT, "Put it on a background first.")
    return ParamPicture(picture.rgb)
