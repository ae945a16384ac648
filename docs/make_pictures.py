"""Makes the pictures of the documents and the samples of the endpoint's page, of the clips in samples/.

make_pictures.py [SCREENSHOT.png]: docs/images/before-after.webp, and sample.webp and sample.mp4 of the page; of a
screenshot, which the browser tests keep in GENAI_RAY_SCREENSHOTS, also docs/images/page.webp.
"""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from genai_ray import InferenceSession, VideoReader

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "genai_ray" / "serve" / "web" / "page"
MODEL = "waifu2x-x2"
FRAME, LEFT, TOP, SIDE, TIMES, MARGIN = 60, 305, 95, 80, 4, 24
"""The frame, the square part of it in pixels of the small clip, how large they are shown, and room for names."""


def read(name: str, frames: slice) -> np.ndarray:
    """Return frames (N, H, W, 3) of a sample."""
    with VideoReader(ROOT / "samples" / name) as video:
        return video[frames].frames


def write_before_after() -> None:
    """Put a part of one frame beside itself: enlarged without a model and by one, and the original."""
    small = read("bigbuckbunny-360p.mp4", slice(FRAME, FRAME + 1))
    with InferenceSession(MODEL) as session:
        larger = session.infer(small)[0]
    bicubic = np.asarray(Image.fromarray(small[0]).resize((1280, 720), Image.Resampling.BICUBIC))
    original = read("bigbuckbunny-720p.mp4", slice(FRAME, FRAME + 1))[0]
    named = {"without a model": bicubic, MODEL: larger, "the original": original}
    side = TIMES * SIDE
    sheet = Image.new("RGB", (len(named) * side, side + MARGIN), "white")
    for place, (name, picture) in enumerate(named.items()):
        part = Image.fromarray(picture[2 * TOP : 2 * (TOP + SIDE), 2 * LEFT : 2 * (LEFT + SIDE)])
        sheet.paste(part.resize((side, side), Image.Resampling.NEAREST), (place * side, MARGIN))
        ImageDraw.Draw(sheet).text((place * side + 4, 4), name, "black", font_size=14)
    sheet.save(IMAGES / "before-after.webp", quality=90, method=6)


def write_samples() -> None:
    """Write a picture and two seconds of a small clip for the page."""
    Image.fromarray(read("bigbuckbunny-360p.mp4", slice(FRAME, FRAME + 1))[0]).save(
        PAGE / "sample.webp", quality=85, method=6
    )
    with av.open(str(PAGE / "sample.mp4"), "w", options={"movflags": "+faststart"}) as sink:
        stream = sink.add_stream("libx264", rate=Fraction(25), options={"crf": "24", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for picture in read("bigbuckbunny-360p.mp4", slice(FRAME, FRAME + 50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            sink.mux(stream.encode(frame.reformat(320, 180, dst_colorspace="ITU709", interpolation="LANCZOS")))
        sink.mux(stream.encode(None))


def main(*screenshots: str) -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    write_before_after()
    write_samples()
    for path in screenshots:
        with Image.open(path) as picture:
            picture.convert("RGB").save(IMAGES / "page.webp", quality=80, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
