"""Pictures in and out: every mode, orientation, profile and depth, made here and read back by other means; and
everything that is no picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from genai_ray.errors import InvalidInputError
from genai_ray.video import decode_png16, encode_png16
from genai_ray.video.pictures.images import (
    Picture,
    PictureSize,
    check_encoding,
    decode_picture,
    encode_picture,
    measure_picture,
)

LIMIT = 10_000
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (11, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (11, 7), np.uint8)
DEEP = RNG.integers(0, 65536, (11, 7, 4), np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def plain_png(pixels, colour, *extra):
    """Write a PNG of 16 bits by the standard alone."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def read(body):
    return decode_picture(body, max_pixels=LIMIT)


@pytest.mark.parametrize("colour", [0, 4, 2, 6])
def test_16_bits_are_kept(colour):
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    pixels = DEEP[..., :channels]
    picture = read(plain_png(pixels, colour))
    assert picture.rgb.dtype == np.uint16
    assert picture.is_grey == (channels <= 2)
    assert np.array_equal(picture.rgb, np.repeat(pixels[..., :1], 3, axis=2) if picture.is_grey else pixels[..., :3])
    assert (picture.alpha is not None) == (channels in (2, 4))
    written = encode_picture(picture, "png")
    assert struct.unpack(">IIBB", written[16:26]) == (7, 11, 16, colour)
    assert np.array_equal(decode_png16(written, LIMIT), pixels)


def test_a_transparent_colour_of_16_bits_is_alpha():
    picture = read(plain_png(DEEP[..., :3], 2, chunk(b"tRNS", DEEP[0, 0, :3].astype(">u2").tobytes())))
    assert picture.alpha[0, 0] == 0
    assert np.all(picture.alpha.ravel()[1:] == 65535)


@pytest.mark.parametrize(("bits", "peak"), [(1, 1), (2, 3), (4, 15), (8, 255)])
def test_a_transparent_grey_of_few_bits_is_alpha(bits, peak):
    values = np.arange(16).reshape(2, 8) % (peak + 1)
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
        for row in values
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0))
    for clear in (0, peak):
        extra = chunk(b"tRNS", struct.pack(">H", clear))
        picture = read(
            b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )
        assert np.array_equal(picture.rgb[..., 0], values * 255 // peak)
        assert np.array_equal(picture.alpha == 0, values == clear)


def test_a_picture_is_measured_by_its_header():
    assert measure_picture(saved(Image.fromarray(RGB)), max_pixels=77) == PictureSize(7, 11, RGB.nbytes)
    assert measure_picture(saved(Image.new("1", (7, 11)))[:60], max_pixels=77) == PictureSize(7, 11, RGB.nbytes)
    assert measure_picture(saved(Image.fromarray(np.dstack([RGB, ALPHA]))), max_pixels=77).num_bytes == 2 * RGB.nbytes
    assert measure_picture(encode_png16(DEEP), max_pixels=77).num_bytes == 4 * RGB.nbytes
    with pytest.raises(InvalidInputError, match="allowed: 76 pixels"):
        measure_picture(saved(Image.fromarray(RGB)), max_pixels=76)


def test_16_bits_are_rounded_where_a_format_has_8():
    picture = Picture(np.full((8, 8, 3), 255 * 257 - 200, np.uint16))
    assert np.asarray(Image.open(io.BytesIO(encode_picture(picture, "jpeg", 100))))[0, 0].tolist() == [254, 254, 254]


def test_png_of_16_bits_refuses_other_pixels():
    for pixels in (RGB, DEEP[..., 0], DEEP[:0]):
        with pytest.raises(InvalidInputError, match="uint16"):
            encode_png16(pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_obeyed(kind, orientation):
    from PIL import ImageOps

    smooth = Image.fromarray(np.kron(RGB, np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = saved(smooth, kind, exif=exif, **({} if kind == "PNG" else {"quality": 100}))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB"))
    picture = decode_picture(body, max_pixels=10**6)
    assert np.array_equal(picture.rgb, wanted)
    assert picture.format == kind.lower()
    again = Image.open(io.BytesIO(encode_picture(picture, "png")))
    assert again.size == wanted.shape[1::-1]
    assert not again.getexif()


def test_a_16_bit_picture_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    body = plain_png(DEEP[..., :3], 2, chunk(b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(read(body).rgb, np.rot90(DEEP[..., :3], -1))


def modes():
    palette = Image.fromarray(RGB).quantize(16)
    seen = Image.fromarray(np.dstack([RGB, ALPHA]))
    grey = Image.fromarray(ALPHA)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    return {
        "1": (grey.convert("1"), True, False),
        "L": (grey, True, False),
        "LA": (Image.merge("LA", (grey, Image.fromarray(ALPHA[::-1]))), True, True),
        "P": (palette, False, False),
        "P transparent": (see_through, False, True),
        "RGB": (Image.fromarray(RGB), False, False),
        "RGBA": (seen, False, True),
    }


@pytest.mark.parametrize("mode", list(modes()))
def test_modes_of_8_bits_come_back_as_they_were(mode):
    image, is_grey, has_alpha = modes()[mode]
    body = saved(image, transparency=image.info["transparency"]) if mode == "P transparent" else saved(image)
    picture = read(body)
    assert (picture.is_grey, picture.alpha is not None) == (is_grey, has_alpha)
    written = Image.open(io.BytesIO(encode_picture(picture, "png")))
    assert written.mode == ("LA" if has_alpha else "L") if is_grey else ("RGBA" if has_alpha else "RGB")
    wanted = Image.open(io.BytesIO(body)).convert(written.mode)
    assert np.array_equal(np.asarray(written), np.asarray(wanted))


def test_a_cmyk_jpeg_becomes_rgb():
    image = Image.fromarray(np.kron(RGB, np.ones((16, 16, 1), np.uint8))).convert("CMYK")
    picture = decode_picture(saved(image, "JPEG", quality=100), max_pixels=10**6)
    assert np.abs(picture.rgb.astype(int) - np.asarray(image.convert("RGB"))).mean() < 4
    with pytest.raises(InvalidInputError, match="CMYK"):
        decode_picture(saved(image, "JPEG", icc_profile=SRGB), max_pixels=10**6)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_colour_profile_is_kept(kind):
    picture = read(saved(Image.fromarray(RGB), kind.upper(), icc_profile=SRGB))
    assert picture.icc_profile == SRGB
    for written_as in ("png", "jpeg", "webp"):
        assert Image.open(io.BytesIO(encode_picture(picture, written_as))).info["icc_profile"] == SRGB
    deep = Picture(DEEP[..., :3].copy(), icc_profile=SRGB)
    assert Image.open(io.BytesIO(encode_picture(deep, "png"))).info["icc_profile"] == SRGB
    assert read(encode_picture(deep, "png")).icc_profile == SRGB


def test_a_grey_profile_stays_with_grey_pixels():
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    picture = Picture(np.repeat(ALPHA[..., None], 3, axis=2), is_grey=True, icc_profile=grey)
    assert Image.open(io.BytesIO(encode_picture(picture, "jpeg"))).info["icc_profile"] == grey
    with pytest.raises(InvalidInputError, match="grey colour profile as webp"):
        encode_picture(picture, "webp")
    coloured = Picture(RGB, icc_profile=grey)
    assert "icc_profile" not in Image.open(io.BytesIO(encode_picture(coloured, "png"))).info


def test_alpha_goes_through_webp_with_the_colours_beneath():
    picture = Picture(RGB, np.where(ALPHA > 128, 255, 0).astype(np.uint8))
    written = Image.open(io.BytesIO(encode_picture(picture, "webp", 100)))
    assert written.mode == "RGBA"
    assert np.array_equal(np.asarray(written)[..., 3], picture.alpha)


def test_quality_is_used():
    noise = Picture(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("jpeg", "webp"):
        assert (
            len(encode_picture(noise, kind, 10))
            < len(encode_picture(noise, kind))
            < len(encode_picture(noise, kind, 100))
        )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty body"),
        (b"not a picture at all", "no picture"),
        (b"GIF89a" + bytes(40), "no picture"),
        (saved(Image.fromarray(RGB), "BMP"), "no picture"),
        (saved(Image.fromarray(RGB))[:-40], "damaged"),
        (saved(Image.new("RGB", (256, 256)), "JPEG"), "a picture of 256x256; allowed: 10000 pixels"),
        (saved(Image.new("L", (101, 100))), "a picture of 101x100; allowed: 10000 pixels"),
        (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", b""),
            "far too many pixels",
        ),
        (plain_png(DEEP[..., :3], 2)[:-30], "does not decode"),
        (
            saved(Image.fromarray(RGB), "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
            "an animation of 2 pictures",
        ),
        (
            saved(Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
            "an animation of 2 pictures",
        ),
    ],
)
def test_what_is_no_picture_is_refused(body, words):
    with pytest.raises(InvalidInputError, match=words):
        read(body)


def test_a_text_bomb_is_refused():
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000)))
    body = saved(Image.fromarray(RGB))
    with pytest.raises(InvalidInputError, match="damaged"):
        read(body[:33] + bomb + body[33:])


def test_the_first_of_a_camera_s_pictures_is_taken():
    body = saved(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(255 - RGB)], quality=100)
    picture = read(body)
    assert picture.format == "jpeg"
    assert picture.rgb.shape == RGB.shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("tiff", None), "format 'tiff'; allowed: png, jpeg, webp"),
        (("png", 90), "quality for png"),
        (("jpeg", 0), "quality 0; allowed: from 1 to 100"),
        (("webp", 101), "quality 101"),
        (("jpeg", None), "alpha as jpeg"),
    ],
)
def test_encodings_that_cannot_be(options, words):
    with pytest.raises(InvalidInputError, match=words):
        check_encoding(Picture(RGB, ALPHA), (7, 11), *options)


def test_a_result_may_be_too_large_for_a_format():
    for kind, side in (("webp", 16384), ("jpeg", 65501)):
        with pytest.raises(InvalidInputError, match=f"a result of {side}x8 as {kind}"):
            check_encoding(Picture(RGB), (side, 8), kind, None)


BODIES = [saved(Image.fromarray(RGB), kind) for kind in ("PNG", "JPEG", "WEBP")] + [
    plain_png(DEEP, 6),
    saved(modes()["P transparent"][0]),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BODIES), st.data())
def test_damaged_pictures_are_pictures_or_typed_errors(body, data):
    spoilt = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = read(bytes(spoilt[: data.draw(st.integers(1, len(spoilt)))]))
    except InvalidInputError:
        return
    assert picture.rgb.shape[0] * picture.rgb.shape[1] <= LIMIT
