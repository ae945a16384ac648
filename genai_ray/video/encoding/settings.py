"""How results are encoded: the settings that users give, and the checks of them that need no encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genai_ray.display import describe_fields
from genai_ray.errors import ConfigError
from genai_ray.fields import check_ranges, refuse_unknown
from genai_ray.types import parse_bit_rate, parse_bytes, take_fields
from genai_ray.video.codecs import CODEC_ALIASES, CODECS, DEFAULT_CODECS, hdr_options
from genai_ray.video.encoding.hardware import HARDWARE_CODECS, find_codec, is_hardware
from genai_ray.video.info import HdrMetadata

__all__ = ["Encoding"]

_RATE_OPTIONS = ("b", "crf", "qp", "cq", "global_quality", "rc", "pass", "stats", "bitrate", "tbr")
"""Options of encoders that set a rate or a quality, also within lists such as x264-params."""

_MAX_CRF = 63
"""Largest constant rate factor of any encoder."""


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How results are encoded; a segment's bytes depend on all of it.

    Raises:
        ConfigError: If a name is not known, a value is of another type than its field or out of its range, the codec is
            not known or does not take one of the others, or they contradict each other.
    """

    codec: str | None = None
    """FFmpeg's name of the encoder, or h264, hevc, av1, vp9, prores, jpeg; None for the default of the output's
    suffix. Of encoders in hardware the name, such as h264_nvenc: their bytes are not promised to be the same again."""
    preset: str | None = None
    """The encoder's preset (VP9: cpu-used, ProRes: profile); None for medium, 8 (AV1), 4 (VP9), hq (ProRes)."""
    crf: float | None = None
    """Constant rate factor; None for 18 (H.264), 20 (HEVC), 24 (AV1, VP9); FFV1, ProRes and pictures have none."""
    video_bitrate: int | str | None = None
    """Bits per second of the pictures on average over the whole result, instead of ``crf``: a number, or text such as
    ``4M``; H.264, HEVC, AV1, and encoders in hardware. None for a constant rate factor."""
    max_size: int | str | None = None
    """Most bytes of the whole result, with sound and subtitles, instead of ``crf``: a number, or text such as
    ``500MB``; it gets at least 95 % of that. H.264, HEVC and AV1. None for a constant rate factor."""
    image_quality: int | None = None
    """Quality of results that are JPEG or WebP files, from 1 to 100; None for 92."""
    threads: int = 1
    """Encoder threads of one segment; never automatic, because x264's bytes depend on it."""
    bit_depth: int | None = None
    """Bits per component; None for the depth of the source, or the closest that the encoder supports."""
    options: Mapping[str, str] = field(default_factory=dict)
    """More options of the encoder by FFmpeg's names; they override other options, and are appended to lists such as
    x264-params."""

    def __post_init__(self) -> None:
        take_fields(self)
        check_ranges(self, threads=(1, math.inf), image_quality=(1, 100), bit_depth=(8, 16), crf=(0, _MAX_CRF))
        if self.video_bitrate is not None:
            object.__setattr__(self, "video_bitrate", parse_bit_rate(self.video_bitrate, "video_bitrate"))
        if self.max_size is not None:
            object.__setattr__(self, "max_size", parse_bytes(self.max_size, "max_size"))
        given: Any = self.options
        if not isinstance(given, Mapping) or not all(isinstance(value, str) for value in given.values()):
            raise ConfigError(f"options={given!r}", "text by name, such as {'x264-params': 'aq-mode=3'}")
        self._check_rate()
        if self.codec is not None:
            self._check_codec()

    @property
    def has_budget(self) -> bool:
        """Whether each segment is encoded for a number of bytes."""
        return self.max_size is not None or (self.video_bitrate is not None and not self.is_in_hardware)

    @property
    def is_in_hardware(self) -> bool:
        """Whether hardware encodes: its bytes are not promised to be the same again."""
        return is_hardware(self.encoder)

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODEC_ALIASES.get(self.codec, self.codec) if self.codec else "libx264"

    @property
    def has_alpha(self) -> bool:
        """Whether the encoder stores alpha."""
        return bool(find_codec(self.encoder).alpha_formats)

    @property
    def has_hdr(self) -> bool:
        """Whether the encoder stores HDR10's static metadata."""
        return bool(hdr_options(self.encoder, HdrMetadata(None, None, (1, 1))))

    @property
    def has_full_range(self) -> bool:
        """Whether players read full-range numbers of it as such; ProRes has no tag for them."""
        return self.encoder != "prores_ks"

    def fit(self, suffix: str) -> Encoding:
        """Set the default encoder of an output's suffix if no encoder is set.

        Args:
            suffix: Suffix of the output, lower case, with its dot.

        Returns:
            The settings with a codec.
        """
        return replace(self, codec=self.codec or DEFAULT_CODECS.get(suffix, "libx264"))

    def _check_rate(self) -> None:
        """Refuse bit rates and sizes that contradict other options."""
        given = {"crf": self.crf, "video_bitrate": self.video_bitrate, "max_size": self.max_size}
        asked = [name for name, value in given.items() if value is not None]
        if len(asked) > 1:
            raise ConfigError(" and ".join(asked), "one of them")
        rivals = [] if not asked or self.crf is not None else [name for name in self._names() if name in _RATE_OPTIONS]
        if rivals:
            raise ConfigError(f"{asked[0]} and encoder option {rivals[0]!r}", "one of them")

    def _names(self) -> Iterator[str]:
        """Name the options that the user gave to the encoder, those within lists too."""
        for name, value in self.options.items():
            yield name
            if name.endswith("-params"):
                yield from (part.partition("=")[0].strip() for part in value.split(":"))

    def _check_codec(self) -> None:
        """Refuse an encoder that is not known, and what it does not take."""
        if self.encoder not in CODECS and not is_hardware(self.encoder):
            do = f"In hardware, if the machine has it: {', '.join(HARDWARE_CODECS)}."
            raise ConfigError(f"codec {self.codec!r}", ", ".join((*CODECS, *CODEC_ALIASES)), do)
        codec = find_codec(self.encoder)
        if self.preset is not None and self.preset not in codec.presets:
            allowed = ", ".join(codec.presets) or f"no preset: {self.codec} has none"
            raise ConfigError(f"preset {self.preset!r}", allowed)
        if self.crf is not None and (codec.max_crf is None or self.crf > codec.max_crf):
            allowed = f"no crf: {self.codec} has none" if codec.max_crf is None else f"from 0 to {codec.max_crf}"
            raise ConfigError(f"crf {self.crf:g}", allowed)
