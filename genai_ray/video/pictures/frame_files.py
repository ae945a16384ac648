"""Frames as files of their own: the packets of PNG and JPEG segments are those files. Also such files in memory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from genai_ray.errors import ConfigError, InvalidInputError, VideoError
from genai_ray.types import PictureFormat
from genai_ray.video.codecs import JPEG_OPTIONS
from genai_ray.video.colour import JFIF, from_rgb, to_rgb
from genai_ray.video.container import av_errors, explain, open_video
from genai_ray.video.info import build_decoder, decode_packet, main_stream
from genai_ray.video.reading.plan import VideoPlan

__all__ = [
    "FIRST_NUMBER",
    "decode_pixels",
    "decode_png16",
    "describe_leftovers",
    "encode_pixels",
    "encode_png",
    "encode_png16",
    "folder_of_pictures",
    "read_picture",
    "read_pictures",
    "to_deep_pixels",
    "write_pictures",
]

FIRST_NUMBER = 1
"""Number of the first frame in a file's name, as FFmpeg counts."""

MAX_PICTURE_PX = 2**28
"""Most pixels of a file in memory, such as 16384x16384: a file of some bytes may claim more than any memory holds."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_STORED = ("gray", "rgb24", "rgba", "gray16be", "rgb48be", "rgba64be")
"""FFmpeg's pixel formats of PNG files that are read as they are."""

_NUMBER = re.compile(r"%(0\d+)?d")
_PIXEL_FORMATS = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}
_CHANNELS = {name: channels for channels, name in _PIXEL_FORMATS.items()}


def folder_of_pictures(output: Path) -> Path:
    """Check the pattern of the frames' names, and return their folder.

    Args:
        output: Such as ``frames/%06d.png``.

    Returns:
        The folder.

    Raises:
        ConfigError: If the file name does not have exactly one number, such as %06d, or the folder's name has one.
    """
    if len(_NUMBER.findall(output.name)) != 1 or output.name.count("%") != 1 or "%" in str(output.parent):
        raise ConfigError(
            f"{output} for frames of a video",
            f"one number in the file name, such as frames/%06d{output.suffix}",
            "An input that is one picture is named .png, .jpg, .webp or .gif: convert others first.",
        )
    return output.parent


def write_pictures(plan: VideoPlan, parts: Sequence[Path], counts: Sequence[int], output: Path) -> tuple[str, ...]:
    """Write every frame as a file; the folder appears under its name when it is complete.

    Args:
        plan: The planned video.
        parts: Files of the segments in order, of PNG or JPEG packets.
        counts: Frames in each of them.
        output: Pattern of the names; an existing folder is replaced.

    Returns:
        Notes on what pictures cannot hold.

    Raises:
        VideoError: If a part does not hold its frames, or writing fails.
    """
    folder = folder_of_pictures(output)
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    with av_errors(plan.path, f"writing its frames in {folder.parent}"):
        _remove(partial)
        partial.mkdir()
        try:
            number = FIRST_NUMBER
            for part, count in zip(parts, counts, strict=True):
                packets = _packets(plan, part, count) if count else []
                for packet in packets:
                    (partial / (output.name % number)).write_bytes(packet)
                    number += 1
            _remove(old)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            _remove(old)
        finally:
            _remove(partial)
    steps = {after - before for before, after in zip(plan.pts, plan.pts[1:], strict=False)}
    is_timed = len(steps) > 1 and max(steps) - min(steps) > 1
    return (
        *describe_leftovers(plan, "a folder of frames"),
        *(["times were left out: those of the source vary, and files have none"] if is_timed else []),
    )


def read_picture(path: str) -> tuple[npt.NDArray[Any], bool]:
    """Read a PNG or JPEG file; its orientation tag and alpha are ignored.

    Args:
        path: Path or URI.

    Returns:
        RGB (H, W, 3), C-contiguous: uint8, or uint16 in [0, 65535] for a PNG of 16 bits. JPEG is BT.601. And whether it
        has alpha.

    Raises:
        VideoError: If the file is missing or is not such a picture.
    """
    with open_video(path, options={"format_whitelist": "png_pipe,jpeg_pipe"}) as container:
        stream = main_stream(container)
        decoder = build_decoder(stream)
        frame = next((frame for packet in container.demux(stream) for frame in decode_packet(decoder, packet)), None)
        if frame is None:
            raise VideoError(f"{path}: the picture does not decode", "a whole PNG or JPEG file")
        return to_rgb(frame, JFIF), any(component.is_alpha for component in frame.format.components)


def read_pictures(plan: VideoPlan, part: Path, count: int) -> Iterator[npt.NDArray[Any]]:
    """Decode a segment of PNG packets.

    Args:
        plan: The planned video.
        part: The segment's file.
        count: Frames in it.

    Yields:
        Arrays (H, W, 3) or (H, W, 4), uint8 or uint16, C-contiguous.

    Raises:
        VideoError: If the part does not hold its frames.
    """
    found = 0
    with av_errors(part, "reading"), av.open(str(part)) as box:
        for frame in box.decode(box.streams.video[0]):
            found += 1
            yield np.ascontiguousarray(frame.to_ndarray())
    plan.check_count(found, count)


def describe_leftovers(plan: VideoPlan, place: str) -> Iterator[str]:
    """Say which streams of a source are missing in a result without a container.

    Args:
        plan: The planned video.
        place: The kind of result, for the text.

    Yields:
        One sentence a stream.

    Raises:
        VideoError: If the file does not open.
    """
    with open_video(plan.path, any_format=plan.any_format) as container:
        chosen = plan.tracks.choose(container, plan.path)
        for stream in container.streams:
            is_wanted = stream.index in chosen or stream.type not in ("audio", "subtitle")
            if stream.index != main_stream(container).index and is_wanted:
                yield f"{stream.type} stream {stream.index} was left out: {place} cannot hold it"


def decode_png16(data: bytes, max_pixels: int) -> npt.NDArray[np.uint16]:
    """Decode a PNG of 16 bits per component, which image libraries cut to 8; only the pixels, no metadata.

    Args:
        data: The whole file.
        max_pixels: Most pixels that it may have.

    Returns:
        (H, W, C), uint16 in [0, 65535]: grey (1), grey and alpha (2), RGB (3) or RGBA (4); a transparent colour becomes
        alpha.

    Raises:
        InvalidInputError: If it is not such a file, is damaged, or has more pixels.
    """
    return to_deep_pixels(_decode(data, "png", max_pixels))


def to_deep_pixels(frame: av.VideoFrame) -> npt.NDArray[np.uint16]:
    """Return the pixels of a decoded PNG of 16 bits per component.

    Args:
        frame: As FFmpeg's decoder of PNG or APNG gives it.

    Returns:
        As ``decode_png16``.

    Raises:
        InvalidInputError: If it has another depth.
    """
    channels = _CHANNELS.get(frame.format.name)
    if channels is None:
        raise InvalidInputError(f"a PNG of {frame.format.name}", ", ".join(_CHANNELS))
    rows = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(frame.height, -1)
    pixels: npt.NDArray[np.uint16] = (
        rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels).astype(np.uint16)
    )
    return pixels


def decode_pixels(data: bytes) -> npt.NDArray[Any]:
    """Decode a PNG or JPEG file; only the pixels, no orientation and no other metadata.

    Args:
        data: The whole file.

    Returns:
        (H, W, C), C-contiguous: grey (1), RGB (3) or RGBA (4) of a PNG, uint8 or for 16 bits uint16 in [0, 65535]; RGB,
        uint8, of a JPEG, whose colours are BT.601.

    Raises:
        InvalidInputError: If it is no such file, is damaged, or has more than ``MAX_PICTURE_PX`` pixels.
    """
    if data.startswith(_JPEG_START):
        return to_rgb(_decode(data, "mjpeg", MAX_PICTURE_PX), JFIF)
    if not data.startswith(_PNG_START):
        raise InvalidInputError(f"{len(data)} bytes that are no picture", "a PNG or JPEG file")
    frame = _decode(data, "png", MAX_PICTURE_PX)
    if frame.format.name not in _STORED:
        raise InvalidInputError(f"a PNG of {frame.format.name}", "grey, RGB or RGBA of 8 or 16 bits")
    pixels = frame.to_ndarray()
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])


def encode_pixels(pixels: npt.NDArray[Any], kind: PictureFormat) -> bytes:
    """Encode a frame as a file.

    Args:
        pixels: RGB (H, W, 3), for PNG also grey (H, W, 1) or RGBA (H, W, 4): uint8, for PNG also uint16.
        kind: PNG is exact. JPEG is lossy: FFmpeg's quality 2 of 31, 4:4:4, as ``enhance`` writes it.

    Returns:
        The whole file.

    Raises:
        InvalidInputError: If the format cannot hold such pixels.
    """
    if kind == PictureFormat.JPEG:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            got = f"a frame {pixels.shape} {pixels.dtype} as JPEG"
            raise InvalidInputError(got, "(H, W, 3) uint8", "Choose png.")
        return _encode(from_rgb(np.ascontiguousarray(pixels), JFIF, "yuv444p"), "mjpeg", JPEG_OPTIONS)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):  # no frame has grey and alpha: none could be read again
        raise InvalidInputError(f"a frame {pixels.shape} as PNG", "(H, W, 1), (H, W, 3) or (H, W, 4)")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InvalidInputError(f"a frame of {pixels.dtype} as PNG", "uint8 or uint16", "Convert it, or leave it raw.")
    return encode_png16(pixels) if pixels.dtype == np.uint16 else encode_png(pixels)


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode a PNG of 8 bits per component.

    Args:
        pixels: RGB (H, W, 3), RGBA (H, W, 4) or grey (H, W, 1), uint8.

    Returns:
        The whole file.

    Raises:
        InvalidInputError: If dtype or shape is wrong.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise InvalidInputError(f"pixels {pixels.dtype} {pixels.shape}", "uint8 (H, W, 1), (H, W, 3) or (H, W, 4)")
    channels = pixels.shape[2]
    plain = np.ascontiguousarray(pixels if channels > 1 else pixels[..., 0])
    return _encode(av.VideoFrame.from_ndarray(plain, format={1: "gray", 3: "rgb24", 4: "rgba"}[channels]))


def encode_png16(pixels: npt.NDArray[np.uint16]) -> bytes:
    """Encode a PNG of 16 bits per component.

    Args:
        pixels: (H, W, C), uint16: grey (1), grey and alpha (2), RGB (3) or RGBA (4).

    Returns:
        The whole file.

    Raises:
        InvalidInputError: If dtype or shape is wrong.
    """
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] not in _PIXEL_FORMATS or pixels.size == 0:
        raise InvalidInputError(f"pixels {pixels.dtype} {pixels.shape}", "uint16 (H, W, 1 to 4)")
    height, width, channels = pixels.shape
    frame = av.VideoFrame(width, height, _PIXEL_FORMATS[channels])
    plane: Any = frame.planes[0]
    rows = np.zeros((height, plane.line_size // 2), ">u2")
    rows[:, : width * channels] = pixels.reshape(height, -1)
    plane.update(rows.tobytes())
    return _encode(frame)


def _decode(data: bytes, name: str, max_pixels: int) -> av.VideoFrame:
    """Decode the only picture of a file with one of FFmpeg's decoders."""
    codec: Any = VideoCodecContext.create(name, "r")
    codec.options = {"max_pixels": str(max_pixels), "err_detect": "explode"}
    try:
        found: list[av.VideoFrame] = [*codec.decode(av.Packet(data)), *codec.decode(None)]
        (frame,) = found
    except (av.FFmpegError, ValueError) as exc:
        kind = "PNG" if name == "png" else "JPEG"
        raise InvalidInputError(
            f"a {kind} that does not decode: {explain(exc)}", f"a whole file of at most {max_pixels} pixels"
        ) from exc
    return frame


def _encode(frame: av.VideoFrame, name: str = "png", options: Mapping[str, str] | None = None) -> bytes:
    codec: Any = VideoCodecContext.create(name, "w")
    codec.options = dict(options or {})
    if name == "mjpeg":
        JFIF.tag(codec)
    codec.width = frame.width
    codec.height = frame.height
    codec.pix_fmt = frame.format.name
    codec.time_base = Fraction(1)
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def _packets(plan: VideoPlan, part: Path, count: int) -> Iterator[bytes]:
    found = 0
    with av.open(str(part)) as box:
        for packet in box.demux(box.streams.video[0]):
            if packet.size:
                found += 1
                yield bytes(packet)
    plan.check_count(found, count)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
