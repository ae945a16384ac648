"""One 3840x2160 frame through websr-x2-l within 512 MB, in a session actor and through ``enhance``."""

import json
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import PeakMemory, genai_ray, keep

from genai_ray import ModelCache

RESERVED = 512_000_000


def write_clip(path: Path, num_frames: int = 2) -> None:
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 3840, 2160, "yuv420p", Fraction(1, 25)
        y, x = np.mgrid[0:2160, 0:3840]
        for k in range(num_frames):
            picture = np.stack([(x + 4 * k) % 256, (y // 8) % 256, (x ^ y) % 256], axis=-1).astype(np.uint8)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))


def main() -> None:
    with ModelCache(max_memory_bytes=RESERVED, name="uhd") as cache:
        cache.load_model("websr-x2-l", memory_bytes=RESERVED, max_frame=(2160, 3840))
        session = cache.get_session("websr-x2-l")
        session.infer(np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8))
        status = session.status()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "uhd.mp4")
        write_clip(clip)
        command = genai_ray(
            "enhance", clip, "-o", Path(folder, "out.mp4"), "--model", "websr-x2-l", "--max-memory", RESERVED, "--json"
        )
        run = PeakMemory(command)
        report = json.loads(run.stdout)
    actor = max((size for name, size in run.peak_of_name.items() if "SessionActor" in name), default=0)
    keep(
        "uhd_frame",
        {
            "reserved_bytes": RESERVED,
            "session_bytes": status["memory_bytes"],
            "tile_size_px": status["tile_size_px"],
            "enhance_session_bytes": actor,
        },
        [
            ("reserved, MB", RESERVED / 1e6),
            ("session actor at its peak, MB", status["memory_bytes"] / 1e6),
            ("its tiles, px", status["tile_size_px"]),
            ("session actor within enhance at its peak, MB", actor / 1e6),
            ("frames of enhance", report["frames"]),
        ],
    )


if __name__ == "__main__":
    main()
