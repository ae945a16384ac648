"""``genai-ray enhance - -o -``: from standard input to standard output; everything else goes to standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from genai_ray.cli.choices import PIPE, Manner
from genai_ray.cli.progress import choose_bar, stopping
from genai_ray.cli.tables import print_report
from genai_ray.errors import ConfigError

if TYPE_CHECKING:
    from genai_ray.enhance import EnhanceOptions

__all__ = ["is_pipe", "run_pipe"]


def is_pipe(inputs: Sequence[str], output: str, *, is_forecast: bool) -> bool:
    """Tell whether a video comes and goes through pipes.

    Args:
        inputs: What is to be enhanced.
        output: Where it goes.
        is_forecast: Whether only a plan is asked for.

    Returns:
        Whether both are pipes.

    Raises:
        ConfigError: If only one is, or there are other inputs, or a plan is asked for.
    """
    if PIPE not in inputs and output != PIPE:
        return False
    if list(inputs) != [PIPE] or output != PIPE:
        raise ConfigError(
            f"the inputs {' '.join(inputs)} and the output {output}",
            "- and - (a pipe into a pipe), or files",
            "Put ffmpeg before it or after it: ffmpeg -i in.mp4 -f yuv4mpegpipe - | genai-ray enhance - -o - ... | "
            "ffmpeg -i - out.mp4.",
        )
    if is_forecast:
        raise ConfigError("--dry-run of a video in a pipe", do="Its length is not known before its end.")
    return True


def run_pipe(models: Sequence[str], options: EnhanceOptions, manner: Manner) -> None:
    """Enhance standard input into standard output.

    Args:
        models: As ``enhance_pipe``.
        options: As ``enhance_pipe``.
        manner: How it is told, on standard error.

    Raises:
        ConfigError: If standard input or output is a terminal.
        GenAIRayError: As ``enhance_pipe``.
    """
    from genai_ray.enhance import enhance_pipe

    for stream, name in ((0, "input"), (1, "output")):
        if os.isatty(stream):
            raise ConfigError(f"standard {name} is a terminal", "a pipe or a file")
    with _pipes() as (source, sink):
        shown = choose_bar(is_quiet=manner.is_quiet)
        before_s = time.process_time()
        with stopping(shown, "stopping; press Ctrl-C again to abandon"), shown:
            report = enhance_pipe(source, sink, models=models, options=options, on_progress=shown)
        report = replace(report, elapsed_s=report.elapsed_s + before_s, startup_s=report.startup_s + before_s)
        if manner.as_json:
            print(json.dumps(report.to_dict()), file=sys.stderr)
        elif not manner.is_quiet:
            print_report(report, is_verbose=manner.is_verbose, told=shown.told)


@contextmanager
def _pipes() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Take standard input and output away from everybody else.

    What libraries print goes to standard error, and no process of Ray holds a pipe open.
    """
    sys.stdout.flush()
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (source, sink):  # a pipe of another program may be non-blocking: one without data would look ended
        os.set_blocking(stream.fileno(), True)
    with source, sink:
        yield source, sink
