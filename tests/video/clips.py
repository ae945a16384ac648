"""Clips that no package ships: made here, each with one difficulty."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_FRAMES = 40


def picture(index, width, height):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 2 + index * 5) % 256, (y * 3 + index) % 256, ((x + y) // 2 + index * 9) % 256], axis=-1).astype(np.uint8)


def write(path: Path, *, codec="libx264", size=(96, 64), pix_fmt="yuv420p", pts=None, options=None, rate=25, tracks=1, more=None, colour=None):
    """Encode NUM_FRAMES moving frames, with ``tracks`` of AAC or Vorbis beside them."""
    width, height = size
    pts = list(range(NUM_FRAMES)) if pts is None else pts
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        if colour:
            cc = stream.codec_context
            cc.colorspace, cc.color_range, cc.color_primaries, cc.color_trc = colour
        if more:
            more(stream)
        sounds = [sink.add_stream("aac", rate=16000) for _ in range(tracks)]
        for sound in sounds:
            sound.layout = "mono"
        for index, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24").reformat(format=pix_fmt, dst_colorspace="ITU601")
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


CLIPS = {
    "plain": ("a.mp4", {}),
    "matroska": ("a.mkv", {}),
    "transport_stream": ("a.ts", {}),
    "mov": ("a.mov", {}),
    "b_frames": ("a.mp4", {"options": {"bf": "4", "b_strategy": "0", "g": "12"}}),
    "open_gop_h264": ("a.mkv", {"options": {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}}),
    "open_gop_hevc": ("a.mkv", {"codec": "libx265", "options": {"x265-params": "keyint=10:bframes=3:open-gop=1:log-level=none"}}),
    "single_key": ("a.mp4", {"options": {"g": "1000", "sc_threshold": "0"}}),
    "variable_rate": ("a.mkv", {"pts": list(np.cumsum([1 + (i * 7) % 5 for i in range(NUM_FRAMES)])), "rate": 100}),
    "late_start": ("a.mp4", {"pts": list(range(37, 37 + NUM_FRAMES))}),
    "late_start_mkv": ("a.mkv", {"pts": list(range(37, 37 + NUM_FRAMES))}),
    "odd_size": ("a.mkv", {"size": (97, 63), "pix_fmt": "yuv444p"}),
    "silent": ("a.mp4", {"tracks": 0}),
    "two_tracks": ("a.mkv", {"tracks": 2}),
    "avi_b_frames": ("a.avi", {"tracks": 0, "options": {"g": "10"}}),
    "mpeg4": ("a.avi", {"codec": "mpeg4", "tracks": 0, "options": {"g": "8"}}),
    "mpeg2": ("a.mkv", {"codec": "mpeg2video", "options": {"g": "8", "bf": "2"}}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "tracks": 0, "options": {"g": "10", "deadline": "realtime", "cpu-used": "8"}}),
    "ffv1": ("a.mkv", {"codec": "ffv1"}),
    "full_range": ("a.mkv", {"colour": (1, 2, 1, 1), "tracks": 0}),
    "aspect": ("a.mp4", {"more": lambda stream: setattr(stream, "sample_aspect_ratio", Fraction(16, 11))}),
    "rotated": ("a.mp4", {"more": lambda stream: stream.set_display_rotation(90)}),
}


def make(name: str, folder: Path) -> Path:
    file, options = CLIPS[name]
    return write(folder / file, **options)
