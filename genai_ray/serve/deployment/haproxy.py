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
* clients that send headers or a body, or read an answer, too slowly lose their connection, and one address may not have them all;
* where no replica takes requests it says so: Ray's own proxy, which would step in, says 404 of an application that is ending;
* its own answers to requests are ``{"error": text}``, with 503 and Retry-After for 502 to 504, not plain text.

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

__all__ = ["HOST", "MAX_CONNECTIONS", "bracketed", "launch", "rewrite", "write_launcher"]

MAX_CONNECTIONS = 16_384
"""Connections of clients that HAProxy has at the most, where as many files may be open."""

ANSWER = '{"error": "no replica takes requests at the moment; send it again"}'
"""What HAProxy says by itself: no replica, or one that died without an answer to a request that cannot be sent again."""

SLOW = '{"error": "the body came too slowly; allowed: 60 s for all of it, or for its first megabyte"}'

_ERROR_FILES = {408: ("408 Request Timeout", SLOW), 503: ("503 Service Unavailable", ANSWER)}
"""Status line and body by the status for which HAProxy sends it; 503 for 502 and 504 as well."""

_REAL = "GENAI_RAY_HAPROXY"
HOST = "GENAI_RAY_HAPROXY_HOST"
"""Variable of the environment with the address that HAProxy is to listen on."""

_PR_SET_PDEATHSIG = 1
_UNWANTED = re.compile(r"^(frontend prometheus|listen stats)\b")
_BIND = re.compile(r"^(\s*bind )\S+:(\d+)\b")
_SECTION = re.compile(r"^(global|defaults|frontend|backend|listen)\b")
_ERROR_FILE = re.compile(r"^(\s*errorfile \d+) .*$")
_BACKUP = re.compile(r"^\s*server \S+ \S+ .*\bbackup$")
_MAXCONN = re.compile(r"^\s*maxconn (\d+)$", re.MULTILINE)
_NO_GRPC = re.compile(r'hdr grpc-status 5 hdr grpc-message ".*?"')
_BALANCE = re.compile(r"^(\s*)balance leastconn$")
_NOT_FOUND = re.compile(r"^(\s*http-request return) status 404 content-type text/plain lf-string .*$")
_FEW_CONNECTIONS = """    stick-table type ipv6 size 100k expire 1m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {%s} }}
    tcp-request connection reject if {{ sc0_conn_cur gt {fewer} }} !{{ src 127.0.0.0/8 ::1 }}
    timeout http-request 10s
"""
_ADDED = {
    "global": "    tune.memory.hot-size 4194304\n",
    "defaults": "    errorfile 408 {folder}/408.http\n",
    "frontend http_frontend": _FEW_CONNECTIONS % "many"
    + """    http-request wait-for-body time 60s
    http-request set-header X-Forwarded-For %[src]
""",
    "frontend grpc_frontend": _FEW_CONNECTIONS % "fewer"
    + """    timeout client 300s
    http-request wait-for-body time 60s unless {{ path_end /ModelStreamInfer /ServerReflectionInfo }}
""",
}
"""Lines by the section that they are added to.

4 MiB are 4 buffers for each of HAProxy's 4 threads: it keeps 16 MiB. One address has a quarter of all connections, and
this machine itself, where all clients share an address, three fifths over HTTP. A stream over gRPC may pause for longer
than a request over HTTP.
"""
_BY_PATH = r"\g<1>balance uri\n\g<1>hash-type consistent\n\g<1>hash-balance-factor 200"
_UNAVAILABLE = 'hdr grpc-status 14 hdr grpc-message "no replica takes requests at the moment; send it again"'
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


def rewrite(config: str, folder: str, host: str | None = None) -> str:
    """Rewrite a configuration of Ray's.

    Args:
        config: What Ray wrote.
        folder: Where the files with HAProxy's own answers are: ``408.http`` and ``503.http``.
        host: Address to listen on; None for the one that Ray wrote, which replicas then listen on too.

    Returns:
        The configuration for HAProxy.
    """
    found = _MAXCONN.search(config)
    most = int(found[1]) if found else MAX_CONNECTIONS
    replaced = (
        (_ERROR_FILE, rf"\g<1> {folder}/503.http"),
        (_BALANCE, _BY_PATH),
        (_NOT_FOUND, _REFUSAL),
        (_NO_GRPC, _UNAVAILABLE),
    )
    lines, is_wanted = [], True
    for line in config.splitlines():
        if _SECTION.match(line):
            is_wanted = not _UNWANTED.match(line)
        if is_wanted and not _BACKUP.match(line):
            kept = line
            for pattern, text in replaced:
                kept = pattern.sub(text, kept)
            if host is not None:
                kept = _BIND.sub(lambda found: f"{found[1]}{bracketed(host)}:{found[2]}", kept)
            lines.append(kept)
        if line in _ADDED:
            lines.append(_ADDED[line].format(folder=folder, many=most * 3 // 5, fewer=most // 4).rstrip())
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
    files = {config.with_name(f"{status}.http"): _answer(*words) for status, words in _ERROR_FILES.items()}
    for path, text in (*files.items(), (config, rewrite(config.read_text(), str(config.parent), os.environ.get(HOST)))):
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(text, newline="")
        part.replace(path)
    os.execv(os.environ[_REAL], [os.environ[_REAL], *arguments])


def _answer(status: str, body: str) -> str:
    again = "Retry-After: 1\r\n" if status.startswith("503") else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{again}Connection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        launch(sys.argv[1:])
