"""PNG pictures of 16 bits a component, which image libraries cut to 8: read and written by FFmpeg's codec.

Nothing but the samples is kept: no profile, no text, no orientation.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from genai_ray.errors import InvalidInputError

__all__ = ["decode_png16", "encode_png16"]

_FORMATS = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}
_CHANNELS = {name: channels for channels, name in _FORMATS.items()}


def decode_png16(data: bytes, max_pixels: int) -> npt.NDArray[np.uint16]:
    """Decode a PNG of 16 bits a component.

    Args:
        data: The whole file.
        max_pixels: Most pixels that it may have.

    Returns:
        (H, W, C), uint16 in [0, 65535]: grey (1), grey and alpha (2), RGB (3) or RGBA (4); a transparent colour is alpha.

    Raises:
        InvalidInputError: If it is not such a file, is damaged, or has more pixels.
    """
    codec = VideoCodecContext.create("png", "r")
    codec.options = {"max_pixels": str(max_pixels)}
    try:
        (frame,) = [*codec.decode(av.Packet(data)), *codec.decode(None)]
    except (av.FFmpegError, ValueError) as exc:
        raise InvalidInputError(
            f"a PNG that does not decode: {exc}", f"a whole file of at most {max_pixels} pixels"
        ) from exc
    channels = _CHANNELS.get(frame.format.name)
    if channels is None:
        raise InvalidInputError(f"a PNG of {frame.format.name}", ", ".join(_CHANNELS))
    rows = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(frame.height, -1)
    pixels: npt.NDArray[np.uint16] = (
        rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels).astype(np.uint16)
    )
    return pixels


def encode_png16(pixels: npt.NDArray[np.uint16]) -> bytes:
    """Encode a PNG of 16 bits a component.

    Args:
        pixels: (H, W, C), uint16: grey (1), grey and alpha (2), RGB (3) or RGBA (4).

    Returns:
        The whole file.

    Raises:
        InvalidInputError: If dtype or shape is another.
    """
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] not in _FORMATS or pixels.size == 0:
        raise InvalidInputError(f"pixels {pixels.dtype} {pixels.shape}", "uint16 (H, W, 1 to 4)")
    height, width, channels = pixels.shape
    frame = av.VideoFrame(width, height, _FORMATS[channels])
    plane: Any = frame.planes[0]
    rows = np.zeros((height, plane.line_size // 2), ">u2")
    rows[:, : width * channels] = pixels.reshape(height, -1)
    plane.update(rows.tobytes())
    codec = VideoCodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, _FORMATS[channels], Fraction(1)
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
