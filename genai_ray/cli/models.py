"""``genai-ray models``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from genai_ray.cli.choices import flag
from genai_ray.cli.help import Command, CommandGroup
from genai_ray.cli.tables import wide_console

__all__ = ["app"]

Model = Annotated[str, typer.Argument(help="Id or alias of a model.", show_default=False)]

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Models: list, show, inspect, pull.")


@app.command("list", cls=Command)
def list_models(as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False) -> None:
    """List every model of the catalog; `genai-ray models show ID` says what one is."""
    from genai_ray.catalog import ModelCatalog

    catalog = ModelCatalog.default()
    specs = [catalog.get(model_id) for model_id in catalog.ids()]
    if as_json:
        print(json.dumps([spec.model_dump(mode="json") for spec in specs]))
        return
    table = Table(box=None)
    table.add_column("id", no_wrap=True)
    for name in ("task", "scale", "licence"):
        table.add_column(name, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for spec in specs:
        table.add_row(spec.model_id, spec.task.value, f"x{spec.scale}", spec.licence, _describe_size(spec.size_bytes))
    wide_console().print(table)


@app.command("show", cls=Command)
def show_model(model: Model, as_json: Annotated[bool, flag("--json", help="One line of JSON.")] = False) -> None:
    """Show the catalog entry of a model."""
    from genai_ray.catalog import ModelCatalog, dump_spec

    spec = ModelCatalog.default().get(model)
    print(json.dumps(spec.model_dump(mode="json")) if as_json else dump_spec(spec), end="\n" if as_json else "")


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


def _describe_size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
