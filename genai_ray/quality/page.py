"""The HTML of a ``QualityReport``: one file with its styles, curves (SVG) and pictures (PNG) inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.display import format_count
from genai_ray.quality.planes import reduce_frame
from genai_ray.quality.scores import CandidateScores, WorstFrame, has_durations
from genai_ray.types import full_range
from genai_ray.video import encode_png

__all__ = ["build_page", "build_table"]

Rows: TypeAlias = Sequence[tuple[str, str, Sequence[str]]]
"""Definition of the metric, how it was pooled, and the number of each candidate, of each line."""

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")

MAX_POINTS = 1000
"""Points of a curve; of a longer clip, each is the lowest value of several frames."""

DIFFERENCE_GAIN = 8
"""Differences are shown so many times as large, on grey."""

MAX_PICTURE_PX = 640
"""Longest side of a picture on the page: larger frames are reduced by the mean of whole blocks of pixels."""

_WIDTH, _HEIGHT, _MARGIN = 900, 180, 56
_LABEL = 260
"""Room for the words right of a point."""
_TOP, _INFINITE = 8, 20
"""Where the curve's highest place is, and how much lower the largest finite number is if others are infinite."""


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse}th,td{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}
td.number{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1em 0}svg{width:100%;height:auto}
.frames{display:grid;grid-template-columns:repeat(3,1fr);gap:4px}.frames img{width:100%}
svg text{font:11px system-ui,sans-serif;fill:#555}small{color:#555}
"""


def build_page(
    reference: str,
    size: tuple[int, int],
    seconds: npt.NDArray[np.float64],
    definitions: Mapping[str, str],
    candidates: Sequence[CandidateScores],
    rows: Rows,
) -> str:
    """Make the page.

    Args:
        reference: Path or URI of the reference.
        size: Its width and height in pixels.
        seconds: (N,): time of each frame, counted from the first one.
        definitions: Definition of each metric, by its name.
        candidates: What was measured.
        rows: The pooled numbers.

    Returns:
        HTML that needs no other file.
    """
    width, height = size
    legend = "".join(
        f'<p><span style="color:{_colour(index)}">&#9644;</span> {html.escape(scores.candidate)}'
        f"{''.join(f'<br><small>{html.escape(note)}</small>' for note in scores.notes)}</p>"
        for index, scores in enumerate(candidates)
    )
    curves = "".join(_build_curves(seconds, candidates, *metric) for metric in definitions.items())
    speeds = ""
    if has_durations(candidates):
        figures = "".join(_build_speeds(candidates, *metric) for metric in definitions.items())
        speeds = f"<h2>Against seconds per frame</h2>{figures}"
    worst = "".join(_build_worst(seconds, definitions, scores) for scores in candidates)
    title = html.escape(reference)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Quality against {title}</h1>"
        f"<p>{format_count(len(seconds), 'frame')} of {width}x{height}</p>{legend}"
        f"{build_table(candidates, rows)}{speeds}<h2>Over time</h2>{curves}<h2>Worst frames</h2>{worst}</body></html>\n"
    )


def build_table(candidates: Sequence[CandidateScores], rows: Rows) -> str:
    """Make the table of pooled numbers.

    Args:
        candidates: What was measured.
        rows: The pooled numbers.

    Returns:
        An HTML table.
    """
    head = "".join(f"<th>{html.escape(scores.candidate)}</th>" for scores in candidates)
    lines = []
    for definition, words, numbers in rows:
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        lines.append(f"<tr><td>{html.escape(definition)}</td><td>{words}</td>{cells}</tr>")
    return f"<table><tr><th>metric</th><th>pooled</th>{head}</tr>{''.join(lines)}</table>"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _build_curves(
    seconds: npt.NDArray[np.float64], candidates: Sequence[CandidateScores], name: str, definition: str
) -> str:
    every = [scores.per_frame[name] for scores in candidates]
    values = np.concatenate(every)
    finite = values[np.isfinite(values)]
    definition = html.escape(definition)
    if finite.size == 0:
        return f"<figure><figcaption>{definition}: infinite in every frame</figcaption></figure>"
    low, high = float(finite.min()), float(finite.max())
    top = _TOP + (_INFINITE if finite.size < values.size else 0)
    scale = (_HEIGHT - 24 - top) / ((high - low) or 1.0)
    end = float(seconds[-1]) or 1.0
    lines = []
    for index, curve in enumerate(every):
        points = [
            (
                f"{_MARGIN + time / end * (_WIDTH - _MARGIN - 8):.1f}",
                f"{top + (high - value) * scale if np.isfinite(value) else _TOP:.1f}",
            )
            for time, value in _thin(seconds, curve)
        ]
        (x, y), *others = points
        mark = f'<circle r="3" cx="{x}" cy="{y}" fill="{_colour(index)}"/>'
        path = " ".join(",".join(point) for point in points)
        line = f'<polyline fill="none" stroke="{_colour(index)}" stroke-width="1.3" points="{path}"/>'
        lines.append(line if others else mark)
    axis = (
        f'<text x="0" y="{top + 6}">{high:.5g}</text><text x="0" y="{_HEIGHT - 22}">{low:.5g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 4}">0 s</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 4}" text-anchor="end">{seconds[-1]:.2f} s</text>'
        f'<path d="M{_MARGIN} 4V{_HEIGHT - 18}H{_WIDTH - 8}" fill="none" stroke="#aaa"/>'
    )
    if top > _TOP:
        axis += (
            f'<text x="0" y="{_TOP + 6}">infinite</text>'
            f'<path d="M{_MARGIN} {_TOP}H{_WIDTH - 8}" fill="none" stroke="#aaa" stroke-dasharray="2 4"/>'
        )
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{definition}">{axis}{"".join(lines)}</svg>'
    return f"<figure><figcaption>{definition}</figcaption>{picture}</figure>"


def _build_speeds(candidates: Sequence[CandidateScores], name: str, definition: str) -> str:
    """Draw the number of each candidate over the seconds that its frames took to make, on a scale of powers of ten."""
    points = [
        (scores.seconds_per_frame, scores.quality(name), index)
        for index, scores in enumerate(candidates)
        if scores.seconds_per_frame is not None and np.isfinite(scores.quality(name))
    ]
    definition = html.escape(definition)
    if not points:
        return f"<figure><figcaption>{definition}: infinite, or of unknown time</figcaption></figure>"
    times, values = [np.log10(seconds) for seconds, _, _ in points], [value for _, value, _ in points]
    across = (_WIDTH - 2 * _MARGIN - _LABEL) / (max(times) - min(times) or 1.0)
    down = (_HEIGHT - 24 - 2 * _TOP) / (max(values) - min(values) or 1.0)
    marks = []
    for time, (seconds, value, index) in zip(times, points, strict=True):
        x, y = _MARGIN + 8 + (time - min(times)) * across, 2 * _TOP + (max(values) - value) * down
        label = html.escape(f"{candidates[index].candidate.rpartition('/')[2]}, {seconds:.3g} s, {value:.5g}")
        marks.append(
            f'<circle r="4" cx="{x:.1f}" cy="{y:.1f}" fill="{_colour(index)}"/>'
            f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{label}</text>'
        )
    axis = (
        f'<text x="0" y="{2 * _TOP + 6}">{max(values):.5g}</text>'
        f'<text x="0" y="{_HEIGHT - 22}">{min(values):.5g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 4}">{10 ** min(times):.3g} s per frame</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 4}" text-anchor="end">{10 ** max(times):.3g} s per frame</text>'
        f'<path d="M{_MARGIN} 4V{_HEIGHT - 18}H{_WIDTH - 8}" fill="none" stroke="#aaa"/>'
    )
    words = f"{definition} against seconds per frame"
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">{axis}{"".join(marks)}</svg>'
    return f"<figure><figcaption>{words}</figcaption>{picture}</figure>"


def _thin(seconds: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Keep the lowest value of each stretch of time; it is infinite only if all of the stretch is."""
    stretches = np.array_split(np.arange(len(values)), min(len(values), MAX_POINTS))
    lowest = [stretch[np.argmin(values[stretch])] for stretch in stretches]
    return [(float(seconds[index]), float(values[index])) for index in lowest]


def _build_worst(seconds: npt.NDArray[np.float64], metrics: Collection[str], scores: CandidateScores) -> str:
    parts = [f"<h3>{html.escape(scores.candidate)}</h3>"]
    for frame in scores.worst:
        numbers = ", ".join(f"{name} {scores.per_frame[name][frame.index]:.4g}" for name in metrics)
        words = f"frame {frame.index} at {seconds[frame.index]:.3f} s: {numbers}"
        images = "".join(
            f'<img alt="{alt} of frame {frame.index}" src="data:image/png;base64,{_encode(picture)}">'
            for alt, picture in zip(("reference", "candidate", "difference"), _pictures_of(frame), strict=True)
        )
        parts.append(
            f'<figure><figcaption>{words}</figcaption><div class="frames">{images}</div>'
            f"<small>reference, candidate, and their difference {DIFFERENCE_GAIN} times as large"
            f"{_describe_reduction(frame)}</small></figure>"
        )
    return "".join(parts)


def _describe_reduction(frame: WorstFrame) -> str:
    height, width = frame.reference.shape[:2]
    return f"; shown smaller than {width}x{height}" if max(height, width) > MAX_PICTURE_PX else ""


def _pictures_of(frame: WorstFrame) -> list[npt.NDArray[np.uint8]]:
    scale = 255 / full_range(frame.reference.dtype)
    before, after = (picture.astype(np.float64) * scale for picture in (frame.reference, frame.candidate))
    difference = 128 + DIFFERENCE_GAIN * (after - before)
    return [_reduce(np.clip(np.rint(picture), 0, 255).astype(np.uint8)) for picture in (before, after, difference)]


def _reduce(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = -(-max(height, width) // MAX_PICTURE_PX)
    if factor == 1:
        return picture
    whole = picture[: height - height % factor, : width - width % factor]
    return np.rint(reduce_frame(whole, factor)).astype(np.uint8)


def _encode(picture: npt.NDArray[Any]) -> str:
    return base64.b64encode(encode_png(picture)).decode()
