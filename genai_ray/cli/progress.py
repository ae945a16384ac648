"""How far a job is, on standard error: a bar on a terminal, otherwise a line now and then; and Ctrl-C while it runs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from genai_ray.cli.faults import INTERRUPTED, describe_stop

if TYPE_CHECKING:
    from genai_ray.enhance import Progress as JobProgress

__all__ = ["Bar", "Lines", "Silence", "Step", "stopping", "tell_frames"]

LINE_EVERY_S = 10.0

BAR_ROOM = 8
"""Cells of a line that the bar gets at least, with the spinner and the gaps."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a command is that is not a job of Ray; it has what is shown of a job's ``Progress``."""

    frames_done: int
    """Frames so far."""
    frames_total: int
    """All of them."""
    stage: str
    """What it is doing."""
    fps: float
    """Frames per second."""
    seconds_left: float | None
    """To the last frame; None while it is not known."""
    clips_done: int = 0
    """Not counted."""
    clips_total: int = 1
    """Not counted."""
    clips_failed: int = 0
    """Not counted."""
    notes: tuple[str, ...] = ()
    """None."""


def tell_frames(shown: Silence, stage: str) -> Callable[[int, int], None]:
    """Show the progress of a function that counts frames.

    Args:
        shown: What shows the progress.
        stage: What is done to the frames.

    Returns:
        A function of the frames that are done and of all frames.
    """
    began_s = time.monotonic()

    def show(done: int, total: int) -> None:
        fps = done / max(time.monotonic() - began_s, 1e-3)
        shown(Step(done, total, stage, fps, (total - done) / fps if done else None))

    return show


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: JobProgress | Step) -> None:
        """Take how far the job is."""

    def end(self) -> None:
        """Show nothing more."""


class Lines(Silence):
    """One line every ten seconds, for output that is not a terminal."""

    def __init__(self) -> None:
        self._printed_s = time.monotonic()

    def __call__(self, progress: JobProgress | Step) -> None:
        """Print notes, and how far the job is if the last line is old enough."""
        for note in progress.notes:
            print(f"note: {note}", file=sys.stderr)
        if time.monotonic() - self._printed_s < LINE_EVERY_S:
            return
        self._printed_s = time.monotonic()
        print(f"{progress.stage}: {', '.join(_parts_of(progress))}".rstrip(": "), file=sys.stderr)


class Bar(Silence):
    """A progress bar on the terminal: videos if there are several, stage, frames, frames per second, time left.

    Args:
        console: Of standard error.
    """

    def __init__(self, console: Console) -> None:
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

    def __call__(self, progress: JobProgress | Step) -> None:
        """Print notes above the bar, and draw how far the job is."""
        for note in progress.notes:
            self._progress.console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        videos, *facts = _parts_of(progress) if progress.clips_total > 1 else ("", *_parts_of(progress))
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


def _parts_of(progress: JobProgress | Step) -> list[str]:
    """Say what is known, in order: videos if there are several, frames, speed, time left."""
    parts = []
    if progress.clips_total > 1:
        failed = f" ({progress.clips_failed} failed)" if progress.clips_failed else ""
        parts.append(f"{progress.clips_done} of {progress.clips_total} videos{failed}")
    if progress.frames_total:
        parts.append(f"{progress.frames_done} of {progress.frames_total} frames")
    if progress.fps:
        parts.append(f"{progress.fps:.1f} frames/s")
    if progress.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(progress.seconds_left))} left")
    return parts


@contextmanager
def stopping(shown: Silence) -> Iterator[None]:
    """Answer the first Ctrl-C in the block at once, and end the process at the second.

    Args:
        shown: What shows the progress; it ends with the first Ctrl-C.

    Yields:
        Nothing. The first Ctrl-C raises ``KeyboardInterrupt``: cleanup takes some seconds. A process that
        ignores SIGINT, such as a background job of a script, continues to ignore it.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, abandon)
        shown.end()
        print("stopping: finished segments are kept; press Ctrl-C again to abandon", file=sys.stderr, flush=True)
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
