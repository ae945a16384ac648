"""``genai-ray cache``: the model cache of a running cluster."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The model cache of a running Ray cluster: status, load, evict.")

Address = Annotated[str | None, typer.Option(help="Ray cluster to join. [default: RAY_ADDRESS, or the one on this machine]", show_default=False)]
Name = Annotated[str, typer.Option(help="Name of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON.")]


def _join(name: str, address: str | None) -> Any:
    from genai_ray.cluster import ModelCache, connect

    connect(address, start=False)
    return ModelCache(name=name, address=address)


@app.command("status")
def status(name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Show what is loaded, and how many bytes it takes."""
    _show(_join(name, address).status(), as_json)


@app.command("load")
def load(
    model: str,
    backend: Annotated[ModelBackend, typer.Option(help="Runtime.")] = ModelBackend.ONNX,
    precision: Annotated[ModelPrecision, typer.Option(help="Number format.")] = ModelPrecision.FP32,
    memory_bytes: Annotated[int | None, typer.Option(help="Bytes to reserve at the least.", show_default=False)] = None,
    name: Name = "default",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Load a model."""
    cache = _join(name, address)
    cache.load_model(model, backend, precision, memory_bytes)
    _show(cache.status(), as_json)


@app.command("evict")
def evict(model: str, name: Name = "default", address: Address = None, as_json: Json = False) -> None:
    """Evict a model."""
    cache = _join(name, address)
    cache.evict(model)
    _show(cache.status(), as_json)


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status))
        return
    print(
        f"cache {status['name']}: {status['used_bytes'] / 1e6:.0f} of {status['budget_bytes'] / 1e6:.0f} MB, "
        f"{status['loads']} loads, {status['evictions']} evictions"
    )
    table = Table("model", "backend", "precision", "device", "state", "MB", "pinned", "frames", box=None)
    for entry in status["models"]:
        session = entry["session"]
        table.add_row(
            entry["model_id"],
            entry["backend"],
            entry["precision"],
            session.get("device", entry["device"]),
            entry["state"],
            f"{entry['bytes'] / 1e6:.0f}",
            "yes" if entry["pinned"] else "",
            str(session.get("inference_count", "")),
        )
    Console().print(table)
