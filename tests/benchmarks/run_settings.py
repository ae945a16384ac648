"""What tile sizes, batches and threads give beside those that a session chooses by itself: one session for each setting
of one model, runtime and number format; the sessions take turns on the same frames. Each setting's results are compared
bit for bit with those of the session's own choice. In frames of 176x144 all tiles are the whole frame: what they differ
by is the noise.

Processor time of all threads counts: a job keeps every core busy, so its speed follows from the work for one frame.
Wall-clock time is kept too; it depends more on what else runs on the machine.

A setting is ``tile T`` (longest side in pixels, halo included), ``whole`` (no tiles), ``batch N`` (frames in one
runtime call), or ``1 run of T`` (threads of the only run). Arguments are a model, a size, and runtimes with number
formats, such as ``websr-x2-l 640x360 onnx-fp32``; kept figures of others stay."""

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from common import RESULTS, keep, median

from genai_ray import InferenceSession, ModelBackend, ModelPrecision, SessionLimits
from genai_ray.backends import RuntimeOptions
from genai_ray.session import calibration_frames, count_cores, session

FRAMES = 4
"""Frames in one call of a session, as in a job."""
LARGE_FRAMES = 2
"""The same of more than ``LARGE_PX`` pixels, which are not measured in batches of more."""
LARGE_PX = 500_000
TURNS = 5
TURN_S = 0.5
"""A turn repeats the call for at least this long."""
MIN_TURNS = 3
WITHIN_S = 150.0
"""After so many seconds only the fewest turns are made."""
CORES = count_cores()
SETTINGS: dict[str, dict[str, int]] = {
    "own choice": {},
    "whole": {"tile": 0},
    **{f"tile {px}": {"tile": px} for px in (192, 384, 512)},
    **{f"batch {count}": {"batch": count} for count in (2, 4)},
    f"1 run of {CORES}": {"threads": CORES},
}
"""What differs from the session's own choice."""


class Settled(InferenceSession):
    """A session with one run at once of several threads, or with several frames in one runtime call."""

    def __init__(self, *args: object, threads: int, batch: int, **options: object) -> None:
        self._run_threads = threads
        usual = session.runs_at_once, session.run_batch_of
        session.runs_at_once, session.run_batch_of = lambda *_: CORES // threads, lambda *_: batch
        try:
            super().__init__(*args, **options)
        finally:
            session.runs_at_once, session.run_batch_of = usual

    def _runtime_options(self) -> RuntimeOptions:
        return replace(super()._runtime_options(), threads=self._run_threads)


def open_session(model_id: str, size: tuple[int, int], way: str, setting: dict[str, int]) -> Settled:
    backend, precision = way.split("-")
    return Settled(
        model_id,
        backend=ModelBackend(backend),
        precision=ModelPrecision(precision),
        device="cpu",
        limits=SessionLimits(max_frame=size, tile_size_px=setting.get("tile")),
        threads=setting.get("threads", 1),
        batch=setting.get("batch", 1),
    )


def measure(model_id: str, size: tuple[int, int], way: str) -> dict[str, dict[str, object]]:
    frame = np.rint(255 * calibration_frames(max(size))[:, : size[0], : size[1]]).astype(np.uint8)
    count = FRAMES if size[0] * size[1] <= LARGE_PX else LARGE_FRAMES
    frames = np.concatenate([frame] * (count // len(frame)))
    found: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        sessions = {}
        expected = None
        for name, setting in SETTINGS.items():
            if setting.get("batch", 1) > count:
                continue
            sessions[name] = stack.enter_context(open_session(model_id, size, way, setting))
            result = sessions[name].infer(frames)
            expected = result if expected is None else expected
            found[name] = {
                "tile_size_px": sessions[name].tile_size_px,
                "same_bits": bool(np.array_equal(result, expected)),
                "mb": round(sessions[name].memory_bytes / 1e6, 1),
                "cpu_ms": [],
                "wall_ms": [],
            }
        start = time.perf_counter()
        for turn in range(TURNS):
            if turn >= MIN_TURNS and time.perf_counter() - start > WITHIN_S:
                break
            names = list(sessions)
            for name in names[turn:] + names[:turn]:
                one = sessions[name]
                began, worked = time.perf_counter(), time.process_time()
                done = 0
                while time.perf_counter() - began < TURN_S:
                    one.infer(frames)
                    done += count
                found[name]["cpu_ms"].append(round(1e3 * (time.process_time() - worked) / done, 2))
                found[name]["wall_ms"].append(round(1e3 * (time.perf_counter() - began) / done, 2))
    for one in found.values():
        for kind in ("cpu", "wall"):  # of the same turn: what else runs on the machine changes from turn to turn
            pairs = zip(found["own choice"][f"{kind}_ms"], one[f"{kind}_ms"], strict=True)
            one[f"{kind}_speed"] = round(median([own / this for own, this in pairs]), 3)
    return found


def main(model_id: str, size: str, *ways: str) -> None:
    width, height = map(int, size.split("x"))
    cases: dict[str, dict[str, object]] = {}
    rows = []
    for way in ways:
        case = f"{model_id} {size} {way.replace('-', ' ')}"
        found = measure(model_id, (height, width), way)
        cases[case] = {"load_average": os.getloadavg(), "settings": found}
        for name, one in found.items():
            bits = "" if one["same_bits"] else "  OTHER BITS"
            speeds = f"{one['cpu_speed']:.3f} x by processor time ({one['wall_speed']:.3f} x by the clock)"
            rows.append((f"{case}: {name}", f"{median(one['cpu_ms']):9.2f} ms  {speeds}  {one['mb']:.0f} MB{bits}"))
    path = RESULTS / "run_settings.json"
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    keep("run_settings", {"cases": kept | cases}, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
