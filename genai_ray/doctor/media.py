"""Video: every encoder really encodes, what it made is decoded again, and VMAF is measured.

Encoders in hardware encode a frame; nothing needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from genai_ray.doctor.findings import Finding, State
from genai_ray.errors import GenAIRayError, VideoError
from genai_ray.files import temporary_folder
from genai_ray.quality import VMAF_MODELS, vmaf
from genai_ray.types import full_range
from genai_ray.video import Colour, Encoding, SegmentWriter, VideoInfo, VideoReader, describe_libraries, list_hardware
from genai_ray.video.codecs import CODEC_ALIASES, CODECS

__all__ = ["check_media"]

TOPIC = "video"

NEEDED = "libx264"
"""The default encoder."""

DECODERS = ("mpeg2video", "mpeg4", "h263", "vp8", "vc1", "wmv3", "dnxhd", "dvvideo", "theora", "cinepak", "rawvideo")
"""Formats of sources that no result has, by FFmpeg's names."""

_DO = "pip install --force-reinstall --only-binary av av"
MOST_ERROR = 8
"""Levels of 255 by which an evenly grey frame may differ after encoding."""

_SIDE = 128
_FRAMES = 3


def check_media() -> Iterator[Finding]:
    """Encode and decode a few frames with every encoder of results, and measure VMAF of one.

    Yields:
        What works.
    """
    libraries, formats = describe_libraries()
    names = {encoder: alias for alias, encoder in reversed(CODEC_ALIASES.items())}
    yield Finding(TOPIC, "FFmpeg", State.OK, libraries)
    yield Finding(TOPIC, "decodes too", State.OK, ", ".join(name for name in DECODERS if name in formats))
    working = []
    with temporary_folder("doctor") as folder:
        for encoder in CODECS:
            name = names.get(encoder, encoder)
            try:
                _encode_and_decode(folder / f"{encoder}.nut", encoder)
            except GenAIRayError as exc:
                state = State.BROKEN if encoder == NEEDED else State.WARNING
                yield Finding(TOPIC, f"codec {name}", state, str(exc), _DO)
            else:
                working.append(name)
    yield Finding(TOPIC, "encodes, decodes", State.OK, ", ".join(working))
    yield _check_hardware()
    yield _check_vmaf()


def _encode_and_decode(path: Path, encoder: str) -> None:
    rate = Fraction(25)
    info = VideoInfo(
        width=_SIDE,
        height=_SIDE,
        time_base=1 / rate,
        average_rate=rate,
        codec=encoder,
        pix_fmt="yuv420p",
        bit_depth=8,
        sample_aspect_ratio=Fraction(1),
        rotation=0,
        colour=Colour(matrix=1, range=1, primaries=1, transfer=1, assumed=False),
    )
    frame = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    with SegmentWriter(path, info=info, size=(_SIDE, _SIDE), encoding=Encoding(codec=encoder)) as writer:
        for index in range(_FRAMES):
            writer.write(frame, index)
    with VideoReader(path) as reader:
        decoded = reader[0].frame
    grey = frame * (full_range(decoded.dtype) / 255)
    largest = np.abs(decoded - grey).max() * (255 / full_range(decoded.dtype))
    if largest > MOST_ERROR:
        raise VideoError(
            f"{encoder}: a grey frame comes back with an error of {largest:.0f} levels", f"at most {MOST_ERROR}"
        )


def _check_hardware() -> Finding:
    working, refused = list_hardware()
    if working:
        return Finding(TOPIC, "in hardware", State.OK, ", ".join(working))
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused.items():
        by_reason.setdefault(reason, []).append(name)
    reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
    return Finding(TOPIC, "in hardware", State.ABSENT, f"no encoder works: {reasons or 'FFmpeg was built without any'}")


def _check_vmaf() -> Finding:
    frame = np.full((32, 32, 3), 128, np.uint8)
    try:
        vmaf(frame, frame)
    except GenAIRayError as exc:
        return Finding(TOPIC, "VMAF", State.ABSENT, exc.got, 'pip install "genai-ray[vmaf]"')
    return Finding(TOPIC, "VMAF", State.OK, f"measures; {len(VMAF_MODELS)} models, none is downloaded")
