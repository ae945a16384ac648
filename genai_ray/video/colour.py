"""Converts pictures to RGB and back: 8 bits with swscale; more bits, and results of full range, with the matrix itself.

swscale's conversions of more than 8 bits do not reach full white, and some are wrong (FFmpeg 8). There swscale only
changes the chroma sampling, which leaves luma as it is, and this module applies the matrix of ITU-T H.273. It does not
support constant luminance.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image

from genai_ray.errors import VideoError
from genai_ray.video.info import FULL, YCGCO, Colour

__all__ = [
    "JFIF",
    "SWS_FLAGS",
    "count_outside",
    "fill_plane",
    "from_rgb",
    "planes_of",
    "read_alpha",
    "resample",
    "scale_alpha",
    "shrink_rgb",
    "to_rgb",
    "to_small_rgb",
]

# Without these an 8-bit identity round trip loses luma (46.5 dB); with them luma is lossless and chroma 60.8 dB.
SWS_FLAGS = (
    Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
"""swscale's flags for both directions."""

_SPACES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601_WEIGHTS = (0.299, 0.114)
"""Shares of red and blue in luma (H.273, table 4)."""

JFIF = Colour(5, FULL, 2, 2, False)
"""Colour of every JPEG file: BT.601, full range."""

_PEAK = 65535

_LANCZOS_LOBES = 3

COUNTED_ROWS = 8
"""One of so many rows of chroma is checked for colours outside the RGB gamut."""


def to_rgb(frame: av.VideoFrame, colour: Colour) -> npt.NDArray[Any]:
    """Convert a decoded picture.

    Args:
        frame: A picture of any pixel format; ``read_alpha`` reads its alpha.
        colour: Its colour.

    Returns:
        RGB (H, W, 3), C-contiguous: uint8 in [0, 255] for 8 bits per component, else uint16 in [0, 65535].

    Raises:
        VideoError: If the pixel format is not supported.
    """
    frame = _place_chroma(frame, colour)
    if max(part.bits for part in frame.format.components) <= 8 and colour.source_matrix != YCGCO:
        rgb = _OWN.reformatter.reformat(
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
        # swscale leaves half of the last row unwritten if it only drops alpha.
        planar = frame if frame.format.name == f"gbrap{bits}le" else _resample(frame, f"gbrp{bits}le", colour)
        green, blue, red = (plane.astype(np.float32) for plane in _planes(planar)[:3])
        return _quantise(np.stack([red, green, blue], axis=-1) / (2**bits - 1), _PEAK, np.uint16)
    planar = _resample(frame, "yuv444p" if bits <= 8 else f"yuv444p{bits}le", colour)
    channels = np.stack(_unmatrix(_planes(planar), colour, bits), axis=-1)
    return _quantise(channels, 255, np.uint8) if bits <= 8 else _quantise(channels, _PEAK, np.uint16)


def to_small_rgb(frame: av.VideoFrame, colour: Colour, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Convert a decoded picture to a small one of 8 bits, as FFmpeg's scaler does by default.

    Args:
        frame: A picture of any pixel format.
        colour: Its colour.
        size: (width, height) of the result in pixels; the picture is stretched.

    Returns:
        RGB (height, width, 3), uint8.

    Raises:
        VideoError: If the pixel format is not supported.
    """
    small = _OWN.reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format="rgb24",
        src_colorspace=_SPACES.get(colour.matrix, Colorspace.ITU601),
        src_color_range=_span(colour),
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )
    return np.asarray(small.to_ndarray(), np.uint8)


def shrink_rgb(frame: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Convert a picture in RGB to a small one of 8 bits, as ``to_small_rgb``.

    Args:
        frame: (H, W, 3), C-contiguous, uint8 or uint16.
        size: (width, height) of the result in pixels; the picture is stretched.

    Returns:
        RGB (height, width, 3), uint8.
    """
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24" if frame.dtype == np.uint8 else "rgb48le")
    return to_small_rgb(picture, JFIF, size)


def count_outside(frame: av.VideoFrame, colour: Colour) -> tuple[int, int]:
    """Count pixels outside the RGB gamut by more than rounding: conversion clips them, and their luma changes.

    Args:
        frame: A decoded picture.
        colour: Its colour.

    Returns:
        Pixels outside, and pixels checked: those beside a chroma sample, in one of eight rows of chroma. No pixel is
        checked if the picture is not planar YUV.
    """
    if not frame.format.name.startswith("yuv") or frame.format.name.endswith("be"):
        return 0, 0
    luma, cb, cr = _planes(frame)[:3]
    down = -(-luma.shape[0] // cb.shape[0])
    right = -(-luma.shape[1] // cb.shape[1])
    picked = (luma[:: COUNTED_ROWS * down, ::right], cb[::COUNTED_ROWS], cr[::COUNTED_ROWS])
    channels = _unmatrix(picked, colour, frame.format.components[0].bits)
    outside = np.abs(np.stack(channels) - 0.5).max(axis=0) > 0.5 + 0.5 / 255
    return int(outside.sum()), outside.size


def read_alpha(frame: av.VideoFrame) -> npt.NDArray[Any]:
    """Read the alpha plane of a decoded picture.

    Args:
        frame: A picture of a pixel format with alpha.

    Returns:
        (H, W, 1), C-contiguous: uint8 in [0, 255] for 8 bits per component, else uint16 in [0, 65535]; 0 is
        transparent.
    """
    bits = frame.format.components[0].bits
    if not frame.format.name.startswith("yuva") or frame.format.name.endswith("be"):
        frame = _OWN.reformatter.reformat(frame, format="gbrap" if bits <= 8 else f"gbrap{bits}le", threads=1)
    plane = _planes(frame)[3][..., np.newaxis]
    if bits <= 8:
        return np.ascontiguousarray(plane)
    return _quantise(plane.astype(np.float32) / (2**bits - 1), _PEAK, np.uint16)


def planes_of(frame: av.VideoFrame) -> list[npt.NDArray[Any]]:
    """Return the values of each plane of a planar picture, without padding; they are not copied.

    Args:
        frame: A decoded picture of a planar format.

    Returns:
        (rows, values) of each plane, uint8, or uint16 for more than 8 bits.
    """
    return _planes(frame)


def scale_alpha(alpha: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Scale an alpha plane to the size of a result.

    Args:
        alpha: (h, w, 1), uint8 or uint16.
        size: (width, height) in pixels.

    Returns:
        (height, width, 1) of the same dtype; ``alpha`` itself if it has this size.
    """
    if (alpha.shape[1], alpha.shape[0]) == size:
        return alpha
    name = "gray" if alpha.dtype == np.uint8 else "gray16le"
    plane = av.VideoFrame.from_ndarray(np.ascontiguousarray(alpha[..., 0]), format=name)
    scaled = _OWN.reformatter.reformat(plane, width=size[0], height=size[1], interpolation=SWS_FLAGS, threads=1)
    return np.ascontiguousarray(scaled.to_ndarray()[..., np.newaxis])


def resample(
    frame: npt.NDArray[Any], size: tuple[int, int], part: tuple[int, int, int, int] | None = None
) -> npt.NDArray[np.uint16]:
    """Resample a picture by Lanczos' kernel of three lobes, in float32; when it is reduced the kernel is as much wider.

    Each channel is resampled by itself; beyond the edges, their pixels are repeated. FFmpeg's scaler cuts overshoot
    between its two passes, and in 16 bits wraps around at hard edges (seen in FFmpeg 8), so this is Pillow's.

    Args:
        frame: (h, w, C), C of 1 or 3, uint8 in [0, 255] or uint16 in [0, 65535].
        size: (width, height) of the whole picture in pixels.
        part: (left, top, width, height) of what is wanted of it; None for all.

    Returns:
        (height, width, C) of that part, uint16 in [0, 65535], C-contiguous.
    """
    height, width, channels = frame.shape
    left, top, *wanted = part or (0, 0, *size)
    per_x, per_y = width / size[0], height / size[1]
    pad_x, pad_y = (math.ceil(_LANCZOS_LOBES * max(per, 1)) for per in (per_x, per_y))
    box = (
        pad_x + left * per_x,
        pad_y + top * per_y,
        pad_x + (left + wanted[0]) * per_x,
        pad_y + (top + wanted[1]) * per_y,
    )
    result = np.empty((wanted[1], wanted[0], channels), np.uint16)
    for at in range(channels):
        values = frame[..., at].astype(np.float32) * (257 if frame.dtype == np.uint8 else 1)
        padded = Image.fromarray(np.pad(values, ((pad_y, pad_y), (pad_x, pad_x)), mode="edge"))
        done = np.asarray(padded.resize((wanted[0], wanted[1]), Image.Resampling.LANCZOS, box))
        result[..., at] = np.rint(done).clip(0, _PEAK)
    return result


def from_rgb(frame: npt.NDArray[Any], colour: Colour, pix_fmt: str) -> av.VideoFrame:
    """Convert a picture for the encoder.

    Args:
        frame: RGB (H, W, 3), or RGBA (H, W, 4) for a format with alpha; uint8 in [0, 255] or uint16 in [0, 65535],
            C-contiguous.
        colour: Colour of the result, which gets its tags.
        pix_fmt: A planar YUV format of 8 to 16 bits, with or without alpha; or RGB or RGBA of 8 or 16 bits.

    Returns:
        The picture in that format.
    """
    described = av.VideoFormat(pix_fmt)
    if described.is_rgb:
        return av.VideoFrame.from_ndarray(_to_depth(frame, described.components[0].bits), format=pix_fmt)
    if pix_fmt.startswith("yuva"):
        opaque = from_rgb(np.ascontiguousarray(frame[..., :3]), colour, pix_fmt.replace("yuva", "yuv"))
        return _tag(_add_alpha(opaque, _to_depth(frame[..., 3], described.components[0].bits), pix_fmt), colour)
    return _tag(_to_yuv(frame, colour, pix_fmt), colour)


def _to_yuv(frame: npt.NDArray[Any], colour: Colour, pix_fmt: str) -> av.VideoFrame:
    bits = av.VideoFormat(pix_fmt).components[0].bits
    # For full range, swscale truncates chroma instead of rounding it.
    if frame.dtype == np.uint8 and bits == 8 and colour.range != FULL:
        return _OWN.reformatter.reformat(
            _place_chroma(av.VideoFrame.from_ndarray(frame, format="rgb24"), colour),
            format=pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=_SPACES.get(colour.matrix, Colorspace.ITU601),
            dst_color_range=_span(colour),
            interpolation=SWS_FLAGS,
            threads=1,
        )
    red, green, blue = np.moveaxis(frame.astype(np.float32) / np.iinfo(frame.dtype).max, -1, 0)
    of_red, of_blue = _WEIGHTS.get(colour.matrix, _BT601_WEIGHTS)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    low, luma_span, chroma_span = _levels(colour, bits)
    middle = 2 ** (bits - 1)
    peak = 2**bits - 1
    kind: Any = np.uint8 if bits == 8 else np.uint16
    planes = (
        luma * luma_span + low,
        (blue - luma) / (2 * (1 - of_blue)) * chroma_span + middle,
        (red - luma) / (2 * (1 - of_red)) * chroma_span + middle,
    )
    full = av.VideoFrame(frame.shape[1], frame.shape[0], "yuv444p" if bits == 8 else f"yuv444p{bits}le")
    for plane, values in zip(full.planes, planes, strict=True):
        fill_plane(plane, _quantise(values / peak, peak, kind))
    return _resample(_place_chroma(full, colour), pix_fmt, colour)


def _unmatrix(planes: Sequence[npt.NDArray[Any]], colour: Colour, bits: int) -> tuple[npt.NDArray[Any], ...]:
    """Convert luma and chroma of the same positions to red, green and blue, float32; 0 to 1 inside the RGB gamut."""
    levels: list[npt.NDArray[Any]] = [plane.astype(np.float32) for plane in planes]
    luma, cb, cr = levels
    low, luma_span, chroma_span = _levels(colour, bits)
    luma = (luma - low) / luma_span
    cb = (cb - 2 ** (bits - 1)) / chroma_span
    cr = (cr - 2 ** (bits - 1)) / chroma_span
    if colour.source_matrix == YCGCO:  # H.273 has Cg for Cb and Co for Cr
        return luma - cb + cr, luma + cb, luma - cb - cr
    of_red, of_blue = _WEIGHTS.get(colour.matrix, _BT601_WEIGHTS)
    red = luma + 2 * (1 - of_red) * cr
    blue = luma + 2 * (1 - of_blue) * cb
    green = (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return red, green, blue


def _place_chroma(frame: av.VideoFrame, colour: Colour) -> av.VideoFrame:
    """Tag a frame with its chroma location; swscale reads the tag, and assumes the centre without one.

    PyAV (18) has no field for the tag, so FFmpeg's filter ``setparams`` sets it. Pictures are not copied.
    """
    graph = _OWN.placing_graph(frame.width, frame.height, frame.format.name, colour.chroma_location)
    graph.push(frame)
    return cast(av.VideoFrame, graph.pull())


def _placing_graph(width: int, height: int, pix_fmt: str, location: str) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat(pix_fmt), time_base=Fraction(1, 1000))
    setter = graph.add("setparams", f"chroma_location={location}")
    sink = graph.add("buffersink")
    source.link_to(setter)
    setter.link_to(sink)
    graph.configure()
    return graph


class _Own(threading.local):
    """Objects of one thread: two threads in one swscale context crash, and in one graph get each other's pictures."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()
        self.placing_graph = functools.lru_cache(maxsize=8)(_placing_graph)


_OWN = _Own()


def _tag(yuv: av.VideoFrame, colour: Colour) -> av.VideoFrame:
    yuv.colorspace = colour.matrix
    yuv.color_range = colour.range
    yuv.color_primaries = colour.primaries
    yuv.color_trc = colour.transfer
    return yuv


def _add_alpha(opaque: av.VideoFrame, alpha: npt.NDArray[Any], pix_fmt: str) -> av.VideoFrame:
    whole = av.VideoFrame(opaque.width, opaque.height, pix_fmt)
    for plane, values in zip(whole.planes, (*_planes(opaque), alpha), strict=True):
        fill_plane(plane, values)
    return whole


def fill_plane(plane: Any, values: npt.NDArray[Any]) -> None:
    """Write the samples of a plane.

    Args:
        plane: A plane of a PyAV picture.
        values: (height, width), uint8 or uint16.
    """
    padded = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
    padded[:, : plane.width] = values
    plane.update(padded.tobytes())


def _to_depth(values: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Convert values of the full range of their dtype to this number of bits."""
    peak = 2**bits - 1
    if np.iinfo(values.dtype).max == peak:
        return np.ascontiguousarray(values)
    kind = np.uint8 if bits <= 8 else np.uint16
    return _quantise(values.astype(np.float32) / np.iinfo(values.dtype).max, peak, kind)


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
    """Change the chroma sampling and the storage of components, but not the colour."""
    if frame.format.name == pix_fmt:
        return frame
    space = _SPACES.get(colour.matrix, Colorspace.ITU601)
    try:
        return _OWN.reformatter.reformat(
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


def _planes(frame: av.VideoFrame) -> list[npt.NDArray[Any]]:
    kind: Any = np.uint8 if frame.format.components[0].bits <= 8 else np.uint16
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]
