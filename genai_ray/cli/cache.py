"""``genai-ray cache``: the model cache of a running cluster."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from genai_ray.cli.choices import Backend, Precision, flag, option, words
from genai_ray.cli.help import Command, CommandGroup
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision, parse_bytes

if TYPE_CHECKING:
    from genai_ray.cluster import CacheStatus

__all__ = ["app"]

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="The model cache of a running Ray cluster.")

Model = Annotated[str, typer.Argument(help="Id, alias or .onnx file of a model.", show_default=False)]
Address = Annotated[
    str | None,
    option(help="Ray cluster to join.", metavar="HOST:PORT", default="RAY_ADDRESS, or the one on this machine"),
]
Name = Annotated[str, typer.Option("--cache", help="Name of the cache.", metavar="NAME")]
Json = Annotated[bool, flag("--json", help="Print one line of JSON.")]


def _join(name: str, address: str | None) -> Any:
    """Join a cache; a missing one is an error."""
    from genai_ray.cluster import ModelCache, cache_names, connect

    connect(address, start=False)
    if name not in (names := cache_names()):
        raise ConfigError(
            f"no cache {name!r} in this cluster",
            ", ".join(names),
            "Start one by a job, an endpoint or `genai-ray cache load`.",
        )
    return ModelCache(name=name, address=address)


@app.command("status", cls=Command)
def status(name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Show the loaded models and their bytes."""
    _show(_join(name, address).status(), as_json)


@app.command("load", cls=Command)
def load(
    model: Model,
    backend: Annotated[
        Backend, option(help=f"Runs the model: {words(Backend)}.", metavar="NAME", default="onnx")
    ] = Backend.ONNX,
    precision: Annotated[
        Precision, option(help=f"Number format: {words(Precision)}.", metavar="NAME", default="fp32")
    ] = Precision.FP32,
    memory: Annotated[
        str | None, option(help="Least memory to reserve for it: 2GB, 512MiB.", default="as measured", metavar="SIZE")
    ] = None,
    max_memory: Annotated[
        str | None, option(help="Budget of a new cache: 2GB, 512MiB.", default="automatic", metavar="SIZE")
    ] = None,
    name: Name = "default",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Load a model; makes the cache if there is none."""
    from genai_ray.cluster import ModelCache, connect

    num_bytes = parse_bytes(memory, "--memory") if memory is not None else None
    budget = parse_bytes(max_memory, "--max-memory") if max_memory is not None else None
    connect(address, start=False)
    cache = ModelCache(budget, name=name, address=address)
    cache.load_model(model, ModelBackend(backend), ModelPrecision(precision), num_bytes)
    _show(cache.status(), as_json)


@app.command("evict", cls=Command)
def evict(model: Model, name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Evict a model."""
    cache = _join(name, address)
    cache.evict(model)
    _show(cache.status(), as_json)


@app.command("pin", cls=Command)
def pin(model: Model, name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Keep a loaded model until it is unpinned."""
    cache = _join(name, address)
    cache.pin(model)
    _show(cache.status(), as_json)


@app.command("unpin", cls=Command)
def unpin(model: Model, name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Allow a pinned model to be evicted again."""
    cache = _join(name, address)
    cache.unpin(model)
    _show(cache.status(), as_json)


@app.command("shutdown", cls=Command)
def shutdown(
    name: Name = "default",
    address: Address = None,
    yes: Annotated[bool, flag("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End the cache and its sessions, for all jobs and endpoints that use it."""
    cache = _join(name, address)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"cache {name!r} would end for everybody", do="Pass --yes.")
        if not typer.confirm(f"End cache {name!r} for everybody?"):
            raise typer.Exit(1)
    cache.shutdown()
    print(f"cache {name!r} has ended", file=sys.stderr)


@app.command("watch", cls=Command)
def watch(
    name: Name = "default",
    address: Address = None,
    every: Annotated[float, typer.Option(help="Seconds between two updates.", metavar="SECONDS", min=0.1)] = 1.0,
    times: Annotated[int, typer.Option(help="Number of updates; 0 for no end.", metavar="N", min=0)] = 0,
) -> None:
    """Show the cache as it changes, until Ctrl-C."""
    cache = _join(name, address)
    with Live(console=wide_console(), screen=False, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        for number in itertools.count(1):
            live.update(_draw(cache.status()), refresh=True)
            if number == times:
                break
            time.sleep(every)


def _show(status: CacheStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(status.to_dict()))
    else:
        wide_console().print(_draw(status))


def _draw(status: CacheStatus) -> Group:
    """Lay out budget and counts, then devices, sessions, and the loads that wait or fail."""
    head = (
        f"cache {status.name}: {_mb(status.used_bytes)} of {_mb(status.budget_bytes)} MB, {status.policy}, "
        f"{status.loads} loads ({status.reuses} in used processes), {status.evictions} evictions, "
        f"{status.failures} failures, {status.leases} leases"
    )
    devices = Table("device", "kind", "used MB", "free MB", "budget MB", box=None)
    for device in status.devices:
        sizes = (device.used_bytes, device.free_bytes, device.budget_bytes)
        add_row(devices, device.device, device.kind, *map(_mb, sizes))
    models = Table("model", box=None)
    figures = ("MB", "predicted", "replicas", "hits", "queue", "idle s", "load s", "evicted")
    for column in ("as", "dB", "on", "state", *figures, "stays"):
        models.add_column(column, overflow="fold")
    models.columns[0].no_wrap = True
    for entry in status.models:
        history = status.history.get(entry.model_id, {})
        add_row(
            models,
            entry.model_id,
            f"{entry.backend} {entry.precision}",
            _agreement(entry.session),
            entry.placed_on,
            entry.state,
            _mb(entry.bytes),
            _mb(entry.predicted_bytes),
            *map(str, (entry.replicas, entry.hits, entry.queue)),
            f"{entry.idle_s:.0f}",
            f"{entry.load_s:.1f}",
            _evicted(history),
            " ".join(word for word, is_so in (("pinned", entry.pinned), ("leased", entry.leased)) if is_so),
        )
    troubles = [
        *(f"{entry.model_id} waiting: {entry.reason}" for entry in status.waiting),
        *(f"{entry.model_id} failing: {entry.reason}" for entry in status.failing),
    ]
    return Group(Text(head), devices, models, *map(Text, troubles))


def _agreement(session: Mapping[str, Any]) -> str:
    """Return the PSNR of another precision or runtime from FP32 in ONNX Runtime; nothing if it was not measured."""
    measured = session.get("precision_db")
    return "" if measured is None else f"{float(measured):.1f}"


def _evicted(history: Mapping[str, float]) -> str:
    return f"{history['evictions']:.0f} (at {history['age_at_eviction_s']:.0f} s)" if history.get("evictions") else ""


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f}"
