"""``genai-ray models``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from genai_ray.cli.choices import check_inputs, flag, option
from genai_ray.cli.help import Command, CommandGroup
from genai_ray.cli.tables import add_row, wide_console

if TYPE_CHECKING:
    from genai_ray.evaluation import EvaluationReport, ModelEvaluation

__all__ = ["app"]

_EVALUATE_EXAMPLES = """Every model on the packaged clips, or two on frames of your own:

genai-ray models evaluate
genai-ray models evaluate websr-x2-l waifu2x-x2 --reference original.mp4"""

Model = Annotated[str, typer.Argument(help="Id or alias of a model.", show_default=False)]

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Models: list, show, evaluate, inspect, pull.")


@app.command("list", cls=Command)
def list_models(as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False) -> None:
    """List every model of the catalog; `genai-ray models show ID` says what one is.

    After `genai-ray models evaluate`, also what it gained in dB over no model, and its frames/s on this machine.
    """
    from genai_ray.catalog import ModelCatalog

    catalog = ModelCatalog.default()
    specs = [catalog.get(model_id) for model_id in catalog.ids()]
    evaluated = _find_evaluated(catalog.ids())
    if as_json:
        found: dict[str, Any] = {name: one.to_dict() for name, one in evaluated.items()}
        print(json.dumps([spec.model_dump(mode="json") | {"evaluated": found.get(spec.model_id)} for spec in specs]))
        return
    table = Table(box=None, collapse_padding=True)
    table.add_column("id", no_wrap=True)
    for name in ("task", "scale", "licence"):
        table.add_column(name, overflow="fold", min_width=len(name))
    for name in ("size", *(("dB", "frames/s") if evaluated else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for spec in specs:
        cells = [spec.model_id, spec.task.value, f"x{spec.scale}", spec.licence, _describe_size(spec.size_bytes)]
        table.add_row(*cells, *(_describe_evaluation(evaluated.get(spec.model_id)) if evaluated else ()))
    wide_console().print(table)


@app.command("show", cls=Command)
def show_model(model: Model, as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False) -> None:
    """Show the catalog entry of a model."""
    from genai_ray.catalog import ModelCatalog, dump_spec

    spec = ModelCatalog.default().get(model)
    print(json.dumps(spec.model_dump(mode="json")) if as_json else dump_spec(spec), end="\n" if as_json else "")


@app.command("evaluate", cls=Command, epilog=_EVALUATE_EXAMPLES)
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Ids, aliases or .onnx files; by default every model of the catalog.", show_default=False),
    ] = None,
    frames: Annotated[int, option(help="Frames to measure.", metavar="N", default="3")] = 3,
    reference: Annotated[
        str | None,
        option(help="A video whose frames are taken for true.", metavar="FILE", default="the packaged clips"),
    ] = None,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Measure quality, speed and memory of models on frames whose true result is known.

    Frames are made smaller, noisy or dark, or taken away; models bring them back. `models list` shows the results on
    the packaged clips. Takes some minutes for all models.
    """
    from genai_ray.evaluation import evaluate_models

    def tell(model_id: str, done: int, total: int) -> None:
        print(f"measuring {model_id} ({done + 1} of {total})", file=sys.stderr)

    if reference is not None:
        check_inputs([reference])
    report = evaluate_models(models or None, frames=frames, reference=reference, on_model=None if quiet else tell)
    if as_json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        _print_report(report)
    for model_id, error in report.failed.items():
        print(f"failed: {model_id}: {error}", file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


@app.command("pull", cls=Command)
def pull(model: Model) -> None:
    """Download a model that is not packaged into the user's model folder, and print its path."""
    from genai_ray.catalog import ModelCatalog, models_folder, pull_model

    catalog = ModelCatalog.default()
    spec = catalog.get(model)
    if spec.url is None:
        path = catalog.path(spec.model_id)
        print(f"{spec.model_id} needs no download: its file is on this machine", file=sys.stderr)
        print(path)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(spec.model_id, total=spec.size_bytes)
        path = pull_model(
            spec, models_folder(), progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    print(path)


@app.command("inspect", cls=Command)
def inspect(file: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]) -> None:
    """Find out what an .onnx file takes and gives, and print a spec to save as NAME.yaml beside it."""
    from genai_ray.catalog import dump_spec
    from genai_ray.inspection import inspect_model

    print(dump_spec(inspect_model(file)), end="")


def _print_report(report: EvaluationReport) -> None:
    table = Table(box=None)
    for name in report.header:
        is_text = name in ("task", "model")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "model", overflow="fold")
    for cells in report.rows():
        add_row(table, *cells)
    console = wide_console()
    console.print(table)
    count = f"{report.frames} frame{'s' if report.frames > 1 else ''}"
    print(f"{count} of {report.reference}, on {report.device}, {report.elapsed_s:.0f} s")
    if report.without_vmaf:
        print(f"without VMAF: {report.without_vmaf}")
    for model_id, why in report.left_out.items():
        print(f"left out: {model_id}: {why}")


def _find_evaluated(ids: list[str]) -> dict[str, ModelEvaluation]:
    """Return what was measured of models on this machine."""
    from genai_ray.files import cache_folder

    if not (cache_folder() / "evaluated").is_dir():
        return {}
    from genai_ray.evaluation import find_evaluations  # takes a second

    return find_evaluations(ids)


def _describe_evaluation(found: ModelEvaluation | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return "" if found.gain_db is None else f"{found.gain_db:+.2f}", f"{found.frames_per_s:.3g}"


def _describe_size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
