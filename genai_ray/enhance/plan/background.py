"""What replaces the background: alpha, a colour, a blur; or the mask itself as a picture.

Alpha is straight: colours are not multiplied by it. A model of the chain finds the subject, not this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields
from genai_ray.errors import ConfigError
from genai_ray.fields import refuse_unknown
from genai_ray.types import full_range

__all__ = ["Background", "compose", "parse_background"]

Array: TypeAlias = npt.NDArray[Any]

KEY_GREEN = (0, 177, 64)
"""Chroma-key green, the default because most encoders have no alpha."""

MAX_RADIUS_PX = 500
LINES_PER_RADIUS_PX = 36
"""Lines of a picture for each pixel of the default radius of a blur."""

_FLOOR = 1e-3
"""Weight of the subject in the blur around it, so that no sum of weights is 0."""

_KINDS = ("alpha", "blur", "colour", "mask")


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What is behind the subject."""

    kind: Literal["alpha", "blur", "colour", "mask"] = "colour"
    """Transparent; the background out of focus; one colour; or the mask as a picture: the subject is white."""
    colour: tuple[int, int, int] = KEY_GREEN
    """RGB in [0, 255], for the kind ``colour``."""
    radius_px: int | None = None
    """Radius of the blur in pixels of the result; None for a 36th of its height."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"background kind {self.kind!r}", ", ".join(_KINDS))
        colour: Any = self.colour
        if not (isinstance(colour, tuple) and len(colour) == 3 and set(colour) <= set(range(256))):
            raise ConfigError(f"background colour {colour!r}", "(red, green, blue), whole numbers from 0 to 255")
        if self.radius_px is not None and not 1 <= self.radius_px <= MAX_RADIUS_PX:
            raise ConfigError(f"background radius_px={self.radius_px!r}", f"1 to {MAX_RADIUS_PX}, or None")


_PLAIN_WORDS = {"alpha": Background(kind="alpha"), "blur": Background(kind="blur"), "mask": Background(kind="mask")}


def parse_background(word: str) -> Background:
    """Read a background from the command line.

    Args:
        word: ``alpha``, ``blur``, ``blur:RADIUS``, ``mask`` or ``#RRGGBB``.

    Returns:
        The background.

    Raises:
        ConfigError: If ``word`` is none of these.
    """
    name, _, number = word.partition(":")
    if word in _PLAIN_WORDS:
        return _PLAIN_WORDS[word]
    if name == "blur" and number.isdecimal() and 1 <= int(number) <= MAX_RADIUS_PX:
        return Background(kind="blur", radius_px=int(number))
    try:
        red, green, blue = bytes.fromhex(word.removeprefix("#"))
    except ValueError:
        raise ConfigError(
            f"background {word!r}",
            f"alpha, blur, blur:RADIUS (1 to {MAX_RADIUS_PX} pixels), mask, or a colour such as #00b140",
        ) from None
    return Background(colour=(red, green, blue))


def compose(frame: Array, mask: Array, background: Background) -> Array:
    """Put a subject in front of a background; the kind ``alpha`` leaves the frame as it is, and the mask is its alpha.

    Args:
        frame: RGB (H, W, 3), uint8 or uint16; not written to.
        mask: (H, W, 1) of the same dtype, 0 for the background.
        background: What replaces the background.

    Returns:
        RGB (H, W, 3) of the same dtype, rounded to nearest.
    """
    if background.kind == "alpha":
        return frame
    if background.kind == "mask":
        return np.repeat(mask, 3, axis=-1)
    peak = full_range(frame.dtype)
    share = mask.astype(np.float32) / np.float32(peak)
    if background.kind == "blur":
        behind = _blur(frame, share, background.radius_px or max(frame.shape[0] // LINES_PER_RADIUS_PX, 1))
    else:
        behind = np.asarray(background.colour, np.float32) * np.float32(peak / 255)
    composed: Array = np.rint(np.clip(frame * share + behind * (1 - share), 0, peak)).astype(frame.dtype)
    return composed


def _blur(frame: Array, share: Array, radius_px: int) -> Array:
    """Blur the background alone: no light of the subject gets into it.

    Three box blurs approximate a Gaussian one. They run on a picture reduced by a quarter of the radius, which nobody
    can see.
    """
    weight = 1 - share + np.float32(_FLOOR)
    step = max(radius_px // 4, 1)
    small = _reduce(np.concatenate([frame * weight, weight], axis=-1), step)
    for _ in range(3):
        small = _sum_around(_sum_around(small, radius_px // step, 0), radius_px // step, 1)
    behind = (small[..., :3] / small[..., 3:]).astype(np.float32)
    return _enlarge(_enlarge(behind, frame.shape[0], step, 0), frame.shape[1], step, 1)


def _reduce(values: Array, step: int) -> Array:
    """Add up squares of pixels, fewer at the right and the bottom."""
    rows, columns = (np.arange(0, length, step) for length in values.shape[:2])
    reduced: Array = np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)
    return reduced


def _sum_around(values: Array, radius: int, axis: int) -> Array:
    """Add up what lies within a radius along an axis."""
    length = values.shape[axis]
    sums = np.insert(np.cumsum(values, axis=axis), 0, 0, axis=axis)
    places = np.arange(length)
    upper = np.take(sums, np.minimum(places + radius + 1, length), axis)
    around: Array = upper - np.take(sums, np.maximum(places - radius, 0), axis)
    return around


def _enlarge(values: Array, length: int, step: int, axis: int) -> Array:
    """Interpolate linearly from the middle of each square to that of the next one."""
    places = np.clip((np.arange(length) + 0.5) / step - 0.5, 0, values.shape[axis] - 1)
    low = places.astype(int)
    share = np.expand_dims((places - low).astype(np.float32), [other for other in range(3) if other != axis])
    high = np.minimum(low + 1, values.shape[axis] - 1)
    enlarged: Array = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return enlarged
