"""What the source checks measure on clean results of the packaged models: the ground of the limits of ``SourceChecks``.

Real clips, in frames of at most 320 x 180, without tiles. ``seam`` is measured at every row and column, as if a tile
began there. For each model: the worst value of any frame of any clip. Faults planted into the results of one model show
what is caught.
"""

import math

import numpy as np
from common import CLIPS, ROOT, keep

from genai_ray import InferenceSession, ModelCatalog, VideoReader
from genai_ray.quality.source import KEEPS_FRAMES, LIMITS, SourceChecks, SourceMeter

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

FFDNET_NOISE = 25 / 255
WORST = {name: (min if limit.startswith("min") else max) for limit, name in LIMITS.items()}


def read(place, start, stop):
    with VideoReader(place) as video:
        frames = video[start:stop].frames
    rows, columns = ((side - kept) // 2 for side, kept in zip(frames.shape[1:3], MOST, strict=True))
    return np.ascontiguousarray(frames[:, max(rows, 0) :, max(columns, 0) :][:, : MOST[0], : MOST[1]])


def measure(output, source, task):
    _, height, width, _ = source.shape
    lines = tuple(range(8, height - 7)), tuple(range(8, width - 7))  # no tile is smaller than that
    meter = SourceMeter(SourceChecks(task=task, seam_rows_px=lines[0], seam_columns_px=lines[1]))
    for after, before in zip(output, source, strict=True):
        meter.add(after, before)
    values = {}
    for name, worst in WORST.items():
        known = [getattr(frame, name) for frame in meter.frames if getattr(frame, name) is not None]
        if known:
            values[name] = worst(known)
    if "contrast" in values:
        values["contrast_most"] = max(frame.contrast for frame in meter.frames if frame.contrast is not None)
    return {name: round(value, 4) if math.isfinite(value) else "inf" for name, value in values.items()}


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
    """Return faults by name, each in a copy of a clean result of one model."""
    middle = len(output) // 2
    faults = {}
    for name, change in {
        "black frame": lambda frame: frame * 0,
        "flat frame": lambda frame: np.broadcast_to(frame.mean(axis=(0, 1)), frame.shape),
        "another frame": lambda frame: frame[::-1, ::-1],
        "16 levels brighter": lambda frame: frame + 16.0,
        "32 levels brighter": lambda frame: frame + 32.0,
        "red and blue exchanged": lambda frame: frame[..., ::-1],
        "limited range for full": lambda frame: (frame - 16.0) * 255 / 219,
        "tile 8 levels brighter": lambda frame: (
            frame + 8.0 * (np.arange(frame.shape[1]) > frame.shape[1] // 2)[:, None]
        ),
        "tile 16 levels brighter": lambda frame: (
            frame + 16.0 * (np.arange(frame.shape[1]) > frame.shape[1] // 2)[:, None]
        ),
        "tile of zeros at its edge": lambda frame: (
            frame * (np.arange(frame.shape[1]) // 2 != frame.shape[1] // 4)[:, None]
        ),
        "four times as bright": lambda frame: frame * 4.0,
    }.items():
        faulty = output.copy()
        faulty[middle] = np.clip(np.rint(change(output[middle].astype(np.float64))), 0, 255)
        faults[name] = faulty
    return faults


def main():
    catalog = ModelCatalog.default()
    clips = {name: read(*where) for name, where in CLEAN.items() if where[0].is_file()}
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
                frames = noisy(clips["carphone"], FFDNET_NOISE) if "carphone" in clips else None
                if frames is not None:
                    output = session.infer(frames, {"sigma": FFDNET_NOISE})
                    rows["carphone, noise of 25 levels"] = measure(output, frames, spec.task)
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
