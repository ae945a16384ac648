"""The encoders that results are written with: what each of them can store, where, and how it is told so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CODECS", "CODEC_ALIASES", "SUFFIXES", "Codec", "fixed_options"]

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
"""Containers that results are written to."""

CODEC_ALIASES = {"h264": "libx264", "hevc": "libx265", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "prores": "prores_ks"}
"""Names of the formats for the names of their encoders."""

_X_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """What is known of one encoder."""

    suffixes: tuple[str, ...]
    """Containers that take its packets."""
    even: tuple[str, ...]
    """Pixel formats of even sizes, fewest bits first."""
    odd: tuple[str, ...]
    """Pixel formats of odd sizes, fewest bits first; none where the encoder takes no such size."""
    presets: tuple[str, ...] = ()
    """Presets from fast to slow, or qualities; none where it has none."""
    preset: str | None = None
    """Preset where none is asked for."""
    preset_option: str = "preset"
    """FFmpeg's name of the option that the preset is."""
    max_crf: int | None = None
    """Largest constant rate factor; None where it has none."""
    crf: float = 0.0
    """Constant rate factor where none is asked for."""

    def options(self, preset: str | None, crf: float | None) -> dict[str, str]:
        """Return FFmpeg's options of quality and speed.

        Args:
            preset: One of ``presets``; None for the usual one.
            crf: Constant rate factor; None for the usual one.

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
        suffixes=(".mp4", ".mkv", ".mov"),
        even=("yuv420p", "yuv420p10le"),
        odd=("yuv444p", "yuv444p10le"),
        presets=_X_PRESETS,
        preset="medium",
        max_crf=51,
        crf=18,
    ),
    "libx265": Codec(
        suffixes=(".mp4", ".mkv", ".mov"),
        even=("yuv420p", "yuv420p10le"),
        odd=("yuv444p", "yuv444p10le"),
        presets=_X_PRESETS,
        preset="medium",
        max_crf=51,
        crf=20,
    ),
    "libsvtav1": Codec(
        suffixes=(".mp4", ".mkv", ".webm"),
        even=("yuv420p", "yuv420p10le"),
        odd=(),
        presets=tuple(str(number) for number in range(13, -1, -1)),
        preset="8",
        max_crf=63,
        crf=24,
    ),
    "libvpx-vp9": Codec(
        suffixes=(".mp4", ".mkv", ".webm"),
        even=("yuv420p", "yuv420p10le"),
        odd=("yuv444p", "yuv444p10le"),
        presets=tuple(str(number) for number in range(8, -1, -1)),
        preset="4",
        preset_option="cpu-used",
        max_crf=63,
        crf=24,
    ),
    "ffv1": Codec(suffixes=(".mkv",), even=("yuv420p", "yuv420p10le"), odd=("yuv444p", "yuv444p10le")),
    "prores_ks": Codec(
        suffixes=(".mov", ".mkv"),
        even=("yuv422p10le",),
        odd=("yuv444p10le",),
        presets=("proxy", "lt", "standard", "hq"),
        preset="hq",
        preset_option="profile",
    ),
}
"""Encoders by FFmpeg's name."""


def fixed_options(codec: str, threads: int, width: int) -> dict[str, str]:
    """Return what makes an encoder's bytes the same on every run.

    Args:
        codec: FFmpeg's name of the encoder.
        threads: Of one segment.
        width: Of the picture, in pixels; odd ones are stored as 4:4:4.

    Returns:
        Options by name.
    """
    if codec == "libx264":
        return {"x264-params": "asm=avx2"} if _has_avx512() else {}  # with AVX-512 x264's bytes vary for equal frames
    if codec == "libx265":
        return {"x265-params": f"log-level=error:frame-threads=1:pools={threads if threads > 1 else 'none'}"}
    if codec == "libsvtav1":
        return {"svtav1-params": f"lp={threads}"}
    if codec == "libvpx-vp9":
        return {"b": "0", "row-mt": "0"}
    if codec == "ffv1":
        return {"level": "3", "slices": "4"}
    return {"profile": "4444"} if width % 2 else {}


def _has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " avx512f" in cpuinfo.read_text()
