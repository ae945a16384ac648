"""The command line in a terminal of a given width."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass

from tests.processes import DEADLINE_S


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    raw: str
    """All that it wrote to the terminal."""

    @property
    def text(self):
        """The same without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r\n", "\n")


def run_in_terminal(*arguments, columns=80, **options):
    """Run the command line with a terminal as its standard input, output and error."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "genai_ray.cli", *map(str, arguments)],
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        env=env | {"TERM": "xterm-256color"},
        **options,
    )
    os.close(child)
    deadline = threading.Timer(DEADLINE_S, os.killpg, (process.pid, signal.SIGKILL))
    deadline.start()
    written = b""
    try:
        while data := os.read(parent, 65536):
            written += data
    except OSError:  # the terminal has no other end any more
        pass
    finally:
        os.close(parent)
        returncode = process.wait()
        deadline.cancel()
    return Ended(returncode, written.decode(errors="replace"))
