"""The figures in the documents are those of the kept results. Each one that is measured names its result:
``49.0<!-- enhance_speed: fps -->`` is ``fps`` of results/enhance_speed.json, ``a/b`` is ``b`` within ``a``: in a list
the first record whose ``model_id`` or ``name`` is ``b``.

Between ``<!-- table: NAME -->`` and ``<!-- end -->`` stands a table of everything in results/NAME.json, for the names
in ``TABLES``.

figures.py: writes every figure anew; run it after a benchmark. A test holds that they are up to date. Of several
values the median counts. Numbers have three digits, or are whole if they have more.
"""

import json
import re
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
FIGURE = re.compile(r"([\w.,-]+)( %)?(<!-- (\w+): (.+?) -->)")
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


@cache
def read(name: str) -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "results" / f"{name}.json").read_text()))


def find(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in records if name in (one.get("model_id"), one.get("name")))


def text_of(value: Any, *, is_share: bool = False) -> str:
    if isinstance(value, str):
        return value
    value = (100 if is_share else 1) * (median(value) if isinstance(value, list) else value)
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if is_share else f"{value:#.3g}".rstrip(".")


def fill(page: str) -> str:
    """Return a page with the figures of the results."""

    def figure(found: re.Match[str]) -> str:
        _, share, source, name, path = found.groups()
        value: Any = read(name)
        for key in path.split("/"):
            value = value[key] if isinstance(value, dict) else find(value, key)
        return text_of(value, is_share=share is not None) + (share or "") + source

    page = TABLE.sub(lambda found: found[1] + TABLES[found[2]](read(found[2])) + found[3], page)
    return FIGURE.sub(figure, page)


def bench_table(bench: dict[str, Any]) -> str:
    """Return the medians of ``genai-ray bench`` as a table, with machine, day and load."""
    lines = [
        "| model | clip | program | frames/s | times plain | seconds in all | dB from plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in bench["cases"].values():
        first = [f"`{case['model']}`", f"{case['frames']} frames of {case['size'][0]}x{case['size'][1]}"]
        for name, side in case["sides"].items():
            cells = ["failed", "", "", ""]
            if not side["failed"]:
                gain = text_of(side["gain"]) if side["db"] is not None and side["gain"] else ""
                quality = "" if side["db"] is None else text_of(side["db"])
                cells = [text_of(side["fps"]), gain, text_of(side["elapsed_s"]), quality]
            lines.append("| " + " | ".join([*first, f"{name} ({side['way']})" if side["way"] else name, *cells]) + " |")
            first = ["", ""]
    runs = f"Medians of {bench['runs']} runs" if bench["runs"] > 1 else "One run"
    about = f"{runs}, {bench['date']}, {bench['machine']['processor']}; load {bench['load']:.2f} at the start"
    busy = ": other programs kept it busy, so that these figures may be chance" if bench["is_busy"] else ""
    return "\n".join(lines) + f"\n\n{about}{busy}.\n"


def int8_table(found: dict[str, Any]) -> str:
    """Return what INT8 gains and loses for each model."""
    lines = [
        "| model | FP32, ms | INT8, ms | times | INT8 in OpenVINO, ms | dB from FP32 |",
        "|---|---|---|---|---|---|",
    ]
    for model_id, one in found.items():
        if isinstance(one, dict) and "ms" in one:
            there = "" if one["openvino_ms"] is None else text_of(one["openvino_ms"])
            cells = [
                text_of(one["fp32_ms"]),
                text_of(one["ms"]),
                text_of(one["gain"]),
                there,
                text_of(one["quality_db"]),
            ]
            lines.append(f"| `{model_id}` | " + " | ".join(cells) + " |")
        elif isinstance(one, dict) and "refused" in one:
            quality = re.search(r"only ([\d.]+) dB", one["refused"])
            lines.append(f"| `{model_id}` | | refused | | | {quality[1] if quality else ''} |")
    about = f"{found['date']}, {found['machine']['cores']} cores of {found['machine']['cpu']}"
    return "\n".join(lines) + f"\n\nMeasured on {about}, load {found['load_average']:.1f} at the start.\n"


def scaling_table(found: dict[str, Any]) -> str:
    """Return how the division of work scales with nodes, and the fitted formula."""
    lines = [
        "| nodes | seconds | efficiency | share of the time that sessions need | ms of the cache for each segment |",
        "|---|---|---|---|---|",
    ]
    for nodes, one in found["nodes"].items():
        shares = [text_of(one[name], is_share=True) + " %" for name in ("efficiency", "share_of_session_time")]
        cells = [nodes, text_of(one["seconds"]), *shares, text_of(one["cache_actor_cpu_ms_per_segment"])]
        lines.append("| " + " | ".join(cells) + " |")
    sizes = f"{found['segments']} * {found['frames_per_segment']} * {found['frame_s']}"
    fitted = (
        f"seconds = ({sizes} + {found['segments']} * {found['per_segment_s']:.3f}) / nodes + {found['fixed_s']:.2f}"
    )
    about = f"{found['date']}, {found['machine']['cores']} cores of {found['machine']['cpu']}"
    load = f"load {found['load_average']:.1f} at the start"
    if found["load_average"] > found["machine"]["cores"] / 4:
        load += ": other programs kept it busy, nodes waited for processors, and the figures say little"
    return "\n".join(lines) + f"\n\nFitted: `{fitted}`. Measured on {about}, {load}.\n"


def first_seconds_table(found: dict[str, Any]) -> str:
    """Return when each step to the first encoded frame is reached, before and after."""
    sides = [side for side in ("before", "now") if side in found]
    lines = ["| " + " | ".join(["", *sides]) + " |", "|" + "---|" * (1 + len(sides))]
    for step, words in found["steps"].items():
        lines.append(f"| {words} | " + " | ".join(f"{median(found[side][step]):,.0f}" for side in sides) + " |")
    for name, words in (("cpu_s", "until the first encoded frame"), ("cpu_s_in_all", "in all")):
        values = " | ".join(f"{median(found[side][name]):.2f}" for side in sides)
        lines.append(f"| CPU seconds of all processes {words} | {values} |")
    return "\n".join(lines) + f"\n\n{_measured_on(found)}\n"


def pipeline_table(found: dict[str, Any]) -> str:
    """Return where the time of ``enhance`` goes around several models."""
    models = found["models"]
    lines = ["| " + " | ".join(["", *(f"`{model}`" for model in models)]) + " |", "|" + "---|" * (1 + len(models))]
    for step, words in found["steps"].items():
        cells = [
            f"{one['task'][step]['cpu_ms']:.2f} ({100 * one['task'][step]['share']:.0f} %)" for one in models.values()
        ]
        lines.append(f"| task: {words} | " + " | ".join(cells) + " |")
    for name, words in found["others"].items():
        lines.append(f"| {words} | " + " | ".join(f"{one[name]:.2f}" for one in models.values()) + " |")
    return "\n".join(lines) + f"\n\n{_measured_on(found)}\n"


def _measured_on(found: dict[str, Any]) -> str:
    cores = found["machine"]["cores"]
    busy = ": other programs kept it busy" if found["load_average"] > cores / 4 else ""
    about = f"{cores} cores of {found['machine']['cpu']}, load {found['load_average']:.1f} at the start"
    return f"Measured on {found['date']}, {about}{busy}."


TABLES = {
    "bench": bench_table,
    "first_seconds": first_seconds_table,
    "int8_speed": int8_table,
    "pipeline_profile": pipeline_table,
    "scaling": scaling_table,
}


if __name__ == "__main__":
    for place in PAGES:
        place.write_text(fill(place.read_text()))
