"""Peak memory of ``enhance`` (driver, workers, sessions) on a clip of 10 minutes against one of 1 minute, in turn;
goal: within 10 %.

memory_length.py [CLIP [SHORT_S [TIMES [RUNS]]]]: the first SHORT_S seconds (60) of the clip, and that put behind itself
TIMES times (10), at 88x72 pixels, so that ten minutes are soon done: about 5 minutes for 3 RUNS on two quiet cores.
"""

import sys
import tempfile
from pathlib import Path

import av
from common import CLIPS, PeakMemory, genai_ray, keep, median, write_small

SIZE = (88, 72)


def repeat(source: Path, target: Path, times: int) -> None:
    """Put a clip behind itself, its packets unchanged."""
    with av.open(str(target), "w") as sink:
        stream, shift = None, 0
        for _ in range(times):
            with av.open(str(source)) as box:
                video = box.streams.video[0]
                stream = stream or sink.add_stream_from_template(video)
                packets = [packet for packet in box.demux(video) if packet.size]
                step = packets[1].dts - packets[0].dts
                base = shift - min(packet.dts for packet in packets)
                for packet in packets:
                    packet.pts, packet.dts, packet.stream = packet.pts + base, packet.dts + base, stream
                    sink.mux(packet)
                shift = max(packet.dts for packet in packets) + step


def main(clip: Path = CLIPS / "iscc-demo.mkv", short_s: float = 60, times: int = 10, runs: int = 3) -> None:
    long, short = [], []
    with tempfile.TemporaryDirectory() as folder:
        part, whole = Path(folder, "short.mkv"), Path(folder, "long.mkv")
        write_small(clip, part, short_s, SIZE)
        repeat(part, whole, times)
        for run in range(runs):
            for source, peaks in ((part, short), (whole, long)):
                done = PeakMemory(
                    genai_ray(
                        "enhance",
                        source,
                        "-o",
                        Path(folder, f"{source.stem}-{run}.out.mkv"),
                        "--model",
                        "websr-x2-s",
                        "--json",
                    )
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                peaks.append(done.peak_bytes)
    ratios = [a / b for a, b in zip(long, short, strict=True)]
    keep(
        "memory_length",
        {
            "clip": clip.name,
            "size": SIZE,
            "short_s": short_s,
            "times": times,
            "peak_bytes_long": long,
            "peak_bytes_short": short,
            "ratio": ratios,
        },
        [("long, MB", median(long) / 1e6), ("short, MB", median(short) / 1e6), ("ratio (goal 1.10)", median(ratios))],
    )


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((Path, float, int, int), sys.argv[1:], strict=False)))
