"""What ``--check default`` measures on clean results of every packaged model, for files of every kind.

The ground of its limits. Three frames of each file of ../shared/cases/video, at most 192 x 128 of their middle.
"""

from pathlib import Path

import numpy as np
from common import ROOT, keep

from genai_ray import InferenceSession, ModelCatalog
from genai_ray.enhance.segment.checks import LEAST_SIDE_PX
from genai_ray.errors import VideoError
from genai_ray.quality.source import KEEPS_FRAMES, SourceChecks, SourceMeter
from genai_ray.video import decode_segment, plan_video

CASES = ROOT.parent / "shared" / "cases" / "video"
MOST = (128, 192)
FRAMES = 40
MEASURES = {"colour_shift": max, "block_shift": max, "contrast": min}


def read(path: Path) -> list[np.ndarray]:
    plan = plan_video(path)
    if min(plan.info.width, plan.info.height) < LEAST_SIDE_PX:
        return []
    found = []
    for segment in plan.segments:
        found += [frame.frame for frame in decode_segment(plan, segment, allow_truncated=True)]
        if len(found) >= FRAMES:
            break
    chosen = sorted({0, len(found[:FRAMES]) // 2, len(found[:FRAMES]) - 1})
    height, width = found[0].shape[:2]
    rows, columns = max((height - MOST[0]) // 2, 0), max((width - MOST[1]) // 2, 0)
    return [np.ascontiguousarray(found[i][rows:, columns:][: MOST[0], : MOST[1]]) for i in chosen]


def main() -> None:
    clips = {}
    for path in [*sorted(CASES.iterdir()), ROOT / "samples" / "bigbuckbunny-360p.mp4"]:
        try:
            clips[path.name] = read(path)
        except VideoError as exc:
            print(f"left out: {exc.got[:90]}")
    clips = {name: frames for name, frames in clips.items() if frames}
    catalog = ModelCatalog.default()
    models = {}
    for model_id in catalog.ids():
        spec = catalog.get(model_id)
        if spec.url is not None or spec.task not in KEEPS_FRAMES:
            continue
        worst = {}
        with InferenceSession(model_id) as session:
            for name, frames in clips.items():
                meter = SourceMeter(SourceChecks.for_accidents(spec.task))
                for frame in frames:
                    meter.add(session.infer(frame), frame)
                for measure, pick in MEASURES.items():
                    known = [getattr(one, measure) for one in meter.frames if getattr(one, measure) is not None]
                    if known:
                        found = (round(pick(known), 4), name)
                        worst[measure] = pick(worst.get(measure, found), found)
        models[model_id] = worst
        print(model_id, worst, flush=True)
    rows = [
        (f"{model_id}: {measure}", f"{value} ({name})")
        for model_id, worst in models.items()
        for measure, (value, name) in worst.items()
    ]
    keep("check_limits", {"files": len(clips), "worst": models}, rows)


if __name__ == "__main__":
    main()
