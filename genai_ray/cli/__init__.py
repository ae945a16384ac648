"""The command line: parses, calls, prints; no logic.

Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 interrupted (SIGINT), 143 ended (SIGTERM).
"""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import Annotated

import typer

from genai_ray import __version__
from genai_ray.cli import cache, enhance, models, serve, validate
from genai_ray.errors import ConfigError, GenAIRayError, InvalidInputError, ModelNotFoundError

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""What Typer makes of ctrl-C."""

_TERMINATED = 143
"""What a shell makes of SIGTERM."""

app = typer.Typer(
    name="genai-ray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Better videos with AI models, on Ray.",
)
app.command("enhance")(enhance.enhance)
app.command("serve")(serve.serve)
app.command("validate")(validate.validate)
app.add_typer(models.app, name="models")
app.add_typer(cache.app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"genai-ray {__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # text that the terminal cannot show
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except GenAIRayError as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(2 if isinstance(exc, ConfigError | InvalidInputError | ModelNotFoundError) else 1) from None
    except SystemExit as exc:
        if exc.code == _INTERRUPTED:
            print("interrupted", file=sys.stderr)
        elif exc.code == _TERMINATED:
            print("ended by SIGTERM", file=sys.stderr)
        raise


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second signal is ignored: cleanup finishes first
    raise SystemExit(_TERMINATED)
