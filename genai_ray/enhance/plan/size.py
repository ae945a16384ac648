"""The size of a result: how it is asked for, and the sizes that frames have on their way to it.

What is asked for is what players show: rotated, and in square pixels. Frames are reduced at most once before the first
model, and resampled at most once after the last one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from genai_ray.errors import ConfigError
from genai_ray.types import Fit, parse_fraction
from genai_ray.video import Encoding, VideoInfo, find_side_step

__all__ = [
    "MAX_SCALE",
    "MAX_SIDE_PX",
    "FrameSizes",
    "ResultSize",
    "check_sides",
    "find_input_size",
    "parse_size",
    "plan_sizes",
]

Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels."""

MAX_SIDE_PX = 65535
"""Longest side that can be asked for; the encoder is tried with the real size when a video is planned."""

MAX_SCALE = 64
"""Largest scale that can be asked for."""

_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class ResultSize:
    """What is asked for, as players show it: a scale, or one side, or both."""

    width: int | None = None
    """Width in pixels; None if it follows from the height."""
    height: int | None = None
    """Height in pixels; None if it follows from the width."""
    scale: Fraction | None = None
    """Sides of the result over those of the source; pixels keep their shape."""
    fit: Fit = Fit.INSIDE
    """How a picture of another shape is put into a width and a height."""
    input_height: int | None = None
    """Height to which frames are reduced before the first model; None for that of the source."""

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides that are given."""
        return tuple(side for side in (self.width, self.height) if side is not None)

    @property
    def is_of_result(self) -> bool:
        """Whether more than an input height is asked for."""
        return bool(self.sides) or self.scale is not None


@dataclass(frozen=True, slots=True)
class FrameSizes:
    """(width, height) of a video's frames on their way, in pixels as they are stored: before players rotate them."""

    given: Size
    """What the first model gets: the source, or less."""
    made: Size
    """What the chain makes of it."""
    picture: Size
    """What that is resampled to."""
    result: Size
    """What is encoded: the picture, or the middle of it, or the picture between bars."""
    sample_aspect_ratio: Fraction = Fraction(1)
    """Width of a pixel of the result over its height."""
    is_asked: bool = False
    """Whether a size of the result was asked for."""

    @property
    def scale(self) -> int:
        """By how much the chain enlarges."""
        return self.made[0] // self.given[0]

    @property
    def is_resampled(self) -> bool:
        """Whether what the chain makes is resampled."""
        return self.picture != self.made

    def describe(self, info: VideoInfo) -> Iterator[str]:
        """Say what the chain makes, and what is resampled.

        Args:
            info: Properties of the source.

        Yields:
            One note each; none if nothing was asked for.
        """
        turned = f", as stored: players turn it by {info.rotation} degrees" if info.rotation % 360 else ""
        if self.given != (info.width, info.height):
            yield f"input: {info.width}x{info.height} is reduced to {_say(self.given)} before the first model{turned}"
        if not self.is_asked:
            return
        done = f"it is resampled to {_say(self.picture)}" if self.is_resampled else "it is not resampled"
        if self.result[0] > self.picture[0] or self.result[1] > self.picture[1]:
            done += f", with black bars up to {_say(self.result)}"
        elif self.result != self.picture:
            done += f", and cut to {_say(self.result)}"
        yield f"size: the chain makes {_say(self.made)}; {done}{turned}"
        before = info.sample_aspect_ratio
        if self.sample_aspect_ratio != before:
            yield f"pixels: square; those of the source are {before.numerator}:{before.denominator}"


def parse_size(
    size: str | None,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: str | float | Fraction | None = None,
    fit: Fit | None = None,
    input_height: int | None = None,
) -> ResultSize | None:
    """Read the size that is asked for, as far as that is possible without a video.

    Args:
        size: Both sides, such as ``1920x1080``.
        width: Width in pixels instead.
        height: Height in pixels instead.
        scale: Sides over those of the source instead: a number or a fraction, such as ``1.5`` or ``3/2``.
        fit: How a picture of another shape is put into ``size``; None for inside.
        input_height: Height in pixels to which frames are reduced before the first model.

    Returns:
        The size; None if nothing is asked for.

    Raises:
        ConfigError: If a value is not of its form or out of its range, if more than one of ``size``, ``width``,
            ``height`` and ``scale`` is given, or ``fit`` without ``size``.
    """
    given = {"size": size, "width": width, "height": height, "scale": scale}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(" and ".join(names), "one of them", "Pass --size 1920x1080 (size=...) for both sides.")
    if fit is not None and size is None:
        raise ConfigError(
            f"fit {fit.value!r} without a size", "fit with both sides", "Pass --size 1920x1080 (size=...)."
        )
    sides = {"width": width, "height": height, "input height": input_height}
    if size is not None:
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            raise ConfigError(f"size {size!r}", "WIDTHxHEIGHT in pixels, such as 1920x1080")
        sides |= {"width": int(found[1]), "height": int(found[2])}
    for name, side in sides.items():
        if side is not None and not 1 <= side <= MAX_SIDE_PX:
            raise ConfigError(f"{name} {side}", f"from 1 to {MAX_SIDE_PX} pixels")
    if not names and input_height is None:
        return None
    return ResultSize(
        sides["width"], sides["height"], _parse_scale(scale), Fit.INSIDE if fit is None else fit, input_height
    )


def _parse_scale(scale: str | float | Fraction | None) -> Fraction | None:
    if scale is None:
        return None
    number = parse_fraction(scale)
    if number is None:
        raise ConfigError(f"scale {str(scale)[:20]!r}", "a number or a fraction, such as 1.5 or 3/2")
    if not 0 < number <= MAX_SCALE:
        raise ConfigError(f"scale {scale}", f"above 0, up to {MAX_SCALE}")
    return number


def check_sides(asked: ResultSize | None, encoding: Encoding) -> None:
    """Refuse odd sides for an encoder that cannot store them, whatever the video.

    Args:
        asked: What is asked for.
        encoding: The settings, with a codec.

    Raises:
        ConfigError: If a side that is given is odd, and the encoder stores fewer samples of chroma than of luma.
    """
    if asked is None:
        return
    steps = (
        find_side_step(encoding, source, has_alpha=has_alpha)
        for source in ("yuv420p", "yuv444p")
        for has_alpha in {False, encoding.has_alpha}
    )
    _check_even(asked.sides, min(steps), encoding)


def _check_even(sides: Iterable[int], step: int, encoding: Encoding) -> None:
    odd = [str(side) for side in sides if side % step]
    if odd:
        raise ConfigError(
            f"a result of {' by '.join(odd)} pixels",
            f"even sides: {encoding.encoder} stores chroma for two pixels at a time",
            "Pass even numbers, or a codec that stores every pixel, such as png.",
        )


def find_input_size(info: VideoInfo, asked: ResultSize | None) -> Size:
    """Return the size of the frames that the first model gets.

    Args:
        info: Properties of the source.
        asked: What is asked for.

    Returns:
        (width, height) as stored. If it is reduced, the side that follows is rounded to the nearest even number.

    Raises:
        ConfigError: If the input height is larger than the source.
    """
    width, height = _turn((info.width, info.height), info)
    if asked is None or asked.input_height in (None, height):
        return info.width, info.height
    lines = asked.input_height or height
    if lines > height:
        raise ConfigError(
            f"input height {lines} for frames of {width}x{height}", f"up to {height}: frames are only reduced"
        )
    return _turn((_round(Fraction(width * lines, height), 2), lines), info)


def plan_sizes(
    info: VideoInfo, scale: int, asked: ResultSize | None, encoding: Encoding, *, has_alpha: bool = False
) -> FrameSizes:
    """Plan the sizes of a video's frames.

    A side that follows is rounded to the nearest pixel; to the nearest even one if the encoder stores chroma for two
    pixels at a time.

    Args:
        info: Properties of the source.
        scale: By how much the whole chain enlarges.
        asked: What is asked for; None for what the chain makes.
        encoding: The settings, with a codec.
        has_alpha: Whether alpha is stored.

    Returns:
        The sizes.

    Raises:
        ConfigError: If the input height is larger than the source, or a side would be odd that must be even.
    """
    given = find_input_size(info, asked)
    made = (given[0] * scale, given[1] * scale)
    own = info.sample_aspect_ratio
    if asked is None:
        return FrameSizes(given, made, made, made, own)
    step = find_side_step(encoding, info.pix_fmt, has_alpha=has_alpha)
    picture = result = made
    if asked.scale is not None:
        width, height = (_round(side * asked.scale, step) for side in (info.width, info.height))
        picture = result = (width, height)
    elif asked.sides:
        stored = Fraction(info.width, info.height) * own
        shape = 1 / stored if _is_turned(info) else stored
        picture, result = (_turn(size, info) for size in _fit(shape, asked, step))
        own = Fraction(1)
    if asked.is_of_result or given != (info.width, info.height):
        _check_even(result, step, encoding)
    return FrameSizes(given, made, picture, result, own, is_asked=asked.is_of_result)


def _fit(shape: Fraction, asked: ResultSize, step: int) -> tuple[Size, Size]:
    """Return the sizes of a picture of a shape (width over height), and of the result it is part of."""
    if asked.fit is Fit.STRETCH and asked.width is not None and asked.height is not None:
        return (asked.width, asked.height), (asked.width, asked.height)
    grain = 1 if asked.fit is Fit.CROP else step
    found: list[Size] = []  # with one side as it is asked for; if both are, one picture has room in the other
    if asked.width is not None:
        found.append((asked.width, _round(asked.width / shape, grain)))
    if asked.height is not None:
        found.append((_round(asked.height * shape, grain), asked.height))
    picture = max(found) if asked.fit is Fit.CROP else min(found)
    if asked.fit is Fit.INSIDE or asked.width is None or asked.height is None:
        return picture, picture
    return picture, (asked.width, asked.height)


def _turn(size: Size, info: VideoInfo) -> Size:
    """Exchange the sides if a player turns the picture by 90 degrees, or back."""
    return (size[1], size[0]) if _is_turned(info) else size


def _is_turned(info: VideoInfo) -> bool:
    return info.rotation % 180 == 90


def _round(length: Fraction, step: int) -> int:
    """Return the nearest multiple of a step, halves upwards; at least one step."""
    return max(step, math.floor(length / step + Fraction(1, 2)) * step)


def _say(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
