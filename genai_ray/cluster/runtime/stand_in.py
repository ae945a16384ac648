"""Stands in for Ray's agent of runtime environments until Ray asks it: most jobs never do, and it loads for a second.

``python stand_in.py HOST FILE COMMAND...`` is a program of its own, of the standard library alone, so that it starts in
some milliseconds. It listens on a free port of HOST, writes the port's number to FILE, as Ray's agents do, and becomes
COMMAND at the first connection, which ends: Ray tries again for 30 s. It ends with the raylet, which then closes its
input.
"""

from __future__ import annotations

import os
import select
import socket
import sys

__all__ = ["stand_in"]


def stand_in(host: str, file: str, command: list[str]) -> None:
    """Wait for a connection, then become the agent.

    Args:
        host: Address to listen on.
        file: Gets the port's number.
        command: The agent's command; ``--runtime-env-agent-port`` is added to it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with open(f"{file}.partial", "w") as partial:
            partial.write(str(port))
        os.rename(f"{file}.partial", file)
        ready, _, _ = select.select([listener, sys.stdin], [], [])
    if sys.stdin not in ready:
        os.execv(command[0], [*command, f"--runtime-env-agent-port={port}"])


if __name__ == "__main__":
    stand_in(sys.argv[1], sys.argv[2], sys.argv[3:])
