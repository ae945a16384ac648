"""What INT8 gains and loses: ``quantize_model`` of each packaged model that can be converted, with the packaged clip.

int8_speed.py [MODEL ...]: milliseconds for a part of 256x256 pixels with all cores, the fastest of some turns, and dB
from FP32 on frames that were not used to convert."""

import os
import sys

from common import ROOT, keep

from genai_ray import ModelCatalog, errors
from genai_ray.quantization import TASKS, quantize_model

CLIP = ROOT / "samples" / "bigbuckbunny-360p.mp4"
HEAVY = ("realesrgan-x4plus", "realesrgan-x4plus-anime")
"""Models that take seconds for a part of a frame, and minutes to convert: only if they are named."""


def main(*models: str) -> None:
    catalog = ModelCatalog.default()
    found: dict[str, object] = {"load_average": os.getloadavg()[0], "clip": CLIP.name}
    rows = []
    for model_id in models or [one for one in catalog.ids() if one not in HEAVY]:
        spec = catalog.get(model_id)
        if spec.url is not None or spec.task not in TASKS:
            continue
        try:
            made = quantize_model(model_id, CLIP, "int8.onnx")
            found[model_id] = made.to_dict() | {"clip": CLIP.name, "gain": made.fp32_ms / made.ms}
            text = f"{made.fp32_ms:8.1f} -> {made.ms:8.1f} ms, {made.quality_db:.1f} dB"
        except errors.ModelLoadError as exc:
            found[model_id] = {"refused": str(exc).replace(str(CLIP), CLIP.name)}
            text = str(exc)
        rows.append((model_id, text))
        print(rows[-1], flush=True)
    keep("int8_speed", found, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
