"""How far something is, for people: as lines of text, or as a bar that a notebook draws. The bar needs only IPython."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

__all__ = [
    "Lines",
    "NotebookBar",
    "Shown",
    "Silence",
    "Step",
    "count_in_notebook",
    "describe_progress",
    "show_progress",
    "tell_frames",
    "telling",
]

LINE_EVERY_S = 10.0

DRAWN_EVERY_S = 0.2
"""A notebook's bar is drawn no more often while its stage stays."""

MAX_NOTES = 20
"""Notes that a notebook shows below its bar: the first ones."""

_Told = TypeVar("_Told")


class Shown(Protocol):
    """What is shown of a ``Progress`` or a ``Step``."""

    @property
    def frames_done(self) -> int:
        """Frames so far."""

    @property
    def frames_total(self) -> int:
        """All of them; 0 while this is not known."""

    @property
    def stage(self) -> str:
        """What is being done."""

    @property
    def fps(self) -> float:
        """Frames per second; 0 before the first one."""

    @property
    def seconds_left(self) -> float | None:
        """To the last frame; None while this is not known."""

    @property
    def clips_done(self) -> int:
        """Videos that have ended."""

    @property
    def clips_total(self) -> int:
        """All of them."""

    @property
    def clips_failed(self) -> int:
        """Videos that failed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is known since the last call."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far something is that is not a job of Ray; it has what is shown of a job's ``Progress``."""

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


class Silence:
    """Shows nothing."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        """Notes that were shown."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Shown) -> None:
        """Take how far the job is."""

    def end(self) -> None:
        """Show nothing more."""


class Lines(Silence):
    """One line every ten seconds on standard error, for output that is not a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._printed_s = time.monotonic()

    def __call__(self, progress: Shown) -> None:
        """Print notes, and how far the job is if the last line is old enough."""
        for note in progress.notes:
            _print(f"note: {note}")
        self.told.update(progress.notes)
        if time.monotonic() - self._printed_s < LINE_EVERY_S:
            return
        self._printed_s = time.monotonic()
        _print(_to_line(progress))


class NotebookBar(Silence):
    """A bar in the output of a notebook's cell, drawn anew with each call; a front end without HTML shows its words."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[str] = []
        self._last: Shown = Step(0, 0, "starting", 0.0, None)
        self._drawn_s = time.monotonic()
        from IPython.display import display  # noqa: PLC0415  only a notebook has it

        self._handle: Any = display(self._draw(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        """Say that it is done, or what it did when it ended."""
        last = self._last
        stage = f"ended while {last.stage}" if any(error) else "done"
        counts = last.clips_done, last.clips_total, last.clips_failed
        self(Step(last.frames_done, last.frames_total, stage, last.fps, None, *counts))

    def __call__(self, progress: Shown) -> None:
        """Draw how far the job is, with its first notes."""
        is_new = progress.stage != self._last.stage or bool(progress.notes)
        self._last = progress
        self._notes = [*self._notes, *progress.notes][:MAX_NOTES]
        if is_new or time.monotonic() - self._drawn_s >= DRAWN_EVERY_S:
            self._drawn_s = time.monotonic()
            self._handle.update(self._draw(), raw=True)

    def _draw(self) -> dict[str, str]:
        """Return the bar in the formats of a notebook."""
        line = _to_line(self._last)
        total = self._last.frames_total
        is_ended = self._last.stage == "done" or self._last.stage.startswith("ended")
        share = f' value="{self._last.frames_done}" max="{total}"' if total else ' value="0"' if is_ended else ""
        notes = [f"note: {note}" for note in self._notes]
        below = "".join(f"<br>{html.escape(note)}" for note in notes)
        return {
            "text/plain": "\n".join([line, *notes]),
            "text/html": f"<progress{share}></progress> {html.escape(line)}{below}",
        }


def describe_progress(progress: Shown) -> list[str]:
    """Say what is known.

    Args:
        progress: How far it is.

    Returns:
        In order: videos if there are several, frames, speed, time left.
    """
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


def show_progress() -> Silence:
    """Make what shows the progress of a job: ``enhance_videos(..., on_progress=show_progress())``.

    A notebook gets its bar without this; a script gets lines of text with it.

    Returns:
        A function of a ``Progress``: in a notebook a bar, elsewhere a line on standard error every ten seconds.

    Example:
        >>> show_progress()  # doctest: +ELLIPSIS
        <genai_ray.progress.Lines object at ...>
    """
    return NotebookBar() if _is_notebook() else Lines()


@contextmanager
def telling(on_progress: Callable[[_Told], None] | None) -> Iterator[Callable[[_Told], None] | None]:
    """Show the progress of a block in a notebook, unless the caller does it.

    Args:
        on_progress: The caller's function; None if there is none.

    Yields:
        The caller's function; without one a bar in a notebook, and None elsewhere.
    """
    if on_progress is not None or not _is_notebook():
        yield on_progress
        return
    with NotebookBar() as bar:
        shown: Any = bar
        yield shown


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


def count_in_notebook(stage: str) -> Callable[[int, int], None] | None:
    """Show the progress of a function that counts frames, in a notebook alone.

    Args:
        stage: What is done to the frames.

    Returns:
        A function of the frames that are done and of all frames; None elsewhere.
    """
    if not _is_notebook():
        return None
    bar = NotebookBar()
    tell = tell_frames(bar, stage)

    def show(done: int, total: int) -> None:
        tell(done, total)
        if done == total:
            bar.__exit__()

    return show


def _is_notebook() -> bool:
    """Tell whether a cell of a notebook runs this process: whether IPython is here, with a kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _to_line(progress: Shown) -> str:
    return f"{progress.stage}: {', '.join(describe_progress(progress))}".rstrip(": ")


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")
