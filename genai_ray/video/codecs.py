"""The encoders: what each of them can store, in which files, and its options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from genai_ray.video.info import HdrMetadata

__all__ = [
    "ANIMATION_SUFFIXES",
    "CODECS",
    "CODEC_ALIASES",
    "DEFAULT_CODECS",
    "IMAGE_SOURCE_SUFFIXES",
    "IMAGE_SUFFIXES",
    "JPEG_OPTIONS",
    "PICTURE_SUFFIXES",
    "SOUND_CODECS",
    "SOUND_FOR",
    "SOURCE_SUFFIXES",
    "SUFFIXES",
    "TABLE_SUFFIX",
    "TEXT_FOR",
    "Codec",
    "SoundCodec",
    "bound_options",
    "fixed_options",
    "hdr_options",
    "keep_scheduling",
    "predict_encoder_bytes",
]

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
"""Containers of results."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Files of a folder of frames."""

ANIMATION_SUFFIXES = (".gif", ".webp", ".apng")
"""Animations; a WebP file may be a picture, and a PNG file an animation."""

IMAGE_SOURCE_SUFFIXES = (*IMAGE_SUFFIXES, *ANIMATION_SUFFIXES)
"""Files that count as pictures."""

SOURCE_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob"),
    *(".flv", ".wmv", ".asf", ".ogv", ".3gp", ".mxf", ".nut", ".y4m"),
)
"""Files of a folder that count as videos."""

PICTURE_SUFFIXES = {"png": ".png", "mjpeg": ".jpg"}
"""Suffix of an encoder's pictures."""

JPEG_OPTIONS = {"flags": "+qscale", "global_quality": str(2 * 118)}
"""Options of FFmpeg's JPEG encoder: ``-q 2``, its second best quality."""

TABLE_SUFFIX = ".parquet"
"""Suffix of a table of frames."""

DEFAULT_CODECS = {".webm": "libvpx-vp9", ".png": "png", ".jpg": "mjpeg", ".jpeg": "mjpeg", ".parquet": "png"}
"""Default encoders by the suffix of the output; libx264 for others."""

CODEC_ALIASES = {
    "h264": "libx264",
    "hevc": "libx265",
    "h265": "libx265",
    "av1": "libsvtav1",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "jpeg": "mjpeg",
}
"""Encoders by the name of their format."""

_X_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_420, _422, _444 = (tuple(f"yuv{sampling}p{depth}" for depth in ("", "10le")) for sampling in ("420", "422", "444"))
_MOV = (".mp4", ".mkv", ".mov")
_WEB = (".mp4", ".mkv", ".webm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """What is known about one encoder."""

    suffixes: tuple[str, ...]
    """Outputs that take its packets."""
    formats: Mapping[str, tuple[str, ...]]
    """Pixel formats, fewest bits first, by chroma sampling: 420, 422, 444."""
    alpha_formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same with alpha; empty if the encoder cannot store alpha."""
    alpha_suffixes: tuple[str, ...] = ()
    """Outputs that take its packets with alpha; if empty, those of ``suffixes``."""
    keeps_sampling: bool = False
    """Whether it keeps the chroma sampling of the source; others prefer 4:2:0, which players support best."""
    presets: tuple[str, ...] = ()
    """Presets from fast to slow, or qualities; empty if it has none."""
    preset: str | None = None
    """Default preset."""
    preset_option: str = "preset"
    """FFmpeg's name of the option for the preset."""
    max_crf: int | None = None
    """Largest constant rate factor; None if it has none."""
    crf: float = 0.0
    """Default constant rate factor."""
    crf_step: float = 0.0
    """Smallest difference of two constant rate factors that changes the result; 0 if one step changes its size by so
    much that none can be asked for (VP9: 6 to 16 %)."""
    crf_halving: float = 0.0
    """By about so much more, the result has half the bytes; 0 as above."""

    def options(self, preset: str | None, crf: float | None, bit_rate: int | None = None) -> dict[str, str]:
        """Return FFmpeg's options of quality and speed.

        Args:
            preset: One of ``presets``; None for the default.
            crf: Constant rate factor; None for the default.
            bit_rate: Bits per second, which only encoders in hardware take.

        Returns:
            Options by name.
        """
        options = {}
        if self.presets:
            options[self.preset_option] = preset or self.preset or self.presets[0]
        if self.max_crf is not None:
            options["crf"] = f"{self.crf if crf is None else crf:g}"
        return options


CODECS = {
    "libx264": Codec(
        suffixes=_MOV,
        formats={"420": _420, "444": _444},
        presets=_X_PRESETS,
        preset="medium",
        max_crf=51,
        crf=18,
        crf_step=0.1,
        crf_halving=6,
    ),
    "libx265": Codec(
        suffixes=_MOV,
        formats={"420": _420, "444": _444},
        presets=_X_PRESETS,
        preset="medium",
        max_crf=51,
        crf=20,
        crf_step=0.1,
        crf_halving=6,
    ),
    "libsvtav1": Codec(
        suffixes=_WEB,
        formats={"420": _420},
        presets=tuple(str(number) for number in range(13, -1, -1)),
        preset="8",
        max_crf=63,
        crf=24,
        crf_step=0.25,
        crf_halving=12,
    ),
    "libvpx-vp9": Codec(
        suffixes=_WEB,
        formats={"420": _420, "444": _444},
        alpha_formats={"420": ("yuva420p",), "444": ("yuva444p",)},
        alpha_suffixes=(".webm", ".mkv"),
        presets=tuple(str(number) for number in range(8, -1, -1)),
        preset="4",
        preset_option="cpu-used",
        max_crf=63,
        crf=24,
    ),
    "ffv1": Codec(
        suffixes=(".mkv",),
        formats={"420": _420, "422": _422, "444": _444},
        alpha_formats={
            "420": ("yuva420p", "yuva420p10le"),
            "422": ("yuva422p", "yuva422p10le"),
            "444": ("yuva444p", "yuva444p10le"),
        },
        keeps_sampling=True,
    ),
    "prores_ks": Codec(
        suffixes=(".mov", ".mkv"),
        formats={"422": ("yuv422p10le",), "444": ("yuv444p10le",)},
        alpha_formats={"444": ("yuva444p10le",)},
        presets=("proxy", "lt", "standard", "hq"),
        preset="hq",
        preset_option="profile",
    ),
    "png": Codec(
        suffixes=(".png", TABLE_SUFFIX),
        formats={"444": ("rgb24", "rgb48be")},
        alpha_formats={"444": ("rgba", "rgba64be")},
    ),
    "mjpeg": Codec(suffixes=(".jpg", ".jpeg"), formats={"444": ("yuv444p",)}),
}
"""Encoders by FFmpeg's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundCodec:
    """What is known about one encoder of sound."""

    encoder: str
    """FFmpeg's name of it."""
    name: str
    """Its name for people."""
    suffixes: tuple[str, ...]
    """Outputs that take its packets."""
    formats: tuple[str, ...]
    """FFmpeg's names of its sample formats; of two, the first for up to 16 bits and the second for 24 bits."""
    bits: tuple[int, ...] = ()
    """Bits of a sample in each of ``formats`` if the encoder is lossless; else empty."""
    channel_bit_rate: int = 0
    """Bits per second for each channel; 0 if the encoder is lossless."""
    max_bit_rate: int = 10**9
    """Most bits per second of a track."""
    min_rate: int = 0
    """Least samples per second that the outputs take."""

    def bit_rate(self, rate: int, channels: int) -> int:
        """Return the bit rate that a track gets.

        Args:
            rate: Samples per second.
            channels: Channels.

        Returns:
            Bits per second; 0 for a lossless encoder.
        """
        each = self.channel_bit_rate
        if self.encoder == "aac":
            each = min(each, 6 * rate)  # a frame of 1024 samples has at most 6144 bits (ISO/IEC 14496-3, 4.5.3)
        if self.encoder == "libmp3lame" and rate < 32000:
            each = min(each, 80_000)  # MPEG-2 has no more than 160 kb/s
        wanted = min(each * channels, self.max_bit_rate)
        if self.encoder == "ac3":
            return next((known for known in _AC3_BIT_RATES if known >= wanted), self.max_bit_rate)
        return wanted


_AC3_BIT_RATES = (96_000, 192_000, 320_000, 384_000, 512_000, 576_000, 640_000)
"""Of AC-3's bit rates (ATSC A/52, table 5.18), those that 1 to 6 channels get here."""

SOUND_CODECS = {
    "aac": SoundCodec(encoder="aac", name="AAC", suffixes=_MOV, formats=("fltp",), channel_bit_rate=96_000),
    "ac3": SoundCodec(
        encoder="ac3",
        name="AC-3",
        suffixes=_MOV,
        formats=("fltp",),
        channel_bit_rate=96_000,
        max_bit_rate=640_000,
    ),
    "mp3": SoundCodec(
        encoder="libmp3lame",
        name="MP3",
        suffixes=_MOV,
        formats=("fltp",),
        channel_bit_rate=96_000,
        min_rate=16_000,  # lower ones are MPEG-2.5, which MP4 does not know
    ),
    "opus": SoundCodec(encoder="libopus", name="Opus", suffixes=_WEB, formats=("flt",), channel_bit_rate=64_000),
    "alac": SoundCodec(encoder="alac", name="ALAC", suffixes=_MOV, formats=("s16p", "s32p"), bits=(16, 24)),
    "flac": SoundCodec(encoder="flac", name="FLAC", suffixes=(".mp4", ".mkv"), formats=("s16", "s32"), bits=(16, 24)),
    "pcm_s16le": SoundCodec(encoder="pcm_s16le", name="PCM", suffixes=_MOV, formats=("s16",), bits=(16,)),
    "pcm_s24le": SoundCodec(encoder="pcm_s24le", name="PCM", suffixes=_MOV, formats=("s32",), bits=(24,)),
}
"""Encoders of sound by the word that asks for them."""

SOUND_FOR = {
    ".mp4": (("aac",), ("alac", "flac", "aac")),
    ".mov": (("aac",), ("alac", "aac")),
    ".mkv": (("aac",), ("flac", "aac")),
    ".webm": (("opus",), ("opus",)),
}
"""What sound becomes that an output cannot hold, by suffix, for lossy and for lossless sources: the first codec that
has so many channels."""

TEXT_FOR = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
"""What subtitles of text become that an output cannot hold: FFmpeg's names of encoders by suffix."""


X265_BLOCK_PX = 64

X265_DELAY_FRAMES = 2
"""For so few frames, x265 4.2 reads decode times from uninitialised memory."""

FFV1_SLICE_PX = 3_700_000
"""FFV1 does not open if slices are much larger."""

_FFV1_SLICES = (4, 6, 9, 12, 15, 16, 20, 24, 30, 42, 64)


def fixed_options(codec: str, threads: int, pix_fmt: str, size: tuple[int, int]) -> dict[str, str]:
    """Return the options that a pixel format needs, and those that make an encoder's bytes the same on every run.

    Args:
        codec: FFmpeg's name of the encoder.
        threads: Encoder threads of one segment.
        pix_fmt: FFmpeg's name of the pixel format.
        size: (width, height) in pixels.

    Returns:
        Options by name.
    """
    if codec == "libx264":
        return {"x264-params": "asm=avx2"} if _has_avx512() else {}  # with AVX-512, x264's bytes vary for equal frames
    if codec == "libx265":
        # In pictures of one row or column of its largest blocks, x265 4.2 reads uninitialised memory.
        block = ":ctu=16" if min(size) <= X265_BLOCK_PX else ""
        return {"x265-params": f"log-level=error:frame-threads=1:pools={threads if threads > 1 else 'none'}{block}"}
    if codec == "libsvtav1":
        return {"svtav1-params": f"lp={threads}"}
    if codec == "libvpx-vp9":  # alternate references are packets without a picture, which cannot have alpha
        return {"b": "0", "row-mt": "0"} | ({"auto-alt-ref": "0"} if pix_fmt.startswith("yuva") else {})
    if codec == "ffv1":
        enough = (number for number in _FFV1_SLICES if size[0] * size[1] <= number * FFV1_SLICE_PX)
        return {"level": "3", "slices": str(next(enough, _FFV1_SLICES[-1]))}
    if codec == "png":
        return {"compression_level": "3"}
    if codec == "mjpeg":
        return dict(JPEG_OPTIONS)
    return {"profile": "4444"} if codec == "prores_ks" and "444" in pix_fmt else {}


LOOKAHEAD_FRAMES = 40
"""Lookahead of x264's preset medium; other encoders use less."""

MAX_LOOKAHEAD_PX = LOOKAHEAD_FRAMES * 4096 * 2304
"""Most pixels in an encoder's lookahead; larger pictures get fewer frames."""

ENCODER_BYTES_PER_PX = (60, 3)
"""Most bytes per pixel of 8 bits measured with x264, x265, SVT-AV1 and VP9: for the picture, and for each frame of the
lookahead."""

MAX_DPB_BLOCKS = 696_320
"""Blocks of 16x16 pixels that a decoder of H.264's highest level keeps (ITU-T H.264, table A-1)."""


def bound_options(codec: str, size: tuple[int, int]) -> dict[str, str]:
    """Return options that keep an encoder from holding dozens of very large pictures; none up to 4096x2304.

    Args:
        codec: FFmpeg's name of the encoder.
        size: (width, height) in pixels.

    Returns:
        Options by name.
    """
    frames = _frames_ahead(size)
    if frames == LOOKAHEAD_FRAMES:
        return {}
    if codec == "libx264":
        options = {"rc-lookahead": str(frames)}
        kept = MAX_DPB_BLOCKS // (-(-size[0] // 16) * -(-size[1] // 16))
        return options | ({"refs": str(max(kept, 1))} if kept < 4 else {}) | ({"bf": "0"} if kept < 2 else {})
    if codec == "libx265":
        few = f":bframes={frames - 1}:ref=1" if frames < 5 else ""
        return {"x265-params": f"rc-lookahead={frames}{few}"}
    if codec == "libvpx-vp9":
        return {"lag-in-frames": str(min(frames, 25))}
    return {"svtav1-params": "lookahead=0:hierarchical-levels=2"} if codec == "libsvtav1" else {}


@contextlib.contextmanager
def keep_scheduling() -> Iterator[None]:
    """Give the threads of this process the scheduling back that they had before an encoder was opened.

    If SVT-AV1 runs as root (in most containers), it gives real-time priority (``SCHED_FIFO``, 99) to its threads and to
    the thread that opens it. Processes started later inherit it, and Ray's own processes on the machine starve.

    Yields:
        None.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    own = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) == os.SCHED_FIFO != own[0]:
                    os.sched_setscheduler(thread, *own)


def predict_encoder_bytes(size: tuple[int, int], bit_depth: int) -> int:
    """Predict the memory that an encoder takes for its pictures.

    Args:
        size: (width, height) in pixels.
        bit_depth: Bits per component.

    Returns:
        Bytes.
    """
    fixed, ahead = ENCODER_BYTES_PER_PX
    return size[0] * size[1] * (fixed + ahead * _frames_ahead(size)) * (1 if bit_depth <= 8 else 2)


def _frames_ahead(size: tuple[int, int]) -> int:
    return max(min(MAX_LOOKAHEAD_PX // (size[0] * size[1]), LOOKAHEAD_FRAMES), 1)


def hdr_options(codec: str, hdr: HdrMetadata) -> dict[str, str]:
    """Return the options that give HDR10's static metadata to an encoder.

    Args:
        codec: FFmpeg's name of the encoder.
        hdr: The metadata.

    Returns:
        Options by name; empty if the encoder cannot store the metadata.
    """
    names = {
        "libx264": ("x264-params", "mastering-display", "cll"),
        "libx265": ("x265-params", "master-display", "max-cll"),
        "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
    }
    if codec not in names:
        return {}
    option, mastering, light = names[codec]
    values = []
    if hdr.primaries and hdr.luminance:
        chroma, nits = (1, 1) if codec == "libsvtav1" else (50000, 10000)
        red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = (
            _number(value, chroma) for value in hdr.primaries
        )
        least, most = (_number(value, nits) for value in hdr.luminance)
        values.append(
            f"{mastering}=G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})"
            f"WP({white_x},{white_y})L({most},{least})"
        )
    if hdr.light_level:
        values.append(f"{light}={hdr.light_level[0]},{hdr.light_level[1]}")
    return {option: ":".join(values)} if values else {}


def _number(value: Fraction, unit: int) -> str:
    return str(round(value * unit)) if unit > 1 else f"{float(value):.6f}"


def _has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " avx512f" in cpuinfo.read_text()
