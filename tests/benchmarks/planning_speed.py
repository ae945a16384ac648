"""How many packets a second are planned: demuxed, hashed and cut, never decoded; goal 20,000."""

import tempfile
import time
from pathlib import Path

import av
import numpy as np
from common import keep, median

from genai_ray.video import plan_video

RUNS, FRAMES = 5, 20_000


def write_long(target: Path) -> None:
    """Write many small frames with B-frames."""
    with av.open(str(target), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        for index in range(FRAMES):
            picture[index % 48, index % 64] += 37
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))


def main() -> None:
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder, "long.mp4")
        write_long(long)
        for _ in range(RUNS):
            started = time.perf_counter()
            plan = plan_video(long)
            rates.append(FRAMES / (time.perf_counter() - started))
            if len(plan.pts) != FRAMES:
                raise SystemExit(f"{len(plan.pts)} of {FRAMES} packets")
    keep("planning_speed", {"packets": FRAMES, "packets_per_s": rates}, [("packets/s (goal 20000)", median(rates))])


if __name__ == "__main__":
    main()
