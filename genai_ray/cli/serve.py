"""``genai-ray serve``: the endpoint, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from genai_ray.cli.choices import flag, option
from genai_ray.display import format_count
from genai_ray.types import parse_bytes

__all__ = ["serve"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def serve(
    profile: Annotated[
        str, typer.Option(help="A packaged profile (default, cluster), or the path of a YAML file.", metavar="NAME")
    ] = "default",
    host: Annotated[str | None, option(help="Address to listen on.", metavar="HOST", default="127.0.0.1")] = None,
    port: Annotated[int | None, option(help="Port for HTTP.", metavar="PORT", default="8000", min=1, max=65535)] = None,
    grpc_port: Annotated[
        int | None, option(help="Port for gRPC, 0 for none.", metavar="PORT", default="8001", min=0, max=65535)
    ] = None,
    model: Annotated[
        list[str] | None,
        option("--model", "-m", help="Offer only these models of the catalog.", metavar="ID", default="all"),
    ] = None,
    model_repository: Annotated[
        str | None,
        option(help="Folder or URI with more models: NAME.onnx or NAME/1/model.onnx.", metavar="DIR_OR_URI"),
    ] = None,
    replicas: Annotated[
        int | None, option(help="Processes that take requests (Ray Serve replicas).", metavar="N", default="2", min=1)
    ] = None,
    max_memory: Annotated[
        str | None, option(help="Budget of a new model cache: 2GB, 512MiB.", default="automatic", metavar="SIZE")
    ] = None,
    cache: Annotated[str | None, option(help="Name of the model cache.", metavar="NAME", default="default")] = None,
    timeout: Annotated[
        float | None, option(help="Most seconds for one request.", metavar="SECONDS", default="60")
    ] = None,
    token_file: Annotated[
        Path | None, option(help="File with the bearer token that requests must have.", metavar="FILE")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, option(help="Origin whose pages may call the endpoint; * for all.", metavar="ORIGIN")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        option(help="Further host that requests may name; .lan allows every host below it.", metavar="HOST"),
    ] = None,
    access_log: Annotated[
        Path | None, option(help="File that gets one line of JSON for each HTTP request.", metavar="FILE")
    ] = None,
    address: Annotated[
        str | None, option(help="Ray cluster to join.", metavar="HOST:PORT", default="RAY_ADDRESS, or one of its own")
    ] = None,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON when the endpoint takes requests.")] = False,
) -> None:
    """Serve models over HTTP and gRPC (Open Inference Protocol v2); the first request of a model loads it."""
    from genai_ray.catalog import ServeProfile
    from genai_ray.serve.deployment.endpoint import Endpoint, read_token

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "models": tuple(model) if model else None,
        "model_repository": model_repository,
        "num_replicas": replicas,
        "max_memory_bytes": parse_bytes(max_memory, "--max-memory") if max_memory is not None else None,
        "cache": cache,
        "request_timeout_s": timeout,
        "token_sha256": read_token(token_file) if token_file else None,
        "cors_origins": tuple(cors_origin) if cors_origin else None,
        "allowed_hosts": tuple(allowed_host) if allowed_host else None,
        "access_log": str(access_log.resolve()) if access_log else None,
    }
    chosen = ServeProfile.load(profile).override(**{name: value for name, value in given.items() if value is not None})
    if grpc_port is not None:
        chosen = chosen.override(grpc_port=grpc_port or None)
    endpoint = Endpoint(chosen, address=address)
    for warning in endpoint.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with redirect_stdout(sys.stderr):  # Ray prints what happens to its processes
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
            models = format_count(len(endpoint.model_names), "model")
            print(f"serving {models} at {endpoint.url}{grpc}; Ctrl-C ends", flush=True)
        endpoint.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the second signal is ignored: running requests finish first
        endpoint.stop()
