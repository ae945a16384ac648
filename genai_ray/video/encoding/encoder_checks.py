"""Checks of an encoder and its settings before a job starts: it is opened, and one in hardware encodes a frame."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np

from genai_ray.errors import ConfigError
from genai_ray.video.codecs import (
    ANIMATION_SUFFIXES,
    CODECS,
    IMAGE_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIX,
    keep_scheduling,
)
from genai_ray.video.colour import JFIF, from_rgb
from genai_ray.video.container import explain
from genai_ray.video.encoding.encode import choose_pixel_format, encoder_options, holds_alpha
from genai_ray.video.encoding.hardware import HARDWARE_CODECS, find_codec, find_device, name_input
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import logging_at

__all__ = ["list_hardware", "validate_encoding"]

_SIDE = 128
_HARDWARE_SIDE = 256
"""Width and height of a trial; encoders in hardware refuse smaller pictures than about 160x160."""

_FAULTS = (av.FFmpegError, ValueError, NotImplementedError)
"""What PyAV raises if an encoder does not open or encode."""


def validate_encoding(encoding: Encoding, suffix: str, *, has_alpha: bool = False) -> None:
    """Check settings before a job starts; this opens the encoder once.

    Args:
        encoding: The settings.
        suffix: Suffix of the output, lower case, with its dot.
        has_alpha: Whether alpha is stored.

    Raises:
        ConfigError: If a setting or the suffix is wrong, or this build of FFmpeg has no such encoder, or the encoder
            does not open or cannot store alpha.
    """
    encoding = encoding.fit(suffix)
    known = (*SUFFIXES, *IMAGE_SUFFIXES, TABLE_SUFFIX)
    if suffix not in known:
        got = f"an output ending in {suffix!r}" if suffix else "an output without a suffix"
        do = "" if suffix else "End the name of a folder with /."
        raise ConfigError(got, ", ".join((*known, *ANIMATION_SUFFIXES)), do)
    codec = find_codec(encoding.encoder)
    if encoding.encoder not in av.codecs_available:
        raise ConfigError(
            f"codec {encoding.codec!r}, which this build of FFmpeg lacks",
            ", ".join(name for name in CODECS if name in av.codecs_available),
        )
    if suffix not in codec.suffixes:
        raise ConfigError(f"{encoding.codec} in {suffix}", " or ".join(codec.suffixes))
    _check_budget(encoding, suffix)
    if has_alpha and not holds_alpha(encoding, suffix):
        raise ConfigError(f"alpha with {encoding.codec} in {suffix}", " or ".join(codec.alpha_suffixes))
    _try_encoder(encoding, choose_pixel_format(encoding, (128, 128), "yuv420p", has_alpha=has_alpha))


def _check_budget(encoding: Encoding, suffix: str) -> None:
    """Refuse bit rates and sizes that the encoder does not take."""
    takers = [name for name, codec in CODECS.items() if codec.crf_halving and suffix in codec.suffixes]
    if encoding.is_in_hardware and encoding.max_size is not None:
        do = "Or pass --video-bitrate (video_bitrate=...): its size is not measured."
        raise ConfigError(f"max_size with {encoding.codec}", " or ".join(takers), do)
    if encoding.has_budget and not find_codec(encoding.encoder).crf_halving:
        name = "video_bitrate" if encoding.max_size is None else "max_size"
        raise ConfigError(f"{name} with {encoding.codec}", " or ".join(takers) or "an output with a bit rate")


def _try_encoder(encoding: Encoding, pix_fmt: str) -> None:
    """Open the encoder; one in hardware encodes a frame too, because some fail only then."""
    try:
        context = _encode_grey(encoding, pix_fmt) if encoding.is_in_hardware else _open(encoding, pix_fmt, _SIDE)
    except _FAULTS as exc:
        if encoding.is_in_hardware:
            raise ConfigError(
                f"codec {encoding.codec!r}, which does not work on this machine ({explain(exc)})",
                "an encoder that it has",
                "`genai-ray doctor` lists them; h264, hevc and av1 work on every machine.",
            ) from exc
        options = encoder_options(encoding, pix_fmt, (_SIDE, _SIDE))
        raise ConfigError(
            f"{encoding.codec} with {pix_fmt} and {options}, which does not open ({exc})",
            "settings that the encoder takes",
        ) from exc
    unknown = sorted(set(context.options) & set(encoding.options))
    if unknown:
        raise ConfigError(f"encoder option {unknown[0]!r}", f"options of {encoding.encoder} by FFmpeg's names")


def _open(encoding: Encoding, pix_fmt: str, side: int) -> Any:
    context: Any = av.CodecContext.create(encoding.encoder, "w", find_device(encoding.encoder))
    context.width = side
    context.height = side
    context.pix_fmt = name_input(encoding.encoder, pix_fmt)
    context.time_base = Fraction(1, 25)
    context.framerate = Fraction(25)
    context.thread_count = encoding.threads
    if encoding.encoder == "mjpeg":
        JFIF.tag(context)
    context.options = encoder_options(encoding, pix_fmt, (side, side))
    with keep_scheduling():
        context.open(strict=False)
    return context


def _encode_grey(encoding: Encoding, pix_fmt: str) -> Any:
    """Encode a grey frame in hardware; if that fails, raise it with FFmpeg's first message, which has the reason."""
    grey = from_rgb(np.full((_HARDWARE_SIDE, _HARDWARE_SIDE, 3), 128, np.uint8), JFIF, pix_fmt)
    grey.pts, grey.time_base = 0, Fraction(1, 25)
    with logging_at(av.logging.ERROR), av.logging.Capture() as said:
        try:
            context = _open(encoding, pix_fmt, _HARDWARE_SIDE)
            if [*context.encode(grey), *context.encode(None)]:
                return context
        except _FAULTS as exc:
            text = said[0][2] if said else explain(exc)
            raise ValueError(" ".join(text.split()).rstrip(".")) from exc
    raise ValueError("it gives no packet")


def list_hardware() -> tuple[list[str], dict[str, str]]:
    """Try every encoder in hardware that this build of FFmpeg has.

    Returns:
        FFmpeg's names of those that encode a frame; and why each of the others does not, by its name.
    """
    working = []
    refused = {}
    for name in HARDWARE_CODECS:
        if name not in av.codecs_available:
            continue
        try:
            _encode_grey(Encoding(codec=name), "yuv420p")
        except ValueError as exc:
            refused[name] = str(exc)
        else:
            working.append(name)
    return working, refused
