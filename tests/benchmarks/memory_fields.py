"""Peak memory of ``enhance`` (driver, workers, sessions) with each filter of interlaced video, on a clip of 10 minutes
against one of 1 minute, in turn; goal: within 10 %.

memory_fields.py [CLIP [SHORT_S [TIMES [RUNS]]]]: as memory_length.py, of a clip that is stored as interlaced; about 8
minutes for one of RUNS on two quiet cores.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from common import CLIPS, PeakMemory, genai_ray, keep, median, write_small
from memory_length import SIZE, repeat

HOWS = ("frame", "field", "ivtc")


def main(clip: Path = CLIPS / "iscc-demo.mkv", short_s: float = 60, times: int = 10, runs: int = 1) -> None:
    peaks = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        part, whole = Path(folder, "short.mkv"), Path(folder, "long.mkv")
        write_small(clip, part, short_s, SIZE, **{"x264-params": "tff=1"})
        repeat(part, whole, times)
        for run in range(runs):
            for how in HOWS:
                for source in (part, whole):
                    output = Path(folder, f"{source.stem}-{how}-{run}.out.mkv")
                    words = ["--model", "websr-x2-s", "--json", "--deinterlace", how]
                    done = PeakMemory(genai_ray("enhance", source, "-o", output, *words))
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    peaks[f"{how}_{source.stem}"].append(done.peak_bytes)
    ratios = {how: [a / b for a, b in zip(peaks[f"{how}_long"], peaks[f"{how}_short"], strict=True)] for how in HOWS}
    keep(
        "memory_fields",
        {"clip": clip.name, "size": SIZE, "short_s": short_s, "times": times, "peak_bytes": peaks, "ratio": ratios},
        [(f"{how}: long / short (goal 1.10)", median(ratios[how])) for how in HOWS],
    )


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((Path, float, int, int), sys.argv[1:], strict=False)))
