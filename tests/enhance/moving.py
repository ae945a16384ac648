"""Clips of a camera that moves over a picture: what interpolation is good at; with cuts and still frames where asked
for."""

import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from genai_ray.video import decode_segment, plan_video

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@functools.cache
def _landscape():
    with av.open(str(SAMPLES / "bigbuckbunny-720p.mp4")) as box:
        return next(box.decode(video=0)).to_ndarray(format="rgb24")


def pan(count, *, scene=0, size=(96, 64), step=(4, 2)):
    """Frames (count, H, W, 3), uint8, of a window that moves over a picture; scenes 0 and 1 resemble each other in
    nothing."""
    width, height = size
    picture = _landscape() if scene == 0 else 255 - _landscape()[::-1, ::-1]
    return np.stack([picture[200 + step[1] * i :, 300 + step[0] * i :][:height, :width] for i in range(count)])


def write_frames(
    path, frames, *, pts=None, rate=Fraction(25), codec="ffv1", pix_fmt="yuv420p", base=None, options=None
):
    """Encode frames at the given times, in units of 1 / ``rate`` or of ``base``."""
    base = 1 / Fraction(rate) if base is None else base
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.time_base = stream.codec_context.time_base = base
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.colorspace, frame.color_range = 1, 1
            frame.pts, frame.time_base = index if pts is None else pts[index], base
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return path


def frames_of(path):
    """Decode a clip: times in seconds, exactly, and RGB frames."""
    with av.open(str(path)) as box:
        decoded = list(box.decode(video=0))
    return [frame.pts * frame.time_base for frame in decoded], np.stack(
        [frame.to_ndarray(format="rgb24") for frame in decoded]
    )


def luma_of(path):
    """Decode the brightness alone, (N, H, W), as it is stored."""
    with av.open(str(path)) as box:
        return np.stack([frame.to_ndarray()[: frame.height] for frame in box.decode(video=0)])


def decode(path):
    """Decode as the package does: frames (N, H, W, 3) and their alpha (N, H, W, 1), None where the file has none."""
    plan = plan_video(path)
    frames = [frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    return np.stack([frame.frame for frame in frames]), np.stack(
        [frame.alpha for frame in frames]
    ) if plan.info.has_alpha else None
