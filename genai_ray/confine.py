"""Work on a stranger's file in a process of its own, which has a limit of memory and of time: what it needs more, ends it alone.

Arguments and results travel as JSON, so that nothing of that process is trusted but text.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genai_ray import errors

__all__ = ["call_confined", "raise_limit"]

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_ARENA_MAX": "2"
}
"""Threads have stacks and heaps of their own, which count."""


def call_confined(function: Callable[..., Any], *args: Any, max_bytes: int, within_s: float) -> Any:
    """Call a function in a process of its own.

    Args:
        function: A function of a module; its result must be fit for JSON.
        args: Its arguments, fit for JSON.
        max_bytes: Most bytes of memory that the process may allocate (Linux; elsewhere only the time is limited).
        within_s: Most seconds that it may take.

    Returns:
        The result.

    Raises:
        GenAIRayError: What the function raises, of the same class.
        ResourceExhaustedError: If it needed more memory, or its process died.
        DeadlineExceededError: If it took longer.
    """
    asked = {
        "module": function.__module__,
        "name": function.__qualname__,
        "args": args,
        "max_bytes": max_bytes,
        "within_s": within_s,
    }
    own = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "genai_ray.confine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | _ONE_THREAD | own,
    )
    try:
        told, _ = process.communicate(json.dumps(asked).encode(), timeout=within_s)
    except subprocess.TimeoutExpired as exc:
        raise errors.DeadlineExceededError(f"it took more than {within_s:g} s") from exc
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    if process.returncode == -signal.SIGALRM:
        raise errors.DeadlineExceededError(f"it took more than {within_s:g} s")
    if process.returncode or not told:
        raise errors.ResourceExhaustedError(
            f"it ended its process ({_say_end(process.returncode)}), which may have {max_bytes} bytes"
        )
    answer = json.loads(told)
    if "error" in answer:
        kind, *fields = answer["error"]
        raise getattr(errors, kind)(*fields)
    return answer["result"]


def raise_limit(more_bytes: int) -> None:
    """Let this process, which ``call_confined`` started, allocate more; at the most half of the machine's memory.

    Args:
        more_bytes: How much more.
    """
    if sys.platform == "linux":
        import resource  # noqa: PLC0415

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (max(soft, min(soft + more_bytes, half)), hard))


def _say_end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _limit(max_bytes: int, within_s: float) -> None:
    """Bound this process; a process whose caller has died ends by itself."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(
            resource.RLIMIT_DATA, (max_bytes if most == resource.RLIM_INFINITY else min(max_bytes, most), most)
        )
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(
                "1000"
            )  # if memory runs out all the same, this process goes first
    signal.alarm(math.ceil(within_s))


def _main() -> None:
    asked = json.load(sys.stdin.buffer)
    own = os.dup(1)
    os.dup2(2, 1)  # libraries that print do not print into the answer
    _limit(asked["max_bytes"], asked["within_s"])
    try:
        function = getattr(importlib.import_module(asked["module"]), asked["name"])
        answer = {"result": function(*asked["args"])}
    except errors.GenAIRayError as exc:
        answer = {"error": [type(exc).__name__, exc.got, exc.allowed, exc.do]}
    except MemoryError:
        answer = {"error": ["ResourceExhaustedError", f"it needed more than {asked['max_bytes']} bytes", "", ""]}
    with os.fdopen(own, "wb") as out:
        out.write(json.dumps(answer).encode())
        out.flush()
    os._exit(0)  # nothing is left to be put in order


if __name__ == "__main__":
    _main()
