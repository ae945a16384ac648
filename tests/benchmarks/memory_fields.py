"""Peak memory of ``enhance`` (driver, workers, sessions) with each filter, on a clip of 10 minutes against one of 1
minute, in turn; goal: within 10 %.

memory_fields.py [CLIP [SHORT_S [TIMES [EVERY [FILTERS]]]]]: as memory_length.py, of a clip that is stored as
interlaced, with one of EVERY (5) frames, so that ten minutes are soon done; FILTERS are names with commas (all). What
was measured is written after each filter.
"""

import sys
import tempfile
from pathlib import Path

from common import CLIPS, PeakMemory, genai_ray, keep, write_small
from memory_length import SIZE, repeat

MODEL = ("--model", "websr-x2-s")
COMMON = ("--json", "--segment-frames", "24")
"""So short that the minute, too, keeps all processes busy: a job of few segments starts fewer of them."""
FILTERS = {
    "frame": (*MODEL, "--deinterlace", "frame"),
    "field": (*MODEL, "--deinterlace", "field"),
    "ivtc": (*MODEL, "--deinterlace", "ivtc"),
    "size": (*MODEL, "--deinterlace", "off", "--size", "200x200", "--fit", "pad"),
    "input_height": (*MODEL, "--deinterlace", "off", "--input-height", "36"),
    "denoise": ("--model", "ffdnet", "--param", "sigma=15", "--deinterlace", "off"),
    "slow_motion": ("--model", "rife", "--slow-motion", "2", "--deinterlace", "off"),
}


def main(
    clip: Path = CLIPS / "iscc-demo.mkv",
    short_s: float = 60,
    times: int = 10,
    every: int = 5,
    filters: str = ",".join(FILTERS),
) -> None:
    peaks: dict[str, int] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        part, whole = Path(folder, "short.mkv"), Path(folder, "long.mkv")
        frames = write_small(clip, part, short_s, SIZE, every, **{"x264-params": "tff=1"})
        repeat(part, whole, times)
        for name in filters.split(","):
            for source in (part, whole):
                output = Path(folder, f"{source.stem}-{name}.out.mkv")
                done = PeakMemory(genai_ray("enhance", source, "-o", output, *COMMON, *FILTERS[name]))
                if done.returncode:
                    raise SystemExit(done.stderr)
                peaks[f"{name}_{source.stem}"] = done.peak_bytes
            ratios[name] = peaks[f"{name}_long"] / peaks[f"{name}_short"]
            figures = {"short_s": short_s, "times": times, "short_frames": frames, "peak_bytes": peaks, "ratio": ratios}
            keep(
                "memory_fields",
                {"clip": clip.name, "size": SIZE, **figures},
                [(f"{how}: long / short (goal 1.10)", ratio) for how, ratio in ratios.items()],
            )


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((Path, float, int, int, str), sys.argv[1:], strict=False)))
