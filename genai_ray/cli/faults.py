"""What a command says when it fails or is stopped, and its exit code.

One sentence on standard error. With ``--json`` also one line of JSON on standard output, whatever happened, so that a
script need not read standard error; if a video leaves through standard output, on standard error too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, TextIO

from genai_ray.errors import ConfigError, FrameNotFoundError, GenAIRayError, InvalidInputError, ModelNotFoundError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "TERMINATED",
    "WRONG_USE",
    "describe_stop",
    "has_word",
    "tell",
    "tell_stop",
    "tell_usage",
]

FAILED = 1
"""Exit code of a job that failed."""

WRONG_USE = 2
"""Exit code of a command that cannot be what was meant."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell makes it."""

TERMINATED = 143
"""Exit code after SIGTERM, as a shell makes it."""

STOPS = {INTERRUPTED: ("KeyboardInterrupt", "interrupted"), TERMINATED: ("SystemExit", "ended by SIGTERM")}
"""Python's class, and the words, for the exit code of a command that was stopped."""

_MISUSES = (ConfigError, FrameNotFoundError, InvalidInputError, ModelNotFoundError)

_OF_ROOT = ("--version", "--install-completion", "--show-completion")


def has_word(word: str) -> bool:
    """Tell whether a word of the command line is an option, not an input.

    Args:
        word: Such as ``--json``.

    Returns:
        Whether it stands before any ``--``.
    """
    words = sys.argv[1:]
    return word in (words[: words.index("--")] if "--" in words else words)


def tell(error: Exception) -> int:
    """Say what went wrong: an error of the package, of the system, or a fault of the package.

    Args:
        error: What was raised.

    Returns:
        The exit code.
    """
    if isinstance(error, GenAIRayError):
        _tell_json(str(error), type(error).__name__, error.got, error.allowed, error.do)
        if has_word("--debug"):
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE if isinstance(error, _MISUSES) else FAILED
    if has_word("--debug"):
        traceback.print_exception(error)
    if isinstance(error, OSError):
        _tell_os_error(error)
        return FAILED
    got = f"a fault of genai-ray: {type(error).__name__}: {error}".splitlines()[0]
    do = "" if has_word("--debug") else "Run the command with --debug and report it."
    text = f"{got}. {do}".rstrip()
    _tell_json(text, type(error).__name__, got, do=do)
    print(f"error: {text}", file=sys.stderr)
    return FAILED


def tell_usage(error: Any) -> int:
    """Say what is wrong with the words of the command line, and where to find the right ones; or print only the help.

    Args:
        error: What Typer raised.

    Returns:
        The exit code.
    """
    if type(error).__name__ == "NoArgsIsHelpError":  # its text was printed when it was raised
        print(error.format_message(), end="", file=sys.stderr)
        return WRONG_USE
    command = error.ctx.command_path if error.ctx is not None else "genai-ray"
    name = getattr(error, "option_name", "")
    if name and hasattr(error.ctx.command, "commands"):
        do = f"Options of a command stand after it: `{command} COMMAND {name}`."
    elif name in _OF_ROOT:
        do = f"It has no command: `genai-ray {name}`."
    else:
        do = f"`{command} --help` lists what is allowed."
    got = error.format_message().rstrip(".?").replace("Value error, ", "")  # Pydantic's words within Typer's
    return tell(ConfigError(got, do=do))


def tell_stop(code: int) -> None:
    """Say that a command was stopped.

    Args:
        code: Its exit code; nothing is said for any that is not of ``STOPS``.
    """
    if code in STOPS:
        print(describe_stop(code), end="", file=_stream())
        print(STOPS[code][1], file=sys.stderr)


def describe_stop(code: int) -> str:
    """Return what standard output gets if a command was stopped.

    Args:
        code: Its exit code, one of ``STOPS``.

    Returns:
        A line of JSON with its end, or nothing if JSON was not asked for.
    """
    kind, words = STOPS[code]
    return _to_line(words, kind, words) if has_word("--json") else ""


def _to_line(message: str, kind: str, got: str, allowed: str = "", do: str = "") -> str:
    told = {"message": message, "class": kind, "got": got, "allowed": allowed, "do": do}
    return json.dumps({"error": told}) + "\n"


def _tell_json(message: str, kind: str, got: str, allowed: str = "", do: str = "") -> None:
    if has_word("--json"):
        with suppress(OSError):  # standard output may be what failed
            print(_to_line(message, kind, got, allowed, do), end="", file=_stream(), flush=True)


def _stream() -> TextIO:
    """Return where JSON goes: not where a video goes, from pipe to pipe."""
    is_video = sum(word in ("-", "-o-", "--output=-") for word in sys.argv) > 1
    return sys.stderr if is_video else sys.stdout


def _tell_os_error(error: OSError) -> None:
    """Say what the system refused, such as a write to a full disk; nothing if the reader of a pipe has gone."""
    if not isinstance(error, BrokenPipeError):
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror or error}"
        _tell_json(text, type(error).__name__, text)
        print(f"error: {text}", file=sys.stderr)
    # Standard output may be what failed: the interpreter would try again to write the rest when it ends.
    with suppress(OSError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
