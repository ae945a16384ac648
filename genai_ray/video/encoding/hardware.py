"""Encoders in hardware, by FFmpeg's names. They are offered if the build has them, and used if the machine has them.

Drivers and chips decide what they write, so their bytes are not promised to be the same again, as all others' are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from av.codec.hwaccel import HWAccel

from genai_ray.errors import ConfigError
from genai_ray.video.codecs import CODECS, Codec

__all__ = ["HARDWARE_CODECS", "HardwareCodec", "find_codec", "find_device", "is_hardware", "name_input"]

_X, _WIDE = ("yuv420p",), ("yuv420p", "yuv420p10le")
_MOV = (".mp4", ".mkv", ".mov")
_WEB = (".mp4", ".mkv", ".webm")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareCodec(Codec):
    """What is known about an encoder in hardware."""

    quality: Mapping[str, str]
    """FFmpeg's options for a constant rate factor; ``{}`` stands for the value."""
    rate: Mapping[str, str]
    """FFmpeg's options for a bit rate; ``{}`` stands for the bits per second."""
    crf_scale: float = 1.0
    """The encoder's value over the constant rate factor."""
    is_reversed: bool = False
    """Whether the encoder's value is a quality: 100 for a factor of 0, 1 for the largest one."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Formats that the encoder takes in the place of planar ones, with the same values."""
    device: str = ""
    """Kind of the device that frames must be brought to, by FFmpeg's name; empty if the encoder does it."""

    def options(self, preset: str | None, crf: float | None, bit_rate: int | None = None) -> dict[str, str]:
        """Return FFmpeg's options of quality and speed.

        Args:
            preset: As ``Codec.options``.
            crf: As ``Codec.options``.
            bit_rate: Bits per second; None for a constant rate factor.

        Returns:
            Options by name.
        """
        options = {self.preset_option: preset or self.preset or self.presets[0]} if self.presets else {}
        if bit_rate is not None:
            return options | {name: text.format(bit_rate) for name, text in self.rate.items()}
        factor = self.crf if crf is None else crf
        value = round(factor * self.crf_scale)
        if self.is_reversed:
            value = _LAMBDA * max(round(100 * (1 - factor / (self.max_crf or 1))), 1)
        return options | {name: text.format(value) for name, text in self.quality.items()}


_LAMBDA = 118
"""FFmpeg's ``FF_QP2LAMBDA``: units of ``global_quality`` in one of ``-q``."""

_PACKED = {"yuv420p": "nv12", "yuv420p10le": "p010le"}
_QSV_PRESETS = ("veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_AMF_PRESETS = ("speed", "balanced", "quality")

_MAKERS: dict[str, dict[str, Any]] = {
    "nvenc": {
        "presets": tuple(f"p{number}" for number in range(1, 8)),
        "preset": "p5",
        "quality": {"rc": "vbr", "cq": "{}", "b": "0"},
        "rate": {"rc": "vbr", "b": "{}"},
        "inputs": {"yuv420p10le": "p010le"},
    },
    "qsv": {
        "presets": _QSV_PRESETS,
        "preset": "medium",
        "quality": {"global_quality": "{}"},
        "rate": {"b": "{}"},
        "inputs": _PACKED,
    },
    "vaapi": {
        "quality": {"rc_mode": "CQP", "global_quality": "{}"},
        "rate": {"rc_mode": "VBR", "b": "{}"},
        "inputs": _PACKED,
        "device": "vaapi",
    },
    "amf": {
        "presets": _AMF_PRESETS,
        "preset": "balanced",
        "preset_option": "quality",
        "quality": {"rc": "cqp", "qp_i": "{}", "qp_p": "{}"},
        "rate": {"rc": "vbr_peak", "b": "{}"},
        "inputs": _PACKED,
    },
    "videotoolbox": {
        "quality": {"flags": "+qscale", "global_quality": "{}"},
        "rate": {"b": "{}"},
        "is_reversed": True,
        "inputs": {"yuv420p10le": "p010le"},
    },
}
"""What the encoders of one maker share, by the end of their names."""

_FORMATS: dict[str, dict[str, Any]] = {
    "h264": {"suffixes": _MOV, "formats": {"420": _X}, "max_crf": 51, "crf": 20},
    "hevc": {"suffixes": _MOV, "formats": {"420": _WIDE}, "max_crf": 51, "crf": 22},
    "av1": {"suffixes": _WEB, "formats": {"420": _WIDE}, "max_crf": 51, "crf": 28},
}
"""What the encoders of one format share, by the begin of their names."""

_OWN: dict[str, dict[str, Any]] = {
    "av1_vaapi": {"crf_scale": 5},  # its scale ends at 255
    "av1_amf": {"crf_scale": 5},
}
"""What single encoders have of their own."""

HARDWARE_CODECS: dict[str, HardwareCodec] = {
    f"{name}_{maker}": HardwareCodec(**shared | made | _OWN.get(f"{name}_{maker}", {}))
    for maker, made in _MAKERS.items()
    for name, shared in _FORMATS.items()
    if (name, maker) != ("av1", "videotoolbox")  # FFmpeg has none
}
"""Encoders in hardware by FFmpeg's name."""


def find_codec(encoder: str) -> Codec:
    """Find what is known about an encoder.

    Args:
        encoder: FFmpeg's name of it.

    Returns:
        Its facts.

    Raises:
        ConfigError: If it is not known.
    """
    codec = CODECS.get(encoder) or HARDWARE_CODECS.get(encoder)
    if codec is None:
        raise ConfigError(f"encoder {encoder!r}", ", ".join((*CODECS, *HARDWARE_CODECS)))
    return codec


def is_hardware(encoder: str) -> bool:
    """Tell whether an encoder is one in hardware.

    Args:
        encoder: FFmpeg's name of it.

    Returns:
        Whether it is.
    """
    return encoder in HARDWARE_CODECS


def name_input(encoder: str, pix_fmt: str) -> str:
    """Return the format in which an encoder takes pictures.

    Args:
        encoder: FFmpeg's name of it.
        pix_fmt: The planar format of the result.

    Returns:
        The same, or one that holds the same values in another order.
    """
    known = HARDWARE_CODECS.get(encoder)
    return known.inputs.get(pix_fmt, pix_fmt) if known is not None else pix_fmt


def find_device(encoder: str) -> HWAccel | None:
    """Open the device that frames must be brought to.

    Args:
        encoder: FFmpeg's name of the encoder.

    Returns:
        PyAV's device; None if the encoder takes frames from memory.

    Raises:
        av.FFmpegError: If the machine has no such device.
    """
    known = HARDWARE_CODECS.get(encoder)
    return HWAccel(known.device) if known is not None and known.device else None
