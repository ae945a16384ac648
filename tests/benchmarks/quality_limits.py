"""What the source checks measure on clean results of the packaged models: the ground of the limits of ``SourceChecks``.

Real clips, in frames of at most 320 x 180, without tiles; one of them also made dark, and of low contrast; and a hard
edge. ``seam`` is measured as if the frame were made of tiles of 64 x 64, at many places. For each model: the worst
value of any frame of any clip. Faults planted into the results of one model, in one frame and in all, show what is
caught.
"""

import math

import numpy as np
from common import CLIPS, ROOT, keep

from genai_ray import InferenceSession, ModelCatalog, VideoReader
from genai_ray.quality import reduce_frame
from genai_ray.quality.source import KEEPS_FRAMES, KEEPS_PICTURE, LIMITS, SourceChecks, SourceMeter, seam_energy

CLEAN = {
    "bigbuckbunny-360p": (ROOT / "samples" / "bigbuckbunny-360p.mp4", 60, 63),
    "bikes, a cut": (CLIPS / "bikes.mp4", 27, 33),
    "bikes, late": (CLIPS / "bikes.mp4", 180, 183),
    "carphone": (CLIPS / "carphone_pristine.mp4", 0, 12),
    "iscc-demo": (CLIPS / "iscc-demo.mkv", 400, 412),
    "iscc-demo, late": (CLIPS / "iscc-demo.mkv", 1200, 1212),
}
MOST = (180, 320)
"""Height and width of what is taken of the middle of larger frames."""

TILE_PX = 64
OFFSETS_PX = (*range(1, TILE_PX, 3), TILE_PX)
"""Where the first tile may end; the hard edge is at 64."""

FFDNET_NOISE = 25 / 255
WORST = {name: max for limit, name in LIMITS.items() if limit.startswith("max")}
WORST |= {name: min for limit, name in LIMITS.items() if limit.startswith("min")}


def read(place, start, stop):
    with VideoReader(place) as video:
        frames = video[start:stop].frames
    rows, columns = ((side - kept) // 2 for side, kept in zip(frames.shape[1:3], MOST, strict=True))
    return np.ascontiguousarray(frames[:, max(rows, 0) :, max(columns, 0) :][:, : MOST[0], : MOST[1]])


def change(frames):
    """Return clips that were made of a real one, by name."""
    edge = np.full((3, 96, 128, 3), 30, np.uint8)
    edge[:, :, 64:] = 230
    return {
        "carphone, dark": np.rint(frames * 0.15).astype(np.uint8),
        "carphone, of low contrast": np.rint(118 + frames * 0.08).astype(np.uint8),
        "carphone, small": np.ascontiguousarray(frames[:, :48, :48]),
        "a hard edge": edge,
    }


def measure(output, source, task):
    meter = SourceMeter(SourceChecks(task=task))
    for after, before in zip(output, source, strict=True):
        meter.add(after, before)
    values = {}
    for name, worst in WORST.items():
        known = [getattr(frame, name) for frame in meter.frames if getattr(frame, name) is not None]
        if known:
            values[name] = worst(known)
    if "contrast" in values:
        values["contrast_most"] = max(frame.contrast for frame in meter.frames if frame.contrast is not None)
    if task in KEEPS_PICTURE:
        seams = [seam_of_tiles(after, before) for after, before in zip(output, source, strict=True)]
        values["seam"] = max(seam for seam in seams if seam is not None)
    return {name: round(value, 4) if math.isfinite(value) else "inf" for name, value in values.items()}


def seam_of_tiles(output, source):
    """Return the largest ``seam`` of tiles that begin at any of ``OFFSETS_PX``."""
    before = source / 255
    difference = reduce_frame(output, output.shape[0] // source.shape[0]) / 255 - before
    height, width, _ = source.shape
    lines = [(range(first, height, TILE_PX), range(first, width, TILE_PX)) for first in OFFSETS_PX]
    energies = [seam_energy(difference, before, *pair) for pair in lines]
    return max((energy for energy in energies if energy is not None), default=None)


def worst_of(rows):
    result = {}
    for name in (*WORST, "contrast_most"):
        known = [row[name] for row in rows if name in row]
        if known:
            result[name] = WORST.get(name, max)(known)
    return result


def noisy(frames, deviation):
    noise = np.random.default_rng(7).normal(0, 255 * deviation, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def plant(output):
    """Return faults by name, each in one frame and in all frames of a copy of a clean result of one model."""
    height, width = output.shape[1:3]
    tile = np.zeros((height, width, 1))
    tile[height // 4 : height // 2, width // 4 : width // 2] = 1
    line = np.ones((height, width, 1))
    line[height // 4 : height // 2, width // 4] = 0
    middle = len(output) // 2
    faults = {}
    for name, spoil in {
        "black": lambda frame: frame * 0,
        "flat": lambda frame: np.broadcast_to(frame.mean(axis=(0, 1)), frame.shape),
        "another picture": lambda frame: frame[::-1, ::-1],
        "16 levels brighter": lambda frame: frame + 16.0,
        "32 levels brighter": lambda frame: frame + 32.0,
        "red and blue exchanged": lambda frame: frame[..., ::-1],
        "limited range for full": lambda frame: (frame - 16.0) * 255 / 219,
        "full range for limited": lambda frame: frame * 219 / 255 + 16.0,
        "a tile 16 levels brighter": lambda frame: frame + 16.0 * tile,
        "a tile 40 levels brighter": lambda frame: frame + 40.0 * tile,
        "a tile of zeros at its edge": lambda frame: frame * line,
        "four times as bright": lambda frame: frame * 4.0,
    }.items():
        for where, indices in (("one frame", [middle]), ("all frames", range(len(output)))):
            faulty = output.copy()
            for index in indices:
                faulty[index] = np.clip(np.rint(spoil(output[index].astype(np.float64))), 0, 255)
            faults[f"{name}, {where}"] = faulty
    return faults


def main():
    catalog = ModelCatalog.default()
    clips = {name: read(*where) for name, where in CLEAN.items() if where[0].is_file()}
    clips |= change(clips["carphone"]) if "carphone" in clips else {}
    models = {}
    faults = {}
    for model_id in catalog.ids():
        spec = catalog.get(model_id)
        if spec.url is not None or spec.task not in KEEPS_FRAMES:
            continue
        rows = {}
        with InferenceSession(model_id) as session:
            for name, frames in clips.items():
                output = session.infer(frames)
                rows[name] = measure(output, frames, spec.task)
                if model_id == "websr-x2-s" and name in ("carphone", "bikes, a cut"):
                    faults[name] = {fault: measure(bad, frames, spec.task) for fault, bad in plant(output).items()}
            if model_id == "ffdnet":
                for name in [name for name in clips if name.startswith("carphone")]:
                    frames = noisy(clips[name], FFDNET_NOISE)
                    output = session.infer(frames, {"sigma": FFDNET_NOISE})
                    rows[f"{name}, noise of 25 levels"] = measure(output, frames, spec.task)
        models[model_id] = {"worst": worst_of(rows.values()), "clips": rows}
        print(model_id, models[model_id], flush=True)
    keep(
        "quality_limits",
        {"models": models, "faults": faults},
        [(name, str(row["worst"])) for name, row in models.items()],
    )
    for clip, planted in faults.items():
        for name, row in planted.items():
            print(clip, name, row)


if __name__ == "__main__":
    main()
