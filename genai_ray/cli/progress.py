"""How far a job is, as a bar on a terminal; and Ctrl-C while it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from genai_ray.cli.faults import INTERRUPTED, describe_stop
from genai_ray.progress import Lines, Shown, Silence, describe_progress

__all__ = ["Bar", "choose_bar", "stopping"]

BAR_ROOM = 8
"""Cells of a line that the bar gets at least, with the spinner and the gaps."""


class Bar(Silence):
    """A progress bar on the terminal: videos if there are several, stage, frames, frames per second, time left.

    Args:
        console: Of standard error.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _FramesBar(bar_width=None),
            _Facts(Column(no_wrap=True)),
        )
        self._progress = Progress(*columns, console=console, transient=True, expand=True)
        self._task = self._progress.add_task("starting", total=None, facts="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, progress: Shown) -> None:
        """Print notes above the bar, and draw how far the job is."""
        for note in progress.notes:
            self._progress.console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        self.told.update(progress.notes)
        videos, *facts = describe_progress(progress) if progress.clips_total > 1 else ("", *describe_progress(progress))
        description = f"{videos}, {progress.stage}".lstrip(", ")
        room = self._progress.console.width - BAR_ROOM
        while len(facts) > 1 and len(description) + len("  ".join(facts)) > room:
            facts.pop(0)  # the time left is the last
        self._progress.update(
            self._task,
            completed=progress.frames_done,
            total=progress.frames_total or None,
            description=description,
            facts="  ".join(facts),
        )

    def end(self) -> None:
        """Remove the bar."""
        self._progress.stop()


class _FramesBar(BarColumn):
    """A bar, once it is known how many frames there are."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.total is not None else Text("")


class _Facts(ProgressColumn):
    """What the job told last."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"], no_wrap=True)


def choose_bar(*, is_quiet: bool) -> Silence:
    """Make what shows the progress of a command on standard error.

    Args:
        is_quiet: Whether nothing is shown.

    Returns:
        A bar on a terminal, else lines of text.
    """
    console = Console(stderr=True)
    return Silence() if is_quiet else Bar(console) if console.is_terminal else Lines()


@contextmanager
def stopping(
    shown: Silence, words: str = "stopping: finished segments are kept; press Ctrl-C again to abandon"
) -> Iterator[None]:
    """Answer the first Ctrl-C in the block at once, and end the process at the second.

    Args:
        shown: What shows the progress; it ends with the first Ctrl-C.
        words: What is said then.

    Yields:
        Nothing. The first Ctrl-C raises ``KeyboardInterrupt``: cleanup takes some seconds. A process that
        ignores SIGINT, such as a background job of a script, continues to ignore it.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, abandon)
        shown.end()
        print(words, file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    def abandon(number: int, frame: FrameType | None) -> NoReturn:
        os.write(sys.stderr.fileno(), b"abandoned\n")
        if sys.__stdout__ is not None:  # sys.stdout stands for standard error here
            os.write(sys.__stdout__.fileno(), describe_stop(INTERRUPTED).encode())
        os._exit(INTERRUPTED)  # Ray's processes end by themselves when this one is gone

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
