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
from genai_ray.cli.targets import check_targets, write_pair
from genai_ray.display import format_bytes, format_count

if TYPE_CHECKING:
    from genai_ray.catalog import ModelSpec
    from genai_ray.evaluation import EvaluationReport, ModelEvaluation

__all__ = ["app"]

_EVALUATE_EXAMPLES = """Every model on the packaged clips, or two on frames of your own:

genai-ray models evaluate
genai-ray models evaluate websr-x2-l waifu2x-x2 --reference original.mp4"""

_QUANTIZE_EXAMPLES = """INT8 for the videos of one film:

genai-ray models quantize esrgan-2x --clip film.mp4 -o esrgan-film.onnx
genai-ray enhance film.mp4 -o large.mp4 -m esrgan-film.onnx"""

Model = Annotated[str, typer.Argument(help="Id or alias of a model.", show_default=False)]

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Models: list, show, evaluate, quantize, inspect, pull.")


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
        size = "" if spec.size_bytes is None else format_bytes(spec.size_bytes)
        cells = [spec.model_id, spec.task.value, f"x{spec.scale}", spec.licence, size]
        table.add_row(*cells, *(_describe_evaluation(evaluated.get(spec.model_id)) if evaluated else ()))
    wide_console().print(table)


@app.command("show", cls=Command)
def show_model(model: Model, as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False) -> None:
    """Show the catalog entry of a model."""
    from genai_ray.catalog import ModelCatalog

    _print_spec(ModelCatalog.default().get(model), as_json)


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


@app.command("quantize", cls=Command, epilog=_QUANTIZE_EXAMPLES)
def quantize(
    model: Annotated[str, typer.Argument(help="Id, alias or .onnx file of a model.", show_default=False)],
    clip: Annotated[str, option(help="A video like those that the model is for.", metavar="FILE")],
    output: Annotated[Path, option("--output", "-o", help="The new model, an .onnx file.", metavar="FILE")],
    min_quality_db: Annotated[
        float | None, option(help="Least PSNR from FP32, from 40 to 120 dB.", metavar="DB", default="40")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "-y", help="Replace existing files.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
) -> None:
    """Convert a model to INT8 for your videos: a model file of its own, with a spec beside it.

    Frames of the clip show the ranges of the model's numbers; others tell what is lost. A result that agrees with FP32
    by less than `--min-quality-db` is refused. `enhance -m FILE` computes with it, by ONNX Runtime on processors.
    """
    from genai_ray.quantization import quantize_model

    check_inputs([clip])
    spec_file = output.with_suffix(".yaml")
    files = {"--output": output} if spec_file == output else {"--output": output, "the spec": spec_file}
    check_targets(files, [clip, model], may_replace=overwrite)
    made = quantize_model(model, clip, output.name, min_quality_db=min_quality_db)
    write_pair(output, made.data, spec_file, made.spec_text().encode())
    if as_json:
        print(json.dumps(made.to_dict() | {"output": str(output)}, allow_nan=False))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    sizes = f"{format_bytes(made.fp32_bytes)} -> {format_bytes(len(made.data))}"
    add_row(table, "model", f"{made.model_id} -> {output}, {sizes}")
    add_row(table, "frames", f"{made.frames} to convert, {made.frames_measured} others to measure")
    add_row(table, "agrees", f"{made.quality_db:.1f} dB with FP32, {made.worst_frame_db:.1f} dB in the worst frame")
    add_row(table, "speed", f"{made.ms:.3g} ms for a part of a frame, FP32 takes {made.fp32_ms:.3g}")
    if made.openvino_ms is not None:
        there = f"{made.openvino_ms:.3g} ms, and agrees by {made.openvino_db:.1f} dB: enhance --backend openvino"
        add_row(table, "in OpenVINO", there)
    wide_console().print(table)
    if made.ms >= made.fp32_ms:
        print("INT8 is not faster than FP32 for this model on this machine.", file=sys.stderr)


@app.command("inspect", cls=Command)
def inspect(
    file: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False,
) -> None:
    """Find out what an .onnx file takes and gives, and print a spec to save as NAME.yaml beside it."""
    from genai_ray.inspection import inspect_model

    _print_spec(inspect_model(file), as_json)


def _print_spec(spec: ModelSpec, as_json: bool) -> None:
    from genai_ray.catalog import dump_spec

    print(json.dumps(spec.model_dump(mode="json")) if as_json else dump_spec(spec), end="\n" if as_json else "")


def _print_report(report: EvaluationReport) -> None:
    table = Table(box=None)
    for name in report.header:
        is_text = name in ("task", "model")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "model", overflow="fold")
    for cells in report.rows():
        add_row(table, *cells)
    wide_console().print(table)
    print(f"{format_count(report.frames, 'frame')} of {report.reference}, on {report.device}, {report.elapsed_s:.0f} s")
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
