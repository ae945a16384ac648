"""The contact sheet: the same detail of every frame, as every model shows it, in one PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from genai_ray.evaluation.degrade import enlarge
from genai_ray.trials.pictures import to_8_bits
from genai_ray.trials.run import Trials

__all__ = ["draw_sheet"]

DETAIL_PX = (96, 160)
"""(height, width) in pixels of the source of the detail that is shown."""

MIN_CELL_PX = 320
"""Details are shown at least this wide, so that pixels can be seen."""

MARGIN_PX = 8
LABEL_PX = 24


def draw_sheet(trials: Trials) -> bytes:
    """Draw a row for each frame and a column for each model; the first column is the source, enlarged bicubically.

    All details have the scale of the model that enlarges most; others are enlarged bicubically to it.

    Args:
        trials: What ``try_models`` returned.

    Returns:
        A PNG file.
    """
    most = max(model.scale for model in trials.models)
    height, width = (min(side, limit) for side, limit in zip(trials.frames[0].shape[:2], DETAIL_PX, strict=True))
    zoom = -(-MIN_CELL_PX // (width * most))
    cell = (width * most * zoom, height * most * zoom)
    columns = ["source, bicubic", *(model.model_id for model in trials.models)]
    sheet = Image.new(
        "RGB",
        (
            len(columns) * (cell[0] + MARGIN_PX) + MARGIN_PX,
            LABEL_PX + len(trials.frames) * (cell[1] + LABEL_PX + MARGIN_PX) + MARGIN_PX,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=LABEL_PX * 0.6)
    for column, name in enumerate(columns):
        draw.text((MARGIN_PX + column * (cell[0] + MARGIN_PX), MARGIN_PX / 2), name, "black", font)
    for row, (frame, seconds) in enumerate(zip(trials.frames, trials.times_s, strict=True)):
        top = LABEL_PX + row * (cell[1] + LABEL_PX + MARGIN_PX)
        draw.text((MARGIN_PX, top + 2), f"{seconds:.2f} s", "black", font)
        at = _find_detail(frame, (height, width))
        pictures = [(frame, 1), *((model.results[row], model.scale) for model in trials.models)]
        for column, (picture, scale) in enumerate(pictures):
            detail = _cut(picture, at, (height, width), scale)
            shown = np.repeat(np.repeat(to_8_bits(enlarge(detail, most // scale)), zoom, 0), zoom, 1)
            image = Image.fromarray(shown)
            if image.size != cell:  # a model whose scale does not divide the largest one
                image = image.resize(cell, Image.Resampling.BICUBIC)
            sheet.paste(image, (MARGIN_PX + column * (cell[0] + MARGIN_PX), top + LABEL_PX))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _find_detail(frame: npt.NDArray[Any], size: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of the area with the most change between neighbours, on a grid of half its size."""
    grey = frame.mean(axis=-1)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    tops, lefts = (
        range(0, side - length + 1, max(length // 2, 1)) for side, length in zip(grey.shape, size, strict=True)
    )
    return max(
        ((top, left) for top in tops for left in lefts),
        key=lambda at: float(change[at[0] : at[0] + size[0], at[1] : at[1] + size[1]].sum()),
    )


def _cut(picture: npt.NDArray[Any], at: tuple[int, int], size: tuple[int, int], scale: int) -> npt.NDArray[Any]:
    top, left, height, width = (value * scale for value in (*at, *size))
    return picture[top : top + height, left : left + width]
