"""``genai-ray tune``: how fast a model is on this machine in each runtime and number format."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from genai_ray.cli.choices import flag, option
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.errors import ConfigError
from genai_ray.types import ModelPrecision

if TYPE_CHECKING:
    from genai_ray.tune import Measured, Tuning, Way

__all__ = ["EXAMPLES", "tune"]

EXAMPLES = """For frames of 1280x720, and with a result that is nearer to FP32:

genai-ray tune websr-x2-l --size 1280x720
genai-ray tune websr-x2-l --size 1280x720 --min-quality-db 60"""
"""At the end of the help."""


def tune(
    model: Annotated[str, typer.Argument(help="Model id or .onnx file.", show_default=False)],
    size: Annotated[
        str, option(help="Width and height of the frames that go in.", metavar="WxH", default="1280x720")
    ] = "1280x720",
    min_quality_db: Annotated[
        float | None,
        option(help="Least PSNR from FP32 in ONNX Runtime, from 40 to 120 dB.", metavar="DB", default="40"),
    ] = None,
    device: Annotated[str, option(help="Device: auto, cpu or cuda.", metavar="NAME", default="auto")] = "auto",
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Measure a model in every runtime and number format, and say which is the fastest.

    The measurements are remembered for `enhance --backend auto`; this command measures them anew.
    """
    from genai_ray.tune import MIN_QUALITY_DB, check_quality, choose_way, tune_model

    least_db = MIN_QUALITY_DB if min_quality_db is None else min_quality_db
    check_quality(least_db)
    tuning = tune_model(
        model,
        _parse_size(size),
        device=device,
        is_new=True,
        on_way=None if quiet else lambda way: print(f"trying {way}", file=sys.stderr),
    )
    chosen = choose_way([tuning.measured], ModelPrecision.AUTO, least_db)
    exact = choose_way([tuning.measured], ModelPrecision.FP32, least_db)
    if as_json:
        ways = {
            name: {"backend": way.backend.value, "precision": way.precision.value}
            for name, way in (("chosen", chosen), ("chosen_fp32", exact))
        }
        print(json.dumps(tuning.to_dict() | {"min_quality_db": least_db} | ways))
        return
    wide_console().print(_draw(tuning, chosen, exact, least_db))
    (height, width), (part_height, part_width) = tuning.size, tuning.part
    print(f"{tuning.model_id}, {width}x{height} in parts of {part_width}x{part_height}, on {tuning.device}")


def _parse_size(words: str) -> tuple[int, int]:
    """Return (height, width)."""
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", words.strip())
    if found is None:
        raise ConfigError(f"--size {words}", "WIDTHxHEIGHT in pixels, such as 1280x720")
    return int(found[2]), int(found[1])


def _draw(tuning: Tuning, chosen: Way, exact: Way, least_db: float) -> Table:
    table = Table(box=None)
    table.add_column("backend", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    for name in ("frames/s", "dB", "MB", "runs", "batch", "tile"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in tuning.measured:
        way = one.way
        figures = ("",) * 6
        if not one.refused:
            quality = "" if one.precision_db is None else f"{one.precision_db:.0f}"
            tile = "whole" if one.tile_size_px is None else f"{one.tile_size_px}"
            speed, megabytes = f"{tuning.frames_per_s(one):.2f}", f"{one.memory_bytes / 1e6:.0f}"
            figures = (speed, quality, megabytes, f"{one.num_runs}", f"{one.run_batch}", tile)
        add_row(table, way.backend.value, way.precision.value, *figures, _remark(one, chosen, exact, least_db))
    return table


def _remark(one: Measured, chosen: Way, exact: Way, least_db: float) -> str:
    if one.refused:
        return f"refused: {one.refused}"
    if not one.agrees_by(least_db):
        return f"below {least_db:g} dB"
    if one.way == chosen:
        return "chosen"
    return "chosen with --precision fp32" if one.way == exact else ""
