"""Pictures, animations and numbered pictures, in and out: one job of many rows, compared with what the endpoint's own
steps make of the same files; and what is refused before anything is started."""

import csv
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from genai_ray import EnhanceOptions, InferenceSession, enhance_videos, errors
from genai_ray.enhance.job.clip_plan import plan_timeline
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.serve.web.pictures import apply_output, to_frames
from genai_ray.video import Encoding, encode_png16, is_picture, is_sequence, plan_source
from genai_ray.video.pictures import animation_writer
from genai_ray.video.pictures.animations import decode_animation, read_animation
from genai_ray.video.pictures.images import decode_picture, encode_picture
from tests.processes import kill, start, wait_until
from tests.rays import ray_of
from tests.video.clips import write

MODEL = "websr-x2-s"
LIMIT = 10**6
RNG = np.random.default_rng(5)
SIZE = (28, 21)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TIMES_MS = (30, 70, 2000, 100)
RATE = Fraction(24000, 1001)


def draw(index=0, channels=3, dtype=np.uint8):
    """Return a smooth picture (H, W, channels) that differs by index."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    planes = [(x * (3 + channel) + y * (7 - channel) + 11 * index + 40 * channel) % 256 for channel in range(channels)]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    return pixels if dtype == np.uint8 else pixels.astype(np.uint16) * 257 + np.uint16(3)


def draw_cut(index):
    """Return a picture of four colours with a transparent border (H, W, 4)."""
    pixels = draw(index, 4) // 64 * 64
    pixels[..., 3] = 0
    pixels[4:16, 2 + index : 20 + index, 3] = 255
    return pixels


def save(path, pixels, **options):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def make_sources(folder):
    """Write one file of each kind."""
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010F] = "a camera"
    save(folder / "my photo.jpg", draw(), quality=95, exif=turned, icc_profile=SRGB)
    save(folder / "alpha.png", draw(1, 4), icc_profile=SRGB)
    save(folder / "grey.png", draw(2)[..., 0])
    (folder / "deep.png").write_bytes(encode_png16(draw(3, 4, np.uint16)))
    (folder / "deepgrey.png").write_bytes(encode_png16(draw(4, 1, np.uint16)))
    Image.fromarray(draw(5)).quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(draw(6)[..., 0] > 128).save(folder / "bits.png")
    Image.fromarray(draw(7)).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    opaque = draw(8, 4)
    opaque[..., 3] = 255
    save(folder / "opaque.png", opaque)
    first, *others = (Image.fromarray(draw_cut(index)) for index in range(4))
    first.save(folder / "a.gif", save_all=True, append_images=others, duration=TIMES_MS, loop=3, disposal=2)
    first.save(folder / "a.webp", save_all=True, append_images=others, duration=TIMES_MS, loop=2, lossless=True)
    for number in range(9, 15):
        save(folder / "frames" / f"{number:05d}.png", draw(number))
    write(folder / "clip.mkv", size=SIZE, pix_fmt="yuv444p", pts=list(range(6)), rate=25)
    damaged = (folder / "alpha.png").read_bytes()
    (folder / "cut.png").write_bytes(damaged[: len(damaged) // 2])
    (folder / "bomb.png").write_bytes(claim(60000, 60000))
    (folder / "words.png").write_text("no picture")
    (folder / "empty.jpg").write_bytes(b"")
    save(folder / "sizes" / "1.png", draw())
    save(folder / "sizes" / "2.png", draw()[:10])
    save(folder / "gap" / "1.png", draw())
    for kind in ("png", "jpg", "webp"):
        save(folder / f"half-{kind}" / f"1.{kind}", draw())
        whole = (folder / f"half-{kind}" / f"1.{kind}").read_bytes()
        (folder / f"half-{kind}" / f"2.{kind}").write_bytes(whole[: len(whole) * 2 // 3])
    save(folder / "gap" / "4.png", draw())


def claim(width, height):
    """Return the header of a PNG of that size."""
    kind = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + kind + struct.pack(">I", zlib.crc32(kind))
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    body = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + header + body + b"\0\0\0\0IEND\xae\x42\x60\x82"


ROWS = {
    "photo.png": ("my photo.jpg", {}),
    "photo.webp": ("my photo.jpg", {}),
    "alpha.webp": ("alpha.png", {}),
    "alpha.png": ("alpha.png", {}),
    "grey.jpg": ("grey.png", {}),
    "deep.png": ("deep.png", {}),
    "deepgrey.png": ("deepgrey.png", {}),
    "palette.png": ("palette.png", {}),
    "bits.png": ("bits.png", {}),
    "cmyk.png": ("cmyk.jpg", {}),
    "opaque.jpg": ("opaque.png", {}),
    "deep.jpg": ("deepgrey.png", {}),
    "sized.png": ("my photo.jpg", {"width": "63"}),
    "small.jpg": ("my photo.jpg", {"image_quality": "40"}),
    "small.webp": ("a.webp", {"image_quality": "20"}),
    "a.gif": ("a.gif", {}),
    "a.apng": ("a.gif", {}),
    "a.webp": ("a.webp", {}),
    "a.mkv": ("a.gif", {"codec": "ffv1"}),
    "piece.gif": ("a.gif", {"start": "f1", "end": "f3"}),
    "out/%d.png": ("frames/%05d.png", {}),
    "frames.mp4": ("frames/%05d.png", {"fps": str(RATE), "preset": "ultrafast"}),
    "frames.gif": ("frames/%05d.png", {"fps": "24"}),
    "again.gif": ("frames/%05d.png", {"fps": "24", "segment_frames": "2"}),
    "a2.apng": ("a.gif", {"segment_frames": "1"}),
    "clip.gif": ("clip.mkv", {}),
    "cut.png": ("cut.png", {}),
    "bomb.png": ("bomb.png", {}),
    "words.png": ("words.png", {}),
    "empty.png": ("empty.jpg", {}),
    "alpha.jpg": ("alpha.png", {}),
    "many.jpg": ("a.gif", {}),
    "sizes.mp4": ("sizes/%d.png", {"fps": "25"}),
    "gap.mp4": ("gap/%d.png", {"fps": "25"}),
}
"""Source and options by output."""

FAILED = {
    "cut.png": "a damaged picture",
    "bomb.png": "too many pixels",
    "words.png": "10 bytes that are no picture",
    "empty.png": "the file is empty",
    "alpha.jpg": "a picture with alpha as jpeg, which has none; allowed: png or webp",
    "many.jpg": "4 frames as one jpeg, which holds one picture",
    "sizes.mp4": "2.png is 28x10; allowed: 28x21, the size of",
    "gap.mp4": "missing between 1 and 4: 2 to 3",
}


@pytest.fixture(scope="module")
def job(ray_session, tmp_path_factory):
    """All rows as one job: folder of sources, folder of results, and the report of each by name."""
    folder = tmp_path_factory.mktemp("pictures")
    make_sources(folder)
    names = ("uri", "output", "codec", "preset", "fps", "start", "end", "width", "segment_frames", "image_quality")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({"uri": source, "output": output, **more} for output, (source, more) in ROWS.items())
    results = folder / "results"
    report = enhance_videos(folder / "rows.csv", results, models=MODEL)
    return folder, results, {video.output.removeprefix(f"{results}/"): video for video in report.videos}


@pytest.fixture(scope="module")
def session():
    with InferenceSession(MODEL) as opened:
        yield opened


def as_the_endpoint(session, body, kind, quality=None):
    """Return what ``POST /v1/enhance`` makes of a file, by its own steps."""
    picture = decode_picture(body, max_pixels=LIMIT)
    frames = to_frames(picture, session.spec)
    result = apply_output(picture, session.spec, session.infer(frames))
    if kind == "jpeg" and result.alpha is not None:
        assert result.alpha.min() == np.iinfo(result.alpha.dtype).max
        result = type(result)(result.rgb, None, result.is_grey, kind, result.icc_profile)
    return encode_picture(result, kind, quality)


@pytest.mark.slow
def test_every_row_is_done_or_refused_as_it_must(job):
    _, results, told = job
    assert {name: video.error for name, video in told.items() if video.status == "failed"}.keys() == FAILED.keys()
    for name, words in FAILED.items():
        assert words in told[name].error, name
        assert not (results / name).exists()
    left = {path.name for path in results.rglob("*") if path.is_file() and path.suffix not in (".parquet",)}
    assert left == {name for name in ROWS if name not in FAILED and "/" not in name} | {
        f"{number}.png" for number in range(9, 15)
    }


@pytest.mark.parametrize(
    "name",
    [name for name, (source, more) in ROWS.items() if name not in FAILED and is_picture(source) and not more][:12],
)
@pytest.mark.slow
def test_a_picture_is_that_of_the_endpoint(job, session, name):
    folder, results, _ = job
    kind = {"jpg": "jpeg"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
    expected = as_the_endpoint(session, (folder / ROWS[name][0]).read_bytes(), kind)
    assert (results / name).read_bytes() == expected


@pytest.mark.slow
def test_notes_say_what_is_converted(job):
    _, _, told = job
    assert told["photo.png"].notes == ("EXIF data other than the orientation were left out",)
    assert told["cmyk.png"].notes == ("CMYK was converted to RGB, without a profile",)
    assert told["deep.jpg"].notes == ("16 bits per component were reduced to 8, which jpeg holds",)
    assert told["alpha.png"].notes == ()
    assert told["photo.png"].size_in == (SIZE[1], SIZE[0])


@pytest.mark.slow
def test_a_quality_is_that_of_the_encoder(job, session):
    folder, results, _ = job
    body = (folder / "my photo.jpg").read_bytes()
    assert (results / "small.jpg").read_bytes() == as_the_endpoint(session, body, "jpeg", 40)
    assert (results / "small.webp").stat().st_size < (results / "a.webp").stat().st_size


@pytest.mark.slow
def test_a_size_is_resampled(job):
    _, results, told = job
    with Image.open(results / "sized.png") as image:
        assert image.size == (63, 84)
    assert any(note.startswith("size: the chain makes 42x56") for note in told["sized.png"].notes)


@pytest.mark.parametrize(("name", "plays"), [("a.gif", 4), ("a.apng", 4), ("a.webp", 2)])
@pytest.mark.slow
def test_animations_keep_durations_plays_and_transparency(job, name, plays):
    folder, results, _ = job
    before = read_animation((folder / ROWS[name][0]).read_bytes(), max_pixels=LIMIT)
    after = read_animation((results / name).read_bytes(), max_pixels=LIMIT)
    assert (after.width, after.height) == (2 * SIZE[0], 2 * SIZE[1])
    assert [int(1000 * duration_s) for duration_s in after.durations_s] == list(TIMES_MS)
    assert after.durations_s == before.durations_s
    assert after.plays == before.plays == plays
    for index, frame in enumerate(decode_animation((results / name).read_bytes(), 0, 4, max_pixels=LIMIT)):
        alpha = np.repeat(np.repeat(draw_cut(index)[..., 3], 2, axis=0), 2, axis=1)
        inside = frame[14:26, 14 + 2 * index : 28 + 2 * index, 3]
        assert inside.min() > 200, "the middle is shown"
        assert frame[..., 3][alpha == 0].mean() < 20, "the border is not"


@pytest.mark.slow
def test_frames_of_a_gif_go_into_a_video_at_their_times(job):
    _, results, told = job
    with av.open(str(results / "a.mkv")) as box:
        times_s = [float(frame.pts * frame.time_base) for frame in box.decode(video=0)]
    assert times_s == [0.0, 0.03, 0.1, 2.1]
    assert "the animation is played 4 times, which a video cannot say" in told["a.mkv"].notes


@pytest.mark.slow
def test_segments_change_no_byte(job):
    _, results, _ = job
    assert (results / "again.gif").read_bytes() == (results / "frames.gif").read_bytes()
    assert (results / "a2.apng").read_bytes() == (results / "a.apng").read_bytes()


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_change_no_byte_of_pictures(here, tmp_path):
    names = ("uri", "output", "fps")
    rows = [("frames/%05d.png", "out/%d.jpg", ""), ("frames/%05d.png", "a.webp", "24"), ("a.gif", "b.apng", "")]
    rows += [("my photo.jpg", "c.webp", ""), ("alpha.png", "d.png", "")]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *((here / source, *more) for source, *more in rows)])

    def results(num_cpus):
        folder = tmp_path / str(num_cpus)
        with ray_of(num_cpus):
            enhance_videos(tmp_path / "rows.csv", folder, models=MODEL, options=EnhanceOptions(segment_frames=1))
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    alone = results(1)
    assert len(alone) == 6 + 4
    assert results(4) == alone


@pytest.mark.slow
def test_a_killed_job_leaves_no_picture_and_goes_on(ray_session, tmp_path):
    for number in range(20):
        save(tmp_path / "frames" / f"{number}.png", np.kron(draw(number), np.ones((8, 12, 1), np.uint8)))
    source, output = tmp_path / "frames" / "%d.png", tmp_path / "b.gif"
    words = ("-m", "websr-x2-l", "--fps", 25, "--segment-frames", 1, "--json")
    job = start("enhance", source, "-o", output, *words)
    wait_until(lambda: list(tmp_path.glob("b.gif.genai-ray/*.nut")), job)
    kill(job.pid)
    job.communicate()
    assert not output.exists()
    options = EnhanceOptions(fps=25, segment_frames=1)
    report = enhance_videos(source, output, models="websr-x2-l", options=options)
    assert report.segments_reused >= 1
    assert report.frames == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.gif", "frames"]
    whole = EnhanceOptions(fps=25)
    enhance_videos(source, tmp_path / "c.gif", models="websr-x2-l", options=whole)
    assert output.read_bytes() == (tmp_path / "c.gif").read_bytes()


@pytest.mark.slow
def test_a_piece_of_an_animation_is_one(job):
    _, results, _ = job
    piece = read_animation((results / "piece.gif").read_bytes(), max_pixels=LIMIT)
    assert piece.durations_s == (Fraction(7, 100), Fraction(2))


@pytest.mark.slow
def test_numbered_pictures_are_a_video_or_pictures_again(job, session):
    folder, results, told = job
    sources = [folder / "frames" / f"{number:05d}.png" for number in range(9, 15)]
    for number, source in enumerate(sources, 9):
        expected = as_the_endpoint(session, source.read_bytes(), "png")
        assert (results / "out" / f"{number}.png").read_bytes() == expected
    with av.open(str(results / "frames.mp4")) as box:
        stream = box.streams.video[0]
        frames = list(box.decode(stream))
        assert stream.average_rate == RATE
        assert [frame.pts * frame.time_base * RATE for frame in frames] == list(range(6))
    gif = read_animation((results / "frames.gif").read_bytes(), max_pixels=LIMIT)
    assert (gif.plays, sum(gif.durations_s)) == (0, Fraction(25, 100))
    assert "6 of 6 durations were rounded to 10 ms, the unit of gif" in told["frames.gif"].notes


@pytest.mark.slow
def test_a_video_becomes_an_animation_without_its_sound(job):
    _, results, told = job
    gif = read_animation((results / "clip.gif").read_bytes(), max_pixels=LIMIT)
    assert gif.durations_s == (Fraction(4, 100),) * 6
    assert "audio stream 1 was left out: a gif file cannot hold it" in told["clip.gif"].notes
    with av.open(str(results / "clip.gif")) as box:  # as FFmpeg reads it
        assert len(list(box.decode(video=0))) == 6


# --- before anything is started -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    make_sources(folder)
    return folder


@pytest.mark.parametrize(
    ("source", "output", "options", "words"),
    [
        ("my photo.jpg", "b.tiff", {}, "an output ending in '.tiff'"),
        ("my photo.jpg", "b.png", {"audio": "aac"}, "audio 'aac' of .*pictures have neither sound"),
        ("my photo.jpg", "b.mp4", {"streams": "eng"}, "streams 'eng' of .*pictures have neither sound"),
        ("my photo.jpg", "b.png", {"encoding": Encoding(codec="h264")}, "codec h264 for .*the suffix says"),
        ("my photo.jpg", "b.jpg", {"encoding": Encoding(crf=18)}, r"crf 18 for .*the suffix says"),
        ("my photo.jpg", "b.png", {"encoding": Encoding(image_quality=90)}, r"image quality 90 for .*\.jpg, \.jpeg, "),
        ("a.gif", "b.gif", {"encoding": Encoding(image_quality=90)}, "image quality 90 for .*pictures and anim"),
        ("clip.mkv", "new/%d.jpg", {"encoding": Encoding(image_quality=90)}, "frames of a video as JPEG have"),
        ("clip.mkv", "b.mp4", {"encoding": Encoding(image_quality=90)}, "videos have --crf"),
        ("my photo.jpg", "b.png", {"start": "1"}, "a piece of .*which is one picture"),
        ("my photo.jpg", "b.png", {"fps": 24}, "without a model that adds frames"),
        ("my photo.jpg", "my photo.jpg", {}, "is an input"),
        ("alpha.png", "b.jpg", {}, "a picture with alpha as jpeg"),
        ("frames/%05d.png", "b.mp4", {"fps": 24, "deinterlace": "field"}, "pictures have no fields"),
        ("a.gif", "b.jpg", {}, "4 frames as one jpeg"),
        ("a.gif", "new/%d.gif", {}, "numbered files ending in .gif"),
        ("frames/%05d.png", "b.mp4", {}, "pictures have no times.*--fps 24"),
        ("frames/%05d.png", "frames/%04d.png", {"overwrite": True}, "is an input"),
        ("frames/%05d.png", "frames/", {}, "is an input"),
        ("frames/%03d.png", "b.mp4", {"fps": 24}, "no such files"),
        ("gap/%d.png", "b.mp4", {"fps": 24}, "missing between 1 and 4: 2 to 3"),
        ("sizes/%d.png", "b.mp4", {"fps": 24}, "2.png is 28x10"),
        ("clip.mkv", "b.png", {}, "one number in the file name"),
        ("cut.png", "b.png", {}, "damaged"),
        ("half-png/%d.png", "b.mp4", {"fps": 24}, "2.png: a damaged picture"),
        ("half-jpg/%d.jpg", "b.mp4", {"fps": 24}, "2.jpg: a damaged picture"),
        ("half-webp/%d.webp", "b.mp4", {"fps": 24}, "2.webp: a damaged picture"),
        ("bomb.png", "b.png", {}, "too many pixels"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_start(here, source, output, options, words):
    before = sorted(here.rglob("*"))
    with pytest.raises((errors.ConfigError, errors.VideoError), match=words):
        enhance_videos(here / source, f"{here}/{output}", models=MODEL, options=EnhanceOptions(**options))
    assert sorted(here.rglob("*")) == before


def test_a_webp_too_large_is_refused_at_the_start(here, tmp_path, monkeypatch):
    monkeypatch.setattr(animation_writer, "MAX_WEBP_PX", 4 * 4 * SIZE[0] * SIZE[1] - 1)
    with pytest.raises(errors.ConfigError, match=r"a WebP animation of 4 frames of 56x42"):
        enhance_videos(here / "a.gif", tmp_path / "b.webp", models=MODEL)
    assert not list(tmp_path.iterdir())


def test_a_model_that_adds_frames_needs_several(here, tmp_path):
    with pytest.raises(errors.ConfigError, match=r"rife for .*which is one picture"):
        enhance_videos(here / "alpha.png", tmp_path / "b.png", models="rife")


def test_an_existing_result_is_kept(here, tmp_path):
    (tmp_path / "b.png").write_bytes(b"mine")
    with pytest.raises(errors.ConfigError, match=r"b\.png exists"):
        enhance_videos(here / "alpha.png", tmp_path / "b.png", models=MODEL)
    assert (tmp_path / "b.png").read_bytes() == b"mine"


def test_two_pictures_for_one_result_are_refused(here, tmp_path):
    options = EnhanceOptions(name="{stem}.png")
    inputs = [here / "deep.png", here / "deep.png"]
    with pytest.raises(errors.ConfigError, match=r"two inputs for .*deep\.png"):
        enhance_videos(inputs, tmp_path / "out", models=MODEL, options=options)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [(["frames/%05d.png", "my photo.jpg"], {"name": "{stem}{suffix}"}), (["rows.csv"], {})],
)
def test_a_sequence_never_replaces_the_folder_of_others(here, tmp_path, inputs, options):
    (here / "rows.csv").write_text("uri,output\nmy photo.jpg,\nframes/%05d.png,%05d.png\n")
    with pytest.raises(errors.ConfigError, match="numbered files in the folder of other results"):
        enhance_videos(
            [here / name for name in inputs], tmp_path / "out", models=MODEL, options=EnhanceOptions(**options)
        )
    (here / "rows.csv").unlink()


def test_a_sequence_among_others_gets_its_folder(here, tmp_path):
    inputs = [here / "frames" / "%05d.png", here / "my photo.jpg"]
    targets = resolve_targets(inputs, tmp_path / "out", EnhanceOptions())
    assert [target.output.removeprefix(f"{tmp_path}/out/") for target in targets] == [
        "frames/%05d.png",
        "my photo.jpg",
    ]
    assert targets.has_sequence


def test_a_folder_without_videos_is_its_pictures(here, tmp_path):
    found = resolve_targets(here / "frames", tmp_path / "out", EnhanceOptions())
    assert [Path(target.output).name for target in found] == [f"{number:05d}.png" for number in range(9, 15)]
    mixed = resolve_targets(here, tmp_path / "out", EnhanceOptions())
    assert [Path(target.source).name for target in mixed] == ["clip.mkv"]


def test_a_rate_and_a_factor_are_of_the_pictures_and_the_model(here):
    options = EnhanceOptions(fps=12, factor=2, encoding=Encoding(codec="h264"))
    specs = check_models("rife", options, has_sequence=True)
    timeline, _, _ = plan_timeline(str(here / "frames" / "%05d.png"), specs, options, ".png")
    assert len(timeline.result.pts) == 12
    assert timeline.result.info.average_rate == 24


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("my photo.jpg", (21, 28, 8, False)),
        ("alpha.png", (28, 21, 8, True)),
        ("deep.png", (28, 21, 16, True)),
        ("deepgrey.png", (28, 21, 16, False)),
        ("palette.png", (28, 21, 8, True)),
        ("a.gif", (28, 21, 8, True)),
        ("frames/%05d.png", (28, 21, 8, False)),
        ("clip.mkv", (28, 21, 8, False)),
    ],
)
def test_sources_are_planned_alike(here, name, facts):
    info = plan_source(str(here / name)).info
    assert (info.width, info.height, info.bit_depth, info.has_alpha) == facts


def test_a_file_with_that_very_name_is_no_sequence(tmp_path):
    Image.fromarray(draw()).save(tmp_path / "%d.png")
    assert not is_sequence(str(tmp_path / "%d.png"))
    assert is_sequence(str(tmp_path / "%05d.png"))
    with pytest.raises(errors.ConfigError, match="a name like that of numbered files"):
        enhance_videos(tmp_path / "%d.png", f"{tmp_path}/out/", models=MODEL)


def test_pictures_of_a_sequence_must_have_one_profile(tmp_path):
    save(tmp_path / "1.png", draw(), icc_profile=SRGB)
    save(tmp_path / "2.png", draw())
    with pytest.raises(errors.VideoError, match="another colour profile"):
        plan_source(str(tmp_path / "%d.png"), rate=Fraction(25))


def test_a_sequence_takes_the_most_of_depth_and_alpha(tmp_path):
    save(tmp_path / "1.png", draw())
    (tmp_path / "2.png").write_bytes(encode_png16(draw(1, 4, np.uint16)))
    plan = plan_source(str(tmp_path / "%d.png"))
    from genai_ray.video import decode_source

    first, second = decode_source(plan, plan.segments[0])
    assert np.array_equal(first.frame, draw().astype(np.uint16) * 257)
    assert first.alpha.min() == 65535
    assert np.array_equal(second.frame, draw(1, 4, np.uint16)[..., :3])
