"""What Ray changes in the process that starts or joins it, and is not to change: its signals, its output, and where workers import from."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.job_config import JobConfig

__all__ = ["TERMINATED", "Job", "hush", "undisturbed"]

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was asked to end."""


class Job(JobConfig):
    """Workers import from where this process does.

    Ray puts the working folder before everything else in every worker, also if this process does not import from it: a script of a user that lies
    there, such as ``av.py``, would take the place of an installed package.
    """

    def __init__(self) -> None:
        script = os.path.dirname(os.path.realpath(sys.argv[0]))
        here = os.path.abspath(os.path.curdir)
        imported = [os.path.abspath(path) for path in sys.path]
        super().__init__(
            _py_driver_sys_path=[path for path in dict.fromkeys((script, here)) if path in imported and _is_text(path)]
        )

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # the question that decides whether Ray adds both by itself


@contextmanager
def undisturbed() -> Iterator[None]:
    """Start or join Ray, and keep this process's own handler of SIGTERM: Ray's aborts the process, with a crash dump.

    A process that has none ends as by ``sys.exit(143)``, so that what it holds is given back. What Ray notes of the command line is text, also if an
    argument is none.

    Yields:
        Nothing.
    """
    utils: Any = ray._private.utils
    set_handler, name_entrypoint = utils.set_sigterm_handler, utils.get_entrypoint_name
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    own = _exit if before in (signal.SIG_DFL, None) else before
    utils.get_entrypoint_name = lambda: name_entrypoint().encode(errors="backslashreplace").decode()
    if is_main:
        signal.signal(signal.SIGTERM, own)
        utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler, utils.get_entrypoint_name = set_handler, name_entrypoint
        if is_main:
            signal.signal(signal.SIGTERM, own)  # what aborts was put there from below Python


def hush(*, is_quiet: bool) -> None:
    """Let Ray print what befell its processes, or not: of its own cluster this process tells that itself, in one sentence.

    Args:
        is_quiet: Whether it is to be silent.
    """
    worker: Any = ray._private.worker
    worker._worker_logs_enabled = not is_quiet


def _is_text(path: str) -> bool:
    """Tell whether Ray can send a path to its workers: bytes that are no UTF-8 it cannot."""
    return path.encode(errors="replace").decode() == path


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
