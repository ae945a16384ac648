"""Animations: what is written is read back, by Pillow here and by FFmpeg, to the frame, the duration and the plays."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.video.pictures import animation_writer
from genai_ray.video.pictures.animation_writer import round_durations, write_animation
from genai_ray.video.pictures.animations import decode_animation, is_animation, read_animation
from genai_ray.video.pictures.images import Picture

LIMIT = 10_000
RNG = np.random.default_rng(1)
HUNDREDTHS = [Fraction(3, 100), Fraction(1, 10), Fraction(7, 100), Fraction(200, 100)]
ODD = [Fraction(1, 24), Fraction(1001, 30000), Fraction(1, 7), Fraction(100)]


def draw(count, *, has_alpha, levels=4, dtype=np.uint8):
    """Return noise with at most ``levels``^3 colours; the second and third picture are equal."""
    pictures = []
    for index in range(count):
        rgb = (RNG.integers(0, levels, (20, 30, 3)) * (255 // max(levels - 1, 1))).astype(np.uint8)
        alpha = np.zeros((20, 30), np.uint8)
        alpha[5:15, index : index + 10] = 255
        if dtype == np.uint16:
            rgb, alpha = rgb.astype(dtype) * 257, alpha.astype(dtype) * 257
        pictures.append(Picture(rgb, alpha if has_alpha else None))
    pictures[2] = pictures[1]
    return pictures


def write(path, pictures, durations_s, kind, plays=0):
    write_animation(iter(pictures), durations_s, plays, path, kind)
    return path.read_bytes()


@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize(("kind", "durations_s"), [("gif", HUNDREDTHS), ("png", HUNDREDTHS), ("png", ODD)])
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_frames_durations_and_plays_come_back(tmp_path, kind, durations_s, plays, has_alpha):
    pictures = draw(4, has_alpha=has_alpha)
    body = write(tmp_path / "a", pictures, durations_s, kind, plays)
    assert is_animation(body, max_pixels=LIMIT)
    found = read_animation(body, max_pixels=LIMIT)
    assert (found.format, found.width, found.height, found.plays, found.has_alpha) == (kind, 30, 20, plays, has_alpha)
    assert found.durations_s == tuple(durations_s)
    assert found.losses == ()
    for picture, frame in zip(pictures, decode_animation(body, 0, 4, max_pixels=LIMIT), strict=True):
        alpha = np.full((20, 30), 255) if picture.alpha is None else picture.alpha
        assert np.array_equal(frame[..., 3], alpha)
        assert np.array_equal(frame[alpha > 0][:, :3], picture.rgb[alpha > 0])


@pytest.mark.parametrize(("kind", "demuxer"), [("gif", "gif"), ("png", "apng")])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_ffmpeg_reads_the_same_frames_and_times(tmp_path, kind, demuxer, has_alpha):
    pictures = draw(4, has_alpha=has_alpha)
    body = write(tmp_path / f"a.{kind}", pictures, HUNDREDTHS, kind)
    with av.open(io.BytesIO(body), format=demuxer, options={"ignore_loop": "1"} if kind == "gif" else {}) as box:
        frames = list(box.decode(video=0))
    times_s = [frame.pts * frame.time_base for frame in frames]
    assert times_s == [0, Fraction(3, 100), Fraction(13, 100), Fraction(20, 100)]
    for picture, frame in zip(pictures, frames, strict=True):
        shown = frame.to_ndarray(format="rgba")
        seen = shown[..., 3] > 0
        assert np.array_equal(seen, np.ones((20, 30), bool) if picture.alpha is None else picture.alpha > 0)
        assert np.array_equal(shown[seen][:, :3], picture.rgb[seen])


def test_webp_keeps_durations_and_plays(tmp_path):
    pictures = draw(4, has_alpha=True)
    pictures[2] = draw(4, has_alpha=True)[3]
    found = read_animation(write(tmp_path / "a", pictures, HUNDREDTHS, "webp", 2), max_pixels=LIMIT)
    assert (found.format, found.plays, found.has_alpha) == ("webp", 2, True)
    assert found.durations_s == tuple(HUNDREDTHS)


def test_16_bits_stay_in_an_apng(tmp_path):
    pictures = draw(3, has_alpha=True, levels=9, dtype=np.uint16)
    body = write(tmp_path / "a", pictures, HUNDREDTHS[:3], "png")
    assert body[24] == 16
    found = read_animation(body, max_pixels=LIMIT)
    assert (found.losses, found.bit_depth, found.has_alpha) == ((), 16, True)
    for picture, frame in zip(pictures, decode_animation(body, 0, 3, max_pixels=LIMIT), strict=True):
        assert np.array_equal(frame[..., 3], picture.alpha)
        assert np.array_equal(frame[picture.alpha > 0][:, :3], picture.rgb[picture.alpha > 0])


def test_a_gif_of_many_colours_is_near(tmp_path):
    y, x = np.mgrid[0:64, 0:64]
    rgb = np.stack([x * 4, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)
    body = write(tmp_path / "a", [Picture(rgb)] * 3, HUNDREDTHS[:3], "gif")
    (frame,) = decode_animation(body, 1, 2, max_pixels=LIMIT)
    assert np.abs(frame[..., :3].astype(int) - rgb).mean() < 8


def test_a_frame_without_a_duration_is_shown_as_players_show_it():
    first = Image.new("RGB", (4, 4))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")], duration=[0, 50])
    found = read_animation(buffer.getvalue(), max_pixels=LIMIT)
    assert found.durations_s == (Fraction(1, 10), Fraction(1, 20))
    assert found.losses == ("1 frames have no duration: each is shown for 0.1 s, as players do",)


@pytest.mark.parametrize("kind", ["gif", "png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_animation_is_refused(tmp_path, kind, share):
    body = write(tmp_path / "a", draw(6, has_alpha=False), [*HUNDREDTHS, *HUNDREDTHS[:2]], kind)
    with pytest.raises(InvalidInputError):
        read_animation(body[: int(share * len(body))], max_pixels=LIMIT)


def test_a_frame_of_too_many_pixels_is_refused(tmp_path):
    body = write(tmp_path / "a", draw(3, has_alpha=False), HUNDREDTHS[:3], "gif")
    with pytest.raises(InvalidInputError, match="a picture of 30x20; allowed: 599 pixels"):
        read_animation(body, max_pixels=599)


def test_rounded_durations_do_not_drift():
    times_s = [Fraction(index, 24) for index in range(241)]
    durations_s = round_durations(times_s, "gif")
    assert sum(durations_s) == 10
    assert set(durations_s) == {Fraction(4, 100), Fraction(5, 100)}
    assert round_durations(times_s, "png") == [Fraction(1, 24)] * 240
    (near_s,) = round_durations([Fraction(0), Fraction(90001, 7)], "png")
    assert max(near_s.numerator, near_s.denominator) <= 65535
    assert abs(near_s - Fraction(90001, 7)) < Fraction(1, 10)


@pytest.mark.parametrize(
    ("times_s", "words"),
    [
        ([Fraction(0), Fraction(1, 300), Fraction(1)], "frame 0 is shown for 0.00333333 s, which gif cannot say"),
        ([Fraction(0), Fraction(700)], "up to 655.35 s, at least 0.01 s"),
    ],
)
def test_durations_that_a_gif_cannot_say_are_refused(times_s, words):
    with pytest.raises(VideoError, match=words):
        round_durations(times_s, "gif")


def test_a_webp_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(animation_writer, "MAX_WEBP_PX", 1000)
    with pytest.raises(VideoError, match=r"a WebP animation of 4 frames of 30x20; allowed: 1000 pixels"):
        write(tmp_path / "a", draw(4, has_alpha=False), HUNDREDTHS, "webp")


def _blend(below, above):
    """Alpha compositing of straight RGBA, as the specification of APNG has it for blend_op 1."""
    below, above = below / 255, above / 255
    alpha = above[..., 3:] + below[..., 3:] * (1 - above[..., 3:])
    colour = above[..., :3] * above[..., 3:] + below[..., :3] * below[..., 3:] * (1 - above[..., 3:])
    return 255 * np.concatenate([np.divide(colour, alpha, where=alpha > 0, out=np.zeros_like(colour)), alpha], -1)


def _save(frames, kind, **options):
    out = io.BytesIO()
    frames[0].save(out, format=kind, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def test_a_frame_of_an_apng_lies_over_the_one_before(tmp_path):
    raw = np.random.default_rng(1).integers(0, 256, (3, 20, 30, 4), np.uint8)
    raw[..., 3] = 40 + raw[..., 3] // 2
    body = _save([Image.fromarray(one) for one in raw], "PNG", disposal=0, blend=1)
    first, second, third = decode_animation(body, 0, 3, max_pixels=LIMIT)
    assert np.array_equal(first, raw[0])
    expected = _blend(raw[0].astype(float), raw[1].astype(float))
    assert np.abs(second - expected).max() < 2
    assert np.abs(third - _blend(expected, raw[2].astype(float))).max() < 3
    assert read_animation(body, max_pixels=LIMIT).has_alpha


@pytest.mark.parametrize("has_alpha", [False, True])
def test_what_a_gif_clears_is_transparent_or_its_background(has_alpha):
    """A first frame that is smaller than the canvas, and frames that are cleared after they were shown."""
    frame = bytes([0x2C, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0])  # one pixel at the left top, of colour 0
    later = bytes([0x2C, 1, 0, 1, 0]) + frame[5:]
    clear = bytes([0x21, 0xF9, 4, 2 << 2 | has_alpha, 10, 0, 3, 0])
    table = bytes([200, 10, 20, 70, 80, 90, 1, 2, 3, 4, 5, 6])  # the second colour is the background
    body = b"GIF89a" + bytes([3, 0, 2, 0, 0x81, 1, 0]) + table + clear + frame + clear + later + b";"
    facts = read_animation(body, max_pixels=LIMIT)
    assert (facts.width, facts.height, len(facts.durations_s), facts.has_alpha) == (3, 2, 2, has_alpha)
    first, second = decode_animation(body, 0, 2, max_pixels=LIMIT)
    for shown, place in ((first, (0, 0)), (second, (1, 1))):
        assert shown[place].tolist() == [200, 10, 20, 255]
        others = np.delete(shown.reshape(-1, 4), place[0] * 3 + place[1], 0)
        assert (others[:, 3] == 0).all() if has_alpha else (others == [70, 80, 90, 255]).all()


@pytest.mark.parametrize(
    ("depth", "is_palette"),
    [(depth, is_palette) for depth in (1, 2, 4, 8) for is_palette in (False, True)] + [(16, False)],
)
def test_few_and_many_bits_of_grey_are_the_right_levels(depth, is_palette):
    levels = np.arange(2**depth)[:: max(2**depth // 64, 1)]
    samples = np.broadcast_to(levels, (2, levels.size))
    body = _write_grey_apng(samples, depth, is_palette=is_palette)
    one, two = decode_animation(body, 0, 2, max_pixels=LIMIT)
    expected = levels * (1 if depth == 16 else 255 / (2**depth - 1))
    assert one.dtype == (np.uint16 if depth == 16 else np.uint8)
    assert np.abs(one[0, :, 0] - expected).max() <= 1
    assert np.array_equal(one, two)
    assert (one[..., :3] == one[..., :1]).all()
    assert not read_animation(body, max_pixels=LIMIT).has_alpha


def test_deep_frames_that_are_blended_are_refused(tmp_path):
    body = write(tmp_path / "a", draw(3, has_alpha=True, levels=9, dtype=np.uint16), HUNDREDTHS[:3], "png")
    at = body.rindex(b"fcTL")
    control = body[at : at + 29] + b"\1"  # the last byte says how a frame is blended
    over = body[:at] + control + struct.pack(">I", zlib.crc32(control)) + body[at + 34 :]
    with pytest.raises(InvalidInputError, match=r"frames that FFmpeg cannot blend, such as .*; allowed: 8 bits"):
        read_animation(over, max_pixels=LIMIT)


def _write_grey_apng(samples, depth, *, is_palette):
    """Write an APNG of two equal frames of grey levels, of any depth."""
    height, width = samples.shape
    bits = ((samples[..., None] >> np.arange(depth)[::-1]) & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def control(number):
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, depth == 16))

    greys = [round(255 * level / (2**depth - 1)) for level in range(2**depth)] if is_palette else []
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 3 if is_palette else 0, 0, 0, 0)),
            chunk(b"acTL", struct.pack(">II", 2, 0)),
            *([chunk(b"PLTE", bytes(level for grey in greys for level in (grey,) * 3))] if is_palette else []),
            control(0),
            chunk(b"IDAT", zlib.compress(rows)),
            control(1),
            chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def test_durations_without_a_common_unit_are_rounded_and_told():
    body = _save([Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(3)], "PNG", duration=[40, 50, 60])
    odd = iter([(3001, 65521), (3001, 65519), (3001, 65497)])
    at, out = 8, bytearray(body)
    while at < len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        if kind == b"fcTL":
            struct.pack_into(">HH", out, at + 28, *next(odd))
            struct.pack_into(">I", out, at + 8 + length, zlib.crc32(bytes(out[at + 4 : at + 8 + length])))
        at += 12 + length
    facts = read_animation(bytes(out), max_pixels=LIMIT)
    assert facts.durations_s == (Fraction(46, 1000),) * 3
    assert facts.losses == ("durations were rounded to milliseconds: they have no common unit of 32 bits",)
