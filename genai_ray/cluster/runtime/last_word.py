"""A last word where Ray ends this process: without its node it calls ``_exit`` from below Python as soon as it asks the object store for something.

No handler runs then, so a small process beside this one says what befell it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["NODE_DIED", "Guard"]

NODE_DIED = "the Ray node that this process started has died"

_OVER = "over"

_SCRIPT = """
while read -r line; do words=$line; done
[ "$words" = over ] && exit
for pid do
    if [ -d /proc/self ]; then grep -qs '^State:.[^ZX]' "/proc/$pid/status" && continue; else kill -0 "$pid" 2>/dev/null && continue; fi
    echo "$words" >&2
    exit
done
"""
"""Reads until this process is gone; is silent if that was meant, or the processes of its node still live."""


class Guard:
    """Says on standard error that the node has died, if this process ends with it.

    Args:
        pids: The processes without which there is no node.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        command = ["/bin/sh", "-c", _SCRIPT, "genai-ray-guard", *map(str, pids)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
        )
        self.say("")

    def say(self, do: str) -> None:
        """Change what is said.

        Args:
            do: What a person can do then; empty if nothing.
        """
        self._write(f"error: {NODE_DIED}{'. ' if do else ''}{do}")

    def stop(self) -> None:
        """End it without a word."""
        self._write(_OVER)
        with suppress(OSError):
            self._process.communicate()

    def _write(self, line: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # somebody has killed it
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()
