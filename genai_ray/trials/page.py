"""The page: whole frames, two of them over each other with a slider, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from datetime import timedelta
from pathlib import Path

from genai_ray.display import format_count
from genai_ray.evaluation.degrade import enlarge
from genai_ray.trials.pictures import JPEG_QUALITY, encode_jpeg, to_8_bits
from genai_ray.trials.run import ModelTrial, Trials

__all__ = ["build_page"]

_SOURCE = "source, bicubic"

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 1280px; margin: 1rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
.pair {{ position: relative; line-height: 0; }} .pair img {{ width: 100%; }}
.pair img + img {{ position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at, 50%)); }}
input[type=range] {{ width: 100%; }}
</style></head><body>
<h1>{title}</h1>
"""

_SCRIPT = """<script>
for (const part of document.querySelectorAll("section")) {
  const [left, right] = part.querySelectorAll("img"), [first, second] = part.querySelectorAll("select");
  const slider = part.querySelector("input");
  const show = () => {
    left.src = pictures[part.dataset.row][first.value]; right.src = pictures[part.dataset.row][second.value];
    part.querySelector(".pair").style.setProperty("--at", slider.value + "%");
  };
  for (const control of [first, second, slider]) control.addEventListener("input", show);
  show();
}
</script></body></html>
"""


def build_page(trials: Trials) -> str:
    """Make one HTML file of the frames of all models, and the table.

    Args:
        trials: What ``try_models`` returned.

    Returns:
        HTML that needs no other file.
    """
    most = max(model.scale for model in trials.models)
    names = [_SOURCE, *(model.model_id for model in trials.models)]
    rows = []
    for row, frame in enumerate(trials.frames):
        shown = [enlarge(frame, most), *(model.results[row] for model in trials.models)]
        addresses = [base64.b64encode(encode_jpeg(to_8_bits(picture))).decode() for picture in shown]
        rows.append("[" + ",".join(f'"data:image/jpeg;base64,{address}"' for address in addresses) + "]")
    models = format_count(len(trials.models), "model")
    text = _HEAD.format(title=f"{html.escape(Path(trials.source).name)} with {models}")
    text += _table(trials.models)
    text += f"<p>Frames are stored as JPEG of quality {JPEG_QUALITY}; results of all sizes are shown at one size.</p>\n"
    for row, seconds in enumerate(trials.times_s):
        text += (
            f'<section data-row="{row}"><h2>{seconds:.2f} s</h2>'
            f"<label>left {_choice(names, 0)}</label> <label>right {_choice(names, len(names) - 1)}</label>"
            '<div class="pair"><img alt="left"><img alt="right"></div>'
            '<input type="range" min="0" max="100" value="50" step="0.1" aria-label="border"></section>\n'
        )
    return f"{text}<script>const pictures = [{','.join(rows)}];</script>\n{_SCRIPT}"


def _choice(names: list[str], chosen: int) -> str:
    options = (
        f'<option value="{at}"{" selected" if at == chosen else ""}>{html.escape(name)}</option>'
        for at, name in enumerate(names)
    )
    return f"<select>{''.join(options)}</select>"


def _table(models: tuple[ModelTrial, ...]) -> str:
    head = ("model", "scale", "s per frame", "whole video", "self-test", "without a model")
    rows = (
        (
            html.escape(model.model_id),
            f"x{model.scale}",
            f"{model.seconds_per_frame:.3f}",
            str(timedelta(seconds=round(model.expected_s))),
            "" if model.self_test_db is None else f"{model.self_test_db:.2f} dB",
            "" if model.baseline_db is None else f"{model.baseline_db:.2f} dB",
        )
        for model in models
    )
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>\n"
