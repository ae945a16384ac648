"""The figures in the documents are those of the kept results. Each one that is measured names its result:
``49.0<!-- enhance_speed: fps -->`` is ``fps`` of results/enhance_speed.json, ``a/b`` is ``b`` within ``a``: in a list
the first record whose ``model_id`` or ``name`` is ``b``.

Between ``<!-- table: bench -->`` and ``<!-- end -->`` stands a table of all that ``genai-ray bench`` has measured.

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
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FIGURE = re.compile(r"([\w.,-]+)( %)?(<!-- (\w+): (.+?) -->)")
TABLE = re.compile(r"(<!-- table: bench -->\n).*?(<!-- end -->\n)", re.DOTALL)


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

    page = TABLE.sub(lambda found: found[1] + table_of(read("bench")) + found[2], page)
    return FIGURE.sub(figure, page)


def table_of(bench: dict[str, Any]) -> str:
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


if __name__ == "__main__":
    for place in PAGES:
        place.write_text(fill(place.read_text()))
