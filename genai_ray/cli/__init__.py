"""The command line: parses, calls, prints; no logic.

Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 interrupted (SIGINT), 143 ended (SIGTERM).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any

import typer

from genai_ray import __version__
from genai_ray.cli import cache, compare, doctor, enhance, models, serve, tune, validate
from genai_ray.errors import ConfigError, FrameNotFoundError, GenAIRayError, InvalidInputError, ModelNotFoundError

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""What Typer makes of ctrl-C."""

_TERMINATED = 143
"""What a shell makes of SIGTERM."""

_WRONG_USE = 2

_terminated = threading.Event()
"""Whether SIGTERM has come."""

_MISUSES = (ConfigError, FrameNotFoundError, InvalidInputError, ModelNotFoundError)

_UsageError: Any = typer.BadParameter.__base__
"""The root of what Typer raises for words that it cannot parse; it exports only this class of them."""

app = typer.Typer(
    name="genai-ray",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Better videos with AI models, on Ray.",
)
app.command("enhance", epilog=enhance.EXAMPLES, add_help_option=False)(enhance.enhance)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("serve")(serve.serve)
app.command("validate", epilog=validate.EXAMPLES)(validate.validate)
app.command("doctor")(doctor.doctor)
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
    debug: Annotated[bool, typer.Option("--debug", help="Before a command: print tracebacks of errors.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # text that the terminal cannot show
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False, prog_name="genai-ray") or 0
        sys.stdout.flush()
    except GenAIRayError as exc:
        _tell(exc)
        code = _WRONG_USE if isinstance(exc, _MISUSES) else 1
    except _UsageError as exc:
        code = _tell_usage(exc)
    except typer.Abort:  # what Typer makes of the end of its input
        code = _INTERRUPTED
    except SystemExit as exc:
        # If the signal comes while Ray waits, Ray raises SystemExit(1) instead of what the handler raised.
        code = _TERMINATED if _terminated.is_set() else exc.code
    except OSError as exc:
        if _is_debugging():
            raise
        code = _tell_os_error(exc)
    except Exception as exc:
        if _is_debugging():
            raise
        text = f"{type(exc).__name__}: {exc}".splitlines()[0]
        print(f"error: a fault of genai-ray: {text}. Run `genai-ray --debug ...` and report it.", file=sys.stderr)
        raise SystemExit(1) from None
    if code == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    elif code == _TERMINATED:
        print("ended by SIGTERM", file=sys.stderr)
    raise SystemExit(code)


def _is_debugging() -> bool:
    return "--debug" in sys.argv


def _tell(error: GenAIRayError) -> None:
    """Print an error; with ``--json`` also as one line of JSON on stdout, so that a script need not read stderr."""
    if "--json" in sys.argv:
        told = {"class": type(error).__name__, "got": error.got, "allowed": error.allowed, "do": error.do}
        print(json.dumps({"error": {"message": str(error), **told}}))
    if _is_debugging():
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)


def _tell_os_error(error: OSError) -> int:
    """Print what the system refused, such as a write to a full disk; nothing if the reader of a pipe has gone."""
    if not isinstance(error, BrokenPipeError):
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
    # Standard output may be what failed: the interpreter would try again to write the rest when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _tell_usage(error: Any) -> int:
    """Print what is wrong with the words of the command line, and where to find the right ones; or only the help."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its text was printed when it was raised
        print(error.format_message(), end="", file=sys.stderr)
        return _WRONG_USE
    command = error.ctx.command_path if error.ctx is not None else "genai-ray"
    _tell(ConfigError(error.format_message().rstrip(".?"), do=f"`{command} --help` lists what is allowed."))
    return _WRONG_USE


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second signal is ignored: cleanup finishes first
    _terminated.set()
    raise SystemExit(_TERMINATED)
