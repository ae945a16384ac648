"""``genai-ray compare``: which model suits a video, and how long it would take."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from genai_ray.cli.choices import Backend, Precision, ShownTask, check_inputs, flag, option, parse_params, words
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.cli.targets import check_targets, write_target
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision, ModelPreset, ModelTask

if TYPE_CHECKING:
    from genai_ray.trials import Trials

__all__ = ["EXAMPLES", "compare"]

EXAMPLES = """The models of the three presets, or some of your choice at two times:

genai-ray compare in.mp4
genai-ray compare in.mp4 --models websr-x2-s,waifu2x-x2 --at 3s,10s"""
"""At the end of the help."""


def compare(
    video: Annotated[str, typer.Argument(help="A video, as path or URI.", show_default=False)],
    models: Annotated[
        str | None,
        option(
            help="Ids or .onnx files, with commas between them.",
            metavar="A,B,C",
            default="those of the presets fast, balanced and best",
        ),
    ] = None,
    task: Annotated[
        ShownTask, option(help=f"What the presets are for: {words(ShownTask)}.", metavar="NAME", default="upscaling")
    ] = ShownTask.UPSCALING,
    at: Annotated[
        str | None,
        option(help="Times of the frames, such as 3s,10s.", metavar="TIMES", default="a quarter, half, three quarters"),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", help="Folder of sheet.png and page.html.", metavar="FOLDER", default="VIDEO-compare"),
    ] = None,
    param: Annotated[
        list[str] | None, option(help="A param of the models, such as sigma=15.", metavar="NAME=VALUE")
    ] = None,
    backend: Annotated[
        Backend, option(help=f"Runs the models: {words(Backend)}.", metavar="NAME", default="onnx")
    ] = Backend.ONNX,
    precision: Annotated[
        Precision, option(help=f"Number format: {words(Precision)}.", metavar="NAME", default="fp32")
    ] = Precision.FP32,
    device: Annotated[str, option(help="Device: auto, cpu or cuda.", metavar="NAME", default="auto")] = "auto",
    overwrite: Annotated[bool, flag("--overwrite", "-y", help="Replace an existing sheet and page.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress and no table.")] = False,
) -> None:
    """Show a few frames of a video through several models, with their speed and a self-test.

    The self-test shrinks each frame, enlarges it by the model, and measures the PSNR from the frame; for denoising it
    adds noise instead.
    """
    from genai_ray.catalog import ModelCatalog
    from genai_ray.enhance import EnhanceOptions
    from genai_ray.trials import build_page, draw_sheet, try_models

    check_inputs([video])
    folder = output if output is not None else Path(f"{Path(video).stem}-compare")
    sheet, page = folder / "sheet.png", folder / "page.html"
    check_targets({"the sheet": sheet, "the page": page}, [video], may_replace=overwrite)
    catalog = ModelCatalog.default()
    chosen = dict.fromkeys(catalog.preset(ModelTask(task), preset) for preset in ModelPreset)
    trials = try_models(
        video,
        [name.strip() for name in models.split(",") if name.strip()] if models is not None else list(chosen),
        at_s=_parse_times(at) if at is not None else None,
        options=EnhanceOptions(
            backend=ModelBackend(backend),
            precision=ModelPrecision(precision),
            device=device,
            params=parse_params(param, "--param"),
        ),
        on_model=None if quiet else lambda name: print(f"trying {name}", file=sys.stderr),
    )
    write_target(sheet, draw_sheet(trials))
    write_target(page, build_page(trials).encode(errors="backslashreplace"))  # names need not be UTF-8
    if as_json:
        print(json.dumps(trials.to_dict() | {"sheet": str(sheet), "page": str(page)}, allow_nan=False))
    elif not quiet:
        _print(trials, wide_console())
        print(f"{sheet}\n{page}")


def _parse_times(words: str) -> list[float]:
    found = [re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*s?\s*", word) for word in words.split(",")]
    if not all(found):
        raise ConfigError(f"--at {words}", "seconds with commas between them, such as 3s,10.5s")
    return [float(match[1]) for match in found if match is not None]


def _print(trials: Trials, console: Console) -> None:
    table = Table(box=None)
    table.add_column("model", no_wrap=True)
    for name in ("scale", "s per frame", "whole video", "self-test", "without a model"):
        table.add_column(name, justify="right", overflow="fold")
    for model in trials.models:
        add_row(
            table,
            model.model_id,
            f"x{model.scale}",
            f"{model.seconds_per_frame:.3f}",
            str(timedelta(seconds=round(model.expected_s))),
            "" if model.self_test_db is None else f"{model.self_test_db:.2f} dB",
            "" if model.baseline_db is None else f"{model.baseline_db:.2f} dB",
        )
    console.print(table)
