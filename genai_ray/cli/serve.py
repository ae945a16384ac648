"""``genai-ray serve``: the endpoint, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["serve"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def serve(
    profile: Annotated[
        str, typer.Option(help="A packaged profile (default, cluster), or the path of a YAML file.")
    ] = "default",
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port for HTTP. [default: 8000]", show_default=False, min=1, max=65535)
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Port for gRPC, 0 for none. [default: 8001]", show_default=False, min=0, max=65535),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Offer these models of the catalog only. [default: every one]", show_default=False),
    ] = None,
    model_repository: Annotated[
        str | None,
        typer.Option(
            help="Folder, or URI of one, with NAME.onnx and NAME/1/model.onnx, offered as well.",
            show_default=False,
            metavar="DIR_OR_URI",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Processes that take requests. [default: 2]", show_default=False, min=1)
    ] = None,
    max_memory_bytes: Annotated[
        int | None, typer.Option(help="Budget of the model cache.", show_default=False, min=1)
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Name of the model cache. [default: default]", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Most seconds for one request. [default: 60]", show_default=False)
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that requests must bear.", show_default=False)
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may call; * for all.", show_default=False)
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host that requests may name beside this machine's names and --host; .lan allows all below it.",
            show_default=False,
        ),
    ] = None,
    access_log: Annotated[
        Path | None, typer.Option(help="File that gets one line of JSON for each HTTP request.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join. [default: RAY_ADDRESS, or one of its own]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON when requests are taken.")] = False,
) -> None:
    """Serve models over HTTP and gRPC (Open Inference Protocol v2); they are loaded by their first request, and evicted when bytes are short."""
    from genai_ray.catalog import load_serve_profile
    from genai_ray.serve.deployment.endpoint import Endpoint, read_token

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "models": tuple(model) if model else None,
        "model_repository": model_repository,
        "num_replicas": replicas,
        "max_memory_bytes": max_memory_bytes,
        "cache": cache,
        "request_timeout_s": timeout,
        "token_sha256": read_token(token_file) if token_file else None,
        "cors_origins": tuple(cors_origin) if cors_origin else None,
        "allowed_hosts": tuple(allowed_host) if allowed_host else None,
        "access_log": str(access_log.resolve()) if access_log else None,
    }
    chosen = load_serve_profile(profile).override(**{name: value for name, value in given.items() if value is not None})
    if grpc_port is not None:
        chosen = chosen.override(grpc_port=grpc_port or None)
    endpoint = Endpoint(chosen, address=address)
    for warning in endpoint.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells what befell its processes, it prints it
            endpoint.start()
        for note in endpoint.notes:
            print(f"note: {note}", file=sys.stderr)
        if as_json:
            print(
                json.dumps({"http": endpoint.url, "grpc": endpoint.grpc_address, "models": endpoint.model_names}),
                flush=True,
            )
        else:
            grpc = f" and gRPC {endpoint.grpc_address}" if endpoint.grpc_address else ""
            print(f"serving {len(endpoint.model_names)} models at {endpoint.url}{grpc}; Ctrl-C ends", flush=True)
        endpoint.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # once is enough: what is being computed is finished first
        endpoint.stop()
