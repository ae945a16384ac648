"""PNG, JPEG and WebP files to pixels and back.

Kept: orientation (turned upright), alpha, 16 bits of a PNG, greyness, the colour profile. Dropped: other metadata.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from genai_ray.errors import InvalidInputError
from genai_ray.types import full_range
from genai_ray.video.pictures.frame_files import decode_png16, encode_png16

__all__ = [
    "FORMATS",
    "Picture",
    "PictureFacts",
    "PictureSize",
    "check_encoding",
    "decode_picture",
    "describe_picture",
    "encode_picture",
    "measure_picture",
    "open_image",
]

Array = npt.NDArray[Any]

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Formats by name, with their media types."""

DEFAULT_QUALITY = 92
"""Quality of JPEG and WebP, from 1 to 100."""

_MAX_SIDE_PX = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383}
_READ = ("PNG", "JPEG", "WEBP")
_ORIENTATION = 0x0112
_FIRST_SIDEWAYS = 5
"""EXIF orientations from this one on exchange the sides."""
_GREY_MODES = ("1", "L", "LA", "I;16")
_PNG_DEPTH_AT = 24
_PNG_COLOUR_AT = 25
_PNG_GREYS = (0, 4)
_DEEP_BITS = 16
_GREY_PEAKS = {2: 3, 4: 15}
"""Largest values of grey PNGs of 2 and 4 bits. Pillow scales pixels to 8 bits, but not the transparent value."""

_WHAT = "a PNG, JPEG or WebP file"

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow raises over damaged files."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture, upright."""

    rgb: Array
    """(H, W, 3), uint8 or uint16; a grey picture has three equal channels."""
    alpha: Array | None = None
    """(H, W) of the same dtype, 0 for transparent; None if the picture has no alpha."""
    is_grey: bool = False
    """Whether it is written as grey."""
    format: str = "png"
    """Format of the file, a key of ``FORMATS``."""
    icc_profile: bytes | None = None
    """Colour profile; None if the file has none."""


@dataclass(frozen=True, slots=True)
class PictureSize:
    """Size of a picture, from its header."""

    width: int
    """In pixels, before it is turned upright."""
    height: int
    """In pixels, before it is turned upright."""
    num_bytes: int
    """Most bytes of the model's input for it, alpha included."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What ``decode_picture`` gives, known from the header."""

    width: int
    """In pixels, upright."""
    height: int
    """In pixels, upright."""
    format: str
    """A key of ``FORMATS``."""
    bit_depth: int
    """8 or 16."""
    has_alpha: bool
    """Whether it has alpha."""
    is_grey: bool
    """Whether it is grey."""
    icc_profile: bytes | None
    """Colour profile that fits its pixels; None without one."""
    losses: tuple[str, ...]
    """What is converted or dropped, a sentence each."""


def describe_picture(body: bytes, *, max_pixels: int) -> PictureFacts:
    """Read the facts of a picture without decoding it.

    Args:
        body: The whole file.
        max_pixels: Most pixels that it may have.

    Returns:
        The facts.

    Raises:
        InvalidInputError: As ``measure_picture``.
    """
    with _opened(body, max_pixels) as image:
        is_deep = _is_deep(image, body)
        profile = image.info.get("icc_profile")
        is_cmyk = image.mode == "CMYK"
        width, height = reversed(image.size) if _orientation(image) >= _FIRST_SIDEWAYS else image.size
        return PictureFacts(
            width,
            height,
            _format_of(image),
            _DEEP_BITS if is_deep else 8,
            bool(image.has_transparency_data),
            body[_PNG_COLOUR_AT] in _PNG_GREYS if is_deep else image.mode in _GREY_MODES,
            None if is_cmyk else profile,
            tuple(_describe_losses(image, has_profile=profile is not None)),
        )


def measure_picture(body: bytes, *, max_pixels: int) -> PictureSize:
    """Read the size of a picture without decoding it.

    Args:
        body: The whole file.
        max_pixels: Most pixels that it may have.

    Returns:
        Its size.

    Raises:
        InvalidInputError: If the file is empty, no picture or an animation, or has more pixels.
    """
    with _opened(body, max_pixels) as image:
        frames = 2 if image.has_transparency_data else 1
        return PictureSize(*image.size, image.width * image.height * 3 * frames * (2 if _is_deep(image, body) else 1))


def decode_picture(body: bytes, *, max_pixels: int) -> Picture:
    """Decode a picture, after its size is checked.

    Args:
        body: The whole file.
        max_pixels: Most pixels that it may have.

    Returns:
        The picture, turned upright.

    Raises:
        InvalidInputError: If the file is empty, no picture, damaged or an animation, or has more pixels.
    """
    with _opened(body, max_pixels) as image:
        orientation = _orientation(image)
        profile = image.info.get("icc_profile")
        name = _format_of(image)
        if _is_deep(image, body):
            pixels: Array = decode_png16(body, max_pixels)
        else:
            if name == "png" and image.mode == "L" and isinstance(value := image.info.get("transparency"), int):
                image.info["transparency"] = value * 255 // _GREY_PEAKS.get(body[_PNG_DEPTH_AT], 255)
            pixels, profile = _plain(image, profile)
    pixels = _turn(pixels, orientation)
    has_alpha = pixels.shape[2] in (2, 4)
    is_grey = pixels.shape[2] <= 2
    rgb = np.repeat(pixels[..., :1], 3, axis=2) if is_grey else np.ascontiguousarray(pixels[..., :3])
    return Picture(rgb, np.ascontiguousarray(pixels[..., -1]) if has_alpha else None, is_grey, name, profile)


def check_encoding(picture: Picture, size: tuple[int, int], format_name: str, quality: int | None) -> None:
    """Check, before anything is computed, that a result can be written.

    Args:
        picture: The picture; its pixels do not matter.
        size: (width, height) of the result in pixels.
        format_name: A key of ``FORMATS``.
        quality: From 1 to 100; None for the default.

    Raises:
        InvalidInputError: If the format is unknown or cannot hold the size, alpha or profile, or the quality is wrong.
    """
    if format_name not in FORMATS:
        raise InvalidInputError(f"format {format_name[:20]!r}", ", ".join(FORMATS))
    if quality is not None and not 1 <= quality <= 100:
        raise InvalidInputError(f"quality {quality}", "from 1 to 100")
    if quality is not None and format_name == "png":
        raise InvalidInputError("quality for png, which is lossless", "jpeg or webp", "Leave it out.")
    if max(size) > _MAX_SIDE_PX[format_name]:
        raise InvalidInputError(
            f"a result of {size[0]}x{size[1]} as {format_name}",
            f"{_MAX_SIDE_PX[format_name]} pixels a side",
            "Ask for png.",
        )
    if picture.alpha is not None and format_name == "jpeg":
        raise InvalidInputError("a picture with alpha as jpeg, which has none", "png or webp", "Ask for png.")
    if picture.is_grey and format_name == "webp" and _space(picture.icc_profile) == b"GRAY":
        raise InvalidInputError(
            "a grey picture with a grey colour profile as webp, which is always RGB",
            "png or jpeg",
            "Ask for png.",
        )


def encode_picture(picture: Picture, format_name: str, quality: int | None = None) -> bytes:
    """Encode a picture.

    Args:
        picture: The picture; 16 bits stay in a PNG, and are rounded to 8 in other formats.
        format_name: A key of ``FORMATS``.
        quality: Quality of JPEG and WebP, from 1 to 100; None for 92.

    Returns:
        The whole file.

    Raises:
        InvalidInputError: As ``check_encoding``.
    """
    height, width = picture.rgb.shape[:2]
    check_encoding(picture, (width, height), format_name, quality)
    is_grey = picture.is_grey and format_name != "webp"
    profile = picture.icc_profile if _space(picture.icc_profile) == (b"GRAY" if is_grey else b"RGB ") else None
    planes = [_to_grey(picture.rgb)[..., None] if is_grey else picture.rgb]
    if picture.alpha is not None:
        planes.append(picture.alpha[..., None])
    pixels = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
    if format_name == "png" and pixels.dtype == np.uint16:
        return _add_profile(encode_png16(pixels), profile)
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if format_name == "png":
        options["compress_level"] = 3  # a third of the time of level 6, for a few percent more bytes
    else:
        options["quality"] = quality or DEFAULT_QUALITY
    if format_name == "jpeg":
        options["subsampling"] = 0
    if format_name == "webp" and picture.alpha is not None:
        options["exact"] = True  # keep the colours of transparent pixels
    buffer = io.BytesIO()
    image.save(buffer, format_name.upper(), **options)
    return buffer.getvalue()


@contextlib.contextmanager
def open_image(body: bytes, *, max_pixels: int, formats: tuple[str, ...] = _READ) -> Iterator[Image.Image]:
    """Open a picture or an animation, reading only its header. Errors of Pillow within the context become ours.

    Args:
        body: The whole file.
        max_pixels: Most pixels that a picture may have.
        formats: Pillow's names of the formats that are read.

    Yields:
        The open picture.

    Raises:
        InvalidInputError: If the file is empty, no picture of these formats or damaged, or has more pixels.
    """
    if not body:
        raise InvalidInputError("an empty body", _WHAT)
    try:
        with contextlib.ExitStack() as stack:
            if max_pixels > (Image.MAX_IMAGE_PIXELS or 0):  # Pillow warns of what is allowed here
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = stack.enter_context(Image.open(io.BytesIO(body), formats=formats))
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidInputError(f"a picture of {width}x{height}", f"{max_pixels} pixels", "Send a smaller one.")
            yield image
    except UnidentifiedImageError as exc:
        raise InvalidInputError(f"{len(body)} bytes that are no picture", _WHAT) from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidInputError(
            "a picture of far too many pixels", f"{max_pixels} pixels", "Send a smaller one."
        ) from exc
    except InvalidInputError:
        raise
    except _BROKEN as exc:
        raise InvalidInputError(f"a damaged picture ({exc})", _WHAT) from exc


@contextlib.contextmanager
def _opened(body: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture that is no animation."""
    with open_image(body, max_pixels=max_pixels) as image:
        if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
            raise InvalidInputError(
                f"an animation of {count} pictures",
                "one picture",
                "Send its pictures one by one, or a video to /v1/videos.",
            )
        yield image


def _format_of(image: Image.Image) -> str:
    return "jpeg" if image.format == "MPO" else str(image.format).lower()


def _describe_losses(image: Image.Image, *, has_profile: bool) -> Iterator[str]:
    if image.mode == "CMYK":
        yield f"CMYK was converted to RGB, {'to sRGB by its colour profile' if has_profile else 'without a profile'}"
    if image.format == "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
        yield f"the first of {count} pictures in the file was taken"
    with contextlib.suppress(*_BROKEN):  # damaged EXIF
        if set(image.getexif()) - {_ORIENTATION}:
            yield "EXIF data other than the orientation were left out"


def _is_deep(image: Image.Image, body: bytes) -> bool:
    return image.format == "PNG" and body[_PNG_DEPTH_AT] == _DEEP_BITS


def _plain(image: Image.Image, profile: bytes | None) -> tuple[Array, bytes | None]:
    """Return pixels of 8 bits (H, W, C), and the profile that fits them."""
    if image.mode == "CMYK":
        if profile:
            srgb = ImageCms.createProfile("sRGB")
            try:
                turned = ImageCms.profileToProfile(
                    image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, outputMode="RGB"
                )
            except ImageCms.PyCMSError as exc:
                raise InvalidInputError(
                    f"a CMYK picture with a colour profile that cannot be used: {exc}", "RGB or grey"
                ) from exc
            return np.asarray(turned), None
        return np.asarray(image.convert("RGB")), None
    is_grey = image.mode in _GREY_MODES
    mode = ("LA" if is_grey else "RGBA") if image.has_transparency_data else ("L" if is_grey else "RGB")
    pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1), profile


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:  # damaged EXIF; the picture itself may be fine
        return 1


def _turn(pixels: Array, orientation: int) -> Array:
    """Turn a picture upright, by its EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_grey(rgb: Array) -> Array:
    """Return the mean of the channels, which were equal before a model saw them."""
    peak = full_range(rgb.dtype)
    grey: Array = np.rint(rgb.mean(axis=2, dtype=np.float64)).clip(0, peak).astype(rgb.dtype)
    return grey


def _space(profile: bytes | None) -> bytes:
    return profile[16:20] if profile else b""


def _add_profile(png: bytes, profile: bytes | None) -> bytes:
    """Insert a colour profile after the header of a PNG."""
    if profile is None:
        return png
    data = b"iCCP" + b"icc\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    end_of_header = 8 + 25
    return png[:end_of_header] + chunk + png[end_of_header:]
