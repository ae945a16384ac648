"""1,000 faults planted into segments of a real clip, and what finds each. Goal: none leaves a wrong frame unfound.

What finds a fault: the strict checks while the segment is made, the hash of a finished segment, or computing it again
from the source. The result of that is the same each time, so it is computed twice for each segment rather than for each
fault. See ``tests/enhance/planted.py``.
"""

import logging
import tempfile
from pathlib import Path

import av
import numpy as np
from common import ROOT, keep

from genai_ray import ModelCache
from tests.enhance.moving import write_frames
from tests.enhance.planted import NO_EFFECT, Planter, plant_all

COUNTS = {
    "NaN": 250,
    "black frame": 100,
    "swapped frames": 224,
    "bit flip between kill and resume": 250,
    "wrong model": 50,
    "wrong precision": 26,
    "wrong colour matrix": 100,
}
"""With 25 segments a wrong model, precision or matrix is another fault each time (but for one precision): there are two
models, one precision, and two matrices in two places."""

SIZE = (192, 108)
SEED = 1


def main() -> None:
    logging.disable(logging.WARNING)  # each segment that is computed again would say so
    with tempfile.TemporaryDirectory() as name, ModelCache(2_000_000_000, name="planted") as cache:
        with av.open(str(ROOT / "samples" / "bigbuckbunny-360p.mp4")) as box:
            frames = np.stack([frame.reformat(*SIZE, "rgb24").to_ndarray() for frame in box.decode(video=0)])
        clip = write_frames(Path(name) / "clip.mkv", frames)
        planter = Planter(clip, Path(name), cache)
        found = plant_all(planter, COUNTS, SEED, lambda kind, counts: print(kind, dict(counts), flush=True))
    passed = sum(counts[NO_EFFECT] for counts in found.values())
    figures = {
        "seed": SEED,
        "frames": len(frames),
        "segments": planter.num_segments,
        "faults": sum(COUNTS.values()),
        "found": {kind: dict(counts) for kind, counts in found.items()},
        "without_effect_on_a_decoded_frame": passed,
    }
    rows = [(f"{kind}: {by}", count) for kind, counts in found.items() for by, count in counts.items()]
    keep("planted_faults", figures, [*rows, ("faults that nothing found (goal: 0)", passed)])


if __name__ == "__main__":
    main()
