"""Pictures to RGB and back: 8 bits through swscale, more bits through the matrix itself.

swscale's conversions of more than 8 bits neither reach full white nor are they all right (FFmpeg 8), so there it only changes how
chroma is sampled, which keeps luma as it is, and the matrix of ITU-T H.273 is applied here. Does not cover constant luminance.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from genai_ray.errors import VideoError
from genai_ray.video.plan import FULL, Colour

__all__ = ["SWS_FLAGS", "from_rgb", "to_rgb"]

# Without these an 8-bit identity round trip loses luma (46.5 dB); with them luma is lossless and chroma 60.8 dB.
SWS_FLAGS = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""How swscale converts, both ways."""

_SPACES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601_WEIGHTS = (0.299, 0.114)
"""Shares of red and blue in luma (H.273, table 4)."""

_PEAK = 65535
_REFORMATTER = VideoReformatter()


def to_rgb(frame: av.VideoFrame, colour: Colour) -> npt.NDArray[Any]:
    """Convert a decoded picture.

    Args:
        frame: Of any pixel format; alpha is dropped.
        colour: What its numbers mean.

    Returns:
        RGB (H, W, 3), C-contiguous: uint8 in [0, 255] for 8 bits a component, else uint16 in [0, 65535].

    Raises:
        VideoError: If the pixel format has no RGB or YUV form of its depth.
    """
    if max(part.bits for part in frame.format.components) <= 8:
        rgb = _REFORMATTER.reformat(
            frame,
            format="rgb24",
            src_colorspace=_SPACES.get(colour.matrix, Colorspace.ITU601),
            src_color_range=_span(colour),
            dst_color_range=ColorRange.JPEG,
            interpolation=SWS_FLAGS,
            threads=1,
        )
        return np.ascontiguousarray(rgb.to_ndarray())
    bits = frame.format.components[0].bits
    if frame.format.is_rgb:
        green, blue, red = (plane.astype(np.float32) for plane in _planes(_resample(frame, f"gbrp{bits}le", colour)))
        return _quantise(np.stack([red, green, blue], axis=-1) / (2**bits - 1), _PEAK, np.uint16)
    planar = _resample(frame, f"yuv444p{bits}le", colour)
    levels: list[npt.NDArray[Any]] = [plane.astype(np.float32) for plane in _planes(planar)]
    luma, cb, cr = levels
    low, luma_span, chroma_span = _levels(colour, bits)
    luma = (luma - low) / luma_span
    cb, cr = (cb - 2 ** (bits - 1)) / chroma_span, (cr - 2 ** (bits - 1)) / chroma_span
    of_red, of_blue = _WEIGHTS.get(colour.matrix, _BT601_WEIGHTS)
    red, blue = luma + 2 * (1 - of_red) * cr, luma + 2 * (1 - of_blue) * cb
    green = (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return _quantise(np.stack([red, green, blue], axis=-1), _PEAK, np.uint16)


def from_rgb(frame: npt.NDArray[Any], colour: Colour, pix_fmt: str) -> av.VideoFrame:
    """Convert a picture for the encoder.

    Args:
        frame: RGB (H, W, 3), uint8 in [0, 255] or uint16 in [0, 65535], C-contiguous.
        colour: What the numbers of the result mean; its tags are written on it.
        pix_fmt: A planar YUV format of 8 or 10 bits.

    Returns:
        The picture in that format.
    """
    bits = av.VideoFormat(pix_fmt).components[0].bits
    if frame.dtype == np.uint8 and bits == 8:
        yuv = _REFORMATTER.reformat(
            av.VideoFrame.from_ndarray(frame, format="rgb24"),
            format=pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=_SPACES.get(colour.matrix, Colorspace.ITU601),
            dst_color_range=_span(colour),
            interpolation=SWS_FLAGS,
            threads=1,
        )
    else:
        red, green, blue = np.moveaxis(frame.astype(np.float32) / np.iinfo(frame.dtype).max, -1, 0)
        of_red, of_blue = _WEIGHTS.get(colour.matrix, _BT601_WEIGHTS)
        luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
        low, luma_span, chroma_span = _levels(colour, bits)
        middle, peak = 2 ** (bits - 1), 2**bits - 1
        kind: Any = np.uint8 if bits == 8 else np.uint16
        planes = (
            luma * luma_span + low,
            (blue - luma) / (2 * (1 - of_blue)) * chroma_span + middle,
            (red - luma) / (2 * (1 - of_red)) * chroma_span + middle,
        )
        full = av.VideoFrame(frame.shape[1], frame.shape[0], "yuv444p" if bits == 8 else f"yuv444p{bits}le")
        for plane, values in zip(full.planes, planes, strict=True):
            padded = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
            padded[:, : plane.width] = _quantise(values / peak, peak, kind)
            plane.update(padded.tobytes())
        yuv = _resample(full, pix_fmt, colour)
    yuv.colorspace, yuv.color_range = colour.matrix, colour.range
    yuv.color_primaries, yuv.color_trc = colour.primaries, colour.transfer
    return yuv


def _span(colour: Colour) -> ColorRange:
    return ColorRange.JPEG if colour.range == FULL else ColorRange.MPEG


def _levels(colour: Colour, bits: int) -> tuple[int, int, int]:
    """Return black, and the spans of luma and of chroma, in code values."""
    if colour.range == FULL:
        return 0, 2**bits - 1, 2**bits - 1
    return 16 << (bits - 8), 219 << (bits - 8), 224 << (bits - 8)


def _quantise(values: npt.NDArray[Any], peak: int, kind: Any) -> npt.NDArray[Any]:
    quantised: npt.NDArray[Any] = np.rint(np.clip(values, 0, 1) * peak).astype(kind)
    return np.ascontiguousarray(quantised)


def _resample(frame: av.VideoFrame, pix_fmt: str, colour: Colour) -> av.VideoFrame:
    """Change how chroma is sampled and components are stored, never their meaning."""
    if frame.format.name == pix_fmt:
        return frame
    space = _SPACES.get(colour.matrix, Colorspace.ITU601)
    try:
        return _REFORMATTER.reformat(
            frame,
            format=pix_fmt,
            src_colorspace=space,
            dst_colorspace=space,
            src_color_range=_span(colour),
            dst_color_range=_span(colour),
            interpolation=SWS_FLAGS,
            threads=1,
        )
    except ValueError as exc:
        raise VideoError(f"pixel format {frame.format.name}", "YUV or RGB of 8, 9, 10, 12, 14 or 16 bits") from exc


def _planes(frame: av.VideoFrame) -> list[npt.NDArray[np.uint16]]:
    return [np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
