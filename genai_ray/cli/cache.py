"""``genai-ray cache``: the model cache of a running cluster."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from genai_ray.cli.choices import Backend, Precision, option
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision

if TYPE_CHECKING:
    from genai_ray.cluster import CacheStatus

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The model cache of a running Ray cluster: status, load, evict, watch.")

Address = Annotated[str | None, option(help="Ray cluster to join. [default: RAY_ADDRESS, or the one on this machine]")]
Name = Annotated[str, typer.Option(help="Name of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def _join(name: str, address: str | None, *, make: bool = False) -> Any:
    """Join a cache.

    A missing one is an error unless ``make`` is set: only ``load`` makes a cache, with the default budget.
    """
    from genai_ray.cluster import ModelCache, cache_names, connect

    connect(address, start=False)
    if not make and name not in (names := cache_names()):
        raise ConfigError(
            f"no cache {name!r} in this cluster",
            ", ".join(names) or "there is none",
            "Start one by a job, an endpoint or `genai-ray cache load`.",
        )
    return ModelCache(name=name, address=address)


@app.command("status")
def status(name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Show the loaded models and their bytes."""
    _show(_join(name, address).status(), as_json)


@app.command("load")
def load(
    model: str,
    backend: Annotated[Backend, typer.Option(help="Runtime.")] = Backend.ONNX,
    precision: Annotated[Precision, typer.Option(help="Number format.")] = Precision.FP32,
    memory_bytes: Annotated[int | None, option(help="Fewest bytes to reserve.")] = None,
    name: Name = "default",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Load a model; makes the cache if there is none."""
    cache = _join(name, address, make=True)
    cache.load_model(model, ModelBackend(backend), ModelPrecision(precision), memory_bytes)
    _show(cache.status(), as_json)


@app.command("evict")
def evict(model: str, name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Evict a model."""
    cache = _join(name, address)
    cache.evict(model)
    _show(cache.status(), as_json)


@app.command("watch")
def watch(
    name: Name = "default",
    address: Address = None,
    every: Annotated[float, typer.Option(help="Seconds between two updates.", min=0.1)] = 1.0,
    times: Annotated[int, typer.Option(help="Number of updates; 0 for no end.", min=0)] = 0,
) -> None:
    """Show the cache as it changes, until Ctrl-C."""
    cache = _join(name, address)
    with Live(console=_console(), screen=False, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        for number in itertools.count(1):
            live.update(_draw(cache.status()), refresh=True)
            if number == times:
                break
            time.sleep(every)


def _show(status: CacheStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(status.to_dict()))
    else:
        _console().print(_draw(status))


def _console() -> Console:
    """Return a console of the terminal's width; output to a file or pipe gets room for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _draw(status: CacheStatus) -> Group:
    """Lay out budget and counts, then devices, sessions, and the loads that wait or fail."""
    head = (
        f"cache {status.name}: {_mb(status.used_bytes)} of {_mb(status.budget_bytes)} MB, {status.policy}, "
        f"{status.loads} loads, {status.evictions} evictions, {status.failures} failures, {status.leases} leases"
    )
    devices = Table("device", "kind", "used MB", "free MB", "budget MB", box=None)
    for device in status.devices:
        sizes = (device.used_bytes, device.free_bytes, device.budget_bytes)
        devices.add_row(device.device, device.kind, *map(_mb, sizes))
    models = Table("model", box=None)
    figures = ("MB", "predicted", "replicas", "hits", "queue", "idle s", "load s", "evicted")
    for column in ("as", "on", "state", *figures, "stays"):
        models.add_column(column, overflow="fold")
    models.columns[0].no_wrap = True
    for entry in status.models:
        history = status.history.get(entry.model_id, {})
        models.add_row(
            entry.model_id,
            f"{entry.backend} {entry.precision}",
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
    return Group(head, devices, models, *troubles)


def _evicted(history: Mapping[str, float]) -> str:
    return f"{history['evictions']:.0f} (at {history['age_at_eviction_s']:.0f} s)" if history.get("evictions") else ""


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f}"
