"""Five load / infer / close cycles in one process: what ``close`` does not give back; goal: at most 10 % of the loaded
bytes."""

import numpy as np
from common import keep, median

from genai_ray import InferenceSession
from genai_ray.session import anonymous_bytes

RUNS, CYCLES = 3, 5


def cycle() -> tuple[int, int]:
    before = anonymous_bytes()
    with InferenceSession("waifu2x-x2") as session:
        session.infer(np.zeros((8, 144, 176, 3), np.uint8))
        loaded = anonymous_bytes() - before
    return loaded, anonymous_bytes()


def main() -> None:
    grown, loaded_bytes = [], []
    for _ in range(RUNS):
        loaded, first = cycle()
        last = [cycle()[1] for _ in range(CYCLES - 1)][-1]
        loaded_bytes.append(loaded)
        grown.append((last - first) / loaded)
    keep(
        "load_cycles",
        {"loaded_bytes": loaded_bytes, "growth_of_loaded": grown},
        [
            ("loaded, MB", loaded_bytes[0] / 1e6),
            ("grown from cycle 1 to 5, share of loaded (goal 0.10)", median(grown)),
        ],
    )


if __name__ == "__main__":
    main()
