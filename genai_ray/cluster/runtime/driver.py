"""This process beside Ray: its signals, output and import paths stay its own, and it has a last word if Ray ends it.

Without its node Ray ends a process from below Python, by ``_exit``, as soon as it asks the object store for something.
No handler runs
then, so ``Guard``, a small process beside this one, says what happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

import ray
from ray.job_config import JobConfig

__all__ = ["NODE_DIED", "TERMINATED", "Guard", "Job", "hush", "undisturbed"]

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was asked to end."""


NODE_DIED = "the Ray node that this process started has died"

_OVER = "over"

_SCRIPT = """
while read -r line; do words=$line; done
[ "$words" = over ] && exit
for pid do
    if [ -d /proc/self ]; then grep -qs '^State:.[^ZX]' "/proc/$pid/status" && continue
    else kill -0 "$pid" 2>/dev/null && continue; fi
    echo "$words" >&2
    exit
done
"""
"""Reads lines until this process is gone. Prints the last one, unless that is ``over`` or the processes of the node
still live."""


class Job(JobConfig):
    """Workers import from the same folders as this process.

    By itself Ray puts the working folder first in every worker, even if this process does not import from it: a user's
    script there, such as ``av.py``, would replace an installed package.
    """

    def __init__(self) -> None:
        script = os.path.dirname(os.path.realpath(sys.argv[0]))
        here = os.path.abspath(os.path.curdir)
        imported = [os.path.abspath(path) for path in sys.path]
        super().__init__(
            _py_driver_sys_path=[path for path in dict.fromkeys((script, here)) if path in imported and _is_text(path)]
        )

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # if this is false, Ray adds both folders itself


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts: Ray's own aborts the process, with a crash dump.

    If there is no handler, SIGTERM raises ``SystemExit(143)``, so that cleanup runs. Arguments of the command line that
    are not text do not harm Ray, which records them. The first Ctrl-C counts when the block has ended: after a start
    that was interrupted, the next one would end the process from below Python. The second one counts at once.

    Yields:
        Nothing.
    """
    utils: Any = ray._private.utils
    set_handler = utils.set_sigterm_handler
    name_entrypoint = utils.get_entrypoint_name
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    own = _exit if before in (signal.SIG_DFL, None) else before
    utils.get_entrypoint_name = lambda: name_entrypoint().encode(errors="backslashreplace").decode()
    if is_main:
        signal.signal(signal.SIGTERM, own)
        utils.set_sigterm_handler = lambda _: None
    with _late_interrupt() if is_main else nullcontext():
        try:
            yield
        finally:
            utils.set_sigterm_handler = set_handler
            utils.get_entrypoint_name = name_entrypoint
            if is_main:
                signal.signal(signal.SIGTERM, own)  # Ray's was installed from below Python


@contextmanager
def _late_interrupt() -> Iterator[None]:
    """Hold the first SIGINT back until the block has ended, if this process has a handler for it."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    is_held = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal is_held
        if is_held:
            signal.signal(signal.SIGINT, before)
            signal.raise_signal(signal.SIGINT)
        is_held = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, before)
            if is_held:
                signal.raise_signal(signal.SIGINT)


def hush(*, is_quiet: bool) -> None:
    """Silence Ray's messages about its processes, or let it print them again.

    Of its own cluster this process reports failures itself.

    Args:
        is_quiet: Whether Ray is silent.
    """
    worker: Any = ray._private.worker
    worker._worker_logs_enabled = not is_quiet


class Guard:
    """Says on standard error that the node has died, if this process ends with it.

    Args:
        pids: The processes that the node consists of.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        command = ["/bin/sh", "-c", _SCRIPT, "genai-ray-guard", *map(str, pids)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
        )
        self.say("")

    def say(self, do: str) -> None:
        """Change the advice that follows the message.

        Args:
            do: What a person can do; empty for none.
        """
        self._write(f"error: {NODE_DIED}{'. ' if do else ''}{do}")

    def stop(self) -> None:
        """End the guard; it prints nothing."""
        self._write(_OVER)
        with suppress(OSError):
            self._process.communicate()

    def _write(self, line: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # the guard was killed
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()


def _is_text(path: str) -> bool:
    """Tell whether Ray can send a path to its workers: it must be UTF-8."""
    return path.encode(errors="replace").decode() == path


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
