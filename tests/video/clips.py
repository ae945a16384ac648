"""Small clips of one encoder call each; the matrix of difficult ones is in matrix.py."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from genai_ray.video.codecs import fixed_options, keep_scheduling

NUM_FRAMES = 40


def repeatable(codec, options, pix_fmt, size):
    """Return an encoder's options with what makes its bytes, and so its pictures, the same whatever memory held
    before."""
    fixed = fixed_options(codec, 1, pix_fmt, size) if codec in ("libx264", "libx265") else {}
    return options | {name: f"{value}:{options[name]}" if name in options else value for name, value in fixed.items()}


def picture(index, width, height):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [(x * 2 + index * 5) % 256, (y * 3 + index) % 256, ((x + y) // 2 + index * 9) % 256], axis=-1
    ).astype(np.uint8)


def write(
    path: Path,
    *,
    codec="libx264",
    size=(96, 64),
    pix_fmt="yuv420p",
    pts=None,
    options=None,
    rate=25,
    tracks=1,
    more=None,
    colour=None,
):
    """Encode NUM_FRAMES moving frames, with ``tracks`` of AAC or Vorbis beside them."""
    width, height = size
    pts = list(range(NUM_FRAMES)) if pts is None else pts
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=rate, options=repeatable(codec, options or {}, pix_fmt, size))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        if colour:
            cc = stream.codec_context
            cc.colorspace, cc.color_range, cc.color_primaries, cc.color_trc = colour
        if more:
            more(stream)
        with keep_scheduling():
            stream.codec_context.open(strict=False)
        sounds = [sink.add_stream("aac", rate=16000) for _ in range(tracks)]
        for sound in sounds:
            sound.layout = "mono"
        for index, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24").reformat(
                format=pix_fmt, dst_colorspace="ITU601"
            )
            frame.pts, frame.time_base = time, Fraction(1, rate)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
        for number, sound in enumerate(sounds):
            for index in range(25):
                wave = np.sin(np.arange(1024) * (0.05 + 0.02 * number) + index).astype(np.float32)[None] * 0.3
                chunk = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                chunk.rate, chunk.pts, chunk.time_base = 16000, index * 1024, Fraction(1, 16000)
                sink.mux(sound.encode(chunk))
            sink.mux(sound.encode(None))
    return path


def write_cut(path: Path):
    """Write an MP4 whose index promises NUM_FRAMES frames and whose data ends after two thirds of them."""
    source = write(path.with_name("uncut.mp4"), tracks=0)
    with av.open(str(source)) as box, av.open(str(path), "w", options={"movflags": "+faststart"}) as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(box.streams.video[0]):
            if packet.size:
                packet.stream = copy
                sink.mux(packet)
    source.unlink()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path
