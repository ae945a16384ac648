"""The command line: parses, calls, prints; no logic.

Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 interrupted (SIGINT), 143 ended (SIGTERM).
"""

from __future__ import annotations

import signal
import sys
import threading
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any

import typer

from genai_ray import __version__
from genai_ray.cli import bench, cache, compare, doctor, enhance, models, scenes, serve, tune, validate, verify
from genai_ray.cli.faults import INTERRUPTED, TERMINATED, tell, tell_stop, tell_usage
from genai_ray.cli.help import Command, CommandGroup

__all__ = ["app", "main"]

_terminated = threading.Event()
"""Whether SIGTERM has come."""

_UsageError: Any = typer.BadParameter.__base__
"""The root of what Typer raises for words that it cannot parse; it exports only this class of them."""

app = typer.Typer(
    name="genai-ray",
    cls=CommandGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Better videos with AI models, on Ray.",
)
app.command("enhance", cls=Command, epilog=enhance.EXAMPLES, add_help_option=False)(enhance.enhance)
app.command("compare", cls=Command, epilog=compare.EXAMPLES)(compare.compare)
app.command("tune", cls=Command, epilog=tune.EXAMPLES)(tune.tune)
app.command("serve", cls=Command)(serve.serve)
app.command("validate", cls=Command, epilog=validate.EXAMPLES)(validate.validate)
app.command("verify", cls=Command, epilog=verify.EXAMPLES)(verify.verify)
app.command("bench", cls=Command, epilog=bench.EXAMPLES)(bench.bench)
app.command("scenes", cls=Command, epilog=scenes.EXAMPLES)(scenes.scenes)
app.command("doctor", cls=Command)(doctor.doctor)
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
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors; also after a command.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # text that the terminal cannot show
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(_without_debug(sys.argv[1:]), standalone_mode=False, prog_name="genai-ray") or 0
        sys.stdout.flush()
    except _UsageError as exc:
        code = tell_usage(exc)
    except typer.Abort:  # what Typer makes of the end of its input
        code = INTERRUPTED
    except SystemExit as exc:
        # If the signal comes while Ray waits, Ray raises SystemExit(1) instead of what the handler raised.
        code = TERMINATED if _terminated.is_set() else exc.code
    except Exception as exc:  # noqa: BLE001 - the process ends with its words
        raise SystemExit(tell(exc)) from None
    tell_stop(code)
    raise SystemExit(code)


def _without_debug(words: list[str]) -> list[str]:
    """Take ``--debug`` out, which may stand anywhere before ``--``; ``faults`` looks for it."""
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != "--debug"] + words[end:]


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second signal is ignored: cleanup finishes first
    _terminated.set()
    raise SystemExit(TERMINATED)
