"""What stands between Ray Serve and the HAProxy binary: it makes HAProxy end with Ray, stay on its ports, and speak JSON.

Ray Serve starts the program that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. ``write_launcher`` makes one that runs this file, which
rewrites the configuration that Ray wrote and then becomes HAProxy:

* the process ends when Ray's manager of it ends, however that is; HAProxy by itself outlives its cluster and answers 500;
* its ports for statistics and metrics, which Ray opens to every network, are left out (Ray reads them over a socket);
* a request is passed on when all of it is there, or its buffer is full: HAProxy sends again only what it had whole when it began to send
  (but a stream of requests at once: who sends it may wait for the first answer);
* requests of one path go to one replica while it has at most twice its share of all, so that those for one model wait in one place, and are merged:
  7 % more requests a second of a small model than from two replicas that have half of them each;
* freed buffers are kept for the next request: those of a size that requests can be sent again from are above what HAProxy keeps by itself, and
  were fetched from the operating system and cleared by it anew for every request, which took 1 ms of each;
* replicas are told who the client is, which they believe HAProxy alone: whatever a client says of that itself is replaced;
* its own answers are ``{"error": text}`` with 503 and Retry-After, not 500 and plain text.

The file imports nothing but the standard library, since it is run as a script at every reload.
"""

import contextlib
import ctypes
import os
import re
import shlex
import signal
import sys
from pathlib import Path

__all__ = ["HOST", "bracketed", "launch", "rewrite", "write_launcher"]

ANSWER = '{"error": "no replica takes requests at the moment; send it again"}'
"""What HAProxy says by itself: no replica, or one that died without an answer to a request that cannot be sent again."""

_REAL = "GENAI_RAY_HAPROXY"
HOST = "GENAI_RAY_HAPROXY_HOST"
"""Variable of the environment with the address that HAProxy is to listen on."""

_PR_SET_PDEATHSIG = 1
_UNWANTED = re.compile(r"^(frontend prometheus|listen stats)\b")
_BIND = re.compile(r"^(\s*bind )\S+:(\d+)\b")
_SECTION = re.compile(r"^(global|defaults|frontend|backend|listen)\b")
_ERROR_FILE = re.compile(r"^(\s*errorfile \d+) .*$")
_BALANCE = re.compile(r"^(\s*)balance leastconn$")
_NOT_FOUND = re.compile(r"^(\s*http-request return) status 404 content-type text/plain lf-string .*$")
_ADDED = {
    "global": "    tune.memory.hot-size 4194304",
    "frontend http_frontend": "    option http-buffer-request\n    http-request set-header X-Forwarded-For %[src]",
    "frontend grpc_frontend": "    http-request wait-for-body time 60s unless { path_end /ModelStreamInfer }",
}
"""Lines by the section that they are added to. 4 MiB are 4 buffers for each of HAProxy's 4 threads: it keeps 16 MiB."""
_BY_PATH = r"\g<1>balance uri\n\g<1>hash-type consistent\n\g<1>hash-balance-factor 200"
_REFUSAL = rf"\g<1> status 503 content-type application/json string '{ANSWER}' hdr Retry-After 1"


def write_launcher(folder: Path) -> Path:
    """Write the program that Ray Serve is to start.

    Args:
        folder: Where; it must stay as long as HAProxy runs.

    Returns:
        The program.
    """
    path = folder / "haproxy-launcher"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -E -S -W ignore {shlex.quote(__file__)} "$@"\n')
    path.chmod(0o755)
    return path


def rewrite(config: str, error_file: str, host: str | None = None) -> str:
    """Rewrite a configuration of Ray's.

    Args:
        config: What Ray wrote.
        error_file: File with the answer for 502, 503 and 504.
        host: Address to listen on; None for the one that Ray wrote, which replicas then listen on too.

    Returns:
        The configuration for HAProxy.
    """
    lines, is_wanted = [], True
    for line in config.splitlines():
        if _SECTION.match(line):
            is_wanted = not _UNWANTED.match(line)
        if is_wanted:
            kept = line
            for pattern, text in ((_ERROR_FILE, rf"\g<1> {error_file}"), (_BALANCE, _BY_PATH), (_NOT_FOUND, _REFUSAL)):
                kept = pattern.sub(text, kept)
            if host is not None:
                kept = _BIND.sub(lambda found: f"{found[1]}{bracketed(host)}:{found[2]}", kept)
            lines.append(kept)
        if line in _ADDED:
            lines.append(_ADDED[line])
    return "\n".join(lines) + "\n"


def bracketed(host: str) -> str:
    """Write an address as it stands before a port.

    Args:
        host: A name or an address.

    Returns:
        The same; an address of IPv6 in brackets.
    """
    return f"[{host}]" if ":" in host else host


def launch(arguments: list[str]) -> None:
    """Become HAProxy.

    Args:
        arguments: HAProxy's; ``-f`` names the configuration that Ray wrote.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be noticed
            return
    config = Path(arguments[arguments.index("-f") + 1])
    error_file = config.with_name("503.http")
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
    for path, text in ((error_file, head + ANSWER), (config, rewrite(config.read_text(), str(error_file), os.environ.get(HOST)))):
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(text, newline="")
        part.replace(path)
    os.execv(os.environ[_REAL], [os.environ[_REAL], *arguments])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        launch(sys.argv[1:])
