"""Calls a function in a process of its own: for an untrusted file with a limit of memory, or to measure the process.

Beyond a limit, only that process ends. Arguments and results travel as JSON, so only text is trusted.
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

__all__ = ["call_apart", "call_confined"]

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_ARENA_MAX": "2"
}
"""Each thread has its own stack and heap, which count as memory."""


def call_confined(function: Callable[..., Any], *args: Any, max_bytes: int, within_s: float) -> Any:
    """Call a function in a process of its own.

    Args:
        function: A function of a module; JSON must be able to hold its result.
        args: Its arguments; JSON must be able to hold them.
        max_bytes: Most bytes of memory that the process may allocate (Linux; elsewhere only the time is limited).
        within_s: Most seconds that it may take.

    Returns:
        The result.

    Raises:
        GenAIRayError: If the function raises it; of the same class.
        ResourceExhaustedError: If the process needed more memory, or died.
        DeadlineExceededError: If it took longer.
    """
    own = _ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""}
    return _call(function, args, own, max_bytes, within_s)


def call_apart(function: Callable[..., Any], *args: Any, within_s: float) -> Any:
    """Call a function in a process of its own, which may use all cores, GPUs and memory.

    Args:
        function: As ``call_confined``.
        args: As ``call_confined``.
        within_s: Most seconds that it may take.

    Returns:
        The result.

    Raises:
        GenAIRayError: If the function raises it; of the same class.
        ResourceExhaustedError: If the process died.
        DeadlineExceededError: If it took longer.
    """
    return _call(function, args, {}, None, within_s)


def _call(
    function: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str], max_bytes: int | None, within_s: float
) -> Any:
    request = {
        "module": function.__module__,
        "name": function.__qualname__,
        "args": args,
        "max_bytes": max_bytes,
        "within_s": within_s,
    }
    path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "genai_ray.confine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | env | path,
        process_group=0,  # Ctrl-C is for the caller, which ends this process
    )
    try:
        output, _ = process.communicate(json.dumps(request).encode(), timeout=within_s)
    except subprocess.TimeoutExpired as exc:
        raise errors.DeadlineExceededError(f"took more than {within_s:g} s") from exc
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    if process.returncode == -signal.SIGALRM:
        raise errors.DeadlineExceededError(f"took more than {within_s:g} s")
    if process.returncode or not output:
        limit = "" if max_bytes is None else f" with a limit of {max_bytes} bytes"
        raise errors.ResourceExhaustedError(f"its process ended ({_say_end(process.returncode)}){limit}")
    answer = json.loads(output)
    if "error" in answer:
        kind, *fields = answer["error"]
        raise getattr(errors, kind)(*fields)
    return answer["result"]


def _say_end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _limit(max_bytes: int | None, within_s: float) -> None:
    """Limit this process; the alarm also ends it if its caller has died."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and max_bytes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(
            resource.RLIMIT_DATA, (max_bytes if most == resource.RLIM_INFINITY else min(max_bytes, most), most)
        )
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first
    signal.alarm(math.ceil(within_s))


def _main() -> None:
    request = json.load(sys.stdin.buffer)
    own = os.dup(1)
    os.dup2(2, 1)  # libraries that print must not print into the answer
    _limit(request["max_bytes"], request["within_s"])
    try:
        function = getattr(importlib.import_module(request["module"]), request["name"])
        answer = {"result": function(*request["args"])}
    except errors.GenAIRayError as exc:
        answer = {"error": [type(exc).__name__, exc.got, exc.allowed, exc.do]}
    except MemoryError:
        limit = request["max_bytes"]
        got = "needed more memory than there is" if limit is None else f"needed more than {limit} bytes"
        answer = {"error": ["ResourceExhaustedError", got, "", ""]}
    with os.fdopen(own, "wb") as out:
        out.write(json.dumps(answer).encode())
        out.flush()
    os._exit(0)  # there is nothing to clean up


if __name__ == "__main__":
    _main()
