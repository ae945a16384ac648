"""The clips of matrix.yaml, made by PyAV's own encoders: smooth moving pictures well inside RGB's gamut, sound, and
what else a recipe asks for."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import yaml

from genai_ray.video.codecs import keep_scheduling
from tests.video.clips import repeatable

NUM_FRAMES = 40
CLIPS = yaml.safe_load(Path(__file__).with_name("matrix.yaml").read_text())
TIMES = {
    "steady": range(NUM_FRAMES),
    "late": range(37, 37 + NUM_FRAMES),
    "variable": np.cumsum([1 + (i * 7) % 5 for i in range(NUM_FRAMES)]).tolist(),
}
WORDS = (
    "1\n00:00:00,000 --> 00:00:00,250\nun\n\n"
    "2\n00:00:00,300 --> 00:00:00,550\ndeux\n\n"
    "3\n00:00:00,600 --> 00:00:00,850\ntrois\n"
)


def picture(index, width, height):
    """Return RGBA (H, W, 4), uint8, colours from 80 to 180."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + index / 3 + y / 31), np.sin(y / 7 - index / 5), np.cos((x + y) / 13 + index / 4)]
    rgb = np.stack(waves, axis=-1) * 35 + 130 + 15 * np.sin(x * 1.3 + y * 0.7)[..., None]
    alpha = (x * 2 + y * 3 + index * 5) % 256
    return np.concatenate([rgb, alpha[..., None]], axis=-1).round().astype(np.uint8)


def make(name: str, folder: Path) -> Path:
    """Make one clip of the matrix."""
    recipe = CLIPS[name]
    path = folder / recipe["file"]
    made = path.with_name("bare.mkv") if recipe.get("extras") else path
    with av.open(str(made), "w", format=recipe.get("format")) as sink:
        stream = add_video(sink, recipe)
        sounds = [add_sound(sink, codec) for codec in recipe.get("sounds", [])]
        for index, time in enumerate(TIMES[recipe.get("times", "steady")]):
            rgba = av.VideoFrame.from_ndarray(picture(index, stream.width, stream.height), format="rgba")
            span = "JPEG" if stream.codec_context.color_range == 2 or stream.pix_fmt.startswith("yuvj") else "MPEG"
            matrix = {1: "ITU709", 9: "BT2020"}.get(stream.codec_context.colorspace, "ITU601")
            frame = rgba.reformat(
                format=stream.pix_fmt, src_color_range="JPEG", dst_color_range=span, dst_colorspace=matrix
            )
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
        for number, sound in enumerate(sounds):
            write_sound(sink, sound, number)
    return add_extras(made, path) if recipe.get("extras") else path


def add_video(sink, recipe):
    rate = Fraction(recipe.get("rate", 25))
    options = recipe.get("options", {}) | (
        {"chroma_sample_location": recipe["chroma_location"]} if "chroma_location" in recipe else {}
    )
    size, pix_fmt = recipe.get("size", (96, 64)), recipe.get("pix_fmt", "yuv420p")
    stream = sink.add_stream(recipe["codec"], rate=rate, options=repeatable(recipe["codec"], options, pix_fmt, size))
    (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
    stream.time_base = stream.codec_context.time_base = 1 / rate
    if "colour" in recipe:
        codec = stream.codec_context
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = recipe["colour"]
    if stream.pix_fmt.startswith("yuvj"):
        stream.codec_context.color_range = 2
    if "rotation" in recipe:
        stream.set_display_rotation(recipe["rotation"])
    if "aspect" in recipe:
        stream.sample_aspect_ratio = Fraction(recipe["aspect"])
    with keep_scheduling():
        stream.codec_context.open(strict=False)
    return stream


def add_sound(sink, codec):
    sound = sink.add_stream(codec, rate=48000)
    sound.layout = "mono"
    return sound


def write_sound(sink, sound, number):
    """Write 1.6 s of a sine wave."""
    resampler = av.AudioResampler(
        format=sound.codec_context.format, layout="mono", rate=48000, frame_size=sound.codec_context.frame_size or 1024
    )
    for index in range(75):
        wave = (
            np.sin(np.arange(index * 1024, (index + 1) * 1024) * (0.02 + 0.01 * number)).astype(np.float32)[None] * 0.3
        )
        chunk = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        chunk.rate, chunk.pts, chunk.time_base = 48000, index * 1024, Fraction(1, 48000)
        for ready in resampler.resample(chunk):
            sink.mux(sound.encode(ready))
    for ready in resampler.resample(None):
        sink.mux(sound.encode(ready))
    sink.mux(sound.encode(None))


def add_extras(source, target):
    """Copy a clip and put subtitles, a chapter, a title and an attachment beside it."""
    words = target.with_suffix(".srt")
    words.write_text(WORDS)
    with av.open(str(source)) as box, av.open(str(words)) as lines, av.open(str(target), "w") as sink:
        copies = {stream: sink.add_stream_from_template(stream) for stream in (*box.streams, lines.streams[0])}
        copies[lines.streams[0]].metadata["language"] = "fra"
        sink.add_attachment("note.txt", "text/plain", b"kept")
        sink.metadata["title"] = "A clip"
        sink.set_chapters(
            [{"id": 1, "start": 0, "end": 800, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
        )
        for packet in (*lines.demux(), *box.demux()):
            if packet.size:
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return target
