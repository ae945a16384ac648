"""Real processes, watched and ended by their ids."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

DEADLINE_S = 120.0
ROOT = Path(__file__).resolve().parents[1]


def start(*args, **options):
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "genai_ray.cli", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def run(*args, **options):
    """Run the command line to its end."""
    command = [sys.executable, "-m", "genai_ray.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def wait_until(condition, process=None):
    """Wait until a condition holds; fails when the process ends before, or at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


def descendants(root, with_agents=False):
    """Return the ids of all processes that a process started, and of those that they started.

    Ray's own two agents are left out where they are not asked for: when their raylet is killed they end by themselves
    after a minute.
    """
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    mine = {root}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {
        pid for pid in mine - {root} if with_agents or title(pid) not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    }


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def listeners(pids):
    """Return (address, port, id) of all that processes listen on."""
    sockets = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = (
                    socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:"),
                    int(port, 16),
                )
    found = set()
    for pid in pids:
        with suppress(OSError):
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError, KeyError):
                    found.add((*sockets[os.readlink(file)], pid))
    return found


def is_alive(pid):
    """Tell whether a process runs; one that has ended and was not fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def foreign_files(home):
    """Return what lies below a home that is neither Ray's token nor what this package remembers: telemetry of a
    runtime, for one."""
    inside = {path.relative_to(home).as_posix() for path in home.rglob("*") if not path.is_dir()}
    return sorted(name for name in inside if name != ".ray/auth_token" and "genai_ray/" not in name)


def rss_anon(pid):
    """Return the anonymous memory of a process in bytes."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


@contextmanager
def rss_watched(pid):
    """Look at a process all the time; the list ends with the most that it has taken."""
    most, over = [rss_anon(pid)], threading.Event()

    def look():
        while not over.wait(0.002):
            most[0] = max(most[0], rss_anon(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


_SPIN = """
import time
began_s = time.perf_counter()
while time.process_time() < 1:
    pass
print(time.perf_counter() - began_s)
"""


def crowding():
    """Return how many times longer computing takes since others want the processors too: about 1 on a quiet machine."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE, text=True)
        for _ in range(os.cpu_count() or 1)
    ]
    return max(1.0, *(float(process.communicate()[0]) for process in spinning))


@contextmanager
def killing(words, most, when):
    """Kill up to ``most`` processes of the embedded Ray whose title has ``words``, one after another, once ``when()``
    holds."""
    over, killed = threading.Event(), []

    def hunt():
        while not over.wait(0.005) and len(killed) < most:
            if not when():
                continue
            for pid in descendants(os.getpid()):
                if words in title(pid) and pid not in killed and is_alive(pid):
                    kill(pid)
                    killed.append(pid)
                    break

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
