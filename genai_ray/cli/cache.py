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
from genai_ray.display import format_bytes
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision, parse_bytes

if TYPE_CHECKING:
    from genai_ray.cluster import CacheStatus
    from genai_ray.cluster.cache.status import SessionStatus

__all__ = ["app", "draw_status"]

WIDE = 160
"""Columns of a terminal for every figure of a session."""

_FIGURES = ("dB", "predicted", "replicas", "hits", "idle s", "load s", "evicted")
"""Those that a narrower one does not show."""

_FOLDED = {"as": 8, "on": 8, "stays": 6}
"""Columns that may take several lines, and how wide they are at least."""

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
    from genai_ray.cluster import name_nodes

    cache = _join(name, address)
    console = wide_console()
    with Live(console=console, screen=False, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        for number in itertools.count(1):
            live.update(draw_status(cache.status(), name_nodes(), console.width), refresh=True)
            if number == times:
                break
            time.sleep(every)
    if not console.is_terminal:
        print()  # Rich ends the last line on terminals alone


def _show(status: CacheStatus, as_json: bool) -> None:
    from genai_ray.cluster import name_nodes

    if as_json:
        print(json.dumps(status.to_dict() | {"nodes": name_nodes()}))
        return
    console = wide_console()
    console.print(draw_status(status, name_nodes(), console.width))


def draw_status(status: CacheStatus, hosts: Mapping[str, str], width: int) -> Group:
    """Lay out budget and counts, then devices, sessions, and the loads that wait or fail.

    Args:
        status: The cache.
        hosts: Host name by node id.
        width: Columns of the terminal; some figures need ``WIDE``.

    Returns:
        What Rich prints.
    """
    room = f"{format_bytes(status.used_bytes)} of {format_bytes(status.budget_bytes)}"
    head = (
        f"cache {status.name}: {room}, {status.policy}, "
        f"{status.loads} loads ({status.reuses} in used processes), {status.evictions} evictions, "
        f"{status.failures} failures, {status.leases} leases"
    )
    devices = Table("device", "node", "kind", "used", "free", "budget", box=None)
    for device in status.devices:
        sizes = (device.used_bytes, device.free_bytes, device.budget_bytes)
        add_row(devices, device.device, hosts.get(device.node, ""), device.kind, *map(format_bytes, sizes))
    sessions = [_describe_session(entry, status.history.get(entry.model_id, {})) for entry in status.models]
    names = [name for name in sessions[0] if width >= WIDE or name not in _FIGURES] if sessions else []
    models = Table(box=None)
    for name in names:
        models.add_column(name, no_wrap=name not in _FOLDED, overflow="fold", min_width=_FOLDED.get(name))
    for cells in sessions:
        add_row(models, *(cells[name] for name in names))
    below = [
        *(f"{entry.model_id} waiting: {entry.reason}" for entry in status.waiting),
        *(f"{entry.model_id} failing: {entry.reason}" for entry in status.failing),
    ]
    if sessions and width < WIDE:
        below.append(f"not shown for want of {WIDE} columns (--json has them): {', '.join(_FIGURES)}")
    return Group(Text(head), devices, models, *map(Text, below))


def _describe_session(entry: SessionStatus, history: Mapping[str, float]) -> dict[str, str]:
    """Return the cells of a session by the name of their column."""
    agreement = entry.session.get("precision_db")  # of another precision or runtime, from FP32 in ONNX Runtime
    evictions = history.get("evictions")
    return {
        "model": entry.model_id,
        "as": f"{entry.backend} {entry.precision}",
        "dB": "" if agreement is None else f"{float(agreement):.1f}",
        "on": entry.placed_on,
        "state": entry.state,
        "memory": format_bytes(entry.bytes),
        "predicted": format_bytes(entry.predicted_bytes),
        "replicas": str(entry.replicas),
        "hits": str(entry.hits),
        "queue": str(entry.queue),
        "idle s": f"{entry.idle_s:.0f}",
        "load s": f"{entry.load_s:.1f}",
        "evicted": f"{evictions:.0f} (at {history['age_at_eviction_s']:.0f} s)" if evictions else "",
        "stays": " ".join(word for word, is_so in (("pinned", entry.pinned), ("leased", entry.leased)) if is_so),
    }
