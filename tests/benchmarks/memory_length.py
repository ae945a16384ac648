"""Peak memory of ``enhance`` (driver, workers, sessions) on a 60 s clip against a 10 s cut of it, in turn; goal: within 10 %."""

import sys
import tempfile
from pathlib import Path

import av
from common import CLIPS, PeakMemory, genai_ray, keep, median

RUNS = 3


def cut(source: Path, target: Path, seconds: float) -> None:
    with av.open(str(source)) as box, av.open(str(target), "w") as sink:
        stream = sink.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(box.streams.video[0]):
            if packet.pts is not None and float(packet.pts * packet.time_base) < seconds:
                packet.stream = stream
                sink.mux(packet)


def main(clip: Path = CLIPS / "iscc-demo.mkv") -> None:
    long, short = [], []
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "cut.mkv")
        cut(clip, part, 10)
        for run in range(RUNS):
            for source, peaks in ((part, short), (clip, long)):
                done = PeakMemory(genai_ray("enhance", source, "-o", Path(folder, f"{source.stem}-{run}.mkv"), "--model", "websr-x2-l", "--json"))
                if done.returncode:
                    raise SystemExit(done.stderr)
                peaks.append(done.peak_bytes)
    ratios = [a / b for a, b in zip(long, short, strict=True)]
    keep(
        "memory_length",
        {"clip": clip.name, "peak_bytes_60_s": long, "peak_bytes_10_s": short, "ratio": ratios},
        [("60 s, MB", median(long) / 1e6), ("10 s, MB", median(short) / 1e6), ("ratio (goal 1.10)", median(ratios))],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
